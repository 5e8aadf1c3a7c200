//! To the host and back, by a TAP device and by the host's own sockets.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::sync::Mutex;

use vireo_tap::trial::{Namespace, payload};
use vireo_tests::{HostShare, Machine};

use crate::rig::{Place, at_its_shell, compare, is_sound, reaches};

const FLOWS: usize = 8;

fn sha256(bytes: &[u8]) -> String {
    let mut command = Command::new("sha256sum");
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("sha256sum, of coreutils");
    child.stdin.take().expect("a pipe").write_all(bytes).expect("it reads");
    let said = child.wait_with_output().expect("it ends").stdout;
    String::from_utf8_lossy(&said).split_whitespace().next().expect("a sum").into()
}

/// The host's side of a flow, as the guest's program `flows` has it; number `n` of the test.
fn converse(stream: &TcpStream, n: usize) -> String {
    let sent = [format!("the host, {n}\n").as_bytes(), &payload(256 << 10)].concat();
    let received = std::thread::scope(|scope| {
        scope.spawn(|| {
            (&*stream).write_all(&sent).expect("it takes all");
            stream.shutdown(Shutdown::Write).expect("it is connected");
        });
        let mut received = Vec::new();
        (&*stream).read_to_end(&mut received).expect("it comes to an end");
        received
    });
    format!("sent {}\nreceived {}\n", sha256(&sent), sha256(&received))
}

/// Has so many flows at once, whoever begins them; gives what was told of them.
fn flows(connect: &(impl Fn() -> TcpStream + Sync)) -> String {
    let told = Mutex::new(String::new());
    std::thread::scope(|scope| {
        for n in 0..FLOWS {
            let told = &told;
            scope.spawn(move || {
                let one = converse(&connect(), n);
                told.lock().expect("no panic").push_str(&one);
            });
        }
    });
    told.into_inner().expect("no panic")
}

/// The guest begins flows with the host, which is known to it by an address, and to itself by another.
fn from_guest_to_host(guest: &mut Machine, network: &Namespace, theirs: &str, ours: &str) {
    let listener = network.run(|| TcpListener::bind((ours, 5001))).expect("the port is free");
    std::thread::scope(|scope| {
        let host = scope.spawn(|| flows(&|| listener.accept().expect("a connection").0));
        let told = guest.shell(&format!("flows to {theirs} {FLOWS}")).unwrap();
        compare(FLOWS, &told, &host.join().expect("no panic"));
    });
}

/// The host begins flows with the guest, by an address and port.
fn from_host_to_guest(guest: &mut Machine, network: &Namespace, to: (&str, u16)) {
    let told = flows(&|| network.run(|| TcpStream::connect(to)).expect("it is served"));
    compare(FLOWS, &told, &guest.shell("flows told").unwrap());
}

#[test]
fn the_host_and_a_guest_reach_each_other() {
    let Some(network) = Namespace::new() else { return };
    let _share = HostShare::take(2);
    network.ip("link set lo up");
    network.ip("tuntap add wire mode tap");
    network.ip("address add 10.9.8.1/24 dev wire");
    network.ip("link set wire mtu 9000 up");
    let place = Place::new("host");
    let nics =
        ["tap=wire,mac=00:15:5d:00:00:01", "nat,forward=tcp:127.0.0.1:8080:5001,mac=00:15:5d:00:00:02"];
    let command = place.command("6.12", 2, &nics);
    let mut guest = network.run(|| place.start("guest", command));
    at_its_shell(&mut guest);
    // Which adapter is found first, is chance.
    let rename = |from: &str, to: &str| {
        format!(
            "name=$(basename $(dirname $(grep -l {from} /sys/class/net/*/address))); ip link set $name name {to}"
        )
    };
    guest.shell(&rename("00:01", "tap")).unwrap();
    guest.shell(&rename("00:02", "nat")).unwrap();
    guest.shell("ip addr add 10.9.8.2/24 dev tap; ip link set tap up; flows serve").unwrap();
    reaches(&mut guest, "10.9.8.1");
    for mtu in [1500, 9000] {
        guest.shell(&format!("ip link set tap mtu {mtu}")).unwrap();
        reaches(&mut guest, "10.9.8.1");
        from_guest_to_host(&mut guest, &network, "10.9.8.1", "10.9.8.1");
        from_host_to_guest(&mut guest, &network, ("10.9.8.2", 5001));
    }
    guest.shell("ip link set nat up; udhcpc -q -n -t 10 -T 1 -i nat").unwrap();
    guest.shell("ip addr show dev nat | grep 'inet 10.0.2.15/24'").unwrap();
    from_guest_to_host(&mut guest, &network, "10.0.2.2", "127.0.0.1");
    from_host_to_guest(&mut guest, &network, ("127.0.0.1", 8080));
    is_sound(&mut guest);
    for nic in guest.tells(&["nic", "list"]).as_array().expect("adapters") {
        assert_eq!(nic["lost"], 0, "{nic}");
    }
}
