//! Where the frame buffer is, and what of it is shown.

use std::sync::Arc;

use vireo_memory::{DeviceMemory, GuestMemory};
use vireo_screen::{Mode, Pixels, Screen};

use crate::protocol::Output;

/// Where the driver has put the frame buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Vram {
    /// It has the device's memory, somewhere.
    Window,
    /// It is RAM, from this address on.
    Ram(u64),
}

/// The frame buffer of one driver.
pub struct Frame {
    screen: Arc<Screen>,
    ram: Arc<GuestMemory>,
    memory: Arc<DeviceMemory>,
    vram: Option<Vram>,
    /// Of the last time that a driver said where it is, or went.
    wish: u64,
    output: Option<Output>,
}

struct WindowPixels(Arc<DeviceMemory>);

impl Pixels for WindowPixels {
    fn read(&self, offset: u64, to: &mut [u8]) -> bool {
        self.0.read(offset, to).is_ok()
    }
}

/// Read for people's eyes alone, also while the machine is paused: nothing of it is changed.
struct RamPixels(Arc<GuestMemory>, u64);

impl Pixels for RamPixels {
    fn read(&self, offset: u64, to: &mut [u8]) -> bool {
        self.1.checked_add(offset).is_some_and(|gpa| self.0.read(gpa, to).is_ok())
    }
}

impl Frame {
    pub fn new(screen: &Arc<Screen>, ram: &Arc<GuestMemory>, memory: &Arc<DeviceMemory>) -> Self {
        Self {
            screen: Arc::clone(screen),
            ram: Arc::clone(ram),
            memory: Arc::clone(memory),
            vram: None,
            wish: 0,
            output: None,
        }
    }

    /// Whether RAM is at this address.
    pub fn is_ram(&self, gpa: u64) -> bool {
        self.ram.slice(gpa, 1).is_ok()
    }

    /// The frame buffer is there now, or nowhere; the number of this wish.
    pub fn place(&mut self, vram: Option<Vram>) -> u64 {
        self.wish += 1;
        self.vram = vram;
        self.show();
        self.wish
    }

    /// The window is where it was wanted by this wish; nobody wants that any more if there was another, or the driver went.
    pub fn placed(&mut self, wish: u64) {
        if self.wish == wish {
            self.vram = Some(Vram::Window);
            self.show();
        }
    }

    /// This is shown.
    pub fn situate(&mut self, output: Option<Output>) {
        // Drivers say what they have said before whenever they are asked.
        if self.output != output {
            self.output = output;
            self.show();
        }
    }

    /// The driver is gone.
    pub fn forget(&mut self) {
        self.wish += 1;
        (self.vram, self.output) = (None, None);
        self.screen.blank();
    }

    fn show(&self) {
        let active = self.output.filter(|o| o.active && o.depth == 32);
        let (Some(output), Some(vram)) = (active, self.vram) else { return self.screen.blank() };
        // As much as the driver was told that there is, wherever it took it from.
        let Output { offset, width, height, pitch, .. } = output;
        match Mode::new(width, height, pitch, offset.into(), self.memory.size()) {
            Ok(mode) => {
                let pixels: Arc<dyn Pixels> = match vram {
                    Vram::Window => Arc::new(WindowPixels(Arc::clone(&self.memory))),
                    Vram::Ram(gpa) => Arc::new(RamPixels(Arc::clone(&self.ram), gpa)),
                };
                tracing::debug!(?mode, ?vram, "a picture");
                self.screen.show(mode, pixels);
            }
            Err(e) => {
                tracing::debug!("nothing can be shown: {e}");
                self.screen.blank();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use vireo_memory::{Holes, RamLayout};
    use vireo_screen::Size;

    use super::*;

    #[test]
    fn a_window_that_comes_late_is_nobodys() {
        let holes = Holes { legacy: 0xa_0000..0xc_0000, pci: 0xc000_0000..0x1_0000_0000 };
        let ram = GuestMemory::new(RamLayout::new(16 << 20, &holes).unwrap()).unwrap();
        let memory = DeviceMemory::new(8 << 20).unwrap();
        let screen = Screen::new(Size { width: 640, height: 480 });
        let mut frame = Frame::new(&screen, &ram, &memory);
        let wish = frame.place(None);
        frame.placed(wish);
        assert_eq!(frame.vram, Some(Vram::Window));
        // It is wanted in RAM meanwhile, or the driver goes.
        let wish = frame.place(None);
        frame.place(Some(Vram::Ram(0x10_0000)));
        frame.placed(wish);
        assert_eq!(frame.vram, Some(Vram::Ram(0x10_0000)));
        let wish = frame.place(None);
        frame.forget();
        frame.placed(wish);
        assert_eq!(frame.vram, None);
    }
}
