//! The standard board: every device at its place, its interrupt wired to both interrupt controllers.

use std::ops::Range;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::acpi::{AcpiPm, AcpiPmState};
use crate::bus::{
    BusError, BytePorts, IsaBytes, MmioBus, MmioBusBuilder, MmioDevice, PioBus, PioBusBuilder, PioDevice,
};
use crate::clock::{Clock, TimerService};
use crate::i8042::{I8042, I8042State};
use crate::ioapic::{IoApic, IoApicState};
use crate::layout::{self, ioapic_pin};
use crate::lines::{ExtIntSink, IrqLine, MsiSink, SerialSink, SharedLine, SystemEventSink};
use crate::pci::{
    ConfigSpaceState, PassiveFunction, PciFunction, PciHost, PciHostState, PciSlot, SlotTaken, host_bridge,
    isa_bridge,
};
use crate::pic::{Pic, PicState};
use crate::pit::{Pit, PitState};
use crate::post::PostPort;
use crate::rtc::{Rtc, RtcState};
use crate::state::{RestoreError, check_version};
use crate::uart::{Uart, UartState};

const VERSION: u32 = 1;

/// What the board gives its chipset.
#[derive(Clone)]
pub struct Seams {
    /// Guest time and wall clock.
    pub clock: Arc<dyn Clock>,
    /// Timers on that clock.
    pub timers: Arc<dyn TimerService>,
    /// Takes the PIC's INTR output.
    pub ext_int: Arc<dyn ExtIntSink>,
    /// Takes the I/O APIC's messages.
    pub msi: Arc<dyn MsiSink>,
    /// Takes power-off and reset.
    pub events: Arc<dyn SystemEventSink>,
    /// Takes the output of COM1.
    pub serial: Arc<dyn SerialSink>,
}

/// An interrupt wired to the PIC and the I/O APIC.
struct BoardLine {
    pic: Arc<Pic>,
    ioapic: Arc<IoApic>,
    irq: u8,
}

impl IrqLine for BoardLine {
    fn set(&self, asserted: bool) {
        // The PIC has no input for numbers from 16 on and ignores them.
        self.pic.set_line(self.irq, asserted);
        self.ioapic.set_line(ioapic_pin(self.irq), asserted);
    }
}

/// Builds a [`Chipset`]; devices beyond the standard ones can be added before it is finished.
pub struct ChipsetBuilder {
    pio: PioBusBuilder,
    mmio: MmioBusBuilder,
    pci: PciHost,
    /// The interrupts of PCI, from [`layout::PCI_FIRST_GSI`] on.
    pci_lines: Vec<Arc<SharedLine>>,
    msi: Arc<dyn MsiSink>,
    devices: Devices,
}

/// The standard devices.
#[derive(Clone)]
struct Devices {
    pic: Arc<Pic>,
    ioapic: Arc<IoApic>,
    pit: Arc<Pit>,
    rtc: Arc<Rtc>,
    uart: Arc<Uart>,
    i8042: Arc<I8042>,
    acpi: Arc<AcpiPm>,
    post: Arc<PostPort>,
    host_bridge: Arc<PassiveFunction>,
    isa_bridge: Arc<PassiveFunction>,
}

fn line(pic: &Arc<Pic>, ioapic: &Arc<IoApic>, irq: u8) -> Arc<dyn IrqLine> {
    Arc::new(BoardLine { pic: pic.clone(), ioapic: ioapic.clone(), irq })
}

impl Devices {
    fn new(seams: &Seams) -> Self {
        let pic = Arc::new(Pic::new(seams.ext_int.clone()));
        let ioapic = Arc::new(IoApic::new(seams.msi.clone()));
        let irq = |number| line(&pic, &ioapic, number);
        let (clock, timers) = (&seams.clock, &*seams.timers);
        Self {
            pit: Pit::new(clock.clone(), timers, irq(layout::IRQ_PIT)),
            rtc: Rtc::new(clock.clone(), timers, irq(layout::IRQ_RTC)),
            uart: Arc::new(Uart::new(irq(layout::IRQ_COM1), seams.serial.clone())),
            i8042: Arc::new(I8042::new(irq(layout::IRQ_KEYBOARD), seams.events.clone())),
            acpi: AcpiPm::new(clock.clone(), timers, irq(layout::IRQ_SCI), seams.events.clone()),
            post: Arc::default(),
            host_bridge: Arc::new(host_bridge()),
            isa_bridge: Arc::new(isa_bridge()),
            pic,
            ioapic,
        }
    }

