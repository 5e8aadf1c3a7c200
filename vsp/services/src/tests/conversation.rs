//! Conversations without rings, threads and clocks.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::{Duration, Instant};

use proptest::prelude::*;

use crate::error::ServiceError;
use crate::heartbeat::{self, Heartbeat};
use crate::link::{Answer, Job, Link, Phase, Quiet, Routine};
use crate::message::{Message, Version, kind, negotiation};
use crate::time::{self, TimeSource, TimeSync};
use crate::{kvp, shutdown, vss};

const SECOND: Duration = Duration::from_secs(1);

/// What a driver reads of a question: kind, transaction, body.
fn read(packet: &[u8]) -> (u16, u8, Vec<u8>) {
    assert_eq!(packet[25], 3, "a question of a transaction");
    let size = usize::from(u16::from_le_bytes([packet[18], packet[19]]));
    assert_eq!(packet.len(), 28 + size);
    (u16::from_le_bytes([packet[12], packet[13]]), packet[24], packet[28..].to_vec())
}

fn reply(kind: u16, transaction: u8, status: u32, body: &[u8]) -> Vec<u8> {
    let (framework, version) = (Version(3, 0), Version(3, 0));
    Message { framework, version, kind, status, transaction, body }.answer()
}

/// Answers the first question of a conversation.
fn agree<R: Routine>(link: &mut Link<R>, version: Version, now: Instant) {
    link.open(now);
    let (kind, transaction, body) = read(&link.next(now).expect("a question"));
    assert_eq!(
        (kind, body[..4].to_vec()),
        (kind::NEGOTIATE, vec![2, 0, link.service().versions.len() as u8, 0])
    );
    link.receive(&reply(kind, transaction, 0, &negotiation(&[Version(3, 0)], &[version])), now);
    assert_eq!(link.phase(), Phase::Ready { framework: Version(3, 0), version });
}

fn job(body: &[u8], now: Instant, patience: Duration) -> (Job, Receiver<Result<Answer, ServiceError>>) {
    let (asker, answer) = sync_channel(1);
    (Job { body: body.into(), asked: now, deadline: now + patience, asker }, answer)
}

fn quiet() -> Link<Quiet> {
    Link::new(&shutdown::SERVICE, Quiet)
}

#[test]
fn one_question_at_a_time_and_its_own_answer() {
    let (mut link, now) = (quiet(), Instant::now());
    let (first, answered_first) = job(b"first", now, SECOND);
    assert_eq!(link.ask(first), Err(ServiceError::Absent("shutdown")));
    agree(&mut link, Version(3, 2), now);
    assert_eq!(answered_first.try_recv().ok(), None);
    let (first, answered_first) = job(b"first", now, SECOND);
    let (second, answered_second) = job(b"second", now, SECOND);
    link.ask(first).unwrap();
    link.ask(second).unwrap();
    let (kind, transaction, body) = read(&link.next(now).unwrap());
    assert_eq!((kind, &body[..]), (kind::SHUTDOWN, &b"first"[..]));
    assert_eq!(link.next(now), None, "the guest has one");
    for wrong in [
        reply(kind, transaction + 1, 0, b"other transaction"),
        reply(kind::KVP, transaction, 0, b"other kind"),
        Message { status: 0, kind, transaction, framework: Version(3, 0), version: Version(3, 2), body: b"" }
            .question(),
        b"short".to_vec(),
    ] {
        link.receive(&wrong, now);
        assert_eq!((answered_first.try_recv().ok(), link.next(now)), (None, None));
    }
    link.receive(&reply(kind, transaction, 5, b"done"), now);
    link.receive(&reply(kind, transaction, 6, b"again"), now);
    let answer = Answer { status: 5, body: b"done".to_vec() };
    assert_eq!(answered_first.try_recv(), Ok(Ok(answer)));
    assert_eq!(read(&link.next(now).unwrap()).2, b"second");
    assert_eq!(answered_second.try_recv().ok(), None);
    link.close(now);
    assert_eq!(answered_second.try_recv(), Ok(Err(ServiceError::Gone("shutdown"))));
}

#[test]
fn who_waits_too_long_is_told_and_a_late_answer_is_nobodys() {
    let (mut link, now) = (quiet(), Instant::now());
    agree(&mut link, Version(3, 0), now);
    let (slow, answered_slow) = job(b"slow", now, SECOND);
    let (next, answered_next) = job(b"next", now, 9 * SECOND);
    link.ask(slow).unwrap();
    let (kind, transaction, _) = read(&link.next(now).unwrap());
    link.ask(next).unwrap();
    assert_eq!(link.due(), Some(now + SECOND));
    let later = now + SECOND;
    assert_eq!(link.next(later), None, "the guest has the first still");
    let waited = Err(ServiceError::NoAnswer { service: "shutdown", waited: SECOND });
    assert_eq!(answered_slow.try_recv(), Ok(waited));
    assert_eq!(link.due(), Some(now + 9 * SECOND));
    link.receive(&reply(kind, transaction, 0, b"late"), later);
    assert_eq!(answered_next.try_recv().ok(), None);
    let (kind, transaction, _) = read(&link.next(later).unwrap());
    link.receive(&reply(kind, transaction, 0, b"in time"), later);
    assert_eq!(answered_next.try_recv().unwrap().unwrap().body, b"in time");
}

