//! What can become of a wish that concerns the guest.

use std::fmt;
use std::time::Duration;

/// What the guest was asked for was not done; each in one line for the user.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ServiceError {
    /// There is nobody to ask.
    #[error(
        "the guest has no driver for {0} (Linux has it in hv_utils and hv_balloon), or has not loaded it yet"
    )]
    Absent(&'static str),
    /// The driver is there and says nothing.
    #[error("the guest's driver for {0} does not say yet what it speaks: the daemon behind it may not run")]
    Silent(&'static str),
    /// They have no version in common.
    #[error("the guest speaks no version of {0} that this program does")]
    Version(&'static str),
    /// It does not answer.
    #[error("the guest does not answer for {service}: nothing came in {} s", waited.as_secs())]
    NoAnswer {
        /// Which service.
        service: &'static str,
        /// How long it was waited for.
        waited: Duration,
    },
    /// The driver went, or the guest was reset, meanwhile.
    #[error("the guest's driver for {0} went away before it answered")]
    Gone(&'static str),
    /// The guest says no.
    #[error("the guest refuses {what}: {}", Status(*status))]
    Refused {
        /// What it was asked for.
        what: String,
        /// Its reason.
        status: u32,
    },
    /// The answer is not what its kind has.
    #[error("the guest's answer for {0} is not understood")]
    Malformed(&'static str),
    /// Others want something of it.
    #[error("{0} is in use: others wait for the guest's answer already")]
    Busy(&'static str),
    /// It cannot be asked for.
    #[error("{0}")]
    Invalid(String),
}

impl ServiceError {
    /// The guest has nothing that could answer, or no version of it that would do.
    pub fn is_absent(&self) -> bool {
        matches!(self, Self::Absent(_) | Self::Silent(_) | Self::Version(_))
    }

    /// The guest was asked and said nothing.
    pub fn is_silence(&self) -> bool {
        matches!(self, Self::NoAnswer { .. } | Self::Gone(_))
    }
}

/// Reasons that guests give, as Windows numbers them.
pub mod status {
    /// It failed.
    pub const FAIL: u32 = 0x8000_4005;
    /// There is no more, or no such thing.
    pub const NO_MORE_ITEMS: u32 = 0x8007_0103;
    /// It exists already.
    pub const EXISTS: u32 = 0x8007_0050;
    /// The disk is full.
    pub const DISK_FULL: u32 = 0x8007_0070;
    /// What was asked for makes no sense to it.
    pub const INVALID: u32 = 0x8007_0057;
    /// It cannot do that.
    pub const NOT_SUPPORTED: u32 = 0x8007_0032;
    /// It has gone.
    pub const NOT_CONNECTED: u32 = 0x8007_048f;
}

/// A reason, in words.
struct Status(u32);

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words = match self.0 {
            status::FAIL => "it failed; the guest's log may say why, or its daemon does not run",
            status::NO_MORE_ITEMS => "there is no such thing",
            status::EXISTS => "there is one already, and it is not to be replaced",
            status::DISK_FULL => "its disk is full",
            status::INVALID => "it finds that invalid",
            status::NOT_SUPPORTED => "it cannot do that",
            status::NOT_CONNECTED => "what would do it is not there",
            other => return write!(f, "status {other:#010x}"),
        };
        write!(f, "{words} (status {:#010x})", self.0)
    }
}
