//! The leaves of CPUID (SDM vol. 2A, "CPUID"; AMD APM vol. 3, appendix E).

use vireo_isa::{CpuidReg, Feature};

use super::{CpuModel, Vendor};

/// What CPUID depends on besides the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CpuidContext {
    /// The vCPU's (x2)APIC id.
    pub apic_id: u32,
    /// Number of vCPUs: one package with this many cores of one thread.
    pub vcpus: u32,
    /// CR4.OSXSAVE.
    pub osxsave: bool,
    /// XCR0, which decides the size of the XSAVE area.
    pub xcr0: u64,
    /// IA32_APIC_BASE bit 11.
    pub apic_enabled: bool,
    /// Rate of the guest's TSC in Hz.
    pub tsc_hz: u64,
}

/// Rate of the bus clock that drives the local APIC's timer, in Hz: what KVM's local APIC has, too.
pub const APIC_BUS_HZ: u64 = 1_000_000_000;

/// Highest basic leaf.
const MAX_BASIC: u32 = 0x16;
/// First and highest leaf of the hypervisor's range.
const HYPERVISOR: u32 = 0x4000_0000;
const MAX_HYPERVISOR: u32 = 0x4000_0010;
/// Bytes of the XSAVE area without AVX: legacy area and header.
const XSAVE_BASE: u32 = 576;
/// Bytes of the AVX component behind it.
const XSAVE_AVX: u32 = 256;
const LINE: u32 = 64;

/// A cache.
struct Cache {
    /// 1 data, 2 instruction, 3 unified.
    kind: u32,
    level: u32,
    ways: u32,
    sets: u32,
    /// One for all cores of the package.
    shared: bool,
}

impl Cache {
    const fn kib(&self) -> u32 {
        self.ways * self.sets * LINE / 1024
    }
}

const L1D: Cache = Cache { kind: 1, level: 1, ways: 8, sets: 64, shared: false };
const L1I: Cache = Cache { kind: 2, level: 1, ways: 8, sets: 64, shared: false };
const L2: Cache = Cache { kind: 3, level: 2, ways: 16, sets: 1024, shared: false };
const L3: Cache = Cache { kind: 3, level: 3, ways: 16, sets: 16384, shared: true };
const CACHES: [Cache; 4] = [L1D, L1I, L2, L3];

impl CpuModel {
    /// EAX, EBX, ECX, EDX of a leaf. Leaves and subleaves that do not exist are zero, on either vendor.
    pub fn cpuid(&self, leaf: u32, subleaf: u32, context: &CpuidContext) -> [u32; 4] {
        let mut out = match leaf {
            0..=MAX_BASIC => self.basic(leaf, subleaf, context),
            HYPERVISOR..=0x4fff_ffff if self.has(Feature::Hypervisor) => match &self.hypervisor {
                Some(leaves) => leaves.get((leaf - HYPERVISOR) as usize).copied().unwrap_or_default(),
                None => hypervisor(leaf, context),
            },
            0x8000_0000..=0x8fff_ffff if leaf <= self.max_extended() => self.extended(leaf, subleaf, context),
            _ => return [0; 4],
        };
        for (word, bits) in out.iter_mut().zip(self.feature_bits(leaf, subleaf)) {
            *word |= bits;
        }
        if leaf == 1 && !context.apic_enabled {
            out[CpuidReg::Edx as usize] &= !(1 << 9);
        }
        out
    }

    /// The feature bits of a leaf. Only those leaves whose subleaves matter look at the subleaf.
    fn feature_bits(&self, leaf: u32, subleaf: u32) -> [u32; 4] {
        self.features.cpuid_bits(leaf, if matches!(leaf, 7 | 0xd) { subleaf } else { 0 })
    }

    fn max_extended(&self) -> u32 {
        match self.vendor {
            Vendor::Intel => 0x8000_0008,
            Vendor::Amd => 0x8000_0021,
        }
    }

    /// Basic leaves, without feature bits.
    fn basic(&self, leaf: u32, subleaf: u32, c: &CpuidContext) -> [u32; 4] {
        let intel = self.vendor == Vendor::Intel;
        match leaf {
            0 => {
                let [ebx, edx, ecx] = words(*self.vendor.id());
                [MAX_BASIC, ebx, ecx, edx]
            }
            1 => {
                let ids = c.vcpus.clamp(1, 255);
                let ebx = (c.apic_id & 0xff) << 24 | ids << 16 | (LINE / 8) << 8;
                [self.signature, ebx, u32::from(c.osxsave) << 27, 0]
            }
            // Descriptors of TLBs and prefetching; FFh: caches are in leaf 4.
            2 if intel => [0x7603_5a01, 0x00f0_b2ff, 0, 0x00ca_0000],
            4 if intel => {
                let mut out = cache_leaf(subleaf, c);
                if out[0] != 0 {
                    out[0] |= (addressable_ids(c).min(64) - 1) << 26;
                }
                out
            }
            7 => match subleaf {
                0 if intel => [2, 0, 0, self.speculation.leaf7_edx],
                2 if intel => [0, 0, 0, self.speculation.leaf7_2_edx],
                _ => [0; 4],
            },
            0xb => topology(subleaf, c),
            0xd => self.xsave(subleaf, c),
            0x15 => tsc_ratio(c.tsc_hz),
            0x16 => {
                let mhz = (c.tsc_hz.saturating_add(500_000) / 1_000_000).min(0xffff) as u32;
                [mhz, mhz, 100, 0]
            }
            _ => [0; 4],
        }
    }

