//! MSI-X, as a guest drives it.

use std::sync::{Arc, Mutex};

use proptest::prelude::*;
use vireo_chipset::RestoreError;
use vireo_chipset::lines::{MsiMessage, MsiSink};
use vireo_chipset::pci::{Bar, ConfigSpace, Msix, MsixState, PciIdentity, PciLayoutError};

#[derive(Default)]
struct Messages(Mutex<Vec<MsiMessage>>);

impl MsiSink for Messages {
    fn deliver(&self, message: MsiMessage) {
        self.0.lock().unwrap().push(message);
    }
}

struct Rig {
    space: ConfigSpace,
    msix: Msix,
    messages: Arc<Messages>,
}

impl Rig {
    fn new(vectors: u16) -> Self {
        let identity = PciIdentity {
            vendor: 1,
            device: 2,
            revision: 0,
            class: 0xFF_00_00,
            subsystem_vendor: 0,
            subsystem: 0,
            multi_function: false,
            interrupt_pin: 0,
        };
        let mut space = ConfigSpace::new(identity);
        space.add_bar(1, Bar::Memory32 { size: 0x10_000, prefetchable: false }).unwrap();
        let messages = Arc::new(Messages::default());
        let msix = Msix::new(&mut space, vectors, 1, 0, 0x8000, messages.clone()).unwrap();
        Self { space, msix, messages }
    }

    /// Writes the upper byte of message control, as guests do by a 16-bit write.
    fn control(&mut self, control: u16) {
        self.space.write(0x42, &control.to_le_bytes());
        self.msix.follow(&self.space);
    }

    fn set(&self, vector: u64, address: u64, data: u32, control: u32) {
        let words = [address as u32, (address >> 32) as u32, data, control];
        for (word, at) in words.iter().zip([0, 4, 8, 12]) {
            self.msix.write_table(vector * 16 + at, &word.to_le_bytes());
        }
    }

    fn messages(&self) -> Vec<(u64, u32)> {
        self.messages.0.lock().unwrap().drain(..).map(|m| (m.address, m.data)).collect()
    }

    fn pending(&self) -> u64 {
        let mut data = [0; 8];
        self.msix.read_pending(0, &mut data);
        u64::from_le_bytes(data)
    }
}

const ENABLE: u16 = 1 << 15;
const MASK_ALL: u16 = 1 << 14;

#[test]
fn the_capability_tells_size_and_places() {
    let mut rig = Rig::new(3);
    let mut data = [0; 12];
    rig.space.read(0x40, &mut data);
    assert_eq!(data, [0x11, 0, 2, 0, 1, 0, 0, 0, 1, 0x80, 0, 0]);
    rig.control(0xFFFF);
    rig.space.read(0x40, &mut data);
    assert_eq!(data[2..4], [2, 0xC0]);
    assert!(rig.msix.enabled());
    let no = |vectors| {
        let mut space = Rig::new(1).space;
        Msix::new(&mut space, vectors, 0, 0, 0x800, rig.messages.clone()).err()
    };
    assert_eq!((no(0), no(2049)), (Some(PciLayoutError::Vectors(0)), Some(PciLayoutError::Vectors(2049))));
    assert_eq!((Msix::table_size(3), Msix::pending_size(3), Msix::pending_size(65)), (48, 8, 16));
}

