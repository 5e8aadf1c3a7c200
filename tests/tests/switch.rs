//! `vireo switch`, as its users meet it: what it prints, what it refuses, and what is left when it is killed.

use std::path::PathBuf;
use std::process::{Command, Output};

use serde_json::Value;
use vireo_tests::vireo;

/// A folder of switches, all of which are gone at the end.
struct Switches(PathBuf);

impl Switches {
    fn new(name: &str) -> Self {
        let folder = std::env::temp_dir().join(format!("vireo-switches-{name}-{}", std::process::id()));
        _ = std::fs::remove_dir_all(&folder);
        Self(folder)
    }

    fn run(&self, words: &[&str]) -> Output {
        let mut command = Command::new(vireo());
        command.args(["switch", "--folder"]).arg(&self.0).args(words);
        command.output().expect("vireo runs")
    }

    /// What a command prints that succeeds, and says nothing else.
    fn done(&self, words: &[&str]) -> String {
        let out = self.run(words);
        let errors = String::from_utf8_lossy(&out.stderr);
        assert!(out.status.success() && errors.is_empty(), "{words:?}: {errors}");
        String::from_utf8(out.stdout).expect("text")
    }

    /// Why a command fails, in one line.
    fn refused(&self, words: &[&str]) -> String {
        let out = self.run(words);
        let errors = String::from_utf8_lossy(&out.stderr).into_owned();
        assert_eq!((out.status.code(), errors.lines().count()), (Some(1), 1), "{words:?}: {errors}");
        assert!(errors.starts_with("vireo: "), "{errors}");
        errors
    }

    fn show(&self, name: &str) -> Value {
        serde_json::from_str(&self.done(&["show", name, "-o", "json"])).expect("JSON")
    }

    /// The process of a switch: whoever holds its lock.
    fn process(&self, name: &str) -> i32 {
        let lock = self.0.join("switch").join(name).join("lock");
        let out = Command::new("sh").args(["-c", "for p in /proc/[0-9]*; do [ -e $p/fd ] && ls -l $p/fd 2>/dev/null | grep -q \"$0\" && echo ${p#/proc/}; done"]).arg(&lock).output();
        String::from_utf8_lossy(&out.expect("sh").stdout).trim().parse().expect("one process")
    }
}

impl Drop for Switches {
    fn drop(&mut self) {
        for name in ["lab", "other"] {
            _ = self.run(&["delete", name]);
        }
        _ = std::fs::remove_dir_all(&self.0);
    }
}

#[test]
fn a_switch_is_made_set_and_deleted() {
    let switches = Switches::new("made");
    switches.done(&["create", "lab"]);
    assert!(switches.refused(&["create", "lab"]).contains("there is a switch lab already"));
    assert!(switches.refused(&["start", "lab"]).contains("is running already"));
    assert!(switches.done(&["list"]).contains("running"));
    let acl = ["--acl", "deny out tcp remote-port=25", "--acl", "allow out tcp answers=300"];
    let set = ["set", "lab", "web", "--vlan", "trunk:1:10-20", "--dhcp-guard", "on"];
    switches.done(&[&set[..], &acl].concat());
    let web = &switches.show("lab")["absent"]["web"];
    assert_eq!((web["vlan"].as_str(), web["dhcp-guard"].as_bool()), (Some("trunk:1:10-20"), Some(true)));
    assert_eq!(web["acl"].as_array().map(Vec::len), Some(2));
    assert!(switches.done(&["show", "lab"]).contains("trunk:1:10-20"));
    // What cannot be changes nothing.
    assert!(switches.refused(&["set", "lab", "web", "--weight", "5", "--vlan", "4095"]).contains("'4095'"));
    assert_eq!(&switches.show("lab")["absent"]["web"], web);
    assert!(switches.refused(&["set", "lab"]).contains("nothing is to be set"));
    switches.done(&["stop", "lab"]);
    assert!(switches.refused(&["show", "lab"]).contains("is not running"));
    assert!(switches.refused(&["stop", "lab"]).contains("is not running"));
    // One that does not run is changed, too; and what cannot be changes nothing.
    switches.done(&["set", "lab", "db", "--weight", "7"]);
    switches.done(&["set", "lab", "--mtu", "9000", "--dhcp-guard", "on"]);
    assert!(switches.refused(&["set", "lab", "db", "--vlan", "4095"]).contains("'4095'"));
    assert!(switches.refused(&["show", "lab"]).contains("is not running"));
    switches.done(&["start", "lab"]);
    let shown = switches.show("lab");
    assert_eq!((shown["mtu"].as_u64(), shown["absent"]["db"]["weight"].as_u64()), (Some(9000), Some(7)));
    assert_eq!(shown["default"]["dhcp-guard"], true);
    assert!(switches.done(&["show", "lab"]).contains("others           dhcp-guard on"));
    switches.done(&["set", "lab", "db", "--forget"]);
    assert_eq!(&switches.show("lab")["absent"]["web"], web, "it was kept");
    switches.done(&["set", "lab", "web", "--forget"]);
    assert!(switches.show("lab")["absent"].as_object().is_some_and(|ports| ports.is_empty()));
    // A file that is none keeps no other from being listed.
    std::fs::write(switches.0.join("switch/broken.json"), "{").expect("a file");
    let listed = switches.run(&["list"]);
    assert!(listed.status.success() && String::from_utf8_lossy(&listed.stdout).contains("lab "));
    assert!(String::from_utf8_lossy(&listed.stderr).contains("broken.json"));
    switches.done(&["delete", "lab"]);
    assert!(switches.refused(&["show", "lab"]).contains("there is no switch lab"));
}

