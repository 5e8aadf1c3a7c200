//! Dynamic memory as a protocol: what a driver said, what it has been asked for, and what is to be asked next.
//!
//! Pure but for the pages that a guest gives back, which go to the host at once ([`Memory::discard`]).

use std::collections::VecDeque;
use std::ops::Range;
use std::time::{Duration, Instant};

use super::pages::PageSet;
use super::protocol::{Capabilities, FromGuest, PAGE, RANGES_MAX, ToGuest, parse};
use super::target::MemoryLimits;
use crate::message::Version;

/// Versions that we speak.
const VERSIONS: [Version; 3] = [Version(2, 0), Version(1, 0), Version(0, 3)];
/// From this one on a guest is told how much it may come to have.
const WITH_INFORMATION: Version = Version(1, 0);
/// Pages by which drivers count what they give back.
const UNIT: u64 = 512;
/// Most that is asked for or given at a time: what comes meanwhile is looked at in between.
const ROUND: u64 = (256 << 20) / PAGE;
/// Messages of one gift, at most.
const GIFT_MESSAGES: usize = 16;
/// A guest that could not give, or take, is asked again after so long.
const BACKOFF: Duration = Duration::from_secs(10);
/// Answers that wait for their turn: a driver waits for each of them.
const ANSWERS_MAX: usize = 8;

/// Where a guest's pages are.
pub trait Memory {
    /// The guest has given `pages` back: what they held is lost. `false`: they are not RAM.
    fn discard(&self, pages: Range<u64>) -> bool;
}

/// What a driver has been asked for.
#[derive(Debug, PartialEq, Eq)]
enum Request {
    /// To give back so many pages; it has given so many.
    Balloon { asked: u64, given: u64 },
    /// To take pages that it had before.
    Unballoon,
    /// To take new ones.
    HotAdd(Range<u64>),
}

/// What a driver tells of its guest's memory, in pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Report {
    /// Free, or soon free.
    available: u64,
    /// Promised to programs.
    demand: u64,
}

/// Dynamic memory of one machine.
#[derive(Debug)]
pub struct Balloon {
    limits: MemoryLimits,
    /// Pages beyond those that the guest starts with.
    reserve: Vec<Range<u64>>,
    /// What somebody of the host wants it to have; `None`: what it needs.
    wanted: Option<u64>,
    open: bool,
    version: Option<Version>,
    can: Option<Capabilities>,
    report: Option<Report>,
    given: PageSet,
    /// Pages of the reserve that the guest has.
    added: u64,
    /// Pages of the reserve below this number have been offered to it.
    offered: u64,
    /// Answers to the driver's introduction.
    answers: VecDeque<Vec<u8>>,
    /// Messages of a request that is not sent yet.
    outgoing: VecDeque<Vec<u8>>,
    request: Option<Request>,
    /// Nothing is asked before.
    rest: Option<Instant>,
    transaction: u32,
}

impl Balloon {
    /// Of a machine with these limits, whose pages beyond startup are `reserve`; all its pages are below `limit`.
    pub fn new(limits: MemoryLimits, reserve: Vec<Range<u64>>, limit: u64) -> Self {
        Self {
            limits,
            reserve,
            wanted: None,
            open: false,
            version: None,
            can: None,
            report: None,
            given: PageSet::new(limit),
            added: 0,
            offered: 0,
            answers: VecDeque::new(),
            outgoing: VecDeque::new(),
            request: None,
            rest: None,
            transaction: 0,
        }
    }

    /// A driver has come.
    pub fn open(&mut self) {
        self.close();
        self.open = true;
    }

    /// It has gone, and with it what it knew of pages.
    pub fn close(&mut self) {
        self.open = false;
        (self.version, self.can, self.report) = (None, None, None);
        self.given.clear();
        self.answers.clear();
        self.outgoing.clear();
        (self.request, self.rest) = (None, None);
    }

    /// The guest starts anew: with what it had at first.
    pub fn reset(&mut self) {
        self.close();
        (self.added, self.offered) = (0, 0);
        self.wanted = None;
    }

    /// Says what the guest is to have, or (`None`) that it is to have what it needs.
    pub fn want(&mut self, wanted: Option<u64>) {
        self.wanted = wanted;
        self.rest = None;
    }

