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
    switches.done(&["start", "lab"]);
    assert_eq!(&switches.show("lab")["absent"]["web"], web, "it was kept");
    switches.done(&["set", "lab", "web", "--forget"]);
    assert!(switches.show("lab")["absent"].as_object().is_some_and(|ports| ports.is_empty()));
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
fn a_capture_is_a_file_and_a_killed_switch_starts_again() {
    let switches = Switches::new("killed");
    switches.done(&["create", "lab"]);
    let file = switches.0.join("capture.pcapng");
    switches.done(&["capture", "lab", file.to_str().expect("text"), "--seconds", "1"]);
    let bytes = std::fs::read(&file).expect("the file");
    assert_eq!((bytes.len(), &bytes[..4]), (60, &[0x0a, 0x0d, 0x0d, 0x0a][..]));
    // Whoever holds its lock is it.
    let lock = switches.0.join("switch/lab/lock");
    let out = Command::new("sh").args(["-c", "for p in /proc/[0-9]*; do [ -e $p/fd ] && ls -l $p/fd 2>/dev/null | grep -q \"$0\" && echo ${p#/proc/}; done"]).arg(&lock).output();
    let pid: i32 = String::from_utf8_lossy(&out.expect("sh").stdout).trim().parse().expect("one process");
    assert!(Command::new("kill").args(["-9", &pid.to_string()]).status().expect("kill").success());
    while switches.done(&["list"]).contains("running") {
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    switches.done(&["start", "lab"]);
    assert_eq!(switches.show("lab")["name"], "lab");
}
