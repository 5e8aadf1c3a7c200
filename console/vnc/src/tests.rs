//! Sessions as clients have them, and as no client would.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use proptest::prelude::*;
use vireo_screen::{Key, Keyboard, Mode, Pixels, Pointer, PointerState, Rect, Screen, Size, Station};

use crate::auth::response;
use crate::server::CLIENTS_MOST;
use crate::session::PART;
use crate::zrle::client::Unzrle;
use crate::{Listener, Security, Session, VncServer};

/// Pixels that a test changes.
pub struct Canvas(Mutex<Vec<u8>>);

impl Pixels for Canvas {
    fn read(&self, offset: u64, to: &mut [u8]) -> bool {
        let bytes = self.0.lock().unwrap();
        let from = bytes.get(offset as usize..offset as usize + to.len());
        from.map(|from| to.copy_from_slice(from)).is_some()
    }
}

#[derive(Default)]
struct Inputs {
    keys: Mutex<Vec<(Key, bool)>>,
    points: Mutex<Vec<PointerState>>,
}

impl Keyboard for Inputs {
    fn key(&self, key: Key, down: bool) -> bool {
        self.keys.lock().unwrap().push((key, down));
        true
    }
}

impl Pointer for Inputs {
    fn report(&self, state: PointerState) {
        self.points.lock().unwrap().push(state);
    }
}

struct Rig {
    station: Station,
    inputs: Arc<Inputs>,
    security: Arc<Security>,
}

impl Rig {
    fn new(security: Security) -> Self {
        let inputs = Arc::<Inputs>::default();
        let screen = Screen::new(Size { width: 100, height: 70 });
        let station =
            Station { screen, keyboard: Arc::clone(&inputs) as _, pointer: Arc::clone(&inputs) as _ };
        Self { station, inputs, security: Arc::new(security) }
    }

    fn session(&self) -> Session {
        Session::new(&self.security, &self.station, [3; 16], None, Box::new(|| ()))
    }

    /// A session whose client has said hello, and these encodings.
    fn up(&self, encodings: &[i32]) -> Session {
        let mut session = self.session();
        session.receive(b"RFB 003.008\n\x01\x01").unwrap();
        let mut message = vec![2, 0];
        message.extend((encodings.len() as u16).to_be_bytes());
        encodings.iter().for_each(|e| message.extend(e.to_be_bytes()));
        session.receive(&message).unwrap();
        session.output().clear();
        session
    }

    /// Shows noise, or what is plain.
    fn show(&self, width: u32, height: u32, noise: bool) -> Arc<Canvas> {
        let mut random = 1_u32;
        let pixels = (0..width * height).flat_map(|n| {
            random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            if noise { (random >> 8).to_le_bytes() } else { [(n / width) as u8, 0, 0, 0] }
        });
        let canvas = Arc::new(Canvas(Mutex::new(pixels.collect())));
        let mode = Mode::new(width, height, width * 4, 0, u64::from(width * height * 4)).unwrap();
        self.station.screen.show(mode, Arc::clone(&canvas) as _);
        self.station.screen.changed(std::iter::empty());
        canvas
    }
}

/// The client's side of updates, written from its point of view.
struct Painter {
    size: (usize, usize),
    pixels: Vec<u8>,
    unzrle: Unzrle,
    /// Encodings of what was no pixels.
    told: Vec<i32>,
}

impl Painter {
    fn new(width: usize, height: usize) -> Self {
        Self {
            size: (width, height),
            pixels: vec![0xee; width * height * 4],
            unzrle: Unzrle::default(),
            told: Vec::new(),
        }
    }

