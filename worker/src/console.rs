//! The guest's console: where its first serial port comes from and goes to.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::termios::{self, Termios};
use vireo_chipset::lines::SerialSink;

use crate::{RunError, SerialSpec};

/// What the user does at the console, besides typing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConsoleEvent {
    /// Bytes for the guest.
    Input(Vec<u8>),
    /// End the machine now (Ctrl-A x).
    Quit,
    /// Press the power button (Ctrl-A p).
    PowerButton,
    /// Reset the machine (Ctrl-A r).
    Reset,
    /// Show the escapes (Ctrl-A h).
    Help,
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
    /// The events that `bytes` make.
    pub fn parse(&mut self, bytes: &[u8]) -> Vec<ConsoleEvent> {
        let mut events = Vec::new();
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
                events.push(ConsoleEvent::Input(std::mem::take(&mut input)));
            }
            events.push(event);
        }
        if !input.is_empty() {
            events.push(ConsoleEvent::Input(input));
        }
        events
    }
}

/// Takes console events; called on the console's thread.
pub type Events = Arc<dyn Fn(ConsoleEvent) + Send + Sync>;

/// The console. Dropping it puts the terminal back and removes the socket.
pub struct Console {
    output: Arc<Output>,
    terminal: Option<Termios>,
    socket: Option<PathBuf>,
}

enum Sink {
    Stdout,
    File(File),
    Client(Option<UnixStream>),
}

struct Output(Mutex<Sink>);

impl Output {
    fn lock(&self) -> std::sync::MutexGuard<'_, Sink> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl SerialSink for Output {
    fn write(&self, bytes: &[u8]) {
        match &mut *self.lock() {
            Sink::Stdout => {
                let mut out = std::io::stdout().lock();
                // A closed pipe is no reason to stop the guest.
                _ = out.write_all(bytes).and_then(|()| out.flush());
            }
            Sink::File(f) => _ = f.write_all(bytes),
            Sink::Client(client) => {
                if client.as_mut().is_some_and(|c| c.write_all(bytes).is_err()) {
                    *client = None;
                }
            }
        }
    }
}

impl Console {
    /// Opens what the spec names; nothing is read before [`Console::start`].
    pub fn open(spec: &SerialSpec) -> Result<(Self, Option<UnixListener>), RunError> {
        let fail = |path: &Path, e| RunError::Console(format!("{}: {e}", path.display()));
        let (sink, socket, listener) = match spec {
            SerialSpec::Stdio => (Sink::Stdout, None, None),
            SerialSpec::File(path) => {
                (Sink::File(File::create(path).map_err(|e| fail(path, e))?), None, None)
            }
            SerialSpec::Socket(path) => {
                let listener = UnixListener::bind(path).map_err(|e| fail(path, e))?;
                (Sink::Client(None), Some(path.clone()), Some(listener))
            }
        };
        Ok((Self { output: Arc::new(Output(Mutex::new(sink))), terminal: None, socket }, listener))
    }

    /// Where the serial port writes.
    pub fn sink(&self) -> Arc<dyn SerialSink> {
        Arc::clone(&self.output) as Arc<dyn SerialSink>
    }

    /// Starts reading: a terminal is set to raw mode, so that every key goes to the guest.
    pub fn start(&mut self, spec: &SerialSpec, listener: Option<UnixListener>, events: Events) {
        let spawn = |name: &str, f: Box<dyn FnOnce() + Send>| {
            // Without a thread there is no input; the guest still runs.
            std::thread::Builder::new().name(name.into()).spawn(f).ok();
        };
        match (spec, listener) {
            (SerialSpec::Stdio, _) => {
                let stdin = std::io::stdin();
                if let Ok(saved) = termios::tcgetattr(&stdin) {
                    let mut raw = saved.clone();
                    raw.make_raw();
                    // Output keeps its line discipline: the host's own messages stay readable.
                    raw.output_modes = saved.output_modes;
                    if termios::tcsetattr(&stdin, termios::OptionalActions::Now, &raw).is_ok() {
                        self.terminal = Some(saved);
                    }
                }
                spawn("console", Box::new(move || read_terminal(&events)));
            }
            (SerialSpec::Socket(_), Some(listener)) => {
                let output = Arc::clone(&self.output);
                spawn("console", Box::new(move || serve_clients(&listener, &output, &events)));
            }
            _ => {}
        }
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        if let Some(saved) = &self.terminal {
            _ = termios::tcsetattr(std::io::stdin(), termios::OptionalActions::Now, saved);
        }
        if let Some(path) = &self.socket {
            _ = std::fs::remove_file(path);
        }
    }
}

fn read_terminal(events: &Events) {
    let mut parser = EscapeParser::default();
    let mut bytes = [0; 1024];
    // The end of a file or pipe is not a wish to end the machine.
    while let Ok(n @ 1..) = std::io::stdin().read(&mut bytes) {
        parser.parse(&bytes[..n]).into_iter().for_each(|e| events(e));
    }
}

fn serve_clients(listener: &UnixListener, output: &Output, events: &Events) {
    for mut client in listener.incoming().flatten() {
        let Ok(writer) = client.try_clone() else { continue };
        // A client that does not read must not stop the guest for ever.
        _ = writer.set_write_timeout(Some(std::time::Duration::from_secs(1)));
        *output.lock() = Sink::Client(Some(writer));
        let mut bytes = [0; 1024];
        while let Ok(n @ 1..) = client.read(&mut bytes) {
            events(ConsoleEvent::Input(bytes[..n].to_vec()));
        }
        *output.lock() = Sink::Client(None);
    }
}

#[cfg(test)]
mod tests {
    use super::ConsoleEvent::*;
    use super::*;

    #[test]
    fn escapes_are_found_even_across_reads() {
        let mut p = EscapeParser::default();
        assert_eq!(p.parse(b"ls\r"), [Input(b"ls\r".to_vec())]);
        assert_eq!(p.parse(b"a\x01"), [Input(b"a".to_vec())]);
        assert_eq!(p.parse(b"xb"), [Quit, Input(b"b".to_vec())]);
        assert_eq!(p.parse(b"\x01\x01\x01p\x01r\x01z"), [Input(vec![1]), PowerButton, Reset]);
    }
}
