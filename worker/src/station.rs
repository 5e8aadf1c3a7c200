//! The machine's screen, keyboard and mouse.

use std::sync::Arc;

use vireo_board::{Attach, BoardError};
use vireo_input::{SyntheticKeyboard, SyntheticMouse};
use vireo_screen::{Screen, Size, Station};
use vireo_video::Provider;

use crate::pci;
use crate::vmbus::{Bus, Plug, no_room};

/// Devices of a [`Station`].
pub struct StationDevices {
    screen: Arc<Screen>,
    keyboard: Arc<SyntheticKeyboard>,
    mouse: Arc<SyntheticMouse>,
}

impl StationDevices {
    /// A screen of this size, unless the guest chooses another, keyboard and mouse.
    pub fn new(size: Size) -> Self {
        Self { screen: Screen::new(size), keyboard: SyntheticKeyboard::new(), mouse: SyntheticMouse::new() }
    }

    /// For those who look and type.
    pub fn station(&self) -> Station {
        Station {
            screen: Arc::clone(&self.screen),
            keyboard: Arc::clone(&self.keyboard) as _,
            pointer: Arc::clone(&self.mouse) as _,
        }
    }

    /// How keyboard and mouse come onto the bus.
    pub fn plugs(&self) -> Vec<Plug> {
        let (keyboard, mouse) = (Arc::clone(&self.keyboard), Arc::clone(&self.mouse));
        vec![
            Box::new(move |bus| keyboard.attach(bus).map(|_| ()).ok_or_else(|| no_room("a keyboard"))),
            Box::new(move |bus| mouse.attach(bus).map(|_| ()).ok_or_else(|| no_room("a mouse"))),
        ]
    }

    /// How the screen comes onto a board, after the bus.
    pub fn attach(&self, bus: &Bus) -> Attach {
        let (bus, screen) = (bus.clone(), Arc::clone(&self.screen));
        Box::new(move |seat| {
            let none = || BoardError::Device("the frame buffer needs VMBus".into());
            let slot = pci::slot(pci::VIDEO, "the frame buffer")?;
            Ok(Provider::attach(bus.get().ok_or_else(none)?, seat, slot, &screen)? as _)
        })
    }
}
