//! Key-value exchange: what the guest tells of itself, and pairs that host and guest leave for each other.
//!
//! Pairs are in pools that the guest keeps. Its driver hands questions to a daemon, which answers from files and from what it finds
//! out; so answers are the guest's word, and no more than that.

use std::time::{Duration, Instant};

use uuid::uuid;

use crate::error::{ServiceError, status};
use crate::link::{Answer, Service};
use crate::message::{Version, kind};
use crate::text::{from_utf16, utf16};
use crate::{Asked, Services};

/// What it is called.
pub const NAME: &str = "key-value exchange";

/// What it is.
pub static SERVICE: Service = Service {
    name: NAME,
    interface: uuid!("a9a0f4e7-5a45-4d96-b827-8a841e8c03e6"),
    versions: &[Version(4, 0), Version(3, 0), Version(1, 0)],
    kind: kind::KVP,
};

/// Bytes of a key, its zero included (HV_KVP_EXCHANGE_MAX_KEY_SIZE).
const KEY: usize = 512;
/// Bytes of a value, its zero included.
const VALUE: usize = 2048;
/// Operation and pool.
const HEAD: usize = 4;
/// Type, size of key, size of value, key, value.
const PAIR: usize = 12 + KEY + VALUE;
/// Room for the longest question: an index and a pair. An answer takes the room of its question.
const BODY: usize = HEAD + 4 + PAIR;
/// Pairs of a pool that are asked for: more than anybody keeps, and an end for a guest that has always one more.
const ITEMS_MAX: u32 = 1024;
/// What a question may take. The daemon of Linux looks things up by scripts; its driver gives up after 30 s.
const PATIENCE: Duration = Duration::from_secs(35);
/// What all the pairs of a pool may take.
const PATIENCE_ALL: Duration = Duration::from_secs(45);

/// Operations (enum hv_kvp_exchg_op). There is one to get a value, too, to which Linux gives another answer than it means (its driver
/// looks 4 bytes beside what its daemon said), and none for what a guest finds out about itself.
mod operation {
    pub const SET: u8 = 1;
    pub const DELETE: u8 = 2;
    pub const ENUMERATE: u8 = 3;
}

/// A pool of pairs (enum hv_kvp_exchg_pool).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pool {
    /// What the host leaves for the guest.
    External,
    /// What the guest's administrator leaves for the host.
    Guest,
    /// What the guest finds out about itself.
    Auto,
}

impl Pool {
    fn number(self) -> u8 {
        match self {
            Self::External => 0,
            Self::Guest => 1,
            Self::Auto => 2,
        }
    }
}

/// A pair.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// Its name.
    pub key: String,
    /// What it holds, as text.
    pub value: String,
}

/// Types of values, as Windows numbers those of its registry.
mod value_type {
    pub const TEXT: u32 = 1;
    pub const EXPANDABLE_TEXT: u32 = 2;
    pub const U32: u32 = 4;
    pub const U64: u32 = 11;
    /// Linux's number of it.
    pub const U64_LINUX: u32 = 8;
}

fn question(operation: u8, pool: Pool) -> Vec<u8> {
    vec![operation, pool.number(), 0, 0]
}

fn padded(mut body: Vec<u8>) -> Vec<u8> {
    body.resize(BODY, 0);
    body
}

fn key_bytes(key: &str) -> Result<Vec<u8>, ServiceError> {
    let most = KEY / 2 - 1;
    let fits = utf16(key, KEY).filter(|_| !key.is_empty());
    fits.ok_or_else(|| {
        ServiceError::Invalid(format!("a key has 1 to {most} characters, none of them a zero"))
    })
}

