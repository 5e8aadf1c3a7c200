//! The network adapters of a machine: plugged into their networks, put where the guest finds them, changed while it runs.

mod metered;
mod spec;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use uuid::Uuid;
use vireo_board::Attach;
use vireo_frame::Mac;
use vireo_nat::{Nat, NatConfig, NatError};
use vireo_netvsp::{Provider, Settings};
use vireo_port::{ConnectError, PortRequest, SwitchPort};
use vireo_switchd::Folders;
use vireo_tap::{Tap, TapError};
use vireo_virtio::Net;
use vireo_vmbus::VmBus;

use crate::pci;
use crate::vmbus::{Bus, Plug, no_room};
use metered::Metered;
pub use spec::{Network, NicModel, NicSpec};

/// Names of the adapters: by them guests know theirs again, so they never change.
const ADAPTER_NAMES: Uuid = uuid::uuid!("6b0e1f5a-8d0c-4f6e-9d57-3f1c5a7e2c00");
/// Adapters of a machine, at most: as Hyper-V has it.
const NICS_MAX: usize = 8;

/// What a guest has to let go of an adapter.
const GOODBYE: Duration = Duration::from_secs(3);

/// An adapter could not be added or removed; each in one line that says what to do.
#[derive(Debug, thiserror::Error)]
pub enum NicsError {
    /// Its TAP device.
    #[error(transparent)]
    Tap(#[from] TapError),
    /// Its private network.
    #[error(transparent)]
    Nat(#[from] NatError),
    /// Its port of a switch.
    #[error(transparent)]
    Port(#[from] ConnectError),
    /// Nobody knows where switches are.
    #[error("{0}")]
    Folder(String),
    /// Synthetic adapters are on VMBus.
    #[error(
        "an adapter with model=netvsc needs a guest with the interface of Hyper-V, so not --enlightenments none"
    )]
    NoVmBus,
    /// There are too many.
    #[error("a machine has {NICS_MAX} network adapters at most")]
    Full,
    /// VMBus has no number left for it.
    #[error("VMBus has no room for a further adapter")]
    NoRoom,
    /// It cannot come or go while the guest runs.
    #[error(
        "{0}: adapters with model=virtio and model=e1000 stay as they are: stop the machine to change them"
    )]
    Fixed(String),
    /// There is none of that name.
    #[error("there is no network adapter {0}: `vireo vm nic list` says which there are")]
    Unknown(String),
}

/// An adapter, as it is now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct NicStatus {
    /// Its name.
    pub name: String,
    /// What it is plugged into.
    pub network: String,
    /// What it is for its guest.
    pub model: NicModel,
    /// Its address, which the guest may have changed.
    pub address: String,
    /// The longest packet behind an Ethernet header, in bytes.
    pub mtu: u32,
    /// What it is plugged into is there, and up.
    pub carrier: bool,
    /// Frames from the guest.
    pub sent: u64,
    /// Bytes of them.
    pub sent_bytes: u64,
    /// Frames for the guest.
    pub received: u64,
    /// Bytes of them.
    pub received_bytes: u64,
    /// Frames that were not delivered, where that is known.
    pub lost: u64,
}

/// What the guest has of an adapter.
enum Device {
    /// On the bus, once there is one: the device, and its number.
    Netvsc(Option<(Arc<Provider>, u64)>),
    Virtio(Arc<Net>),
    E1000,
}

impl Device {
    fn model(&self) -> NicModel {
        match self {
            Self::Netvsc(_) => NicModel::Netvsc,
            Self::Virtio(_) => NicModel::Virtio,
            Self::E1000 => NicModel::E1000,
        }
    }
}

struct Entry {
    spec: NicSpec,
    link: Arc<Metered>,
    address: Mac,
    device: Device,
}

/// The adapters of a machine.
pub struct Nics {
    bus: Bus,
    vmbus: bool,
    vcpus: u32,
    /// Adapters that were added while the machine ran.
    added: AtomicU32,
    entries: Mutex<BTreeMap<u8, Entry>>,
}

