//! The engine itself: what this host's KVM can do, and how a partition is set up.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use kvm_bindings::{
    KVM_API_VERSION, KVM_CAP_DEBUGREGS, KVM_CAP_DIRTY_LOG_RING, KVM_CAP_DIRTY_LOG_RING_ACQ_REL,
    KVM_CAP_ENABLE_CAP_VM, KVM_CAP_IMMEDIATE_EXIT, KVM_CAP_MP_STATE, KVM_CAP_READONLY_MEM,
    KVM_CAP_SIGNAL_MSI, KVM_CAP_SPLIT_IRQCHIP, KVM_CAP_TSC_CONTROL, KVM_CAP_USER_MEMORY,
    KVM_CAP_VCPU_ATTRIBUTES, KVM_CAP_VCPU_EVENTS, KVM_CAP_X2APIC_API, KVM_CAP_X86_MSR_FILTER,
    KVM_CAP_X86_USER_SPACE_MSR, KVM_CAP_XCRS, KVM_CAP_XEN_HVM, KVM_CAP_XSAVE, KVM_MSR_EXIT_REASON_FILTER,
    KVM_MSR_EXIT_REASON_INVAL, KVM_MSR_EXIT_REASON_UNKNOWN, KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK,
    KVM_X2APIC_API_USE_32BIT_IDS, KVM_XEN_HVM_CONFIG_INTERCEPT_HCALL, kvm_dirty_gfn, kvm_enable_cap,
};
use kvm_ioctls::{Kvm, VcpuFd, VmFd};
use vireo_core::model::CpuidContext;
use vireo_core::state::{Element, VcpuState};
use vireo_core::{
    Ability, Capabilities, CpuModel, Engine, EngineError, EngineKind, Partition, PartitionSpec, Probe,
};
use vireo_isa::Feature;

use crate::dirty::{DirtyMethod, RING_ENTRIES, Ring};
use crate::msrs::KnownMsrs;
use crate::partition::{KvmPartition, Parts};
use crate::routes::EOI_ROUTES;
use crate::sys::os;
use crate::vcpu::VcpuSlot;
use crate::{cpuid, hypercall, msrs, speed, state};

/// What the engine cannot do without, and what it is called in messages.
const MANDATORY: &[(u32, &str)] = &[
    (KVM_CAP_USER_MEMORY, "memory slots"),
    (KVM_CAP_READONLY_MEM, "read-only memory slots"),
    (KVM_CAP_ENABLE_CAP_VM, "enabling of capabilities"),
    (KVM_CAP_SPLIT_IRQCHIP, "the split interrupt chip"),
    (KVM_CAP_SIGNAL_MSI, "message-signalled interrupts"),
    (KVM_CAP_X2APIC_API, "the x2APIC interface"),
    (KVM_CAP_IMMEDIATE_EXIT, "immediate exit"),
    (KVM_CAP_X86_USER_SPACE_MSR, "MSR exits"),
    (KVM_CAP_X86_MSR_FILTER, "MSR filters"),
    (KVM_CAP_MP_STATE, "multiprocessor state"),
    (KVM_CAP_VCPU_EVENTS, "vCPU events"),
    (KVM_CAP_DEBUGREGS, "debug registers"),
    (KVM_CAP_XSAVE, "XSAVE state"),
    (KVM_CAP_XCRS, "XCR0 state"),
    (KVM_CAP_VCPU_ATTRIBUTES, "TSC offsets"),
];

/// Where KVM keeps three pages and one page of its own on Intel processors without unrestricted guest mode: below
/// the firmware's flash, above the local APICs, where no machine of ours has anything.
const IDENTITY_MAP: u64 = 0xfeff_c000;
const TSS: usize = 0xfeff_d000;

/// xAPIC ids are 8 bits, and 255 is broadcast.
const MAX_VCPUS: usize = 254;

/// The KVM engine.
#[derive(Clone, Debug)]
pub struct KvmEngine {
    device: PathBuf,
    method: Option<DirtyMethod>,
    by_port: bool,
}

impl Default for KvmEngine {
    fn default() -> Self {
        Self::new()
    }
}

impl KvmEngine {
    /// The engine on /dev/kvm, [`Self::with_hypercalls_by_port`]: in the one host with CONFIG_KVM_XEN where VMCALL was tried
    /// (Linux 6.12 under QEMU), a guest hung at its first messages to VMBus, by the port it did not.
    /// `VIREO_KVM_HYPERCALLS=vmcall` in the environment takes VMCALL where KVM hands it out.
    pub fn new() -> Self {
        let engine = Self::at("/dev/kvm");
        let by_vmcall = std::env::var_os("VIREO_KVM_HYPERCALLS").is_some_and(|v| v == "vmcall");
        if by_vmcall { engine } else { engine.with_hypercalls_by_port() }
    }

