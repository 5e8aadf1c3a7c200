//! The server: which channels there are, and what guest and devices do with them. Pure: what is to be done comes out as
//! [`Effect`]s.
//!
//! ```text
//!            offer            request offers          open            opened
//!   (none) ───────▶ Hidden ────────────────▶ Offered ──────▶ Opening ────────▶ Open
//!                     │ revoke                  │  ▲            │ refused        │
//!                     ▼                         │  └────────────┴──── close ─────┤
//!                  (gone)                       │ revoke                         │ revoke
//!                     ▲                         ▼                                ▼
//!                     └─────── released ───── Revoked ◀── close, or time is up ─ Leaving
//! ```
//! A guest that makes first contact anew, or unloads, puts every channel back to Hidden and loses the revoked ones.

mod gpadl;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::device::{Offer, SubchannelError};
use crate::protocol::{
    FromGuest, MESSAGE_CONNECTIONS, OfferedChannel, Open, RELID_MAX, SINT, ToGuest, UserData, Version,
};
use gpadl::{Gpadls, Part};

/// Channels of a device that its guest has not released, before it is offered no more.
const UNRELEASED_MAX: usize = 128;

/// What is to be done, in this order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// A message to the guest, by this vCPU.
    Post {
        /// vCPU.
        vp: u32,
        /// What to say.
        message: ToGuest,
    },
    /// The device opens a channel; [`Server::opened`] is to be called with how that ended.
    Open {
        /// Channel.
        relid: u32,
        /// Device.
        device: u64,
        /// Which of its channels.
        subchannel: u16,
        /// Addresses of the pages of both rings.
        pages: Arc<[u64]>,
        /// How many of them are the ring that the guest writes.
        split: usize,
        /// Where interrupts go.
        vp: u32,
        /// The guest's, for the device.
        user_data: UserData,
    },
    /// The device closes a channel.
    Close {
        /// Channel.
        relid: u32,
        /// Device.
        device: u64,
        /// Which of its channels.
        subchannel: u16,
    },
    /// A channel's interrupts go to another vCPU.
    Retarget {
        /// Channel.
        relid: u32,
        /// vCPU.
        vp: u32,
    },
}

/// What a guest has agreed to.
#[derive(Clone, Copy, Debug)]
struct Connection {
    version: Version,
    /// Where messages go.
    vp: u32,
    /// It asked for offers: new ones are told at once.
    wants_offers: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// The guest has not been told.
    Hidden,
    /// It has.
    Offered,
    /// The device is asked. The guest's name for the opening, and the memory.
    Opening { id: u32, gpadl: u32 },
    /// It is in use.
    Open { gpadl: u32 },
    /// It is in use, and the guest was told that it is gone: it closes it when it has got back what is under way.
    Leaving { gpadl: u32 },
    /// The guest was told that it is gone, and has not released it yet.
    Revoked,
}

#[derive(Clone, Debug)]
struct Entry {
    device: u64,
    subchannel: u16,
    offer: Offer,
    state: State,
}

/// The server of one partition.
#[derive(Clone, Debug, Default)]
pub struct Server {
    connection: Option<Connection>,
    channels: BTreeMap<u32, Entry>,
    gpadls: Gpadls,
}

/// Connections of channels: their number and the SINT, so that none is one of the server's own.
fn connection_of(relid: u32) -> u32 {
    (SINT as u32) << 12 | relid
}

impl Server {
    /// A server without channels.
    pub fn new() -> Self {
        Self::default()
    }

    /// The connection by which the guest signals a channel.
    pub fn connection(relid: u32) -> u32 {
        connection_of(relid)
    }

    /// Offers a device's first channel; `None`: there are no more numbers.
    pub fn offer(&mut self, device: u64, offer: Offer) -> Option<Vec<Effect>> {
        let relid = self.insert(device, 0, offer)?;
        Some(self.tell_of(&[relid]))
    }