    /// Within what it may be.
    pub fn limits(&self) -> &MemoryLimits {
        &self.limits
    }

    /// Whether a driver is there and has introduced itself.
    pub fn ready(&self) -> bool {
        self.can.is_some()
    }

    /// Whether a driver is there.
    pub fn is_open(&self) -> bool {
        self.open
    }

    /// The version that is spoken.
    pub fn version(&self) -> Option<Version> {
        self.version
    }

    /// What the guest has, in bytes.
    pub fn assigned(&self) -> u64 {
        let pages = self.limits.startup / PAGE + self.added;
        pages.saturating_sub(self.given.count()) * PAGE
    }

    /// What it has given back, in bytes.
    pub fn given(&self) -> u64 {
        self.given.count() * PAGE
    }

    /// What it got beyond its startup, in bytes.
    pub fn added(&self) -> u64 {
        self.added * PAGE
    }

    /// What it needs, in bytes, as it tells.
    pub fn demand(&self) -> Option<u64> {
        self.report.map(|r| r.demand.saturating_mul(PAGE))
    }

    /// What it has free, in bytes, as it tells.
    pub fn available(&self) -> Option<u64> {
        self.report.map(|r| r.available.saturating_mul(PAGE))
    }

    /// What it is to have, in bytes.
    pub fn target(&self) -> u64 {
        let assigned = self.assigned();
        match (self.wanted, self.demand()) {
            (Some(wanted), _) => self.limits.bounded(wanted),
            (None, Some(demand)) if self.limits.dynamic() => self.limits.target(assigned, demand),
            _ => assigned,
        }
    }

    /// What somebody of the host wants it to have.
    pub fn wanted(&self) -> Option<u64> {
        self.wanted
    }

    /// Whether it has what it is to have, or cannot for now.
    pub fn settled(&self, now: Instant) -> bool {
        let rests = self.rest.is_some_and(|rest| now < rest);
        self.request.is_none() && (rests || !self.ready() || self.change() == Change::None)
    }

    /// The guest sent a packet.
    pub fn receive(&mut self, packet: &[u8], memory: &dyn Memory, now: Instant) {
        let Some((transaction, said)) = parse(packet) else {
            return tracing::debug!("dynamic memory: a message that is none");
        };
        match said {
            FromGuest::Version(version) => {
                let spoken = VERSIONS.contains(&version);
                self.version = Some(version).filter(|_| spoken);
                self.answer(&ToGuest::Version(spoken), transaction);
            }
            FromGuest::Capabilities(can) if self.version.is_some() => {
                self.can = Some(can);
                self.answer(&ToGuest::Capabilities, transaction);
                if self.version >= Some(WITH_INFORMATION) {
                    self.answer(&ToGuest::Maximum(self.limits.maximum / PAGE), transaction);
                }
            }
            // While pages change hands, both sides count differently.
            FromGuest::Status { .. } if self.request.is_some() => {}
            FromGuest::Status { available, committed } if self.ready() => {
                // Drivers count what was given back as promised, too.
                let demand = committed.saturating_sub(self.given.count());
                self.report = Some(Report { available, demand });
            }
            FromGuest::Balloon { more, pages } => self.take(more, pages, memory, now),
            FromGuest::Unballoon if self.request == Some(Request::Unballoon) => self.request = None,
            FromGuest::HotAdd { pages } => self.hot_added(pages, now),
            other => tracing::debug!("dynamic memory: {other:?} comes at the wrong time"),
        }
    }

    fn answer(&mut self, answer: &ToGuest<'_>, transaction: u32) {
        if self.answers.len() < ANSWERS_MAX {
            self.answers.push_back(answer.bytes(transaction));
        }
    }

    /// The guest gives pages back.
    fn take(&mut self, more: bool, pages: Vec<Range<u64>>, memory: &dyn Memory, now: Instant) {
        let request = self.request.take();
        let Some(Request::Balloon { asked, mut given }) = request else {
            self.request = request;
            return tracing::debug!("dynamic memory: pages that nobody asked for are left alone");
        };
        let mut sound = true;
        for range in pages {
            given += range.end - range.start;
            sound = sound && given <= asked && memory.discard(range.clone());
            if !sound {
                tracing::debug!(?range, "dynamic memory: pages that cannot be given back");
                break;
            }
            self.given.insert(range);
        }
        if more && sound {
            self.request = Some(Request::Balloon { asked, given });
        } else if given < asked || !sound {
            self.rest = Some(now + BACKOFF);
        }
    }

