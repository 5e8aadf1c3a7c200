//! A host and a guest that are network namespaces of the test's own: each is a thread, and so are all programs that it starts.

use std::io::Write;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};

use vireo_frame::Link;
use vireo_nat::{Nat, NatConfig};

use crate::tap::{Plugged, Tap};

/// What the guest's thread is given to do.
type Job = Box<dyn FnOnce() + Send>;

/// Both, with a network between them.
pub struct World {
    pub nat: Arc<Nat>,
    guest: Sender<Job>,
    _plugged: Plugged,
    files: std::path::PathBuf,
}

/// Why the test cannot be made here.
fn obstacle() -> Option<&'static str> {
    // SAFETY: no arguments.
    if unsafe { libc::geteuid() } != 0 {
        return Some("it needs root, for namespaces and TAP devices");
    }
    let missing = |program: &&str| Command::new(program).arg("-V").output().is_err();
    if !std::path::Path::new("/dev/net/tun").exists() {
        return Some("the kernel has no TAP devices");
    }
    ["ip"].iter().any(missing).then_some("iproute2 is not installed")
}

/// The calling thread has a network, and files, of its own from now on.
fn unshare(flags: i32) {
    // SAFETY: a number; what it changes is of this thread alone.
    assert_eq!(unsafe { libc::unshare(flags) }, 0, "{}", std::io::Error::last_os_error());
}

/// The calling thread has a network of its own from now on, with a loopback that works.
pub fn unshare_network() {
    unshare(libc::CLONE_NEWNET);
    sh("ip link set lo up").unwrap();
}

/// Runs a program of the calling thread's namespaces; what it says.
pub fn sh(script: &str) -> Result<String, String> {
    let mut child = Command::new("timeout")
        .args(["60", "sh", "-ec", script])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("timeout of coreutils");
    let output = {
        _ = child.stdin.take();
        child.wait_with_output().expect("it was started")
    };
    let say = String::from_utf8_lossy(&output.stdout).into_owned();
    match output.status.success() {
        true => Ok(say),
        false => {
            Err(format!("{script}: {}\n{say}{}", output.status, String::from_utf8_lossy(&output.stderr)))
        }
    }
}

/// Makes a program of the guest, or `None` with a loud word where that cannot be.
pub fn world(name: &str, config: NatConfig, offloads: bool, loss: u32) -> Option<World> {
    if let Some(why) = obstacle() {
        eprintln!("SKIPPED {name}: {why}");
        return None;
    }
    let files = std::env::temp_dir().join(format!("vireo-nat-{name}-{}", std::process::id()));
    std::fs::create_dir_all(&files).unwrap();
    unshare(libc::CLONE_NEWNET | libc::CLONE_NEWNS);
    sh("mount --make-rprivate /; ip link set lo up; sysctl -qw net.ipv4.ping_group_range='0 2147483647'")
        .unwrap();
    let resolv = files.join("resolv.conf");
    std::fs::File::create(&resolv).unwrap().write_all(b"nameserver 127.0.0.1\n").unwrap();
    sh(&format!("mount --bind {} \"$(readlink -f /etc/resolv.conf)\"", resolv.display())).unwrap();
    let mtu = config.mtu;
    let nat = Nat::start(config).unwrap();
    let (jobs, todo) = channel::<Job>();
    let (opened, tap) = channel();
    std::thread::spawn(move || {
        unshare(libc::CLONE_NEWNET);
        opened.send(Arc::new(Tap::open(offloads, loss).unwrap())).unwrap();
        todo.into_iter().for_each(|job| job());
    });
    let tap: Arc<Tap> = tap.recv().unwrap();
    nat.set_adapter_ability(tap.ability());
    nat.plug(Some(tap.clone()));
    let (reads, link) = (tap.clone(), nat.clone());
    let thread = std::thread::spawn(move || reads.run(&*link));
    let world = World { nat, guest: jobs, _plugged: Plugged(tap, Some(thread)), files };
    world.guest(&format!("ip link set lo up; ip link set tap0 mtu {mtu} up")).unwrap();
    Some(world)
}

impl World {
    /// Runs a program in the guest.
    pub fn guest(&self, script: &str) -> Result<String, String> {
        let (script, (tell, told)) = (script.to_string(), channel());
        let job = move || tell.send(sh(&script)).unwrap();
        self.guest.send(Box::new(job)).unwrap();
        told.recv().unwrap()
    }

    /// Gives the guest an address without asking.
    pub fn configure(&self) {
        self.guest(
            "ip addr add 10.0.2.15/24 dev tap0; ip route add default via 10.0.2.2; \
             for n in 1 2 3 4 5 6 7 8 9 10; do ip -6 addr show dev tap0 tentative | grep -q . || break; sleep 0.3; done",
        )
        .unwrap();
    }

    pub fn file(&self, name: &str) -> String {
        self.files.join(name).display().to_string()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.nat.plug(None);
        _ = std::fs::remove_dir_all(&self.files);
    }
}