    /// Offers further channels of a device whose first one is open; it may have `most` of them in all.
    ///
    /// # Errors
    /// It is not; they are too many, and none was offered.
    pub fn offer_subchannels(
        &mut self,
        device: u64,
        count: u16,
        most: u16,
    ) -> Result<Vec<Effect>, SubchannelError> {
        let first = self.channels.values().find(|e| e.device == device && e.subchannel == 0);
        let first =
            first.filter(|e| matches!(e.state, State::Open { .. })).ok_or(SubchannelError::NotOpen)?;
        let offer = first.offer.clone();
        // A guest that closes and opens the first one may not have released yet what went with it.
        let of_device = || self.channels.values().filter(|e| e.device == device);
        let revoked = of_device().filter(|e| e.state == State::Revoked).count();
        let last = of_device().filter(|e| e.state != State::Revoked).map(|e| e.subchannel).max();
        let last = last.unwrap_or_default();
        let free = RELID_MAX as usize - self.channels.len();
        let end = last
            .checked_add(count)
            .filter(|end| *end <= most && usize::from(count) <= free && revoked <= UNRELEASED_MAX)
            .ok_or(SubchannelError::Full)?;
        let new: Vec<u32> = (last + 1..=end)
            .filter_map(|subchannel| self.insert(device, subchannel, offer.clone()))
            .collect();
        Ok(self.tell_of(&new))
    }

    /// Takes a device away: the guest is told. Its open channels stay until the guest closes them, or
    /// [`Self::close_revoked`]: drivers wait for what is under way.
    pub fn revoke(&mut self, device: u64) -> Vec<Effect> {
        self.revoke_where(|e| e.device == device, true)
    }

    /// Whether a device that was taken away has channels that the guest has not closed.
    pub fn is_leaving(&self, device: u64) -> bool {
        self.channels.values().any(|e| e.device == device && matches!(e.state, State::Leaving { .. }))
    }

    /// Closes them: the guest had time enough.
    pub fn close_revoked(&mut self, device: u64) -> Vec<Effect> {
        let relids: Vec<u32> =
            self.channels.iter().filter(|(_, e)| e.device == device).map(|(r, _)| *r).collect();
        relids.into_iter().flat_map(|relid| self.close(relid)).collect()
    }

    /// Addresses of the pages that the guest gave away under this name, for a device: by its first channel.
    pub fn gpadl(&self, device: u64, name: u32) -> Option<Arc<[u64]>> {
        let first = self.channels.iter().find(|(_, e)| e.device == device && e.subchannel == 0);
        self.gpadls.pages(*first?.0, name)
    }

    /// A device has opened a channel, or not.
    pub fn opened(&mut self, relid: u32, open: bool) -> Vec<Effect> {
        let Some(entry) = self.channels.get_mut(&relid) else { return Vec::new() };
        let State::Opening { id, gpadl } = entry.state else { return Vec::new() };
        entry.state = if open { State::Open { gpadl } } else { State::Offered };
        if !open {
            self.gpadls.set_used(gpadl, false);
        }
        self.say(ToGuest::OpenResult { relid, id, open })
    }

    /// The machine is reset: the guest forgets all, and so do we.
    pub fn reset(&mut self) -> Vec<Effect> {
        let effects = self.close_all();
        self.connection = None;
        effects
    }

    /// A message of the guest's. One that makes no sense is ignored: no driver sends it.
    pub fn message(&mut self, message: FromGuest) -> Vec<Effect> {
        match message {
            FromGuest::Contact { version, vp } => self.contact(version, vp),
            _ if self.connection.is_none() => Vec::new(),
            FromGuest::RequestOffers => self.request_offers(),
            FromGuest::Open(open) => self.open(open),
            FromGuest::Close { relid } => self.close(relid),
            FromGuest::GpadlHeader { relid, gpadl, list, ranges, bytes } => {
                if !self.channels.contains_key(&relid) {
                    return self.say(ToGuest::GpadlCreated { relid, gpadl, created: false });
                }
                let part = self.gpadls.begin(relid, gpadl, list, ranges, &bytes);
                self.gpadl_part(gpadl, part)
            }
            FromGuest::GpadlBody { gpadl, bytes } => {
                let part = self.gpadls.add(gpadl, &bytes);
                self.gpadl_part(gpadl, part)
            }
            FromGuest::GpadlTeardown { relid, gpadl } => {
                // A guest that takes back what its rings are in gets no answer: no driver does.
                match self.gpadls.tear_down(relid, gpadl) {
                    true => self.say(ToGuest::GpadlTornDown { gpadl }),
                    false => Vec::new(),
                }
            }
            FromGuest::Released { relid } => self.released(relid),
            FromGuest::Unload => self.unload(),
            FromGuest::Modify { relid, vp } => self.modify(relid, vp),
            FromGuest::ConnectSocket { ids } => self.say(ToGuest::NoSocket { ids }),
        }
    }

