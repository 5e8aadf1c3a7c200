//! The guest's console: where its first serial port comes from and goes to.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::termios::{self, Termios};
use vireo_board::SerialInput;

use crate::output::Output;
use crate::socket::Socket;
use crate::{RunError, SerialSpec};

/// What the user does at the console, besides typing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConsoleEvent {
    /// End the machine now (Ctrl-A x).
    Quit,
    /// Press the power button (Ctrl-A p).
    PowerButton,
    /// Reset the machine (Ctrl-A r).
    Reset,
    /// Show the escapes (Ctrl-A h).
    Help,
}

/// What typed bytes mean.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Typed {
    /// Bytes for the guest.
    Bytes(Vec<u8>),
    /// An escape.
    Event(ConsoleEvent),
}

/// Ctrl-A, the escape of QEMU and screen.
const ESCAPE: u8 = 1;

/// What Ctrl-A h prints.
pub const HELP: &str = "\r\nCtrl-A x  end the machine\r\nCtrl-A p  press the power button\r\nCtrl-A r  reset\r\n\
                        Ctrl-A Ctrl-A  send Ctrl-A\r\nCtrl-A h  this help\r\n";

/// Finds the escapes in typed bytes. The escape may be the last byte of one read and its command the first of the next.
#[derive(Default)]
pub struct EscapeParser {
    escaped: bool,
}

impl EscapeParser {
    /// What `bytes` mean.
    pub fn parse(&mut self, bytes: &[u8]) -> Vec<Typed> {
        let mut typed = Vec::new();
        let mut input = Vec::new();
        for &b in bytes {
            if !std::mem::take(&mut self.escaped) {
                if b == ESCAPE {
                    self.escaped = true;
                } else {
                    input.push(b);
                }
                continue;
            }
            let event = match b {
                b'x' | b'q' => ConsoleEvent::Quit,
                b'p' => ConsoleEvent::PowerButton,
                b'r' => ConsoleEvent::Reset,
                b'h' | b'?' => ConsoleEvent::Help,
                ESCAPE => {
                    input.push(ESCAPE);
                    continue;
                }
                _ => continue,
            };
            if !input.is_empty() {
                typed.push(Typed::Bytes(std::mem::take(&mut input)));
            }
            typed.push(Typed::Event(event));
        }
        if !input.is_empty() {
            typed.push(Typed::Bytes(input));
        }
        typed
    }
}

/// Takes console events; called on the threads of the console and of signals.
pub type Events = Arc<dyn Fn(ConsoleEvent) + Send + Sync>;

/// Where what is typed goes.
pub trait GuestInput: Send + Sync {
    /// Adds what there is room for; gives how many bytes those are.
    fn push(&self, bytes: &[u8]) -> usize;

    /// Adds all bytes; waits for room, perhaps for ever: a guest need not read. Gives up when `wanted`, which is asked a few
    /// times a second, says that nobody wants it any more.
    fn push_while(&self, bytes: &[u8], wanted: &dyn Fn() -> bool) {
        /// Time for a guest to take some.
        const ASK: Duration = Duration::from_millis(50);
        let mut left = &bytes[self.push(bytes)..];
        while !left.is_empty() && wanted() {
            std::thread::sleep(ASK);
            left = &left[self.push(left)..];
        }
    }
}

impl GuestInput for SerialInput {
    fn push(&self, bytes: &[u8]) -> usize {
        Self::push(self, bytes)
    }
    fn push_while(&self, bytes: &[u8], wanted: &dyn Fn() -> bool) {
        Self::push_while(self, bytes, wanted);
    }
}

impl GuestInput for vireo_virtio::Console {
    fn push(&self, bytes: &[u8]) -> usize {
        self.push_input(bytes)
    }
}

/// The console. Dropping it puts the terminal back and removes the socket.
pub struct Console {
    output: Arc<Output>,
    /// What we ourselves say, on standard error, which may be as stuck as the guest's output.
    notices: Arc<Output>,
    client: Arc<Client>,
    terminal: Option<Termios>,
    /// Removed when the console goes.
    socket: Option<Socket>,
    /// Until [`Console::start`].
    file: Option<UnusedFile>,
}

/// The client of the socket, when there is one.
#[derive(Default)]
struct Client(Mutex<Option<Arc<UnixStream>>>);

impl Client {
    fn set(&self, stream: Option<UnixStream>) {
        let mut client = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(gone) = std::mem::replace(&mut *client, stream.map(Arc::new)) {
            // It may have closed its own direction only, and a write may be waiting for it to read.
            _ = gone.shutdown(Shutdown::Both);
        }
    }

