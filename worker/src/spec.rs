//! What to run.

use std::path::PathBuf;
use std::str::FromStr;

use vireo_core::Capabilities;
use vireo_hyperv::Enlightenments;
use vireo_screen::Size;
use vireo_services::MemoryLimits;

use crate::disks::DiskSpec;
use crate::nics::NicSpec;
use crate::vnc::VncSpec;

/// Which engine executes the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EngineChoice {
    /// KVM where it runs guests at full speed, otherwise the software engine.
    Auto,
    /// KVM or an error.
    Kvm,
    /// The software engine.
    Soft,
}

impl FromStr for EngineChoice {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        match s {
            "auto" => Ok(Self::Auto),
            "kvm" => Ok(Self::Kvm),
            "soft" => Ok(Self::Soft),
            _ => Err("the engines are auto, kvm and soft".into()),
        }
    }
}

/// Where the guest's first serial port goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SerialSpec {
    /// The terminal, or whatever standard input and output are.
    Stdio,
    /// A Unix socket to connect to, one client at a time.
    Socket(PathBuf),
    /// Output to a file; no input.
    File(PathBuf),
}

impl FromStr for SerialSpec {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        let path = |p: &str, what| match p {
            "" => Err(format!("{what}: needs a path, as in {what}:/tmp/console")),
            p => Ok(PathBuf::from(p)),
        };
        match s.split_once(':') {
            None if s == "stdio" => Ok(Self::Stdio),
            Some(("socket", p)) => path(p, "socket").map(Self::Socket),
            Some(("file", p)) => path(p, "file").map(Self::File),
            _ => Err("it is stdio, socket:PATH or file:PATH".into()),
        }
    }
}

impl SerialSpec {
    /// As [`SerialSpec::from_str`], of a further console: what is standard input and output is the serial port's.
    pub fn parse_further(s: &str) -> Result<Self, String> {
        match s.parse()? {
            Self::Stdio => Err("it is socket:PATH or file:PATH".into()),
            other => Ok(other),
        }
    }
}

/// Bytes from `512M`, `2G`, `1024K`, with or without `iB` or `B`; a bare number is in MiB.
pub fn parse_memory(s: &str) -> Result<u64, String> {
    parse_size(s, 20)
}

/// As [`parse_memory`], but a bare number is in bytes.
pub fn parse_bytes(s: &str) -> Result<u64, String> {
    parse_size(s, 0)
}

/// A bare number is in units of `1 << bare`.
fn parse_size(s: &str, bare: u32) -> Result<u64, String> {
    let digits = s.find(|c: char| !c.is_ascii_digit()).unwrap_or(s.len());
    let (number, unit) = s.split_at(digits);
    let shift = match unit.to_ascii_lowercase().as_str() {
        "" => bare,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        _ => return Err(format!("the unit {unit:?} is not one of K, M, G, T")),
    };
    let n: u64 = number.parse().map_err(|_| "it is a number with a unit, as in 512M or 2G".to_string())?;
    n.checked_mul(1 << shift).filter(|n| *n > 0).ok_or_else(|| "it is out of range".into())
}

/// As [`parse_memory`], of what an engine may use for translated code: 16 MiB to 2 GiB.
pub fn parse_translation_memory(s: &str) -> Result<u64, String> {
    let range = 16 << 20..=2 << 30;
    parse_memory(s).and_then(|n| range.contains(&n).then_some(n).ok_or_else(|| "it is 16M to 2G".into()))
}

/// What the guest is told of the hypervisor interface of Hyper-V: a set of it, or nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EnlightenmentChoice {
    /// The most that the engine offers.
    Auto,
    /// This, or nothing.
    Set(Option<&'static Enlightenments>),
}

impl EnlightenmentChoice {
    /// What it comes to on an engine.
    pub fn on(self, engine: &Capabilities) -> Option<&'static Enlightenments> {
        match self {
            Self::Auto => Some(Enlightenments::best(engine.has("tlb-flush"))),
            Self::Set(set) => set,
        }
    }
}

