//! The provider: a frame buffer as a device on VMBus.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use uuid::{Uuid, uuid};
use vireo_board::{Attachment, BoardError, Seat, Window};
use vireo_chipset::pci::PciSlot;
use vireo_memory::{DeviceMemory, GuestMemory};
use vireo_screen::{Rect, Screen, Size};
use vireo_vmbus::{Channel, Device, Offer, OpenError, Pipe, PipeServer, Receiver, VmBus};

use crate::frame::{Frame, Vram};
use crate::mover::Mover;
use crate::protocol::{FromGuest, ToGuest};

/// What drivers look for: synthetic video.
const INTERFACE: Uuid = uuid!("da0a7802-e377-4aac-8e77-0558eb1073f8");
/// The only one of a machine. Guests name it by this, so it never changes.
const INSTANCE: Uuid = uuid!("5620e0c7-8062-4dce-aeb7-520c7ef76171");

/// Least memory of a frame buffer.
const MEMORY_LEAST: u64 = 8 << 20;

/// Sizes that drivers may choose from, besides the one that they should.
const SIZES: [(u32, u32); 11] = [
    (640, 480),
    (800, 600),
    (1024, 768),
    (1152, 864),
    (1280, 720),
    (1280, 800),
    (1280, 1024),
    (1440, 900),
    (1600, 900),
    (1600, 1200),
    (1920, 1080),
];

/// Bytes of a frame buffer for a screen of this size: a power of two.
pub(crate) fn memory_for(size: Size) -> u64 {
    (size.all().area() * 4).next_power_of_two().max(MEMORY_LEAST)
}

/// A frame buffer on VMBus.
pub struct Provider {
    shared: Arc<Shared>,
    server: Mutex<Option<PipeServer>>,
}

/// What the channel's thread has.
pub(crate) struct Shared {
    screen: Arc<Screen>,
    memory: Arc<DeviceMemory>,
    frame: Arc<Mutex<Frame>>,
    mover: Mover,
    /// The driver was told what we want to know.
    told: Mutex<bool>,
}

fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Provider {
    /// Puts a frame buffer on a bus and its PCI function into `slot`; what the guest shows is shown on `screen`.
    ///
    /// # Errors
    /// There is no room for it on the bus or in the host.
    pub fn attach(
        bus: &Arc<VmBus>,
        seat: &mut Seat,
        slot: PciSlot,
        screen: &Arc<Screen>,
    ) -> Result<Arc<dyn Attachment>, BoardError> {
        let memory = DeviceMemory::new(memory_for(screen.preferred()))?;
        let function = crate::pci::attach(seat, slot, memory.size())?;
        let window = seat.windows.add(&memory);
        let provider = Self::new(screen, seat.memory, window).map_err(BoardError::Thread)?;
        let memory = u16::try_from(memory.size() >> 20).unwrap_or(u16::MAX);
        let offer = Offer { interface: INTERFACE, instance: INSTANCE, memory, user_data: [0; 120] };
        let full = || BoardError::Device("VMBus has no room for a frame buffer".into());
        bus.add(offer, |_| Arc::new(provider)).map(|_| function).ok_or_else(full)
    }

    /// A frame buffer that is moved by `window`.
    ///
    /// # Errors
    /// The host refuses a thread.
    pub fn new(screen: &Arc<Screen>, ram: &Arc<GuestMemory>, window: Window) -> std::io::Result<Self> {
        let memory = Arc::clone(window.memory());
        let shared = Arc::new(Shared {
            screen: Arc::clone(screen),
            frame: Arc::new(Mutex::new(Frame::new(screen, ram, &memory))),
            memory,
            mover: Mover::start(window)?,
            told: Mutex::default(),
        });
        Ok(Self { shared, server: Mutex::default() })
    }
}

impl Shared {
    fn sizes(&self, most: u8) -> ToGuest {
        let preferred = self.screen.preferred();
        let fits = |s: &Size| u64::from(s.width) * u64::from(s.height) * 4 <= self.memory.size();
        let listed = SIZES.iter().map(|&(width, height)| Size { width, height });
        let others = listed.filter(|s| *s != preferred && fits(s));
        // The preferred one first: it is there however few the driver has room for.
        let sizes = std::iter::once(preferred).chain(others).take(usize::from(most).max(1)).collect();
        ToGuest::Resolutions { sizes, preferred: 0 }
    }

    fn place(&self, pipe: &Arc<Pipe>, context: u64, gpa: Option<u64>) {
        let acknowledge = move |pipe: &Pipe, placed: bool| {
            // Drivers look for their own number.
            let context = if placed { context } else { !context };
            pipe.send(ToGuest::VramLocationAck { context }.bytes());
        };
        let mut frame = lock(&self.frame);
        match gpa {
            Some(gpa) if frame.is_ram(gpa) => {
                frame.place(Some(Vram::Ram(gpa)));
                drop(frame);
                acknowledge(pipe, true);
            }
            Some(gpa) => {
                let wish = frame.place(None);
                drop(frame);
                let (frame, pipe) = (Arc::clone(&self.frame), Arc::clone(pipe));
                self.mover.want(
                    gpa,
                    Box::new(move |placed| {
                        if placed {
                            lock(&frame).placed(wish);
                        }
                        acknowledge(&pipe, placed);
                    }),
                );
            }
            None => {
                frame.place(None);
                drop(frame);
                acknowledge(pipe, true);
            }
        }
    }

    fn forget_driver(&self) {
        *lock(&self.told) = false;
        lock(&self.frame).forget();
    }
}

impl Receiver for Shared {
    fn message(&self, pipe: &Arc<Pipe>, data: &[u8]) {
        let Some(said) = FromGuest::parse(data) else {
            tracing::debug!("a message that is none of the frame buffer's");
            return;
        };
        match said {
            FromGuest::Version(version) => {
                let accepted = version.is_spoken();
                pipe.send(ToGuest::Version { version, accepted }.bytes());
            }
            FromGuest::Resolutions { most } => _ = pipe.send(self.sizes(most).bytes()),
            FromGuest::VramLocation { context, gpa } => self.place(pipe, context, gpa),
            FromGuest::Situation { context, output } => {
                lock(&self.frame).situate(output);
                pipe.send(ToGuest::SituationAck { context }.bytes());
                // Once: drivers answer it with their situation.
                if !std::mem::replace(&mut *lock(&self.told), true) {
                    pipe.send(ToGuest::FeatureChange.bytes());
                }
            }
            FromGuest::Dirt(rects) => {
                let size = self.screen.picture().size();
                let cut = |[from, to]: [(i32, i32); 2]| Rect::cut(from, to, size);
                self.screen.changed(rects.into_iter().filter_map(cut));
            }
            FromGuest::Pointer => {}
        }
    }
}

impl Device for Provider {
    fn open(&self, _subchannel: u16, channel: Arc<Channel>) -> Result<(), OpenError> {
        let server = PipeServer::start("video", channel, Arc::clone(&self.shared) as _).map_err(OpenError)?;
        *lock(&self.server) = Some(server);
        Ok(())
    }

    fn close(&self, _subchannel: u16) {
        let server = lock(&self.server).take();
        drop(server);
        self.shared.forget_driver();
    }

    fn pause(&self, deadline: Instant) -> bool {
        lock(&self.server).as_ref().is_none_or(|s| s.pause(deadline))
    }

    fn resume(&self) {
        if let Some(server) = &*lock(&self.server) {
            server.resume();
        }
    }

    fn reset(&self) {
        self.shared.mover.reset();
        self.shared.forget_driver();
    }
}
