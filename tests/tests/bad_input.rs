//! Bad input gets one clear line and a non-zero exit code, and leaves nothing behind.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use vireo_tests::{Guest, Process, vireo};

const LIMIT: Duration = Duration::from_secs(60);
/// The machine could not be started; the command line was wrong.
const CANNOT_START: i32 = 1;
const WRONG_USAGE: i32 = 2;

/// A folder with good and bad files, removed at the end.
struct Files(PathBuf);

impl Files {
    fn create() -> Self {
        let guest = Guest::build("debian-6.1-cloud-amd64");
        let folder = std::env::temp_dir().join(format!("vireo-bad-input-{}", std::process::id()));
        _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(folder.join("folder")).expect("a folder");
        let write = |name: &str, bytes: &[u8]| fs::write(folder.join(name), bytes).expect("a file");
        let kernel = fs::read(&guest.kernel).expect("the kernel");
        write("kernel", &kernel);
        write("initrd", &fs::read(&guest.initrd).expect("the initrd"));
        write("empty", b"");
        write("text", b"This is not a kernel, it only tells about one.\n");
        write("zeros", &[0; 1 << 20]);
        write("first-sector", &kernel[..512]);
        write("setup-only", &kernel[..0x4000]);
        write("half", &kernel[..kernel.len() / 2]);
        write("no-magic", &changed(&kernel, 0x202, b"HdrX"));
        // Fields of the setup header (Linux x86 boot protocol): setup_sects, syssize, init_size, protocol 1.0.
        write("huge-setup", &changed(&kernel, 0x1f1, &[255]));
        write("huge-payload", &changed(&kernel, 0x1f4, &u32::MAX.to_le_bytes()));
        write("huge-init", &changed(&kernel, 0x260, &u32::MAX.to_le_bytes()));
        write("old-protocol", &changed(&kernel, 0x206, &[0, 1]));
        write("elf-header", &fs::read(vireo()).expect("the binary")[..64]);
        write("existing", b"precious");
        File::create(folder.join("big")).and_then(|f| f.set_len(600 << 20)).expect("a sparse file");
        Self(folder)
    }

    fn names(&self) -> Vec<String> {
        let entry = |e: std::io::Result<fs::DirEntry>| {
            e.expect("an entry").file_name().to_string_lossy().into_owned()
        };
        let mut names: Vec<_> = fs::read_dir(&self.0).expect("the folder").map(entry).collect();
        names.sort();
        names
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        _ = fs::remove_dir_all(&self.0);
    }
}

fn changed(kernel: &[u8], at: usize, bytes: &[u8]) -> Vec<u8> {
    let mut kernel = kernel.to_vec();
    kernel[at..at + bytes.len()].copy_from_slice(bytes);
    kernel
}

/// Arguments of `vireo run`, the exit code, and what the message must name (in any case).
type Case<'a> = (Vec<&'a str>, i32, &'a str);

fn kernels<'a>(binary: &'a str) -> Vec<Case<'a>> {
    let kernel = |file, names| (vec!["--kernel", file], CANNOT_START, names);
    vec![
        (vec![], WRONG_USAGE, "--kernel"),
        (vec!["--kernel", ""], WRONG_USAGE, "--kernel"),
        kernel("missing", "missing"),
        kernel("folder", "directory"),
        kernel("kernel/x", "kernel/x"),
        kernel("/dev/zero", "/dev/zero"),
        kernel("empty", "empty"),
        kernel("text", "text"),
        kernel("zeros", "zeros"),
        kernel("first-sector", "first-sector"),
        kernel("setup-only", "setup-only"),
        kernel("half", "half"),
        kernel("no-magic", "no-magic"),
        kernel("huge-setup", "huge-setup"),
        kernel("huge-payload", "huge-payload"),
        kernel("huge-init", "huge-init"),
        kernel("old-protocol", "old-protocol"),
        kernel("elf-header", "elf-header"),
        kernel(binary, "ELF"),
        kernel("initrd", "initrd"),
    ]
}

