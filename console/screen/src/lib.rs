//! What a person sees of a machine and acts on: a screen, a keyboard and a pointer.
//!
//! Owns the seams between the devices that have them and those who look and type: which picture is shown and what of it has changed
//! ([`Screen`], [`Viewer`]), keys and the way from text and key symbols to them ([`Keyboard`], [`Typist`]), the pointer
//! ([`Pointer`]), and screenshots. It knows no device, no engine and no protocol of viewers.
//!
//! # Whom to trust
//! Modes and rectangles come from guests: a mode is checked when it is set, rectangles are cut to it, and there are never more of
//! them than [`Damage::MOST`]. A picture never changes its size: who reads while the guest sets another mode reads the old
//! picture's memory, and is told. Pixels are guest memory, which may change while it is read; nobody goes by what they say.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod damage;
mod geometry;
mod key;
mod keysym;
mod picture;
mod pointer;
mod screen;
mod typist;

pub use damage::Damage;
pub use geometry::{Rect, Size};
pub use key::{Key, KeyError, Keyboard, Leds};
pub use picture::{Compare, Mode, ModeError, Picture, Pixels};
pub use pointer::{Buttons, Pointer, PointerState};
pub use screen::{Screen, Viewer};
pub use typist::{Deaf, Typist};

use std::sync::Arc;

/// Where a person sits: what belongs together.
#[derive(Clone)]
pub struct Station {
    /// What is seen.
    pub screen: Arc<Screen>,
    /// What is typed on.
    pub keyboard: Arc<dyn Keyboard>,
    /// What is pointed with.
    pub pointer: Arc<dyn Pointer>,
}
