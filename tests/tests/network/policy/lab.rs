//! Three guests on a switch, each with the program `frames` in place of its shell.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde_json::Value;
use vireo_tests::Machine;

use crate::frames::{BROADCAST, Mac, mac, plain};
use crate::rig::{Place, at_its_shell};

const PORTS: [&str; 3] = ["a", "b", "c"];
/// A bridge's own address: a switch forwards nothing to it, whatever is allowed, and counts it.
const RESERVED: Mac = [1, 0x80, 0xc2, 0, 0, 0];

/// A frame of guest `from` (1 to 3), and what is to become of it: at first, nobody gets it.
pub struct Sent {
    from: usize,
    frame: Vec<u8>,
    got: Vec<(usize, Vec<u8>)>,
    /// The switch counts it: at which port, as what.
    counted: Option<(usize, &'static str)>,
}

impl Sent {
    pub fn new(from: usize, frame: Vec<u8>) -> Self {
        Self { from, frame, got: Vec::new(), counted: None }
    }

    /// These get it as it is.
    pub fn reaches(mut self, to: &[usize]) -> Self {
        self.got = to.iter().map(|to| (*to, self.frame.clone())).collect();
        self
    }

    /// One gets it with another tag.
    pub fn becomes(mut self, to: usize, frame: Vec<u8>) -> Self {
        self.got.push((to, frame));
        self
    }

    /// It is not taken from its sender, for a reason.
    pub fn dropped(mut self, reason: &'static str) -> Self {
        self.counted = Some((self.from, reason));
        self
    }

    /// The receiver's access list keeps it from it.
    pub fn kept_from(mut self, to: usize) -> Self {
        self.counted = Some((to, "refused"));
        self
    }
}

pub struct Lab {
    place: Place,
    guests: Vec<Guest>,
    /// Ports that have settings.
    set: Vec<&'static str>,
}

struct Guest {
    machine: Machine,
    /// Lines of its program that were looked at.
    lines: usize,
    /// What was asked of it.
    sent: usize,
    ran: usize,
}

impl Guest {
    fn says(&mut self, line: &str) {
        self.machine.process.send(format!("{line}\n").as_bytes()).unwrap();
    }

    fn sends(&mut self, frame: &[u8]) {
        self.says(&format!("send {}", hex(frame)));
        self.sent += 1;
        let sent = self.sent;
        self.machine.process.wait_for_times("\nsent", sent).unwrap();
    }

    /// Runs a command; whether it succeeds.
    fn runs(&mut self, command: &str) -> bool {
        self.says(&format!("run {command}"));
        self.ran += 1;
        let ran = self.ran;
        self.machine.process.wait_for_times("\nran", ran).unwrap();
        let output = self.machine.process.output();
        output.lines().filter(|l| l.starts_with("code ")).nth(ran - 1) == Some("code 0")
    }

    /// Frames that came since it was asked last.
    fn frames(&mut self) -> Vec<String> {
        let output = self.machine.process.output();
        let all = output.lines().filter_map(|l| l.strip_prefix("frame "));
        let new: Vec<_> = all.skip(self.lines).map(str::to_string).collect();
        self.lines += new.len();
        new
    }
}

impl Lab {
    pub fn new(kernel: &str) -> Self {
        let place = Place::with_switch("policy", 1500);
        let start = |n: usize| {
            let nic = format!("switch=lab,port={},mac=00:15:5d:00:00:0{}", PORTS[n], n + 1);
            place.start(PORTS[n], place.command(kernel, 1, &[&nic]))
        };
        let mut machines = [start(0), start(1), start(2)];
        for machine in &mut machines {
            at_its_shell(machine);
            let quiet = "echo 1 >/proc/sys/net/ipv6/conf/all/disable_ipv6";
            let up = "ip link set eth0 up; until grep -q 1 /sys/class/net/eth0/carrier; do sleep 0.1; done";
            machine.shell(&format!("{quiet}; {up}; stty -echo")).unwrap();
            machine.process.send(b"frames eth0\n").unwrap();
            machine.process.wait_for("frames: ready").unwrap();
        }
        let guests =
            machines.into_iter().map(|machine| Guest { machine, lines: 0, sent: 0, ran: 0 }).collect();
        Self { place, guests, set: Vec::new() }
    }