    /// Paints one update, which has to be whole.
    fn paint(&mut self, update: &[u8]) {
        let half = |at: usize| usize::from(u16::from_be_bytes([update[at], update[at + 1]]));
        assert_eq!(update[0], 0);
        let (count, mut at) = (half(2), 4);
        for _ in 0..count {
            let [x, y, w, h] = [0, 2, 4, 6].map(|n| half(at + n));
            let encoding = i32::from_be_bytes(update[at + 8..at + 12].try_into().unwrap());
            at += 12;
            let pixels = match encoding {
                0 => {
                    at += w * h * 4;
                    update[at - w * h * 4..at].to_vec()
                }
                16 => {
                    let length = half(at) << 16 | half(at + 2);
                    at += 4 + length;
                    self.unzrle.decode(&update[at - length..at], w, h)
                }
                other => {
                    self.told.push(other);
                    match other {
                        -308 => at += 20,
                        -223 => {}
                        -258 => continue,
                        _ => panic!("encoding {other}"),
                    }
                    if (x, y) == (0, 0) {
                        (self.size, self.pixels) = ((w, h), vec![0xee; w * h * 4]);
                    }
                    continue;
                }
            };
            for line in 0..h {
                let to = ((y + line) * self.size.0 + x) * 4;
                self.pixels[to..to + w * 4].copy_from_slice(&pixels[line * w * 4..(line + 1) * w * 4]);
            }
        }
        assert_eq!(at, update.len(), "more than the update");
    }
}

fn request(incremental: bool) -> Vec<u8> {
    vec![3, incremental.into(), 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]
}

/// Asks for an update and gives it, in as many parts as it comes in.
fn ask(session: &mut Session, incremental: bool) -> Vec<u8> {
    session.receive(&request(incremental)).unwrap();
    let mut update = Vec::new();
    loop {
        session.update();
        if session.output().is_empty() {
            return update;
        }
        assert!(session.output().len() <= PART + 64 * 8192 * 4 + 1024);
        update.append(session.output());
    }
}

#[test]
fn handshakes_of_all_versions() {
    let rig = Rig::new(Security::default());
    for (version, choice, answer) in [
        ("003.003", &b""[..], vec![0, 0, 0, 1]),
        ("003.007", b"\x01", vec![1, 1]),
        ("003.008", b"\x01", vec![1, 1, 0, 0, 0, 0]),
    ] {
        let mut session = rig.session();
        assert_eq!(std::mem::take(session.output()), b"RFB 003.008\n");
        session.receive(format!("RFB {version}\n").as_bytes()).unwrap();
        session.receive(choice).unwrap();
        assert_eq!(std::mem::take(session.output()), answer, "{version}");
        session.receive(b"\x01").unwrap();
        assert!(session.is_up());
        assert_eq!(session.output()[..8], [0, 100, 0, 70, 32, 24, 0, 1]);
        assert!(session.output().ends_with(b"\0\0\0\x05Vireo"));
    }
    assert!(rig.session().receive(b"GET / HTTP/1").is_err());
    assert!(rig.session().receive(b"RFB 003.008\n\x02").is_err(), "a kind that was not offered");
}

fn with_password(name: &str) -> Security {
    let path = std::env::temp_dir().join(format!("vireo-vnc-{}-{name}", std::process::id()));
    std::fs::write(&path, "secret\n").unwrap();
    let security = Security::default().with_password_file(&path).unwrap();
    std::fs::remove_file(path).unwrap();
    security
}

#[test]
fn passwords_open_the_door_or_not() {
    let rig = Rig::new(with_password("door"));
    let mut session = rig.session();
    session.output().clear();
    session.receive(b"RFB 003.008\n\x02").unwrap();
    assert_eq!(std::mem::take(session.output()), [&[1, 2][..], &[3; 16]].concat());
    session.receive(&response(b"secret", &[3; 16])).unwrap();
    assert_eq!(std::mem::take(session.output()), [0; 4]);
    session.receive(b"\x01").unwrap();
    assert!(session.is_up());
    let mut wrong = rig.session();
    wrong.receive(b"RFB 003.008\n\x02").unwrap();
    wrong.output().clear();
    assert!(wrong.receive(&response(b"Secret", &[3; 16])).is_err());
    assert_eq!(*wrong.output(), [&[0, 0, 0, 1, 0, 0, 0, 14][..], b"wrong password"].concat());
    assert!(rig.session().receive(b"RFB 003.008\n\x01").is_err(), "without a password");
}

