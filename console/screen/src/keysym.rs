//! From key symbols of X and characters to keys of a US keyboard.
//!
//! Source: X11's keysymdef.h for the numbers, scan code set 1 for the keys.

use crate::Key;

/// How a character is typed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Chord {
    pub key: Key,
    /// With shift.
    pub shifted: bool,
    /// Caps lock turns shift round.
    pub letter: bool,
}

/// Rows of the keyboard from its first code on: without shift and with it.
const ROWS: [(u8, &str, &str); 5] = [
    (0x02, "1234567890-=", "!@#$%^&*()_+"),
    (0x10, "qwertyuiop[]", "QWERTYUIOP{}"),
    (0x1e, "asdfghjkl;'`", "ASDFGHJKL:\"~"),
    (0x2b, "\\zxcvbnm,./", "|ZXCVBNM<>?"),
    (0x39, " ", " "),
];

/// How a character is typed, if it can be.
pub(crate) fn of_char(c: char) -> Option<Chord> {
    let chord = |code: u8, shifted| Chord { key: Key::plain(code), shifted, letter: c.is_ascii_alphabetic() };
    match c {
        '\n' | '\r' => return Some(chord(0x1c, false)),
        '\t' => return Some(chord(0x0f, false)),
        '\u{8}' | '\u{7f}' => return Some(chord(0x0e, false)),
        '\u{1b}' => return Some(chord(0x01, false)),
        _ => {}
    }
    ROWS.iter().find_map(|(first, plain, shifted)| {
        let at = |row: &str| row.chars().position(|r| r == c).map(|n| first + n as u8);
        at(plain).map(|code| chord(code, false)).or_else(|| at(shifted).map(|code| chord(code, true)))
    })
}

/// What a key symbol means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Symbol {
    /// A character.
    Char(Chord),
    /// A key that is no character.
    Key(Key),
}

/// Key symbols of keys that are no characters.
const KEYS: [(u32, Key); 46] = [
    (0xff08, Key::plain(0x0e)),
    (0xff09, Key::plain(0x0f)),
    (0xfe20, Key::plain(0x0f)), // shifted tab
    (0xff0d, Key::plain(0x1c)),
    (0xff14, Key::plain(0x46)),
    (0xff15, Key::extended(0x37)),
    (0xff1b, Key::plain(0x01)),
    (0xff61, Key::extended(0x37)),
    (0xff50, Key::extended(0x47)), // Home
    (0xff51, Key::extended(0x4b)), // Left
    (0xff52, Key::extended(0x48)), // Up
    (0xff53, Key::extended(0x4d)), // Right
    (0xff54, Key::extended(0x50)), // Down
    (0xff55, Key::extended(0x49)), // Page up
    (0xff56, Key::extended(0x51)), // Page down
    (0xff57, Key::extended(0x4f)), // End
    (0xff63, Key::extended(0x52)), // Insert
    (0xff67, Key::extended(0x5d)), // Menu
    (0xff7f, Key::plain(0x45)),    // Num lock
    (0xff8d, Key::extended(0x1c)), // keypad: Enter
    (0xff95, Key::plain(0x47)),
    (0xff96, Key::plain(0x4b)),
    (0xff97, Key::plain(0x48)),
    (0xff98, Key::plain(0x4d)),
    (0xff99, Key::plain(0x50)),
    (0xff9a, Key::plain(0x49)),
    (0xff9b, Key::plain(0x51)),
    (0xff9c, Key::plain(0x4f)),
    (0xff9d, Key::plain(0x4c)),
    (0xff9e, Key::plain(0x52)),
    (0xff9f, Key::plain(0x53)),
    (0xffaa, Key::plain(0x37)),
    (0xffab, Key::plain(0x4e)),
    (0xffad, Key::plain(0x4a)),
    (0xffae, Key::plain(0x53)),
    (0xffaf, Key::extended(0x35)),
    (0xffc8, Key::plain(0x57)), // F11
    (0xffc9, Key::plain(0x58)), // F12
    (0xffe1, Key::SHIFT),
    (0xffe2, Key::RIGHT_SHIFT),
    (0xffe3, Key::plain(0x1d)),    // Control
    (0xffe4, Key::extended(0x1d)), // right Control
    (0xffe5, Key::CAPS),
    (0xffe9, Key::plain(0x38)),    // Alt
    (0xffea, Key::extended(0x38)), // right Alt
    (0xffff, Key::extended(0x53)), // Delete
];

/// What a key symbol means, if it is one that a US keyboard has.
pub(crate) fn of_symbol(symbol: u32) -> Option<Symbol> {
    if let Some((_, key)) = KEYS.iter().find(|(s, _)| *s == symbol) {
        return Some(Symbol::Key(*key));
    }
    match symbol {
        0x20..=0x7e => of_char(char::from(symbol as u8)).map(Symbol::Char),
        // Characters of the keypad are its keys.
        0xffb0..=0xffb9 => {
            const DIGITS: [u8; 10] = [0x52, 0x4f, 0x50, 0x51, 0x4b, 0x4c, 0x4d, 0x47, 0x48, 0x49];
            Some(Symbol::Key(Key::plain(DIGITS[(symbol - 0xffb0) as usize])))
        }
        0xffbe..=0xffc7 => Some(Symbol::Key(Key::plain(0x3b + (symbol - 0xffbe) as u8))),
        // Meta, Super and Hyper, left and right.
        0xffe7 | 0xffeb | 0xffed => Some(Symbol::Key(Key::extended(0x5b))),
        0xffe8 | 0xffec | 0xffee => Some(Symbol::Key(Key::extended(0x5c))),
        // AltGr.
        0xfe03 | 0xff7e => Some(Symbol::Key(Key::extended(0x38))),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_character_of_ascii_can_be_typed_and_none_twice() {
        let mut seen = std::collections::HashSet::new();
        for c in ' '..='~' {
            let chord = of_char(c).unwrap_or_else(|| panic!("{c:?}"));
            assert!(seen.insert((chord.key, chord.shifted)), "{c:?} is typed as another");
            assert_eq!(chord.letter, c.is_alphabetic());
        }
        assert_eq!(of_char('m').map(|c| c.key.code), Some(0x32));
        assert_eq!(of_char('?').map(|c| (c.key.code, c.shifted)), Some((0x35, true)));
        assert_eq!(of_char('`').map(|c| c.key.code), Some(0x29));
        assert_eq!((of_char('é'), of_char('\0')), (None, None));
    }

    #[test]
    fn symbols_are_keys() {
        assert_eq!(of_symbol(0xffbe), Some(Symbol::Key(Key::plain(0x3b))));
        assert_eq!(of_symbol(0xffc7), Some(Symbol::Key(Key::plain(0x44))));
        assert_eq!(of_symbol(0xffb7), Some(Symbol::Key(Key::plain(0x47))));
        assert!(matches!(of_symbol(0x41), Some(Symbol::Char(c)) if c.shifted && c.key.code == 0x1e));
        for none in [0, 0x1f, 0x7f, 0xe9, 0x0100_20ac, u32::MAX] {
            assert_eq!(of_symbol(none), None, "{none:#x}");
        }
    }
}
