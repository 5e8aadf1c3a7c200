//! Images made by hand. Those of QEMU's tools: `storage/chain/tests/foreign.rs`.

use proptest::prelude::*;
use vireo_vdisk::Medium;
use vireo_vdisk::crash::ForgetfulMedium;

use super::*;

/// A disk of four grains of 4 KiB, of which the second is there, in a file of its header, directory, table and grains.
fn sparse(compressed: bool) -> Vec<u8> {
    let mut b = vec![0; 3 * 512];
    let mut put = |at: usize, bytes: &[u8]| b[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, SPARSE);
    put(4, &3u32.to_le_bytes());
    put(8, &(u32::from(compressed) << 16 | 1 << 2).to_le_bytes());
    put(12, &32u64.to_le_bytes());
    put(20, &8u64.to_le_bytes());
    put(44, &4u32.to_le_bytes());
    put(56, &1u64.to_le_bytes());
    put(77, &u16::from(compressed).to_le_bytes());
    // The directory leads to sector 2, its second entry to sector 3; the third is zero.
    put(512, &2u32.to_le_bytes());
    put(1024 + 4, &3u32.to_le_bytes());
    put(1024 + 8, &1u32.to_le_bytes());
    let grain = [5; 4096];
    if compressed {
        let packed = miniz_oxide::deflate::compress_to_vec_zlib(&grain, 6);
        b.extend(8u64.to_le_bytes());
        b.extend((packed.len() as u32).to_le_bytes());
        b.extend(packed);
    } else {
        b.extend(grain);
    }
    b
}

fn medium(bytes: &[u8]) -> Box<dyn Medium> {
    Box::new(ForgetfulMedium::new(bytes.to_vec()))
}

fn alone(bytes: &[u8]) -> Result<Vmdk> {
    Vmdk::open(medium(bytes), &mut |_| Err(std::io::ErrorKind::PermissionDenied.into()))
}

#[test]
fn grains_are_where_the_tables_say() {
    for compressed in [false, true] {
        let mut vmdk = alone(&sparse(compressed)).unwrap();
        assert_eq!((vmdk.size(), vmdk.grain()), (16384, Some(4096)));
        let mut bytes = vec![9; 16384];
        assert!(!vmdk.read(0, &mut bytes).unwrap());
        assert_eq!(bytes, [vec![0; 4096], vec![5; 4096], vec![0; 8192]].concat(), "{compressed}");
        assert!(vmdk.read(8192, &mut bytes[..8192]).unwrap(), "known to be zero");
        assert!(matches!(vmdk.read(16384, &mut bytes[..512]), Err(VmdkError::OutOfRange(_))));
    }
}

#[test]
fn a_descriptor_joins_extents_that_are_opened_only_if_they_may_be() {
    let text = "# Disk DescriptorFile\nversion=1\nparentCID=ffffffff\nRW 2 ZERO\nRW 32 SPARSE \"s 1.vmdk\"\nRW 2 FLAT \"f.img\" 1\n";
    assert_eq!(
        extents_named(&*medium(text.as_bytes())).unwrap(),
        (vec!["s 1.vmdk".into(), "f.img".into()], 36 * 512)
    );
    assert!(matches!(alone(text.as_bytes()), Err(VmdkError::Extent { .. })));
    let mut open = |name: &str| {
        Ok(medium(&if name == "f.img" { [vec![1; 512], vec![2; 1024]].concat() } else { sparse(false) }))
    };
    let mut vmdk = Vmdk::open(medium(text.as_bytes()), &mut open).unwrap();
    let mut bytes = vec![9; 36 * 512];
    vmdk.read(0, &mut bytes).unwrap();
    let expected = [vec![0; 1024 + 4096], vec![5; 4096], vec![0; 8192], vec![2; 1024]].concat();
    assert!(bytes == expected);
}

#[test]
fn what_cannot_be_read_right_is_refused() {
    let text = |lines: &str| alone(format!("# Disk DescriptorFile\n{lines}").as_bytes());
    assert!(matches!(text("parentCID=1234abcd\nRW 2 ZERO"), Err(VmdkError::Unsupported(_))));
    assert!(matches!(text("RW 2 VMFS \"x\""), Err(VmdkError::Unsupported(_))));
    for lines in ["", "RW x ZERO", "RW 2", "RW 2 FLAT x", "RW 36028797018963968 ZERO", "RW 0 ZERO"] {
        assert!(matches!(text(lines), Err(VmdkError::Damaged(_))), "{lines}");
    }
    assert!(matches!(alone(&[0; 4096]), Err(VmdkError::NotVmdk)));
    // A grain that is larger than it may be when it is inflated.
    let mut bytes = sparse(true);
    let packed = miniz_oxide::deflate::compress_to_vec_zlib(&vec![0; 1 << 20], 6);
    bytes.truncate(3 * 512 + 8);
    bytes.extend((packed.len() as u32).to_le_bytes());
    bytes.extend(packed);
    assert!(matches!(alone(&bytes).unwrap().read(4096, &mut [0; 512]), Err(VmdkError::Damaged(_))));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// No bytes make it panic.
    #[test]
    fn any_bytes_are_an_image_or_an_error(
        flips in prop::collection::vec((0..2000usize, any::<u8>()), 0..6),
        compressed in any::<bool>(),
        cut in 0..2000usize,
    ) {
        let mut bytes = sparse(compressed);
        for (at, byte) in flips {
            let at = at % bytes.len();
            bytes[at] = byte;
        }
        let cut = bytes.len().saturating_sub(cut / 4);
        bytes.truncate(cut);
        if let Ok(mut vmdk) = alone(&bytes) {
            let len = vmdk.size().min(1 << 20) / 512 * 512;
            _ = vmdk.read(0, &mut vec![0; len as usize]);
            let last = vmdk.size() / 512 * 512;
            _ = vmdk.read(last.saturating_sub(512), &mut [0; 512]);
        }
    }

    #[test]
    fn any_text_is_a_descriptor_or_an_error(text in "(RW|RDONLY|X|parentCID=)? ?[0-9a-f]{0,20} ?(FLAT|SPARSE|ZERO)?[ \"a-z0-9\n]{0,40}") {
        _ = alone(format!("# Disk DescriptorFile\n{text}").as_bytes());
    }
}
