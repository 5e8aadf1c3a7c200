//! A program under a deadline, its output collected as it comes.

use std::fmt;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};
use rustix::pty::OpenptFlags;
use rustix::termios::LocalModes;

/// How often a process that closed its output is asked whether it has ended.
const POLL: Duration = Duration::from_millis(2);
/// How much of each output a failure shows.
const SHOWN: usize = 6000;

/// A process that did not do what was expected, with the end of what it said.
pub struct Failure(String);

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// As for people: it is what `unwrap` prints.
impl fmt::Debug for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::error::Error for Failure {}

/// What came out of one stream, and when.
#[derive(Default)]
struct Transcript {
    text: Mutex<Text>,
    changed: Condvar,
}

#[derive(Default)]
struct Text {
    bytes: Vec<u8>,
    /// When the output had grown to so many bytes.
    arrivals: Vec<(Instant, usize)>,
    ended: bool,
}

impl Transcript {
    fn lock(&self) -> MutexGuard<'_, Text> {
        self.text.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn collect(&self, mut from: impl Read) {
        let mut buffer = [0; 4096];
        // A terminal whose last user has gone reports an error, not an end.
        while let Ok(n @ 1..) = from.read(&mut buffer) {
            let mut text = self.lock();
            text.bytes.extend_from_slice(&buffer[..n]);
            let length = text.bytes.len();
            text.arrivals.push((Instant::now(), length));
            self.changed.notify_all();
        }
        self.lock().ended = true;
        self.changed.notify_all();
    }
}

/// A running program. It is killed when its deadline passes or when it is dropped.
pub struct Process {
    name: String,
    child: Child,
    input: Option<File>,
    output: Arc<Transcript>,
    errors: Arc<Transcript>,
    readers: Vec<JoinHandle<()>>,
    started: Instant,
    deadline: Instant,
    /// Typed into its shell.
    commands: u32,
}

impl Process {
    /// Starts a program with pipes on its standard streams; it may run for at most `limit`.
    pub fn start(mut command: Command, limit: Duration) -> Result<Self, Failure> {
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        Self::start_with_outputs(command, limit)
    }

    /// Starts a program whose outputs go where the command says; only those that are pipes are collected.
    pub fn start_with_outputs(mut command: Command, limit: Duration) -> Result<Self, Failure> {
        command.stdin(Stdio::piped());
        let mut process = Self::spawn(command, limit)?;
        let child = &mut process.child;
        process.input = child.stdin.take().map(|s| File::from(OwnedFd::from(s)));
        let (out, err) = (child.stdout.take(), child.stderr.take());
        if let Some(out) = out {
            let output = Arc::clone(&process.output);
            process.readers.push(std::thread::spawn(move || output.collect(out)));
        }
        if let Some(err) = err {
            let errors = Arc::clone(&process.errors);
            process.readers.push(std::thread::spawn(move || errors.collect(err)));
        }
        Ok(process)
    }

    /// Starts a program on a terminal of its own: its output and errors come together.
    pub fn start_on_terminal(mut command: Command, limit: Duration) -> Result<Self, Failure> {
        let fail = |e: std::io::Error| Failure(format!("no terminal: {e}"));
        let (master, slave) = open_terminal().map_err(fail)?;
        let stdio = || slave.try_clone().map(Stdio::from).map_err(fail);
        command.stdin(stdio()?).stdout(stdio()?).stderr(stdio()?);
        let mut process = Self::spawn(command, limit)?;
        let reader = master.try_clone().map_err(fail)?;
        process.input = Some(master);
        process.errors.lock().ended = true;
        let output = Arc::clone(&process.output);
        process.readers.push(std::thread::spawn(move || output.collect(reader)));
        Ok(process)
    }

    /// Takes the command: its copies of the child's streams must be closed for the output to have an end.
    fn spawn(mut command: Command, limit: Duration) -> Result<Self, Failure> {
        let name = command.get_program().to_string_lossy().into_owned();
        let started = Instant::now();
        let child = command.spawn().map_err(|e| Failure(format!("{name} does not start: {e}")))?;
        Ok(Self {
            name,
            child,
            input: None,
            output: Arc::default(),
            errors: Arc::default(),
            readers: Vec::new(),
            started,
            deadline: started + limit,
            commands: 0,
        })
    }