    /// Every byte-wide device and its ports.
    fn isa(&self) -> [(Range<u16>, &'static str, Arc<dyn BytePorts>); 12] {
        [
            (layout::PIC_MASTER, "PIC master", self.pic.clone()),
            (layout::PIC_SLAVE, "PIC slave", self.pic.clone()),
            (layout::ELCR, "ELCR", self.pic.clone()),
            (layout::PIT, "PIT", self.pit.clone()),
            (layout::PORT_B, "port B", self.pit.clone()),
            (layout::I8042_DATA, "i8042 data", self.i8042.clone()),
            (layout::I8042_COMMAND, "i8042 command", self.i8042.clone()),
            (layout::PORT_A, "port A", self.i8042.clone()),
            (layout::RTC, "RTC", self.rtc.clone()),
            (layout::COM1, "COM1", self.uart.clone()),
            (layout::POST, "POST", self.post.clone()),
            (layout::IO_DELAY, "I/O delay", self.post.clone()),
        ]
    }
}

/// Why a board cannot be built so.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChipsetError {
    /// Two devices want the same ports or addresses.
    #[error(transparent)]
    Bus(#[from] BusError),
    /// Two functions want the same PCI slot.
    #[error(transparent)]
    Slot(#[from] SlotTaken),
}

impl ChipsetBuilder {
    /// The standard devices on their buses.
    ///
    /// # Errors
    /// Two of them overlap: [`layout`] contradicts itself.
    pub fn new(seams: &Seams) -> Result<Self, ChipsetError> {
        let devices = Devices::new(seams);
        let mut pio = PioBus::builder();
        for (ports, name, device) in devices.isa() {
            pio.add(ports, name, Arc::new(IsaBytes(device)))?;
        }
        pio.add(layout::PM_BLOCK, "ACPI PM", devices.acpi.clone())?;
        let mut mmio = MmioBus::builder();
        let ioapic = layout::IOAPIC_BASE..layout::IOAPIC_BASE + layout::IOAPIC_SIZE;
        mmio.add(ioapic, "IOAPIC", devices.ioapic.clone())?;
        let mut pci = PciHost::new(seams.events.clone(), pio.moving().clone(), mmio.moving().clone());
        pci.add(PciSlot::HOST_BRIDGE, devices.host_bridge.clone())?;
        pci.add(PciSlot::ISA_BRIDGE, devices.isa_bridge.clone())?;
        let pci_lines = (layout::PCI_FIRST_GSI..layout::IOAPIC_PINS)
            .map(|gsi| SharedLine::new(line(&devices.pic, &devices.ioapic, gsi)))
            .collect();
        Ok(Self { pio, mmio, pci, pci_lines, msi: seams.msi.clone(), devices })
    }

    /// The line of ISA interrupt `number`, which reaches both interrupt controllers. `None` for the cascade (2) and beyond 15.
    /// A line has one driver: who shares it must combine the levels ([`SharedLine`]).
    pub fn irq_line(&self, number: u8) -> Option<Arc<dyn IrqLine>> {
        let exists = number < layout::ISA_IRQS && number != layout::IRQ_CASCADE;
        exists.then(|| line(&self.devices.pic, &self.devices.ioapic, number))
    }

    /// Pin 1 to 4 (INTA to INTD) of the function at `slot`, wired as `_PRT` tells the guest ([`layout::pci_gsi`]). Functions
    /// share these lines; each drives its own pin. `None`: there is no such pin.
    pub fn pci_pin(&self, slot: PciSlot, pin: u8) -> Option<Arc<dyn IrqLine>> {
        let gsi = (1..=4).contains(&pin).then(|| layout::pci_gsi(slot.device(), pin - 1))?;
        let line = self.pci_lines.get(usize::from(gsi - layout::PCI_FIRST_GSI))?;
        Some(line.driver())
    }

    /// Where functions send their message-signalled interrupts.
    pub fn msi_sink(&self) -> &Arc<dyn MsiSink> {
        &self.msi
    }

    /// Adds a device on the port bus.
    ///
    /// # Errors
    /// The ports are empty or taken.
    pub fn add_pio(
        &mut self,
        ports: Range<u16>,
        name: &str,
        device: Arc<dyn PioDevice>,
    ) -> Result<(), ChipsetError> {
        Ok(self.pio.add(ports, name, device)?)
    }

    /// Adds a device on the memory bus.
    ///
    /// # Errors
    /// The addresses are empty or taken.
    pub fn add_mmio(
        &mut self,
        addresses: Range<u64>,
        name: &str,
        device: Arc<dyn MmioDevice>,
    ) -> Result<(), ChipsetError> {
        Ok(self.mmio.add(addresses, name, device)?)
    }

    /// Plugs a function into bus 0.
    ///
    /// # Errors
    /// The slot is taken.
    pub fn add_pci(&mut self, slot: PciSlot, function: Arc<dyn PciFunction>) -> Result<(), ChipsetError> {
        Ok(self.pci.add(slot, function)?)
    }

    /// The finished chipset, as after power-on.
    ///
    /// # Errors
    /// A device was put on the ports of PCI configuration.
    pub fn build(mut self) -> Result<Chipset, ChipsetError> {
        let pci = Arc::new(self.pci);
        pci.assign_bars();
        self.pio.add(layout::PCI_CONFIG, "PCI configuration", pci.clone())?;
        Ok(Chipset { pio: self.pio.build(), mmio: self.mmio.build(), pci, devices: self.devices })
    }
}

/// Saved state of all standard devices.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChipsetState {
    version: u32,
    pic: PicState,
    ioapic: IoApicState,
    pit: PitState,
    rtc: RtcState,
    uart: UartState,
    i8042: I8042State,
    acpi: AcpiPmState,
    pci: PciHostState,
    host_bridge: ConfigSpaceState,
    isa_bridge: ConfigSpaceState,
}

/// The chipset of a running board.
pub struct Chipset {
    /// Where the board sends port accesses.
    pub pio: PioBus,
    /// Where the board sends memory accesses that are neither RAM nor the local APIC.
    pub mmio: MmioBus,
    pci: Arc<PciHost>,
    devices: Devices,
}

impl Chipset {
    /// The interrupt controllers of ISA interrupts; `acknowledge` answers the processor's INTA.
    pub fn pic(&self) -> &Arc<Pic> {
        &self.devices.pic
    }

