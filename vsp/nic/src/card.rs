//! The card: a PCI function, what is between it, its thread and the network.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use serde::{Deserialize, Serialize};
use vireo_board::{Attach, Attachment, BoardError, Seat};
use vireo_chipset::RestoreError;
use vireo_chipset::lines::IrqLine;
use vireo_chipset::pci::{Bar, BarWindow, ConfigSpace, ConfigSpaceState, PciFunction, PciIdentity, PciSlot};
use vireo_frame::{Ability, Adapter, End, Frame, Full, Link, Mac};
use vireo_memory::GuestMemory;

use crate::registers::{Registers, at, cause, ctrl, rctl, status};
use crate::{DEVICE, NicError, SUBSYSTEM, VENDOR, eeprom, sender};

const VERSION: u32 = 1;
const NAME: &str = "network card";
const PIN: u8 = 1;
const MEMORY_BAR: u8 = 0;
const MEMORY_SIZE: u32 = 128 << 10;
/// The same registers by two ports: address and data.
const PORTS_BAR: u8 = 2;
const PORTS: u32 = 64;

/// Saved state of an [`E1000`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct E1000State {
    version: u32,
    space: ConfigSpaceState,
    registers: Registers,
    port_address: u32,
}

/// All that changes.
pub(crate) struct State {
    pub registers: Registers,
    space: ConfigSpace,
    port_address: u32,
    carrier: bool,
    pub pauses: u32,
    /// Counts resets: what was read before is not sent after.
    pub epoch: u64,
    /// The guest may have something to send.
    pub transmit: bool,
    /// The network has no room; it tells.
    pub full: bool,
    /// The network waits for buffers.
    starved: bool,
    /// The network is to be told: of room, of what the guest wants.
    pub tell_room: bool,
    pub tell_wishes: bool,
    /// Frames came, and the guest was not interrupted.
    received: bool,
    pub ended: bool,
    scratch: Vec<u8>,
}

/// What the card, its thread and the network share.
pub(crate) struct Shared {
    state: Mutex<State>,
    work: Condvar,
    pub memory: Arc<GuestMemory>,
    pin: Arc<dyn IrqLine>,
    /// As the EEPROM has it.
    address: Mac,
}

/// The card. Made paused; dropping it ends its thread.
pub struct E1000 {
    name: String,
    shared: Arc<Shared>,
    link: Arc<dyn Link>,
    thread: Option<JoinHandle<()>>,
}

fn config_space() -> Result<ConfigSpace, NicError> {
    let mut space = ConfigSpace::new(PciIdentity {
        vendor: VENDOR,
        device: DEVICE,
        revision: 2,
        class: 0x02_00_00,
        subsystem_vendor: VENDOR,
        subsystem: SUBSYSTEM,
        multi_function: false,
        interrupt_pin: PIN,
    });
    space.add_bar(MEMORY_BAR.into(), Bar::Memory32 { size: MEMORY_SIZE, prefetchable: false })?;
    space.add_bar(PORTS_BAR.into(), Bar::Io { size: PORTS })?;
    Ok(space)
}

impl E1000 {
    /// Puts a card with this address into `slot`, plugged into `link`. `name` is for messages and its thread.
    ///
    /// # Errors
    /// The slot is taken, or the host refuses a thread.
    pub fn plug(
        seat: &mut Seat,
        slot: PciSlot,
        name: &str,
        link: Arc<dyn Link>,
        address: Mac,
    ) -> Result<Arc<Self>, NicError> {
        let pin = seat.chipset.pci_pin(slot, PIN).ok_or(NicError::NoPin)?;
        let state = State {
            registers: Registers::new(address),
            space: config_space()?,
            port_address: 0,
            carrier: false,
            pauses: 1,
            epoch: 0,
            transmit: false,
            full: false,
            starved: false,
            tell_room: false,
            tell_wishes: false,
            received: false,
            ended: false,
            scratch: Vec::new(),
        };
        let memory = Arc::clone(seat.memory);
        let shared =
            Arc::new(Shared { state: Mutex::new(state), work: Condvar::new(), memory, pin, address });
        let thread = sender::start(name, &shared, &link).map_err(NicError::Thread)?;
        let card = Arc::new(Self { name: name.into(), shared, link, thread: Some(thread) });
        seat.chipset.add_pci(slot, Arc::clone(&card) as _)?;
        // It gets frames that are finished.
        card.link.set_adapter_ability(Ability::default());
        card.link.plug(Some(Arc::clone(&card.shared) as _));
        Ok(card)
    }

