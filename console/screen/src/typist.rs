//! Who types on a keyboard: keys by symbol, by code and as text.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use crate::keysym::{Symbol, of_char, of_symbol};
use crate::{Key, Keyboard};

/// One who types. What is still held when it goes is let go.
///
/// Guests are taken to have a US keyboard. Symbols that need shift get it whether or not the shift key is held: a viewer's own
/// keyboard may be another.
pub struct Typist {
    keyboard: Arc<dyn Keyboard>,
    held: HashSet<Key>,
    /// Caps lock is on, as far as this one has turned it.
    caps: bool,
}

/// A guest takes no keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the guest takes no keys; it took {typed} characters of the text")]
pub struct Deaf {
    /// Characters that it took before.
    pub typed: usize,
}

/// Text is typed with such a rest after each key: guests in their early days take keys one by one.
const REST: Duration = Duration::from_millis(4);
/// How often a key is tried that the guest does not take.
const TRIES: u32 = 250;

impl Typist {
    /// One with no key held.
    pub fn new(keyboard: Arc<dyn Keyboard>) -> Self {
        Self { keyboard, held: HashSet::new(), caps: false }
    }

    /// Presses a key, or lets it go, by its code.
    pub fn key(&mut self, key: Key, down: bool) {
        if down {
            self.held.insert(key);
        } else if !self.held.remove(&key) {
            return;
        }
        if key == Key::CAPS && down {
            self.caps = !self.caps;
        }
        self.keyboard.key(key, down);
    }

    fn shift_held(&self) -> bool {
        self.held.contains(&Key::SHIFT) || self.held.contains(&Key::RIGHT_SHIFT)
    }

    /// Whether caps lock is on.
    fn caps(&self) -> bool {
        self.keyboard.leds().map_or(self.caps, |leds| leds.caps)
    }

    /// Presses a key, or lets it go, by its symbol. One that no key has does nothing.
    pub fn symbol(&mut self, symbol: u32, down: bool) {
        match of_symbol(symbol) {
            Some(Symbol::Key(key)) => self.key(key, down),
            Some(Symbol::Char(chord)) if down => {
                let shift = chord.shifted != (chord.letter && self.caps());
                self.with_shift(shift, |typist| typist.key(chord.key, true));
            }
            Some(Symbol::Char(chord)) => self.key(chord.key, false),
            None => {}
        }
    }

    /// Does something with shift held, or not, and puts it back then.
    fn with_shift(&mut self, wanted: bool, then: impl FnOnce(&mut Self)) {
        if wanted == self.shift_held() {
            return then(self);
        }
        if wanted {
            self.keyboard.key(Key::SHIFT, true);
            then(self);
            self.keyboard.key(Key::SHIFT, false);
        } else {
            let held: Vec<Key> =
                [Key::SHIFT, Key::RIGHT_SHIFT].into_iter().filter(|k| self.held.contains(k)).collect();
            held.iter().for_each(|k| _ = self.keyboard.key(*k, false));
            then(self);
            held.iter().for_each(|k| _ = self.keyboard.key(*k, true));
        }
    }

    /// Types text, key after key. Gives the characters that no key has.
    ///
    /// # Errors
    /// The guest takes no keys.
    pub fn text(&mut self, text: &str) -> Result<String, Deaf> {
        let mut unknown = String::new();
        for (count, c) in text.chars().enumerate() {
            let Some(chord) = of_char(c) else {
                unknown.push(c);
                continue;
            };
            let shift = chord.shifted != (chord.letter && self.caps());
            let keys: &[Key] = if shift { &[Key::SHIFT, chord.key] } else { &[chord.key] };
            self.chord(keys).map_err(|_| Deaf { typed: count })?;
        }
        Ok(unknown)
    }

    /// Presses keys one after the other, and lets them go in the opposite order.
    ///
    /// # Errors
    /// The guest takes no keys.
    pub fn chord(&mut self, keys: &[Key]) -> Result<(), Deaf> {
        let down = keys.iter().map(|k| (*k, true));
        for (key, down) in down.chain(keys.iter().rev().map(|k| (*k, false))) {
            let taken = (0..TRIES).any(|_| {
                let taken = self.keyboard.key(key, down);
                std::thread::sleep(REST);
                taken
            });
            if !taken {
                return Err(Deaf { typed: 0 });
            }
        }
        Ok(())
    }

    /// Lets go of all that is held.
    pub fn release(&mut self) {
        for key in self.held.drain() {
            self.keyboard.key(key, false);
        }
    }
}

impl Drop for Typist {
    fn drop(&mut self) {
        self.release();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[derive(Default)]
    struct Log(Mutex<Vec<(u8, bool)>>);
    impl Keyboard for Log {
        fn key(&self, key: Key, down: bool) -> bool {
            self.0.lock().unwrap().push((key.code, down));
            true
        }
    }

    fn typist() -> (Arc<Log>, Typist) {
        let log = Arc::<Log>::default();
        (Arc::clone(&log), Typist::new(log))
    }

    impl Log {
        fn take(&self) -> Vec<(u8, bool)> {
            std::mem::take(&mut self.0.lock().unwrap())
        }
    }

    #[test]
    fn text_is_typed_with_shift_where_it_is_needed() {
        let (log, mut typist) = typist();
        assert_eq!(typist.text("aB\né"), Ok("é".into()));
        let a = [(0x1e, true), (0x1e, false)];
        let b = [(0x2a, true), (0x30, true), (0x30, false), (0x2a, false)];
        let enter = [(0x1c, true), (0x1c, false)];
        assert_eq!(log.take(), [&a[..], &b, &enter].concat());
    }

    #[test]
    fn symbols_get_the_shift_that_they_need() {
        let (log, mut typist) = typist();
        // A viewer that sends no shift of its own.
        typist.symbol('A'.into(), true);
        typist.symbol('A'.into(), false);
        assert_eq!(log.take(), [(0x2a, true), (0x1e, true), (0x2a, false), (0x1e, false)]);
        // One that does; and a digit that is shifted on its keyboard.
        typist.symbol(0xffe1, true);
        typist.symbol('A'.into(), true);
        typist.symbol('A'.into(), false);
        typist.symbol('1'.into(), true);
        let shifted = [(0x2a, true), (0x1e, true), (0x1e, false)];
        assert_eq!(log.take(), [&shifted[..], &[(0x2a, false), (0x02, true), (0x2a, true)]].concat());
        // It goes with two keys held.
        drop(typist);
        let mut gone = log.take();
        gone.sort_unstable();
        assert_eq!(gone, [(0x02, false), (0x2a, false)]);
    }

    #[test]
    fn caps_lock_turns_letters_round_and_nothing_else() {
        let (log, mut typist) = typist();
        typist.symbol(0xffe5, true);
        typist.symbol(0xffe5, false);
        log.take();
        typist.symbol('A'.into(), true);
        typist.symbol('!'.into(), true);
        assert_eq!(log.take(), [(0x1e, true), (0x2a, true), (0x02, true), (0x2a, false)]);
    }

    #[test]
    fn a_guest_that_takes_nothing_ends_the_typing() {
        struct Locked;
        impl Keyboard for Locked {
            fn key(&self, _: Key, _: bool) -> bool {
                false
            }
        }
        assert_eq!(Typist::new(Arc::new(Locked)).text("x"), Err(Deaf { typed: 0 }));
    }
}
