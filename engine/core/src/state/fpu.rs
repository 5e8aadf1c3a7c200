//! x87, MMX, SSE and AVX state as an XSAVE image (SDM vol. 1, 13.4).

use serde::{Deserialize, Serialize};

use super::Element;

/// The first 512 bytes of an XSAVE image, the layout of FXSAVE64 (SDM vol. 1, 10.5.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C, align(64))]
pub struct FxImage(pub [u8; 512]);

impl FxImage {
    /// After RESET: FCW 0x40, FTW empty (the abridged form), MXCSR 0x1F80 (SDM table 10-1).
    pub const RESET: Self = Self::with_fcw(0x40);
    /// After FNINIT: FCW 0x37F.
    pub const INIT: Self = Self::with_fcw(0x37f);

    const fn with_fcw(fcw: u16) -> Self {
        let mut b = [0; 512];
        b[0] = fcw as u8;
        b[1] = (fcw >> 8) as u8;
        b[24] = 0x80;
        b[25] = 0x1f;
        Self(b)
    }
}

/// An XSAVE image in standard (not compacted) form: legacy area, header, components as far as the CPU model has them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct XsaveState {
    /// At least 576 bytes: 512 legacy, 64 header (XSTATE_BV first).
    pub image: Vec<u8>,
}

impl XsaveState {
    /// Legacy area and header.
    pub const MIN: usize = 576;
    /// The same and the AVX component: the upper halves of 16 YMM registers, which CPUID puts here on every processor.
    pub const WITH_AVX: usize = Self::MIN + 256;
    /// Bit of the AVX component in XSTATE_BV.
    const AVX: u8 = 4;

    /// An image that holds the given legacy area, marked as in use (x87 and SSE).
    pub fn from_fx(fx: &FxImage) -> Self {
        let mut image = vec![0; Self::MIN];
        image[..512].copy_from_slice(&fx.0);
        image[512] = 3;
        Self { image }
    }

    /// Upper halves of the YMM registers: zero, if XSTATE_BV marks the component as unused. `None`: too short.
    pub fn high(&self) -> Option<[u128; 16]> {
        if *self.image.get(512)? & Self::AVX == 0 {
            return Some([0; 16]);
        }
        let part = self.image.get(Self::MIN..Self::WITH_AVX)?.as_chunks().0;
        Some(std::array::from_fn(|i| u128::from_le_bytes(part[i])))
    }

    /// Adds upper halves of the YMM registers.
    pub fn set_high(&mut self, high: &[u128; 16]) {
        self.image.resize(self.image.len().max(Self::WITH_AVX), 0);
        self.image[512] |= Self::AVX;
        self.image[Self::MIN..Self::WITH_AVX].copy_from_slice(high.map(u128::to_le_bytes).as_flattened());
    }

    /// The legacy area, with the initial value for a component that XSTATE_BV marks as unused. `None`: too short.
    pub fn fx(&self) -> Option<FxImage> {
        let mut fx = FxImage(self.image.get(..512)?.try_into().ok()?);
        let in_use = *self.image.get(512)?;
        let init = FxImage::INIT.0;
        if in_use & 1 == 0 {
            fx.0[..24].copy_from_slice(&init[..24]);
            fx.0[32..160].copy_from_slice(&init[32..160]);
        }
        if in_use & 2 == 0 {
            fx.0[160..416].copy_from_slice(&init[160..416]);
        }
        Some(fx)
    }
}

impl Element for XsaveState {
    fn at_reset(_: u32) -> Self {
        Self::from_fx(&FxImage::RESET)
    }
}