#[test]
fn what_cannot_be_leaves_nothing() {
    let switches = Switches::new("refused");
    assert!(switches.refused(&["create", "../lab"]).contains("is no name"));
    assert!(switches.refused(&["create", "lab", "--uplink", "nat"]).contains("no uplink"));
    assert!(switches.refused(&["create", "lab", "--kind", "external"]).contains("needs --uplink"));
    assert!(switches.refused(&["create", "lab", "--mtu", "12"]).contains("mtu 12"));
    let nat = ["create", "lab", "--kind", "external", "--uplink", "nat", "--mtu", "600"];
    assert!(switches.refused(&nat).contains("it is from 1280 to 65521 with the uplink nat"));
    assert!(switches.refused(&["capture", "lab", "/dev/null"]).contains("there is no switch lab"));
    assert_eq!(switches.run(&["create", "lab", "--uplink", "x"]).status.code(), Some(2));
    assert!(!switches.0.join("switch/lab.json").exists());
    // Its settings are none: it says where.
    switches.done(&["create", "lab", "--no-start"]);
    let file = switches.0.join("switch/lab.json");
    std::fs::write(&file, "{\"version\":99}").expect("a file");
    assert!(switches.refused(&["start", "lab"]).contains("it is of version 99"));
}

#[test]
fn a_path_is_no_switch_and_stays() {
    let switches = Switches::new("path");
    switches.done(&["create", "lab", "--no-start"]);
    let package = switches.0.join("pkg");
    std::fs::create_dir(&package).expect("a folder");
    std::fs::write(switches.0.join("pkg.json"), "{}").expect("a file");
    for path in [package.to_str().expect("text"), "../pkg"] {
        for word in ["delete", "start", "stop", "show"] {
            assert!(switches.refused(&[word, path]).contains("there is no switch"), "{word} {path}");
        }
    }
    assert!(package.exists() && switches.0.join("pkg.json").exists());
}

