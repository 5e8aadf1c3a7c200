//! What drivers find out before they send anything: identity, EEPROM, PHY, link, interrupts.

use vireo_frame::Ability;

use crate::rig::{CTRL, ICR, IMS, RCTL, Rig};

const EECD: u64 = 0x10;
const EERD: u64 = 0x14;
const MDIC: u64 = 0x20;
const STATUS: u64 = 8;

#[test]
fn it_is_an_82540em_with_registers_in_memory_and_behind_ports() {
    let rig = Rig::new(Ability::ALL);
    assert_eq!((rig.config(0), rig.config(8) >> 8, rig.config(0x2c)), (0x100e_8086, 0x02_0000, 0x001e_8086));
    assert_eq!((rig.config(0x3c) >> 8 & 0xff, rig.config(0x18) & 1), (1, 1));
    let port = |register: u32| {
        let mut data = [0; 4];
        rig.chipset.pio.write(rig.ports, &register.to_le_bytes());
        rig.chipset.pio.read(rig.ports + 4, &mut data);
        u32::from_le_bytes(data)
    };
    assert_eq!((port(0x5400), rig.read(0x5400)), (0x015d_1500, 0x015d_1500));
    assert_eq!((port(0x5404), rig.read(0x5404)), (0x8000_0302, 0x8000_0302));
    rig.chipset.pio.write(rig.ports, &0x38u32.to_le_bytes());
    rig.chipset.pio.write(rig.ports + 4, &0x88a8u32.to_le_bytes());
    assert_eq!(rig.read(0x38), 0x88a8);
    assert_eq!(port(0x0fff_fff0), 0);
    // Parts of a register, and registers of 8 bytes.
    let mut bytes = [0; 3];
    rig.chipset.mmio.read(rig.bar + 0x5401, &mut bytes);
    assert_eq!(bytes, [0x15, 0x5d, 1]);
    rig.chipset.mmio.write(rig.bar + 0x5200, &[1, 2, 3, 4, 5, 6, 7, 8]);
    assert_eq!((rig.read(0x5200), rig.read(0x5204)), (0x0403_0201, 0x0807_0605));
}

/// A word, bit by bit over the wires.
fn shift(rig: &Rig, index: u32) -> u16 {
    const BASE: u32 = 1 << 6 | 1 << 1;
    let clock = |bit: u32| {
        rig.write(EECD, BASE | bit << 2);
        rig.write(EECD, BASE | bit << 2 | 1);
        let out = rig.read(EECD) >> 3 & 1;
        rig.write(EECD, BASE | bit << 2);
        out as u16
    };
    rig.write(EECD, 1 << 6);
    assert_ne!(rig.read(EECD) & 1 << 7, 0, "granted");
    rig.write(EECD, BASE);
    for n in (0..9).rev() {
        clock((0b110 << 6 | index) >> n & 1);
    }
    let word = (0..16).fold(0, |word, _| word << 1 | clock(0));
    rig.write(EECD, 1 << 6);
    rig.write(EECD, 0);
    word
}

#[test]
fn the_eeprom_has_the_address_and_a_sum() {
    let rig = Rig::new(Ability::ALL);
    let words: Vec<u16> = (0..64).map(|n| shift(&rig, n)).collect();
    assert_eq!(words[..3], [0x1500, 0x015d, 0x0302]);
    assert_eq!(words.iter().fold(0u16, |sum, w| sum.wrapping_add(*w)), 0xbaba);
    for (n, word) in (0..).zip(&words) {
        rig.write(EERD, n << 8 | 1);
        assert_eq!(rig.read(EERD), u32::from(*word) << 16 | n << 8 | 1 << 4);
    }
}

#[test]
fn the_phy_answers_and_the_link_follows_the_network() {
    let rig = Rig::new(Ability::ALL);
    let ask = |register: u32| {
        rig.write(MDIC, 2 << 26 | 1 << 21 | register << 16);
        rig.read(MDIC)
    };
    assert_eq!((ask(2) & 0xffff, ask(3) & 0xfff0), (0x141, 0xc20));
    assert_eq!(ask(1) >> 28, 1, "ready, no error");
    assert_eq!((ask(1) & 0x24, rig.read(STATUS) & 2), (0, 0));
    rig.write(IMS, 1 << 2);
    let adapter = rig.wire.adapter().unwrap();
    adapter.set_carrier(true, 1);
    assert!(rig.interrupts());
    assert_eq!(rig.read(ICR), 1 << 2);
    assert!(!rig.interrupts());
    adapter.set_carrier(true, 1);
    assert_eq!(rig.read(ICR), 0, "nothing new");
    assert_eq!((ask(1) & 0x24, ask(17) & 0xfc00, rig.read(STATUS)), (0x24, 0xac00, 0x83));
    // Negotiated at once, and reset at once.
    rig.write(MDIC, 1 << 26 | 1 << 21 | 0x1340);
    assert_eq!(ask(0) & 0xffff, 0x1140);
    rig.write(MDIC, 2 << 26 | 5 << 21);
    assert_ne!(rig.read(MDIC) & 1 << 30, 0, "there is no other PHY");
}

#[test]
fn interrupts_are_masked_raised_and_cleared() {
    let rig = Rig::new(Ability::ALL);
    rig.write(0xc8, 0x81);
    assert!(!rig.interrupts());
    rig.write(IMS, 0x80);
    assert!(rig.interrupts());
    rig.write(0xd8, 0x80);
    assert!(!rig.interrupts());
    rig.write(IMS, 0x81);
    rig.write(ICR, 0x80);
    assert!(rig.interrupts());
    assert_eq!((rig.read(ICR), rig.read(ICR), rig.interrupts()), (1, 0, false));
    assert_eq!(rig.read(IMS), 0x81);
}

#[test]
fn a_reset_forgets_all_but_the_phy() {
    let rig = Rig::new(Ability::ALL);
    rig.start(0);
    rig.write(MDIC, 1 << 26 | 1 << 21 | 4 << 16 | 0x0001);
    for register in [0x5200, 0x5400, 0x5600, IMS] {
        rig.write(register, 0x55);
    }
    rig.write(CTRL, 1 << 26);
    assert_eq!([0x5200, 0x5600, IMS, RCTL, 0x2800, 0x2808, 0x3808].map(|r| rig.read(r)), [0; 7]);
    assert_eq!((rig.read(0x5400), rig.read(CTRL) & 1 << 26), (0x015d_1500, 0));
    rig.write(MDIC, 2 << 26 | 1 << 21 | 4 << 16);
    assert_eq!(rig.read(MDIC) & 0xffff, 1);
}
