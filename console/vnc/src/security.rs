//! Who may connect, and by what.

use std::collections::HashMap;
use std::net::IpAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

use crate::auth::{CHALLENGE, PASSWORD_MOST, response, same};

/// Security cannot be had; the text is for the user.
#[derive(Debug, thiserror::Error)]
pub enum SecurityError {
    /// The file of the password.
    #[error("{path}: {why}")]
    Password {
        /// The file.
        path: String,
        /// What is wrong.
        why: String,
    },
    /// Certificate or key.
    #[error("TLS: {0}")]
    Tls(String),
}

/// What is asked of clients.
#[derive(Default)]
pub struct Security {
    password: Option<Vec<u8>>,
    tls: Option<Arc<ServerConfig>>,
    /// By the client's address; `None`: of this host's sockets.
    failures: Mutex<HashMap<Option<IpAddr>, Failures>>,
}

/// Wrong passwords of late.
struct Failures {
    count: u32,
    last: Instant,
}

/// Wrong passwords from one address that are let pass before it has to wait. Not of all together: who guesses would keep the owner out.
const FAILURES_MOST: u32 = 5;
/// Addresses that have given wrong ones of late, before all others have to wait.
const GUESSERS_MOST: usize = 256;
/// How long.
const WAIT: Duration = Duration::from_secs(10);

/// What a client that gave a wrong password is told.
pub(crate) const WRONG: &str = "wrong password";
/// What one is told after too many.
pub(crate) const WAITS: &str = "too many wrong passwords: try again in 10 seconds";

impl Security {
    /// Reads the password that clients have to give from a file: its first line.
    ///
    /// # Errors
    /// It cannot be read, is empty, or is longer than VNC passwords are.
    pub fn with_password_file(mut self, path: &Path) -> Result<Self, SecurityError> {
        let fail = |why: String| SecurityError::Password { path: path.display().to_string(), why };
        let text = std::fs::read(path).map_err(|e| fail(e.to_string()))?;
        let line = text.split(|b| *b == b'\n').next().unwrap_or_default();
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        match line.len() {
            0 => return Err(fail("the password is its first line, which is empty".into())),
            1..=PASSWORD_MOST => {}
            n => {
                return Err(fail(format!(
                    "VNC passwords have at most {PASSWORD_MOST} characters, this has {n}"
                )));
            }
        }
        self.password = Some(line.to_vec());
        Ok(self)
    }

    /// Has clients use TLS, with a certificate (chain) and key from PEM files.
    ///
    /// # Errors
    /// They cannot be read or used.
    pub fn with_certificate(self, certificate: &Path, key: &Path) -> Result<Self, SecurityError> {
        let fail =
            |path: &Path, e: &dyn std::fmt::Display| SecurityError::Tls(format!("{}: {e}", path.display()));
        let chain: Result<Vec<_>, _> =
            CertificateDer::pem_file_iter(certificate).map_err(|e| fail(certificate, &e))?.collect();
        let chain = chain.map_err(|e| fail(certificate, &e))?;
        let key = PrivateKeyDer::from_pem_file(key).map_err(|e| fail(key, &e))?;
        self.with_tls(chain, key)
    }

    /// Has clients use TLS, with a certificate made for this run, which nobody vouches for.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn with_own_certificate(self) -> Result<Self, SecurityError> {
        let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()])
            .map_err(|e| SecurityError::Tls(e.to_string()))?;
        let key = PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
        self.with_tls(vec![made.cert.der().clone()], key.into())
    }

    fn with_tls(
        mut self,
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
    ) -> Result<Self, SecurityError> {
        let fail = |e: rustls::Error| SecurityError::Tls(e.to_string());
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let config =
            config.map_err(fail)?.with_no_client_auth().with_single_cert(chain, key).map_err(fail)?;
        self.tls = Some(Arc::new(config));
        Ok(self)
    }

    /// Whether anybody who reaches the server may use it.
    pub fn is_open(&self) -> bool {
        self.password.is_none()
    }

    /// Whether a password has to be given.
    pub(crate) fn wants_password(&self) -> bool {
        self.password.is_some()
    }

    pub(crate) fn tls(&self) -> Option<&Arc<ServerConfig>> {
        self.tls.as_ref()
    }

    /// Checks an answer to a challenge of a client at an address; the error is for the client.
    pub(crate) fn check(
        &self,
        from: Option<IpAddr>,
        challenge: &[u8; CHALLENGE],
        answer: &[u8; CHALLENGE],
    ) -> Result<(), &'static str> {
        let Some(password) = &self.password else { return Ok(()) };
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        failures.retain(|_, f| f.last.elapsed() < WAIT);
        // A host has a network of IPv6 to itself.
        let from = from.map(|from| match from.to_canonical() {
            IpAddr::V6(a) => IpAddr::V6((a.to_bits() >> 64 << 64).into()),
            v4 => v4,
        });
        let waits = match failures.get(&from) {
            Some(f) => f.count >= FAILURES_MOST,
            None => failures.len() >= GUESSERS_MOST,
        };
        if waits {
            return Err(WAITS);
        }
        if same(&response(password, challenge), answer) {
            return Ok(());
        }
        let last = Instant::now();
        failures
            .entry(from)
            .and_modify(|f| (f.count, f.last) = (f.count + 1, last))
            .or_insert(Failures { count: 1, last });
        Err(WRONG)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(password: &str) -> Result<Security, SecurityError> {
        let path = std::env::temp_dir().join(format!("vireo-vnc-{}-{}", std::process::id(), password.len()));
        std::fs::write(&path, password).unwrap();
        let security = Security::default().with_password_file(&path);
        std::fs::remove_file(&path).unwrap();
        security
    }

    #[test]
    fn passwords_are_a_line_of_a_file() {
        assert!(with("secret\nnot this\n").unwrap().password == Some(b"secret".to_vec()));
        assert!(with("12345678").is_ok());
        assert!(with("").is_err() && with("\nx").is_err());
        assert!(with("123456789").err().unwrap().to_string().ends_with("at most 8 characters, this has 9"));
    }

    #[test]
    fn who_guesses_has_to_wait() {
        let security = with("secret").unwrap();
        let challenge = [7; CHALLENGE];
        let right = response(b"secret", &challenge);
        let [one, other, neighbour] =
            ["2001:db8::1", "2001:db8:0:1::1", "2001:db8::2"].map(|a| a.parse().ok());
        for _ in 0..FAILURES_MOST {
            assert_eq!(security.check(one, &challenge, &[0; CHALLENGE]), Err(WRONG));
        }
        for from in [one, neighbour] {
            assert_eq!(security.check(from, &challenge, &right), Err(WAITS));
        }
        for from in [other, None] {
            assert_eq!(security.check(from, &challenge, &right), Ok(()));
        }
        let past = Instant::now().checked_sub(WAIT).unwrap();
        security.failures.lock().unwrap().values_mut().for_each(|f| f.last = past);
        assert_eq!(security.check(one, &challenge, &right), Ok(()));
        // Many who guess do not take memory without end.
        for n in 0..1000 {
            _ = security.check(Some(std::net::Ipv4Addr::from_bits(n).into()), &challenge, &[0; CHALLENGE]);
        }
        assert_eq!(security.failures.lock().unwrap().len(), GUESSERS_MOST);
    }

    #[test]
    fn certificates_are_made_or_read() {
        assert!(Security::default().with_own_certificate().unwrap().tls().is_some());
        let none = Path::new("/there/is/no/such/file");
        let error = Security::default().with_certificate(none, none).err().unwrap().to_string();
        assert!(error.starts_with("TLS: /there/is"), "{error}");
    }
}
