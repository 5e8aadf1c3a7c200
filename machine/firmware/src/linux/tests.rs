//! The loader on kernels that Debian ships, on kernels made here to be wrong in one thing, and on random damage.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;

use proptest::prelude::*;
use vireo_core::state::{SegmentRegisters, cr0, efer};

use super::*;

fn memory(mib: u64) -> Arc<GuestMemory> {
    GuestMemory::new(map::ram_layout(mib << 20).unwrap()).unwrap()
}

fn boot<'a>(kernel: &'a [u8], initrd: Option<&'a [u8]>, command_line: &'a str) -> LinuxBoot<'a> {
    LinuxBoot {
        kernel: File { name: "vmlinuz", bytes: kernel },
        initrd: initrd.map(|bytes| File { name: "initrd.img", bytes }),
        command_line,
        rsdp: Some(0xe_0000),
        reserved: &[],
    }
}

fn refused(mib: u64, boot: &LinuxBoot<'_>) -> String {
    load(&memory(mib), boot).unwrap_err().to_string()
}

fn bytes_at(memory: &GuestMemory, gpa: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    memory.read(gpa, &mut bytes).unwrap();
    bytes
}

/// A kernel from guests/build.sh; `None`, and a loud word, if it was not built.
fn debian(name: &str) -> Option<Vec<u8>> {
    let path =
        PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../guests/cache").join(name).join("vmlinuz");
    let kernel = std::fs::read(&path).ok();
    if kernel.is_none() {
        eprintln!("SKIPPED {name}: no {} (guests/build.sh {name})", path.display());
    }
    kernel
}

/// A bzImage as small as can be: protocol 2.15, 64-bit, relocatable, one setup sector, 1 KiB of code 0x90, preferred
/// address 16 MiB, `init_size` 4 MiB, initrd up to 2 GiB, command line up to 100 bytes.
fn small_bzimage() -> Vec<u8> {
    let mut image = vec![0; 1024];
    let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
    put(0x1f1, &[1]);
    put(0x1f4, &64u32.to_le_bytes());
    put(0x1fe, &[0x55, 0xaa, 0xeb, 0x6a]);
    put(0x202, b"HdrS\x0f\x02");
    put(0x211, &[1]);
    put(0x22c, &0x7fff_ffffu32.to_le_bytes());
    put(0x230, &0x20_0000u32.to_le_bytes());
    put(0x234, &[1]);
    put(0x236, &1u16.to_le_bytes());
    put(0x238, &100u32.to_le_bytes());
    put(0x258, &0x100_0000u64.to_le_bytes());
    put(0x260, &0x40_0000u32.to_le_bytes());
    image.extend([0x90; 1024]);
    image
}