    fn insert(&mut self, device: u64, subchannel: u16, offer: Offer) -> Option<u32> {
        let relid = (1..=RELID_MAX).find(|relid| !self.channels.contains_key(relid))?;
        self.channels.insert(relid, Entry { device, subchannel, offer, state: State::Hidden });
        Some(relid)
    }

    /// A message to the guest, if there is one that listens.
    fn say(&self, message: ToGuest) -> Vec<Effect> {
        self.connection.iter().map(|c| Effect::Post { vp: c.vp, message: message.clone() }).collect()
    }

    /// Tells of hidden channels, if the guest wants to know.
    fn tell_of(&mut self, relids: &[u32]) -> Vec<Effect> {
        let Some(connection) = self.connection.filter(|c| c.wants_offers) else { return Vec::new() };
        let mut effects = Vec::new();
        for &relid in relids {
            let Some(entry) = self.channels.get_mut(&relid).filter(|e| e.state == State::Hidden) else {
                continue;
            };
            entry.state = State::Offered;
            let message = ToGuest::Offer(Box::new(OfferedChannel {
                interface: entry.offer.interface,
                instance: entry.offer.instance,
                subchannel: entry.subchannel,
                relid,
                connection: connection_of(relid),
                memory: entry.offer.memory,
                user_data: entry.offer.user_data,
            }));
            effects.push(Effect::Post { vp: connection.vp, message });
        }
        effects
    }

    /// First contact. Whoever was there before is gone without a word (a kernel started by another).
    fn contact(&mut self, version: Version, vp: u32) -> Vec<Effect> {
        let mut effects = self.close_all();
        let spoken = Version::ALL.contains(&version);
        self.connection = spoken.then_some(Connection { version, vp, wants_offers: false });
        let connection = spoken.then_some(MESSAGE_CONNECTIONS[usize::from(version.names_connection())]);
        effects.push(Effect::Post { vp, message: ToGuest::Version { connection } });
        effects
    }

    fn request_offers(&mut self) -> Vec<Effect> {
        if let Some(c) = &mut self.connection {
            c.wants_offers = true;
        }
        let all: Vec<u32> = self.channels.keys().copied().collect();
        let mut effects = self.tell_of(&all);
        effects.extend(self.say(ToGuest::AllOffers));
        effects
    }

    fn open(&mut self, open: Open) -> Vec<Effect> {
        let Open { relid, id, gpadl, vp, split, user_data } = open;
        let refused = ToGuest::OpenResult { relid, id, open: false };
        let Some(entry) = self.channels.get_mut(&relid).filter(|e| e.state == State::Offered) else {
            return self.say(refused);
        };
        let Some(pages) = self.gpadls.pages(relid, gpadl).filter(|p| (split as usize) < p.len()) else {
            return self.say(refused);
        };
        entry.state = State::Opening { id, gpadl };
        self.gpadls.set_used(gpadl, true);
        let (device, subchannel) = (entry.device, entry.subchannel);
        vec![Effect::Open { relid, device, subchannel, pages, split: split as usize, vp, user_data }]
    }

