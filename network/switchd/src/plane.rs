//! The data plane: moves frames between ports, on one thread, which owns the switch and all ports' ends.
//!
//! It goes around all ports that have frames, each moving no more than its share, and sleeps when none has any. Others' wishes come to it as
//! calls ([`Handle::call`]), so nothing in it is locked.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, Timespec, epoll};
use vireo_frame::{Frame, Intent};
use vireo_port::wire::{self, Answer, Heard, Word};
use vireo_port::{PortMemory, PortRequest, Record, Refused, RingWriter, Way};
use vireo_switch::{Nanos, PortId, REPORT_MAX, Reason, Settings, Switch, SwitchError, Verdict};

use crate::closer::Closer;
use crate::complaints::Complaints;
use crate::member::{Head, Member};
use crate::report::{PortReport, report};

/// Wake-ups that are taken at a time.
const EVENTS: usize = 64;
/// Messages of a port that are heard at a time.
const MESSAGES: usize = 8;
/// Rounds after which a busy thread looks who else wants something.
const ROUNDS: u32 = 8;
/// How often what is too old is forgotten.
const AGEING: Nanos = 1_000_000_000;
/// Lines about ports that were closed, at once: a worker may have it done as often as it connects.
const COMPLAINTS: u32 = 32;
/// The name of our own wake-ups among those of ports, which are numbers of 32 bits.
const WAKE: u64 = u64::MAX;

/// Somebody who looks on.
struct Capture {
    number: u32,
    /// Only at what comes or goes by this port.
    port: Option<PortId>,
    writer: RingWriter,
    socket: OwnedFd,
    has_news: bool,
}

type Call = Box<dyn FnOnce(&mut Plane) + Send>;

/// The data plane of a switch.
pub struct Plane {
    switch: Switch,
    /// In the order of their numbers.
    members: Vec<Member>,
    captures: Vec<Capture>,
    /// The number of the next capture.
    next_capture: u32,
    /// Who has frames, perhaps.
    active: Vec<PortId>,
    /// Places of those in whose rings frames were put.
    news: Vec<usize>,
    head: Box<Head>,
    lost: Vec<(PortId, usize)>,
    complaints: Complaints,
    closer: Closer,
    calls: Receiver<Call>,
    wake: Arc<OwnedFd>,
    epoll: OwnedFd,
    /// Who wakes us.
    ready: Vec<u64>,
    /// What workers say: a message, or a report of members.
    messages: Vec<u8>,
    started: Instant,
    aged: Nanos,
    is_ending: bool,
}

/// Calls the data plane, from any thread.
#[derive(Clone)]
pub struct Handle {
    calls: Sender<Call>,
    wake: Arc<OwnedFd>,
}

impl Handle {
    /// Has the data plane do something, and waits for it; `None`: it has ended.
    pub fn call<R: Send + 'static>(&self, what: impl FnOnce(&mut Plane) -> R + Send + 'static) -> Option<R> {
        let (done, result) = channel();
        let call = Box::new(move |plane: &mut Plane| _ = done.send(what(plane)));
        self.calls.send(call).ok()?;
        // It is full only if there are more wake-ups in it than anybody counts.
        _ = rustix::io::write(&*self.wake, &1_u64.to_ne_bytes());
        result.recv().ok()
    }
}

