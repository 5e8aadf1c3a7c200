//! Screen, keyboard and mouse of real guests: by `vireo vm`, and by a VNC client of others.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use vireo_tests::{Guest, HostShare, Machine, Picture, Process, source_root, vireo, vireo_does, vireo_says};

const LIMIT: Duration = Duration::from_secs(240);

/// A folder of this test's own, removed at its end.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("vireo-screen-{}-{name}", std::process::id()));
        _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn path(&self, name: &str) -> String {
        self.0.join(name).to_str().expect("UTF-8").to_owned()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        _ = std::fs::remove_dir_all(&self.0);
    }
}

fn shoot(folder: &Folder, socket: &str) -> Picture {
    let file = folder.path("shot.png");
    vireo_does(&["vm", "screenshot", "--control", socket, &file]);
    Picture::read(Path::new(&file))
}

/// Waits until the guest's banner is on the screen.
fn wait_for_banner(machine: &mut Machine, folder: &Folder, socket: &str) -> Picture {
    let deadline = Instant::now() + LIMIT;
    // The socket is made when the machine is.
    machine.process.wait_for("Linux version").unwrap();
    loop {
        let picture = shoot(folder, socket);
        if picture.count() == 1 {
            return picture;
        }
        assert!(Instant::now() < deadline, "{}", machine.process.failure("no banner on the screen"));
        std::thread::sleep(Duration::from_millis(200));
    }
}

fn start(guest: &str, cpus: u32, folder: &Folder, further: &[&str], words: &[&str]) -> (Machine, String) {
    let run = Guest::build(guest).run("interactive").cpus(cpus).parameter("console=tty0");
    let run = words.iter().fold(run, |run, word| run.parameter(word));
    let mut command = run.vireo(vireo());
    command.args(["--engine", "soft"]).args(further);
    let socket = folder.path("control");
    (Machine::start(command, Path::new(&socket), LIMIT).unwrap(), socket)
}

#[test]
fn text_is_seen_and_typed_with_each_kernel() {
    let _share = HostShare::take(2);
    for (guest, cpus) in
        [("debian-5.10-cloud-amd64", 1), ("debian-6.1-cloud-amd64", 2), ("debian-6.12-cloud-amd64", 1)]
    {
        let folder = Folder::new(guest);
        // Its own size, unless it is told another: here by the kernel's command line.
        let words: &[&str] = if cpus == 2 { &["video=hyperv_fb:800x600"] } else { &[] };
        let (mut machine, socket) = start(guest, cpus, &folder, &["--screen", "--no-reboot"], words);
        let picture = wait_for_banner(&mut machine, &folder, &socket);
        let size = if cpus == 2 { (800, 600) } else { (1024, 768) };
        assert_eq!(picture.size(), size, "{guest}");
        let text = r#"echo "~!@#\$%^&*()_+{}|:<>? Vireo-$((6*7))" >/dev/ttyS0; clear; echo Vireo Vireo\n"#;
        vireo_does(&["vm", "type", "--control", &socket, &text.replace("\\$", "\\\\$")]);
        machine.process.wait_for("~!@#$%^&*()_+{}|:<>? Vireo-42").unwrap();
        let deadline = Instant::now() + LIMIT;
        while shoot(&folder, &socket).count() != 2 {
            assert!(Instant::now() < deadline, "{guest}: what was written is not on the screen");
        }
        vireo_does(&["vm", "type", "--control", &socket, "--key", "ctrl-alt-del"]);
        assert_eq!(machine.process.wait().unwrap(), 6, "{guest}: it did not reset");
    }
}

/// A port that is free, as far as can be known.
fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a port").port()
}

