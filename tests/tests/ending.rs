//! A machine can always be ended: whatever its console's reader does, and by a signal as well as by its user.

use std::fs::File;
use std::io::{PipeReader, Read, pipe};
use std::process::Command;
use std::time::Duration;

use rustix::io::ioctl_fionread;
use rustix::pipe::fcntl_setpipe_size;
use rustix::process::Signal;
use vireo_tests::{Guest, GuestRun, HostShare, Process, vireo};

const LIMIT: Duration = Duration::from_secs(180);
const GUEST: &str = "debian-6.1-cloud-amd64";
const ENDED_BY_THE_USER: i32 = 4;
/// The least that a pipe holds.
const PIPE: usize = 4096;
/// More than the console keeps for a reader: 64 KiB, with what a pipe holds.
const MORE_THAN_WAITS: u64 = 70 * 1024;

/// A kernel that says much more than the console keeps.
fn chatty(mode: &str) -> GuestRun {
    Guest::build(GUEST).run(mode).parameter("initcall_debug").parameter("ignore_loglevel")
}

/// A small pipe, and the command with it as its standard output.
fn into_pipe(run: &GuestRun) -> (PipeReader, Command) {
    let (reader, writer) = pipe().expect("a pipe");
    fcntl_setpipe_size(&writer, PIPE).expect("a small pipe");
    let mut command = run.vireo(vireo());
    command.stdout(writer);
    (reader, command)
}

