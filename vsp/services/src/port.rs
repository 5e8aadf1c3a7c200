//! A channel that the guest has opened, in the hands of the services' thread.

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Instant;

use vireo_memory::GuestMemory;
use vireo_vmbus::ring::{Packet, RingReader, RingWriter, kind};
use vireo_vmbus::{Channel, OpenError};

/// What wakes the thread: any of its channels, somebody of the host, or the time.
#[derive(Default)]
pub struct Bell {
    rung: Mutex<bool>,
    wake: Condvar,
}

impl Bell {
    /// Wakes the thread.
    pub fn ring(&self) {
        *self.rung.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.wake.notify_one();
    }

    /// Sleeps until it was rung since the last wait ended, or until `due`.
    pub fn wait(&self, due: Option<Instant>) {
        let mut rung = self.rung.lock().unwrap_or_else(PoisonError::into_inner);
        while !*rung {
            let left = due.map(|due| due.saturating_duration_since(Instant::now()));
            rung = match left {
                Some(left) if left.is_zero() => break,
                Some(left) => self.wake.wait_timeout(rung, left).unwrap_or_else(PoisonError::into_inner).0,
                None => self.wake.wait(rung).unwrap_or_else(PoisonError::into_inner),
            };
        }
        *rung = false;
    }
}

/// An open channel.
pub struct Port {
    channel: Arc<Channel>,
    incoming: RingReader,
    outgoing: RingWriter,
    packet: Packet,
    /// The guest broke its ring: nothing more can be read from it.
    broken: bool,
    /// What the guest has had no room for.
    held: Option<Vec<u8>>,
}

impl Port {
    /// Takes a channel in; `bell` is rung when the guest signals it.
    pub fn open(channel: Arc<Channel>, bell: &Arc<Bell>) -> Result<Self, OpenError> {
        let rings = channel.take_rings().ok_or_else(|| OpenError("its rings are taken".into()))?;
        let bell = Arc::clone(bell);
        channel.doorbell().listen(Some(Box::new(move || bell.ring())));
        Ok(Self {
            channel,
            incoming: rings.incoming,
            outgoing: rings.outgoing,
            packet: Packet::default(),
            broken: false,
            held: None,
        })
    }

    /// Hands at most `most` packets to `take`; whether there may be more.
    pub fn receive(&mut self, most: usize, mut take: impl FnMut(&[u8], &Arc<GuestMemory>)) -> bool {
        self.channel.doorbell().answer();
        let mut more = !self.broken;
        for _ in 0..most {
            if !more {
                break;
            }
            match self.incoming.next(&mut self.packet) {
                Ok(true) if self.packet.kind == kind::IN_BAND => {
                    take(self.packet.data(), self.channel.memory());
                }
                Ok(there) => more = there,
                Err(e) => {
                    tracing::debug!("a service's channel is dead: {e}");
                    (self.broken, more) = (true, false);
                }
            }
        }
        if self.incoming.publish() {
            self.channel.signal();
        }
        // What came after the last look rang nobody.
        more || (!self.broken && self.incoming.unmask())
    }

    /// Whether a packet can be sent: the last one has gone.
    pub fn can_send(&mut self) -> bool {
        match self.held.take() {
            Some(packet) => self.send(packet),
            None => true,
        }
    }

    /// Sends a packet, now or when the guest has made room; whether it has gone.
    pub fn send(&mut self, packet: Vec<u8>) -> bool {
        match self.outgoing.write(kind::IN_BAND, 0, false, &packet) {
            Ok(signal) => {
                if signal {
                    self.channel.signal();
                }
                true
            }
            Err(_) => {
                self.held = Some(packet);
                false
            }
        }
    }
}

impl Drop for Port {
    fn drop(&mut self) {
        self.channel.doorbell().listen(None);
    }
}