    /// The engine on another device node, for a sandbox that keeps its own.
    pub fn at(device: impl Into<PathBuf>) -> Self {
        Self { device: device.into(), method: None, by_port: false }
    }

    /// Finds written pages by this method, rather than by rings where there are rings.
    pub fn with_dirty_method(self, method: DirtyMethod) -> Self {
        Self { method: Some(method), ..self }
    }

    /// Takes hypercalls by a port, as on a KVM that does not hand out VMCALL.
    pub fn with_hypercalls_by_port(self) -> Self {
        Self { by_port: true, ..self }
    }

    fn intercepts_hypercalls(&self, kvm: &Kvm) -> bool {
        !self.by_port && can_intercept_hypercalls(kvm)
    }

    /// Opens the device and checks what cannot be done without. The error is for the operator.
    fn open(&self) -> Result<Kvm, String> {
        let path = self.device.display();
        let c_path = std::ffi::CString::new(self.device.as_os_str().as_encoded_bytes())
            .map_err(|_| format!("{path} is not a path"))?;
        let kvm = Kvm::new_with_path(&c_path).map_err(|e| {
            let e = io::Error::from_raw_os_error(e.errno());
            match e.kind() {
                io::ErrorKind::NotFound => format!(
                    "{path} does not exist: hardware virtualization is off in the firmware, or the kvm-intel or \
                     kvm-amd module is not loaded"
                ),
                io::ErrorKind::PermissionDenied => {
                    format!("no permission to open {path}: add this user to the group that owns it (kvm)")
                }
                _ => format!("{path} cannot be opened: {e}"),
            }
        })?;
        match kvm.get_api_version() {
            v if v == KVM_API_VERSION as i32 => {}
            -1 => return Err(format!("{path} is not a KVM device")),
            v => {
                return Err(format!("{path} speaks version {v} of the KVM interface, not {KVM_API_VERSION}"));
            }
        }
        let missing: Vec<_> =
            MANDATORY.iter().filter(|(cap, _)| !has(&kvm, *cap)).map(|(_, name)| *name).collect();
        if missing.is_empty() {
            Ok(kvm)
        } else {
            Err(format!("this kernel's KVM lacks {}; Linux 5.16 has all of it", missing.join(", ")))
        }
    }

    fn dirty_method(&self, kvm: &Kvm) -> DirtyMethod {
        match self.method {
            Some(DirtyMethod::Bitmap) => DirtyMethod::Bitmap,
            _ if ring_cap(kvm).is_some() => DirtyMethod::Ring,
            _ => DirtyMethod::Bitmap,
        }
    }

    fn abilities(&self, kvm: &Kvm) -> Vec<Ability> {
        let ring = match (self.dirty_method(kvm), self.method) {
            (DirtyMethod::Ring, _) => Ability::present("dirty-ring"),
            (_, Some(DirtyMethod::Bitmap)) => {
                Ability::absent("dirty-ring", "turned off; KVM's dirty bitmaps stand in for it")
            }
            _ => Ability::absent(
                "dirty-ring",
                "this kernel's KVM has none of 4096 entries; its dirty bitmaps stand in for it",
            ),
        };
        let scaling = if has(kvm, KVM_CAP_TSC_CONTROL) {
            Ability::present("tsc-scaling")
        } else {
            let why =
                "the processor cannot scale its TSC: guests keep time only between hosts of equal TSC rate";
            Ability::absent("tsc-scaling", why)
        };
        let vmcall = if self.by_port {
            Ability::absent("vmcall", "turned off; guests make hypercalls by an I/O port")
        } else if can_intercept_hypercalls(kvm) {
            Ability::present("vmcall")
        } else {
            let why = "this kernel's KVM answers VMCALL itself (its CONFIG_KVM_XEN, which hands it out, is off); guests \
                       make hypercalls by an I/O port";
            Ability::absent("vmcall", why)
        };
        vec![
            Ability::present("dirty-log"),
            ring,
            Ability::present("throttle"),
            Ability::present("clock-import"),
            scaling,
            Ability::present("hypercalls"),
            vmcall,
            Ability::absent(
                "tlb-flush",
                "KVM flushes other processors' TLBs by hypercall only with its own emulation of Hyper-V; guests send interrupts",
            ),
            Ability::absent("nested-virtualization", "the CPU models have neither VMX nor SVM"),
        ]
    }