/// An ELF64 kernel: a note segment with the PVH entry 0x200010, and `segments` of (address, bytes, memory size).
fn small_elf(segments: &[(u64, usize, u64)]) -> Vec<u8> {
    let note = [
        &4u32.to_le_bytes()[..],
        &8u32.to_le_bytes(),
        &18u32.to_le_bytes(),
        b"Xen\0",
        &0x20_0010u64.to_le_bytes(),
    ]
    .concat();
    let headers = 64 + 56 * (segments.len() + 1);
    let data = headers + note.len();
    let mut file = Vec::from(*b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\x3e\0\x01\0\0\0");
    for word in [0u64, 64, 0] {
        file.extend(word.to_le_bytes());
    }
    for half in [0u16, 0, 64, 56, segments.len() as u16 + 1, 0, 0, 0] {
        file.extend(half.to_le_bytes());
    }
    let mut header = |kind: u64, offset: usize, address: u64, bytes: usize, size: u64| {
        for word in [kind, offset as u64, address, address, bytes as u64, size, 4] {
            file.extend(word.to_le_bytes());
        }
    };
    header(4, headers, 0, note.len(), 0);
    for &(address, bytes, size) in segments {
        header(1, data, address, bytes, size);
    }
    file.extend(note);
    file.extend(vec![0xc3; segments.iter().map(|s| s.1).max().unwrap_or(0)]);
    file
}

/// What any bootable result must satisfy, whatever the image.
fn check_loaded(memory: &GuestMemory, boot: &LinuxBoot<'_>, loaded: &LoadedKernel) {
    let low_end = memory.layout().low_end();
    assert!(map::LOAD_START <= loaded.kernel.start && loaded.kernel.end <= low_end, "{loaded:?}");
    assert!(loaded.kernel.contains(&loaded.entry.general.rip), "{loaded:?}");
    assert_eq!(loaded.initrd.is_some(), boot.initrd.is_some());
    if let (Some(at), Some(file)) = (&loaded.initrd, &boot.initrd) {
        assert!(loaded.kernel.end <= at.start && at.end <= low_end && at.start % 4096 == 0, "{loaded:?}");
        assert_eq!(bytes_at(memory, at.start, file.bytes.len()), file.bytes);
    }
    let line = [boot.command_line.as_bytes(), &[0]].concat();
    assert_eq!(bytes_at(memory, map::COMMAND_LINE.start, line.len()), line);
}

#[test]
fn debian_kernels_load_by_the_protocol_of_their_architecture() {
    let initrd = vec![0x5a; (5 << 20) + 3];
    for (name, protocol) in [
        ("debian-5.10-cloud-amd64", Protocol::Linux64),
        ("debian-6.1-cloud-amd64", Protocol::Linux64),
        ("debian-6.12-cloud-amd64", Protocol::Linux64),
        ("debian-6.1-686", Protocol::Linux32),
        ("debian-6.1-686-pae", Protocol::Linux32),
    ] {
        let Some(kernel) = debian(name) else { continue };
        let (memory, boot) = (memory(4096), boot(&kernel, Some(&initrd), "console=ttyS0 panic=-1"));
        let loaded = load(&memory, &boot).unwrap();
        check_loaded(&memory, &boot, &loaded);
        assert_eq!(loaded.protocol, protocol, "{name}");
        assert_eq!(loaded.kernel.start, 16 << 20, "{name}");

        let long_mode = loaded.entry.control.efer & efer::LMA != 0;
        assert_eq!(long_mode, protocol == Protocol::Linux64, "{name}");
        let params = bytes_at(&memory, loaded.entry.general.gpr[6], 4096);
        assert_eq!(params[0x202..0x206], *b"HdrS");
        assert_eq!(params[0x210], 0xff);
        assert_eq!(params[0x070..0x078], 0xe_0000u64.to_le_bytes());
        assert_eq!(params[0x218..0x21c], (loaded.initrd.unwrap().start as u32).to_le_bytes());
        assert_eq!(params[0x21c..0x220], (initrd.len() as u32).to_le_bytes());
        assert_eq!(params[0x1e8], 5);
        // The code is the file's, after (setup_sects + 1) sectors.
        let code = (usize::from(kernel[0x1f1]) + 1) * 512;
        assert_eq!(bytes_at(&memory, 16 << 20, 4096), kernel[code..code + 4096], "{name}");

        assert!(refused(16, &boot).contains("give the machine more memory"), "{name}");
        assert!(load(&memory, &LinuxBoot { command_line: &"x".repeat(2047), ..boot.clone() }).is_ok());
        let e = refused(4096, &LinuxBoot { command_line: &"x".repeat(2048), ..boot });
        assert_eq!(e, "command line is 2048 bytes, this kernel takes 2047");
    }
}

/// The vmlinux inside a bzImage; `None`, and a loud word, if the tool to unpack it is not installed.
fn unpack(kernel: &[u8]) -> Option<Vec<u8>> {
    let field = |at: usize| u32::from_le_bytes(kernel[at..at + 4].try_into().unwrap()) as usize;
    let start = (usize::from(kernel[0x1f1]) + 1) * 512 + field(0x248);
    // After the compressed data the kernel's build adds the unpacked size.
    let payload = kernel[start..start + field(0x24c) - 4].to_vec();
    let tool = match payload[0] {
        0xfd => "xz",
        0x28 => "zstd",
        0x02 => "lz4",
        other => panic!("compression with first byte {other:#x}"),
    };
    let child = Command::new(tool).arg("-dc").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
    let Ok(mut child) = child else {
        eprintln!("SKIPPED: {tool} is not installed");
        return None;
    };
    let mut input = child.stdin.take().unwrap();
    let feeder = std::thread::spawn(move || std::io::Write::write_all(&mut input, &payload));
    let output = child.wait_with_output().unwrap();
    feeder.join().unwrap().unwrap();
    assert!(output.status.success());
    Some(output.stdout)
}

#[test]
fn the_vmlinux_inside_debian_kernels_loads_by_pvh() {
    for (name, address_size) in
        [("debian-6.1-cloud-amd64", 8), ("debian-6.12-cloud-amd64", 8), ("debian-6.1-686-pae", 4)]
    {
        let Some(vmlinux) = debian(name).and_then(|k| unpack(&k)) else { continue };
        assert_eq!(vmlinux[4], if address_size == 8 { 2 } else { 1 });
        let (memory, boot) = (memory(512), boot(&vmlinux, Some(b"initrd"), "quiet"));
        let loaded = load(&memory, &boot).unwrap();
        check_loaded(&memory, &boot, &loaded);
        assert_eq!(loaded.protocol, Protocol::Pvh);
        let state = &loaded.entry;
        assert_eq!((state.control.cr0, state.control.cr4), (cr0::PE | cr0::ET, 0));
        assert_eq!(state.segments.data[SegmentRegisters::CS].attributes, 0xc09b);
        assert_eq!((state.segments.tr.limit, state.segments.tr.attributes), (0x67, 0x8b));

        let info = state.general.gpr[3];
        let word = |at: u64| memory.read_obj::<u64>(info + at).unwrap();
        assert_eq!(word(0), 0x336e_c578 | 1 << 32);
        assert_eq!(word(8), 1 << 32);
        assert_eq!((word(24), word(32)), (map::COMMAND_LINE.start, 0xe_0000));
        let module = memory.read_obj::<u64>(word(16)).unwrap();
        assert_eq!(bytes_at(&memory, module, 6), b"initrd");
        assert_eq!(memory.read_obj::<u64>(word(16) + 8).unwrap(), 6);
        assert_eq!(word(48), 4);
        assert_eq!(memory.read_obj::<u64>(word(40) + 3 * 24 + 8).unwrap(), (512 - 1) << 20);
    }
}

#[test]
fn the_64_bit_entry_maps_memory_onto_itself() {
    let (memory, image) = (memory(64), small_bzimage());
    let loaded = load(&memory, &boot(&image, None, "")).unwrap();
    assert_eq!(loaded.entry.general.rip, (16 << 20) + 0x200);
    let read = |gpa: u64| memory.read_obj::<u64>(gpa).unwrap();
    for address in [0u64, 0x7123, 17 << 20, 0xbfff_f000, 0xffff_ffff] {
        let mut table = loaded.entry.control.cr3;
        for shift in [39, 30] {
            let entry = read(table + (address >> shift & 511) * 8);
            assert_eq!(entry & 0xfff, 3);
            table = entry & !0xfff;
        }
        let entry = read(table + (address >> 21 & 511) * 8);
        assert_eq!(entry, (address & !0x1f_ffff) | 0x83);
    }
    // The GDT has what the segment registers claim (SDM vol. 3A, figure 3-8).
    let gdt = loaded.entry.segments.gdtr;
    assert_eq!(
        (read(gdt.base + 0x10), read(gdt.base + 0x18)),
        (0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff)
    );
    assert_eq!(gdt.limit, 31);
}

#[test]
fn a_32_bit_kernel_that_cannot_move_runs_where_it_says() {
    let mut image = small_bzimage();
    image[0x234] = 0;
    image[0x236] = 0;
    let loaded = load(&memory(64), &boot(&image, None, "")).unwrap();
    assert_eq!((loaded.protocol, loaded.entry.general.rip), (Protocol::Linux32, 1 << 20));
    assert_eq!(loaded.kernel, 1 << 20..20 << 20);
}

#[test]
fn loading_again_restores_what_a_run_left_behind() {
    let (memory, elf) = (memory(64), small_elf(&[(0x20_0000, 0x100, 0x3000)]));
    load(&memory, &boot(&elf, None, "a")).unwrap();
    memory.fill(0x1000, 0x9_0000 - 0x1000, 0xff).unwrap();
    memory.fill(0x20_0000, 0x3000, 0xff).unwrap();
    let loaded = load(&memory, &boot(&elf, None, "b")).unwrap();
    check_loaded(&memory, &boot(&elf, None, "b"), &loaded);
    assert_eq!(bytes_at(&memory, 0x20_0000, 0x100), [0xc3; 0x100]);
    assert_eq!(bytes_at(&memory, 0x20_0100, 0x2f00), [0; 0x2f00]);
}

#[test]
fn files_that_are_no_kernel_say_what_they_are() {
    for (file, found) in [
        (&b""[..], "it is empty"),
        (b"\x1f\x8b\x08", "it is gzip data: unpack it first"),
        (b"070701", "it is a cpio archive, perhaps the initrd"),
        (b"#!/bin/sh\n", "it is a script"),
        (b"MZ\x90", "it is an EFI or DOS program, but without a Linux setup header"),
        (b"plain text", "unknown format"),
    ] {
        let e = refused(16, &boot(file, None, ""));
        assert_eq!(e, format!("kernel vmlinuz: not a bzImage or ELF kernel ({found})"));
    }
}

#[test]
fn each_damage_to_a_bzimage_has_its_own_words() {
    type Damage = fn(&mut Vec<u8>);
    let cases: &[(Damage, &str)] = &[
        (|i| i[0x206] = 5, "its boot protocol is 2.05, older than 2.06"),
        (|i| i[0x211] = 0, "it is a zImage"),
        (|i| i.truncate(0x230), "damaged bzImage: it ends inside its setup header"),
        (|i| i.truncate(1024 + 100), "damaged bzImage: its header says 1024 bytes of code, the file has 100"),
        (|i| i[0x1f4..0x1f8].fill(0xff), "damaged bzImage: its header says 68719476720 bytes of code"),
        (|i| i[0x230] = 3, "damaged bzImage: kernel_alignment is 0x200003"),
        (|i| i[0x25c] = 1, "it wants to be loaded at 0x101000000, above 4 GiB"),
        (|i| i[0x1f4] = 1, "damaged bzImage: it ends before its 64-bit entry point"),
        (|i| i[0x263] = 0x10, "needs 260 MiB at 16 MiB, but memory for kernels goes from 1 MiB to 64 MiB"),
    ];
    for (damage, words) in cases {
        let mut image = small_bzimage();
        damage(&mut image);
        let e = refused(64, &boot(&image, None, ""));
        assert!(e.starts_with("kernel vmlinuz") && e.contains(words), "{e}");
    }
}

#[test]
fn an_initrd_must_fit_and_have_bytes() {
    let image = small_bzimage();
    let e = refused(64, &boot(&image, Some(&vec![1; (44 << 20) + 1]), ""));
    assert_eq!(
        e,
        "initrd initrd.img (45 MiB) does not fit in 44 MiB of memory below 64 MiB: give the machine more memory"
    );
    let loaded = load(&memory(64), &boot(&image, Some(&vec![1; 44 << 20]), "")).unwrap();
    assert_eq!(loaded.initrd, Some(20 << 20..64 << 20));
    assert_eq!(refused(64, &boot(&image, Some(b""), "")), "initrd initrd.img: it is empty");
    // Not above what the kernel can reach.
    let mut low = small_bzimage();
    low[0x22c..0x230].copy_from_slice(&0x1ff_ffffu32.to_le_bytes());
    let loaded = load(&memory(64), &boot(&low, Some(b"x"), "")).unwrap();
    assert_eq!(loaded.initrd.unwrap().start, 0x1ff_f000);
}

#[test]
fn a_command_line_that_would_be_cut_is_refused() {
    let image = small_bzimage();
    assert!(load(&memory(64), &boot(&image, None, &"x".repeat(100))).is_ok());
    let e = refused(64, &boot(&image, None, &"x".repeat(101)));
    assert_eq!(e, "command line is 101 bytes, this kernel takes 100");
    assert_eq!(refused(64, &boot(&image, None, "a\0b")), "command line has a zero byte in it");
}

#[test]
fn each_damage_to_an_elf_has_its_own_words() {
    let good = [(0x20_0000, 0x100, 0x3000)];
    type Damage = fn(&mut Vec<u8>);
    type Segments = [(u64, usize, u64)];
    let cases: &[(&Segments, Damage, &str)] = &[
        (&good, |e| e[18] = 0xb7, "not for x86"),
        (&good, |e| e[16] = 1, "not an executable kernel"),
        (&good, |e| e.truncate(100), "its program headers are cut off"),
        (&good, |e| e.truncate(e.len() - 1), "a segment is cut off"),
        (&good, |e| e[64] = 0, "without a PVH entry note: build the kernel with CONFIG_PVH=y"),
        (&[(0x20_0000, 0x100, 0x80)], |_| (), "a segment has more bytes than memory"),
        (&[(u64::MAX, 0, 2)], |_| (), "above 4 GiB"),
        (&[(0x20_0000, 16, 0x2000), (0x20_1fff, 16, 16)], |_| (), "two segments share memory at 0x201fff"),
        (&[(0x30_0000, 16, 16)], |_| (), "its PVH entry 0x200010 is in no segment"),
        (&[(0x20_0000, 16, 128 << 20)], |_| (), "needs 128 MiB at 2 MiB"),
        (
            &[(0x8_0000, 16, 16 << 20)],
            |_| (),
            "needs 16 MiB at 524288 bytes, but memory for kernels goes from 1 MiB",
        ),
    ];
    for (segments, damage, words) in cases {
        let mut elf = small_elf(segments);
        damage(&mut elf);
        let e = refused(64, &boot(&elf, None, ""));
        assert!(e.starts_with("kernel vmlinuz") && e.contains(words), "{e}");
    }
    assert!(load(&memory(64), &boot(&small_elf(&good), None, "")).is_ok());
}

/// Bytes of a file to overwrite, mostly in its headers.
fn damage() -> impl Strategy<Value = Vec<(usize, u8)>> {
    let byte = prop_oneof![any::<u8>(), Just(0), Just(0xff), Just(1), Just(0x80)];
    prop::collection::vec((prop_oneof![0usize..0x270, 0usize..4096], byte), 0..12)
}

fn loads_or_refuses(kernel: &[u8]) {
    let (memory, initrd) = (memory(64), [7; 100]);
    let boot = boot(kernel, Some(&initrd), "quiet");
    match load(&memory, &boot) {
        Ok(loaded) => check_loaded(&memory, &boot, &loaded),
        Err(e) => assert!(!matches!(e, LoadError::Memory(_)), "{e}"),
    }
}

proptest! {
    #[test]
    fn damaged_images_are_loaded_in_bounds_or_refused(
        changes in damage(), elf in any::<bool>(), cut in prop::option::of(0usize..2048)
    ) {
        let mut image =
            if elf { small_elf(&[(0x20_0000, 0x100, 0x3000), (0x30_0000, 0x10, 0x10)]) } else { small_bzimage() };
        for (at, byte) in changes {
            if let Some(b) = image.get_mut(at) {
                *b = byte;
            }
        }
        image.truncate(cut.unwrap_or(usize::MAX));
        loads_or_refuses(&image);
    }

    #[test]
    fn random_bytes_behind_a_magic_number_are_harmless(
        mut image in prop::collection::vec(any::<u8>(), 0x210..2048), elf in any::<bool>()
    ) {
        if elf {
            image[..8].copy_from_slice(b"\x7fELF\x02\x01\x01\0");
            image[16..20].copy_from_slice(b"\x02\0\x3e\0");
        } else {
            image[0x1fe..0x208].copy_from_slice(b"\x55\xaa\0\0HdrS\x0f\x02");
        }
        loads_or_refuses(&image);
    }
}