#[test]
fn what_is_shown_arrives() {
    for encodings in [&[][..], &[16]] {
        let rig = Rig::new(Security::default());
        let canvas = rig.show(100, 70, false);
        let mut session = rig.up(encodings);
        let mut painter = Painter::new(100, 70);
        painter.paint(&ask(&mut session, false));
        assert!(painter.pixels == *canvas.0.lock().unwrap());
        // Nothing is new: nothing is sent until something is.
        assert!(ask(&mut session, true).is_empty());
        canvas.0.lock().unwrap()[(5 * 100 + 7) * 4] = 0xaa;
        rig.station.screen.changed([Rect { x: 7, y: 5, width: 1, height: 1 }].into_iter());
        session.update();
        let update = std::mem::take(session.output());
        assert!(update.len() < 40, "{} bytes for a pixel", update.len());
        painter.paint(&update);
        assert!(painter.pixels == *canvas.0.lock().unwrap());
    }
}

#[test]
fn large_updates_come_whole_in_parts() {
    for encodings in [&[][..], &[16]] {
        let rig = Rig::new(Security::default());
        let canvas = rig.show(1000, 800, true);
        let mut session = rig.up(encodings);
        session.receive(&request(false)).unwrap();
        session.update();
        assert!(session.has_rest() && session.output().len() < PART * 2);
        let mut update = std::mem::take(session.output());
        // It wants other pixels from the next update on.
        let mut format = vec![0, 0, 0, 0, 8, 8, 0, 1, 0, 7, 0, 7, 0, 3, 0, 3, 6, 0, 0, 0];
        session.receive(&format).unwrap();
        while session.has_rest() {
            session.update();
            update.append(session.output());
        }
        let mut painter = Painter::new(1000, 800);
        painter.paint(&update);
        for (got, shown) in painter.pixels.chunks(4).zip(canvas.0.lock().unwrap().chunks(4)) {
            assert_eq!(got[..3], shown[..3]);
        }
        if encodings.is_empty() {
            let next = ask(&mut session, false);
            assert_eq!(next.len(), 4 + 13 * 12 + 1000 * 800, "a byte for a pixel");
        }
        format[4] = 9;
        assert!(session.receive(&format).is_err());
    }
}

#[test]
fn clients_follow_the_size_or_see_a_part() {
    let rig = Rig::new(Security::default());
    rig.show(100, 70, false);
    for (encodings, told) in [(&[-223][..], vec![-223]), (&[-223, -308], vec![-308, -308])] {
        rig.show(100, 70, false);
        let mut session = rig.up(encodings);
        let mut painter = Painter::new(100, 70);
        painter.paint(&ask(&mut session, false));
        painter.paint(&ask(&mut session, false));
        let canvas = rig.show(40, 90, false);
        painter.paint(&ask(&mut session, true));
        assert_eq!(painter.size, (40, 90));
        painter.paint(&ask(&mut session, true));
        assert!(painter.pixels == *canvas.0.lock().unwrap());
        assert_eq!(painter.told, told);
    }
    // One that knows nothing of sizes: 40 of its 100 columns, and black.
    rig.show(100, 70, false);
    let mut session = rig.up(&[16]);
    let mut painter = Painter::new(100, 70);
    rig.show(40, 90, false);
    painter.paint(&ask(&mut session, true));
    painter.paint(&ask(&mut session, false));
    assert_eq!((painter.pixels[(69 * 100 + 39) * 4], painter.pixels[(69 * 100 + 40) * 4]), (69, 0));
    // A client cannot choose.
    let mut session = rig.up(&[-308]);
    session.receive(&[&[251, 0, 1, 0, 1, 0, 1, 0][..], &[0; 16]].concat()).unwrap();
    assert_eq!(ask(&mut session, true)[4..16], [0, 1, 0, 1, 0, 40, 0, 90, 0xff, 0xff, 0xfe, 0xcc]);
}

