//! Keys, by their codes in scan code set 1, and names for them.

use std::str::FromStr;

/// A key of a PC's keyboard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    /// Its make code in set 1; below 0x80.
    pub code: u8,
    /// It has the prefix E0.
    pub extended: bool,
}

impl Key {
    /// Left shift.
    pub const SHIFT: Self = Self::plain(0x2a);
    /// Right shift.
    pub const RIGHT_SHIFT: Self = Self::plain(0x36);
    /// Caps lock.
    pub const CAPS: Self = Self::plain(0x3a);

    /// One without prefix.
    pub const fn plain(code: u8) -> Self {
        Self { code, extended: false }
    }

    /// One with the prefix E0.
    pub const fn extended(code: u8) -> Self {
        Self { code, extended: true }
    }

    /// By its number in the protocol of QEMU's VNC: the code, with bit 7 for the prefix.
    pub fn from_qnum(number: u32) -> Option<Self> {
        let code = (number & 0x7f) as u8;
        (number <= 0xff && code != 0).then_some(Self { code, extended: number & 0x80 != 0 })
    }
}

/// Lights of a keyboard.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Leds {
    /// Scroll lock.
    pub scroll: bool,
    /// Num lock.
    pub num: bool,
    /// Caps lock.
    pub caps: bool,
}

/// A machine's keyboard.
pub trait Keyboard: Send + Sync {
    /// Presses a key, or lets it go. `false`: the guest takes no more for now, and this is lost.
    fn key(&self, key: Key, down: bool) -> bool;
    /// What the guest shows, if it says so.
    fn leds(&self) -> Option<Leds> {
        None
    }
}

/// A key's name is unknown.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("there is no key {0:?}: keys are letters, digits, f1 to f12, and {names}", names = names())]
pub struct KeyError(String);

/// Names of keys; the first of each is the one that is shown.
const NAMES: [(&[&str], Key); 31] = [
    (&["esc", "escape"], Key::plain(0x01)),
    (&["backspace"], Key::plain(0x0e)),
    (&["tab"], Key::plain(0x0f)),
    (&["enter", "return"], Key::plain(0x1c)),
    (&["ctrl", "control"], Key::plain(0x1d)),
    (&["shift"], Key::SHIFT),
    (&["rightshift"], Key::RIGHT_SHIFT),
    (&["alt"], Key::plain(0x38)),
    (&["space"], Key::plain(0x39)),
    (&["capslock"], Key::CAPS),
    (&["numlock"], Key::plain(0x45)),
    (&["scrolllock"], Key::plain(0x46)),
    (&["minus"], Key::plain(0x0c)),
    (&["rightctrl"], Key::extended(0x1d)),
    (&["sysrq", "print"], Key::extended(0x37)),
    (&["altgr", "rightalt"], Key::extended(0x38)),
    (&["home"], Key::extended(0x47)),
    (&["up"], Key::extended(0x48)),
    (&["pageup"], Key::extended(0x49)),
    (&["left"], Key::extended(0x4b)),
    (&["right"], Key::extended(0x4d)),
    (&["end"], Key::extended(0x4f)),
    (&["down"], Key::extended(0x50)),
    (&["pagedown"], Key::extended(0x51)),
    (&["insert", "ins"], Key::extended(0x52)),
    (&["delete", "del"], Key::extended(0x53)),
    (&["win", "super"], Key::extended(0x5b)),
    (&["rightwin"], Key::extended(0x5c)),
    (&["menu"], Key::extended(0x5d)),
    (&["f11"], Key::plain(0x57)),
    (&["f12"], Key::plain(0x58)),
];

fn names() -> String {
    let shown = NAMES.iter().map(|(names, _)| names[0]).filter(|n| !n.starts_with('f'));
    shown.collect::<Vec<_>>().join(", ")
}

impl FromStr for Key {
    type Err = KeyError;
    fn from_str(s: &str) -> Result<Self, KeyError> {
        let name = s.to_ascii_lowercase();
        let unknown = || KeyError(s.chars().take(20).collect());
        if let Some((_, key)) = NAMES.iter().find(|(names, _)| names.contains(&name.as_str())) {
            return Ok(*key);
        }
        let function = name.strip_prefix('f').and_then(|n| n.parse::<u8>().ok());
        if let Some(n) = function.filter(|n| (1..=10).contains(n)) {
            return Ok(Self::plain(0x3a + n));
        }
        let mut letters = name.chars();
        let (Some(letter), None) = (letters.next(), letters.next()) else { return Err(unknown()) };
        crate::keysym::of_char(letter).filter(|c| !c.shifted).map(|c| c.key).ok_or_else(unknown)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_have_names() {
        let key = |s: &str| s.parse::<Key>();
        assert_eq!(key("Del"), Ok(Key::extended(0x53)));
        assert_eq!((key("a"), key("A")), (Ok(Key::plain(0x1e)), Ok(Key::plain(0x1e))));
        assert_eq!(
            (key("f1"), key("f10"), key("f12")),
            (Ok(Key::plain(0x3b)), Ok(Key::plain(0x44)), Ok(Key::plain(0x58)))
        );
        assert_eq!(key("0"), Ok(Key::plain(0x0b)));
        for wrong in ["", "f0", "f13", "é", "!", "hyper"] {
            assert!(key(wrong).is_err(), "{wrong:?}");
        }
        assert!(key("hyper").unwrap_err().to_string().contains("esc, backspace"));
    }

    #[test]
    fn numbers_of_qemu_are_codes() {
        assert_eq!(Key::from_qnum(0x1e), Some(Key::plain(0x1e)));
        assert_eq!(Key::from_qnum(0xd3), Some(Key::extended(0x53)));
        for wrong in [0, 0x80, 0x100, u32::MAX] {
            assert_eq!(Key::from_qnum(wrong), None);
        }
    }
}