    /// Waits until the output contains `text`; returns the time from the start of the process to its arrival.
    pub fn wait_for(&mut self, text: &str) -> Result<Duration, Failure> {
        self.wait_for_times(text, 1)
    }

    /// Waits until the output contains `text` so many times.
    pub fn wait_for_times(&mut self, text: &str, times: usize) -> Result<Duration, Failure> {
        let output = Arc::clone(&self.output);
        let mut state = output.lock();
        let (mut searched, mut seen) = (0, 0);
        loop {
            while let Some(at) = find(&state.bytes[searched..], text.as_bytes()) {
                (searched, seen) = (searched + at + text.len(), seen + 1);
                if seen == times {
                    return Ok(state.arrival(searched).saturating_duration_since(self.started));
                }
            }
            // The text may have begun to arrive.
            searched = searched.max((state.bytes.len() + 1).saturating_sub(text.len()));
            let left = self.deadline.saturating_duration_since(Instant::now());
            if state.ended || left.is_zero() {
                let what = if state.ended { "its output ended" } else { "its time was up" };
                drop(state);
                return Err(self.failure(&format!("{what} before {text:?} came {times} time(s)")));
            }
            state = output.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Sets a new deadline: so much time from now.
    pub fn allow(&mut self, limit: Duration) {
        self.deadline = Instant::now() + limit;
    }

    /// Types bytes.
    pub fn send(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        let sent = self.input.as_mut().map_or(Ok(()), |i| i.write_all(bytes));
        sent.map_err(|e| self.failure(&format!("it takes no input: {e}")))
    }

    /// Types a command into the shell that it runs, or its guest, and waits for its end; gives what it printed.
    pub fn shell(&mut self, command: &str) -> Result<String, Failure> {
        self.commands += 1;
        let n = self.commands;
        // The terminal's echo has the sums as they are typed.
        // The shell loses what comes while it sets its terminal, after the prompt: blanks first.
        let typed = format!("{:32}echo \"<$((0+{n}))\"; {command}; echo \"$?:$((0+{n}))>\"\n", "");
        self.send(typed.as_bytes())?;
        let (begin, end) = (format!("<{n}\n"), format!(":{n}>"));
        self.wait_for(&end)?;
        let output = self.output();
        let said =
            output.split_once(&begin).and_then(|(_, rest)| rest.split_once(&end)).map(|(said, _)| said);
        let (said, code) = said.map(|s| s.rsplit_once('\n').unwrap_or(("", s))).unwrap_or_default();
        match code {
            "0" => Ok(said.to_string()),
            _ => Err(self.failure(&format!("{command}: {code}: {said}"))),
        }
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) -> Result<(), Failure> {
        // It is ours and was not waited for: its id cannot be another's.
        let sent = rustix::process::kill_process(Pid::from_child(&self.child), signal);
        sent.map_err(|e| self.failure(&format!("it takes no signal: {e}")))
    }

    /// Closes its standard input.
    pub fn close_input(&mut self) {
        self.input = None;
    }

    /// Waits for the end and returns the exit code.
    pub fn wait(&mut self) -> Result<i32, Failure> {
        let status = self.wait_for_status()?;
        self.readers.drain(..).for_each(|r| _ = r.join());
        status.code().ok_or_else(|| self.failure(&format!("it ended by {status}")))
    }

    fn wait_for_status(&mut self) -> Result<ExitStatus, Failure> {
        loop {
            match self.child.try_wait() {
                Ok(Some(status)) => return Ok(status),
                Ok(None) if Instant::now() < self.deadline => std::thread::sleep(POLL),
                Ok(None) => return Err(self.failure("it did not end in time")),
                Err(e) => return Err(self.failure(&format!("it cannot be waited for: {e}"))),
            }
        }
    }

    /// Time since the start.
    pub fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// What it printed so far.
    pub fn output(&self) -> String {
        String::from_utf8_lossy(&self.output.lock().bytes).replace('\r', "")
    }

    /// What it printed on standard error so far.
    pub fn errors(&self) -> String {
        String::from_utf8_lossy(&self.errors.lock().bytes).into_owned()
    }

    /// Complete lines of the output that start with `prefix`, each with the time from the start to its arrival.
    pub fn lines_with(&self, prefix: &str) -> Vec<(Duration, String)> {
        let state = self.output.lock();
        let mut start = 0;
        let mut found = Vec::new();
        for line in state.bytes.split_inclusive(|b| *b == b'\n') {
            start += line.len();
            let text = String::from_utf8_lossy(line);
            if line.ends_with(b"\n") && text.starts_with(prefix) {
                let arrival = state.arrival(start).saturating_duration_since(self.started);
                found.push((arrival, text.trim_end().to_string()));
            }
        }
        found
    }

    /// Whether its terminal is in raw mode; `None` without a terminal.
    pub fn terminal_is_raw(&self) -> Option<bool> {
        // On Linux the master's settings are those of the terminal.
        let settings = rustix::termios::tcgetattr(self.input.as_ref()?).ok()?;
        Some(!settings.local_modes.intersects(LocalModes::ICANON | LocalModes::ECHO))
    }

    /// A failure of this process, with what it said; for checks of the caller as well.
    pub fn failure(&self, what: &str) -> Failure {
        let tail = |text: String| {
            let from = text.char_indices().rev().nth(SHOWN).map_or(0, |(i, _)| i);
            text[from..].to_string()
        };
        Failure(format!(
            "{} (after {:.1} s): {what}\n--- standard output ends with:\n{}\n--- standard error ends with:\n{}\n---",
            self.name,
            self.elapsed().as_secs_f64(),
            tail(self.output()),
            tail(self.errors()),
        ))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        _ = self.child.kill();
        _ = self.child.wait();
    }
}

impl Text {
    /// When byte number `end` had arrived.
    fn arrival(&self, end: usize) -> Instant {
        let after = self.arrivals.partition_point(|(_, length)| *length < end);
        self.arrivals.get(after).map_or_else(Instant::now, |(at, _)| *at)
    }
}

/// Where a text, which is not empty, first occurs.
fn find(bytes: &[u8], text: &[u8]) -> Option<usize> {
    bytes.windows(text.len()).position(|w| w == text)
}

fn open_terminal() -> std::io::Result<(File, File)> {
    let master = rustix::pty::openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
    rustix::pty::grantpt(&master)?;
    rustix::pty::unlockpt(&master)?;
    let path = rustix::pty::ptsname(&master, Vec::new())?;
    let flags = rustix::fs::OFlags::RDWR | rustix::fs::OFlags::NOCTTY | rustix::fs::OFlags::CLOEXEC;
    let slave = rustix::fs::open(path, flags, rustix::fs::Mode::empty())?;
    Ok((master.into(), slave.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn output_errors_and_exit_code_are_collected() {
        let mut p =
            Process::start(shell("echo out; echo err >&2; read x; echo \"<$x>\"; exit 7"), LONG).unwrap();
        p.wait_for("out").unwrap();
        p.send(b"typed\n").unwrap();
        p.wait_for("<typed>").unwrap();
        assert_eq!(p.wait().unwrap(), 7);
        assert_eq!((p.output().as_str(), p.errors().as_str()), ("out\n<typed>\n", "err\n"));
        assert_eq!(p.lines_with("<").len(), 1);
    }

    #[test]
    fn a_missing_text_and_a_passed_deadline_are_failures() {
        let mut p = Process::start(shell("echo one"), LONG).unwrap();
        let failure = p.wait_for_times("one", 2).unwrap_err().to_string();
        assert!(failure.contains("its output ended") && failure.contains("ends with:\none"), "{failure}");
        let mut p = Process::start(shell("exec sleep 1000"), Duration::from_millis(50)).unwrap();
        assert!(p.wait_for("x").unwrap_err().to_string().contains("its time was up"));
        assert!(p.wait().unwrap_err().to_string().contains("did not end in time"));
    }

    #[test]
    fn a_terminal_is_one() {
        let mut p =
            Process::start_on_terminal(shell("tty; stty raw -echo; echo ready; read x; stty sane"), LONG)
                .unwrap();
        p.wait_for("ready").unwrap();
        assert_eq!(p.terminal_is_raw(), Some(true));
        p.send(b"\n").unwrap();
        assert_eq!(p.wait().unwrap(), 0);
        assert_eq!(p.terminal_is_raw(), Some(false));
        assert!(p.output().starts_with("/dev/pts/"), "{}", p.output());
    }
}
