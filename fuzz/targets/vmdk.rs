//! Bytes as a VMDK: a sparse extent, or a descriptor.
#![no_main]

use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use vireo_fuzz::{Input, Patched};
use vireo_vmdk::{Vmdk, extents_named};

/// A header, a directory and a table in front of grains, as they are at least.
fn sparse(input: &mut Input<'_>) -> Vec<u8> {
    let mut b = vec![0; 3 * 512];
    let compressed = input.u8() % 2 == 1;
    let mut put = |at: usize, bytes: &[u8]| b[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, b"KDMV");
    put(4, &3_u32.to_le_bytes());
    put(8, &(u32::from(compressed) << 16 | 1 << 2).to_le_bytes());
    put(12, &32_u64.to_le_bytes());
    put(20, &8_u64.to_le_bytes());
    put(44, &4_u32.to_le_bytes());
    put(56, &1_u64.to_le_bytes());
    put(77, &u16::from(compressed).to_le_bytes());
    put(512, &2_u32.to_le_bytes());
    put(1024 + 4, &3_u32.to_le_bytes());
    put(1024 + 8, &1_u32.to_le_bytes());
    for _ in 0..input.u8() % 8 {
        let at = usize::from(input.u16()) % (1500 - 16);
        let len = usize::from(input.u8() % 16);
        put(at, input.bytes(len));
    }
    b.extend(input.bytes(8192));
    b
}

fuzz_target!(|bytes: &[u8]| {
    let mut input = Input(bytes);
    let contents = match input.u8() % 4 {
        0 => [b"# Disk DescriptorFile\n", input.0].concat(),
        1 => input.0.to_vec(),
        _ => sparse(&mut input),
    };
    let medium = || Box::new(Patched::new(&Arc::from(contents.as_slice())));
    _ = extents_named(&*medium());
    let mut extents = 0;
    let opened = Vmdk::open(medium(), &mut |_| {
        extents += 1;
        if extents > 4 { Err(std::io::ErrorKind::NotFound.into()) } else { Ok(medium() as _) }
    });
    let Ok(mut vmdk) = opened else { return };
    let len = vmdk.size().min(1 << 20) / 512 * 512;
    _ = vmdk.read(0, &mut vec![0; len as usize]);
    let last = vmdk.size() / 512 * 512;
    _ = vmdk.read(last.saturating_sub(512), &mut [0; 512]);
});