impl Plane {
    /// One without ports.
    ///
    /// # Errors
    /// The host refuses a file descriptor.
    pub fn new() -> io::Result<(Self, Handle)> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let wake = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        epoll::add(&epoll, &wake, epoll::EventData::new_u64(WAKE), epoll::EventFlags::IN)?;
        let (sender, calls) = channel();
        let wake = Arc::new(wake);
        let handle = Handle { calls: sender, wake: Arc::clone(&wake) };
        let plane = Self {
            switch: Switch::new(),
            members: Vec::new(),
            captures: Vec::new(),
            next_capture: 0,
            active: Vec::new(),
            news: Vec::new(),
            head: Box::new(Head::new()),
            lost: Vec::new(),
            complaints: Complaints::new(COMPLAINTS),
            closer: Closer::new()?,
            calls,
            wake,
            epoll,
            ready: Vec::with_capacity(EVENTS),
            messages: vec![0; wire::MESSAGE_MAX],
            started: Instant::now(),
            aged: 0,
            is_ending: false,
        };
        Ok((plane, handle))
    }

    /// The switch.
    pub fn switch(&mut self) -> &mut Switch {
        &mut self.switch
    }

    /// What time it is to the switch.
    pub fn now(&self) -> Nanos {
        self.started.elapsed().as_nanos().try_into().unwrap_or(Nanos::MAX)
    }

    /// Adds a port: its memory, and the socket by which its sides wake each other.
    ///
    /// # Errors
    /// The switch takes none like that.
    pub fn add(
        &mut self,
        name: String,
        settings: Settings,
        memory: PortMemory,
        socket: OwnedFd,
    ) -> Result<PortId, SwitchError> {
        if self.find(&name).is_some() {
            return Err(SwitchError::Named(name));
        }
        let weight = settings.weight;
        let id = self.switch.add(settings)?;
        let data = epoll::EventData::new_u64(id.number().into());
        if epoll::add(&self.epoll, &socket, data, epoll::EventFlags::IN | epoll::EventFlags::RDHUP).is_err() {
            _ = self.switch.remove(id, self.now());
            return Err(SwitchError::Full);
        }
        self.members.push(Member::new(id, name, socket, memory, weight));
        self.active.push(id);
        Ok(id)
    }

    /// Adds a worker's port, of which it is kept what the worker asked for.
    ///
    /// # Errors
    /// As for [`Self::add`].
    pub fn add_worker(
        &mut self,
        request: PortRequest,
        settings: Settings,
        memory: PortMemory,
        socket: OwnedFd,
    ) -> Result<PortId, SwitchError> {
        let id = self.add(request.name.clone(), settings, memory, socket)?;
        if let Some(at) = self.place_of(id) {
            self.members[at].asked = Some(request);
        }
        Ok(id)
    }

    /// The port of that name. One whose worker has gone just now is none.
    pub fn find(&mut self, name: &str) -> Option<PortId> {
        let at = self.members.iter().position(|m| m.name == name)?;
        let id = self.members[at].id;
        self.listen(at);
        self.sweep();
        self.place_of(id).map(|_| id)
    }

    /// Gives each port the settings that `settings` says, if it does so: all, or none of them. It is told the port's name, what its
    /// worker asked for, and the settings that it has.
    ///
    /// # Errors
    /// Some cannot be; it says of which port.
    pub fn set_all(
        &mut self,
        settings: impl Fn(&str, Option<&PortRequest>, &Settings) -> Option<Settings>,
    ) -> Result<(), (String, SwitchError)> {
        let mut before = Vec::new();
        for n in 0..self.members.len() {
            let Member { id, ref name, ref asked, .. } = self.members[n];
            let Some(old) = self.switch.settings(id).cloned() else { continue };
            let Some(new) = settings(name, asked.as_ref(), &old) else { continue };
            let name = name.clone();
            before.push((id, old));
            if let Err(e) = self.set(id, new) {
                for (id, old) in before {
                    _ = self.set(id, old);
                }
                return Err((name, e));
            }
        }
        Ok(())
    }

    /// Gives a port other settings.
    ///
    /// # Errors
    /// They cannot be, or there is no such port.
    pub fn set(&mut self, id: PortId, settings: Settings) -> Result<(), SwitchError> {
        let weight = settings.weight;
        self.switch.set(id, settings, self.now())?;
        if let Some(at) = self.place_of(id) {
            self.members[at].set_weight(weight);
            // How long it was to wait was by the limit that it had.
            self.members[at].waits_until = 0;
        }
        Ok(())
    }

    /// Closes ports whose workers asked for what they may not have; `fits` says why. They may ask again.
    pub fn close_unless(&mut self, fits: impl Fn(&PortRequest) -> Result<(), String>) {
        let now = self.now();
        for member in &mut self.members {
            if let Some(Err(why)) = member.asked.as_ref().map(&fits) {
                close(member, &mut self.complaints, now, &why);
            }
        }
        self.sweep();
    }

    /// From now on copies of frames, of all or of what comes or goes by a port, go to the ring of who looks on. Its number.
    pub fn add_capture(&mut self, port: Option<PortId>, memory: PortMemory, socket: OwnedFd) -> u32 {
        let number = self.next_capture;
        self.next_capture = number.wrapping_add(1);
        let writer = RingWriter::new(&Arc::new(memory), Way::Down);
        self.captures.push(Capture { number, port, writer, socket, has_news: false });
        number
    }

    /// No more.
    pub fn end_capture(&mut self, number: u32) {
        self.captures.retain(|c| c.number != number);
    }

    /// All ports and what passed them.
    pub fn report(&self) -> Vec<PortReport> {
        let of = |m: &Member| {
            let settings = self.switch.settings(m.id)?;
            let counters = self.switch.counters(m.id)?;
            let mac = self.switch.address(m.id);
            Some(report(m, mac, settings, &counters))
        };
        self.members.iter().filter_map(of).collect()
    }

    /// The name of a port.
    pub fn name_of(&self, id: PortId) -> Option<&str> {
        self.place_of(id).map(|at| self.members[at].name.as_str())
    }

    /// Ends [`Self::run`].
    pub fn end(&mut self) {
        self.is_ending = true;
    }

    /// Moves frames until [`Self::end`] is called.
    pub fn run(&mut self) {
        let mut rounds = 0;
        while !self.is_ending {
            let now = self.now();
            if self.round(now) {
                rounds += 1;
                if rounds >= ROUNDS {
                    rounds = 0;
                    self.look(Some(Duration::ZERO));
                }
            } else {
                let most = self.wait(now);
                self.look(most);
            }
            if now.saturating_sub(self.aged) >= AGEING {
                self.aged = now;
                self.switch.age(now);
                self.ask(now);
            }
        }
    }

    /// Puts the switch's own questions about groups.
    fn ask(&mut self, now: Nanos) {
        let Self { switch, members, news, .. } = self;
        switch.ask(now, |bytes, to| {
            let Ok(at) = members.binary_search_by_key(&to.port, |m| m.id) else { return };
            let intent = Intent { tag: to.tag, ..Intent::default() };
            // Who has no room is asked again.
            if let Ok(frame) = Frame::new(bytes, &[], intent)
                && members[at].writer.put(&frame).is_ok()
                && !std::mem::replace(&mut members[at].has_news, true)
            {
                news.push(at);
            }
        });
        self.tell();
    }

    /// Hears who wants something now. [`Self::run`] does so by itself.
    pub fn hear(&mut self) {
        self.look(Some(Duration::ZERO));
    }

    /// Goes around all ports that may have frames; whether any had.
    pub fn round(&mut self, now: Nanos) -> bool {
        let mut moved = false;
        for n in 0..self.active.len() {
            if let Some(at) = self.place_of(self.active[n]) {
                moved |= self.serve(at, now);
            }
        }
        // Another one is first next time.
        if moved && self.active.len() > 1 {
            self.active.rotate_left(1);
        }
        self.tell();
        if self.members.iter().any(|m| m.is_gone) {
            self.sweep();
        }
        moved
    }

    /// Tells receivers of what they got. Before any port goes: others have other places then.
    fn tell(&mut self) {
        for at in self.news.drain(..) {
            self.members[at].tell();
        }
        for capture in &mut self.captures {
            if std::mem::take(&mut capture.has_news) && capture.writer.publish() {
                wire::ring(&capture.socket);
            }
        }
    }

    /// Moves a port's frames, as many as its share is; whether there were any.
    fn serve(&mut self, at: usize, now: Nanos) -> bool {
        if self.members[at].waits_until > now || self.members[at].is_gone {
            return false;
        }
        self.members[at].begin();
        let mut moved = false;
        loop {
            let member = &mut self.members[at];
            let record = match member.next() {
                Ok(Some(record)) => record,
                Ok(None) => break,
                Err(broken) => {
                    close(member, &mut self.complaints, now, &broken);
                    break;
                }
            };
            let id = member.id;
            if !self.head.take(&member.reader, &record) {
                self.switch.refuse(id, Reason::Malformed);
            } else {
                let (bytes, outer) = (self.head.bytes(), self.head.intent.tag);
                match self.switch.forward(now, id, bytes, record.length, outer) {
                    Verdict::Wait(time) => {
                        let time = time.as_nanos().try_into().unwrap_or(Nanos::MAX);
                        self.members[at].waits_until = now.saturating_add(time);
                        break;
                    }
                    Verdict::Drop(_) => {}
                    Verdict::Deliver => {
                        if self.switch.wants_whole() {
                            let all = &mut self.messages[..record.length.min(REPORT_MAX)];
                            self.members[at].reader.read(&record, 0, all);
                            self.switch.hear_whole(all);
                        }
                        self.deliver(at, &record, now);
                        if !self.captures.is_empty() {
                            self.copy(at, &record);
                        }
                    }
                }
            }
            self.members[at].consume(record);
            moved = true;
        }
        self.members[at].publish();
        moved
    }

    /// Copies a frame for those that look on, as it came.
    fn copy(&mut self, from: usize, record: &Record) {
        let sender = &self.members[from];
        for capture in &mut self.captures {
            let is_its = |port| port == sender.id || self.switch.deliveries().iter().any(|d| d.port == port);
            if capture.port.is_none_or(is_its) {
                // Who does not read in time has gaps.
                _ = self.head.copy(&sender.reader, record, &mut capture.writer);
                capture.has_news = true;
            }
        }
    }

    /// Puts a frame into the rings of those that the switch has chosen.
    fn deliver(&mut self, from: usize, record: &Record, now: Nanos) {
        for delivery in self.switch.deliveries() {
            let Ok(to) = self.members.binary_search_by_key(&delivery.port, |m| m.id) else { continue };
            let Ok([sender, receiver]) = self.members.get_disjoint_mut([from, to]) else { continue };
            match self.head.put(&sender.reader, record, *delivery, &mut receiver.writer) {
                Ok(()) if receiver.has_news => {}
                Ok(()) => {
                    receiver.has_news = true;
                    self.news.push(to);
                }
                Err(Refused::Full) => self.lost.push((delivery.port, record.length)),
                Err(Refused::Broken(broken)) => close(receiver, &mut self.complaints, now, &broken),
            }
        }
        for (port, length) in self.lost.drain(..) {
            self.switch.lost(port, length);
        }
    }

    /// Asks all ports to wake us; how long we may sleep: not at all if one has something already.
    fn wait(&mut self, now: Nanos) -> Option<Duration> {
        let mut most = AGEING.saturating_sub(now.saturating_sub(self.aged));
        let Self { active, members, complaints, .. } = self;
        active.retain(|id| {
            let Ok(at) = members.binary_search_by_key(id, |m| m.id) else { return false };
            let member = &mut members[at];
            if member.waits_until > now {
                most = most.min(member.waits_until - now);
                return true;
            }
            match member.reader.wait() {
                Ok(false) => member.is_active = false,
                Ok(true) => most = 0,
                Err(broken) => {
                    close(member, complaints, now, &broken);
                    most = 0;
                }
            }
            member.is_active
        });
        Some(Duration::from_nanos(most))
    }

    /// Hears who wants something, for so long at most.
    fn look(&mut self, most: Option<Duration>) {
        let most = most.map(|d| Timespec { tv_sec: d.as_secs() as i64, tv_nsec: d.subsec_nanos().into() });
        let mut events = [const { MaybeUninit::uninit() }; EVENTS];
        self.ready.clear();
        if let Ok((events, _)) = epoll::wait(&self.epoll, &mut events[..], most.as_ref()) {
            self.ready.extend(events.iter().map(|e| e.data.u64()));
        }
        for n in 0..self.ready.len() {
            match self.ready[n] {
                WAKE => self.take_calls(),
                number => {
                    let at = self.members.binary_search_by_key(&number, |m| m.id.number().into());
                    if let Ok(at) = at {
                        self.listen(at);
                    }
                }
            }
        }
        self.sweep();
    }

    fn take_calls(&mut self) {
        _ = rustix::io::read(&*self.wake, &mut [0; 8]);
        while let Ok(call) = self.calls.try_recv() {
            call(self);
        }
    }

    /// Hears what a worker says.
    fn listen(&mut self, at: usize) {
        for _ in 0..MESSAGES {
            let member = &mut self.members[at];
            match wire::receive(&member.socket, false, &mut self.messages) {
                Heard::Bell if member.is_active => {}
                Heard::Bell => {
                    member.is_active = true;
                    self.active.push(member.id);
                }
                Heard::Nothing => return,
                Heard::Gone => {
                    // What it sent at last.
                    self.serve(at, self.now());
                    self.tell();
                    self.members[at].is_gone = true;
                    return;
                }
                Heard::Message(_, Some(file)) => return self.refuse_files(at, vec![file]),
                Heard::Files(files) => return self.refuse_files(at, files),
                Heard::Message(message, None) => match wire::parse::<Word>(message) {
                    Ok(word) => self.told(at, &word),
                    Err(why) => {
                        let now = self.now();
                        let why = format_args!("what it says is {why}");
                        return close(&mut self.members[at], &mut self.complaints, now, &why);
                    }
                },
            }
        }
    }

    /// A worker sends files, which no honest one does.
    fn refuse_files(&mut self, at: usize, files: Vec<OwnedFd>) {
        files.into_iter().for_each(|file| self.closer.close(file));
        let now = self.now();
        close(&mut self.members[at], &mut self.complaints, now, &"it sends files");
    }

    /// A worker tells of its adapter.
    fn told(&mut self, at: usize, word: &Word) {
        let now = self.now();
        let member = &mut self.members[at];
        if let Some(filter) = word.filter() {
            _ = self.switch.set_filter(member.id, filter);
        }
        if let Word::Address { mac } = *word {
            let set = match member.addresses.take(1, now) {
                Ok(()) => self.switch.set_address(member.id, mac).map_err(|e| e.to_string()),
                Err(_) => Err("it asks for another one too often".into()),
            };
            // A guest asks as often as it likes.
            if let Err(why) = &set
                && let Some(unsaid) = member.complaints.may(now)
            {
                tracing::warn!(port = member.name, %mac, unsaid, "another address is not allowed: {why}");
            }
            // Who does not read is not waited for.
            let answer = Answer { mac, allowed: set.is_ok() };
            member.is_gone |= wire::send(&member.socket, &answer, None, false).is_err();
        }
    }

    /// Takes away ports whose workers are gone.
    fn sweep(&mut self) {
        let now = self.now();
        let mut n = 0;
        while n < self.members.len() {
            match self.members[n].is_gone {
                true => {
                    let member = self.members.remove(n);
                    _ = epoll::delete(&self.epoll, &member.socket);
                    _ = self.switch.remove(member.id, now);
                    tracing::info!(port = member.name, "is gone");
                    // The worker hears of it now; files may be in what was not read.
                    _ = rustix::net::shutdown(&member.socket, rustix::net::Shutdown::Both);
                    self.closer.close(member.socket);
                }
                false => n += 1,
            }
        }
    }

    fn place_of(&self, id: PortId) -> Option<usize> {
        self.members.binary_search_by_key(&id, |m| m.id).ok()
    }
}

/// Closes a port whose worker broke the rules.
fn close(member: &mut Member, complaints: &mut Complaints, now: Nanos, why: &dyn std::fmt::Display) {
    member.is_gone = true;
    if let Some(unsaid) = complaints.may(now) {
        tracing::warn!(port = member.name, unsaid, "closed: {why}");
    }
}