/// A pair as messages have it.
fn pair(key: &str, value: &str) -> Result<Vec<u8>, ServiceError> {
    let key = key_bytes(key)?;
    let most = VALUE / 2 - 1;
    let value = utf16(value, VALUE).ok_or_else(|| {
        ServiceError::Invalid(format!("a value has at most {most} characters, none of them a zero"))
    })?;
    let mut bytes = Vec::with_capacity(PAIR);
    for word in [value_type::TEXT, key.len() as u32, value.len() as u32] {
        bytes.extend(word.to_le_bytes());
    }
    bytes.extend(key);
    bytes.resize(12 + KEY, 0);
    bytes.extend(value);
    Ok(bytes)
}

/// Reads a pair; `None` if it is none. Sizes are in bytes, with the zero or without.
fn parse_pair(bytes: &[u8]) -> Option<Item> {
    let word = |at: usize| bytes.get(at..at + 4)?.first_chunk().map(|b| u32::from_le_bytes(*b));
    let (kind, key, value) = (word(0)?, word(4)? as usize, word(8)? as usize);
    let keys = bytes.get(12..12 + KEY)?;
    let values = bytes.get(12 + KEY..PAIR)?;
    let (key, value) = (keys.get(..key)?, values.get(..value)?);
    let value = match kind {
        value_type::TEXT | value_type::EXPANDABLE_TEXT => from_utf16(value),
        value_type::U32 => u32::from_le_bytes(*values.first_chunk()?).to_string(),
        value_type::U64 | value_type::U64_LINUX => u64::from_le_bytes(*values.first_chunk()?).to_string(),
        _ => return None,
    };
    Some(Item { key: from_utf16(key), value })
}

/// Reads the answer to a question for one pair of a pool; `None`: there are no more.
pub fn parse_enumerated(answer: &Answer) -> Result<Option<Item>, ServiceError> {
    match answer.status {
        0 => {}
        status::NO_MORE_ITEMS => return Ok(None),
        status => return Err(refused("to tell its pairs", status)),
    }
    let item = answer.body.get(HEAD + 4..).and_then(parse_pair);
    item.map(Some).ok_or(ServiceError::Malformed(SERVICE.name))
}

fn refused(what: &str, status: u32) -> ServiceError {
    ServiceError::Refused { what: what.into(), status }
}

impl Services {
    /// All pairs of a pool.
    ///
    /// # Errors
    /// The guest cannot tell.
    pub fn kvp_list(&self, pool: Pool) -> Result<Vec<Item>, ServiceError> {
        self.kvp_list_within(pool, PATIENCE_ALL)
    }

    /// The same, of a guest that is not waited for longer than this.
    ///
    /// # Errors
    /// As well, it takes longer.
    pub fn kvp_list_within(&self, pool: Pool, patience: Duration) -> Result<Vec<Item>, ServiceError> {
        let end = Instant::now() + patience;
        let mut items = Vec::new();
        for index in 0..ITEMS_MAX {
            let mut body = question(operation::ENUMERATE, pool);
            body.extend(index.to_le_bytes());
            let left = end.saturating_duration_since(Instant::now()).min(PATIENCE);
            match parse_enumerated(&self.ask(Asked::Kvp, padded(body), left)?)? {
                Some(item) => items.push(item),
                None => break,
            }
        }
        Ok(items)
    }

    /// The value of a key; `None`: the pool has none.
    ///
    /// # Errors
    /// The guest cannot tell, or there can be no such key.
    pub fn kvp_get(&self, pool: Pool, key: &str) -> Result<Option<String>, ServiceError> {
        key_bytes(key)?;
        Ok(self.kvp_list(pool)?.into_iter().find(|item| item.key == key).map(|item| item.value))
    }

    /// Leaves a pair for the guest, in place of one of its name.
    ///
    /// # Errors
    /// The guest does not take it, or there can be no such pair.
    pub fn kvp_set(&self, key: &str, value: &str) -> Result<(), ServiceError> {
        let mut body = question(operation::SET, Pool::External);
        body.extend(pair(key, value)?);
        self.ask_for(Asked::Kvp, padded(body), PATIENCE, "to keep a pair").map(|_| ())
    }