    /// Leaf Dh: size of the XSAVE area, as enabled and at most; then each component.
    fn xsave(&self, subleaf: u32, c: &CpuidContext) -> [u32; 4] {
        let mask = self.xcr0_mask();
        let size = |xcr0: u64| XSAVE_BASE + if xcr0 & 4 != 0 { XSAVE_AVX } else { 0 };
        match subleaf {
            _ if mask == 0 => [0; 4],
            0 => [mask as u32, size(c.xcr0 & mask), size(mask), 0],
            // XSAVEC's compacted size is that of XSAVE as long as AVX is the last component.
            1 if self.has(Feature::Xsavec) => [0, size(c.xcr0 & mask), 0, 0],
            2 if mask & 4 != 0 => [XSAVE_AVX, XSAVE_BASE, 0, 0],
            _ => [0; 4],
        }
    }

    /// Extended leaves, without feature bits.
    fn extended(&self, leaf: u32, subleaf: u32, c: &CpuidContext) -> [u32; 4] {
        match (leaf, self.vendor) {
            (0x8000_0000, Vendor::Intel) => [self.max_extended(), 0, 0, 0],
            (0x8000_0000, Vendor::Amd) => {
                let [ebx, edx, ecx] = words(*self.vendor.id());
                [self.max_extended(), ebx, ecx, edx]
            }
            (0x8000_0001, Vendor::Amd) => {
                // Topology extensions (the leaves 1Dh and 1Eh); HTT means cores, not threads, if there are several.
                let ecx = 1 << 22 | u32::from(c.vcpus > 1) << 1;
                // Part of leaf 1 is repeated here.
                let edx = self.features.cpuid_bits(1, 0)[CpuidReg::Edx as usize] & 0x0183_f3ff;
                let apic = if c.apic_enabled { 0 } else { 1 << 9 };
                [self.signature, 0, ecx, edx & !apic]
            }
            (0x8000_0002..=0x8000_0004, _) => {
                let mut text = [0; 48];
                text[..self.brand.len()].copy_from_slice(self.brand.as_bytes());
                let from = 16 * (leaf - 0x8000_0002) as usize;
                std::array::from_fn(|i| word(&text[from + 4 * i..]))
            }
            (0x8000_0005, Vendor::Amd) => {
                let l1 = |cache: Cache| cache.kib() << 24 | cache.ways << 16 | 1 << 8 | LINE;
                // TLBs: 64 entries for either page size, fully associative.
                [0xff40_ff40, 0xff40_ff40, l1(L1D), l1(L1I)]
            }
            (0x8000_0006, vendor) => {
                // Associativity code 8: 16 ways. L3 is in units of 512 KiB, on AMD only.
                let l2 = L2.kib() << 16 | 8 << 12 | if vendor == Vendor::Amd { 1 << 8 } else { 0 } | LINE;
                let l3 = (L3.kib() / 512) << 18 | 8 << 12 | 1 << 8 | LINE;
                match vendor {
                    Vendor::Intel => [0, 0, l2, 0],
                    Vendor::Amd => [0x4000_4000, 0x6000_6000, l2, l3],
                }
            }
            (0x8000_0008, vendor) => {
                let eax = self.physical_bits | self.virtual_bits << 8;
                let cores = (c.vcpus.clamp(1, 256) - 1) | id_bits(c).min(15) << 12;
                [eax, self.speculation.ext8_ebx, if vendor == Vendor::Amd { cores } else { 0 }, 0]
            }
            (0x8000_001d, Vendor::Amd) => cache_leaf(subleaf, c),
            // Core id, one thread each, one node.
            (0x8000_001e, Vendor::Amd) => [c.apic_id, c.apic_id & 0xff, 0, 0],
            (0x8000_0021, Vendor::Amd) => [self.speculation.ext21_eax, 0, self.speculation.ext21_ecx, 0],
            _ => [0; 4],
        }
    }
}

/// Deterministic cache parameters of one cache; all zero after the last.
fn cache_leaf(subleaf: u32, c: &CpuidContext) -> [u32; 4] {
    let Some(cache) = CACHES.get(subleaf as usize) else { return [0; 4] };
    let sharing = if cache.shared { addressable_ids(c).min(4096) } else { 1 };
    // Bit 8: self-initializing.
    let eax = cache.kind | cache.level << 5 | 1 << 8 | (sharing - 1) << 14;
    [eax, (LINE - 1) | (cache.ways - 1) << 22, cache.sets - 1, 0]
}

