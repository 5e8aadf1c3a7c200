//! Integration services with Debian's unmodified drivers and daemons, by the commands that a user has.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use vireo_tests::{Guest, HostShare, Machine, vireo, vireo_does};
use vireo_vdisk::trial::peer::{Folder, run, text};

const LIMIT: Duration = Duration::from_secs(240);
const DAEMONS: &str = "debian-6.1-cloud-amd64-services";
const PLAIN: &str = "debian-6.1-cloud-amd64";
const MIB: u64 = 1 << 20;

struct Place {
    folder: Folder,
    guest: Guest,
}

impl Place {
    fn new(name: &str, guest: &str) -> Self {
        Self { folder: Folder::new(&format!("services-{name}")), guest: Guest::build(guest) }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// A guest with all daemons, at its shell.
    fn with_daemons(&self, options: &[&str]) -> Machine {
        let root = self.path("root.vhdx");
        vireo_does(&["disk", "convert", text(&self.guest.root), text(&root)]);
        let run = self.guest.run_from_disk("").parameter("memhp_default_state=online");
        let mut command = run.vireo(vireo());
        command.args(["--disk", text(&root)]).args(options);
        let mut machine = Machine::start(command, &self.path("control"), LIMIT).unwrap();
        machine.process.wait_for("/ # ").unwrap();
        machine
    }
}

/// Asks again until it is so.
fn until(what: &str, machine: &Machine, mut so: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(90);
    while !so() {
        assert!(Instant::now() < end, "{}", machine.process.failure(what));
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// Bytes of the host that a machine's memory takes.
fn resident(machine: &Machine) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", machine.process.id())).expect("it runs");
    let line = status.lines().find_map(|l| l.strip_prefix("RssShmem:")).expect("a size");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") * 1024
}

fn tells_of_itself(machine: &Machine) {
    until("a heartbeat and a report", machine, || {
        let info = machine.tells(&["info"]);
        info["heartbeat"] == "ok" && info["guest"].is_object()
    });
    let info = machine.tells(&["info"]);
    let guest = &info["guest"];
    for (field, value) in [
        ("os-name", "Debian GNU/Linux"),
        ("os-release", "12"),
        ("host-name", "vireo.test"),
        ("architecture", "x86_64"),
    ] {
        assert_eq!(guest[field], value, "{guest}");
    }
    assert!(guest["os-build"].as_str().is_some_and(|b| b.starts_with("6.1.0-") && b.ends_with("-amd64")));
    let services = info["services"].as_array().expect("services");
    let versions: Vec<_> = services.iter().map(|s| s["version"].as_str().unwrap_or("none")).collect();
    assert_eq!(versions, ["3.2", "3.0", "4.0", "4.0", "5.0", "1.1", "2.0"], "{info:#}");
    let table = machine.does(&["info"]);
    for line in
        ["heartbeat    ok", "system       Debian GNU/Linux 12", "dynamic memory         ready        2.0"]
    {
        assert!(table.contains(line), "{table}");
    }
}

fn keeps_pairs(machine: &mut Machine) {
    machine.does(&["kvp", "set", "greeting", "Grüße"]);
    assert_eq!(machine.does(&["kvp", "get", "greeting", "--from", "host"]), "Grüße\n");
    // A pool is a file; of what follows a text's zero in it, the daemon makes nothing.
    machine.shell("tr '\\000' '\\n' </var/lib/hyperv/.kvp_pool_0 | grep -x -e greeting -e Grüße | wc -l | grep -x 2").unwrap();
    assert_eq!(machine.does(&["kvp", "get", "OSName"]), "Debian GNU/Linux\n");
    machine.does(&["kvp", "delete", "greeting"]);
    for command in [&["kvp", "delete", "greeting"][..], &["kvp", "get", "greeting", "--from", "host"]] {
        let expected = (1, String::new(), "vireo: there is no key \"greeting\"\n".to_string());
        assert_eq!(machine.vm(command), expected);
    }
}

fn receives_files(machine: &mut Machine, place: &Place) {
    let file = place.path("file");
    let content: Vec<u8> = (0..100_000_u32).flat_map(|n| n.wrapping_mul(0x9E37_79B1).to_le_bytes()).collect();
    fs::write(&file, &content).expect("a file");
    let (code, _, errors) = machine.vm(&["copy", text(&file), "/srv/new/"]);
    assert!(code == 1 && errors.contains("its folder has to be there"), "{errors}");
    machine.does(&["copy", text(&file), "/srv/new/", "--create-path"]);
    let sum = |said: &str| said.split_whitespace().next().map(String::from);
    let here = sum(&String::from_utf8_lossy(&run("sha256sum", "coreutils", &[text(&file)]).stdout));
    assert_eq!(sum(&machine.shell("sha256sum /srv/new/file").unwrap()), here);
    let (code, _, errors) = machine.vm(&["copy", text(&file), "/srv/new/file"]);
    assert!(code == 1 && errors.contains("there is one already"), "{errors}");
    machine.does(&["copy", text(&file), "/srv/new/file", "--overwrite"]);
    assert_eq!(sum(&machine.shell("sha256sum /srv/new/file").unwrap()), here);
}

fn freezes_and_thaws(machine: &mut Machine) {
    machine.does(&["freeze", "--for", "120"]);
    assert!(machine.tells(&["info"])["frozen"].as_f64().is_some_and(|s| s > 60.0));
    machine.shell("touch /frozen & sleep 1; test ! -e /frozen").unwrap();
    machine.does(&["thaw"]);
    machine.shell("wait; test -e /frozen && rm /frozen").unwrap();
    assert!(machine.tells(&["info"])["frozen"].is_null());
    // Nobody thaws it: it is thawed.
    machine.does(&["freeze", "--for", "2"]);
    machine.shell("touch /frozen; rm /frozen").unwrap();
}

fn gives_and_takes_memory(machine: &mut Machine) {
    // Linux is silent about its needs for 45 s, unless it is told otherwise; and the driver comes again.
    machine.shell("rmmod hv_balloon; modprobe hv_balloon pressure_report_delay=1").unwrap();
    let memory = |machine: &Machine, arguments: &[&str]| machine.tells(&[&["memory"], arguments].concat());
    memory(machine, &["512M"]);
    until("what memory the guest needs", machine, || memory(machine, &[])["demand"].is_u64());
    let free = "sed -n 's/^MemAvailable: *\\([0-9]*\\) kB/\\1/p' /proc/meminfo";
    let available =
        |machine: &mut Machine| machine.shell(free).unwrap().trim().parse::<u64>().expect("kB") / 1024;
    machine.shell("dd if=/dev/zero of=/tmp/fill bs=1M count=200 2>/dev/null; rm /tmp/fill").unwrap();
    let (before, used) = (available(machine), resident(machine));
    assert_eq!(memory(machine, &["320M"])["assigned"], 320 * MIB);
    let (after, left) = (available(machine), resident(machine));
    let gone = used.saturating_sub(left) / MIB;
    assert!(before.saturating_sub(after) > 150 && gone > 100, "{before} {after} {gone}");
    assert_eq!(memory(machine, &["512M"])["given-back"], 0);
    assert!(available(machine) > after + 150);
    let more = memory(machine, &["640M"]);
    assert_eq!((&more["assigned"], &more["added"]), (&(640 * MIB).into(), &(128 * MIB).into()));
    assert!(available(machine) > before + 100);
    // What it does not need goes.
    memory(machine, &["auto"]);
    until("less memory", machine, || {
        memory(machine, &[])["assigned"].as_u64().is_some_and(|a| a < 450 * MIB)
    });
    let (code, _, errors) = machine.vm(&["memory", "200M"]);
    assert!(code == 1 && errors.contains("256 to 640 MiB"), "{errors}");
}

fn restarts_and_ends(machine: &mut Machine) {
    machine.does(&["shutdown", "--restart", "--wait"]);
    assert_eq!(machine.tells(&["info"])["resets"], 1);
    machine.process.wait_for("vireo: restarting").unwrap();
    machine.process.wait_for_times("vireo: root on", 2).unwrap();
    until("a report after the restart", machine, || machine.tells(&["info"])["guest"].is_object());
    machine.does(&["shutdown", "--wait"]);
    machine.process.wait_for("vireo: powering off").unwrap();
    assert_eq!(machine.process.wait().unwrap(), 0, "{}", machine.process.failure("exit code"));
}

#[test]
fn debians_drivers_and_daemons_do_what_they_are_asked_for() {
    let _share = HostShare::take(1);
    let place = Place::new("daemons", DAEMONS);
    let mut machine = place.with_daemons(&["--memory-min", "256M", "--memory-max", "640M"]);
    tells_of_itself(&machine);
    keeps_pairs(&mut machine);
    receives_files(&mut machine, &place);
    freezes_and_thaws(&mut machine);
    gives_and_takes_memory(&mut machine);
    restarts_and_ends(&mut machine);
}

/// What a guest cannot do is told in one line, with an exit code of its own.
#[test]
fn what_a_guest_has_no_service_for_is_told() {
    let _share = HostShare::take(1);
    let place = Place::new("plain", PLAIN);
    let start = |options: &[&str]| {
        let mut command = place.guest.run("idle").vireo(vireo());
        command.args(options);
        let mut machine = Machine::start(command, &place.path("control"), LIMIT).unwrap();
        machine.process.wait_for("VIREO-IDLE").unwrap();
        machine
    };
    let mut without = start(&["--enlightenments", "none"]);
    for command in
        [&["shutdown"][..], &["freeze"], &["kvp", "list"], &["memory"], &["copy", "/etc/passwd", "/x"]]
    {
        let (code, _, errors) = without.vm(command);
        assert_eq!((code, errors.lines().count()), (3, 1), "{command:?}: {errors}");
        assert!(errors.contains("--enlightenments none"), "{errors}");
    }
    assert_eq!(without.tells(&["info"])["heartbeat"], "absent");
    without.process.signal(rustix::process::Signal::TERM).unwrap();
    assert_eq!(without.process.wait().unwrap(), 4);
    let mut machine = start(&[]);
    let (code, _, errors) = machine.vm(&["kvp", "list"]);
    assert!(code == 3 && errors.contains("the daemon behind it may not run"), "{errors}");
    let (code, _, errors) = machine.vm(&["memory", "300M"]);
    assert!(code == 1 && errors.contains("--memory-min"), "{errors}");
    machine.does(&["nmi"]);
    machine.process.wait_for("NMI received").unwrap();
    machine.does(&["reset"]);
    machine.process.wait_for_times("VIREO-IDLE", 2).unwrap();
    assert_eq!(machine.tells(&["info"])["resets"], 1);
}
