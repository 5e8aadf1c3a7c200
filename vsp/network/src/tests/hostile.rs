//! What no driver sends.

use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use vireo_frame::{Ability, Intent};
use vireo_vmbus::Device;
use vireo_vmbus::driver::Received;
use vireo_vmbus::ring::kind;

use super::rig::*;
use crate::bytes::{le32, words};

/// The adapter still works.
fn is_well(rig: &Rig) {
    rig.drain();
    rig.ask_until_answered(&words(&[1, 0x6_0001, 0x6_0001]));
}

impl Rig {
    /// Reads what is there, and gives back what has to be.
    fn drain(&self) {
        while let Some(packet) = self.driver.receive() {
            self.settle(&packet);
        }
    }

    fn settle(&self, packet: &Received) {
        if packet.kind == kind::TRANSFER_PAGES {
            self.give_back(packet);
        }
        if self.driver.awaited_room() != 0 {
            self.channel.doorbell().ring();
        }
    }

    /// As [`Rig::ask`], whatever else comes before.
    fn ask_until_answered(&self, message: &[u8]) -> Vec<u8> {
        let transaction = self.tell(message);
        loop {
            let packet = self.receive();
            self.settle(&packet);
            if packet.kind == kind::COMPLETION && packet.transaction == transaction {
                return packet.data;
            }
        }
    }
}

#[test]
fn messages_that_are_none_are_answered_and_harm_nothing() {
    let rig = Rig::ready(Wire::default(), 0x6_0001, true);
    for message in [&words(&[999])[..], &words(&[0]), &[], &[1, 2]] {
        assert_eq!(le32(&rig.ask(message), 4), Some(2), "{message:?}");
    }
    for (section, bytes) in [(9999, 100), (0, 6145), (u32::MAX - 1, 10), (0, u32::MAX)] {
        assert_eq!(le32(&rig.ask(&words(&[107, 0, section, bytes])), 4), Some(2));
    }
    // A section beyond the buffer's end: 16 pages are ten sections and a part of one.
    assert_eq!(le32(&rig.ask(&words(&[107, 0, 10, 6144])), 4), Some(2));
    assert_eq!(le32(&rig.ask(&words(&[107, 0, 10, 64])), 4), Some(5), "nothing in it is a message");
    assert!(rig.wire.frames.lock().unwrap().is_empty());
    assert_eq!(rig.provider.counters().bad, 1);
}

/// Sends messages that are in pages, which lie one behind the other.
fn send_pages(rig: &Rig, pages: &[u64], length: usize) -> u64 {
    let mut data = words(&[107, 0, u32::MAX, 0]);
    data.resize(40, 0);
    rig.send(kind::GPA_DIRECT, &[(length as u32, 0, pages)], &data)
}

#[test]
fn a_packet_has_no_more_messages_and_bytes_than_drivers_are_told() {
    let rig = Rig::ready(Wire::default(), 0x6_0001, true);
    let message = packet(&plain(OTHER, ADDRESS, 60), &[], 0);
    rig.memory.write(DATA, &message.repeat(9)).unwrap();
    send_pages(&rig, &[DATA / 4096], message.len() * 8);
    assert_eq!(le32(&rig.receive().data, 4), Some(1));
    send_pages(&rig, &[DATA / 4096], message.len() * 9);
    assert_eq!(le32(&rig.receive().data, 4), Some(5), "one too many");
    // Thousands of messages that have nothing in them: the first eight are looked at.
    rig.memory.write(DATA, &words(&[1, 8]).repeat(512)).unwrap();
    send_pages(&rig, &[DATA / 4096; 100], 100 * 4096);
    assert_eq!(le32(&rig.receive().data, 4), Some(5));
    send_pages(&rig, &[DATA / 4096; 257], 257 * 4096);
    assert_eq!(le32(&rig.receive().data, 4), Some(5));
    let counters = rig.provider.counters();
    assert_eq!((counters.sent, counters.bad), (16, 1 + 9 + 1));
}

#[test]
fn a_pause_waits_for_no_more_than_the_packet_under_way() {
    let (tokens, gate) = channel();
    let rig = Rig::ready(Wire { gate: Some(gate.into()), ..Wire::default() }, 0x6_0001, true);
    // Before the rig is gone: its thread waits for them.
    let tokens = tokens;
    let message = packet(&plain(OTHER, ADDRESS, 60), &[], 0);
    rig.memory.write(DATA, &message).unwrap();
    (0..20).for_each(|_| _ = send_pages(&rig, &[DATA / 4096], message.len()));
    let provider = Arc::clone(&rig.provider);
    let pause = std::thread::spawn(move || provider.pause(Instant::now() + Duration::from_secs(60)));
    for _ in 0..20 {
        std::thread::sleep(Duration::from_millis(if pause.is_finished() { 0 } else { 20 }));
        _ = tokens.send(());
    }
    assert!(pause.join().unwrap(), "it rests");
    let sent = rig.provider.counters().sent;
    assert!(sent < 20, "{sent} went before");
    drop(tokens);
    rig.provider.resume();
    rig.sent(20);
}

#[test]
fn answers_that_nobody_reads_are_not_kept_without_end() {
    let rig = Rig::new(Wire::default());
    let mut data = words(&[1, 0x6_0001, 0x6_0001]);
    data.resize(40, 0);
    let offer = |n| rig.driver.send(kind::IN_BAND, n, &[], &data).is_some();
    let mut taken = 0;
    for n in 0..4000 {
        match offer(n) {
            true => taken += 1,
            false => std::thread::sleep(std::time::Duration::from_micros(50)),
        }
        rig.channel.doorbell().ring();
    }
    // Both rings of 32 KiB, and what waits between them.
    assert!(taken < 2 * 32768 / 64 + 300, "{taken} were taken");
    while !offer(4000) {
        rig.drain();
        std::thread::yield_now();
    }
    is_well(&rig);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    /// Messages with fields that are wrong, in sections and pages, of control and data.
    #[test]
    fn any_messages_of_rndis_harm_nothing(
        messages in proptest::collection::vec(
            (0..10_u32, proptest::collection::vec(prop_oneof![0..200_u32, any::<u32>()], 0..20), any::<bool>(), 0..3000_u32, any::<bool>()),
            1..20,
        ),
        all: bool,
    ) {
        let ability = if all { Ability::ALL } else { Ability::default() };
        let rig = Rig::ready(Wire { ability: ability.into(), ..Wire::default() }, 0x6_0001, true);
        for (kind_of, fields, control, length, honest) in messages {
            let mut message = [&words(&[kind_of, length])[..], &words(&fields)].concat();
            message.resize(message.len().max(length as usize).min(6000), 0x45);
            if honest {
                // A data message with its frame, so that what comes with it is looked at.
                let frame = &message[..message.len().clamp(14, 1514).min(message.len())];
                let infos: Vec<(u32, u32)> = fields.chunks(2).map(|c| (c[0] % 9, c[c.len() - 1])).take(6).collect();
                message = packet(frame, &infos, 0);
            }
            rig.write(SEND, 0, &message[..message.len().min(6144)]);
            let mut data = words(&[107, control.into(), 0, message.len().min(6144) as u32]);
            data.resize(40, 0);
            rig.send(kind::IN_BAND, &[], &data);
            _ = rig.put(&plain(ADDRESS, OTHER, 100), Intent::default());
            rig.drain();
        }
        is_well(&rig);
    }
}
