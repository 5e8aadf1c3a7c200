//! Disks of other makers' formats, made by QEMU's tools.

use std::fs;
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use vireo_chain::{Backing, DiskError, Format, Kind, NewDisk, convert, info, open_source};
use vireo_vdisk::trial::peer::{Folder, qemu, text};

/// A raw disk with some content, and holes.
fn raw(folder: &Folder) -> (PathBuf, Vec<u8>) {
    let mut bytes = vec![0u8; 5 << 20];
    for (n, b) in bytes[1 << 20..2 << 20].iter_mut().enumerate() {
        *b = ((n * 7) >> 3) as u8;
    }
    bytes[(5 << 20) - 512..].fill(3);
    let path = folder.join("raw.img");
    fs::write(&path, &bytes).expect("a file");
    (path, bytes)
}

/// What a disk is as a raw one.
fn converted(from: &Path, backing: Backing) -> Result<Vec<u8>, DiskError> {
    let to = from.with_extension("out");
    let new = NewDisk {
        format: Format::Raw,
        kind: Kind::Fixed,
        size: None,
        block: None,
        sector: None,
        allocate: false,
    };
    let mut source = open_source(from, None, backing)?;
    convert(&mut *source, &to, &new, &mut |_| true)?;
    let bytes = fs::read(&to).expect("a file");
    fs::remove_file(&to).expect("it was there");
    Ok(bytes)
}

#[test]
fn disks_of_others_become_ours() {
    let folder = Folder::new("foreign-all");
    let (raw, bytes) = raw(&folder);
    for (n, (format, options, flags)) in [
        ("qcow2", "compat=0.10", &[][..]),
        ("qcow2", "compat=1.1,cluster_size=512", &[]),
        ("qcow2", "cluster_size=2M", &[]),
        ("qcow2", "compat=1.1", &["-c"]),
        ("vmdk", "subformat=monolithicSparse", &[]),
        ("vmdk", "subformat=streamOptimized", &[]),
        ("vmdk", "subformat=monolithicSparse,zeroed_grain=on", &[]),
    ]
    .into_iter()
    .enumerate()
    {
        let path = folder.join(format!("{n}.{format}"));
        let to = ["convert", "-f", "raw", "-O", format, "-o", options, text(&raw), text(&path)];
        qemu("qemu-img", &[&to[..1], flags, &to[1..]].concat());
        assert!(converted(&path, Backing::Refuse).expect("it converts") == bytes, "{format} {options}");
        let told = info(&path, None).expect("it is described");
        assert_eq!((told.format.as_str(), told.size, told.parent), (format, 5 << 20, None));
        assert!(matches!(vireo_chain::check(&path, None), Err(DiskError::Foreign { .. })));
    }
}

/// What is not understood is not guessed.
#[test]
fn features_that_are_not_known_are_said() {
    let folder = Folder::new("foreign-features");
    let (raw, _) = raw(&folder);
    for (n, (options, flags)) in
        [("extended_l2=on,cluster_size=128k", &[][..]), ("compression_type=zstd", &["-c"])]
            .into_iter()
            .enumerate()
    {
        let path = folder.join(format!("{n}.qcow2"));
        let to = ["convert", "-f", "raw", "-O", "qcow2", "-o", options, text(&raw), text(&path)];
        qemu("qemu-img", &[&to[..1], flags, &to[1..]].concat());
        let refused = converted(&path, Backing::Refuse).expect_err("it is not known").to_string();
        assert!(
            refused.contains("incompatible feature") || refused.contains("ompression"),
            "{options}: {refused}"
        );
    }
    let luks = folder.join("luks.qcow2");
    let secret = "secret,id=s,data=x";
    let options = "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10";
    qemu("qemu-img", &["create", "-q", "--object", secret, "-f", "qcow2", "-o", options, text(&luks), "1M"]);
    let refused = converted(&luks, Backing::Refuse).expect_err("it is encrypted").to_string();
    assert!(refused.contains("encrypted"), "{refused}");
}

