//! Unmodified Debian kernels boot to userland and switch the machine off, without a complaint in their logs that the
//! same kernel does not have under QEMU.

use std::time::Duration;

use vireo_tests::{Guest, HostShare, Process, complaints, vireo};

/// Far beyond what a boot takes: a guest that hangs is killed.
const LIMIT: Duration = Duration::from_secs(120);
const MARKER: &str = "VIREO-BOOT-OK ";

fn boots(name: &str, cpus: u32) {
    // All of the kernel's log goes to the console.
    let run = Guest::build(name).run("boot").cpus(cpus).parameter("ignore_loglevel");
    let vireo = vireo();
    let _share = HostShare::take(cpus);
    let mut peer = Process::start(run.qemu(), LIMIT).unwrap();
    peer.wait_for(MARKER).unwrap();
    peer.wait().unwrap();

    let mut guest = Process::start(run.vireo(vireo), LIMIT).unwrap();
    guest.wait_for(MARKER).unwrap();
    let code = guest.wait().unwrap();
    assert_eq!(code, 0, "{}", guest.failure("it did not end by switching itself off"));

    let found = complaints(&guest.output(), &peer.output());
    assert!(found.is_empty(), "the kernel complains, not so under QEMU:\n{}", found.join("\n"));
    if guest.output().contains("Hypervisor detected: Microsoft Hyper-V") {
        uses_hypercalls(&guest.output(), !name.contains("686"));
    }
    let (_, line) = guest.lines_with(MARKER).pop().expect("the marker came");
    let field = |key: &str| line.split(' ').find_map(|w| w.strip_prefix(key)).unwrap_or_default();
    assert_eq!(field("cpus="), cpus.to_string(), "{line}");
    let memory: u64 = field("mem=").parse().unwrap_or(0);
    assert!((400 << 10..=512 << 10).contains(&memory), "{line}");
    assert!(!field("clock=").is_empty(), "{line}");
    println!("{line}");
}

/// A kernel that found the interface flushes TLBs by it, and one for amd64 interrupts processors by it.
fn uses_hypercalls(log: &str, amd64: bool) {
    assert!(log.contains("Hyper-V: Using hypercall for remote TLB flush"), "{log}");
    assert!(!amd64 || log.contains("Hyper-V: Using IPI hypercalls"), "{log}");
}

macro_rules! boot_tests {
    ($($test:ident: $guest:literal, $cpus:literal;)*) => {$(
        #[test]
        fn $test() {
            boots($guest, $cpus);
        }
    )*};
}

boot_tests! {
    debian_5_10_amd64: "debian-5.10-cloud-amd64", 1;
    debian_5_10_amd64_with_4_cpus: "debian-5.10-cloud-amd64", 4;
    debian_6_1_amd64: "debian-6.1-cloud-amd64", 1;
    debian_6_1_amd64_with_2_cpus: "debian-6.1-cloud-amd64", 2;
    debian_6_1_amd64_with_4_cpus: "debian-6.1-cloud-amd64", 4;
    debian_6_12_amd64: "debian-6.12-cloud-amd64", 1;
    debian_6_12_amd64_with_4_cpus: "debian-6.12-cloud-amd64", 4;
    debian_6_1_i386: "debian-6.1-686", 1;
    debian_6_1_i386_pae: "debian-6.1-686-pae", 1;
    debian_6_1_i386_pae_with_4_cpus: "debian-6.1-686-pae", 4;
}