#[test]
fn a_vnc_client_of_others_sees_types_and_points() {
    let _share = HostShare::take(2);
    let folder = Folder::new("vnc");
    let password = folder.path("password");
    std::fs::write(&password, "open up\n").unwrap();
    let port = free_port().to_string();
    let vnc = format!("127.0.0.1:{port},password-file={password}");
    let (mut machine, socket) = start("debian-6.1-cloud-amd64", 1, &folder, &["--vnc", &vnc], &[]);
    wait_for_banner(&mut machine, &folder, &socket);
    let seen = folder.path("seen.png");
    let client = |password: &str, x: &str, lines: &[&str]| {
        let mut command = Command::new("perl");
        command.arg(source_root().join("tests/vnc/client.pl")).args([
            "127.0.0.1",
            &port,
            password,
            x,
            "0",
            &seen,
        ]);
        command.args(lines);
        let mut process = Process::start(command, LIMIT).unwrap();
        (process.wait().unwrap(), process.output(), process.errors())
    };
    let watch = "hexdump -v -n 24 -e '24/1 \"%02x\"' /dev/input/event0 >/dev/ttyS0 &";
    let typed = ["clear", watch, "echo Vireo-$((6*7)) >/dev/ttyS0"];
    let (code, output, errors) = client("open up", "0", &typed);
    assert_eq!((code, output.as_str()), (0, "Vireo 1024x768\n"), "{errors}");
    machine.process.wait_for("Vireo-42").unwrap();
    // By now the guest watches the pointer.
    assert_eq!(client("open up", "1023", &[]).0, 0);
    // The first event is of kind 3 (absolute), axis 0, at the right end.
    machine.process.wait_for("03000000ff7f0000").unwrap();
    assert_eq!(Picture::read(Path::new(&seen)).count(), 1, "the client sees what it typed");
    // The machine goes on with the same screen after a reset.
    vireo_does(&["vm", "type", "--control", &socket, "clear; reboot -f\\n"]);
    machine.process.wait_for_times("Linux version", 2).unwrap();
    wait_for_banner(&mut machine, &folder, &socket);
    let (code, _, errors) = client("open it", "0", &[]);
    assert!(
        code != 0 && (errors.contains("login failed") || errors.contains("wrong password")),
        "{code} {errors}"
    );
    vireo_does(&["vm", "type", "--control", &socket, "exit\\n"]);
    assert_eq!(machine.process.wait().unwrap(), 0);
}

#[test]
fn what_cannot_be_is_refused() {
    let folder = Folder::new("refused");
    let path = folder.path("password");
    std::fs::write(&path, "far too long for VNC\n").unwrap();
    let kernel = Guest::build("debian-6.1-cloud-amd64").kernel;
    let run = |further: &[&str]| {
        let (code, _, errors) =
            vireo_says(&[&["run", "--kernel", kernel.to_str().expect("UTF-8")], further].concat());
        assert!(errors.lines().count() >= 1 && code != 0);
        (code, errors)
    };
    let (code, errors) = run(&["--vnc", &format!("unix:{}/s,password-file={path}", folder.0.display())]);
    assert_eq!((code, errors.contains("at most 8 characters")), (1, true), "{errors}");
    let (code, errors) = run(&["--screen", "--enlightenments", "none"]);
    assert_eq!((code, errors.contains("not --enlightenments none")), (1, true), "{errors}");
    assert_eq!((run(&["--screen=0x9"]).0, run(&["--vnc", "5900"]).0), (2, 2));
}

#[test]
#[ignore = "half a minute of systemd with a guest of 115 MiB: make splash"]
fn the_picture_of_a_graphical_boot_is_seen() {
    let _share = HostShare::take(1);
    let folder = Folder::new("splash");
    let run = Guest::build("debian-6.1-cloud-amd64-splash").run("none").memory_mib(1024);
    let run = run.parameter("console=tty0 console=ttyS0 quiet splash plymouth.ignore-serial-consoles");
    let mut command = run.vireo(vireo());
    command.args(["--engine", "soft", "--screen"]);
    let socket = folder.path("control");
    let mut machine = Machine::start(command, Path::new(&socket), LIMIT).unwrap();
    let deadline = Instant::now() + LIMIT;
    while !Path::new(&socket).exists() {
        assert!(Instant::now() < deadline, "{}", machine.process.failure("no control socket"));
        std::thread::sleep(Duration::from_millis(50));
    }
    while shoot(&folder, &socket).levels() < 50 {
        std::thread::sleep(Duration::from_millis(100));
    }
    let kept = source_root().join("target/splash.png");
    std::fs::copy(folder.path("shot.png"), &kept).expect("a copy");
    println!("{}", kept.display());
    assert_eq!(machine.process.wait().unwrap(), 0);
}
