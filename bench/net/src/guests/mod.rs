//! Guests: what iperf3 and qperf say of the way from one to the host, and from one to another, in ours and in QEMU's software
//! emulation. Everything is in a network of its own.

mod machine;
mod tools;

use std::path::PathBuf;

use vireo_tap::trial::Namespace;

use crate::AnyResult;
use crate::table::Table;
use machine::Ends;
use tools::Load;

/// Longest packets, in bytes, that are measured.
const MTUS: [u32; 3] = [1500, 9000, 65_000];
/// What has nobody segment or sum for the guest.
const OFFLOADS_OFF: &str = "ethtool -K eth0 tso off gso off gro off tx off rx off sg off >/dev/null 2>&1";

/// Whose machine, with which adapter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Ours, synthetic.
    Netvsc,
    /// Ours, of virtio.
    Virtio,
    /// QEMU's software emulation, of virtio.
    Tcg,
}

impl Side {
    const ALL: [Self; 3] = [Self::Netvsc, Self::Virtio, Self::Tcg];

    /// Its name, for people.
    pub fn name(self) -> &'static str {
        match self {
            Self::Netvsc => "netvsc",
            Self::Virtio => "virtio",
            Self::Tcg => "TCG",
        }
    }
}

/// What the other end is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// The host, behind a TAP device.
    Host,
    /// Another guest: behind our switch, or behind the kernel's bridge.
    Guest,
}

impl Way {
    /// Its name, for people.
    pub fn name(self) -> &'static str {
        match self {
            Self::Host => "to host",
            Self::Guest => "to guest",
        }
    }
}

/// What guests are made of.
pub struct Setup {
    /// The `vireo` binary.
    pub vireo: PathBuf,
    /// A guest with iperf3 and qperf.
    pub guest: PathBuf,
    /// Each one's processors.
    pub cpus: u32,
    /// How long each figure is measured.
    pub seconds: u32,
}

/// The name of a line about bytes.
fn with_mtu(mtu: u32, load: Load) -> String {
    format!("MTU {mtu}, {}", load.name())
}

/// Measures one way with all sides, one after the other.
pub fn measure(setup: &Setup, way: Way, table: &mut Table) -> AnyResult<()> {
    for side in Side::ALL {
        // A new one each time: nothing is left of who was there before.
        let Some(network) = Namespace::new() else { return Ok(()) };
        eprintln!("measuring: {} {}", side.name(), way.name());
        let mut ends = Ends::start(setup, side, way, &network)?;
        for mtu in MTUS {
            ends.set_mtu(mtu)?;
            for load in Load::ALL {
                let rate = ends.measure(load, setup.seconds)?;
                table.add_guest(way, side.name(), &with_mtu(mtu, load), rate);
            }
        }
        ends.set_mtu(MTUS[0])?;
        for load in [Load::TcpTurns, Load::UdpTurns] {
            let rate = ends.measure(load, setup.seconds)?;
            table.add_guest(way, side.name(), &load.name(), rate);
        }
        if side == Side::Netvsc && way == Way::Host {
            ends.first(OFFLOADS_OFF)?;
            let rate = ends.measure(Load::Send, setup.seconds)?;
            table.add_guest(way, "offloads off", &with_mtu(MTUS[0], Load::Send), rate);
        }
    }
    Ok(())
}
