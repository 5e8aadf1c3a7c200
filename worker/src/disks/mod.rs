//! The disks of a machine: opened, put where its guest finds them, changed while it runs.

mod spec;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use uuid::Uuid;
use vireo_block::{BlockDevice, Limited};
use vireo_board::Attach;
use vireo_ide::{Drives, IdeDrive, Place as IdePlace};
use vireo_live::{LiveDisk, LiveError, OpenOptions};
use vireo_scsi::{LogicalUnit, ScsiCd, ScsiDisk};
use vireo_storvsp::{Controller, LUNS, Provider, UnitError};
use vireo_virtio::Blk;
use vireo_vmbus::VmBus;

use crate::pci;
use crate::vmbus::{Plug, no_room};
pub use spec::{DiskBus, DiskSpec};

/// SCSI controllers of a machine, at most: as Hyper-V has it.
const CONTROLLERS_MAX: usize = 4;

/// Names of the controllers: by them guests know theirs again, so they never change.
const CONTROLLER_NAMES: Uuid = uuid::uuid!("6b0e1f5a-8d0c-4f6e-9d57-3f1c5a7e2b00");

/// A disk could not be added, changed or removed; each in one line that says what to do.
#[derive(Debug, thiserror::Error)]
pub enum DisksError {
    /// It cannot be opened, or changed.
    #[error("{}{}", .0, format_options(.0))]
    Live(#[from] LiveError),
    /// It has no place on its controller.
    #[error(transparent)]
    Unit(#[from] UnitError),
    /// SCSI controllers are on VMBus.
    #[error(
        "{0}: a disk with bus=scsi needs a guest with the interface of Hyper-V, so not --enlightenments none"
    )]
    NoVmBus(PathBuf),
    /// More disks than places.
    #[error("{path}: there is no place for more disks with bus={bus}, there can be {most}", path = path.display())]
    NoPlace {
        /// Its file.
        path: PathBuf,
        /// The bus.
        bus: &'static str,
        /// Most disks of it.
        most: usize,
    },
    /// Sectors that its bus, or a CD, cannot have.
    #[error("{path}: {why}", path = path.display())]
    Sectors {
        /// Its file.
        path: PathBuf,
        /// What cannot be.
        why: String,
    },
    /// It is no disk of the machine's.
    #[error("there is no disk {0}; `vireo vm disk list` tells which there are")]
    Unknown(String),
    /// It was there at the start, and stays.
    #[error("disk {0} is on a bus that it cannot leave while the machine runs; one with bus=scsi can")]
    Fixed(String),
    /// It was not to be on SCSI, which alone takes disks now.
    #[error("a disk that is added to a running machine has bus=scsi")]
    NotHot,
    /// No more threads.
    #[error("the host refuses a thread for a disk: {0}")]
    Thread(#[source] std::io::Error),
}

/// How the user says which format a disk has, where it is not clear.
fn format_options(e: &LiveError) -> String {
    let LiveError::Disk(e) = e else { return String::new() };
    let options: Vec<String> = e.sayable().into_iter().map(|f| format!(",format={f}")).collect();
    if options.is_empty() { String::new() } else { format!(": {}", options.join(" or ")) }
}

/// A disk, as it is told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskStatus {
    /// By which it is called: bus and place.
    pub name: String,
    /// Its file.
    pub path: PathBuf,
    /// Bus.
    pub bus: DiskBus,
    /// A CD.
    pub cd: bool,
    /// By which the guest knows it.
    pub serial: String,
    /// In bytes.
    pub size: u64,
    /// The guest cannot change it.
    pub read_only: bool,
    /// Requests per second that may be asked of it.
    pub iops: Option<u64>,
    /// Bytes per second.
    pub bandwidth: Option<u64>,
}

/// Where a disk is.
enum Place {
    Scsi { controller: usize, lun: u8 },
    Virtio(Arc<Blk>),
    Ide(IdeDrive),
}

impl Place {
    fn bus(&self) -> DiskBus {
        match self {
            Self::Scsi { .. } => DiskBus::Scsi,
            Self::Virtio(_) => DiskBus::Virtio,
            Self::Ide(_) => DiskBus::Ide,
        }
    }
}

struct Entry {
    spec: DiskSpec,
    disk: Arc<LiveDisk>,
    place: Place,
}

/// The disks of one machine.
pub struct Disks {
    controllers: Vec<Arc<Controller>>,
    entries: Mutex<BTreeMap<String, Entry>>,
    /// Threads that close disks which were taken away.
    closing: Mutex<Vec<JoinHandle<()>>>,
}

/// Closes a disk when nobody else uses it any more: its last user may be a thread that others wait for.
fn close_later(entry: Entry) -> std::io::Result<JoinHandle<()>> {
    const ASK: Duration = Duration::from_millis(20);
    std::thread::Builder::new().name("disk-close".into()).spawn(move || {
        let Entry { disk, place, .. } = entry;
        drop(place);
        while Arc::strong_count(&disk) > 1 {
            std::thread::sleep(ASK);
        }
    })
}