#[test]
fn files_that_an_image_names_are_read_only_if_the_user_says_so() {
    let folder = Folder::new("foreign-backing");
    let (raw, bytes) = raw(&folder);
    let child = folder.join("child.qcow2");
    qemu("qemu-img", &["create", "-q", "-f", "qcow2", "-b", "raw.img", "-F", "raw", text(&child)]);
    qemu("qemu-io", &["-f", "qcow2", "-c", "write -P 9 512 1024", text(&child)]);
    let leaf = folder.join("leaf.qcow2");
    qemu("qemu-img", &["create", "-q", "-f", "qcow2", "-b", text(&child), "-F", "qcow2", text(&leaf)]);
    let mut paths = vec![child, leaf];
    for subformat in ["monolithicFlat", "twoGbMaxExtentSparse", "twoGbMaxExtentFlat"] {
        let path = folder.join(format!("{subformat}.vmdk"));
        let option = format!("subformat={subformat}");
        qemu("qemu-img", &["convert", "-f", "raw", "-O", "vmdk", "-o", &option, text(&raw), text(&path)]);
        paths.push(path);
    }
    let data = folder.join("data.qcow2");
    let option = format!("data_file={}", folder.join("data.raw").display());
    qemu("qemu-img", &["convert", "-f", "raw", "-O", "qcow2", "-o", &option, text(&raw), text(&data)]);
    paths.push(data);
    for path in paths {
        let refused = converted(&path, Backing::Refuse);
        assert!(matches!(refused, Err(DiskError::NamesFile { .. })), "{}", path.display());
        let mut found = converted(&path, Backing::Follow).expect("it converts");
        if found[512] == 9 {
            assert!(found[512..1536].iter().all(|b| *b == 9));
            found[512..1536].fill(0);
        }
        assert!(found == bytes, "{}", path.display());
        assert!(info(&path, None).expect("it is described").parent.is_some());
    }
    // A ring.
    let (a, b) = (folder.join("a.qcow2"), folder.join("b.qcow2"));
    qemu("qemu-img", &["create", "-q", "-f", "qcow2", text(&a), "1M"]);
    qemu("qemu-img", &["create", "-q", "-f", "qcow2", "-b", text(&a), "-F", "qcow2", text(&b)]);
    qemu("qemu-img", &["rebase", "-u", "-f", "qcow2", "-b", text(&b), "-F", "qcow2", text(&a)]);
    assert!(matches!(converted(&a, Backing::Follow), Err(DiskError::TooDeep { .. })));
}

/// Images to be damaged: their bytes, made once.
fn images() -> &'static [(Format, Vec<u8>)] {
    static IMAGES: std::sync::OnceLock<Vec<(Format, Vec<u8>)>> = std::sync::OnceLock::new();
    IMAGES.get_or_init(|| {
        let folder = Folder::new("foreign-damaged");
        let (raw, _) = raw(&folder);
        let made = [
            (Format::Qcow2, "qcow2", "compat=1.1,cluster_size=4k", &[][..]),
            (Format::Qcow2, "qcow2", "compat=1.1,cluster_size=4k", &["-c"]),
            (Format::Vmdk, "vmdk", "subformat=monolithicSparse", &[]),
            (Format::Vmdk, "vmdk", "subformat=streamOptimized", &[]),
        ];
        let image = |(format, name, options, flags): (Format, &str, &str, &[&str])| {
            let path = folder.join("image");
            _ = fs::remove_file(&path);
            let to = ["convert", "-f", "raw", "-O", name, "-o", options, text(&raw), text(&path)];
            qemu("qemu-img", &[&to[..1], flags, &to[1..]].concat());
            (format, fs::read(&path).expect("a file"))
        };
        made.into_iter().map(image).collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// No bytes make it panic.
    #[test]
    fn any_bytes_are_a_disk_or_an_error(
        image in 0..4usize,
        // Most that has a meaning is at the start of a page.
        flips in prop::collection::vec((0..24usize, 0..120usize, any::<u8>()), 1..8),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let folder = Folder::new("foreign-fuzz");
        let (format, bytes) = &images()[image];
        let mut bytes = bytes.clone();
        for (page, at, byte) in flips {
            let at = (page * 4096 + at) % bytes.len();
            bytes[at] = byte;
        }
        if let Some(cut) = cut {
            let len = cut.index(bytes.len());
            bytes.truncate(len);
        }
        let path = folder.join("image");
        fs::write(&path, &bytes).expect("a file");
        _ = info(&path, Some(*format));
        if let Ok(mut disk) = open_source(&path, Some(*format), Backing::Refuse) {
            let len = disk.size().min(6 << 20) / 512 * 512;
            let mut piece = vec![0; 65536];
            for at in (0..len.saturating_sub(65535)).step_by(65536) {
                _ = disk.read(at, &mut piece);
            }
            let last = (disk.size() / 512 * 512).saturating_sub(512);
            _ = disk.read(last, &mut piece[..512]);
        }
    }
}