#[test]
fn a_guest_without_a_version_or_a_daemon_is_told_apart() {
    let (mut link, now) = (quiet(), Instant::now());
    link.open(now);
    let (waits, answered) = job(b"", now, SECOND);
    link.ask(waits).unwrap();
    let (kind, transaction, _) = read(&link.next(now).unwrap());
    assert_eq!(link.next(now + SECOND), None);
    assert_eq!(answered.try_recv(), Ok(Err(ServiceError::Silent("shutdown"))));
    // One that has said nothing for long is not waited for.
    let (waits, answered) = job(b"", now, 99 * SECOND);
    link.ask(waits).unwrap();
    assert_eq!(link.due(), Some(now + 5 * SECOND));
    assert_eq!(link.next(now + 5 * SECOND), None);
    assert_eq!(answered.try_recv(), Ok(Err(ServiceError::Silent("shutdown"))));
    let (waits, answered) = job(b"", now, 5 * SECOND);
    link.ask(waits).unwrap();
    let mut none = negotiation(&[Version(3, 0)], &[Version(3, 0)]);
    none[..4].fill(0);
    link.receive(&reply(kind, transaction, 0, &none), now);
    assert_eq!(answered.try_recv(), Ok(Err(ServiceError::Version("shutdown"))));
    assert_eq!(link.ask(job(b"", now, SECOND).0), Err(ServiceError::Version("shutdown")));
    assert_eq!(link.next(now), None);
}

#[test]
fn no_more_questions_wait_than_may() {
    let (mut link, now) = (quiet(), Instant::now());
    agree(&mut link, Version(3, 0), now);
    let taken = (0..40).take_while(|_| link.ask(job(b"", now, SECOND).0).is_ok()).count();
    assert_eq!(taken, 16);
    assert_eq!(link.ask(job(b"", now, SECOND).0), Err(ServiceError::Busy("shutdown")));
}

#[test]
fn a_heart_beats_every_two_seconds_and_counts_if_it_is_the_guests() {
    let start = Instant::now();
    let mut link = Link::new(&heartbeat::SERVICE, Heartbeat::new(start));
    agree(&mut link, Version(3, 0), start);
    let mut now = start;
    for n in 1..4_u64 {
        let (kind, transaction, mut body) = read(&link.next(now).expect("a beat"));
        assert_eq!((body.len(), body[0]), (40, n as u8));
        if n == 2 {
            // What was asked, unchanged: that is an echo, no guest.
            link.receive(&reply(kind, transaction, 0, &body), now);
            assert_eq!(link.routine().last(), Some(start));
        } else {
            body[..8].copy_from_slice(&(n + 1).to_le_bytes());
            link.receive(&reply(kind, transaction, 0, &body), now);
            assert_eq!(link.routine().last(), Some(now));
        }
        assert_eq!((link.next(now), link.due()), (None, Some(now + 2 * SECOND)));
        now += 2 * SECOND;
    }
    link.resumed(now + 100 * SECOND);
    assert_eq!(link.routine().last(), Some(now + 100 * SECOND), "while it stood still it could not answer");
    link.close(now);
    assert_eq!(link.routine().last(), None);
}

struct Noon;

impl TimeSource for Noon {
    fn utc(&self) -> u64 {
        0x0102_0304_0506_0708
    }
    fn reference(&self) -> u64 {
        0x1112_1314_1516_1718
    }
}

fn timed(version: Version, now: Instant) -> Link<TimeSync> {
    let mut link = Link::new(&time::SERVICE, TimeSync::new(now));
    link.routine_mut().set_source(Arc::new(Noon));
    agree(&mut link, version, now);
    link
}

/// Has the next sample answered; its body.
fn sample(link: &mut Link<TimeSync>, now: Instant) -> Vec<u8> {
    let (kind, transaction, body) = read(&link.next(now).expect("a sample"));
    link.receive(&reply(kind, transaction, 0, &body), now);
    body
}

