//! The conversation of one service with the guest's driver for it: which versions are spoken, then one question at a time.
//!
//! Pure: packets and times come in, packets go out. What the guest is asked comes from outside (a [`Job`]), or from the service
//! itself (its [`Routine`]).

use std::collections::VecDeque;
use std::sync::mpsc::SyncSender;
use std::time::{Duration, Instant};

use uuid::Uuid;

use crate::error::ServiceError;
use crate::message::{Message, Version, agreed, kind, negotiation};

/// Versions of the framework that we speak, the best first.
const FRAMEWORKS: [Version; 2] = [Version(3, 0), Version(1, 0)];
/// Before a guest has chosen: as every framework has it.
const FIRST: Version = Version(1, 0);
/// A driver that has said nothing for so long waits for its daemon, and that does not run.
const SILENCE: Duration = Duration::from_secs(5);
/// Questions that may wait for their turn.
const QUEUE_MAX: usize = 16;

/// What a service is.
#[derive(Debug)]
pub struct Service {
    /// For people.
    pub name: &'static str,
    /// By which drivers find it.
    pub interface: Uuid,
    /// Versions that we speak, the best first.
    pub versions: &'static [Version],
    /// What its messages are of.
    pub kind: u16,
}

/// What the guest said to a question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// 0, or what failed.
    pub status: u32,
    /// The rest.
    pub body: Vec<u8>,
}

/// Who waits for an answer.
pub type Asker = SyncSender<Result<Answer, ServiceError>>;

/// A question of somebody who waits.
pub struct Job {
    /// What is asked.
    pub body: Vec<u8>,
    /// Since when.
    pub asked: Instant,
    /// How long it is waited for.
    pub deadline: Instant,
    /// Who.
    pub asker: Asker,
}

impl Job {
    fn fail(&self, why: ServiceError) {
        // One that waits no more needs no answer.
        _ = self.asker.try_send(Err(why));
    }
}

/// What a service asks by itself.
pub trait Routine: Send {
    /// A driver has come, or has gone: nothing of what was before counts.
    fn restart(&mut self, _now: Instant) {}
    /// The machine goes on after a pause.
    fn resumed(&mut self, _now: Instant) {}
    /// What is to be asked now.
    fn question(&mut self, version: Version, now: Instant) -> Option<Vec<u8>>;
    /// The answer to it.
    fn answered(&mut self, _answer: &Answer, _now: Instant) {}
    /// When there is something to ask next.
    fn due(&self) -> Option<Instant>;
}

/// Nothing is asked but what others ask.
#[derive(Default)]
pub struct Quiet;

impl Routine for Quiet {
    fn question(&mut self, _: Version, _: Instant) -> Option<Vec<u8>> {
        None
    }
    fn due(&self) -> Option<Instant> {
        None
    }
}

/// How far a conversation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// There is no driver.
    Absent,
    /// It has not said what it speaks.
    Negotiating,
    /// It speaks these.
    Ready {
        /// Of the framework.
        framework: Version,
        /// Of the service.
        version: Version,
    },
    /// It speaks nothing that we do.
    Refused,
}

/// Whose question the guest has.
enum Whose {
    Negotiation,
    Routine,
    Other(Job),
    /// Somebody's who has stopped waiting.
    Nobody,
}

/// A conversation.
pub struct Link<R> {
    service: &'static Service,
    routine: R,
    phase: Phase,
    /// Of the next question.
    transaction: u8,
    /// What the guest has not answered. Drivers of Linux have room for one question.
    pending: Option<(u8, Whose)>,
    asked: bool,
    /// Until when it is no wonder that the driver has not said what it speaks.
    silent_until: Option<Instant>,
    queue: VecDeque<Job>,
}

impl<R: Routine> Link<R> {
    /// With nobody.
    pub fn new(service: &'static Service, routine: R) -> Self {
        Self {
            service,
            routine,
            phase: Phase::Absent,
            transaction: 0,
            pending: None,
            asked: false,
            silent_until: None,
            queue: VecDeque::new(),
        }
    }