    /// Takes a pair of the host's away; whether there was one.
    ///
    /// # Errors
    /// The guest cannot, or there can be no such pair.
    pub fn kvp_delete(&self, key: &str) -> Result<bool, ServiceError> {
        let mut body = question(operation::DELETE, Pool::External);
        let key = key_bytes(key)?;
        body.extend((key.len() as u32).to_le_bytes());
        body.extend(key);
        match self.ask(Asked::Kvp, padded(body), PATIENCE)?.status {
            0 => Ok(true),
            status::NO_MORE_ITEMS => Ok(false),
            status => Err(refused("to delete a pair", status)),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn enumerated(status: u32, pair: &[u8]) -> Answer {
        let mut body = vec![operation::ENUMERATE, 2, 0, 0, 0, 0, 0, 0];
        body.extend(pair);
        Answer { status, body: padded(body) }
    }

    #[test]
    fn a_pair_comes_back_as_it_went() {
        let bytes = pair("Größe", "1 €").unwrap();
        let item = Item { key: "Größe".into(), value: "1 €".into() };
        assert_eq!(parse_enumerated(&enumerated(0, &bytes)), Ok(Some(item)));
    }

    #[test]
    fn numbers_are_told_as_text() {
        let mut bytes = pair("n", "").unwrap();
        bytes.resize(PAIR, 0);
        for (kind, text) in [(4, "67305985"), (8, "578437695752307201"), (11, "578437695752307201")] {
            bytes[0] = kind;
            bytes[12 + KEY..12 + KEY + 8].copy_from_slice(&[1, 2, 3, 4, 5, 6, 7, 8]);
            assert_eq!(parse_pair(&bytes).map(|i| i.value).as_deref(), Some(text));
        }
        bytes[0] = 3;
        assert_eq!(parse_pair(&bytes), None, "bytes without a meaning");
    }

    #[test]
    fn what_a_guest_may_not_say_is_not_understood() {
        let good = pair("k", "v").unwrap();
        for (at, value) in [(4, 513_u32), (4, u32::MAX), (8, 2049), (8, u32::MAX)] {
            let mut bytes = good.clone();
            bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
            assert_eq!(
                parse_enumerated(&enumerated(0, &bytes)),
                Err(ServiceError::Malformed(SERVICE.name)),
                "{at} {value}"
            );
        }
        let short = Answer { status: 0, body: vec![3, 2, 0, 0] };
        assert!(parse_enumerated(&short).is_err());
        assert_eq!(parse_enumerated(&enumerated(status::NO_MORE_ITEMS, &good)), Ok(None));
        assert!(matches!(
            parse_enumerated(&enumerated(5, &good)),
            Err(ServiceError::Refused { status: 5, .. })
        ));
    }

    #[test]
    fn what_does_not_fit_is_not_sent() {
        for (key, value) in [
            ("", "v".into()),
            ("a\0b", "v".into()),
            ("k", "a\0".into()),
            ("k", "x".repeat(1024)),
            (&"k".repeat(256) as &str, "v".to_string()),
        ] {
            assert!(matches!(pair(key, &value), Err(ServiceError::Invalid(_))), "{key:?}");
        }
        assert!(pair(&"k".repeat(255), &"x".repeat(1023)).is_ok());
    }

    proptest! {
        #[test]
        fn no_answer_does_harm(
            head in prop::collection::vec(any::<u8>(), 0..40),
            len in 0..3000_usize,
            status in prop_oneof![Just(0_u32), any::<u32>()],
        ) {
            let mut body = head;
            body.resize(len, 0x41);
            let answer = Answer { status, body };
            if let Ok(Some(item)) = parse_enumerated(&answer) {
                prop_assert!(item.key.chars().count() <= KEY / 2 && item.value.chars().count() <= VALUE / 2);
            }
        }
    }
}
