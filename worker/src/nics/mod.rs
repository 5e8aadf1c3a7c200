//! The network adapters of a machine: plugged into their networks, put where the guest finds them, changed while it runs.

mod spec;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use uuid::Uuid;
use vireo_frame::{Link, Mac};
use vireo_netvsp::{Provider, Settings};
use vireo_tap::{Tap, TapError};
use vireo_vmbus::VmBus;

use crate::vmbus::{Bus, Plug, no_room};
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
    /// Frames and bytes from the guest, frames and bytes to it, and what was lost of both.
    pub sent: u64,
    /// Bytes from the guest.
    pub sent_bytes: u64,
    /// Frames to the guest.
    pub received: u64,
    /// Bytes to the guest.
    pub received_bytes: u64,
    /// Frames that were not delivered.
    pub lost: u64,
}

struct Entry {
    spec: NicSpec,
    link: Arc<dyn Link>,
    address: Mac,
    /// On the bus, once there is one.
    provider: Option<(Arc<Provider>, u64)>,
}

/// The adapters of a machine.
pub struct Nics {
    bus: Bus,
    vcpus: u32,
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
        if !specs.is_empty() && !vmbus {
            return Err(NicsError::NoVmBus);
        }
        let entries = (0..).zip(specs).map(|(n, spec)| Ok((n, Entry::open(spec, n)?)));
        let entries = Mutex::new(entries.collect::<Result<_, NicsError>>()?);
        Ok(Arc::new(Self { bus: bus.clone(), vcpus, entries }))
    }

    /// How they come onto the bus of the board.
    pub fn plugs(self: &Arc<Self>) -> Vec<Plug> {
        let numbers: Vec<u8> = self.entries().keys().copied().collect();
        let plug = |number| {
            let nics = Arc::clone(self);
            Box::new(move |bus: &Arc<VmBus>| {
                let mut entries = nics.entries();
                let entry = entries.get_mut(&number).ok_or_else(|| no_room("an adapter that is gone"))?;
                nics.attach(bus, number, entry).map_err(|_| no_room("a network adapter"))
            }) as Plug
        };
        numbers.into_iter().map(plug).collect()
    }

    fn attach(&self, bus: &Arc<VmBus>, number: u8, entry: &mut Entry) -> Result<(), NicsError> {
        let instance = Uuid::from_u128(ADAPTER_NAMES.as_u128() + u128::from(number));
        let subchannels = u16::try_from(self.vcpus.saturating_sub(1)).unwrap_or(u16::MAX).min(63);
        let settings = Settings { address: entry.address, subchannels };
        let provider = Provider::attach(bus, instance, Arc::clone(&entry.link), settings);
        entry.provider = Some(provider.ok_or(NicsError::NoRoom)?);
        Ok(())
    }

    /// Adds an adapter to the running machine; what it is then.
    ///
    /// # Errors
    /// Its network cannot be opened, or it has no place.
    pub fn add(&self, spec: &NicSpec) -> Result<NicStatus, NicsError> {
        let bus = self.bus.get().ok_or(NicsError::NoVmBus)?;
        let mut entries = self.entries();
        let free = (0..NICS_MAX as u8).find(|n| !entries.contains_key(n)).ok_or(NicsError::Full)?;
        let mut entry = Entry::open(spec, free)?;
        self.attach(bus, free, &mut entry)?;
        let status = entry.status(free);
        entries.insert(free, entry);
        Ok(status)
    }

    /// Takes an adapter away.
    ///
    /// # Errors
    /// There is none.
    pub fn remove(&self, name: &str) -> Result<(), NicsError> {
        let mut entries = self.entries();
        let number = name.strip_prefix("nic").and_then(|n| n.parse::<u8>().ok());
        let entry = number.and_then(|n| entries.remove(&n)).ok_or_else(|| NicsError::Unknown(name.into()))?;
        drop(entries);
        if let (Some((provider, device)), Some(bus)) = (entry.provider, self.bus.get()) {
            provider.take_leave(GOODBYE);
            bus.remove(device, GOODBYE);
        }
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
        self.entries().values().filter_map(|e| e.provider.as_ref()).for_each(|(p, _)| p.unplug());
    }
}

impl Entry {
    fn open(spec: &NicSpec, number: u8) -> Result<Self, NicsError> {
        let link: Arc<dyn Link> = match &spec.network {
            Network::Tap(name) => Tap::open(name)?,
        };
        let address = spec.address.unwrap_or_else(|| made_up(number));
        Ok(Self { spec: spec.clone(), link, address, provider: None })
    }

    fn status(&self, number: u8) -> NicStatus {
        let provider = self.provider.as_ref().map(|(p, _)| p);
        let counters = provider.map(|p| p.counters()).unwrap_or_default();
        NicStatus {
            name: format!("nic{number}"),
            network: match &self.spec.network {
                Network::Tap(name) => format!("tap {name}"),
            },
            model: NicModel::Netvsc,
            address: provider.map_or(self.address, |p| p.address()).to_string(),
            mtu: self.link.mtu(),
            sent: counters.sent,
            sent_bytes: counters.sent_bytes,
            received: counters.received,
            received_bytes: counters.received_bytes,
            lost: counters.lost + counters.bad,
        }
    }
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
