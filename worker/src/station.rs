//! The machine's screen, keyboard and mouse.

use std::sync::Arc;

use vireo_board::BoardError;
use vireo_input::{SyntheticKeyboard, SyntheticMouse};
use vireo_screen::{Screen, Size, Station};
use vireo_video::Provider;

use crate::pci;
use crate::vmbus::Plug;

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

    /// How they come onto the bus.
    pub fn plug(&self) -> Plug {
        let (screen, keyboard, mouse) =
            (Arc::clone(&self.screen), Arc::clone(&self.keyboard), Arc::clone(&self.mouse));
        Box::new(move |bus, seat| {
            let full = || BoardError::Device("VMBus has no room for keyboard and mouse".into());
            keyboard.attach(bus).ok_or_else(full)?;
            mouse.attach(bus).ok_or_else(full)?;
            let slot = pci::slot(pci::VIDEO, "the frame buffer")?;
            Provider::attach(bus, seat, slot, &screen)
        })
    }
}
