//! Linux's own network stack as a guest, by a TAP device: a peer that nobody here wrote.
//!
//! Host and guest are network namespaces of the test's own; nothing is sent to the outside.

mod tap;
mod world;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use vireo_nat::NatConfig;
use world::{sh, world};

/// A server of the host that answers each connection with what comes, to its end.
fn echo_server(at: &str) -> u16 {
    let listener = TcpListener::bind(at).unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            std::thread::spawn(move || {
                let mut copy = stream.try_clone().unwrap();
                _ = std::io::copy(&mut stream, &mut copy);
                _ = copy.shutdown(std::net::Shutdown::Write);
            });
        }
    });
    port
}

#[test]
fn a_guest_is_configured_by_dhcp_and_by_router_advertisement() {
    let config = NatConfig { mtu: 9000, host_name: Some("dora".into()), ..NatConfig::default() };
    let Some(world) = world("dhcp", config, true, 0) else { return };
    if sh("busybox udhcpc --help 2>&1 | grep -q Usage").is_err() {
        eprintln!("SKIPPED dhcp: busybox with udhcpc is not installed");
        return;
    }
    let script = world.file("script");
    let body = "#!/bin/sh\nenv > $0.$1\n[ $1 = bound ] || exit 0\nip addr add $ip/$mask dev $interface\nip route add default via $router\n";
    std::fs::write(&script, body).unwrap();
    world
        .guest(&format!("chmod +x {script}; busybox udhcpc -i tap0 -n -q -f -O mtu -O hostname -s {script}"))
        .unwrap();
    let told = std::fs::read_to_string(format!("{script}.bound")).unwrap();
    for line in [
        "ip=10.0.2.15",
        "mask=24",
        "router=10.0.2.2",
        "dns=10.0.2.3",
        "mtu=9000",
        "hostname=dora",
        "lease=86400",
    ] {
        assert!(told.lines().any(|l| l == line), "{line} is not in\n{told}");
    }
    assert_eq!(world.nat.leases().len(), 1);
    assert!(world.guest("busybox ping -c 2 -W 2 10.0.2.2").is_ok());
    let end = Instant::now() + Duration::from_secs(15);
    while world.guest("ip -6 addr show dev tap0 scope global | grep -q fd00:").is_err() {
        assert!(Instant::now() < end, "no address by IPv6");
        std::thread::sleep(Duration::from_millis(200));
    }
    world.guest("busybox ping -6 -c 2 -W 2 fd00::2; busybox ping -6 -c 1 -W 2 fe80::2%tap0").unwrap();
}

#[test]
fn connections_go_to_the_hosts_loopback_and_come_from_forwarded_ports() {
    let forwards = vec!["tcp:127.0.0.1:0:7000".parse().unwrap(), "udp:127.0.0.1:0:7001".parse().unwrap()];
    let config = NatConfig { forwards, ..NatConfig::default() };
    let Some(world) = world("connections", config, true, 0) else { return };
    world.configure();
    let port = echo_server("127.0.0.1:0");
    let python = |code: &str| world.guest(&format!("python3 -c '{code}'"));
    let bulk = "import socket,threading,os\ns=socket.create_connection((\"10.0.2.2\",PORT))\nd=os.urandom(30000000)\n\
                t=threading.Thread(target=lambda:(s.sendall(d),s.shutdown(1)))\nt.start()\nr=bytearray()\n\
                while True:\n b=s.recv(1<<20)\n if not b:break\n r+=b\nassert r==d,len(r)";
    python(&bulk.replace("PORT", &port.to_string())).unwrap();
    // Nobody listens there.
    let refused = python(
        "import socket\ntry: socket.create_connection((\"10.0.2.2\",1),5)\nexcept ConnectionRefusedError: print(1)",
    );
    assert_eq!(refused.unwrap().trim(), "1");
    // The host's world has no other network.
    let unreachable = python(
        "import socket\ntry: socket.create_connection((\"192.0.2.1\",1),5)\nexcept OSError as e: print(e.errno)",
    );
    assert_eq!(unreachable.unwrap().trim(), libc::ENETUNREACH.to_string());
    let reset = "import socket\ns=socket.socket(socket.AF_INET,socket.SOCK_DGRAM)\ns.connect((\"10.0.2.2\",9))\ns.send(b\"x\")\n\
                 try: s.settimeout(5);s.recv(9)\nexcept ConnectionRefusedError: print(1)";
    assert_eq!(python(reset).unwrap().trim(), "1");
    forwarded(&world);
    assert!(world.nat.stats().connections_made >= 3, "{:?}", world.nat.stats());
}

