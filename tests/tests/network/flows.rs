//! Many connections at once between two guests, both ways, with every length of packets and without the adapter's help.

use vireo_tests::{HostShare, Machine};

use crate::rig::{Place, at_its_shell, compare, is_sound, reaches};

const FLOWS: usize = 24;

/// Guests 1 and 2 on a switch, whose packets may be of 65,000 bytes; the second one serves flows.
fn pair(place: &Place, kernels: [&str; 2], cpus: u32) -> [Machine; 2] {
    let start = |n: usize| place.start(&n.to_string(), place.command(kernels[n], cpus, &["switch=lab"]));
    let mut guests = [start(0), start(1)];
    for (n, guest) in guests.iter_mut().enumerate() {
        at_its_shell(guest);
        let addresses = format!(
            "ip addr add 10.9.0.{}/24 dev eth0; /sbin/ip addr add fd09::{}/64 dev eth0 nodad",
            n + 1,
            n + 1
        );
        guest.shell(&format!("{addresses}; hostname guest{n}; ip link set eth0 up")).unwrap();
    }
    guests[1].shell("flows serve").unwrap();
    guests
}

fn all_comes_as_it_was_sent(guests: &mut [Machine; 2], address: &str) {
    let [one, other] = guests;
    let told = one.shell(&format!("flows to {address} {FLOWS}")).unwrap();
    compare(FLOWS, &told, &other.shell("flows told").unwrap());
}

fn set_mtu(guests: &mut [Machine; 2], mtu: u32) {
    for guest in guests.iter_mut() {
        guest.shell(&format!("ip link set eth0 mtu {mtu}")).unwrap();
    }
    let [one, other] = guests;
    reaches(one, "10.9.0.2");
    // The longest packet is one frame, and a longer one is two fragments.
    for (bytes, fragments) in [(mtu - 28, 0), (mtu - 20, 2)] {
        let before = fragments_made(other);
        one.shell(&format!("ping -c 1 -W 5 -s {bytes} 10.9.0.2")).unwrap();
        assert_eq!(fragments_made(other) - before, fragments, "answers to {bytes} bytes at an MTU of {mtu}");
    }
}

/// Which of the numbers it is, says the line before them.
fn fragments_made(guest: &mut Machine) -> u32 {
    let script =
        "{ for (n = 1; n <= NF; n++) if ($n == \"FragCreates\") at = n; if ($2 ~ /[0-9]/) print $at }";
    guest.shell(&format!("grep ^Ip: /proc/net/snmp | awk '{script}'")).unwrap().parse().expect("a number")
}

fn transfers(kernels: [&str; 2], cpus: u32) {
    let _share = HostShare::take(2 * cpus);
    let place = Place::with_switch(&format!("flows-{}-{}", kernels[0], kernels[1]), 65_000);
    let mut guests = pair(&place, kernels, cpus);
    for (mtu, address) in [(1500, "10.9.0.2"), (9000, "fd09::2"), (65_000, "10.9.0.2")] {
        set_mtu(&mut guests, mtu);
        all_comes_as_it_was_sent(&mut guests, address);
    }
    // What one side does not take is done by the other side, or between them.
    for off in ["tso off gso off gro off", "tx off rx off lro off"] {
        guests[0].shell(&format!("ethtool -K eth0 {off}")).unwrap();
        set_mtu(&mut guests, 1500);
        all_comes_as_it_was_sent(&mut guests, "10.9.0.2");
    }
    if cpus > 1 {
        for guest in &mut guests {
            all_queues_are_used(guest, cpus);
        }
    }
    for guest in &mut guests {
        is_sound(guest);
    }
    for port in place.show()["ports"].as_array().expect("ports") {
        assert_eq!(port["dropped"].as_object().map(|d| d.len()), Some(0), "{port}");
    }
}

fn all_queues_are_used(guest: &mut Machine, cpus: u32) {
    let queues = guest.shell("ethtool -S eth0 | grep -E '[rt]x_queue_[0-9]*_packets: [1-9]'").unwrap();
    assert_eq!(queues.lines().count() as u32, 2 * cpus, "{queues}");
}

#[test]
fn flows_of_debian_5_10_and_6_12() {
    transfers(["5.10", "6.12"], 1);
}

#[test]
fn flows_of_debian_6_1_with_2_cpus() {
    transfers(["6.1", "6.1"], 2);
}