#[test]
fn of_several_that_start_or_make_a_switch_one_does() {
    let switches = Switches::new("races");
    // All at once; why each that was refused was.
    let race = |words: &[&str]| -> Vec<String> {
        std::thread::scope(|scope| {
            let all: Vec<_> = (0..4).map(|_| scope.spawn(|| switches.run(words))).collect();
            let all = all.into_iter().map(|one| one.join().expect("it ran"));
            let refused = all.filter(|out| !out.status.success());
            refused.map(|out| String::from_utf8_lossy(&out.stderr).into_owned()).collect()
        })
    };
    for _ in 0..3 {
        let refused = race(&["create", "lab"]);
        assert_eq!(refused.len(), 3, "{refused:?}");
        let why = |e: &String| e.contains("there is a switch lab already") || e.contains("is being made");
        assert!(refused.iter().all(why), "{refused:?}");
        assert_eq!(switches.show("lab")["name"], "lab");
        switches.done(&["stop", "lab"]);
        let refused = race(&["start", "lab"]);
        assert_eq!(refused.len(), 3, "{refused:?}");
        assert!(refused.iter().all(|e| e.contains("is running already")), "{refused:?}");
        assert_eq!(switches.show("lab")["name"], "lab");
        // One deletes it; to the others it is gone, or goes just now.
        race(&["delete", "lab"]);
        assert!(!switches.0.join("switch/lab.json").exists() && !switches.0.join("switch/lab").exists());
    }
    let mut by_hand = Command::new(vireo());
    switches.done(&["create", "lab", "--no-start"]);
    by_hand.args(["switch", "serve", "lab", "--background", "--folder"]).arg(&switches.0);
    let out = by_hand.stdin(std::process::Stdio::null()).output().expect("vireo runs");
    assert!(String::from_utf8_lossy(&out.stderr).contains("standard input is not its lock"));
}

#[test]
fn a_switch_that_a_supervisor_starts_again_and_again_can_be_deleted() {
    let switches = Switches::new("supervised");
    switches.done(&["create", "lab", "--no-start"]);
    let serve = "while [ -e \"$1/switch/lab.json\" ]; do \"$0\" switch serve lab --folder \"$1\"; done";
    let mut supervisor = Command::new("sh");
    supervisor.args(["-c", serve]).arg(vireo()).arg(&switches.0).stderr(std::process::Stdio::null());
    let mut supervisor = supervisor.spawn().expect("sh");
    while !switches.done(&["list"]).contains("running") {
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    switches.done(&["delete", "lab"]);
    // What is gone is not served: it ends.
    let ended = (0..500).any(|_| {
        std::thread::sleep(std::time::Duration::from_millis(20));
        supervisor.try_wait().expect("its state").is_some()
    });
    assert!(ended, "it serves what was deleted");
    assert_eq!(switches.done(&["list", "-o", "json"]).trim(), "[]");
    assert!(!switches.0.join("switch/lab").exists());
}

#[test]
fn a_switch_has_all_file_descriptors_that_it_may_have() {
    let switches = Switches::new("descriptors");
    let mut command = Command::new("sh");
    command.args(["-c", "ulimit -Sn 200; exec \"$0\" switch create lab --folder \"$1\""]);
    assert!(command.arg(vireo()).arg(&switches.0).status().expect("sh").success());
    let limits =
        std::fs::read_to_string(format!("/proc/{}/limits", switches.process("lab"))).expect("limits");
    let files = limits.lines().find(|line| line.starts_with("Max open files")).expect("a limit");
    let [soft, hard] = [3, 4].map(|n| files.split_whitespace().nth(n));
    assert_eq!(soft, hard);
    assert_ne!(soft, Some("200"));
}

#[test]
fn a_capture_is_a_file_and_a_killed_switch_starts_again() {
    let switches = Switches::new("killed");
    switches.done(&["create", "lab"]);
    let file = switches.0.join("capture.pcapng");
    switches.done(&["capture", "lab", file.to_str().expect("text"), "--seconds", "1"]);
    let bytes = std::fs::read(&file).expect("the file");
    assert_eq!((bytes.len(), &bytes[..4]), (60, &[0x0a, 0x0d, 0x0d, 0x0a][..]));
    std::fs::remove_file(&file).expect("the file");
    let mut capture = Command::new(vireo());
    capture.args(["switch", "--folder"]).arg(&switches.0).args(["capture", "lab"]).arg(&file);
    let capture = capture.stderr(std::process::Stdio::piped()).spawn().expect("vireo runs");
    // It has made the file anew, and written its head.
    while std::fs::metadata(&file).map_or(0, |f| f.len()) != 60 {
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let pid = switches.process("lab");
    assert!(Command::new("kill").args(["-9", &pid.to_string()]).status().expect("kill").success());
    while switches.done(&["list"]).contains("running") {
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let captured = capture.wait_with_output().expect("it ends");
    let said = String::from_utf8_lossy(&captured.stderr);
    assert!(captured.status.code() == Some(1) && said.contains("the switch ended: "), "{said}");
    switches.done(&["start", "lab"]);
    assert_eq!(switches.show("lab")["name"], "lab");
}