/// Connections and datagrams to a guest.
fn forwarded(world: &world::World) {
    let server = "import socket,sys,os\nt=socket.create_server((\"\",7000))\nu=socket.socket(socket.AF_INET,socket.SOCK_DGRAM)\n\
                  u.bind((\"\",7001))\nif os.fork(): sys.exit()\nos.setsid()\nfor n in (0,1,2): os.close(n)\n\
                  c,a=t.accept()\nwhile True:\n b=c.recv(65536)\n if not b:break\n c.sendall(b)\nc.close()\n\
                  b,a=u.recvfrom(65536)\nu.sendto(b[::-1],a)";
    world.guest(&format!("python3 -c '{server}'")).unwrap();
    let forwards = world.nat.forwards();
    let mut stream = TcpStream::connect(forwards[0].host).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let data: Vec<u8> = (0..3_000_000_u32).map(|n| ((n * 7) >> 3) as u8).collect();
    let (mut sends, copy) = (stream.try_clone().unwrap(), data.clone());
    let sender = std::thread::spawn(move || {
        sends.write_all(&copy).unwrap();
        sends.shutdown(std::net::Shutdown::Write).unwrap();
    });
    let mut back = Vec::new();
    stream.read_to_end(&mut back).unwrap();
    sender.join().unwrap();
    assert!(back == data);
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    // Longer than a packet may be: in fragments.
    let long: Vec<u8> = (0..5000_u32).map(|n| n as u8).collect();
    socket.send_to(&long, forwards[1].host).unwrap();
    let mut buffer = [0; 9000];
    match socket.recv(&mut buffer) {
        Ok(length) => assert!(buffer[..length].iter().rev().eq(&long)),
        Err(error) => panic!("{error}: {:?}", world.nat.stats()),
    }
    world.nat.remove_forward(&forwards[0]).unwrap();
    assert!(TcpStream::connect(forwards[0].host).is_err());
    assert_eq!(world.nat.forwards(), forwards[1..]);
}

/// What iperf3 says of the bits a second that arrived, and of all bytes.
fn rate(said: &str) -> (f64, f64) {
    let sum = &said[said.find("\"sum_received\"").expect("a sum")..];
    let number = |name: &str| {
        let rest = &sum[sum.find(name).expect("a number") + name.len() + 3..];
        rest[..rest.find([',', '}', '\n']).expect("more")].trim().parse::<f64>().expect("a number")
    };
    (number("bits_per_second"), number("bytes"))
}

/// Seconds of processor time that a process has used.
fn used(process: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit(") ").next().unwrap().split(' ').collect();
    // In hundredths of a second (`proc(5)`: utime and stime).
    (fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap()) / 100.0
}

/// Runs iperf3 both ways; prints what passed, and how much in a second of the process in the middle.
fn measure(name: &str, process: u32, guest: impl Fn(&str) -> Result<String, String>) {
    for (way, option) in [("guest to host", ""), ("host to guest", "-R")] {
        let before = used(process);
        let (bits, bytes) = rate(&guest(&format!("iperf3 -c 10.0.2.2 -p 5999 -J -t 3 {option}")).unwrap());
        let cost = used(process) - before;
        println!(
            "{name}, {way}: {:.2} Gbit/s, {:.2} Gbit per CPU second",
            bits / 1e9,
            bytes * 8.0 / 1e9 / cost
        );
    }
}

#[test]
#[ignore = "a measurement: cargo test --release -p vireo-nat --test kernel -- --ignored --nocapture"]
fn speed() {
    let server = || sh("timeout 60 iperf3 -s -B 127.0.0.1 -p 5999 -D; sleep 0.5").unwrap();
    for (name, mtu, offloads) in [
        ("MTU 1500, offloads", 1500, true),
        ("MTU 1500, none", 1500, false),
        ("MTU 65520, offloads", 65_520, true),
    ] {
        let config = NatConfig { mtu, ..NatConfig::default() };
        let run = move || {
            let Some(world) = world(&name.replace([',', ' '], ""), config, offloads, 0) else { return };
            world.configure();
            server();
            measure(name, std::process::id(), |script| world.guest(script));
        };
        std::thread::spawn(run).join().unwrap();
    }
    if sh("slirp4netns --version").is_err() {
        eprintln!("SKIPPED the comparison: slirp4netns is not installed");
        return;
    }
    for mtu in [1500, 65_520] {
        let run = move || {
            world::unshare_network();
            server();
            let mut guest = Command::new("unshare").args(["-n", "sleep", "60"]).spawn().unwrap();
            std::thread::sleep(Duration::from_millis(500));
            let options = ["--configure", &format!("--mtu={mtu}"), &guest.id().to_string(), "tap0"];
            let mut slirp = Command::new("slirp4netns")
                .args(options)
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .unwrap();
            std::thread::sleep(Duration::from_secs(1));
            let enter = format!("nsenter -t {} -n ", guest.id());
            measure(&format!("slirp4netns, MTU {mtu}"), slirp.id(), |script| sh(&(enter.clone() + script)));
            for child in [&mut slirp, &mut guest] {
                child.kill().unwrap();
                child.wait().unwrap();
            }
        };
        std::thread::spawn(run).join().unwrap();
    }
}
