//! A file more for a guest's initial RAM disk: kernels read one archive after the other.

/// A cpio archive ("newc", as Linux's `buffer-format.rst` has it) with one executable file.
pub fn archive(name: &str, contents: &[u8]) -> Vec<u8> {
    let mut archive = entry(name, 0o100_755, contents);
    archive.extend(entry("TRAILER!!!", 0, &[]));
    archive
}

fn entry(name: &str, mode: u32, contents: &[u8]) -> Vec<u8> {
    let mut bytes = b"070701".to_vec();
    // inode, mode, uid, gid, links, mtime, size, device and its kind (4), length of the name, checksum.
    let fields = [1, mode, 0, 0, 1, 0, contents.len() as u32, 0, 0, 0, 0, name.len() as u32 + 1, 0];
    for field in fields {
        bytes.extend(format!("{field:08x}").bytes());
    }
    bytes.extend(name.bytes());
    bytes.push(0);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes.extend(contents);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}
