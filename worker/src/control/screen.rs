//! What is asked of screen and keyboard.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use vireo_screen::{Deaf, Key, Station, Typist};

use super::{Answer, Request, TEXT_MAX};

/// Why nothing can be done.
const NONE: &str = "the machine has no screen and no keyboard: start it with --screen or --vnc";

/// Most keys that are pressed together.
const KEYS_MAX: usize = 8;

fn deafness(deaf: Deaf) -> String {
    format!("{deaf}: has it loaded its keyboard driver (hyperv-keyboard in Linux)?")
}

/// Does what is asked. The error is for the user.
pub fn answer(request: &Request, station: Option<&Station>) -> Result<Answer, String> {
    let station = station.ok_or(NONE)?;
    match request {
        Request::Type { text } => type_text(station, text),
        Request::Keys { keys } => press(station, keys),
        _ => shoot(station),
    }
}

/// What is on the screen.
fn shoot(station: &Station) -> Result<Answer, String> {
    let png = station.screen.picture().png().map_err(|e| format!("the screen cannot be encoded: {e}"))?;
    Ok(Answer::Screen { png: STANDARD.encode(png) })
}

/// Types text.
fn type_text(station: &Station, text: &str) -> Result<Answer, String> {
    if text.chars().count() > TEXT_MAX {
        return Err(format!("at most {TEXT_MAX} characters are typed at a time"));
    }
    match Typist::new(Arc::clone(&station.keyboard)).text(text) {
        Ok(unknown) if unknown.is_empty() => Ok(Answer::Done),
        Ok(unknown) => Err(format!("there are no keys for {unknown:?}; the rest was typed")),
        Err(deaf) => Err(deafness(deaf)),
    }
}

/// Presses keys together.
fn press(station: &Station, names: &[String]) -> Result<Answer, String> {
    if names.is_empty() || names.len() > KEYS_MAX {
        return Err(format!("1 to {KEYS_MAX} keys are pressed together"));
    }
    let keys: Result<Vec<Key>, _> = names.iter().map(|n| n.parse()).collect();
    let keys = keys.map_err(|e: vireo_screen::KeyError| e.to_string())?;
    let pressed = Typist::new(Arc::clone(&station.keyboard)).chord(&keys);
    pressed.map(|()| Answer::Done).map_err(deafness)
}