    /// The effects of closing a channel that may be open; it is Offered, or Revoked, afterwards.
    fn close(&mut self, relid: u32) -> Vec<Effect> {
        let Some(entry) = self.channels.get_mut(&relid) else { return Vec::new() };
        let (gpadl, next) = match entry.state {
            State::Open { gpadl } => (gpadl, State::Offered),
            State::Leaving { gpadl } => (gpadl, State::Revoked),
            _ => return Vec::new(),
        };
        entry.state = next;
        let (device, subchannel) = (entry.device, entry.subchannel);
        self.gpadls.set_used(gpadl, false);
        let mut effects = vec![Effect::Close { relid, device, subchannel }];
        if subchannel == 0 {
            // Its further channels were for this opening.
            effects.extend(self.revoke_where(|e| e.device == device && e.subchannel != 0, false));
        }
        effects
    }

    /// `gently`: open channels stay open until the guest closes them.
    fn revoke_where(&mut self, which: impl Fn(&Entry) -> bool, gently: bool) -> Vec<Effect> {
        let relids: Vec<u32> = self.channels.iter().filter(|(_, e)| which(e)).map(|(r, _)| *r).collect();
        let mut effects = Vec::new();
        for relid in relids {
            if !gently {
                effects.extend(self.close(relid));
            }
            let Some(entry) = self.channels.get_mut(&relid) else { continue };
            match entry.state {
                State::Hidden => _ = self.channels.remove(&relid),
                State::Revoked | State::Leaving { .. } => {}
                State::Open { gpadl } => {
                    entry.state = State::Leaving { gpadl };
                    effects.extend(self.say(ToGuest::Rescind { relid }));
                }
                State::Offered | State::Opening { .. } => {
                    entry.state = State::Revoked;
                    effects.extend(self.say(ToGuest::Rescind { relid }));
                }
            }
        }
        effects
    }

    fn gpadl_part(&mut self, gpadl: u32, part: Part) -> Vec<Effect> {
        match part {
            Part::Incomplete | Part::Unknown => Vec::new(),
            Part::Whole { relid } => self.say(ToGuest::GpadlCreated { relid, gpadl, created: true }),
            Part::Bad { relid } => self.say(ToGuest::GpadlCreated { relid, gpadl, created: false }),
        }
    }

    fn released(&mut self, relid: u32) -> Vec<Effect> {
        let leaving = self.channels.get(&relid).is_some_and(|e| matches!(e.state, State::Leaving { .. }));
        let effects = if leaving { self.close(relid) } else { Vec::new() };
        if self.channels.get(&relid).is_some_and(|e| e.state == State::Revoked) {
            self.channels.remove(&relid);
            self.gpadls.release(relid);
        }
        effects
    }

    fn unload(&mut self) -> Vec<Effect> {
        let mut effects = self.close_all();
        effects.extend(self.say(ToGuest::Unloaded));
        self.connection = None;
        effects
    }

    /// Every channel is closed and hidden; those that the guest was told are gone, and further ones, are.
    fn close_all(&mut self) -> Vec<Effect> {
        let open =
            |e: &Entry| matches!(e.state, State::Open { .. } | State::Opening { .. } | State::Leaving { .. });
        let effects = self
            .channels
            .iter()
            .filter(|(_, e)| open(e))
            .map(|(&relid, e)| Effect::Close { relid, device: e.device, subchannel: e.subchannel })
            .collect();
        let gone = |e: &Entry| matches!(e.state, State::Revoked | State::Leaving { .. });
        self.channels.retain(|_, e| !gone(e) && e.subchannel == 0);
        self.channels.values_mut().for_each(|e| e.state = State::Hidden);
        self.gpadls = Gpadls::default();
        effects
    }

    fn modify(&mut self, relid: u32, vp: u32) -> Vec<Effect> {
        let open = |e: &Entry| matches!(e.state, State::Open { .. } | State::Leaving { .. });
        let done = self.channels.get(&relid).is_some_and(open);
        let mut effects = Vec::new();
        if done {
            effects.push(Effect::Retarget { relid, vp });
        }
        if self.connection.is_some_and(|c| c.version.answers_modify()) {
            effects.extend(self.say(ToGuest::Modified { relid, done }));
        }
        effects
    }
}
