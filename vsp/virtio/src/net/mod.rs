//! A network adapter.
//!
//! Frames go both ways without a buffer of its own: what the driver sends is given to the network as its head, copied once, and
//! slices of guest memory; what comes goes from the network's buffer straight into the driver's. Offloads pass through.
//!
//! Source: virtio 1.2 §5.1; of UDP segments, 1.3 of the same section.

mod control;
mod port;
mod settings;
mod steering;
mod transmit;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use vireo_frame::{Link, Mac, RSS_KEY};
use virtio_bindings::virtio_ids::VIRTIO_ID_NET;
use virtio_bindings::virtio_net as spec;

use crate::device::{Device, DeviceState, Identity, Kept, Kicker, Turn};
use crate::queue::{Broken, ServedQueue};
use control::Change;
use port::Port;
pub(crate) use settings::Settings;
use transmit::Transmit;

/// Bytes before each frame (§5.1.6: what `vireo_frame` has of it, and the number of buffers).
const HEADER: usize = 12;
const QUEUE_SIZE: u16 = 512;
const CONTROL_QUEUE_SIZE: u16 = 64;
/// Network controller: Ethernet.
const CLASS: u32 = 0x02_00_00;
/// Most pairs of queues: with the control queue there are 63.
const PAIRS_MAX: u16 = 31;

fn receive_queue(pair: u16) -> usize {
    usize::from(pair) * 2
}

/// A network adapter as a virtio device.
pub struct Net {
    link: Arc<dyn Link>,
    address: Mac,
    pairs: u16,
    mtu: u16,
    port: Arc<Port>,
    transmit: Vec<Mutex<Transmit>>,
    /// The network is to be told what the driver wants and can.
    tell_link: AtomicBool,
    /// The address that the network knows.
    told_address: Mutex<Mac>,
}

impl Net {
    /// An adapter with an address, plugged into `link` once it is on a transport, with so many pairs of queues (1 to 31; one for
    /// each vCPU is best). The network's MTU is told to the guest as it is now.
    pub fn new(link: Arc<dyn Link>, address: Mac, pairs: u16) -> Arc<Self> {
        let pairs = pairs.clamp(1, PAIRS_MAX);
        let mtu = u16::try_from(link.mtu()).unwrap_or(u16::MAX);
        let port = Arc::new(Port::new(Settings::new(address), pairs));
        let transmit = (0..pairs).map(|_| Mutex::default()).collect();
        let (tell_link, told_address) = (AtomicBool::new(true), Mutex::new(address));
        Arc::new(Self { link, address, pairs, mtu, port, transmit, tell_link, told_address })
    }

    /// Has the driver announce its addresses to the network: the machine has come from somewhere else.
    pub fn announce(&self) {
        let mut settings = self.port.change();
        if settings.has(spec::VIRTIO_NET_F_GUEST_ANNOUNCE) {
            settings.announce = true;
            drop(settings);
            self.port.config_changed();
        }
    }

    /// The address that the adapter has now.
    pub fn address(&self) -> Mac {
        Mac(self.port.settings().address)
    }

    /// Frames that the network had for the guest, and which were lost: it had no driver, or cannot take them.
    pub fn lost(&self) -> u64 {
        self.port.lost()
    }

    /// The configuration (§5.1.4).
    fn config(&self) -> [u8; 24] {
        let settings = self.port.settings();
        let mut config = [0; 24];
        let mut put = |at: usize, bytes: &[u8]| config[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &settings.address);
        let link = if self.port.has_carrier() { spec::VIRTIO_NET_S_LINK_UP } else { 0 };
        let announce = if settings.announce { spec::VIRTIO_NET_S_ANNOUNCE } else { 0 };
        put(6, &((link | announce) as u16).to_le_bytes());
        put(8, &self.pairs.to_le_bytes());
        put(10, &self.mtu.to_le_bytes());
        let megabits = self.port.speed() / 1_000_000;
        let (speed, duplex) = match u32::try_from(megabits) {
            // Not known.
            Ok(0) | Err(_) => (u32::MAX, 0xff),
            Ok(speed) => (speed.min(i32::MAX as u32), 1),
        };
        put(12, &speed.to_le_bytes());
        put(16, &[duplex, RSS_KEY as u8]);
        put(18, &(steering::TABLE_MAX as u16).to_le_bytes());
        put(20, &steering::HASH_KINDS.to_le_bytes());
        config
    }

    /// The queue of commands; where the driver does not know of several pairs, it follows the first.
    fn control_queue(&self) -> usize {
        let settings = self.port.settings();
        let several = settings.has(spec::VIRTIO_NET_F_MQ) || settings.has(spec::VIRTIO_NET_F_RSS);
        let pairs = if several { self.pairs } else { 1 };
        usize::from(pairs) * 2
    }

    fn control(&self, queue: &ServedQueue) -> Result<Turn, Broken> {
        while let Some(chain) = queue.pop()? {
            let mut bytes = [0; control::COMMAND_MAX];
            let length = chain.readable_len().min(bytes.len());
            chain.read(0, &mut bytes[..length]);
            if chain.writable_len() == 0 {
                return Err(Broken::new("a command without room for its status"));
            }
            let status =
                if self.command(&bytes[..length]) { spec::VIRTIO_NET_OK } else { spec::VIRTIO_NET_ERR };
            chain.write(0, &[status as u8]);
            chain.complete(1);
        }
        Ok(Turn::Drained)
    }

