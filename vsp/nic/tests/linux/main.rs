//! Linux's own drivers of network cards, on the software engine: against the host's kernel, through a TAP device.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use vireo_board::{Attach, Seat};
use vireo_chipset::pci::PciSlot;
use vireo_drivers::{Machine, Setup};
use vireo_frame::{Link, Mac};
use vireo_nic::E1000;
use vireo_tap::Tap;
use vireo_tap::trial::{Namespace, payload};
use vireo_tests::HostShare;
use vireo_virtio::{Net, VirtioPci};

const ADDRESS: Mac = Mac([0, 0x15, 0x5d, 1, 2, 3]);
const PAYLOAD: usize = 6 << 20;

/// The host's end: a network with a TAP device, and what the guest connects to.
struct Host {
    network: Namespace,
    tap: Arc<Tap>,
    /// Transfers both ways that were done, and compared.
    transfers: Arc<AtomicUsize>,
}

impl Host {
    fn new(mtu: u32) -> Option<Self> {
        let network = Namespace::new()?;
        let tap = network.run(|| Tap::open("wire")).unwrap();
        network.ip("address add 10.9.8.1/24 dev wire");
        network.ip(&format!("link set wire mtu {mtu} up"));
        network.ip("link set lo up");
        Some(Self { network, tap, transfers: Arc::default() })
    }

    /// Sends a payload to whoever connects to the one port, and wants it back by the other.
    fn serve(&self) {
        let listen = |port| self.network.run(|| TcpListener::bind(("10.9.8.1", port))).unwrap();
        let (sends, receives, count) = (listen(7001), listen(7002), Arc::clone(&self.transfers));
        let bytes: Arc<[u8]> = payload(PAYLOAD).into();
        let expected = Arc::clone(&bytes);
        // A connection of a machine that was reset is not waited for by others.
        std::thread::spawn(move || {
            for stream in sends.incoming() {
                let (mut stream, bytes) = (stream.unwrap(), Arc::clone(&bytes));
                std::thread::spawn(move || _ = stream.write_all(&bytes));
            }
        });
        std::thread::spawn(move || {
            for stream in receives.incoming() {
                let (mut stream, expected, count) =
                    (stream.unwrap(), Arc::clone(&expected), Arc::clone(&count));
                std::thread::spawn(move || {
                    let mut got = Vec::new();
                    if stream.read_to_end(&mut got).is_ok() {
                        let same = got == *expected;
                        println!("{} of {} bytes came back, the same: {same}", got.len(), expected.len());
                        count.fetch_add(if same { 1 } else { 1000 }, Ordering::AcqRel);
                    }
                });
            }
        });
    }
}

/// Saves a card and restores it.
type Move = Box<dyn Fn()>;

fn virtio(link: Arc<dyn Link>, pairs: u16) -> (Attach, Move) {
    let kept = Arc::new(OnceLock::<Arc<VirtioPci>>::new());
    let keep = Arc::clone(&kept);
    let net = Net::new(link, ADDRESS, pairs);
    let attach = move |seat: &mut Seat| {
        let slot = PciSlot::new(4, 0).expect("a slot");
        let function = VirtioPci::attach(seat, slot, "nic", Arc::clone(&net) as _)?;
        _ = keep.set(Arc::clone(&function));
        Ok(function as _)
    };
    let again = move || {
        let function = kept.get().unwrap();
        let text = serde_json::to_string(&function.save()).unwrap();
        function.restore(&serde_json::from_str(&text).unwrap()).unwrap();
    };
    (Box::new(attach), Box::new(again))
}

fn e1000(link: Arc<dyn Link>) -> (Attach, Move) {
    let kept = Arc::new(OnceLock::<Arc<E1000>>::new());
    let keep = Arc::clone(&kept);
    let slot = PciSlot::new(4, 0).expect("a slot");
    let made = move |card: &Arc<E1000>| _ = keep.set(Arc::clone(card));
    let again = move || {
        let card = kept.get().unwrap();
        let text = serde_json::to_string(&card.save()).unwrap();
        card.restore(&serde_json::from_str(&text).unwrap()).unwrap();
    };
    (vireo_nic::attach(slot, "nic", link, ADDRESS, made), Box::new(again))
}

