//! What clients say after the handshake (RFC 6143 §7.5).

use vireo_screen::Rect;

use crate::pixel::{Format, FormatError};

/// A client's message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// It wants pixels like this.
    SetPixelFormat(Format),
    /// It understands these encodings.
    SetEncodings(Vec<i32>),
    /// It wants to be sent what has changed, or this part whether it has or not.
    Update {
        /// Only what has changed.
        incremental: bool,
        /// Where.
        area: Rect,
    },
    /// A key, by its symbol.
    Key {
        /// Pressed, or let go.
        down: bool,
        /// X's key symbol.
        symbol: u32,
    },
    /// A key, by symbol and number (QEMU).
    ExtendedKey {
        /// Pressed, or let go.
        down: bool,
        /// X's key symbol.
        symbol: u32,
        /// The key's code.
        number: u32,
    },
    /// The pointer.
    Pointer {
        /// Buttons that are held: left, middle, right, wheel away from the user, wheel to the user.
        mask: u8,
        /// Where.
        x: u16,
        /// Where.
        y: u16,
    },
    /// It wants another size.
    SetDesktopSize,
    /// Its clipboard, which is of no use.
    CutText,
}

/// A client breaks the protocol.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MessageError {
    /// There is no such message.
    #[error("message {0} is unknown")]
    Unknown(u8),
    /// Pixels that cannot be made.
    #[error(transparent)]
    Format(#[from] FormatError),
}

/// Longest message that is kept until it is whole: encodings, as many as there can be.
const KEPT_MOST: usize = 4 + 4 * 0xffff;

/// Bytes of a client, as they come, and the messages in them.
#[derive(Debug, Default)]
pub struct Input {
    bytes: Vec<u8>,
    /// Bytes to come that nobody wants.
    skip: usize,
}

impl Input {
    /// Takes bytes in.
    pub fn push(&mut self, bytes: &[u8]) {
        let skipped = self.skip.min(bytes.len());
        self.skip -= skipped;
        self.bytes.extend_from_slice(&bytes[skipped..]);
    }

    /// Takes exactly so many bytes out, if they are there.
    pub fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let head = *self.bytes.first_chunk()?;
        self.bytes.drain(..N);
        Some(head)
    }

    /// Takes all out.
    pub fn take_all(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.bytes)
    }

    /// The next message, if it is whole. Never holds more than the longest message and what was pushed last.
    ///
    /// # Errors
    /// It is none; reading on is of no use.
    pub fn message(&mut self) -> Result<Option<Message>, MessageError> {
        let Some(&kind) = self.bytes.first() else { return Ok(None) };
        let length = match kind {
            0 => 20,
            2 => self.counted(4, 2, 2, 4),
            3 => 10,
            4 => 8,
            5 => 6,
            6 => return Ok(self.cut_text()),
            251 => self.counted(8, 6, 1, 16),
            255 if self.bytes.get(1).is_none_or(|&sub| sub == 0) => 12,
            unknown => return Err(MessageError::Unknown(unknown)),
        };
        debug_assert!(length <= KEPT_MOST);
        if self.bytes.len() < length {
            return Ok(None);
        }
        let message: Vec<u8> = self.bytes.drain(..length).collect();
        parse(&message).map(Some)
    }

    /// Length of a message of `head` bytes, with a count of `width` bytes at `at` of what follows, `each` bytes long.
    fn counted(&self, head: usize, at: usize, width: usize, each: usize) -> usize {
        match self.bytes.get(at..at + width) {
            Some(count) => head + each * count.iter().fold(0, |n, b| n << 8 | usize::from(*b)),
            None => head,
        }
    }

    /// A clipboard: its length counts, its text does not. Extended clipboards have negative lengths.
    fn cut_text(&mut self) -> Option<Message> {
        let head: [u8; 8] = *self.bytes.first_chunk()?;
        let length = i32::from_be_bytes([head[4], head[5], head[6], head[7]]).unsigned_abs() as usize;
        let here = length.min(self.bytes.len() - 8);
        self.bytes.drain(..8 + here);
        self.skip = length - here;
        Some(Message::CutText)
    }
}