    /// The I/O APIC; `eoi` takes the local APICs' broadcasts.
    pub fn ioapic(&self) -> &Arc<IoApic> {
        &self.devices.ioapic
    }

    /// COM1; `push_input` gives it what the user types.
    pub fn uart(&self) -> &Arc<Uart> {
        &self.devices.uart
    }

    /// ACPI fixed hardware, with the power button.
    pub fn acpi(&self) -> &Arc<AcpiPm> {
        &self.devices.acpi
    }

    /// Real-time clock and CMOS memory, with the NMI mask.
    pub fn rtc(&self) -> &Arc<Rtc> {
        &self.devices.rtc
    }

    /// PCI bus 0; `follow_bars` must be called when the state of a function was restored.
    pub fn pci(&self) -> &Arc<PciHost> {
        &self.pci
    }

    /// The last POST code.
    pub fn post_code(&self) -> u8 {
        self.devices.post.last()
    }

    /// Resets every device, as the reset line does. The vCPUs must stand still.
    pub fn reset_all(&self) {
        let devices = &self.devices;
        devices.pit.reset();
        devices.rtc.reset();
        devices.uart.reset();
        devices.i8042.reset();
        devices.acpi.reset();
        self.pci.reset();
        // Last, so that what the lines did on the way is forgotten.
        devices.pic.reset();
        devices.ioapic.reset();
    }

    /// The state of all standard devices; others on the buses save their own. vCPUs and timers must stand still; the guest clock is the board's
    /// to save.
    pub fn save_all(&self) -> ChipsetState {
        let devices = &self.devices;
        ChipsetState {
            version: VERSION,
            pic: devices.pic.save(),
            ioapic: devices.ioapic.save(),
            pit: devices.pit.save(),
            rtc: devices.rtc.save(),
            uart: devices.uart.save(),
            i8042: devices.i8042.save(),
            acpi: devices.acpi.save(),
            pci: self.pci.save(),
            host_bridge: devices.host_bridge.save(),
            isa_bridge: devices.isa_bridge.save(),
        }
    }

    /// Takes over a saved state. vCPUs and timers must stand still and the guest clock be restored already. The levels of all
    /// interrupt lines are in it: devices of others are restored before, so that what their pins do on the way is forgotten.
    ///
    /// # Errors
    /// A device refuses its state. Others may have taken theirs: discard the machine, or reset it.
    pub fn restore_all(&self, state: &ChipsetState) -> Result<(), RestoreError> {
        check_version("chipset", state.version, VERSION)?;
        let devices = &self.devices;
        devices.pit.restore(&state.pit)?;
        devices.rtc.restore(&state.rtc)?;
        devices.uart.restore(&state.uart)?;
        devices.i8042.restore(&state.i8042)?;
        devices.acpi.restore(&state.acpi)?;
        self.pci.restore(&state.pci)?;
        devices.host_bridge.restore(&state.host_bridge)?;
        devices.isa_bridge.restore(&state.isa_bridge)?;
        self.pci.follow_bars();
        devices.pic.restore(&state.pic)?;
        devices.ioapic.restore(&state.ioapic)
    }
}