    fn command(&self, bytes: &[u8]) -> bool {
        let mut settings = self.port.change();
        let change = control::command(&mut settings, self.pairs, bytes);
        drop(settings);
        match change {
            Ok(Change::Nothing) => true,
            Ok(Change::Wishes) => {
                self.tell_link.store(true, Ordering::Release);
                self.tell_link();
                true
            }
            Ok(Change::Address(address)) => {
                let mut told = self.told_address.lock().unwrap_or_else(PoisonError::into_inner);
                let allowed = self.link.set_address(address).is_ok();
                if allowed {
                    *told = address;
                    self.port.change().address = address.0;
                }
                allowed
            }
            Err(control::Refused) => false,
        }
    }

    /// Tells the network what the driver wants and can, if that has changed. On the device's thread, which holds nothing that the
    /// network's threads wait for.
    fn tell_link(&self) {
        if self.tell_link.swap(false, Ordering::AcqRel) {
            let settings = self.port.settings().clone();
            self.link.set_adapter_ability(settings.ability());
            self.link.set_filter(&settings.filter());
            // A driver that comes anew has the address that the adapter was given; one that was saved has its own.
            let address = Mac(settings.address);
            let mut told = self.told_address.lock().unwrap_or_else(PoisonError::into_inner);
            if *told != address {
                match self.link.set_address(address) {
                    Ok(()) => *told = address,
                    Err(_) => tracing::warn!("the network does not allow the address {address}"),
                }
            }
        }
    }

    /// The driver has given buffers, or it is not known.
    fn receive(&self, queue: &ServedQueue) -> Turn {
        // What was put before a pause, or in another process.
        queue.tell();
        if self.port.take_starved() {
            self.link.room();
        }
        // It is not to tell of buffers before they are needed.
        Turn::Waits
    }
}

impl Device for Net {
    fn identity(&self) -> Identity {
        Identity { kind: VIRTIO_ID_NET as u16, class: CLASS }
    }

    fn features(&self) -> u64 {
        let always = [
            spec::VIRTIO_NET_F_CSUM,
            spec::VIRTIO_NET_F_GUEST_CSUM,
            spec::VIRTIO_NET_F_CTRL_GUEST_OFFLOADS,
            spec::VIRTIO_NET_F_MTU,
            spec::VIRTIO_NET_F_MAC,
            spec::VIRTIO_NET_F_GUEST_TSO4,
            spec::VIRTIO_NET_F_GUEST_TSO6,
            spec::VIRTIO_NET_F_GUEST_ECN,
            spec::VIRTIO_NET_F_HOST_TSO4,
            spec::VIRTIO_NET_F_HOST_TSO6,
            spec::VIRTIO_NET_F_HOST_ECN,
            spec::VIRTIO_NET_F_MRG_RXBUF,
            spec::VIRTIO_NET_F_STATUS,
            spec::VIRTIO_NET_F_CTRL_VQ,
            spec::VIRTIO_NET_F_CTRL_RX,
            spec::VIRTIO_NET_F_CTRL_RX_EXTRA,
            spec::VIRTIO_NET_F_GUEST_ANNOUNCE,
            spec::VIRTIO_NET_F_CTRL_MAC_ADDR,
            spec::VIRTIO_NET_F_GUEST_USO4,
            spec::VIRTIO_NET_F_GUEST_USO6,
            spec::VIRTIO_NET_F_HOST_USO,
            spec::VIRTIO_NET_F_SPEED_DUPLEX,
        ];
        let several = 1 << spec::VIRTIO_NET_F_MQ | 1 << spec::VIRTIO_NET_F_RSS;
        let several = if self.pairs > 1 { several } else { 0 };
        always.iter().fold(several, |features, bit| features | 1 << bit)
    }

    fn queue_sizes(&self) -> Vec<u16> {
        let mut sizes = vec![QUEUE_SIZE; usize::from(self.pairs) * 2];
        sizes.push(CONTROL_QUEUE_SIZE);
        sizes
    }

    fn read_config(&self, offset: usize, data: &mut [u8]) {
        for (to, from) in data.iter_mut().zip(self.config().iter().skip(offset)) {
            *to = *from;
        }
    }

    fn connect(&self, kicker: Kicker) {
        self.port.connect(kicker);
        self.link.plug(Some(Arc::clone(&self.port) as _));
    }

    fn disconnect(&self) {
        self.link.plug(None);
    }

    fn start(&self, features: u64) {
        let mut settings = self.port.change();
        settings.features = features;
        settings.offloads = features & settings::GUEST_OFFLOADS;
        self.tell_link.store(true, Ordering::Release);
    }

    fn stop(&self) {
        *self.port.change() = Settings::new(self.address);
        self.transmit.iter().for_each(|t| t.lock().unwrap_or_else(PoisonError::into_inner).forget());
        self.tell_link.store(true, Ordering::Release);
    }

    fn save(&self) -> Option<DeviceState> {
        Some(DeviceState(Kept::Net(self.port.settings().clone())))
    }

    fn restore(&self, state: &DeviceState) {
        let DeviceState(Kept::Net(state)) = state;
        let mut settings = self.port.change();
        let features = settings.features;
        *settings = state.clone();
        settings.features = features;
        settings.offloads &= features & settings::GUEST_OFFLOADS;
        settings.pairs = settings.pairs.clamp(1, self.pairs);
        settings.rss = settings.rss.take().filter(|rss| rss.possible(self.pairs));
        self.tell_link.store(true, Ordering::Release);
    }

    fn serve(&self, queue: &ServedQueue) -> Result<Turn, Broken> {
        self.tell_link();
        let index = queue.index();
        if index == self.control_queue() {
            return self.control(queue);
        }
        match index.is_multiple_of(2) {
            true => Ok(self.receive(queue)),
            false => transmit::serve(self, queue, (index / 2) as u16),
        }
    }
}
