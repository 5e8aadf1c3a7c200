//! What disk a machine is to have.

use std::path::PathBuf;
use std::str::FromStr;

use vireo_block::Limits;
use vireo_chain::Format;

/// What a disk is connected by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DiskBus {
    /// A SCSI controller on VMBus: disks come and go while the guest runs.
    Scsi,
    /// A virtio device of its own.
    Virtio,
    /// One of four drives of an IDE controller.
    Ide,
}

impl FromStr for DiskBus {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        match s {
            "scsi" => Ok(Self::Scsi),
            "virtio" => Ok(Self::Virtio),
            "ide" => Ok(Self::Ide),
            _ => Err(format!("bus={s}: it is scsi, virtio or ide")),
        }
    }
}

/// A disk, as `FILE[,option…]`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DiskSpec {
    /// An image, or a block device.
    pub path: PathBuf,
    /// A CD in its drive, rather than a disk: cannot be written, on SCSI or IDE.
    pub cd: bool,
    /// `None`: SCSI for a guest with the interface of Hyper-V, else virtio, or for a CD IDE.
    pub bus: Option<DiskBus>,
    /// The guest cannot change it.
    pub read_only: bool,
    /// How much may be asked of it.
    pub limits: Limits,
    /// `None`: by content and name.
    pub format: Option<Format>,
}

/// What options there are, for messages.
const OPTIONS: &str = "bus=scsi|virtio|ide, readonly, iops=N, bandwidth=BYTES, format=raw|vhd|vhdx";

impl FromStr for DiskSpec {
    type Err = String;

    /// A comma that is the file name's own is written twice.
    fn from_str(s: &str) -> Result<Self, String> {
        const COMMA: &str = "\0";
        if s.contains(COMMA) {
            return Err("a file name has no zero byte".into());
        }
        let doubled = s.replace(",,", COMMA);
        let mut parts = doubled.split(',').map(|p| p.replace(COMMA, ","));
        let path = parts.next().filter(|p| !p.is_empty()).ok_or("a disk needs a file: FILE[,option…]")?;
        let mut spec = Self { path: path.into(), ..Self::default() };
        for part in parts {
            let (name, value) = part.split_once('=').unwrap_or((&part, ""));
            match (name, value) {
                ("bus", v) => spec.bus = Some(v.parse()?),
                ("readonly", "" | "on") => spec.read_only = true,
                ("readonly", "off") => spec.read_only = false,
                ("iops", v) => spec.limits.requests = Some(positive(name, v)?),
                ("bandwidth", v) => {
                    spec.limits.bytes =
                        Some(crate::spec::parse_bytes(v).map_err(|e| format!("bandwidth={v}: {e}"))?);
                }
                ("format", v) => spec.format = Some(v.parse().map_err(|e| format!("format={v}: {e}"))?),
                _ => return Err(format!("{part}: the options of a disk are {OPTIONS}")),
            }
        }
        Ok(spec)
    }
}

impl DiskSpec {
    /// As [`DiskSpec::from_str`], of a CD.
    pub fn parse_cd(s: &str) -> Result<Self, String> {
        let spec: Self = s.parse()?;
        if spec.bus == Some(DiskBus::Virtio) {
            return Err("bus=virtio: a CD drive is on scsi or ide".into());
        }
        Ok(Self { cd: true, read_only: true, ..spec })
    }
}

fn positive(name: &str, value: &str) -> Result<u64, String> {
    value.parse().ok().filter(|n| *n > 0).ok_or_else(|| format!("{name}={value}: it is a number from 1 on"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disks_are_described_by_file_and_options() {
        let spec: DiskSpec =
            "a,,b.vhdx,bus=virtio,readonly,iops=500,bandwidth=10M,format=raw".parse().unwrap();
        let limits = Limits { requests: Some(500), bytes: Some(10 << 20) };
        let path = "a,b.vhdx".into();
        let (bus, format) = (Some(DiskBus::Virtio), Some(Format::Raw));
        assert_eq!(spec, DiskSpec { path, cd: false, bus, read_only: true, limits, format });
        assert_eq!("/dev/sdb".parse(), Ok(DiskSpec { path: "/dev/sdb".into(), ..DiskSpec::default() }));
        for (text, word) in [
            ("", "needs a file"),
            (",readonly", "needs a file"),
            ("a,bus=ide2", "scsi, virtio or ide"),
            ("a,iops=0", "from 1 on"),
            ("a,bandwidth=fast", "bandwidth=fast"),
            ("a,cache=none", "options of a disk are"),
            ("a,readonly=maybe", "options of a disk are"),
        ] {
            let e = text.parse::<DiskSpec>().unwrap_err();
            assert!(e.contains(word), "{text}: {e}");
        }
    }
}
