//! Boots a Linux kernel on the software engine with an IDE controller, its console on standard output: how the crate is
//! tried with a driver that we did not write.
//!
//!     cargo run --profile quick -p vireo-ide --example guest -- KERNEL INITRD COMMAND-LINE PLACE=KIND:FILE…
//!
//! PLACE is 0.0, 0.1, 1.0 or 1.1; KIND is `disk` or `cd`, the latter also without a file. With `VIREO_CHURN` in its
//! environment it pauses the machine every few milliseconds, saves the controller, resets it, and restores it: the
//! guest must not notice.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use vireo_block::{BlockDevice, BlockError, BlockInfo, Operation, Request};
use vireo_board::{Board, BoardError, BoardEvent, BoardSpec};
use vireo_chipset::lines::SerialSink;
use vireo_chipset::pci::PciFunction;
use vireo_core::{CpuModel, Engine, Probe};
use vireo_firmware::{acpi, linux, smbios};
use vireo_ide::{Drives, IdeController, IdeDrive, Place};
use vireo_memory::GuestMemory;

const MEMORY: u64 = 512 << 20;

/// A raw file as a disk, with a thread that does one request after the other.
struct FileDisk {
    info: BlockInfo,
    requests: Mutex<Sender<Request>>,
}

impl FileDisk {
    fn open(path: &str, read_only: bool) -> io::Result<Arc<Self>> {
        let file = OpenOptions::new().read(true).write(!read_only).open(path)?;
        let size = file.metadata()?.len() / 512 * 512;
        let info =
            BlockInfo { size, sector: 512, physical_sector: 4096, read_only, unmap: !read_only, id: [0; 16] };
        let (sender, requests) = channel::<Request>();
        std::thread::spawn(move || {
            for request in requests {
                let result = request.check(&info).and_then(|()| Ok(serve(&file, &request)?));
                request.complete(result);
            }
        });
        Ok(Arc::new(Self { info, requests: Mutex::new(sender) }))
    }
}

fn serve(file: &File, request: &Request) -> io::Result<()> {
    let mut at = request.at;
    for buffer in &request.buffers {
        let mut bytes = vec![0; buffer.len()];
        if request.operation == Operation::Read {
            file.read_exact_at(&mut bytes, at)?;
            buffer.write(0, &bytes);
        } else {
            buffer.read(0, &mut bytes);
            file.write_all_at(&bytes, at)?;
        }
        at += bytes.len() as u64;
    }
    match request.operation {
        Operation::Flush | Operation::Write { fua: true } => file.sync_data(),
        Operation::Unmap | Operation::WriteZeroes => {
            file.write_all_at(&vec![0; request.len as usize], request.at)
        }
        Operation::Read | Operation::Write { fua: false } => Ok(()),
    }
}

impl BlockDevice for FileDisk {
    fn info(&self) -> BlockInfo {
        self.info
    }

    fn submit(&self, batch: &mut Vec<Request>) {
        for request in batch.drain(..) {
            if let Err(refused) = self.requests.lock().expect("no panics").send(request) {
                refused.0.complete(Err(BlockError::Gone));
            }
        }
    }
}

struct Console;

impl SerialSink for Console {
    fn write(&self, bytes: &[u8]) {
        _ = io::stdout().write_all(bytes);
        _ = io::stdout().flush();
    }
}

fn drives(arguments: &[String]) -> Result<Drives, Box<dyn std::error::Error>> {
    let mut drives = Drives::default();
    for argument in arguments {
        let (place, what) = argument.split_once('=').ok_or("PLACE=KIND:FILE is wanted")?;
        let place = Place::ALL.iter().position(|p| p.name() == place).ok_or("no such place")?;
        drives[place] = Some(match what.split_once(':') {
            Some(("disk", file)) => IdeDrive::Disk(FileDisk::open(file, false)?),
            Some(("cd", file)) => IdeDrive::Cd(Some(FileDisk::open(file, true)?)),
            _ => IdeDrive::Cd(None),
        });
    }
    Ok(drives)
}

fn boot(
    memory: &GuestMemory,
    kernel: &[u8],
    initrd: &[u8],
    line: &str,
) -> Result<vireo_core::VcpuState, Box<dyn std::error::Error>> {
    let tables = acpi::AcpiSpec {
        vcpus: 1,
        serial_ports: vec![acpi::SerialPort::com1()],
        keyboard: false,
        pci_mmio64: None,
        ecam: None,
    };
    let rsdp = acpi::install(memory, &tables)?;
    let names = smbios::SystemNames::default();
    smbios::install(memory, &smbios::SmbiosSpec { names, uuid: [0; 16], vcpus: 1, ram: memory.layout() })?;
    let boot = linux::LinuxBoot {
        kernel: linux::File { name: "kernel", bytes: kernel },
        initrd: Some(linux::File { name: "initrd", bytes: initrd }),
        command_line: line,
        rsdp: Some(rsdp),
        reserved: &[],
    };
    Ok(linux::load(memory, &boot)?.entry)
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [kernel, initrd, line, places @ ..] = &arguments[..] else {
        return Err("usage: guest KERNEL INITRD COMMAND-LINE PLACE=KIND:FILE…".into());
    };
    let (kernel, initrd, line) = (std::fs::read(kernel)?, std::fs::read(initrd)?, line.clone());
    let engine = vireo_soft::SoftEngine::new();
    if let Probe::Unusable(why) = engine.probe() {
        return Err(why.to_string().into());
    }
    let (events, inbox) = channel();
    let controller = Arc::new(OnceLock::new());
    let made = Arc::clone(&controller);
    let spec = BoardSpec {
        memory: MEMORY,
        vcpus: 1,
        translation_memory: 100 << 20,
        cpu_model: CpuModel::named("vireo-v2").ok_or("no such CPU model")?,
        serial: Arc::new(Console),
        devices: vec![vireo_ide::attach(drives(places)?, move |ide| _ = made.set(Arc::clone(ide)))],
        events,
    };
    let boot = move |memory: &GuestMemory| {
        boot(memory, &kernel, &initrd, &line).map_err(|e| BoardError::Boot(e.to_string()))
    };
    let board = Board::new(&engine, &spec, Box::new(boot))?;
    board.resume();
    let ide = controller.get().ok_or("the controller was attached")?;
    let churns = std::env::var_os("VIREO_CHURN").is_some();
    loop {
        let wait = if churns { Duration::from_millis(3) } else { Duration::MAX };
        match inbox.recv_timeout(wait) {
            Ok(BoardEvent::PowerOff) => return Ok(()),
            Ok(BoardEvent::Reset) => board.reset()?,
            Err(RecvTimeoutError::Timeout) => churn(&board, ide)?,
            other => return Err(format!("{other:?}").into()),
        }
    }
}

fn churn(board: &Board, ide: &IdeController) -> Result<(), Box<dyn std::error::Error>> {
    board.pause()?;
    let state = ide.save();
    ide.reset();
    ide.restore(&state)?;
    board.resume();
    Ok(())
}