    /// What it is about.
    pub fn service(&self) -> &'static Service {
        self.service
    }

    /// How far it is.
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// What it asks by itself.
    pub fn routine(&self) -> &R {
        &self.routine
    }

    /// The same, to change it.
    pub fn routine_mut(&mut self) -> &mut R {
        &mut self.routine
    }

    /// A driver has come.
    pub fn open(&mut self, now: Instant) {
        self.close(now);
        (self.phase, self.asked) = (Phase::Negotiating, false);
        self.silent_until = Some(now + SILENCE);
    }

    /// It has gone.
    pub fn close(&mut self, now: Instant) {
        let gone = ServiceError::Gone(self.service.name);
        self.fail_all(&gone);
        self.phase = Phase::Absent;
        self.routine.restart(now);
    }

    fn fail_all(&mut self, why: &ServiceError) {
        if let Some((_, Whose::Other(job))) = self.pending.take() {
            job.fail(why.clone());
        }
        self.queue.drain(..).for_each(|job| job.fail(why.clone()));
    }

    /// The machine goes on.
    pub fn resumed(&mut self, now: Instant) {
        self.routine.resumed(now);
    }

    /// Takes a question in.
    ///
    /// # Errors
    /// It can come to nothing.
    pub fn ask(&mut self, job: Job) -> Result<(), ServiceError> {
        let name = self.service.name;
        match self.phase {
            Phase::Absent => Err(ServiceError::Absent(name)),
            Phase::Refused => Err(ServiceError::Version(name)),
            _ if self.queue.len() >= QUEUE_MAX => Err(ServiceError::Busy(name)),
            _ => {
                self.queue.push_back(job);
                Ok(())
            }
        }
    }

    /// The guest sent a packet.
    pub fn receive(&mut self, packet: &[u8], now: Instant) {
        let Some(message) = Message::parse_answer(packet) else {
            return self.ignore("none of the framework");
        };
        let Some((transaction, whose)) = self.pending.take() else {
            return self.ignore("an answer to nothing");
        };
        let expected = if matches!(whose, Whose::Negotiation) { kind::NEGOTIATE } else { self.service.kind };
        if message.transaction != transaction || message.kind != expected {
            self.pending = Some((transaction, whose));
            return self.ignore("an answer to something else");
        }
        let answer = |message: &Message| Answer { status: message.status, body: message.body.to_vec() };
        match whose {
            Whose::Negotiation => self.negotiated(message.body),
            Whose::Routine => self.routine.answered(&answer(&message), now),
            // One that waits no more needs no answer.
            Whose::Other(job) => _ = job.asker.try_send(Ok(answer(&message))),
            Whose::Nobody => {}
        }
    }

    fn ignore(&self, why: &str) {
        tracing::debug!("{}: a packet of the guest's is ignored: {why}", self.service.name);
    }

    fn negotiated(&mut self, body: &[u8]) {
        match agreed(body, &FRAMEWORKS, self.service.versions) {
            Some((framework, version)) => self.phase = Phase::Ready { framework, version },
            None => {
                self.phase = Phase::Refused;
                self.fail_all(&ServiceError::Version(self.service.name));
            }
        }
        tracing::debug!("{}: {:?}", self.service.name, self.phase);
    }

    /// The next packet to send, if the guest has none of ours.
    pub fn next(&mut self, now: Instant) -> Option<Vec<u8>> {
        self.expire(now);
        if self.pending.is_some() {
            return None;
        }
        let (framework, version, kind, whose, body) = match self.phase {
            Phase::Absent | Phase::Refused => return None,
            Phase::Negotiating if self.asked => return None,
            Phase::Negotiating => {
                self.asked = true;
                let body = negotiation(&FRAMEWORKS, self.service.versions);
                (FIRST, FIRST, kind::NEGOTIATE, Whose::Negotiation, body)
            }
            Phase::Ready { framework, version } => {
                let own = self.routine.question(version, now).map(|body| (Whose::Routine, body));
                let (whose, body) = own.or_else(|| {
                    let mut job = self.queue.pop_front()?;
                    let body = std::mem::take(&mut job.body);
                    Some((Whose::Other(job), body))
                })?;
                (framework, version, self.service.kind, whose, body)
            }
        };
        self.transaction = self.transaction.wrapping_add(1);
        let transaction = self.transaction;
        self.pending = Some((transaction, whose));
        Some(Message { framework, version, kind, status: 0, transaction, body: &body }.question())
    }

    /// Tells those whose time is over.
    pub fn expire(&mut self, now: Instant) {
        let name = self.service.name;
        let no_answer =
            |job: &Job| ServiceError::NoAnswer { service: name, waited: now.duration_since(job.asked) };
        if let Some((_, whose)) = &mut self.pending
            && let Whose::Other(job) = &*whose
            && job.deadline <= now
        {
            job.fail(no_answer(job));
            *whose = Whose::Nobody;
        }
        let silent = self.phase == Phase::Negotiating;
        let hopeless = silent && self.silent_until.is_some_and(|until| until <= now);
        self.queue.retain(|job| {
            let over = hopeless || job.deadline <= now;
            if over {
                job.fail(if silent { ServiceError::Silent(name) } else { no_answer(job) });
            }
            !over
        });
    }

    /// When to look again, if nothing comes before.
    pub fn due(&self) -> Option<Instant> {
        let routine = match self.phase {
            Phase::Ready { .. } if self.pending.is_none() => self.routine.due(),
            _ => None,
        };
        self.patience().into_iter().chain(routine).min()
    }

    /// When the time of somebody who waits is over.
    pub fn patience(&self) -> Option<Instant> {
        let waits = match &self.pending {
            Some((_, Whose::Other(job))) => Some(job.deadline),
            _ => None,
        };
        let silent = self.silent_until.filter(|_| self.phase == Phase::Negotiating && !self.queue.is_empty());
        self.queue.iter().map(|job| job.deadline).chain(waits).chain(silent).min()
    }
}