fn parse(m: &[u8]) -> Result<Message, MessageError> {
    let half = |at: usize| u16::from_be_bytes([m[at], m[at + 1]]);
    let word = |at: usize| u32::from_be_bytes([m[at], m[at + 1], m[at + 2], m[at + 3]]);
    Ok(match m[0] {
        0 => {
            let mut format = [0; 16];
            format.copy_from_slice(&m[4..20]);
            Message::SetPixelFormat(Format::parse(&format)?)
        }
        2 => Message::SetEncodings((4..m.len()).step_by(4).map(|at| word(at).cast_signed()).collect()),
        3 => Message::Update {
            incremental: m[1] != 0,
            area: Rect {
                x: half(2).into(),
                y: half(4).into(),
                width: half(6).into(),
                height: half(8).into(),
            },
        },
        4 => Message::Key { down: m[1] != 0, symbol: word(4) },
        5 => Message::Pointer { mask: m[1], x: half(2), y: half(4) },
        251 => Message::SetDesktopSize,
        // Down in 16 bits.
        _ => Message::ExtendedKey { down: half(2) != 0, symbol: word(4), number: word(8) },
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn all(input: &mut Input) -> Vec<Message> {
        std::iter::from_fn(|| input.message().unwrap()).collect()
    }

    #[test]
    fn messages_are_found_however_they_come() {
        let mut bytes = vec![2, 0, 0, 2, 0, 0, 0, 16, 0xff, 0xff, 0xff, 0x21];
        bytes.extend([6, 0, 0, 0, 0, 0, 0, 5]);
        bytes.extend(b"texts");
        bytes.extend([6, 0, 0, 0, 0xff, 0xff, 0xff, 0xfd, 1, 2, 3]);
        bytes.extend([3, 1, 0, 1, 0, 2, 1, 0, 2, 0]);
        bytes.extend([255, 0, 0, 1, 0, 0, 0, 0x41, 0, 0, 0, 0x1e]);
        bytes.extend([5, 4, 0, 9, 1, 0]);
        bytes.extend([251, 0, 0, 0, 0, 0, 1, 0]);
        bytes.extend([7; 16]);
        let expected = [
            Message::SetEncodings(vec![16, -223]),
            Message::CutText,
            Message::CutText,
            Message::Update { incremental: true, area: Rect { x: 1, y: 2, width: 256, height: 512 } },
            Message::ExtendedKey { down: true, symbol: 0x41, number: 0x1e },
            Message::Pointer { mask: 4, x: 9, y: 256 },
            Message::SetDesktopSize,
        ];
        let mut whole = Input::default();
        whole.push(&bytes);
        assert_eq!(all(&mut whole), expected);
        let mut parts = Input::default();
        let mut found = Vec::new();
        for byte in &bytes {
            parts.push(&[*byte]);
            found.extend(all(&mut parts));
        }
        assert_eq!(found, expected);
    }

    #[test]
    fn a_long_clipboard_is_never_held() {
        let mut input = Input::default();
        input.push(&[6, 0, 0, 0, 0x80, 0, 0, 0]);
        assert_eq!(all(&mut input), [Message::CutText]);
        for _ in 0..1000 {
            input.push(&[0; 4096]);
            assert!(input.bytes.is_empty());
        }
        assert_eq!(input.message(), Ok(None));
    }

    #[test]
    fn what_is_none_is_refused() {
        for bytes in [&[1, 0][..], &[200], &[255, 1]] {
            let mut input = Input::default();
            input.push(bytes);
            assert!(matches!(input.message(), Err(MessageError::Unknown(_))), "{bytes:?}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_messages_or_none(parts in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 0..40)) {
            let mut input = Input::default();
            for part in parts {
                input.push(&part);
                while let Ok(Some(_)) = input.message() {}
                prop_assert!(input.bytes.len() <= KEPT_MOST + 40 * 40);
            }
        }
    }
}