/// Waits until the pipe has no room for a write of usual size: small writes go into a pipe in whole or not at all.
fn wait_until_full(reader: &PipeReader, guest: &Process) {
    while ioctl_fionread(reader).expect("the bytes in a pipe") < PIPE as u64 - 512 {
        assert!(guest.elapsed() < LIMIT, "{}", guest.failure("the pipe did not fill"));
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_guest_whose_output_nobody_reads_runs_to_its_end() {
    let (reader, mut command) = into_pipe(&chatty("boot"));
    command.stderr(std::process::Stdio::piped());
    let _share = HostShare::take(1);
    let mut guest = Process::start_with_outputs(command, LIMIT).unwrap();
    assert_eq!(guest.wait().unwrap(), 0, "{}", guest.failure("exit code"));
    let errors = guest.errors();
    let lost =
        errors.strip_prefix("vireo: ").and_then(|e| e.split_once(" bytes of console output were lost"));
    let lost: u64 = lost.and_then(|(n, _)| n.parse().ok()).expect("the number of bytes lost");
    assert!(lost > MORE_THAN_WAITS, "{}", guest.failure("the guest said too little to prove anything"));
    drop(reader);
}

#[test]
fn user_and_signal_end_a_machine_whose_output_nobody_reads() {
    let run = chatty("idle");
    let _share = HostShare::take(1);
    for by_signal in [false, true] {
        let (reader, mut command) = into_pipe(&run);
        // Nor does anybody read what vireo itself has to say.
        let (unread, errors) = pipe().expect("a pipe");
        fcntl_setpipe_size(&errors, PIPE).expect("a small pipe");
        std::io::Write::write_all(&mut &errors, &[b'.'; PIPE]).expect("room in the pipe");
        command.stderr(errors);
        let mut guest = Process::start_with_outputs(command, LIMIT).unwrap();
        wait_until_full(&reader, &guest);
        if by_signal {
            guest.signal(Signal::TERM).unwrap();
        } else {
            guest.send(b"\x01h\x01x").unwrap();
        }
        assert_eq!(guest.wait().unwrap(), ENDED_BY_THE_USER, "by a signal: {by_signal}");
        drop((reader, unread));
    }
}

#[test]
fn a_slow_reader_gets_every_byte() {
    let (mut reader, mut command) = into_pipe(&chatty("dmesg"));
    command.stderr(std::process::Stdio::piped());
    let _share = HostShare::take(1);
    let mut guest = Process::start_with_outputs(command, LIMIT).unwrap();
    let (mut console, mut bytes) = (Vec::new(), [0; 512]);
    // Slower than the guest prints its log, so that the guest has to wait, and its end too.
    while let n @ 1.. = reader.read(&mut bytes).expect("the pipe") {
        console.extend_from_slice(&bytes[..n]);
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(guest.wait().unwrap(), 0, "{}", guest.failure("exit code"));
    assert_eq!(guest.errors(), "");
    let console = String::from_utf8_lossy(&console).replace('\r', "");
    assert!(!console.contains("[vireo:"), "something was dropped");
    let (boot, log) = console.split_once("VIREO-DMESG-BEGIN\n").expect("the begin of the log");
    let (log, _) = log.split_once("VIREO-DMESG-END\n").expect("the end of the log");
    // The guest says everything twice: when it happens, and in its log.
    let printed: std::collections::HashSet<&str> = boot.lines().collect();
    let missing: Vec<_> = log.lines().filter(|l| l.starts_with('[') && !printed.contains(l)).collect();
    assert!(log.len() as u64 > MORE_THAN_WAITS, "a log of {} bytes proves nothing", log.len());
    assert!(missing.is_empty(), "{} lines of the log are not on the console: {missing:#?}", missing.len());
}

#[test]
fn a_full_disk_is_told_at_the_end() {
    let mut command = Guest::build(GUEST).run("boot").vireo(vireo());
    command.args(["--serial", "file:/dev/full"]);
    let _share = HostShare::take(1);
    let mut guest = Process::start(command, LIMIT).unwrap();
    assert_eq!(guest.wait().unwrap(), 0, "{}", guest.failure("exit code"));
    let told = guest.errors().contains(" bytes of console output could not be written: ");
    assert!(told, "{}", guest.failure("nothing about the full disk"));
}

#[test]
fn the_console_is_a_fifo_whose_reader_comes_later() {
    let path = std::env::temp_dir().join(format!("vireo-{}-fifo", std::process::id()));
    _ = std::fs::remove_file(&path);
    let made = Command::new("mkfifo").arg(&path).status().expect("mkfifo runs");
    assert!(made.success(), "no FIFO at {}", path.display());
    let mut command = Guest::build(GUEST).run("boot").vireo(vireo());
    command.arg("--stats").arg("--serial").arg(format!("file:{}", path.display()));
    let _share = HostShare::take(1);
    let mut guest = Process::start(command, LIMIT).unwrap();
    // Its writer is there, or comes: opening waits for it.
    let late = path.clone();
    let reader = std::thread::spawn(move || {
        let mut console = Vec::new();
        File::open(late).and_then(|mut f| f.read_to_end(&mut console)).map(|_| console)
    });
    assert_eq!(guest.wait().unwrap(), 0, "{}", guest.failure("exit code"));
    let console = reader.join().expect("the reader").expect("the FIFO");
    _ = std::fs::remove_file(&path);
    let console = String::from_utf8_lossy(&console);
    assert!(console.contains("Linux version") && console.contains("VIREO-BOOT-OK"), "{console}");
}

#[test]
fn signals_end_the_machine_and_put_the_terminal_back() {
    let run = Guest::build(GUEST).run("idle").vireo(vireo());
    let _share = HostShare::take(1);
    for signal in [Signal::TERM, Signal::HUP, Signal::INT] {
        // This test may itself be run with some of them ignored (`nohup make test`, `make test &`), and its children
        // with it.
        let mut command = Command::new("env");
        command.arg("--default-signal=TERM,HUP,INT").arg(run.get_program()).args(run.get_args());
        let mut guest = Process::start_on_terminal(command, LIMIT).unwrap();
        guest.wait_for("Linux version").unwrap();
        assert_eq!(guest.terminal_is_raw(), Some(true));
        guest.signal(signal).unwrap();
        assert_eq!(guest.wait().unwrap(), ENDED_BY_THE_USER, "{}", guest.failure(&format!("{signal:?}")));
        assert_eq!(guest.terminal_is_raw(), Some(false), "the terminal was not put back after {signal:?}");
    }
}

#[test]
fn a_signal_that_is_to_be_ignored_is_ignored() {
    let run = Guest::build(GUEST).run("boot").vireo(vireo());
    let mut command = Command::new("sh");
    command.args(["-c", "trap '' HUP; exec \"$@\"", "sh"]).arg(run.get_program()).args(run.get_args());
    let _share = HostShare::take(1);
    let mut guest = Process::start(command, LIMIT).unwrap();
    guest.wait_for("Linux version").unwrap();
    guest.signal(Signal::HUP).unwrap();
    guest.wait_for("VIREO-BOOT-OK").unwrap();
    assert_eq!(guest.wait().unwrap(), 0, "{}", guest.failure("exit code"));
}

#[test]
fn two_quick_wishes_for_a_reset_are_one() {
    let mut command = Guest::build(GUEST).run("idle").vireo(vireo());
    command.arg("--stats");
    let _share = HostShare::take(1);
    let mut guest = Process::start(command, LIMIT).unwrap();
    guest.wait_for("Linux version").unwrap();
    guest.send(b"\x01r\x01r").unwrap();
    guest.wait_for_times("Linux version", 2).unwrap();
    guest.send(b"\x01x").unwrap();
    assert_eq!(guest.wait().unwrap(), ENDED_BY_THE_USER, "{}", guest.failure("exit code"));
    let resets = guest.errors().lines().find_map(|l| l.strip_prefix("resets")?.trim().parse().ok());
    assert_eq!(resets, Some(1), "{}", guest.failure("resets"));
}
