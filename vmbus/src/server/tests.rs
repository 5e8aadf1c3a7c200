//! The server as a guest, and its devices, use it.

use proptest::prelude::*;
use uuid::Uuid;

use super::*;

const V5_3: Version = Version(0x5_0003);

fn an_offer(n: u128) -> Offer {
    Offer { interface: Uuid::from_u128(1), instance: Uuid::from_u128(n), memory: 0, user_data: [0; 120] }
}

fn gpadl_list(pages: &[u64]) -> Vec<u8> {
    let head = (pages.len() as u64 * 4096).to_le_bytes();
    head.into_iter().chain(pages.iter().flat_map(|p| p.to_le_bytes())).collect()
}

fn open_of(relid: u32) -> FromGuest {
    FromGuest::Open(Open { relid, id: 77, gpadl: 0xe1, vp: 1, split: 2, user_data: [3; 120] })
}

fn said(effects: &[Effect]) -> Vec<ToGuest> {
    let message = |e: &Effect| match e {
        Effect::Post { message, .. } => Some(message.clone()),
        _ => None,
    };
    effects.iter().filter_map(message).collect()
}

/// A server with two devices and a guest that has asked for them.
fn connected() -> Server {
    let mut s = Server::new();
    assert_eq!(s.offer(1, an_offer(1)), Some(vec![]));
    assert_eq!(s.offer(2, an_offer(2)), Some(vec![]));
    s.message(FromGuest::Contact { version: V5_3, vp: 3 });
    let told = said(&s.message(FromGuest::RequestOffers));
    assert!(matches!(&told[..], [ToGuest::Offer(a), ToGuest::Offer(b), ToGuest::AllOffers]
        if (a.relid, a.subchannel, b.relid) == (1, 0, 2) && a.connection == Server::connection(1)));
    s
}

fn give_memory(s: &mut Server, relid: u32, gpadl: u32) {
    let bytes = gpadl_list(&[1, 2, 3, 4]);
    let list = bytes.len() as u16;
    let told = said(&s.message(FromGuest::GpadlHeader { relid, gpadl, list, ranges: 1, bytes }));
    assert_eq!(told, [ToGuest::GpadlCreated { relid, gpadl, created: true }]);
}

fn opened() -> Server {
    let mut s = connected();
    give_memory(&mut s, 1, 0xe1);
    let effects = s.message(open_of(1));
    assert!(
        matches!(&effects[..], [Effect::Open { relid: 1, device: 1, subchannel: 0, split: 2, vp: 1, pages, .. }]
        if **pages == [0x1000, 0x2000, 0x3000, 0x4000])
    );
    assert_eq!(said(&s.opened(1, true)), [ToGuest::OpenResult { relid: 1, id: 77, open: true }]);
    s
}

#[test]
fn versions_are_agreed_on_or_not() {
    let mut s = Server::new();
    assert_eq!(s.message(FromGuest::RequestOffers), [], "nobody has said who it is");
    for (version, connection) in
        [(0x6_0000, None), (0x1_0001, None), (0x5_0003, Some(4)), (0x3_0000, Some(1))]
    {
        let effects = s.message(FromGuest::Contact { version: Version(version), vp: 3 });
        let message = ToGuest::Version { connection };
        assert_eq!(effects, [Effect::Post { vp: 3, message }]);
    }
}

#[test]
fn a_channel_is_opened_retargeted_and_closed() {
    let mut s = opened();
    assert_eq!(
        said(&s.message(open_of(1))),
        [ToGuest::OpenResult { relid: 1, id: 77, open: false }],
        "twice"
    );
    let effects = s.message(FromGuest::Modify { relid: 1, vp: 2 });
    assert_eq!(effects[0], Effect::Retarget { relid: 1, vp: 2 });
    assert_eq!(said(&effects), [ToGuest::Modified { relid: 1, done: true }]);
    assert_eq!(s.message(FromGuest::GpadlTeardown { relid: 1, gpadl: 0xe1 }), [], "its rings are in there");
    assert_eq!(
        s.message(FromGuest::Close { relid: 1 }),
        [Effect::Close { relid: 1, device: 1, subchannel: 0 }]
    );
    assert_eq!(s.message(FromGuest::Close { relid: 1 }), []);
    let torn = s.message(FromGuest::GpadlTeardown { relid: 1, gpadl: 0xe1 });
    assert_eq!(said(&torn), [ToGuest::GpadlTornDown { gpadl: 0xe1 }]);
    // It can be opened anew, if the device wants it.
    give_memory(&mut s, 1, 0xe1);
    s.message(open_of(1));
    assert_eq!(said(&s.opened(1, false)), [ToGuest::OpenResult { relid: 1, id: 77, open: false }]);
    assert_eq!(s.opened(1, true), [], "nobody asked");
    s.message(FromGuest::GpadlTeardown { relid: 1, gpadl: 0xe1 });
    assert_eq!(
        said(&s.message(open_of(1))),
        [ToGuest::OpenResult { relid: 1, id: 77, open: false }],
        "no memory"
    );
}