#[test]
fn the_time_is_set_at_the_start_and_after_a_pause_and_told_meanwhile() {
    let now = Instant::now();
    let mut link = timed(Version(4, 0), now);
    let first = sample(&mut link, now);
    assert_eq!(first[..8], [8, 7, 6, 5, 4, 3, 2, 1]);
    assert_eq!(first[8..], [0x18, 0x17, 0x16, 0x15, 0x14, 0x13, 0x12, 0x11, 1, 0, 2, 0, 0, 0, 0, 0]);
    assert_eq!(link.next(now + 4 * SECOND), None);
    assert_eq!(sample(&mut link, now + 5 * SECOND)[16], 2, "a sample alone");
    link.resumed(now + 6 * SECOND);
    assert_eq!(sample(&mut link, now + 6 * SECOND)[16], 1);
    assert_eq!(sample(&mut link, now + 11 * SECOND)[16], 2);
}

#[test]
fn an_older_driver_gets_samples_that_it_knows() {
    let now = Instant::now();
    for version in [Version(3, 0), Version(1, 0)] {
        let body = sample(&mut timed(version, now), now);
        assert_eq!((body.len(), &body[8..]), (25, &[&[0; 16][..], &[1]].concat()[..]));
    }
}

#[test]
fn a_source_of_time_tells_utc_since_1601() {
    // 2020-01-01 and 2100-01-01, in seconds since 1601.
    let years = 13_222_310_400..15_746_918_400_u64;
    let host = time::HostTime(|| 7);
    assert!(years.contains(&(host.utc() / 10_000_000)), "{}", host.utc());
    assert_eq!(host.reference(), 7);
}

proptest! {
    #[test]
    fn no_guest_gets_two_questions_at_once(
        steps in prop::collection::vec((0..8_u8, any::<u8>(), prop::collection::vec(any::<u8>(), 0..40)), 1..80),
    ) {
        let start = Instant::now();
        let mut link = Link::new(&kvp::SERVICE, Quiet);
        let (mut now, mut open): (Instant, Option<u8>) = (start, None);
        let mut answers = Vec::new();
        for (step, n, noise) in steps {
            match step {
                0 => { link.open(now); open = None; }
                1 => { link.close(now); open = None; }
                2 => {
                    let (job, answer) = job(&noise, now, Duration::from_millis(n.into()));
                    if link.ask(job).is_ok() { answers.push(answer); }
                }
                3 => now += Duration::from_millis(n.into()),
                4 => link.receive(&noise, now),
                5 => if let Some(transaction) = open.take() {
                    let negotiated = negotiation(&[Version(3, 0)], &[Version(4, 0)]);
                    // Whichever it is an answer to.
                    link.receive(&reply(kind::NEGOTIATE, transaction, 0, &negotiated), now);
                    link.receive(&reply(kind::KVP, transaction, n.into(), &noise), now);
                },
                6 => link.receive(&reply(kind::KVP, n, 0, &noise), now),
                _ => if let Some(packet) = link.next(now) {
                    // An answer by chance (step 6) may have ended it.
                    let (_, transaction, _) = read(&packet);
                    prop_assert_ne!(open.replace(transaction), Some(transaction));
                    prop_assert_eq!(link.next(now), None);
                },
            }
        }
        link.close(now);
        // Nobody is left without an answer.
        prop_assert!(answers.iter().all(|a| a.try_recv().is_ok()));
    }
}

#[test]
fn who_may_be_frozen_is_thawed_when_the_time_is_over() {
    let (now, mut thaw) = (Instant::now(), vss::Thaw::default());
    assert_eq!((thaw.due(), thaw.question(Version(5, 0), now)), (None, None));
    thaw.set(Some(now + SECOND));
    assert_eq!((thaw.due(), thaw.question(Version(5, 0), now)), (Some(now + SECOND), None));
    assert_eq!(thaw.question(Version(5, 0), now + SECOND).map(|b| (b.len(), b[0])), Some((12, 6)));
    // As long as it cannot.
    let mut later = now + SECOND;
    let said = |status| Answer { status, body: Vec::new() };
    thaw.answered(&said(0x8000_4005), later);
    assert_eq!((thaw.due(), thaw.question(Version(5, 0), later)), (Some(later + 5 * SECOND), None));
    later += 5 * SECOND;
    assert_eq!(thaw.question(Version(5, 0), later).map(|b| b[0]), Some(6));
    // Frozen again meanwhile, for longer.
    thaw.set(Some(later + 9 * SECOND));
    thaw.answered(&said(0), later);
    assert_eq!(thaw.due(), Some(later + 9 * SECOND));
    assert_eq!(thaw.question(Version(5, 0), later + 9 * SECOND).map(|b| b[0]), Some(6));
    thaw.answered(&said(0), later + 9 * SECOND);
    assert_eq!((thaw.due(), thaw.question(Version(5, 0), later + 99 * SECOND)), (None, None), "it is thawed");
    thaw.set(Some(now));
    thaw.restart(now);
    assert_eq!(thaw.due(), None, "a new driver knows nothing of it");
}
