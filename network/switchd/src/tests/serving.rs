//! A served switch, with workers that come by its socket.

use std::io::Read;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};

use super::*;
use crate::control::{Answer, Request, ask};
use crate::{Change, Config, Folders, Service, SwitchKind};
use vireo_frame::{Ability, Adapter, End, Filter, Full, Link};
use vireo_port::{ConnectError, PortRequest, SwitchPort};

/// A folder of this test's alone, and a switch in it.
pub(super) struct Home(PathBuf, pub(super) Folders);

impl Home {
    pub(super) fn new(kind: SwitchKind, uplink: Option<&str>) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let unique = format!("vireo-switchd-{}-{}", std::process::id(), NEXT.fetch_add(1, SeqCst));
        let path = std::env::temp_dir().join(unique);
        let folders = Folders::under(&path);
        folders.make().unwrap();
        let uplink = uplink.map(|text| text.parse().unwrap());
        Config::new("lab", kind, uplink).unwrap().save(&folders.config("lab")).unwrap();
        Self(path, folders)
    }

    pub(super) fn start(&self) -> Service {
        Service::start(&self.1, "lab").unwrap()
    }

    fn connect(
        &self,
        name: &str,
        n: u8,
        vlan: Option<u16>,
    ) -> Result<(Arc<SwitchPort>, Arc<Nic>), ConnectError> {
        let request = PortRequest { name: name.into(), mac: mac(n), vlan };
        let port = SwitchPort::connect(&self.1.sockets("lab").ports(), request)?;
        let nic = Arc::new(Nic::default());
        port.set_adapter_ability(Ability::ALL);
        port.plug(Some(nic.clone()));
        soon(|| nic.carrier.lock().unwrap().0);
        Ok((port, nic))
    }

    fn ask(&self, request: &Request) -> Result<Answer, String> {
        ask(&self.1.sockets("lab").control(), request).map_err(|e| e.to_string())
    }

    pub(super) fn set(&self, port: Option<&str>, changes: &[(&str, &str)]) -> Result<Answer, String> {
        let change = |(key, value): &(&str, &str)| Change { key: (*key).into(), value: (*value).into() };
        let changes = changes.iter().map(change).collect();
        self.ask(&Request::Set { port: port.map(Into::into), changes })
    }

    /// What is told of a port that is connected.
    fn port(&self, name: &str) -> crate::report::PortReport {
        let ports = self.status().ports;
        ports.into_iter().map(|p| p.report).find(|r| r.name == name).expect("it is connected")
    }

    pub(super) fn status(&self) -> crate::control::Status {
        match self.ask(&Request::Show) {
            Ok(Answer::Status(status)) => *status,
            other => panic!("{other:?}"),
        }
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A guest's adapter.
#[derive(Default)]
struct Nic {
    got: Mutex<Vec<Vec<u8>>>,
    carrier: Mutex<(bool, u64)>,
    /// Has room no more.
    full: std::sync::atomic::AtomicBool,
    rooms: AtomicU32,
}

impl End for Nic {
    fn put(&self, frame: &Frame<'_>) -> Result<(), Full> {
        if self.full.load(SeqCst) {
            return Err(Full);
        }
        let mut bytes = Vec::new();
        frame.append_to(&mut bytes).unwrap();
        self.got.lock().unwrap().push(bytes);
        Ok(())
    }
    fn flush(&self) {}
    fn room(&self) {
        self.rooms.fetch_add(1, SeqCst);
    }
}

impl Adapter for Nic {
    fn set_carrier(&self, up: bool, speed: u64) {
        *self.carrier.lock().unwrap() = (up, speed);
    }
}

impl Nic {
    fn count(&self) -> usize {
        self.got.lock().unwrap().len()
    }
}

fn put(port: &SwitchPort, to: u8, from: u8) {
    port.put(&Frame::whole(&plain(mac(to), mac(from), 100)).unwrap()).unwrap();
    port.flush();
}

#[test]
fn workers_meet_on_a_switch_that_is_started_again() {
    let home = Home::new(SwitchKind::Private, None);
    let service = home.start();
    assert!(Service::start(&home.1, "lab").err().unwrap().to_string().contains("running already"));
    let (a, _nic) = home.connect("a", 1, None).unwrap();
    let (_b, nic) = home.connect("b", 2, None).unwrap();
    assert_eq!((a.mtu(), nic.carrier.lock().unwrap().1), (1500, 10_000_000_000));
    put(&a, 2, 1);
    soon(|| nic.count() == 1);
    home.set(Some("b"), &[("dhcp-guard", "on")]).unwrap();
    drop(service);
    soon(|| !nic.carrier.lock().unwrap().0 && !a.is_connected());
    put(&a, 2, 1);
    let _service = home.start();
    soon(|| nic.carrier.lock().unwrap().0 && a.is_connected());
    put(&a, 2, 1);
    soon(|| nic.count() == 2);
    let status = home.status();
    assert!(status.ports.iter().any(|p| p.report.name == "b" && p.settings.dhcp_guard), "it was kept");
}

#[test]
fn a_switch_that_moves_no_frames_any_more_ends_and_says_so() {
    let home = Home::new(SwitchKind::Private, None);
    let service = home.start();
    let (a, _nic) = home.connect("a", 1, None).unwrap();
    service.break_plane();
    assert!(service.wait().unwrap_err().to_string().contains("failed"));
    drop(service);
    soon(|| !a.is_connected());
    let service = home.start();
    soon(|| a.is_connected());
    home.ask(&Request::End).unwrap();
    service.wait().unwrap();
}

#[test]
fn who_may_not_come_is_told_why() {
    let home = Home::new(SwitchKind::Private, None);
    let _service = home.start();
    let refused = |name: &str, n: u8, vlan| home.connect(name, n, vlan).map(|_| ()).unwrap_err().to_string();
    let (a, _nic) = home.connect("a", 1, None).unwrap();
    assert!(refused("a", 2, None).contains("connected already"));
    assert!(refused("c", 1, None).contains("is the address of another port"));
    assert!(refused("../c", 3, None).contains("can be no port's name"));
    assert!(refused(crate::UPLINK, 3, None).contains("can be no port's name"));
    assert!(refused("c", 3, Some(4095)).contains("VLAN 4095"));
    home.set(Some("c"), &[("vlan", "7"), ("mac", "00:15:5d:00:00:03")]).unwrap();
    assert!(refused("c", 3, Some(8)).contains("its VLAN is 7"));
    assert!(refused("c", 4, None).contains("its address is 00:15:5d:00:00:03"));
    home.connect("c", 3, Some(7)).unwrap();
    home.set(None, &[("strangers", "off")]).unwrap();
    assert!(refused("d", 4, None).contains("only ports that it has settings for"));
    // A name is free as soon as who had it is gone.
    drop(a);
    home.set(Some("a"), &[("spoofing", "on")]).unwrap();
    home.connect("a", 1, None).unwrap();
    // What is said first and is none.
    for said in
        [&b"{}"[..], b"nonsense", b"{\"version\":2,\"port\":{\"name\":\"e\",\"mac\":\"00:15:5d:00:00:05\"}}"]
    {
        let socket = vireo_port::wire::connect(&home.1.sockets("lab").ports()).unwrap();
        rustix::net::send(&socket, said, rustix::net::SendFlags::empty()).unwrap();
        let mut buffer = vec![0; vireo_port::wire::MESSAGE_MAX];
        match vireo_port::wire::receive(&socket, true, &mut buffer) {
            vireo_port::wire::Heard::Message(m, None) => {
                assert!(String::from_utf8_lossy(m).contains("refused"));
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_request_whose_maker_has_gone_is_not_served_and_one_who_only_listens_is_answered() {
    use std::io::{Read, Write};
    let home = Home::new(SwitchKind::Private, None);
    let _service = home.start();
    let request = |vlan: u8| {
        format!(
            r#"{{"version":1,"command":"set","port":"web","changes":[{{"key":"vlan","value":"{vlan}"}}]}}{}"#,
            "\n"
        )
    };
    let connect = || std::os::unix::net::UnixStream::connect(home.1.sockets("lab").control()).unwrap();
    let mut listens = connect();
    listens.write_all(request(5).as_bytes()).unwrap();
    listens.shutdown(std::net::Shutdown::Write).unwrap();
    let mut answer = String::new();
    listens.read_to_string(&mut answer).unwrap();
    assert!(answer.contains("done"), "{answer}");
    let ((ours, theirs), line) = (std::os::unix::net::UnixStream::pair().unwrap(), request(7));
    (&ours).write_all(line.as_bytes()).unwrap();
    assert!(crate::control::is_there(&theirs));
    drop(ours);
    assert!(crate::control::hear(&theirs).is_ok() && !crate::control::is_there(&theirs));
}

#[test]
fn settings_hold_at_once_or_not_at_all() {
    let home = Home::new(SwitchKind::Private, None);
    let _service = home.start();
    let (a, _n) = home.connect("a", 1, None).unwrap();
    let (b, nic) = home.connect("b", 2, None).unwrap();
    put(&a, 2, 1);
    soon(|| nic.count() == 1);
    home.set(Some("a"), &[("vlan", "5")]).unwrap();
    put(&a, 2, 1);
    // Guests choose addresses only where they may.
    assert!(b.set_address(mac(9)).is_err());
    home.set(Some("b"), &[("spoofing", "on"), ("vlan", "5")]).unwrap();
    b.set_address(mac(9)).unwrap();
    put(&a, 9, 1);
    soon(|| nic.count() == 2);
    let before = std::fs::read(home.1.config("lab")).unwrap();
    assert!(
        home.set(Some("a"), &[("weight", "7"), ("vlan", "5000")]).unwrap_err().contains("is not understood")
    );
    assert!(home.set(Some("a"), &[("weight", "0")]).is_err());
    assert!(home.ask(&Request::Forget { port: "z".into() }).is_err());
    assert_eq!(std::fs::read(home.1.config("lab")).unwrap(), before);
    home.ask(&Request::Forget { port: "a".into() }).unwrap();
    let sent = home.port("a").sent.0;
    put(&a, 9, 1);
    soon(|| home.port("a").sent.0 == sent + 1);
    let b = home.port("b");
    assert_eq!((b.vlan.as_str(), b.mac.as_deref()), ("5", Some("00:15:5d:00:00:09")));
    assert_eq!(
        nic.count(),
        2,
        "the frame in VLAN 5 from one that is in it no more, and the first one after the change, are nowhere"
    );
}

#[test]
fn what_a_worker_asked_for_counts_again_where_the_switch_says_nothing_more() {
    let home = Home::new(SwitchKind::Private, None);
    let _service = home.start();
    let (_a, _n) = home.connect("a", 1, Some(5)).unwrap();
    let (_b, _n2) = home.connect("b", 2, None).unwrap();
    let vlan = |name: &str| {
        let status = home.status();
        status.ports.into_iter().find(|p| p.report.name == name).map(|p| p.report.vlan)
    };
    home.set(Some("a"), &[("vlan", "5"), ("weight", "2")]).unwrap();
    home.set(Some("a"), &[("vlan", "any")]).unwrap();
    assert_eq!(vlan("a").as_deref(), Some("5"));
    home.ask(&Request::Forget { port: "a".into() }).unwrap();
    assert_eq!(vlan("a").as_deref(), Some("5"));
    home.set(Some("b"), &[("vlan", "10")]).unwrap();
    assert_eq!(vlan("b").as_deref(), Some("10"));
    home.set(Some("b"), &[("vlan", "any")]).unwrap();
    assert_eq!(vlan("b").as_deref(), Some("none"));
}

#[test]
fn a_port_whose_worker_says_what_is_not_so_any_more_is_closed() {
    let home = Home::new(SwitchKind::Private, None);
    let _service = home.start();
    let (a, nic) = home.connect("a", 1, Some(5)).unwrap();
    assert_eq!(a.refusal(), None);
    for (key, value, open) in [("mac", "00:15:5d:00:00:07", "any"), ("vlan", "6", "any")] {
        home.set(Some("a"), &[(key, value)]).unwrap();
        assert!(home.status().ports.is_empty(), "at once");
        soon(|| {
            a.refusal().is_some_and(|why| why.contains(value) && why.contains("by the switch's settings"))
        });
        assert!(!nic.carrier.lock().unwrap().0);
        home.set(Some("a"), &[(key, open)]).unwrap();
        soon(|| nic.carrier.lock().unwrap().0 && a.refusal().is_none());
    }
    home.set(Some("a"), &[("mac", "00:15:5d:00:00:01"), ("vlan", "5")]).unwrap();
    assert!(a.is_connected() && home.status().ports.len() == 1);
}

#[test]
fn the_address_of_who_is_behind_the_uplink_has_to_be_given_by_the_switch() {
    let home = Home::new(SwitchKind::External, Some("nat"));
    let _service = home.start();
    let (a, _nic) = home.connect("a", 1, None).unwrap();
    // Its gateway answers.
    let who_has = [
        &Mac::BROADCAST.0[..],
        &mac(1).0,
        &[8, 6, 0, 1, 8, 0, 6, 4, 0, 1],
        &mac(1).0,
        &[10, 0, 2, 15, 0, 0, 0, 0, 0, 0, 10, 0, 2, 2],
    ]
    .concat();
    let mut gateway = None;
    soon(|| {
        a.put(&Frame::whole(&who_has).unwrap()).unwrap();
        a.flush();
        gateway = home.status().stations.first().map(|s| s.mac.clone());
        gateway.is_some()
    });
    let gateway: Mac = gateway.unwrap().parse().unwrap();
    let ask = || {
        let request = PortRequest { name: "b".into(), mac: gateway, vlan: None };
        SwitchPort::connect(&home.1.sockets("lab").ports(), request).map(|_| ())
    };
    assert!(ask().unwrap_err().to_string().contains("behind the uplink"));
    home.set(Some("b"), &[("mac", &gateway.to_string())]).unwrap();
    ask().unwrap();
}

#[test]
fn an_adapter_that_is_full_gets_what_waits_when_it_has_room() {
    let home = Home::new(SwitchKind::Private, None);
    let _service = home.start();
    let (a, from) = home.connect("a", 1, None).unwrap();
    let (b, nic) = home.connect("b", 2, None).unwrap();
    nic.full.store(true, SeqCst);
    for _ in 0..50 {
        put(&a, 2, 1);
    }
    soon(|| home.status().ports.iter().any(|p| p.report.name == "b" && p.report.received.0 == 50));
    assert_eq!(nic.count(), 0);
    nic.full.store(false, SeqCst);
    b.room();
    soon(|| nic.count() == 50);
    b.set_filter(&Filter { directed: false, ..Filter::default() });
    soon(|| {
        let before = nic.count();
        put(&a, 2, 1);
        std::thread::sleep(Duration::from_millis(20));
        nic.count() == before
    });
    // A sender that a limit holds up is told of room, and loses nothing.
    home.set(Some("a"), &[("bandwidth", "400M")]).unwrap();
    b.set_filter(&Filter::default());
    let big = plain(mac(2), mac(1), 60_000);
    let before = home.status().ports[0].report.sent.0;
    let (mut sent, mut rooms) = (0, 0);
    while sent < 200 {
        match a.put(&Frame::whole(&big).unwrap()) {
            Ok(()) => sent += 1,
            Err(Full) => {
                rooms += 1;
                soon(|| from.rooms.load(SeqCst) >= rooms);
            }
        }
    }
    a.flush();
    assert!(rooms > 0, "it was full");
    soon(|| home.status().ports[0].report.sent.0 == before + 200);
}

#[test]
fn who_looks_on_gets_a_file_that_others_read() {
    let home = Home::new(SwitchKind::Private, None);
    let _service = home.start();
    let (a, _n) = home.connect("a", 1, Some(7)).unwrap();
    let (_b, nic) = home.connect("b", 2, Some(7)).unwrap();
    let (c, _n3) = home.connect("c", 3, None).unwrap();
    let control = home.1.sockets("lab").control();
    assert!(
        crate::control::Capture::start(&control, Some("x".into()))
            .err()
            .unwrap()
            .to_string()
            .contains("not connected")
    );
    let mut capture = crate::control::Capture::start(&control, Some("b".into())).unwrap();
    let mut start = [0; 28 + 32];
    capture.read_exact(&mut start).unwrap();
    put(&c, 1, 3);
    put(&a, 2, 1);
    soon(|| nic.count() == 1);
    let mut block = [0; 12 + 20 + 100];
    capture.read_exact(&mut block).unwrap();
    let word = |bytes: &[u8], at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
    assert_eq!(
        (word(&start, 0), word(&start, 4), word(&start, 28), word(&start, 32)),
        (0x0a0d_0d0a, 28, 1, 32)
    );
    assert_eq!((word(&block, 0), word(&block, 4), word(&block, 20), word(&block, 128)), (6, 132, 100, 132));
    assert_eq!(block[28..128], plain(mac(2), mac(1), 100));
    capture.ender().unwrap()();
    assert_eq!(capture.read(&mut block).unwrap(), 0, "no more");
}