impl Drop for Disks {
    fn drop(&mut self) {
        let closing = std::mem::take(self.closing.get_mut().unwrap_or_else(PoisonError::into_inner));
        // One that panicked has said so itself.
        closing.into_iter().for_each(|thread| _ = thread.join());
    }
}

impl Disks {
    /// Opens the disks of a machine that has VMBus, or not.
    ///
    /// # Errors
    /// One of them cannot be opened, or has no place.
    pub fn open(specs: &[DiskSpec], vmbus: bool) -> Result<Arc<Self>, DisksError> {
        let without = |s: &DiskSpec| if s.cd { DiskBus::Ide } else { DiskBus::Virtio };
        let bus = |s: &DiskSpec| s.bus.unwrap_or(if vmbus { DiskBus::Scsi } else { without(s) });
        let on_scsi = specs.iter().filter(|s| bus(s) == DiskBus::Scsi).count();
        // One is always there, for disks that come later.
        let controllers = on_scsi.div_ceil(LUNS.into()).clamp(1, CONTROLLERS_MAX);
        let controllers =
            if vmbus { (0..controllers).map(|_| Controller::new()).collect() } else { Vec::new() };
        let disks = Self { controllers, entries: Mutex::default(), closing: Mutex::default() };
        for spec in specs {
            match bus(spec) {
                DiskBus::Scsi => _ = disks.add_scsi(spec)?,
                DiskBus::Virtio => disks.add_virtio(spec)?,
                DiskBus::Ide => disks.add_ide(spec)?,
            }
        }
        Ok(Arc::new(disks))
    }

