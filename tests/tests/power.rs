//! How machines end and start again, as seen by their user.

use std::time::Duration;

use vireo_tests::{Guest, GuestRun, HostShare, Process, vireo};

const LIMIT: Duration = Duration::from_secs(120);
const GUEST: &str = "debian-6.1-cloud-amd64";

/// Starts a run with further options of `vireo run`.
fn start(run: &GuestRun, options: &[&str]) -> Process {
    let mut command = run.vireo(vireo());
    command.args(options);
    Process::start(command, LIMIT).unwrap()
}

#[test]
fn a_reset_starts_the_guest_again() {
    let run = Guest::build(GUEST).run("reboot");
    let _share = HostShare::take(1);
    let mut guest = start(&run, &["--stats"]);
    guest.wait_for_times("VIREO-REBOOT", 2).unwrap();
    guest.send(b"\x01x").unwrap();
    assert_eq!(guest.wait().unwrap(), 4, "{}", guest.failure("exit code"));
    // The second boot starts as the first did, with its memory and devices reset.
    assert!(guest.output().matches("Linux version").count() >= 2, "{}", guest.failure("one boot only"));
    assert!(guest.errors().contains("resets"), "{}", guest.failure("no resets in the statistics"));
}

#[test]
fn a_reset_ends_the_machine_when_asked_to() {
    let run = Guest::build(GUEST).run("reboot");
    let _share = HostShare::take(1);
    let mut guest = start(&run, &["--no-reboot"]);
    // The end of standard input is not the end of the machine.
    guest.close_input();
    guest.wait_for("VIREO-REBOOT").unwrap();
    assert_eq!(guest.wait().unwrap(), 6, "{}", guest.failure("exit code"));
}

#[test]
fn a_panic_resets() {
    let run = Guest::build(GUEST).run("panic");
    let _share = HostShare::take(1);
    let mut guest = start(&run, &["--no-reboot"]);
    guest.wait_for("VIREO-PANIC").unwrap();
    assert_eq!(guest.wait().unwrap(), 6, "{}", guest.failure("exit code"));
    assert!(guest.output().contains("Kernel panic"), "{}", guest.failure("no panic"));
}

#[test]
fn a_triple_fault_is_reported() {
    let run = Guest::build(GUEST).run("reboot").parameter("reboot=triple");
    let _share = HostShare::take(1);
    let mut guest = start(&run, &[]);
    guest.wait_for("VIREO-REBOOT").unwrap();
    assert_eq!(guest.wait().unwrap(), 3, "{}", guest.failure("exit code"));
    assert!(guest.errors().contains("triple fault"), "{}", guest.failure("no word about it"));
}

#[test]
fn all_processors_are_reset() {
    let run = Guest::build(GUEST).run("reboot").cpus(4);
    let _share = HostShare::take(4);
    let mut guest = start(&run, &[]);
    guest.wait_for_times("VIREO-REBOOT", 2).unwrap();
    guest.send(b"\x01x").unwrap();
    assert_eq!(guest.wait().unwrap(), 4, "{}", guest.failure("exit code"));
    let brought_up = guest.output().matches("Brought up 1 node, 4 CPUs").count();
    assert!(brought_up >= 2, "{}", guest.failure("not all processors came back"));
}
