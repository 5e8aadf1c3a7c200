//! A channel: its state under a lock, its interrupt line, and the way to disks and back.
//!
//! Requests are submitted, and complete, with the channel unlocked by whoever submits: a disk may complete a request
//! within the call, or on a thread of its own.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use vireo_block::Request;
use vireo_chipset::RestoreError;
use vireo_chipset::lines::IrqLine;

use crate::cable::{Cable, port};
use crate::state::ChannelState;
use crate::step::{Part, Work};

/// See the module.
pub struct Channel {
    cable: Mutex<Cable>,
    /// A disk's work has ended.
    ended: Condvar,
    line: Arc<dyn IrqLine>,
}

impl Channel {
    pub fn new(cable: Cable, line: Arc<dyn IrqLine>) -> Arc<Self> {
        Arc::new(Self { cable: Mutex::new(cable), ended: Condvar::new(), line })
    }

    fn lock(&self) -> MutexGuard<'_, Cable> {
        self.cable.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the state, drives the line as it is then, and starts what work has come about.
    pub fn with<R>(self: &Arc<Self>, change: impl FnOnce(&mut Cable) -> R) -> R {
        let mut cable = self.lock();
        let (line, work) = (cable.interrupt(), cable.at_work());
        let result = change(&mut cable);
        let now = cable.interrupt();
        if cable.take_raised() && now {
            // An interrupt of before may not have been taken note of: this is another one, and needs an edge.
            self.line.pulse();
            cable.bus_master.interrupted();
        } else if now != line {
            self.line.set(now);
            if now {
                cable.bus_master.interrupted();
            }
        }
        if work.is_some() && cable.at_work() != work {
            self.ended.notify_all();
        }
        let work = cable.take_work();
        drop(cable);
        if let Some(work) = work {
            self.submit(work);
        }
        result
    }

    fn submit(self: &Arc<Self>, work: Work) {
        let request = |part: Part| {
            let channel = Arc::clone(self);
            let done = Box::new(move |result| channel.with(|cable| cable.completed(result)));
            Request { operation: part.operation, at: part.at, len: part.len, buffers: part.buffers, done }
        };
        let mut batch = work.parts.into_iter().map(request).collect();
        work.disk.submit(&mut batch);
    }

    /// Waits until no disk works for the channel. The vCPUs must stand still, or it may have work again.
    pub fn drain(&self) {
        let work = self.lock().at_work();
        self.wait(work, None);
    }

    /// As [`Self::drain`], but not beyond `deadline`. False: a disk is still at work.
    pub fn drain_until(&self, deadline: Instant) -> bool {
        let work = self.lock().at_work();
        self.wait(work, Some(deadline))
    }

    /// Waits until this work has ended, or until the deadline; whether it has.
    fn wait(&self, work: Option<u64>, deadline: Option<Instant>) -> bool {
        let mut cable = self.lock();
        while work.is_some() && cable.at_work() == work {
            cable = match deadline.map(|d| d.saturating_duration_since(Instant::now())) {
                None => self.ended.wait(cable).unwrap_or_else(PoisonError::into_inner),
                Some(Duration::ZERO) => return false,
                Some(left) => self.ended.wait_timeout(cable, left).unwrap_or_else(PoisonError::into_inner).0,
            };
        }
        true
    }

    /// Reads from a port of the command block on.
    pub fn read(self: &Arc<Self>, at: usize, data: &mut [u8]) {
        self.with(|cable| {
            if at == port::DATA {
                return cable.read_data(data);
            }
            for (at, byte) in (at..).zip(data) {
                *byte = cable.read(at);
            }
        });
    }

    /// Writes from a port of the command block on.
    pub fn write(self: &Arc<Self>, at: usize, data: &[u8]) {
        self.with(|cable| {
            if at == port::DATA {
                return cable.write_data(data);
            }
            for (at, byte) in (at..).zip(data) {
                cable.write(at, *byte);
            }
        });
    }

    /// Reads the alternate status.
    pub fn alternate_status(&self) -> u8 {
        self.lock().status()
    }

    /// Writes the device control register.
    pub fn write_control(self: &Arc<Self>, value: u8) {
        self.with(|cable| cable.write_control(value));
    }

    /// Reads a port of the bus master.
    pub fn read_bus_master(&self, at: usize) -> u8 {
        self.lock().bus_master.read(at)
    }

    /// Writes a port of the bus master. A host that stops it in the middle of a transfer waits here until the disk is
    /// done: the memory is the host's again afterwards. Drivers do it only when they have given a disk up.
    pub fn write_bus_master(self: &Arc<Self>, at: usize, value: u8) {
        let stopped = self.with(|cable| {
            let stopped = cable.write_bus_master(at, value);
            cable.at_work().filter(|_| stopped && cable.moves_by_bus_master())
        });
        self.wait(stopped, None);
    }

    /// As after a bus reset. The vCPUs must stand still.
    pub fn reset(self: &Arc<Self>) {
        self.drain();
        self.with(Cable::power_on);
    }

    /// The state. The vCPUs must stand still.
    pub fn save(&self) -> ChannelState {
        self.drain();
        self.lock().save()
    }

    /// Takes over a saved state, and drives the line as it was: an interrupt controller that is restored too, before or
    /// after, sees no edge. The vCPUs must stand still.
    ///
    /// # Errors
    /// See [`Cable::restore`].
    pub fn restore(&self, state: &ChannelState) -> Result<(), RestoreError> {
        self.drain();
        let mut cable = self.lock();
        cable.restore(state)?;
        self.line.set(cable.interrupt());
        Ok(())
    }
}