#[test]
fn keys_and_the_pointer_arrive() {
    let rig = Rig::new(Security::default());
    rig.show(101, 51, false);
    let mut session = rig.up(&[-258]);
    assert_eq!(ask(&mut session, true)[12..16], (-258_i32).to_be_bytes());
    session.receive(&[4, 1, 0, 0, 0, 0, 0xff, 0x0d, 4, 0, 0, 0, 0, 0, 0xff, 0x0d]).unwrap();
    session.receive(&[255, 0, 0, 1, 0, 0, 0, 0x7a, 0, 0, 0, 0x15]).unwrap();
    for point in
        [[5, 1, 0, 0, 0, 0], [5, 9, 0, 100, 0, 25], [5, 9, 0, 100, 0, 50], [5, 20, 0xff, 0xff, 0xff, 0xff]]
    {
        session.receive(&point).unwrap();
    }
    let points: Vec<_> = rig.inputs.points.lock().unwrap().iter().map(|p| (p.x, p.y, p.wheel)).collect();
    assert_eq!(points, [(0, 0, 0), (0x7fff, 0x3fff, 1), (0x7fff, 0x7fff, 0), (0x7fff, 0x7fff, -1)]);
    let last = rig.inputs.points.lock().unwrap()[3].buttons;
    assert_eq!((last.left, last.middle, last.right), (false, false, true));
    drop(session);
    let keys: Vec<_> = rig.inputs.keys.lock().unwrap().iter().map(|(k, down)| (k.code, *down)).collect();
    assert_eq!(keys, [(0x1c, true), (0x1c, false), (0x15, true), (0x15, false)], "what is held is let go");
}

#[test]
fn a_device_that_tells_nothing_is_looked_at() {
    let rig = Rig::new(Security::default());
    let canvas = rig.show(100, 70, false);
    let mode = Mode::new(100, 70, 400, 0, 28000).unwrap();
    rig.station.screen.show(mode, Arc::clone(&canvas) as _);
    let mut session = rig.up(&[16]);
    ask(&mut session, false);
    session.look();
    ask(&mut session, false);
    session.receive(&request(true)).unwrap();
    assert!(session.has_to_look());
    canvas.0.lock().unwrap()[65 * 400] = 0xaa;
    session.look();
    session.update();
    assert_eq!(session.output()[4..12], [0, 0, 0, 65, 0, 100, 0, 1]);
}

/// A client on a socket, up to where messages begin.
fn connect(path: &std::path::Path) -> UnixStream {
    let mut client = UnixStream::connect(path).unwrap();
    client.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    client.write_all(b"RFB 003.008\n\x01\x01").unwrap();
    client.read_exact(&mut [0; 12 + 6 + 24 + 5]).unwrap();
    client
}

#[test]
fn a_client_that_does_not_read_holds_up_nobody() {
    let path = std::env::temp_dir().join(format!("vireo-vnc-{}-slow", std::process::id()));
    let rig = Rig::new(Security::default());
    let canvas = rig.show(1000, 800, true);
    let listener = Listener::Unix(UnixListener::bind(&path).unwrap());
    let server = VncServer::start(listener, Security::default(), rig.station.clone()).unwrap();
    let mut slow = connect(&path);
    let mut client = connect(&path);
    std::fs::remove_file(&path).unwrap();
    slow.write_all(&request(false)).unwrap();
    for _ in 0..3 {
        client.write_all(&request(false)).unwrap();
        let mut update = vec![0; 4 + 13 * 12 + canvas.0.lock().unwrap().len()];
        client.read_exact(&mut update).unwrap();
        let mut painter = Painter::new(1000, 800);
        painter.paint(&update);
        assert!(painter.pixels == *canvas.0.lock().unwrap());
        rig.station.screen.changed([Size { width: 1000, height: 800 }.all()].into_iter());
    }
    // The end closes both, also the one that reads nothing.
    drop(server);
    assert_eq!(client.read(&mut [0]).unwrap(), 0);
}

