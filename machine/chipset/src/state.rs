//! What the saved states of the devices have in common.

/// Why a saved state was refused. The device is left as it was.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RestoreError {
    /// Written by another version of the device model.
    #[error("{device}: saved state has version {found}, this build reads version {supported}")]
    Version {
        /// Which device.
        device: &'static str,
        /// The version in the state.
        found: u32,
        /// The version this build reads and writes.
        supported: u32,
    },
    /// A value no device can have.
    #[error("{device}: saved state is damaged: {reason}")]
    Invalid {
        /// Which device.
        device: &'static str,
        /// What is wrong.
        reason: &'static str,
    },
}

/// Refuses a state of another version.
///
/// # Errors
/// It is one.
pub fn check_version(device: &'static str, found: u32, supported: u32) -> Result<(), RestoreError> {
    if found == supported { Ok(()) } else { Err(RestoreError::Version { device, found, supported }) }
}

/// Refuses a state that breaks `valid`.
///
/// # Errors
/// It does.
pub fn check(device: &'static str, valid: bool, reason: &'static str) -> Result<(), RestoreError> {
    if valid { Ok(()) } else { Err(RestoreError::Invalid { device, reason }) }
}
