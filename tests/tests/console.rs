//! The guest's console: terminal and escapes, socket, file.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use vireo_tests::{Guest, HostShare, Process, vireo};

const LIMIT: Duration = Duration::from_secs(120);
const GUEST: &str = "debian-6.1-cloud-amd64";

/// A path of this test's own that does not exist yet.
fn fresh_path(name: &str) -> PathBuf {
    let path = std::env::temp_dir().join(format!("vireo-{}-{name}", std::process::id()));
    _ = std::fs::remove_file(&path);
    path
}

#[test]
fn a_user_types_into_the_shell() {
    let run = Guest::build(GUEST).run("interactive");
    let _share = HostShare::take(1);
    let mut guest = Process::start_on_terminal(run.vireo(vireo()), LIMIT).unwrap();
    guest.wait_for("Welcome to Vireo").unwrap();
    assert_eq!(guest.terminal_is_raw(), Some(true), "keys must go to the guest at once");
    // Ctrl-A Ctrl-A is Ctrl-A for the guest: the start of the line in its shell.
    guest.send(b"cho $((6 * 7)).\x01\x01e\r").unwrap();
    guest.wait_for("\n42.").unwrap();
    guest.send(b"exit\r").unwrap();
    assert_eq!(guest.wait().unwrap(), 0, "{}", guest.failure("exit code"));
    assert_eq!(guest.terminal_is_raw(), Some(false), "the terminal was not put back");
}

#[test]
fn the_power_button_switches_off() {
    let run = Guest::build(GUEST).run("idle");
    let _share = HostShare::take(1);
    let mut guest = Process::start_on_terminal(run.vireo(vireo()), LIMIT).unwrap();
    guest.wait_for("VIREO-IDLE").unwrap();
    guest.send(b"\x01h").unwrap();
    guest.wait_for("press the power button").unwrap();
    guest.send(b"\x01p").unwrap();
    guest.wait_for("VIREO-POWER-BUTTON").unwrap();
    assert_eq!(guest.wait().unwrap(), 0, "{}", guest.failure("exit code"));
}

#[test]
fn the_user_ends_the_machine_at_any_time() {
    let run = Guest::build(GUEST).run("boot").cpus(2);
    let _share = HostShare::take(2);
    for moment in ["", "Linux version", "Run /init"] {
        let mut guest = Process::start_on_terminal(run.vireo(vireo()), LIMIT).unwrap();
        if !moment.is_empty() {
            guest.wait_for(moment).unwrap();
        }
        guest.send(b"\x01").unwrap();
        guest.send(b"x").unwrap();
        assert_eq!(guest.wait().unwrap(), 4, "{}", guest.failure(&format!("quit at {moment:?}")));
        assert_eq!(guest.terminal_is_raw(), Some(false), "the terminal was not put back");
    }
}

#[test]
fn the_console_is_a_file() {
    let path = fresh_path("console");
    let run = Guest::build(GUEST).run("boot");
    let _share = HostShare::take(1);
    let mut command = run.vireo(vireo());
    command.arg("--stats").arg("--serial").arg(format!("file:{}", path.display()));
    let mut guest = Process::start(command, LIMIT).unwrap();
    assert_eq!(guest.wait().unwrap(), 0, "{}", guest.failure("exit code"));
    let console = std::fs::read_to_string(&path).expect("the console file");
    _ = std::fs::remove_file(&path);
    assert!(console.contains("Linux version") && console.contains("VIREO-BOOT-OK"), "{console}");
    assert_eq!(guest.output(), "", "the console must not come out of standard output as well");
    for counter in ["engine ", "time ", "instructions ", "exits ", "TLB fills ", "timer fires "] {
        assert!(
            guest.errors().contains(counter),
            "{}",
            guest.failure(&format!("no {counter}in the statistics"))
        );
    }
}

#[test]
fn the_console_is_a_socket() {
    let path = fresh_path("socket");
    let run = Guest::build(GUEST).run("interactive");
    let _share = HostShare::take(1);
    let mut command = run.vireo(vireo());
    command.arg("--serial").arg(format!("socket:{}", path.display()));
    let mut guest = Process::start(command, LIMIT).unwrap();
    let mut client = connect(&path, &guest);
    let welcome = read_until(&mut client, "Welcome to Vireo", &guest);
    // One client goes, the next one finds the same shell.
    drop(client);
    let mut client = connect(&path, &guest);
    // Whoever types before the listener has noticed the change of clients types into the void.
    read_after_typing(&mut client, b"\r", "# ", &guest);
    client.write_all(b"echo $((6 * 7)).; exit\r").expect("the socket takes input");
    read_until(&mut client, "42.", &guest);
    assert_eq!(guest.wait().unwrap(), 0, "{}\n{welcome}", guest.failure("exit code"));
    assert!(!path.exists(), "the socket was left behind");
}

/// Connects as soon as the socket is there.
fn connect(path: &Path, guest: &Process) -> UnixStream {
    let deadline = Instant::now() + LIMIT;
    loop {
        match UnixStream::connect(path) {
            Ok(client) => {
                client.set_read_timeout(Some(Duration::from_millis(500))).expect("a time-out");
                return client;
            }
            Err(e) => assert!(Instant::now() < deadline, "{}", guest.failure(&format!("no socket: {e}"))),
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn read_until(client: &mut UnixStream, wanted: &str, guest: &Process) -> String {
    read_after_typing(client, b"", wanted, guest)
}

/// Types `keys` each time nothing comes for a while, until the wanted text comes.
fn read_after_typing(client: &mut UnixStream, keys: &[u8], wanted: &str, guest: &Process) -> String {
    let deadline = Instant::now() + LIMIT;
    let (mut text, mut buffer) = (String::new(), [0; 4096]);
    while !text.contains(wanted) {
        assert!(
            Instant::now() < deadline,
            "{}\n{text}",
            guest.failure(&format!("no {wanted:?} from the socket"))
        );
        match client.read(&mut buffer) {
            Ok(0) => panic!("{}\n{text}", guest.failure(&format!("the socket closed before {wanted:?}"))),
            Ok(n) => text.push_str(&String::from_utf8_lossy(&buffer[..n])),
            Err(_) => client.write_all(keys).expect("the socket takes input"),
        }
    }
    text
}