#[test]
fn further_channels_come_and_go_with_the_first() {
    let mut s = connected();
    assert_eq!(s.offer_subchannels(1, 2, 4), Err(SubchannelError::NotOpen));
    let mut s = opened();
    let told = said(&s.offer_subchannels(1, 2, 4).unwrap());
    assert!(
        matches!(&told[..], [ToGuest::Offer(a), ToGuest::Offer(b)] if (a.subchannel, b.subchannel) == (1, 2))
    );
    assert_eq!(s.offer_subchannels(1, 3000, 5000), Err(SubchannelError::Full));
    assert_eq!(s.offer_subchannels(1, 3, 4), Err(SubchannelError::Full), "more than the device may have");
    let effects = s.message(FromGuest::Close { relid: 1 });
    assert_eq!(said(&effects), [ToGuest::Rescind { relid: 3 }, ToGuest::Rescind { relid: 4 }]);
    assert_eq!(s.message(FromGuest::Released { relid: 1 }), [], "not revoked, so not released");
    s.message(FromGuest::Released { relid: 3 });
    assert_eq!(s.channels.keys().copied().collect::<Vec<_>>(), [1, 2, 4]);
}

#[test]
fn further_channels_are_offered_before_those_of_the_last_opening_are_released() {
    let mut s = opened();
    let mut openings = 0;
    while let Ok(effects) = s.offer_subchannels(1, 4, 4) {
        let told = said(&effects);
        assert!(
            matches!(&told[..], [ToGuest::Offer(a), .., ToGuest::Offer(d)] if (a.subchannel, d.subchannel) == (1, 4))
        );
        assert_eq!(s.offer_subchannels(1, 1, 4), Err(SubchannelError::Full), "it has all");
        s.message(FromGuest::Close { relid: 1 });
        s.message(open_of(1));
        s.opened(1, true);
        openings += 1;
    }
    assert_eq!(openings, 33, "but not without end");
    s.message(FromGuest::Released { relid: 3 });
    s.message(FromGuest::Released { relid: 4 });
    s.message(FromGuest::Released { relid: 5 });
    s.message(FromGuest::Released { relid: 6 });
    assert!(s.offer_subchannels(1, 4, 4).is_ok());
}

#[test]
fn devices_come_and_go() {
    let mut s = opened();
    let effects = s.offer(9, an_offer(9)).unwrap();
    assert!(matches!(&said(&effects)[..], [ToGuest::Offer(o)] if o.relid == 3));
    assert_eq!(said(&s.revoke(1)), [ToGuest::Rescind { relid: 1 }]);
    assert_eq!(s.revoke(1), [], "once");
    assert!(
        s.is_leaving(1)
            && matches!(s.message(FromGuest::Modify { relid: 1, vp: 0 })[0], Effect::Retarget { .. })
    );
    let closed = [Effect::Close { relid: 1, device: 1, subchannel: 0 }];
    assert_eq!(s.clone().close_revoked(1), closed, "time is up");
    assert_eq!(s.clone().message(FromGuest::Released { relid: 1 }), closed, "it has let go of it altogether");
    assert_eq!(s.message(FromGuest::Close { relid: 1 }), closed);
    assert!(!s.is_leaving(1) && s.close_revoked(1).is_empty());
    assert_eq!(
        s.message(open_of(1)),
        [Effect::Post { vp: 3, message: ToGuest::OpenResult { relid: 1, id: 77, open: false } }]
    );
    // Its number is free when the guest says so.
    assert!(matches!(&said(&s.offer(10, an_offer(10)).unwrap())[..], [ToGuest::Offer(o)] if o.relid == 4));
    s.message(FromGuest::Released { relid: 1 });
    assert!(matches!(&said(&s.offer(11, an_offer(11)).unwrap())[..], [ToGuest::Offer(o)] if o.relid == 1));
}

#[test]
fn a_guest_that_goes_or_is_followed_by_another_leaves_nothing() {
    for goes in [FromGuest::Unload, FromGuest::Contact { version: V5_3, vp: 0 }] {
        let mut s = opened();
        s.offer_subchannels(1, 1, 4).unwrap();
        s.revoke(2);
        let effects = s.message(goes.clone());
        assert_eq!(effects[0], Effect::Close { relid: 1, device: 1, subchannel: 0 });
        assert_eq!(effects.len(), 2, "and one word");
        s.message(FromGuest::Contact { version: V5_3, vp: 0 });
        let told = said(&s.message(FromGuest::RequestOffers));
        assert!(matches!(&told[..], [ToGuest::Offer(o), ToGuest::AllOffers] if o.relid == 1), "{told:?}");
        assert_eq!(s.gpadls.pages(1, 0xe1), None);
    }
    let mut s = opened();
    assert_eq!(s.reset(), [Effect::Close { relid: 1, device: 1, subchannel: 0 }]);
    assert_eq!(s.message(FromGuest::RequestOffers), []);
}