fn options<'a>(long_line: &'a str, long_path: &'a str) -> Vec<Case<'a>> {
    let cannot = |option, value, names| (vec!["--kernel", "kernel", option, value], CANNOT_START, names);
    let usage = |option, value| (vec!["--kernel", "kernel", option, value], WRONG_USAGE, option);
    vec![
        cannot("--initrd", "missing", "missing"),
        cannot("--initrd", "folder", "directory"),
        cannot("--initrd", "big", "big"),
        cannot("--cpus", "0", "0 CPUs"),
        cannot("--cpus", "100000", "100000 CPUs"),
        cannot("--cpus", "4294967295", "4294967295 CPUs"),
        usage("--cpus", "4294967296"),
        (vec!["--kernel", "kernel", "--cpus", "-1"], WRONG_USAGE, "-1"),
        usage("--cpus", "two"),
        cannot("--memory", "1K", "memory"),
        cannot("--memory", "1M", "memory"),
        cannot("--memory", "8M", "memory"),
        cannot("--memory", "100T", "memory"),
        cannot("--memory", "16777215T", "memory"),
        usage("--memory", "0"),
        (vec!["--kernel", "kernel", "--memory", "-1"], WRONG_USAGE, "-1"),
        usage("--memory", "512 parsecs"),
        usage("--memory", "512X"),
        usage("--memory", "1.5G"),
        usage("--memory", "99999999999999999999"),
        cannot("--cpu-model", "z80", "z80"),
        cannot("--cpu-model", "", "CPU model"),
        usage("--engine", "steam"),
        usage("--serial", "nonsense"),
        usage("--serial", "file:"),
        usage("--serial", "socket:"),
        cannot("--serial", "socket:nowhere/socket", "nowhere/socket"),
        cannot("--serial", "socket:existing", "existing"),
        cannot("--serial", long_path, "serial"),
        cannot("--serial", "file:folder", "folder"),
        cannot("--serial", "file:nowhere/file", "nowhere/file"),
        cannot("--serial", "file:kernel", "is the kernel"),
        (
            vec!["--kernel", "kernel", "--initrd", "initrd", "--serial", "file:initrd"],
            CANNOT_START,
            "is the initrd",
        ),
        // The console's file is neither emptied nor left behind when there is no machine.
        (vec!["--kernel", "text", "--serial", "file:existing"], CANNOT_START, "text"),
        (vec!["--kernel", "text", "--serial", "file:new"], CANNOT_START, "text"),
        (vec!["--kernel", "text", "--serial", "socket:new"], CANNOT_START, "text"),
        cannot("--append", long_line, "command line"),
        usage("--no-such-option", "x"),
    ]
}

/// What is wrong with how `vireo` took the case; nothing when all is well.
fn fault(files: &Files, (arguments, code, names): &Case) -> Option<String> {
    let mut command = Command::new(vireo());
    command.arg("run").args(arguments).current_dir(&files.0);
    let mut process = Process::start(command, LIMIT).unwrap();
    let ended = match process.wait() {
        Ok(code) => code,
        Err(e) => return Some(format!("{}: {e}", shortened(arguments))),
    };
    let errors = process.errors();
    let lines = errors.lines().count();
    let wrong = if ended != *code {
        format!("exit code {ended}, not {code}")
    } else if !process.output().is_empty() {
        "something on standard output".into()
    } else if !errors.to_lowercase().contains(&names.to_lowercase()) {
        format!("no word about {names:?}")
    } else if errors.contains("panicked") || errors.contains("RUST_BACKTRACE") {
        "a panic".into()
    } else if *code == CANNOT_START && (lines != 1 || !errors.starts_with("vireo: ")) {
        format!("{lines} lines, or not from vireo")
    } else if *code == WRONG_USAGE && errors.matches("error:").count() != 1 {
        "not one error".into()
    } else {
        return None;
    };
    Some(format!("{}: {wrong}", shortened(arguments)) + "\n" + &shortened(&[&errors]))
}

fn shortened(words: &[&str]) -> String {
    words.iter().map(|w| w.chars().take(300).collect::<String>()).collect::<Vec<_>>().join(" ")
}

#[test]
fn bad_input_gets_one_clear_line() {
    let files = Files::create();
    let before = files.names();
    let binary = vireo().to_string_lossy();
    let (long_line, long_path) = ("x".repeat(100_000), format!("socket:{}", "p".repeat(200)));
    let mut cases = kernels(&binary);
    cases.extend(options(&long_line, &long_path));
    let faults: Vec<_> = cases.iter().filter_map(|c| fault(&files, c)).collect();
    assert!(faults.is_empty(), "{} of {} cases:\n{}", faults.len(), cases.len(), faults.join("\n"));
    assert_eq!(files.names(), before, "files were left behind, or lost");
    assert_eq!(fs::read(files.0.join("existing")).expect("the file"), b"precious");
}
