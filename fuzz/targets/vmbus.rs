//! Messages to the bus, while devices come, go and are slow to open. Each device sees its channels opened and closed in turn.
#![no_main]

use std::collections::HashSet;

use libfuzzer_sys::fuzz_target;
use uuid::Uuid;
use vireo_fuzz::Input;
use vireo_vmbus::protocol::FromGuest;
use vireo_vmbus::{Effect, Offer, Server};

const MESSAGE: usize = 240;

fn offer(n: u64) -> Offer {
    Offer {
        interface: Uuid::from_u128(1),
        instance: Uuid::from_u128(n.into()),
        memory: 0,
        user_data: [0; 120],
    }
}

/// Does what the server asks for.
fn obey(server: &mut Server, mut effects: Vec<Effect>, open: &mut HashSet<(u32, u64, u16)>, refuse: bool) {
    while !effects.is_empty() {
        for effect in std::mem::take(&mut effects) {
            match effect {
                Effect::Open { relid, device, subchannel, pages, split, .. } => {
                    assert!(split < pages.len());
                    assert!(refuse || open.insert((relid, device, subchannel)), "opened twice");
                    effects.extend(server.opened(relid, !refuse));
                }
                Effect::Close { relid, device, subchannel } => {
                    assert!(open.remove(&(relid, device, subchannel)), "closed what was not open");
                }
                Effect::Retarget { relid, .. } => assert!(open.iter().any(|o| o.0 == relid)),
                Effect::Post { message, .. } => assert!(message.bytes().len() <= MESSAGE),
            }
        }
    }
}

fuzz_target!(|bytes: &[u8]| {
    let mut input = Input(bytes);
    let mut server = Server::new();
    let mut open = HashSet::new();
    let mut next = 1;
    for _ in 0..2 {
        server.offer(next, offer(next));
        next += 1;
    }
    while !input.is_empty() {
        let act = input.u8();
        let effects = match act % 8 {
            0 => {
                next += 1;
                server.offer(next - 1, offer(next - 1)).unwrap_or_default()
            }
            1 => server.offer_subchannels(1, 1, u16::from(input.u8())).unwrap_or_default(),
            2 => server.revoke(u64::from(input.u8()) % next),
            3 => server.reset(),
            _ => {
                // The type of a message, and what it is about, are in its first bytes.
                let mut message = u32::from(input.u8() % 32).to_le_bytes().to_vec();
                message.extend([0; 4]);
                let len = usize::from(input.u8()) % (MESSAGE - 8);
                message.extend(input.bytes(len));
                FromGuest::parse(&message).map(|m| server.message(m)).unwrap_or_default()
            }
        };
        obey(&mut server, effects, &mut open, act & 0x80 != 0);
    }
});