impl Nics {
    /// Opens the networks of adapters.
    ///
    /// # Errors
    /// One cannot be opened, or has no place.
    pub fn open(specs: &[NicSpec], bus: &Bus, vmbus: bool, vcpus: u32) -> Result<Arc<Self>, NicsError> {
        if specs.len() > NICS_MAX {
            return Err(NicsError::Full);
        }
        let entries = (0..).zip(specs).map(|(n, spec)| Ok((n, Entry::open(spec, n, vmbus, vcpus)?)));
        let entries = Mutex::new(entries.collect::<Result<_, NicsError>>()?);
        Ok(Arc::new(Self { bus: bus.clone(), vmbus, vcpus, added: AtomicU32::new(0), entries }))
    }

    /// How those on VMBus come onto the bus of the board.
    pub fn plugs(self: &Arc<Self>) -> Vec<Plug> {
        let plug = |number| {
            let nics = Arc::clone(self);
            Box::new(move |bus: &Arc<VmBus>| {
                let mut entries = nics.entries();
                let entry = entries.get_mut(&number).ok_or_else(|| no_room("an adapter that is gone"))?;
                nics.attach_netvsc(bus, number, 0, entry).map_err(|_| no_room("a network adapter"))
            }) as Plug
        };
        let entries = self.entries();
        entries.iter().filter(|(_, e)| matches!(e.device, Device::Netvsc(_))).map(|(n, _)| plug(*n)).collect()
    }

    /// How the others come onto the board.
    pub fn attach(&self) -> Vec<Attach> {
        let entries = self.entries();
        let attach = |(number, entry): (&u8, &Entry)| {
            let (place, name) = (pci::NICS.start + number, format!("nic{number}"));
            match &entry.device {
                Device::Netvsc(_) => None,
                Device::Virtio(net) => Some(pci::attach(place, &name, Arc::clone(net) as _)),
                Device::E1000 => Some(attach_e1000(place, name, entry)),
            }
        };
        entries.iter().filter_map(attach).collect()
    }

    /// `generation`: 0 for what the machine starts with, so that guests know it again. One that comes later is another one than
    /// that which had its place before, and which the guest may not have forgotten yet.
    fn attach_netvsc(
        &self,
        bus: &Arc<VmBus>,
        number: u8,
        generation: u32,
        entry: &mut Entry,
    ) -> Result<(), NicsError> {
        let instance =
            Uuid::from_u128(ADAPTER_NAMES.as_u128() + u128::from(number) + (u128::from(generation) << 64));
        let subchannels = u16::try_from(self.vcpus.saturating_sub(1)).unwrap_or(u16::MAX).min(63);
        let settings = Settings { address: entry.address, subchannels };
        let provider = Provider::attach(bus, instance, Arc::clone(&entry.link) as _, settings);
        entry.device = Device::Netvsc(Some(provider.ok_or(NicsError::NoRoom)?));
        Ok(())
    }

    /// Adds an adapter to the running machine; what it is then.
    ///
    /// # Errors
    /// Its network cannot be opened, or it has no place.
    pub fn add(&self, spec: &NicSpec) -> Result<NicStatus, NicsError> {
        if let Some(model) = spec.model.filter(|m| *m != NicModel::Netvsc) {
            return Err(NicsError::Fixed(format!("model={}", model.name())));
        }
        let bus = self.bus.get().ok_or(NicsError::NoVmBus)?;
        let mut entries = self.entries();
        let free = (0..NICS_MAX as u8).find(|n| !entries.contains_key(n)).ok_or(NicsError::Full)?;
        let mut entry = Entry::open(spec, free, self.vmbus, self.vcpus)?;
        let generation = self.added.fetch_add(1, Ordering::Relaxed) + 1;
        self.attach_netvsc(bus, free, generation, &mut entry)?;
        let status = entry.status(free);
        entries.insert(free, entry);
        Ok(status)
    }