impl FromStr for EnlightenmentChoice {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        let known = || Enlightenments::names().collect::<Vec<_>>().join(", ");
        match s {
            "auto" => Ok(Self::Auto),
            "none" => Ok(Self::Set(None)),
            name => match Enlightenments::named(name) {
                Some(set) => Ok(Self::Set(Some(set))),
                None => Err(format!("it is auto, none, or one of {}", known())),
            },
        }
    }
}

/// Memory that changes while the machine runs, as far as it was asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DynamicMemory {
    /// Least that the guest is left with, in bytes.
    pub minimum: Option<u64>,
    /// Most that it gets.
    pub maximum: Option<u64>,
    /// How much more than it needs it is to have, in percent of that.
    pub buffer: Option<u32>,
}

/// Percent, where nobody says: as Hyper-V has it.
const MEMORY_BUFFER: u32 = 20;

/// The machine's screen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScreenSpec {
    /// Its size, unless the guest chooses another.
    pub size: Size,
    /// By what it is seen from afar.
    pub vnc: Option<VncSpec>,
}

impl ScreenSpec {
    /// Its size where nobody says.
    pub const SIZE: Size = Size { width: 1024, height: 768 };
}

/// A machine to run.
#[derive(Clone, Debug)]
pub struct RunSpec {
    /// Kernel: bzImage or ELF.
    pub kernel: PathBuf,
    /// Initial RAM disk.
    pub initrd: Option<PathBuf>,
    /// Kernel command line.
    pub append: String,
    /// RAM in bytes.
    pub memory: u64,
    /// How it may change.
    pub dynamic_memory: DynamicMemory,
    /// Number of vCPUs.
    pub cpus: u32,
    /// Engine.
    pub engine: EngineChoice,
    /// Bytes that the engine may use for translated code and what goes with it.
    pub translation_memory: u64,
    /// Name of the CPU model.
    pub cpu_model: String,
    /// What the guest is told of the hypervisor interface of Hyper-V.
    pub enlightenments: EnlightenmentChoice,
    /// Disks, in the order in which the guest finds them.
    pub disks: Vec<DiskSpec>,
    /// Screen, keyboard and mouse, if there are any.
    pub screen: Option<ScreenSpec>,
    /// Network adapters.
    pub nics: Vec<NicSpec>,
    /// Socket by which the running machine is changed.
    pub control: Option<PathBuf>,
    /// Console on the first serial port.
    pub serial: SerialSpec,
    /// A further console, of virtio: a socket or a file.
    pub virtio_console: Option<SerialSpec>,
    /// End instead of starting again when the guest resets.
    pub no_reboot: bool,
}

impl RunSpec {
    /// What memory the guest may have. The error says what contradicts.
    pub fn memory_limits(&self, vmbus: bool) -> Result<MemoryLimits, String> {
        let DynamicMemory { minimum, maximum, buffer } = self.dynamic_memory;
        let startup = self.memory;
        let limits = MemoryLimits {
            minimum: minimum.unwrap_or(startup),
            startup,
            maximum: maximum.unwrap_or(startup),
            buffer: buffer.unwrap_or(MEMORY_BUFFER),
        };
        let mib = |n: u64| n >> 20;
        if self.dynamic_memory != DynamicMemory::default() && !vmbus {
            return Err("memory that changes needs a guest with the interface of Hyper-V, so not --enlightenments none".into());
        }
        if limits.minimum > startup || startup > limits.maximum {
            return Err(format!(
                "--memory-min ({} MiB) must not be more than --memory ({} MiB), nor that more than --memory-max ({} MiB)",
                mib(limits.minimum),
                mib(startup),
                mib(limits.maximum)
            ));
        }
        if buffer.is_some() && !limits.dynamic() {
            return Err(
                "--memory-buffer is of memory that changes: it takes --memory-min or --memory-max".into()
            );
        }
        Ok(limits)
    }
}

#[cfg(test)]
mod tests {
    use vireo_core::EngineKind;

    use super::*;