    /// The state. The vCPUs must stand still.
    pub fn save(&self) -> E1000State {
        let state = self.shared.lock();
        E1000State {
            version: VERSION,
            space: state.space.save(),
            registers: state.registers.clone(),
            port_address: state.port_address,
        }
    }

    /// Takes over a saved state. The vCPUs must stand still; the PCI host has to follow the BARs afterwards.
    ///
    /// # Errors
    /// Another version, or values that no card can hold. Discard the machine then, or reset it.
    pub fn restore(&self, saved: &E1000State) -> Result<(), RestoreError> {
        vireo_chipset::state::check_version(NAME, saved.version, VERSION)?;
        vireo_chipset::state::check(NAME, saved.registers.possible(), "impossible registers")?;
        let mut state = self.shared.lock();
        state.space.restore(&saved.space)?;
        state.registers = saved.registers.clone();
        state.port_address = saved.port_address;
        state.epoch += 1;
        (state.transmit, state.tell_wishes, state.tell_room) = (true, true, true);
        // The cable of before is not that of now.
        state.registers.icr |= cause::LINK;
        self.shared.work.notify_one();
        self.shared.drive(&mut state);
        Ok(())
    }
}

impl Shared {
    pub fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.work.wait(state).unwrap_or_else(PoisonError::into_inner)
    }

    /// Interrupts, or does not any more. A card at rest does neither.
    pub fn drive(&self, state: &mut State) {
        if state.pauses == 0 {
            let pending = state.registers.icr & state.registers.ims != 0;
            state.space.set_interrupt_status(pending);
            self.pin.set(pending && !state.space.intx_disabled());
        }
    }

    /// As after power-on, but for the PHY, which a reset of the card leaves alone.
    fn reset(&self, state: &mut State) {
        let phy = std::mem::take(&mut state.registers.phy);
        state.registers = Registers::new(self.address);
        state.registers.phy = phy;
        state.epoch += 1;
        (state.transmit, state.received) = (false, false);
        (state.tell_wishes, state.tell_room) = (true, std::mem::take(&mut state.starved));
        self.work.notify_one();
        self.drive(state);
    }

    fn read_register(&self, state: &mut State, register: u32) -> u32 {
        match register {
            at::STATUS => {
                let link = if state.carrier { status::LINK_UP } else { 0 };
                status::FULL_DUPLEX | status::GIGABIT | link
            }
            at::ICR => {
                let causes = std::mem::take(&mut state.registers.icr);
                self.drive(state);
                causes
            }
            _ => state.registers.read(register),
        }
    }

    fn write_register(&self, state: &mut State, register: u32, value: u32) {
        let (registers, carrier) = (&mut state.registers, state.carrier);
        match register {
            at::CTRL | at::CTRL_COPY => {
                if value & ctrl::PHY_RESET != 0 {
                    registers.phy = crate::phy::Phy::default();
                }
                if value & ctrl::RESET != 0 {
                    return self.reset(state);
                }
                registers.ctrl = value & ctrl::KEPT;
            }
            at::EECD => registers.microwire.write(value, self.address),
            at::EERD => registers.eerd = eeprom::read_register(self.address, value),
            at::MDIC => {
                let (answer, interrupt) = registers.phy.access(value, carrier);
                registers.mdic = answer;
                if interrupt {
                    registers.icr |= cause::MDIO;
                }
            }
            at::ICR => registers.icr &= !value,
            at::ICS => registers.icr |= value & cause::ALL,
            at::IMS => registers.ims |= value & cause::ALL,
            at::IMC => registers.ims &= !value,
            at::TCTL | at::TDT => {
                registers.write(register, value);
                state.transmit = true;
                self.work.notify_one();
            }
            at::RDT | at::RCTL => {
                registers.write(register, value);
                state.tell_wishes |= register == at::RCTL;
                state.tell_room |= std::mem::take(&mut state.starved);
                self.work.notify_one();
            }
            at::MTA..at::VFTA => {
                registers.write(register, value);
                state.tell_wishes = true;
                self.work.notify_one();
            }
            _ => registers.write(register, value),
        }
        self.drive(state);
    }

    /// Registers are read and written as a whole; of other reads it is the parts.
    fn read(&self, state: &mut State, offset: u64, data: &mut [u8]) {
        let mut before = None;
        for (at, byte) in (offset..).zip(data) {
            let register = (at & !3) as u32;
            let word = match before {
                Some((same, word)) if same == register => word,
                _ => self.read_register(state, register),
            };
            before = Some((register, word));
            *byte = word.to_le_bytes()[(at & 3) as usize];
        }
    }

    fn write(&self, state: &mut State, offset: u64, data: &[u8]) {
        if offset.is_multiple_of(4) {
            for (register, word) in (offset as u32..).step_by(4).zip(data.as_chunks().0) {
                self.write_register(state, register, u32::from_le_bytes(*word));
            }
        }
    }
}

