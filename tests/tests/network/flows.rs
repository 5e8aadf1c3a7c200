//! Many connections at once between two guests, both ways, with every length of packets and without the adapter's help.

use vireo_tests::{HostShare, Machine};

use crate::rig::{Place, at_its_shell, compare, is_sound, reaches};

const FLOWS: usize = 24;
const FEW: usize = 6;

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

fn all_comes_as_it_was_sent(guests: &mut [Machine; 2], address: &str, flows: usize) {
    let [one, other] = guests;
    let told = one.shell(&format!("flows to {address} {flows}")).unwrap();
    compare(flows, &told, &other.shell("flows told").unwrap());
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

/// With packets of all lengths, and with what one adapter does for its guest turned off.
fn transfers(place: &Place, guests: &mut [Machine; 2]) {
    for (mtu, address) in [(1500, "10.9.0.2"), (9000, "fd09::2"), (65_000, "10.9.0.2")] {
        set_mtu(guests, mtu);
        all_comes_as_it_was_sent(guests, address, FLOWS);
    }
    // What one side does not take is done by the other side, or between them.
    for off in ["tso off gso off gro off", "tx off rx off lro off"] {
        guests[0].shell(&format!("ethtool -K eth0 {off}")).unwrap();
        set_mtu(guests, 1500);
        all_comes_as_it_was_sent(guests, "10.9.0.2", FEW);
    }
    for port in place.show()["ports"].as_array().expect("ports") {
        assert_eq!(port["dropped"].as_object().map(|d| d.len()), Some(0), "{port}");
    }
}

/// A switch that is stopped is a cable that is pulled, for as long as it is.
fn comes_back(place: &Place, guests: &mut [Machine; 2]) {
    let carrier = |is: u8| format!("until grep -q {is} /sys/class/net/eth0/carrier; do sleep 0.1; done");
    for (command, is) in [("stop", 0), ("start", 1)] {
        place.switch(&[command, "lab"]);
        for guest in guests.iter_mut() {
            guest.shell(&carrier(is)).unwrap();
        }
    }
    all_comes_as_it_was_sent(guests, "10.9.0.2", FEW);
}

/// A further adapter comes, carries what it is to, and goes.
fn comes_and_goes(guests: &mut [Machine; 2]) {
    let nics = guests[0].tells(&["nic", "add", "switch=lab"]);
    let name = nics[0]["name"].as_str().expect("a name").to_string();
    guests[0].shell("until [ -e /sys/class/net/eth1 ]; do sleep 0.1; done").unwrap();
    guests[0].shell("ip addr add 10.8.0.1/24 dev eth1; ip link set eth1 up").unwrap();
    guests[1].shell("ip addr add 10.8.0.2/24 dev eth0").unwrap();
    reaches(&mut guests[0], "10.8.0.2");
    all_comes_as_it_was_sent(guests, "10.8.0.2", FEW);
    let nics = guests[0].tells(&["nic", "list"]);
    let new = nics.as_array().and_then(|all| all.iter().find(|n| n["name"] == name.as_str()));
    assert!(new.is_some_and(|n| n["sent"].as_u64() > Some(100)), "{nics:#}");
    guests[0].does(&["nic", "remove", &name]);
    guests[0].shell("while [ -e /sys/class/net/eth1 ]; do sleep 0.1; done").unwrap();
    all_comes_as_it_was_sent(guests, "10.9.0.2", FEW);
}

/// The driver opens its channels anew for another number of them, or others' sizes.
fn channels_come_and_go(guests: &mut [Machine; 2]) {
    for change in ["-L eth0 combined 1", "-L eth0 combined 2", "-G eth0 rx 100 tx 10"] {
        guests[0].shell(&format!("ethtool {change}")).unwrap();
        reaches(&mut guests[0], "10.9.0.2");
        all_comes_as_it_was_sent(guests, "10.9.0.2", FEW);
    }
}

fn all_queues_are_used(guest: &mut Machine, cpus: u32) {
    let queues = guest.shell("ethtool -S eth0 | grep -E '[rt]x_queue_[0-9]*_packets: [1-9]'").unwrap();
    assert_eq!(queues.lines().count() as u32, 2 * cpus, "{queues}");
}

#[test]
fn flows_of_debian_5_10_and_6_12() {
    let _share = HostShare::take(2);
    let place = Place::with_switch("flows-1", 65_000);
    let mut guests = pair(&place, ["5.10", "6.12"], 1);
    transfers(&place, &mut guests);
    comes_back(&place, &mut guests);
    comes_and_goes(&mut guests);
    guests.iter_mut().for_each(is_sound);
}

#[test]
fn flows_of_debian_6_1_with_2_cpus() {
    let _share = HostShare::take(4);
    let place = Place::with_switch("flows-2", 65_000);
    let mut guests = pair(&place, ["6.1", "6.1"], 2);
    transfers(&place, &mut guests);
    guests.iter_mut().for_each(|guest| all_queues_are_used(guest, 2));
    channels_come_and_go(&mut guests);
    guests.iter_mut().for_each(is_sound);
}