    /// What this host's KVM offers, and why no CPU model if there is none.
    fn capabilities(&self, kvm: &Kvm) -> Result<(Capabilities, Option<String>), String> {
        let mut models = Vec::new();
        let mut reasons = Vec::new();
        for name in CpuModel::names() {
            let Some(model) = CpuModel::named(name) else { continue };
            let missing = cpuid::missing(kvm, &model).map_err(|e| e.to_string())?;
            if missing.is_empty() {
                models.push((*name).to_string());
            } else {
                reasons.push(format!("{name}: KVM on this host has no {}", names(&missing)));
            }
        }
        let no_model =
            models.is_empty().then(|| format!("it offers no CPU model whole ({})", reasons.join("; ")));
        let mut abilities = self.abilities(kvm);
        abilities.push(match reasons.is_empty() {
            true => Ability::present("all-cpu-models"),
            false => Ability::absent("all-cpu-models", reasons.join("; ")),
        });
        let capabilities = Capabilities {
            engine: EngineKind::Kvm,
            max_vcpus: max_vcpus(kvm) as u32,
            physical_bits: physical_bits(kvm),
            cpu_models: models,
            abilities,
        };
        Ok((capabilities, no_model))
    }

    /// Features of a CPU model that this host's KVM cannot give a guest.
    pub fn missing_features(&self, model: &CpuModel) -> Result<Vec<Feature>, EngineError> {
        let kvm = self.open().map_err(|reason| EngineError::Unusable { engine: "kvm", reason })?;
        cpuid::missing(&kvm, model)
    }
}

/// Features by their names in messages.
fn names(features: &[Feature]) -> String {
    features.iter().map(|f| format!("{f:?}").to_lowercase()).collect::<Vec<_>>().join(", ")
}

fn has(kvm: &Kvm, cap: u32) -> bool {
    kvm.check_extension_raw(cap.into()) > 0
}

fn max_vcpus(kvm: &Kvm) -> usize {
    kvm.get_max_vcpus().min(MAX_VCPUS)
}

/// CPUID 8000_0008h EAX bits 7-0.
fn physical_bits(kvm: &Kvm) -> u32 {
    let supported = kvm.get_supported_cpuid(kvm_bindings::KVM_MAX_CPUID_ENTRIES).ok();
    let leaf = supported.as_ref().and_then(|c| c.as_slice().iter().find(|e| e.function == 0x8000_0008));
    leaf.map_or(36, |e| e.eax & 0xff)
}

const RING_BYTES: u32 = RING_ENTRIES * size_of::<kvm_dirty_gfn>() as u32;

/// The capability by which rings are turned on. Both order memory as we need it on x86, where loads and stores are
/// ordered anyway.
fn ring_cap(kvm: &Kvm) -> Option<u32> {
    [KVM_CAP_DIRTY_LOG_RING_ACQ_REL, KVM_CAP_DIRTY_LOG_RING]
        .into_iter()
        .find(|&c| i64::from(kvm.check_extension_raw(c.into())) >= i64::from(RING_BYTES))
}

fn can_intercept_hypercalls(kvm: &Kvm) -> bool {
    kvm.check_extension_raw(KVM_CAP_XEN_HVM.into()) as u32 & KVM_XEN_HVM_CONFIG_INTERCEPT_HCALL != 0
}

impl Engine for KvmEngine {
    fn kind(&self) -> EngineKind {
        EngineKind::Kvm
    }

    fn probe(&self) -> Probe {
        let found = self.open().and_then(|kvm| self.capabilities(&kvm).map(|c| (kvm, c)));
        let (kvm, (capabilities, no_model)) = match found {
            Ok(found) => found,
            Err(why) => return Probe::Unusable(why),
        };
        let slow = match speed::measure(&kvm) {
            // One measurement may be off; a processor without the feature never executes guest kernel code.
            Ok(rate) if rate >= speed::FULL_SPEED && speed::processor_virtualizes() => None,
            Ok(rate) => Some(format!(
                "it runs guest kernel code at only {:.1} million instructions a second: this host's KVM emulates it \
                 rather than executing it",
                rate as f64 / 1e6
            )),
            Err(e) => return Probe::Unusable(format!("it does not run a first tiny guest: {e}")),
        };
        let reasons: Vec<_> = slow.into_iter().chain(no_model).collect();
        if reasons.is_empty() {
            Probe::Usable(capabilities)
        } else {
            Probe::Discouraged(capabilities, reasons.join("; "))
        }
    }