    fn entries(&self) -> MutexGuard<'_, BTreeMap<String, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn insert(&self, name: String, spec: &DiskSpec, disk: Arc<LiveDisk>, place: Place) {
        // It is told to programs in other folders.
        let path = std::path::absolute(&spec.path).unwrap_or_else(|_| spec.path.clone());
        let new = Entry { spec: DiskSpec { path, ..spec.clone() }, disk, place };
        let mut entries = self.entries();
        if let Some(other) = same_serial(&entries, &new) {
            let (path, other) = (new.spec.path.display(), other.spec.path.display());
            tracing::warn!(
                "{path} and {other} have one serial number, by which the guest may take them for one disk"
            );
        }
        entries.insert(name, new);
    }

    fn add_scsi(&self, spec: &DiskSpec) -> Result<String, DisksError> {
        if self.controllers.is_empty() {
            return Err(DisksError::NoVmBus(spec.path.clone()));
        }
        let (disk, limited) = open(spec)?;
        let unit: Arc<dyn LogicalUnit> = match spec.cd {
            true => Arc::new(ScsiCd::new(Some(limited)).map_err(|e| sectors(spec, &e))?),
            false => Arc::new(ScsiDisk::new(limited)),
        };
        let mut refused = UnitError::Full;
        for (number, controller) in self.controllers.iter().enumerate() {
            match controller.add(None, Arc::clone(&unit)) {
                Ok(lun) => {
                    let name = format!("scsi{number}:{lun}");
                    let place = Place::Scsi { controller: number, lun };
                    self.insert(name.clone(), spec, disk, place);
                    return Ok(name);
                }
                Err(e) => refused = e,
            }
        }
        Err(match refused {
            UnitError::Full => DisksError::NoPlace {
                path: spec.path.clone(),
                bus: "scsi",
                most: self.controllers.len() * usize::from(LUNS),
            },
            other => other.into(),
        })
    }

    fn add_virtio(&self, spec: &DiskSpec) -> Result<(), DisksError> {
        let number = self.free_place(spec, DiskBus::Virtio, "virtio", pci::DISKS.len())?;
        let (disk, limited) = open(spec)?;
        let place = Place::Virtio(Blk::new(limited, 1));
        self.insert(format!("virtio{number:02}"), spec, disk, place);
        Ok(())
    }

    fn add_ide(&self, spec: &DiskSpec) -> Result<(), DisksError> {
        let number = self.free_place(spec, DiskBus::Ide, "ide", IdePlace::ALL.len())?;
        let (disk, limited) = open(spec)?;
        let drive = match spec.cd {
            true => IdeDrive::Cd(Some(limited)),
            false if limited.info().sector == 512 => IdeDrive::Disk(limited),
            false => {
                return Err(sectors(
                    spec,
                    &"an IDE disk has sectors of 512 bytes: use bus=scsi or bus=virtio",
                ));
            }
        };
        let name = format!("ide{}", IdePlace::ALL[number].name());
        self.insert(name, spec, disk, Place::Ide(drive));
        Ok(())
    }

    /// How many disks a bus has, if it can have one more.
    fn free_place(
        &self,
        spec: &DiskSpec,
        of: DiskBus,
        bus: &'static str,
        most: usize,
    ) -> Result<usize, DisksError> {
        let taken = self.entries().values().filter(|e| e.place.bus() == of).count();
        let path = || spec.path.clone();
        if taken < most { Ok(taken) } else { Err(DisksError::NoPlace { path: path(), bus, most }) }
    }

    fn ide(&self) -> Drives {
        let mut drives = Drives::default();
        // Their names are in the order of the places.
        let placed = self.entries();
        let placed = placed.values().filter_map(|e| match &e.place {
            Place::Ide(drive) => Some(drive.clone()),
            _ => None,
        });
        drives.iter_mut().zip(placed).for_each(|(place, drive)| *place = Some(drive));
        drives
    }

    fn virtio(&self) -> Vec<(String, Arc<Blk>)> {
        let blk = |(name, e): (&String, &Entry)| match &e.place {
            Place::Virtio(blk) => Some((name.clone(), Arc::clone(blk))),
            _ => None,
        };
        self.entries().iter().filter_map(blk).collect()
    }

    /// How their controllers come onto the VMBus of a board with so many vCPUs.
    pub fn plugs(&self, vcpus: u32) -> Vec<Plug> {
        let subchannels = u16::try_from(vcpus.saturating_sub(1)).unwrap_or(u16::MAX);
        let plug = |(number, controller): (u128, &Arc<Controller>)| {
            let controller = Arc::clone(controller);
            Box::new(move |bus: &Arc<VmBus>| {
                let instance = Uuid::from_u128(CONTROLLER_NAMES.as_u128() + number);
                let attached = Provider::attach(bus, instance, Arc::clone(&controller), subchannels);
                attached.map(|_| ()).ok_or_else(|| no_room("a SCSI controller"))
            }) as Plug
        };
        (0..).zip(&self.controllers).map(plug).collect()
    }

    /// How those that are not on VMBus come onto a board.
    pub fn attach(&self) -> Vec<Attach> {
        let mut attach: Vec<Attach> = Vec::new();
        let ide = self.ide();
        if ide.iter().any(Option::is_some) {
            attach.push(vireo_ide::attach(ide, |_| ()));
        }
        attach.extend(
            pci::DISKS.zip(self.virtio()).map(|(device, (name, blk))| pci::attach(device, &name, blk)),
        );
        attach
    }

    /// Adds a disk to the running machine; what it is then.
    ///
    /// # Errors
    /// It cannot be opened, or has no place.
    pub fn add(&self, spec: &DiskSpec) -> Result<DiskStatus, DisksError> {
        if spec.bus.is_some_and(|b| b != DiskBus::Scsi) {
            return Err(DisksError::NotHot);
        }
        let name = self.add_scsi(spec)?;
        self.status(&name)
    }

    /// Takes a disk away. Requests of the guest that are under way still end.
    ///
    /// # Errors
    /// There is none, or it has to stay.
    pub fn remove(&self, name: &str) -> Result<(), DisksError> {
        let mut entries = self.entries();
        let entry = entries.get(name).ok_or_else(|| DisksError::Unknown(name.into()))?;
        let Place::Scsi { controller, lun } = entry.place else { return Err(DisksError::Fixed(name.into())) };
        self.controllers[controller].remove(lun)?;
        let entry = entries.remove(name);
        drop(entries);
        if let Some(thread) = entry.map(close_later).transpose().map_err(DisksError::Thread)? {
            let mut closing = self.closing.lock().unwrap_or_else(PoisonError::into_inner);
            closing.retain(|t| !t.is_finished());
            closing.push(thread);
        }
        Ok(())
    }

    /// Makes a disk larger, to `size` bytes; or, where no size is given, looks how large its file or device has become. The guest
    /// is told.
    ///
    /// # Errors
    /// There is none, or it cannot.
    pub fn grow(&self, name: &str, size: Option<u64>) -> Result<DiskStatus, DisksError> {
        let unknown = || DisksError::Unknown(name.into());
        // Growing may take a while.
        let disk = Arc::clone(&self.entries().get(name).ok_or_else(unknown)?.disk);
        match size {
            Some(size) => disk.grow(size)?,
            None => _ = disk.refresh()?,
        }
        let entries = self.entries();
        match &entries.get(name).ok_or_else(unknown)?.place {
            Place::Scsi { controller, .. } => self.controllers[*controller].look(),
            Place::Virtio(blk) => blk.look_at_size(),
            // An IDE disk's driver asks once.
            Place::Ide(_) => {}
        }
        drop(entries);
        self.status(name)
    }

    fn status(&self, name: &str) -> Result<DiskStatus, DisksError> {
        self.list().into_iter().find(|d| d.name == name).ok_or_else(|| DisksError::Unknown(name.into()))
    }

    /// All of them.
    pub fn list(&self) -> Vec<DiskStatus> {
        let status = |(name, e): (&String, &Entry)| DiskStatus {
            name: name.clone(),
            path: e.spec.path.clone(),
            bus: e.place.bus(),
            cd: e.spec.cd,
            serial: serial(e),
            size: e.disk.info().size,
            read_only: e.disk.info().read_only,
            iops: e.spec.limits.requests,
            bandwidth: e.spec.limits.bytes,
        };
        self.entries().iter().map(status).collect()
    }
}