/// Bits of an APIC id that tell the cores of the package apart.
fn id_bits(c: &CpuidContext) -> u32 {
    c.vcpus.clamp(1, 1 << 31).next_power_of_two().trailing_zeros()
}

/// APIC ids that the package takes up: a power of two.
fn addressable_ids(c: &CpuidContext) -> u32 {
    1 << id_bits(c)
}

/// Leaf Bh: one thread per core, then all cores.
fn topology(subleaf: u32, c: &CpuidContext) -> [u32; 4] {
    let level = match subleaf {
        0 => [0, 1, 1 << 8, 0],
        1 => [id_bits(c), c.vcpus & 0xffff, 2 << 8 | 1, 0],
        n => [0, 0, n & 0xff, 0],
    };
    [level[0], level[1], level[2], c.apic_id]
}

/// Leaf 15h: TSC rate = crystal * EBX / EAX, crystal in ECX. The crystal is the bus clock of the local APIC's timer.
///
/// The ratio is the nearest one with which `crystal in kHz * EBX` stays below 2^32: Linux multiplies in 32 bits
/// (native_calibrate_tsc). For a TSC of whole MHz, up to 4.29 GHz, it is exact. For others the crystal takes up the
/// rest, so that the TSC, by which guests keep time, is right to a few kHz and the APIC timer to 120 parts in a million.
fn tsc_ratio(tsc_hz: u64) -> [u32; 4] {
    // No processor's counter is outside 10 MHz to 100 GHz; the bound keeps what follows in range.
    if !(10_000_000..=100_000_000_000).contains(&tsc_hz) {
        return [0; 4];
    }
    // One less than fits: the crystal may come out a little above the bus clock.
    let most_numerator = u64::from(u32::MAX) / (APIC_BUS_HZ / 1000) - 1;
    let most_denominator = (most_numerator * APIC_BUS_HZ / tsc_hz).clamp(1, most_numerator);
    let error = |den: u64| {
        let num = ((tsc_hz * den + APIC_BUS_HZ / 2) / APIC_BUS_HZ).max(1);
        ((num * APIC_BUS_HZ).abs_diff(tsc_hz * den), num)
    };
    let (mut best, mut best_den) = (error(1), 1);
    for den in 2..=most_denominator {
        let (e, num) = error(den);
        // Errors are compared as fractions of the same denominator.
        if num <= most_numerator
            && u128::from(e) * u128::from(best_den) < u128::from(best.0) * u128::from(den)
        {
            (best, best_den) = ((e, num), den);
        }
    }
    let num = best.1;
    // Guests cut the crystal off to kHz, so it is given in whole kHz.
    let crystal_khz = (tsc_hz * best_den / num + 500) / 1000;
    [best_den as u32, num as u32, u32::try_from(crystal_khz * 1000).unwrap_or(u32::MAX), 0]
}

/// The hypervisor's leaves: who it is, and the clock rates in kHz at the place where other hypervisors have them.
/// Linux looks at them for hypervisors that it knows only; a board with an interface for guests puts its own leaves there.
fn hypervisor(leaf: u32, c: &CpuidContext) -> [u32; 4] {
    match leaf {
        HYPERVISOR => {
            let [ebx, ecx, edx] = words(*b"VireoVireoVi");
            [MAX_HYPERVISOR, ebx, ecx, edx]
        }
        MAX_HYPERVISOR => {
            [u32::try_from(c.tsc_hz / 1000).unwrap_or(u32::MAX), (APIC_BUS_HZ / 1000) as u32, 0, 0]
        }
        _ => [0; 4],
    }
}

fn word(bytes: &[u8]) -> u32 {
    u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
}

fn words(text: [u8; 12]) -> [u32; 3] {
    std::array::from_fn(|i| word(&text[4 * i..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn linux_computes_the_rate_from_leaf_15h() {
        for khz in (900_000..6_000_000_u64).step_by(100) {
            let [den, num, crystal, _] = tsc_ratio(khz * 1000);
            // As native_calibrate_tsc does, in 32 bits.
            let seen = u64::from((crystal / 1000).checked_mul(num).expect("no overflow in the guest") / den);
            let whole = khz % 1000 == 0 && khz < 4_293_000;
            let (tsc, apic) = if whole { (0, 0) } else { (khz / 900_000 + 1, 120_000) };
            assert!(seen.abs_diff(khz) <= tsc, "{khz} kHz became {seen} kHz");
            assert!(u64::from(crystal).abs_diff(APIC_BUS_HZ) <= apic, "{khz} kHz: crystal {crystal} Hz");
        }
        assert_eq!(tsc_ratio(2_600_000_000)[..2], [5, 13]);
        assert_eq!(tsc_ratio(0), [0; 4]);
        assert_eq!(tsc_ratio(u64::MAX), [0; 4]);
    }
}