    fn hot_added(&mut self, pages: u64, now: Instant) {
        let request = self.request.take();
        let Some(Request::HotAdd(offered)) = request else {
            self.request = request;
            return tracing::debug!("dynamic memory: nobody offered memory that is taken");
        };
        let taken = pages.min(offered.end - offered.start);
        self.added += taken;
        self.offered = offered.start + taken;
        if self.offered < offered.end {
            // It has come to a barrier; what it does not take now is offered again, but not soon.
            self.rest = Some(now + BACKOFF);
        }
    }

    /// What there is to do.
    fn change(&self) -> Change {
        let (target, assigned) = (self.target() / PAGE, self.assigned() / PAGE);
        let can = self.can.unwrap_or_default();
        if target < assigned {
            let pages = (assigned - target) / UNIT * UNIT;
            if can.balloon && pages > 0 { Change::Take(pages.min(ROUND)) } else { Change::None }
        } else if target > assigned && self.given.count() > 0 {
            Change::GiveBack((target - assigned).min(ROUND))
        } else if target > assigned && can.hot_add {
            self.next_reserve(target - assigned, can.alignment / PAGE).map_or(Change::None, Change::Add)
        } else {
            Change::None
        }
    }

    /// The next pages of the reserve, at least so many if there are, in whole pieces.
    fn next_reserve(&self, pages: u64, alignment: u64) -> Option<Range<u64>> {
        let pages = pages.next_multiple_of(alignment).min(ROUND.max(alignment));
        self.reserve.iter().find_map(|range| {
            let start = range.start.max(self.offered).next_multiple_of(alignment);
            let most = range.end.saturating_sub(start) / alignment * alignment;
            (most > 0).then(|| start..start + pages.min(most))
        })
    }

    /// The next message to send.
    pub fn next(&mut self, now: Instant) -> Option<Vec<u8>> {
        if !self.open {
            return None;
        }
        if let Some(message) = self.answers.pop_front().or_else(|| self.outgoing.pop_front()) {
            return Some(message);
        }
        if self.request.is_some() || !self.ready() || self.rest.is_some_and(|rest| now < rest) {
            return None;
        }
        match self.change() {
            Change::None => return None,
            Change::Take(pages) => {
                self.send(&ToGuest::Balloon(u32::try_from(pages).unwrap_or(0)));
                self.request = Some(Request::Balloon { asked: pages, given: 0 });
            }
            Change::GiveBack(pages) => {
                self.give_back(pages);
                self.request = Some(Request::Unballoon);
            }
            Change::Add(pages) => {
                self.send(&ToGuest::HotAdd(pages.clone()));
                self.request = Some(Request::HotAdd(pages));
            }
        }
        self.outgoing.pop_front()
    }

    fn send(&mut self, message: &ToGuest<'_>) {
        self.transaction = self.transaction.wrapping_add(1);
        self.outgoing.push_back(message.bytes(self.transaction));
    }

    /// Gives pages back that were taken, as many as go into some messages.
    fn give_back(&mut self, mut pages: u64) {
        let mut ranges = Vec::new();
        while pages > 0
            && ranges.len() < GIFT_MESSAGES * RANGES_MAX
            && let Some(run) = self.given.take_run(pages)
        {
            pages -= run.end - run.start;
            ranges.push(run);
        }
        let messages = ranges.len().div_ceil(RANGES_MAX);
        for (n, ranges) in ranges.chunks(RANGES_MAX).enumerate() {
            self.send(&ToGuest::Unballoon { more: n + 1 < messages, pages: ranges });
        }
    }

    /// When to look again, if nothing comes before.
    pub fn due(&self) -> Option<Instant> {
        self.rest.filter(|_| self.ready() && self.request.is_none() && self.change() != Change::None)
    }
}

/// What a guest's memory needs next.
#[derive(Debug, PartialEq, Eq)]
enum Change {
    None,
    /// So many pages are to come from the guest.
    Take(u64),
    /// So many are to go back.
    GiveBack(u64),
    /// These are new to it.
    Add(Range<u64>),
}