    fn new_partition(&self, spec: &PartitionSpec) -> Result<Arc<dyn Partition>, EngineError> {
        let kvm = self.open().map_err(|reason| EngineError::Unusable { engine: "kvm", reason })?;
        let max = max_vcpus(&kvm) as u32;
        if !(1..=max).contains(&spec.vcpus) {
            return Err(EngineError::VcpuCount { engine: "kvm", asked: spec.vcpus, max });
        }
        let missing = cpuid::missing(&kvm, &spec.cpu_model)?;
        if !missing.is_empty() {
            let reason = format!("KVM on this host has no {}", names(&missing));
            return Err(EngineError::Unsupported { engine: "kvm", what: "offer this CPU model", reason });
        }
        let method = self.dirty_method(&kvm);
        let model = Arc::new(spec.cpu_model.on_hardware(&msrs::host_speculation(&kvm)?));
        let intercepts = self.intercepts_hypercalls(&kvm);
        let vm = new_vm(&kvm, method, &model, intercepts)?;
        let fds: Result<Vec<_>, _> = (0..spec.vcpus).map(|i| new_vcpu(&vm, spec.vcpus, &model, i)).collect();
        let fds = fds?;
        let msrs = KnownMsrs::find(&fds[0], &model);
        for (index, vcpu) in (0..).zip(&fds) {
            state::load(vcpu, &msrs, &VcpuState::at_reset(index))?;
        }
        let tsc_hz = tsc_hz(&fds[0])?;
        let rings = match method {
            DirtyMethod::Ring => fds.iter().map(Ring::new).collect::<Result<_, _>>()?,
            DirtyMethod::Bitmap => Vec::new(),
        };
        let vcpus = fds.into_iter().map(VcpuSlot::new).collect::<Result<_, _>>()?;
        let rate_scales = has(&kvm, KVM_CAP_TSC_CONTROL);
        let by_port = !intercepts;
        let parts = Parts { vm, model, msrs, vcpus, rings, method, tsc_hz, rate_scales, by_port };
        Ok(Arc::new(KvmPartition::new(spec, parts)?))
    }
}

/// A virtual machine with everything enabled that has to be before its first vCPU.
fn new_vm(kvm: &Kvm, method: DirtyMethod, model: &CpuModel, intercepts: bool) -> Result<VmFd, EngineError> {
    let vm = kvm.create_vm().map_err(os("creating a virtual machine"))?;
    vm.set_identity_map_address(IDENTITY_MAP).map_err(os("placing KVM's identity map"))?;
    vm.set_tss_address(TSS).map_err(os("placing KVM's task state"))?;
    if method == DirtyMethod::Ring {
        let cap = ring_cap(kvm).unwrap_or(KVM_CAP_DIRTY_LOG_RING);
        enable(&vm, cap, RING_BYTES.into(), "enabling dirty rings")?;
    }
    enable(&vm, KVM_CAP_SPLIT_IRQCHIP, EOI_ROUTES as u64, "enabling the split interrupt chip")?;
    let x2apic = KVM_X2APIC_API_USE_32BIT_IDS | KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK;
    enable(&vm, KVM_CAP_X2APIC_API, x2apic.into(), "enabling the x2APIC interface")?;
    let reasons = KVM_MSR_EXIT_REASON_INVAL | KVM_MSR_EXIT_REASON_UNKNOWN | KVM_MSR_EXIT_REASON_FILTER;
    enable(&vm, KVM_CAP_X86_USER_SPACE_MSR, reasons.into(), "enabling MSR exits")?;
    msrs::set_filter(&vm, model)?;
    if intercepts {
        hypercall::enable(&vm)?;
    }
    Ok(vm)
}

fn enable(vm: &VmFd, cap: u32, arg: u64, what: &'static str) -> Result<(), EngineError> {
    let mut request = kvm_enable_cap { cap, ..Default::default() };
    request.args[0] = arg;
    vm.enable_cap(&request).map_err(os(what))
}

/// A vCPU with its CPU model.
fn new_vcpu(vm: &VmFd, vcpus: u32, model: &CpuModel, index: u32) -> Result<VcpuFd, EngineError> {
    let vcpu = vm.create_vcpu(index.into()).map_err(os("creating a vCPU"))?;
    let tsc_hz = tsc_hz(&vcpu)?;
    let context = CpuidContext { apic_id: index, vcpus, osxsave: false, xcr0: 1, apic_enabled: true, tsc_hz };
    vcpu.set_cpuid2(&cpuid::entries(model, &context)?).map_err(os("setting the CPU model"))?;
    Ok(vcpu)
}

fn tsc_hz(vcpu: &VcpuFd) -> Result<u64, EngineError> {
    Ok(u64::from(vcpu.get_tsc_khz().map_err(os("reading the rate of the TSC"))?) * 1000)
}