    /// The lock is not held while a client is written to: it may never read.
    fn get(&self) -> Option<Arc<UnixStream>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Writes to the client; what comes while there is none is lost, as on a line that is not plugged in.
struct ToClient(Arc<Client>);

impl Write for ToClient {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // So is what a client does not take because it goes.
        Ok(self.0.get().and_then(|client| (&*client).write(bytes).ok()).unwrap_or(bytes.len()))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Writes to a file, or to whatever a standard stream is.
struct ToFile(File);

impl Write for ToFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            match self.0.write(bytes) {
                // Another program may have made a stream that it shares with us non-blocking.
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    poll(&mut [PollFd::new(&self.0, PollFlags::OUT)], None)?;
                }
                result => return result,
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A queue to standard error, for what must not keep the process when nobody reads it.
///
/// # Errors
/// The host refused a file descriptor or a thread.
pub fn standard_error() -> io::Result<Arc<Output>> {
    Output::start(ToFile(io::stderr().as_fd().try_clone_to_owned()?.into()))
}

/// The file that takes the output, as long as it is not known whether there will be a machine.
struct UnusedFile {
    file: File,
    /// Where, if it was not there before.
    created: Option<PathBuf>,
}

impl UnusedFile {
    /// What an existing file holds is kept.
    fn open(path: &Path) -> io::Result<Self> {
        match File::options().append(true).create_new(true).open(path) {
            Ok(file) => return Ok(Self { file, created: Some(path.to_path_buf()) }),
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            Err(e) => return Err(e),
        }
        // Opened for writing only, a FIFO would wait for its reader. Like this the guest starts, and readers come and go.
        let fifo = std::fs::metadata(path).is_ok_and(|m| m.file_type().is_fifo());
        let file = File::options().read(fifo).append(true).create(true).open(path)?;
        Ok(Self { file, created: None })
    }

    /// There is a machine: it gets an empty file.
    fn into_use(self) {
        // What is not a regular file has no length to set.
        _ = self.file.set_len(0);
    }

    /// There is none.
    fn discard(self) {
        if let Some(path) = self.created {
            _ = std::fs::remove_file(path);
        }
    }
}

impl Console {
    /// Opens what the spec names; nothing is read before [`Console::start`].
    pub fn open(spec: &SerialSpec) -> Result<(Self, Option<UnixListener>), RunError> {
        let fail = |e: io::Error| {
            RunError::Console(match spec {
                SerialSpec::Stdio => e.to_string(),
                SerialSpec::Socket(path) | SerialSpec::File(path) => format!("{}: {e}", path.display()),
            })
        };
        let client = Arc::<Client>::default();
        let console = |output: io::Result<Arc<Output>>| {
            let output = output.map_err(fail)?;
            Ok::<_, RunError>(Self {
                output,
                notices: standard_error().map_err(fail)?,
                client: Arc::clone(&client),
                terminal: None,
                socket: None,
                file: None,
            })
        };
        match spec {
            SerialSpec::Stdio => {
                let stdout = io::stdout().as_fd().try_clone_to_owned();
                Ok((console(stdout.and_then(|fd| Output::start(ToFile(fd.into()))))?, None))
            }
            SerialSpec::File(path) => {
                let unused = UnusedFile::open(path).map_err(fail)?;
                let output = unused.file.try_clone().and_then(|f| Output::start(ToFile(f)));
                let mut console = console(output)?;
                console.file = Some(unused);
                Ok((console, None))
            }
            SerialSpec::Socket(path) => {
                let mut console = console(Output::start(ToClient(Arc::clone(&client))))?;
                let (socket, listener) = Socket::bind(path).map_err(RunError::Console)?;
                console.socket = Some(socket);
                Ok((console, Some(listener)))
            }
        }
    }

    /// Where the serial port writes.
    pub fn output(&self) -> &Arc<Output> {
        &self.output
    }

    /// Shows the escapes.
    pub fn help(&self) {
        self.notices.offer(HELP.as_bytes());
    }

    /// Says something of our own, in lines, on standard error.
    pub fn say(&self, text: &str) {
        // A raw terminal does not return by itself.
        let text = if self.terminal.is_some() { text.replace('\n', "\r\n") } else { text.into() };
        self.notices.offer(text.as_bytes());
    }

    /// Waits until all output is read, as long as somebody reads. Gives how many bytes of the guest's nobody took.
    pub fn finish(&self) -> u64 {
        self.notices.finish();
        self.output.finish()
    }