    /// Gives ports settings: words, with a plus where one has blanks in it.
    pub fn set(&mut self, ports: &[(&'static str, &str)]) {
        for (port, words) in ports {
            let words: Vec<_> = words.split(' ').map(|w| w.replace('+', " ")).collect();
            let words: Vec<_> =
                ["set", "lab", port].into_iter().chain(words.iter().map(String::as_str)).collect();
            self.place.switch(&words);
            self.set.push(port);
        }
    }

    /// Sets the switch.
    pub fn set_switch(&self, words: &str) {
        self.place.switch(&[&["set", "lab"][..], &words.split(' ').collect::<Vec<_>>()].concat());
    }

    /// A guest gives its adapter an address, for which its driver wants it to be down; whether it may.
    pub fn set_address(&mut self, guest: usize, address: Mac) -> bool {
        let text = address.map(|b| format!("{b:02x}")).join(":");
        let guest = &mut self.guests[guest - 1];
        assert!(guest.runs("ip link set eth0 down"));
        let may = guest.runs(&format!("ip link set eth0 address {text}"));
        assert!(guest.runs("ip link set eth0 up"));
        may
    }

    /// A guest's kernel joins 239.255.0.100, or leaves it; waits until the switch knows.
    pub fn join(&mut self, guest: usize, joins: bool) {
        let verb = if joins { "add" } else { "del" };
        let own = format!("ip addr add 10.9.0.{guest}/24 dev eth0 2>/dev/null");
        let group = format!("/sbin/ip addr {verb} 239.255.0.100/32 dev eth0");
        let group = if joins { group + " autojoin" } else { group };
        assert!(self.guests[guest - 1].runs(&format!("{own}; {group}")));
        self.until("the switch hears of a group", |show| {
            let members = show["members"].as_array().expect("members");
            members.iter().any(|m| m["group"] == "239.255.0.100" && m["port"] == PORTS[guest - 1]) == joins
        });
    }

    /// The guests as they are without the program, and the place where they are.
    pub fn at_their_shells(self) -> (Place, [Machine; 3]) {
        let machine = |mut guest: Guest| {
            // The end of its input.
            guest.machine.process.send(b"\x04").unwrap();
            guest.machine
        };
        let machines: Vec<_> = self.guests.into_iter().map(machine).collect();
        (self.place, machines.try_into().unwrap_or_else(|_| unreachable!("there are three")))
    }

    fn until(&self, what: &str, so: impl Fn(&Value) -> bool) -> Value {
        let end = Instant::now() + Duration::from_secs(60);
        loop {
            let show = self.place.show();
            if so(&show) {
                return show;
            }
            assert!(Instant::now() < end, "{what}: {show:#}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Sends frames, and compares who got what, and what was counted; then ports have no settings any more.
    pub fn check(&mut self, all: &[Sent]) {
        self.send_and_compare(all, true);
    }

    /// The same, and ports keep their settings.
    pub fn check_on(&mut self, all: &[Sent]) {
        self.send_and_compare(all, false);
    }

    fn send_and_compare(&mut self, all: &[Sent], forget: bool) {
        let before = self.place.show();
        // One after the other: what comes first may decide about what follows.
        for sent in all {
            let handled = |show: &Value| count(show, sent.from, "reserved");
            let so_far = handled(&self.place.show());
            let guest = &mut self.guests[sent.from - 1];
            guest.sends(&sent.frame);
            guest.sends(&plain(RESERVED, mac(sent.from)));
            self.until("the switch has taken a frame", |show| handled(show) == so_far + 1);
        }
        let after = self.place.show();
        let mut counted: BTreeMap<(usize, &str), u64> = BTreeMap::new();
        for one in all.iter().filter_map(|sent| sent.counted) {
            *counted.entry(one).or_default() += 1;
        }
        for port in 1..=PORTS.len() {
            for what in ["malformed", "vlan", "spoofed", "dhcp", "router", "address", "acl", "refused"] {
                let expected = counted.get(&(port, what)).copied().unwrap_or(0);
                let found = count(&after, port, what) - count(&before, port, what);
                assert_eq!(found, expected, "{what} at port {}: {after:#}", PORTS[port - 1]);
            }
        }
        if forget {
            self.set.sort_unstable();
            self.set.dedup();
            for port in std::mem::take(&mut self.set) {
                self.place.switch(&["set", "lab", port, "--forget"]);
            }
        }
        self.compare(all);
    }

    /// Whatever came before the last frames, which all get, has come when these have.
    fn compare(&mut self, all: &[Sent]) {
        let ends = [1, 2].map(|from| plain(BROADCAST, mac(from)));
        for (from, end) in ends.iter().enumerate() {
            self.guests[from].sends(end);
            for (n, guest) in self.guests.iter_mut().enumerate().filter(|(n, _)| *n != from) {
                let line = format!("frame {}", hex(end));
                guest.machine.process.wait_for(&line).unwrap_or_else(|e| panic!("guest {}: {e}", n + 1));
            }
        }
        let ends = ends.map(|end| hex(&end));
        for (n, guest) in self.guests.iter_mut().enumerate() {
            let of_guest = |sent: &Sent| {
                let got = sent.got.iter().filter(|(to, _)| *to == n + 1).map(|(_, frame)| hex(frame));
                got.collect::<Vec<_>>()
            };
            let expected: Vec<_> = all.iter().flat_map(of_guest).collect();
            let got: Vec<_> = guest.frames().into_iter().filter(|frame| !ends.contains(frame)).collect();
            assert_eq!(got, expected, "guest {}", n + 1);
        }
    }
}

/// What the switch has counted at a port.
fn count(show: &Value, port: usize, what: &str) -> u64 {
    let ports = show["ports"].as_array().expect("ports");
    let port = ports.iter().find(|p| p["name"] == PORTS[port - 1]).expect("it is connected");
    let value = if what == "refused" { &port[what] } else { &port["dropped"][what] };
    value.as_u64().unwrap_or(0)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}
