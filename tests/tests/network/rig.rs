//! A switch, and guests on it.

use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use vireo_tests::{Guest, Machine, vireo, vireo_does};
use vireo_vdisk::trial::peer::{Folder, text};

/// What all of a test's machines may take.
const LIMIT: Duration = Duration::from_secs(240);

/// A folder of a test, with a switch in it: `lab`.
pub struct Place {
    folder: Folder,
    has_switch: bool,
}

impl Place {
    pub fn new(name: &str) -> Self {
        Self { folder: Folder::new(&format!("network-{name}")), has_switch: false }
    }

    /// With the switch; adapters are told of packets of up to so many bytes.
    pub fn with_switch(name: &str, mtu: u32) -> Self {
        let mut place = Self::new(name);
        place.has_switch = true;
        place.switch(&["create", "lab", "--mtu", &mtu.to_string()]);
        place
    }

    pub fn switch(&self, words: &[&str]) -> String {
        vireo_does(&[&["switch", "--folder", text(&self.folder)], words].concat())
    }

    pub fn show(&self) -> Value {
        serde_json::from_str(&self.switch(&["show", "lab", "-o", "json"])).expect("JSON")
    }

    /// The command line of a guest of `guests/`, with these adapters.
    pub fn command(&self, kernel: &str, cpus: u32, nics: &[&str]) -> Command {
        let guest = Guest::build(&format!("debian-{kernel}-cloud-amd64-net"));
        let run = guest.run("interactive").parameter("quiet").cpus(cpus);
        let mut command = run.vireo(vireo());
        command.env("VIREO_FOLDER", &*self.folder);
        nics.iter().for_each(|nic| _ = command.args(["--nic", nic]));
        command
    }

    /// Starts it. `name` is of its control socket.
    pub fn start(&self, name: &str, command: Command) -> Machine {
        Machine::start(command, &self.folder.join(name), LIMIT).expect("it starts")
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // A test that has failed has a reason of its own.
        if self.has_switch && !std::thread::panicking() {
            self.switch(&["delete", "lab"]);
        } else if self.has_switch {
            _ = vireo_tests::vireo_says(&["switch", "--folder", text(&self.folder), "delete", "lab"]);
        }
    }
}

/// Waits until a guest has its shell.
pub fn at_its_shell(machine: &mut Machine) {
    machine.process.wait_for("/ # ").unwrap();
    machine.shell("dmesg -n 1").unwrap();
}

/// Waits until an address answers.
pub fn reaches(machine: &mut Machine, address: &str) {
    let ping = format!(
        "for n in $(seq 50); do ping -c 1 -W 1 {address} >/dev/null && break; sleep 0.1; done; [ $n -lt 50 ]"
    );
    machine.shell(&ping).unwrap();
}

/// Lines "sent SHA256" and "received SHA256" of one side of flows, sorted: what was sent, what came.
pub fn sums(told: &str) -> (Vec<&str>, Vec<&str>) {
    let of = |what: &str| {
        let mut all: Vec<_> = told.lines().filter_map(|l| l.strip_prefix(what)).map(str::trim).collect();
        all.sort_unstable();
        all
    };
    (of("sent "), of("received "))
}

/// Both sides of so many flows got what the other one sent, and no two sent the same.
pub fn compare(count: usize, one: &str, other: &str) {
    let ((sent, received), (other_sent, other_received)) = (sums(one), sums(other));
    assert_eq!((&sent, &received), (&other_received, &other_sent), "{one}\n{other}");
    let different: std::collections::BTreeSet<_> = sent.iter().chain(&received).collect();
    assert_eq!((sent.len(), different.len()), (count, 2 * count));
}

/// The guest's drivers have nothing to complain of.
pub fn is_sound(machine: &mut Machine) {
    let log = machine.shell("dmesg").unwrap();
    let found = vireo_tests::complaints(&log, "");
    assert!(
        found.is_empty() && !log.contains("netvsc: probe") && !log.contains("timed out"),
        "{found:?}\n{log}"
    );
}