/// A disk of the machine that a guest may take for another, which is new: they are copies, or made on one parent.
fn same_serial<'a>(entries: &'a BTreeMap<String, Entry>, new: &Entry) -> Option<&'a Entry> {
    entries.values().find(|e| !e.spec.cd && !new.spec.cd && e.disk.info().id == new.disk.info().id)
}

/// As the guest reads it: on each bus in its own way.
fn serial(entry: &Entry) -> String {
    let info = entry.disk.info();
    let digits = |id: &[u8]| id.iter().map(|b| format!("{b:02x}")).collect::<String>();
    match entry.place {
        Place::Scsi { .. } => digits(&info.id),
        Place::Virtio(_) => digits(&info.short_id()),
        Place::Ide(_) => digits(&info.short_id()).to_uppercase(),
    }
}

fn sectors(spec: &DiskSpec, why: &dyn std::fmt::Display) -> DisksError {
    DisksError::Sectors { path: spec.path.clone(), why: why.to_string() }
}

/// The disk, and what the guest uses of it.
fn open(spec: &DiskSpec) -> Result<(Arc<LiveDisk>, Arc<dyn BlockDevice>), DisksError> {
    let options = OpenOptions { format: spec.format, read_only: spec.read_only, direct: None };
    let disk = LiveDisk::open(&spec.path, &options)?;
    if disk.info().size == 0 {
        return Err(sectors(spec, &"it has less than a sector: no disk is that small"));
    }
    let used: Arc<dyn BlockDevice> = match spec.limits.is_none() {
        true => Arc::clone(&disk) as _,
        false => Arc::new(Limited::new(Arc::clone(&disk), spec.limits).map_err(DisksError::Thread)?),
    };
    Ok((disk, used))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use vireo_vdisk::trial::peer::Folder;

    use super::*;

    #[test]
    fn two_disks_with_one_serial_number_are_noticed_and_paths_are_absolute() {
        let folder = Folder::new("worker-serials");
        let path = |n: &str| folder.join(n);
        let new = |kind, size| vireo_chain::NewDisk {
            format: vireo_chain::Format::Vhdx,
            kind,
            size,
            block: None,
            sector: None,
            allocate: false,
        };
        for name in ["base.vhdx", "other.vhdx"] {
            vireo_chain::create(&path(name), &new(vireo_chain::Kind::Dynamic, Some(5 << 20))).unwrap();
        }
        for name in ["a.vhdx", "b.vhdx"] {
            let kind = vireo_chain::Kind::Differencing(path("base.vhdx"));
            vireo_chain::create(&path(name), &new(kind, None)).unwrap();
        }
        let spec = |n: &str| DiskSpec { path: path(n), ..DiskSpec::default() };
        let disks = Disks::open(&[spec("a.vhdx"), spec("other.vhdx")], true).unwrap();
        let entry = |n: &str| {
            let (disk, limited) = open(&spec(n)).unwrap();
            Entry { spec: spec(n), disk, place: Place::Ide(IdeDrive::Disk(limited)) }
        };
        let found = |e: &Entry| same_serial(&disks.entries(), e).map(|e| e.spec.path.clone());
        assert_eq!(found(&entry("b.vhdx")), Some(path("a.vhdx")));
        vireo_chain::create(&path("c.vhdx"), &new(vireo_chain::Kind::Dynamic, Some(5 << 20))).unwrap();
        assert_eq!(found(&entry("c.vhdx")), None);
        // Named from the folder where the machine was started.
        let here = std::env::current_dir().unwrap();
        let up = here.components().skip(1).map(|_| "..").collect::<Vec<_>>().join("/");
        let relative = format!("{up}{}", path("c.vhdx").display());
        let added = disks.add(&DiskSpec { path: relative.into(), ..DiskSpec::default() }).unwrap();
        assert!(added.path.is_absolute() && fs::metadata(added.path).is_ok());
        fs::rename(path("other.vhdx"), path("x.img")).unwrap();
        drop(disks);
        let text = open(&spec("x.img")).err().unwrap().to_string();
        assert!(text.ends_with(": ,format=vhdx or ,format=raw"), "{text}");
    }
}
