//! How processes of Vireo are asked and changed by others on the same host: lines of JSON over a Unix socket, each with the version of
//! what is spoken.
//!
//! It owns the form of a line, how long one may be, and how long it may take to come. What is said is of who speaks: a machine's worker,
//! a switch. It makes no socket and no thread.
#![forbid(unsafe_code)]

use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// Read at a time.
const PART: usize = 16 << 10;

/// Of all that is said: no other version is understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Version(pub u32);

/// What a line holds.
#[derive(Serialize, Deserialize)]
struct Envelope<T> {
    version: u32,
    #[serde(flatten)]
    what: T,
}

impl Version {
    /// A line, without its end. What is said has to be a map in JSON.
    ///
    /// # Errors
    /// It is none.
    pub fn line<T: Serialize>(self, what: &T) -> io::Result<String> {
        Ok(serde_json::to_string(&Envelope { version: self.0, what })?)
    }

    /// Says something. How long that may take is the stream's to say.
    ///
    /// # Errors
    /// The other side has gone, or takes nothing.
    pub fn send<T: Serialize>(self, mut to: &UnixStream, what: &T) -> io::Result<()> {
        to.write_all(format!("{}\n", self.line(what)?).as_bytes())
    }

    fn read<T: DeserializeOwned>(self, line: &[u8]) -> Result<T, String> {
        if line.is_empty() {
            return Err("it ended without one".into());
        }
        // The version first: what another one means is not for us to say.
        let envelope: Envelope<serde_json::Value> =
            serde_json::from_slice(line).map_err(|e| e.to_string())?;
        if envelope.version != self.0 {
            let other = envelope.version;
            return Err(format!("it is in version {other} of the protocol, this program speaks {}", self.0));
        }
        serde_json::from_value(envelope.what).map_err(|e| e.to_string())
    }
}

/// What the other side says.
pub struct Lines<'a> {
    from: &'a UnixStream,
    version: Version,
    /// Longest line, in bytes.
    most: usize,
    /// What came after the last line.
    rest: Vec<u8>,
}

impl<'a> Lines<'a> {
    /// Of the one behind a stream.
    pub fn new(from: &'a UnixStream, version: Version, most: usize) -> Self {
        Self { from, version, most, rest: Vec::new() }
    }

    /// The next line, all of which has to be there within `patience`. The last may lack its end.
    ///
    /// # Errors
    /// What is wrong: it does not come, is too long, or is not understood.
    pub fn receive<T: DeserializeOwned>(&mut self, patience: Duration) -> Result<T, String> {
        let line = self.read(patience).map_err(|e| e.to_string())?;
        self.version.read(&line)
    }

    /// What came after the last line, already read.
    pub fn into_rest(self) -> Vec<u8> {
        self.rest
    }

    fn read(&mut self, patience: Duration) -> io::Result<Vec<u8>> {
        let deadline = Instant::now() + patience;
        let mut part = [0; PART];
        let mut searched = 0;
        loop {
            let end = self.rest[searched..].iter().position(|b| *b == b'\n').map(|at| searched + at + 1);
            searched = self.rest.len();
            if end.unwrap_or(searched) > self.most {
                let why = format!("it is longer than {} bytes", self.most);
                return Err(io::Error::new(ErrorKind::InvalidData, why));
            }
            if let Some(end) = end {
                let rest = self.rest.split_off(end);
                return Ok(std::mem::replace(&mut self.rest, rest));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(ErrorKind::TimedOut.into());
            }
            self.from.set_read_timeout(Some(left))?;
            match self.from.read(&mut part) {
                Ok(0) => return Ok(std::mem::take(&mut self.rest)),
                Ok(n) => self.rest.extend(&part[..n]),
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Err(ErrorKind::TimedOut.into()),
                Err(e) => return Err(e),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(5);
    const SPOKEN: Version = Version(3);

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    #[serde(tag = "command", rename_all = "kebab-case")]
    enum Said {
        Go { far: u32 },
        Stop,
    }

    fn heard(text: &str, most: usize) -> Result<Said, String> {
        let (a, b) = UnixStream::pair().unwrap();
        (&a).write_all(text.as_bytes()).unwrap();
        drop(a);
        Lines::new(&b, SPOKEN, most).receive(PATIENCE)
    }

    #[test]
    fn what_is_said_is_heard_line_by_line_and_the_rest_is_kept() {
        let (a, b) = UnixStream::pair().unwrap();
        for said in [Said::Go { far: 7 }, Said::Stop] {
            SPOKEN.send(&a, &said).unwrap();
        }
        (&a).write_all(b"and a file").unwrap();
        let mut lines = Lines::new(&b, SPOKEN, 100);
        assert_eq!(lines.receive(PATIENCE), Ok(Said::Go { far: 7 }));
        assert_eq!(lines.receive(PATIENCE), Ok(Said::Stop));
        assert_eq!(lines.into_rest(), b"and a file");
        assert_eq!(SPOKEN.line(&Said::Go { far: 7 }).unwrap(), r#"{"version":3,"command":"go","far":7}"#);
    }

    #[test]
    fn what_is_no_line_is_not_understood() {
        assert_eq!(
            heard(r#"{"version":3,"command":"stop"}"#, 100),
            Ok(Said::Stop),
            "the last may lack its end"
        );
        assert!(heard("{\"version\":2,\"command\":\"stop\"}\n", 100).unwrap_err().contains("version 2"));
        assert!(heard("", 100).unwrap_err().contains("without one"));
        assert!(
            heard("{\"version\":3,\"command\":\"stop\"}\n", 8).unwrap_err().contains("longer than 8 bytes")
        );
        for text in ["{\"command\":\"stop\"}\n", "{\"version\":3,\"command\":\"burn\"}\n", "nonsense\n"] {
            assert!(heard(text, 100).is_err(), "{text}");
        }
    }

    #[test]
    fn who_is_slow_is_not_waited_for_byte_by_byte() {
        let (a, b) = UnixStream::pair().unwrap();
        let slow = std::thread::spawn(move || {
            while (&a).write_all(b" ").is_ok() {
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        let begun = Instant::now();
        let said = Lines::new(&b, SPOKEN, 1 << 20).receive::<Said>(Duration::from_millis(200));
        assert!(said.is_err() && begun.elapsed() < PATIENCE);
        drop(b);
        slow.join().unwrap();
    }
}