#[test]
fn a_message_is_sent_when_it_may_be_and_kept_while_it_is_masked() {
    let mut rig = Rig::new(3);
    for vector in 0..3 {
        rig.set(vector, 0xFEE0_1000, 0x50 + vector as u32, 0);
    }
    rig.msix.raise(0);
    assert_eq!((rig.messages(), rig.pending()), (vec![], 0), "not enabled");
    rig.control(ENABLE);
    rig.msix.raise(2);
    rig.msix.raise(3);
    assert_eq!(rig.messages(), [(0xFEE0_1000, 0x52)]);
    // One vector masked: raised twice, sent once, as the table then says.
    rig.msix.write_table(16 + 12, &[1]);
    rig.msix.raise(1);
    rig.msix.raise(1);
    assert_eq!((rig.messages(), rig.pending()), (vec![], 2));
    rig.msix.write_table(16 + 8, &0x77u32.to_le_bytes());
    assert_eq!(rig.messages(), []);
    rig.msix.write_table(16 + 12, &[0, 0, 0, 0]);
    assert_eq!((rig.messages(), rig.pending()), (vec![(0xFEE0_1000, 0x77)], 0));
    // All masked by the function's bit.
    rig.control(ENABLE | MASK_ALL);
    rig.msix.raise(2);
    rig.msix.raise(0);
    assert_eq!((rig.messages(), rig.pending()), (vec![], 5));
    rig.control(ENABLE);
    assert_eq!(rig.messages(), [(0xFEE0_1000, 0x50), (0xFEE0_1000, 0x52)]);
    rig.msix.reset();
    let mut entry = [0; 16];
    rig.msix.read_table(16, &mut entry);
    assert_eq!(entry, [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0]);
}

#[test]
fn a_message_to_memory_is_none() {
    let mut rig = Rig::new(2);
    rig.control(ENABLE);
    rig.set(0, 0x1000, 0x50, 0);
    rig.set(1, 0x1_FEE0_0000, 0x50, 0);
    rig.msix.raise(0);
    rig.msix.raise(1);
    assert_eq!(rig.messages(), []);
}

#[test]
fn damaged_states_are_refused() {
    let rig = Rig::new(2);
    let saved = serde_json::to_value(rig.msix.save()).unwrap();
    let refused = |path: &str, value: serde_json::Value| {
        let mut state = saved.clone();
        *state.pointer_mut(path).unwrap() = value;
        let state: MsixState = serde_json::from_value(state).unwrap();
        rig.msix.restore(&state).unwrap_err()
    };
    assert!(matches!(refused("/version", 2.into()), RestoreError::Version { found: 2, .. }));
    for (path, value) in [
        ("/registers/table", vec![0; 16].into()),
        ("/registers/table/0", 1.into()),
        ("/registers/control", 1.into()),
        ("/registers/pending/0", 4.into()),
        ("/registers/pending", vec![0, 0].into()),
    ] {
        assert!(matches!(refused(path, value), RestoreError::Invalid { .. }), "{path}");
    }
}

#[derive(Debug, Clone)]
enum Step {
    Control(u16),
    Table(u64, Vec<u8>),
    Raise(u16),
}

proptest! {
    #[test]
    fn any_use_leaves_a_state_that_restores_and_sends_nothing_to_memory(steps in prop::collection::vec(prop_oneof![
        any::<u16>().prop_map(Step::Control),
        (0u64..0x60, prop::collection::vec(any::<u8>(), 0..20)).prop_map(|(at, data)| Step::Table(at, data)),
        (any::<u64>(), prop::collection::vec(any::<u8>(), 0..20)).prop_map(|(at, data)| Step::Table(at, data)),
        (0u16..6).prop_map(Step::Raise),
    ], 0..80)) {
        let mut rig = Rig::new(5);
        for step in steps {
            match step {
                Step::Control(control) => rig.control(control),
                Step::Table(at, data) => {
                    rig.msix.write_table(at, &data);
                    rig.msix.read_table(at, &mut vec![0; data.len()]);
                    rig.msix.read_pending(at, &mut vec![0; data.len()]);
                }
                Step::Raise(vector) => rig.msix.raise(vector),
            }
        }
        prop_assert!(rig.messages().iter().all(|(address, _)| address >> 20 == 0xFEE));
        let other = Rig::new(5);
        other.msix.restore(&rig.msix.save()).unwrap();
        prop_assert_eq!(other.msix.save(), rig.msix.save());
        prop_assert!(other.messages().is_empty());
    }
}
