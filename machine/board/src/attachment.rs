//! Devices beyond the chipset's own: how they come onto a board, and what the board asks of them.

use std::sync::Arc;
use std::time::Instant;

use vireo_chipset::ChipsetBuilder;
use vireo_hyperv::Hyperv;
use vireo_memory::GuestMemory;

use crate::BoardError;
use crate::window::Windows;

/// A device, or several, that others bring to a board. It is made paused.
///
/// The board calls it from one thread at a time. Paused means: no thread of it touches guest memory or interrupts, until it is
/// resumed; requests in flight have completed. vCPUs stand still whenever it is paused.
pub trait Attachment: Send + Sync {
    /// For messages.
    fn name(&self) -> &str;

    /// Comes to rest before `deadline`. `false`: it could not, and goes on as if it had not been asked.
    fn pause(&self, deadline: Instant) -> bool;

    /// Goes on. The vCPUs run soon after.
    fn resume(&self);

    /// As after power-on; it is paused meanwhile. PCI functions are reset by their bus already, before this.
    fn reset(&self) {}
}

/// What a device is attached to. The board is not finished yet: nothing runs, and no interrupt arrives.
pub struct Seat<'a> {
    /// The buses, interrupt lines and PCI slots.
    pub chipset: &'a mut ChipsetBuilder,
    /// Guest memory; the device may keep it.
    pub memory: &'a Arc<GuestMemory>,
    /// The interface of Hyper-V, if the guest has it.
    pub hyperv: Option<&'a Arc<Hyperv>>,
    /// Windows for memory of its own.
    pub windows: &'a Arc<Windows>,
}

/// Puts a device onto a board that is being built.
pub type Attach = Box<dyn Fn(&mut Seat) -> Result<Arc<dyn Attachment>, BoardError> + Send + Sync>;

/// All of a board, in the order in which they were attached.
pub(crate) struct Attachments(Vec<Arc<dyn Attachment>>);

impl Attachments {
    /// Attaches them all.
    pub(crate) fn attach(attach: &[Attach], mut seat: Seat) -> Result<Self, BoardError> {
        Ok(Self(attach.iter().map(|attach| attach(&mut seat)).collect::<Result<_, _>>()?))
    }

    /// Pauses all of them, or none.
    pub(crate) fn pause(&self, deadline: Instant) -> Result<(), BoardError> {
        for (index, device) in self.0.iter().enumerate() {
            if !device.pause(deadline) {
                self.0[..index].iter().for_each(|device| device.resume());
                return Err(BoardError::Busy(device.name().to_owned()));
            }
        }
        Ok(())
    }

    pub(crate) fn resume(&self) {
        self.0.iter().for_each(|device| device.resume());
    }

    pub(crate) fn reset(&self) {
        self.0.iter().for_each(|device| device.reset());
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    struct Logged {
        name: &'static str,
        rests: bool,
        log: Arc<Mutex<Vec<String>>>,
    }

    impl Logged {
        fn say(&self, what: &str) {
            self.log.lock().unwrap().push(format!("{} {what}", self.name));
        }
    }

    impl Attachment for Logged {
        fn name(&self) -> &str {
            self.name
        }
        fn pause(&self, _: Instant) -> bool {
            self.say("pauses");
            self.rests
        }
        fn resume(&self) {
            self.say("resumes");
        }
    }

    #[test]
    fn when_one_does_not_come_to_rest_all_go_on() {
        let log = Arc::<Mutex<Vec<String>>>::default();
        let device =
            |name, rests| Arc::new(Logged { name, rests, log: Arc::clone(&log) }) as Arc<dyn Attachment>;
        let devices = Attachments(vec![device("a", true), device("b", false), device("c", true)]);
        let error = devices.pause(Instant::now()).unwrap_err();
        assert_eq!(error.to_string(), "b does not come to rest: requests of the guest are still under way");
        assert_eq!(*log.lock().unwrap(), ["a pauses", "b pauses", "a resumes"]);
    }
}