    /// The machine starts. A file is emptied; a terminal is set to raw mode, so that every key goes to the guest. What is
    /// typed goes to `input`.
    pub fn start(
        &mut self,
        spec: &SerialSpec,
        listener: Option<UnixListener>,
        input: Arc<dyn GuestInput>,
        events: Events,
    ) {
        let spawn = |name: &str, f: Box<dyn FnOnce() + Send>| {
            // Without a thread there is no input; the guest still runs.
            std::thread::Builder::new().name(name.into()).spawn(f).ok();
        };
        match (spec, listener) {
            (SerialSpec::Stdio, _) => {
                let stdin = io::stdin();
                if let Ok(saved) = termios::tcgetattr(&stdin) {
                    let mut raw = saved.clone();
                    raw.make_raw();
                    // Output keeps its line discipline: the host's own messages stay readable.
                    raw.output_modes = saved.output_modes;
                    if termios::tcsetattr(&stdin, termios::OptionalActions::Now, &raw).is_ok() {
                        self.terminal = Some(saved);
                    }
                }
                let type_bytes: fn(&dyn GuestInput, &[u8]) = match self.terminal {
                    // Escapes have to get through whatever was typed before them.
                    Some(_) => |input, bytes| _ = input.push(bytes),
                    None => |input, bytes| input.push_while(bytes, &|| true),
                };
                spawn("console", Box::new(move || read_terminal(|b| type_bytes(&*input, b), &events)));
            }
            (SerialSpec::File(_), _) => {
                if let Some(file) = self.file.take() {
                    file.into_use();
                }
            }
            (SerialSpec::Socket(_), Some(listener)) => {
                let client = Arc::clone(&self.client);
                spawn("console", Box::new(move || serve_clients(&listener, &client, &*input)));
            }
            _ => {}
        }
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        if let Some(saved) = &self.terminal {
            _ = termios::tcsetattr(io::stdin(), termios::OptionalActions::Now, saved);
        }
        if let Some(file) = self.file.take() {
            file.discard();
        }
    }
}

fn read_terminal(type_bytes: impl Fn(&[u8]), events: &Events) {
    let mut parser = EscapeParser::default();
    let mut bytes = [0; 1024];
    // The end of a file or pipe is not a wish to end the machine.
    while let Ok(n @ 1..) = io::stdin().read(&mut bytes) {
        for typed in parser.parse(&bytes[..n]) {
            match typed {
                Typed::Bytes(bytes) => type_bytes(&bytes),
                Typed::Event(event) => events(event),
            }
        }
    }
}

/// Whether the client has closed both directions.
fn hung_up(stream: &UnixStream) -> bool {
    let mut fds = [PollFd::new(stream, PollFlags::empty())];
    let polled = poll(&mut fds, Some(&rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 }));
    polled.is_ok() && fds[0].revents().contains(PollFlags::HUP)
}

fn serve_clients(listener: &UnixListener, client: &Client, input: &dyn GuestInput) {
    /// The host has no file descriptor left, say: time for it to get some.
    const RETRY: Duration = Duration::from_millis(100);
    for stream in listener.incoming() {
        let Some((mut stream, writer)) = stream.and_then(|s| Ok((s.try_clone()?, s))).ok() else {
            std::thread::sleep(RETRY);
            continue;
        };
        client.set(Some(writer));
        let mut bytes = [0; 1024];
        while let Ok(n @ 1..) = stream.read(&mut bytes) {
            input.push_while(&bytes[..n], &|| !hung_up(&stream));
        }
        client.set(None);
    }
}

#[cfg(test)]
mod tests {
    use super::ConsoleEvent::*;
    use super::Typed::*;
    use super::*;

    #[test]
    fn escapes_are_found_even_across_reads() {
        let mut p = EscapeParser::default();
        assert_eq!(p.parse(b"ls\r"), [Bytes(b"ls\r".to_vec())]);
        assert_eq!(p.parse(b"a\x01"), [Bytes(b"a".to_vec())]);
        assert_eq!(p.parse(b"xb"), [Event(Quit), Bytes(b"b".to_vec())]);
        assert_eq!(p.parse(b"\x01\x01\x01p\x01r\x01z"), [Bytes(vec![1]), Event(PowerButton), Event(Reset)]);
    }

    #[test]
    fn a_client_that_has_gone_holds_no_writer() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        while (&ours).write(&[0; 4096]).is_ok() {}
        ours.set_nonblocking(false).unwrap();
        ours.set_write_timeout(Some(std::time::Duration::from_secs(60))).unwrap();
        let client = Client::default();
        client.set(Some(ours));
        let held = client.get().unwrap();
        let writer = std::thread::spawn(move || (&*held).write(b"more").map_err(|e| e.kind()));
        client.set(None);
        assert_eq!(writer.join().unwrap(), Err(io::ErrorKind::BrokenPipe));
        drop(theirs);
    }

    #[test]
    fn a_fifo_is_opened_without_its_reader() {
        let path = std::env::temp_dir().join(format!("vireo-console-{}-fifo", std::process::id()));
        let made = std::process::Command::new("mkfifo").arg(&path).status().unwrap();
        assert!(made.success());
        let opened = UnusedFile::open(&path).and_then(|mut f| f.file.write_all(b"no reader yet"));
        std::fs::remove_file(&path).unwrap();
        opened.unwrap();
    }
}