#[test]
fn who_has_no_password_keeps_nobody_out_who_has() {
    let path = std::env::temp_dir().join(format!("vireo-vnc-{}-full", std::process::id()));
    let rig = Rig::new(Security::default());
    let listener = Listener::Unix(UnixListener::bind(&path).unwrap());
    let _server = VncServer::start(listener, with_password("full-door"), rig.station.clone()).unwrap();
    let knock = || {
        let mut client = UnixStream::connect(&path).unwrap();
        client.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        client.read_exact(&mut [0; 12]).map(|()| client)
    };
    let enter = || {
        let mut client = knock().expect("there is a place");
        let mut challenge = [0; 2 + 16];
        client.write_all(b"RFB 003.008\n\x02").unwrap();
        client.read_exact(&mut challenge).unwrap();
        client.write_all(&response(b"secret", challenge.last_chunk().unwrap())).unwrap();
        client.write_all(b"\x01").unwrap();
        client.read_exact(&mut [0; 4 + 24 + 5]).unwrap();
        client
    };
    let mut idle: Vec<_> = (0..CLIENTS_MOST).map(|_| knock().unwrap()).collect();
    let mut inside: Vec<_> = vec![enter()];
    assert_eq!(idle[0].read(&mut [0]).unwrap(), 0, "the oldest has gone");
    idle[1].write_all(b"RFB 003.008\n").unwrap();
    idle[1].read_exact(&mut [0; 2]).expect("the next one has not");
    inside.extend((1..CLIENTS_MOST).map(|_| enter()));
    for client in &mut idle {
        while client.read(&mut [0]).unwrap() > 0 {}
    }
    // Those inside stay: one more is closed.
    assert!(knock().is_err());
    for client in &mut inside {
        client.write_all(&request(false)).unwrap();
        client.read_exact(&mut [0; 4]).expect("it is served");
    }
    // When one has gone, there is a place again.
    drop(inside.pop());
    let again = (0..500).any(|_| {
        std::thread::sleep(Duration::from_millis(20));
        knock().is_ok()
    });
    assert!(again);
    enter();
    std::fs::remove_file(&path).unwrap();
}

#[test]
fn tls_carries_it_all() {
    let folder = std::env::temp_dir().join(format!("vireo-vnc-{}-tls", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let made = rcgen::generate_simple_self_signed(vec!["localhost".into()]).unwrap();
    let (certificate, key) = (folder.join("c.pem"), folder.join("k.pem"));
    std::fs::write(&certificate, made.cert.pem()).unwrap();
    std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    let security = with_password("tls-door").with_certificate(&certificate, &key).unwrap();
    let path = folder.join("s");
    let listener = Listener::Unix(UnixListener::bind(&path).unwrap());
    let rig = Rig::new(Security::default());
    let canvas = rig.show(1000, 800, true);
    let _server = VncServer::start(listener, security, rig.station.clone()).unwrap();
    let mut socket = UnixStream::connect(&path).unwrap();
    std::fs::remove_dir_all(&folder).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    socket.write_all(b"RFB 003.008\n\x13\x00\x02\x00\x00\x01\x05").unwrap();
    let mut said = [0; 12 + 2 + 2 + 6 + 1];
    socket.read_exact(&mut said).unwrap();
    assert_eq!(said[12..], [1, 19, 0, 2, 0, 1, 0, 0, 1, 5, 1]);
    let mut roots = rustls::RootCertStore::empty();
    roots.add(made.cert.der().clone()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config =
        rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let config = config.with_root_certificates(roots).with_no_client_auth();
    let tls = rustls::ClientConnection::new(Arc::new(config), "localhost".try_into().unwrap()).unwrap();
    let mut client = rustls::StreamOwned::new(tls, socket);
    let mut challenge = [0; 16];
    client.read_exact(&mut challenge).unwrap();
    client.write_all(&response(b"secret", &challenge)).unwrap();
    client.write_all(b"\x01").unwrap();
    client.read_exact(&mut [0; 4 + 24 + 5]).unwrap();
    client.write_all(&request(false)).unwrap();
    let mut update = vec![0; 4 + 13 * 12 + canvas.0.lock().unwrap().len()];
    client.read_exact(&mut update).unwrap();
    let mut painter = Painter::new(1000, 800);
    painter.paint(&update);
    assert!(painter.pixels == *canvas.0.lock().unwrap());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]
    #[test]
    fn no_client_does_harm(
        up in any::<bool>(), parts in prop::collection::vec((0_usize..9, prop::collection::vec(any::<u8>(), 0..40)), 1..40)
    ) {
        let rig = Rig::new(Security::default());
        rig.show(90, 70, true);
        let mut session = if up { rig.up(&[16]) } else { rig.session() };
        for (kind, part) in parts {
            let head: &[u8] = [&[0, 0, 0, 0, 32, 24, 0, 1][..], &[2, 0, 0, 3], &[3, 0], &[4], &[5], &[6], &[251], &[255, 0], &b"RFB 003.008\n"[..]][kind];
            if session.receive(&[head, &part].concat()).is_err() {
                break;
            }
            session.update();
            session.look();
            if part.len() % 3 == 0 {
                session.output().clear();
            }
        }
    }
}