    #[test]
    fn memory_sizes() {
        for (text, mib) in
            [("512M", 512), ("512", 512), ("2G", 2048), ("2GiB", 2048), ("1024k", 1), ("1mb", 1)]
        {
            assert_eq!(parse_memory(text), Ok(mib << 20), "{text}");
        }
        for text in
            ["", "M", "0", "-1", "1.5G", "12X", "512B", "1i", "99999999999999999999", "18446744073709551615T"]
        {
            assert!(parse_memory(text).is_err(), "{text}");
        }
    }

    #[test]
    fn enlightenments_follow_the_engine() {
        use vireo_core::Ability;
        let on = |choice: &str, engine, abilities| {
            let engine =
                Capabilities { engine, max_vcpus: 1, physical_bits: 40, cpu_models: Vec::new(), abilities };
            choice.parse::<EnlightenmentChoice>().map(|c| c.on(&engine).map(Enlightenments::name))
        };
        let flushes = || vec![Ability::present("tlb-flush")];
        let none = || vec![Ability::absent("tlb-flush", "why")];
        assert_eq!(on("auto", EngineKind::Soft, flushes()), Ok(Some("hyperv-1-flush")));
        assert_eq!(on("auto", EngineKind::Soft, none()), Ok(Some("hyperv-1")));
        assert_eq!(on("hyperv-1", EngineKind::Soft, flushes()), Ok(Some("hyperv-1")));
        assert_eq!(on("none", EngineKind::Soft, flushes()), Ok(None));
        assert_eq!(on("auto", EngineKind::Kvm, none()), Ok(Some("hyperv-1")));
        let wrong = "hyperv-0".parse::<EnlightenmentChoice>();
        assert!(wrong.is_err_and(|e| e.contains("hyperv-1, hyperv-1-flush")));
    }

    #[test]
    fn memory_that_changes_has_limits_in_order() {
        let spec = |minimum, maximum, buffer| RunSpec {
            kernel: PathBuf::new(),
            initrd: None,
            append: String::new(),
            memory: 512 << 20,
            dynamic_memory: DynamicMemory { minimum, maximum, buffer },
            cpus: 1,
            engine: EngineChoice::Auto,
            translation_memory: 0,
            cpu_model: String::new(),
            enlightenments: EnlightenmentChoice::Auto,
            disks: Vec::new(),
            control: None,
            serial: SerialSpec::Stdio,
            virtio_console: None,
            nics: Vec::new(),
            screen: None,
            no_reboot: false,
        };
        let mib = |n: u64| Some(n << 20);
        let limits = spec(mib(256), mib(1024), None).memory_limits(true).unwrap();
        assert_eq!((limits.minimum >> 20, limits.maximum >> 20, limits.buffer), (256, 1024, 20));
        assert_eq!(
            spec(None, None, None).memory_limits(false),
            Ok(MemoryLimits { buffer: 20, ..MemoryLimits::fixed(512 << 20) })
        );
        assert!(spec(mib(256), None, None).memory_limits(false).is_err_and(|e| e.contains("enlightenments")));
        assert!(spec(mib(513), None, None).memory_limits(true).is_err_and(|e| e.contains("513 MiB")));
        assert!(spec(None, mib(511), None).memory_limits(true).is_err_and(|e| e.contains("511 MiB")));
        assert!(spec(None, None, Some(5)).memory_limits(true).is_err());
    }

    #[test]
    fn translation_memory_has_bounds() {
        assert_eq!(parse_translation_memory("200M"), Ok(200 << 20));
        assert_eq!(parse_translation_memory("2G"), Ok(2 << 30));
        for text in ["15M", "2049M", "", "0"] {
            assert!(parse_translation_memory(text).is_err(), "{text}");
        }
    }

    #[test]
    fn serial_ports() {
        assert_eq!("stdio".parse(), Ok(SerialSpec::Stdio));
        assert_eq!("file:a:b".parse(), Ok(SerialSpec::File("a:b".into())));
        for bad in ["", "tty", "file", "file:", "socket:"] {
            assert!(bad.parse::<SerialSpec>().is_err(), "{bad}");
        }
    }
}
