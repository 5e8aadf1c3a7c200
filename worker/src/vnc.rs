//! The machine's VNC server: what is said about it, and its sockets.

use std::net::{SocketAddr, TcpListener, ToSocketAddrs};
use std::path::PathBuf;
use std::str::FromStr;

use vireo_screen::{Size, Station};
use vireo_vnc::{Listener, Security, VncServer};

use crate::socket::Socket;

/// Where clients connect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VncAddress {
    /// A Unix socket.
    Unix(PathBuf),
    /// `HOST:PORT`.
    Tcp(String),
}

/// TLS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VncTls {
    /// With a certificate made for this run.
    Own,
    /// With these files.
    Files {
        /// The certificate, and those that vouch for it.
        certificate: PathBuf,
        /// Its key.
        key: PathBuf,
    },
}

/// A VNC server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VncSpec {
    /// Where.
    pub address: VncAddress,
    /// A file with the password.
    pub password: Option<PathBuf>,
    /// Whether clients use TLS.
    pub tls: Option<VncTls>,
    /// The screen's size.
    pub size: Option<Size>,
}

impl FromStr for VncSpec {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        let mut parts = s.split(',');
        let address = match parts.next().unwrap_or_default() {
            "" | "unix:" => return Err("it is unix:PATH or HOST:PORT, then options".into()),
            text => match text.strip_prefix("unix:") {
                Some(path) => VncAddress::Unix(path.into()),
                None if text
                    .rsplit_once(':')
                    .is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok()) =>
                {
                    VncAddress::Tcp(text.into())
                }
                None => {
                    return Err(format!("{text:?} is neither unix:PATH nor HOST:PORT, as in localhost:5900"));
                }
            },
        };
        let mut spec = Self { address, password: None, tls: None, size: None };
        for part in parts {
            match part.split_once('=') {
                Some(("password-file", file)) if !file.is_empty() => spec.password = Some(file.into()),
                Some(("size", size)) => spec.size = Some(size.parse()?),
                None if part == "tls" => spec.tls = Some(VncTls::Own),
                Some(("tls", files)) => {
                    let (certificate, key) = files
                        .split_once(':')
                        .filter(|(certificate, key)| !certificate.is_empty() && !key.is_empty())
                        .ok_or("tls= is followed by two files, CERTIFICATE:KEY")?;
                    spec.tls = Some(VncTls::Files { certificate: certificate.into(), key: key.into() });
                }
                _ => {
                    return Err(format!(
                        "{part:?} is no option: there are password-file=FILE, tls, tls=CERTIFICATE:KEY and size=WIDTHxHEIGHT"
                    ));
                }
            }
        }
        Ok(spec)
    }
}

/// A server whose socket is made, but which serves nobody yet.
pub struct OpenVnc {
    socket: Option<Socket>,
    listener: Listener,
    security: Security,
}

/// A server that runs. Dropping it ends it, and removes its socket.
pub struct RunningVnc {
    _server: VncServer,
    _socket: Option<Socket>,
}

/// Whether nobody but this host can reach any of them.
fn is_local(addresses: &[SocketAddr]) -> bool {
    addresses.iter().all(|a| a.ip().is_loopback())
}

impl OpenVnc {
    /// Makes the socket and reads the files. The error is for the user.
    pub fn open(spec: &VncSpec) -> Result<Self, String> {
        let mut security = Security::default();
        if let Some(file) = &spec.password {
            security = security.with_password_file(file).map_err(|e| e.to_string())?;
        }
        security = match &spec.tls {
            None => security,
            Some(VncTls::Own) => security.with_own_certificate().map_err(|e| e.to_string())?,
            Some(VncTls::Files { certificate, key }) => {
                security.with_certificate(certificate, key).map_err(|e| e.to_string())?
            }
        };
        let (socket, listener) = match &spec.address {
            VncAddress::Unix(path) => {
                let (socket, listener) = Socket::bind_private(path)?;
                (Some(socket), Listener::Unix(listener))
            }
            VncAddress::Tcp(address) => (None, Listener::Tcp(listen(address, &security)?)),
        };
        Ok(Self { socket, listener, security })
    }

    /// Serves clients.
    pub fn start(self, station: Station) -> Result<RunningVnc, String> {
        let server = VncServer::start(self.listener, self.security, station).map_err(|e| e.to_string())?;
        Ok(RunningVnc { _server: server, _socket: self.socket })
    }
}

fn listen(address: &str, security: &Security) -> Result<TcpListener, String> {
    let fail = |e: std::io::Error| format!("{address}: {e}");
    let addresses: Vec<SocketAddr> = address.to_socket_addrs().map_err(fail)?.collect();
    if security.is_open() && !is_local(&addresses) {
        tracing::warn!(
            "{address}: whoever reaches this address sees the screen and types: there is no password"
        );
    }
    TcpListener::bind(&addresses[..]).map_err(fail)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_are_described() {
        let spec = |s: &str| s.parse::<VncSpec>();
        let unix = spec("unix:/tmp/a:b,password-file=p,tls,size=800x600").unwrap();
        assert_eq!(unix.address, VncAddress::Unix("/tmp/a:b".into()));
        assert_eq!((unix.password, unix.tls), (Some("p".into()), Some(VncTls::Own)));
        assert_eq!(unix.size.map(|s| (s.width, s.height)), Some((800, 600)));
        let tcp = spec("[::1]:5900,tls=c:k").unwrap();
        assert_eq!(tcp.address, VncAddress::Tcp("[::1]:5900".into()));
        let files = VncTls::Files { certificate: "c".into(), key: "k".into() };
        assert_eq!(tcp.tls, Some(files));
        for wrong in [
            "",
            "unix:",
            "localhost",
            ":5900",
            "a:70000",
            "a:1,",
            "a:1,x",
            "a:1,password-file=",
            "a:1,tls=c",
            "a:1,tls=:k",
            "a:1,size=0x1",
        ] {
            assert!(spec(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn addresses_of_this_host_are_local() {
        let is = |a: &str| is_local(&a.to_socket_addrs().unwrap().collect::<Vec<_>>());
        assert!(is("127.0.0.1:1") && is("[::1]:1") && !is("0.0.0.0:1") && !is("192.0.2.1:1"));
    }
}