#[test]
fn old_guests_get_no_answer_they_do_not_know() {
    let mut s = opened();
    s.connection.as_mut().unwrap().version = Version(0x4_0001);
    assert_eq!(s.message(FromGuest::Modify { relid: 1, vp: 0 }), [Effect::Retarget { relid: 1, vp: 0 }]);
    assert_eq!(s.message(FromGuest::Modify { relid: 9, vp: 0 }), []);
}

/// Any message, of few channels and names, so that they meet.
fn any_message() -> impl Strategy<Value = FromGuest> {
    let relid = || 0..6_u32;
    prop_oneof![
        (prop_oneof![Just(V5_3), Just(Version(0x3_0000)), any::<u32>().prop_map(Version)], any::<u32>())
            .prop_map(|(version, vp)| FromGuest::Contact { version, vp }),
        Just(FromGuest::RequestOffers),
        (relid(), 0..4_u32, any::<u32>(), 0..6_u32).prop_map(|(relid, gpadl, vp, split)| {
            FromGuest::Open(Open { relid, id: 1, gpadl, vp, split, user_data: [0; 120] })
        }),
        relid().prop_map(|relid| FromGuest::Close { relid }),
        (relid(), 0..4_u32, prop::collection::vec(0..9_u64, 0..5), any::<bool>()).prop_map(
            |(relid, gpadl, pages, whole)| {
                let bytes = gpadl_list(&pages);
                let list = bytes.len() as u16 + if whole { 0 } else { 8 };
                FromGuest::GpadlHeader { relid, gpadl, list, ranges: 1, bytes }
            }
        ),
        (0..4_u32, prop::collection::vec(any::<u8>(), 0..20))
            .prop_map(|(gpadl, bytes)| FromGuest::GpadlBody { gpadl, bytes }),
        (relid(), 0..4_u32).prop_map(|(relid, gpadl)| FromGuest::GpadlTeardown { relid, gpadl }),
        relid().prop_map(|relid| FromGuest::Released { relid }),
        Just(FromGuest::Unload),
        (relid(), any::<u32>()).prop_map(|(relid, vp)| FromGuest::Modify { relid, vp }),
    ]
}

proptest! {
    /// Whatever a guest says, each device sees its channels opened and closed in turn, with memory that is whole.
    #[test]
    fn devices_see_openings_and_closings_in_turn(
        messages in prop::collection::vec((any_message(), 0..6_u8), 1..200),
    ) {
        let mut s = Server::new();
        s.offer(1, an_offer(1));
        s.offer(2, an_offer(2));
        let mut open = std::collections::HashSet::new();
        let mut next = 3;
        for (message, host) in messages {
            let mut effects = s.message(message);
            match host {
                0 => { s.offer(next, an_offer(next.into())); next += 1; }
                1 => effects.extend(s.offer_subchannels(1, 1, 4).unwrap_or_default()),
                2 => effects.extend(s.revoke(next - 1)),
                3 => effects.extend(s.close_revoked(next - 1)),
                _ => {}
            }
            while !effects.is_empty() {
                for effect in std::mem::take(&mut effects) {
                    match effect {
                        Effect::Open { relid, device, subchannel, pages, split, .. } => {
                            prop_assert!(split < pages.len());
                            prop_assert!(open.insert((relid, device, subchannel)));
                            effects.extend(s.opened(relid, true));
                        }
                        Effect::Close { relid, device, subchannel } => {
                            prop_assert!(open.remove(&(relid, device, subchannel)));
                        }
                        Effect::Retarget { relid, .. } => prop_assert!(open.iter().any(|o| o.0 == relid)),
                        Effect::Post { message, .. } => prop_assert!(message.bytes().len() <= 240),
                    }
                }
            }
        }
    }

    #[test]
    fn any_bytes_are_a_message_or_none(bytes in prop::collection::vec(any::<u8>(), 0..240), number in 0..30_u32) {
        let mut bytes = bytes;
        if bytes.len() >= 4 {
            bytes[..4].copy_from_slice(&number.to_le_bytes());
        }
        let mut s = Server::new();
        s.message(FromGuest::Contact { version: V5_3, vp: 0 });
        if let Some(message) = FromGuest::parse(&bytes) {
            s.message(message);
        }
    }
}