impl End for Shared {
    fn put(&self, frame: &Frame<'_>) -> Result<(), Full> {
        let mut state = self.lock();
        let state = &mut *state;
        if !Ability::default().takes(&frame.intent()) {
            return Ok(());
        }
        if state.pauses > 0 {
            if state.registers.rctl & rctl::ENABLE == 0 {
                return Ok(());
            }
            state.starved = true;
            return Err(Full);
        }
        let head = state.registers.rx.head;
        let put = state.registers.receive(&self.memory, frame, &mut state.scratch);
        state.starved |= put.is_err();
        state.received |= state.registers.rx.head != head;
        put
    }

    fn flush(&self) {
        let mut state = self.lock();
        if std::mem::take(&mut state.received) {
            state.registers.icr |= cause::RX;
            self.drive(&mut state);
        }
    }

    fn room(&self) {
        self.lock().full = false;
        self.work.notify_one();
    }
}

impl Adapter for Shared {
    fn set_carrier(&self, up: bool, _speed: u64) {
        let mut state = self.lock();
        if state.carrier != up {
            state.carrier = up;
            state.registers.icr |= cause::LINK;
            self.drive(&mut state);
        }
    }
}

impl PciFunction for E1000 {
    fn config_read(&self, offset: u8, data: &mut [u8]) {
        self.shared.lock().space.read(offset, data);
    }

    fn config_write(&self, offset: u8, data: &[u8]) {
        let mut state = self.shared.lock();
        state.space.write(offset, data);
        self.shared.drive(&mut state);
    }

    fn windows(&self) -> Vec<BarWindow> {
        self.shared.lock().space.windows()
    }

    fn bar_read(&self, bar: u8, offset: u64, data: &mut [u8]) {
        let mut state = self.shared.lock();
        if bar == MEMORY_BAR {
            return self.shared.read(&mut state, offset, data);
        }
        data.fill(0);
        let address = state.port_address;
        match offset {
            0 => data.iter_mut().zip(address.to_le_bytes()).for_each(|(to, from)| *to = from),
            4 if address < MEMORY_SIZE => self.shared.read(&mut state, address.into(), data),
            _ => {}
        }
    }

    fn bar_write(&self, bar: u8, offset: u64, data: &[u8]) {
        let mut state = self.shared.lock();
        if bar == MEMORY_BAR {
            return self.shared.write(&mut state, offset, data);
        }
        let Some(word) = data.first_chunk() else { return };
        match offset {
            0 => state.port_address = u32::from_le_bytes(*word),
            4 if state.port_address < MEMORY_SIZE => {
                let address = state.port_address.into();
                self.shared.write(&mut state, address, word);
            }
            _ => {}
        }
    }

    fn reset(&self) {
        let mut state = self.shared.lock();
        state.space.reset();
        state.port_address = 0;
        state.registers.phy = crate::phy::Phy::default();
        self.shared.reset(&mut state);
        self.shared.pin.set(false);
    }
}

impl Attachment for E1000 {
    fn name(&self) -> &str {
        &self.name
    }

    /// It is at rest at once: guest memory is touched under the lock alone.
    fn pause(&self, _deadline: Instant) -> bool {
        self.shared.lock().pauses += 1;
        true
    }

    fn resume(&self) {
        let mut state = self.shared.lock();
        state.pauses = state.pauses.saturating_sub(1);
        if state.pauses == 0 {
            state.transmit = true;
            state.tell_room |= std::mem::take(&mut state.starved);
            if std::mem::take(&mut state.received) {
                state.registers.icr |= cause::RX;
            }
            self.shared.drive(&mut state);
            self.shared.work.notify_one();
        }
    }
}

impl Drop for E1000 {
    fn drop(&mut self) {
        self.link.plug(None);
        self.shared.lock().ended = true;
        self.shared.work.notify_one();
        if let Some(thread) = self.thread.take() {
            // One that panicked has said so itself.
            _ = thread.join();
        }
    }
}

/// Puts a card onto a board; `made` is given it, for its state.
pub fn attach(
    slot: PciSlot,
    name: &str,
    link: Arc<dyn Link>,
    address: Mac,
    made: impl Fn(&Arc<E1000>) + Send + Sync + 'static,
) -> Attach {
    let name = name.to_owned();
    Box::new(move |seat| {
        let card = E1000::plug(seat, slot, &name, Arc::clone(&link), address)
            .map_err(|e| BoardError::Device(e.to_string()))?;
        made(&card);
        Ok(card)
    })
}
