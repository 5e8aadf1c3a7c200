//! The ends of a way: a guest, and the host or another guest.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use vireo_tap::trial::Namespace;
use vireo_tests::{Guest, Process};

use super::{Load, Setup, Side, Way};
use crate::AnyResult;

/// Far beyond what all figures of one side take.
const LIMIT: Duration = Duration::from_secs(600);
/// Adapters that have to be up before anything is measured.
const SETTLE: &str = "sleep 2";
/// Of the last byte of an address, for each machine; the host's is 254.
const HOST: u32 = 254;

/// A guest, and who is at the other end.
pub struct Ends<'a> {
    network: &'a Namespace,
    machines: Vec<Process>,
    peer: String,
    /// Servers on the host.
    servers: Vec<Child>,
    switch: Option<Switch>,
}

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        for server in &mut self.servers {
            _ = server.kill();
            _ = server.wait();
        }
        self.machines.clear();
    }
}

/// A switch of ours, for as long as this is.
struct Switch {
    vireo: PathBuf,
    folder: PathBuf,
}

impl Switch {
    fn start(setup: &Setup) -> AnyResult<Self> {
        let folder = std::env::temp_dir().join(format!("vireo-bench-switch-{}", std::process::id()));
        let switch = Self { vireo: setup.vireo.clone(), folder };
        switch.run(&["create", "bench", "--mtu", "65000"])?;
        Ok(switch)
    }

    fn run(&self, words: &[&str]) -> AnyResult<()> {
        let out =
            Command::new(&self.vireo).args(["switch", "--folder"]).arg(&self.folder).args(words).output()?;
        match out.status.success() {
            true => Ok(()),
            false => Err(format!("vireo switch {words:?}: {}", String::from_utf8_lossy(&out.stderr)).into()),
        }
    }
}

impl Drop for Switch {
    fn drop(&mut self) {
        _ = self.run(&["delete", "bench"]);
        _ = std::fs::remove_dir_all(&self.folder);
    }
}

fn address(n: u32) -> String {
    format!("10.77.0.{n}")
}

impl<'a> Ends<'a> {
    /// Starts the guests, and the servers at the other end.
    pub fn start(setup: &Setup, side: Side, way: Way, network: &'a Namespace) -> AnyResult<Self> {
        let count = if way == Way::Host { 1 } else { 2 };
        let ours = side != Side::Tcg && way == Way::Guest;
        let switch = ours.then(|| Switch::start(setup)).transpose()?;
        if !ours {
            lay_taps(network, way, count);
        }
        let peer = address(if way == Way::Host { HOST } else { count });
        let mut ends = Self { network, machines: Vec::new(), peer, servers: Vec::new(), switch };
        for n in 1..=count {
            let command = ends.command(setup, side, n);
            let mut machine = network.run(|| Process::start(command, LIMIT))?;
            machine.wait_for("/ # ")?;
            let up =
                format!("ip link set lo up; ip addr add {}/24 dev eth0; ip link set eth0 up", address(n));
            machine.shell(&up)?;
            ends.machines.push(machine);
        }
        ends.serve(way)?;
        Ok(ends)
    }

    fn command(&self, setup: &Setup, side: Side, n: u32) -> Command {
        let run = Guest::at(&setup.guest).run("none").parameter("quiet").cpus(setup.cpus);
        if side == Side::Tcg {
            let mut command = run.qemu();
            command.arg("-netdev").arg(format!("tap,id=n,ifname=tap{n},script=no,downscript=no,vhost=off"));
            command.args(["-device", &format!("virtio-net-pci,netdev=n,mac=52:54:00:77:00:0{n}")]);
            return command;
        }
        let mut command = run.vireo(&setup.vireo);
        let network = match &self.switch {
            Some(switch) => {
                command.env("VIREO_FOLDER", &switch.folder);
                "switch=bench".into()
            }
            None => format!("tap=tap{n}"),
        };
        let model = if side == Side::Virtio { "virtio" } else { "netvsc" };
        command.args(["--engine", "soft", "--nic", &format!("{network},model={model}")]);
        command
    }

    fn serve(&mut self, way: Way) -> AnyResult<()> {
        if way == Way::Guest {
            let last = self.machines.last_mut().expect("guests");
            last.shell("(iperf3 -s >/dev/null 2>&1 &); (qperf >/dev/null 2>&1 &); sleep 1")?;
            return Ok(());
        }
        for words in [&["iperf3", "-s"][..], &["qperf"]] {
            let mut command = Command::new(words[0]);
            command.args(&words[1..]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            let server = self.network.run(|| command.spawn());
            self.servers.push(server.map_err(|e| format!("{}: {e}", words[0]))?);
        }
        Ok(())
    }

    /// Has all adapters take such packets.
    pub fn set_mtu(&mut self, mtu: u32) -> AnyResult<()> {
        if self.switch.is_none() {
            let names = ["tap1", "tap2", "bridge"];
            for name in &names[..if self.machines.len() == 1 { 1 } else { 3 }] {
                self.network.ip(&format!("link set {name} mtu {mtu}"));
            }
        }
        for machine in &mut self.machines {
            machine.shell(&format!("ip link set eth0 mtu {mtu}; {SETTLE}"))?;
        }
        // Who is where is known, and paths are.
        self.first(&format!("ping -c 2 {}", self.peer))?;
        Ok(())
    }

    /// Has the first guest's shell do something.
    pub fn first(&mut self, command: &str) -> AnyResult<String> {
        Ok(self.machines[0].shell(command)?)
    }

    /// Measures one figure.
    pub fn measure(&mut self, load: Load, seconds: u32) -> AnyResult<f64> {
        let command = load.command(&self.peer, seconds);
        load.figure(&self.first(&command)?)
    }
}

/// A TAP device for each guest: with the host's address, or on a bridge.
fn lay_taps(network: &Namespace, way: Way, count: u32) {
    network.ip("link set lo up");
    for n in 1..=count {
        network.ip(&format!("tuntap add tap{n} mode tap"));
        network.ip(&format!("link set tap{n} up"));
    }
    if way == Way::Host {
        return network.ip(&format!("addr add {}/24 dev tap1", address(HOST)));
    }
    network.ip("link add bridge type bridge");
    for n in 1..=count {
        network.ip(&format!("link set tap{n} master bridge"));
    }
    network.ip("link set bridge up");
}