    /// Takes an adapter away.
    ///
    /// # Errors
    /// There is none, or it has to stay.
    pub fn remove(&self, name: &str) -> Result<(), NicsError> {
        let unknown = || NicsError::Unknown(name.into());
        let mut entries = self.entries();
        let number = name.strip_prefix("nic").and_then(|n| n.parse::<u8>().ok());
        let number = number.filter(|n| format!("nic{n}") == name).ok_or_else(unknown)?;
        let entry = entries.get(&number).ok_or_else(unknown)?;
        let Device::Netvsc(Some((provider, device))) = &entry.device else {
            return Err(NicsError::Fixed(name.into()));
        };
        let (provider, device) = (Arc::clone(provider), *device);
        let entry = entries.remove(&number);
        drop(entries);
        provider.take_leave(GOODBYE);
        if let Some(bus) = self.bus.get() {
            bus.remove(device, GOODBYE);
        }
        drop(entry);
        Ok(())
    }

    /// All adapters, in the order of their names.
    pub fn list(&self) -> Vec<NicStatus> {
        self.entries().iter().map(|(n, entry)| entry.status(*n)).collect()
    }

    fn entries(&self) -> MutexGuard<'_, BTreeMap<u8, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Nics {
    /// Links and adapters hold each other.
    fn drop(&mut self) {
        self.entries().values().for_each(|e| vireo_frame::Link::plug(&*e.link, None));
    }
}

impl Entry {
    fn open(spec: &NicSpec, number: u8, vmbus: bool, vcpus: u32) -> Result<Self, NicsError> {
        let model = spec.model.unwrap_or(if vmbus { NicModel::Netvsc } else { NicModel::Virtio });
        if model == NicModel::Netvsc && !vmbus {
            return Err(NicsError::NoVmBus);
        }
        let address = spec.address.unwrap_or_else(|| made_up(number));
        let link = Metered::new(match &spec.network {
            Network::Nat { forwards, mtu, host } => {
                let (forwards, mtu, host_loopback) = (forwards.clone(), *mtu, *host);
                let config = NatConfig { forwards, mtu, host_loopback, ..NatConfig::default() };
                Nat::start(config)? as _
            }
            Network::Tap(name) => Tap::open(name)? as _,
            Network::Switch { name, port, vlan } => {
                let port = port.clone().unwrap_or_else(|| address.to_string().replace(':', "-"));
                let request = PortRequest { name: port, mac: address, vlan: *vlan };
                let folders = Folders::usual().map_err(NicsError::Folder)?;
                SwitchPort::connect(&folders.sockets(name).ports(), request)? as _
            }
        });
        let device = match model {
            NicModel::Netvsc => Device::Netvsc(None),
            NicModel::Virtio => {
                let pairs = u16::try_from(vcpus).unwrap_or(u16::MAX);
                Device::Virtio(Net::new(Arc::clone(&link) as _, address, pairs))
            }
            NicModel::E1000 => Device::E1000,
        };
        Ok(Self { spec: spec.clone(), link, address, device })
    }

    fn status(&self, number: u8) -> NicStatus {
        let (address, lost) = match &self.device {
            Device::Netvsc(Some((provider, _))) => {
                let counters = provider.counters();
                (provider.address(), counters.lost + counters.bad)
            }
            Device::Virtio(net) => (net.address(), net.lost()),
            Device::Netvsc(None) | Device::E1000 => (self.address, 0),
        };
        let ([sent, sent_bytes], [received, received_bytes]) = (self.link.sent(), self.link.received());
        NicStatus {
            name: format!("nic{number}"),
            network: self.spec.network.to_string(),
            model: self.device.model(),
            address: address.to_string(),
            mtu: vireo_frame::Link::mtu(&*self.link),
            carrier: self.link.has_carrier(),
            sent,
            sent_bytes,
            received,
            received_bytes,
            lost,
        }
    }
}

fn attach_e1000(place: u8, name: String, entry: &Entry) -> Attach {
    let (link, address) = (Arc::clone(&entry.link), entry.address);
    Box::new(move |seat| {
        let attach =
            vireo_nic::attach(pci::slot(place, &name)?, &name, Arc::clone(&link) as _, address, |_| ());
        attach(seat)
    })
}

/// An address that no other machine should have, of those that Hyper-V's have: 00-15-5D.
fn made_up(number: u8) -> Mac {
    let mut random = [0; 3];
    // Without random numbers, the process must do.
    if rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty()).is_err() {
        random = [(std::process::id() >> 8) as u8, std::process::id() as u8, 0];
    }
    Mac([0x00, 0x15, 0x5d, random[0], random[1], random[2].wrapping_add(number)])
}