#[derive(Clone, Copy, PartialEq)]
enum Card {
    Virtio,
    E1000,
}

/// Runs the guest to its end.
fn driver_works(card: Card, guest: &str, cpus: u32, mtu: u32, parameter: &str) {
    let _share = HostShare::take(cpus);
    let Some(host) = Host::new(mtu) else { return };
    host.serve();
    let link = Arc::clone(&host.tap) as _;
    let (attach, again) = match card {
        Card::Virtio => virtio(link, cpus as u16),
        Card::E1000 => e1000(link),
    };
    let mut machine = Machine::new(Setup {
        guest,
        cpus,
        driver: Some(include_bytes!("driver.sh")),
        parameter: &format!("net.rounds=3 {parameter}"),
        devices: vec![attach],
        failure: Some("NET-FAILED"),
    });
    machine.board.resume();
    let told = match card {
        Card::Virtio => format!("virtio_net {ADDRESS} mtu={mtu} carrier=1 speed=10000 queues={cpus}"),
        Card::E1000 => format!("e1000 {ADDRESS} mtu={mtu} carrier=1 speed=1000 queues=1"),
    };
    assert_eq!(machine.serial.line("NET-CARD "), told);
    machine.serial.line("NET-BUSY");
    if cpus > 1 {
        std::thread::sleep(Duration::from_millis(300));
        machine.reset();
        assert_eq!(machine.serial.line("NET-CARD "), told);
        machine.serial.line("NET-BUSY");
    }
    let before = host.transfers.load(Ordering::Acquire);
    // Saved and restored, again and again, while it is at work.
    for _ in 0..20 {
        std::thread::sleep(Duration::from_millis(50));
        machine.board.pause().unwrap();
        again();
        let chipset = machine.board.chipset();
        chipset.restore_all(&chipset.save_all()).unwrap();
        machine.board.resume();
    }
    let errors = machine.serial.line("NET-ERRORS ");
    machine.serial.line("NET-OK");
    machine.waits_for_power_off();
    machine.board.stop();
    let text = machine.serial.all();
    println!(
        "{text}\nerrors of the card, and TCP's own count (sent again, bad, of those bad sums): {errors}"
    );
    assert!(errors.starts_with("0 0 ") && errors.ends_with(" 0 0"), "{errors}");
    assert_eq!(host.transfers.load(Ordering::Acquire), before + 3);
    assert!(!text.contains("nobody cared") && !text.contains("WARNING"), "{text}");
    assert_eq!(host.tap.lost().written, 0);
}

#[test]
fn virtio_of_debian_6_1_amd64() {
    driver_works(Card::Virtio, "debian-6.1-cloud-amd64", 1, 1500, "");
}

#[test]
fn virtio_of_debian_6_1_amd64_with_2_cpus_by_pins() {
    driver_works(Card::Virtio, "debian-6.1-cloud-amd64", 2, 9000, "pci=nomsi");
}

#[test]
fn virtio_of_debian_6_1_amd64_with_2_cpus_and_the_longest_packets() {
    driver_works(Card::Virtio, "debian-6.1-cloud-amd64", 2, 65_000, "");
}

#[test]
fn virtio_of_debian_6_1_i386_pae() {
    driver_works(Card::Virtio, "debian-6.1-686-pae", 1, 1500, "");
}

#[test]
fn e1000_of_debian_6_1_i386_pae() {
    driver_works(Card::E1000, "debian-6.1-686-pae", 1, 1500, "");
}

#[test]
fn e1000_of_debian_6_1_i386_pae_with_2_cpus_and_long_packets() {
    driver_works(Card::E1000, "debian-6.1-686-pae", 2, 9000, "net.mtu=9000");
}
