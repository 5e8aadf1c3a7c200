//! What is said to one client: bytes in, bytes out, and no socket.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::sync::Arc;

use vireo_screen::{
    Buttons, Compare, Damage, Key, Picture, PointerState, Rect, Size, Station, Typist, Viewer,
};

use crate::auth::CHALLENGE;
use crate::handshake::{GREETING, Handshake, HandshakeError, Step};
use crate::message::{Input, Message, MessageError};
use crate::pixel::Format;
use crate::security::Security;
use crate::zrle::{TILE, Zrle};

/// Bytes of an update after which the rest waits until the client has taken them.
pub const PART: usize = 1 << 20;

/// The machine's name, as viewers show it.
const NAME: &[u8] = b"Vireo";

/// Encodings, and what else a client says there that it understands.
mod encoding {
    pub const RAW: i32 = 0;
    pub const ZRLE: i32 = 16;
    pub const DESKTOP_SIZE: i32 = -223;
    pub const EXTENDED_DESKTOP_SIZE: i32 = -308;
    pub const EXTENDED_KEY: i32 = -258;
}

/// A session is over.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SessionError {
    /// In the handshake.
    #[error(transparent)]
    Handshake(#[from] HandshakeError),
    /// By what was no message.
    #[error(transparent)]
    Message(#[from] MessageError),
}

/// What a client understands.
#[derive(Clone, Copy, Default)]
struct Understood {
    zrle: bool,
    desktop_size: bool,
    extended_desktop_size: bool,
}

/// Why a client is told of the screen's size, in ExtendedDesktopSize: reason and status.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Resize {
    /// It changed, or the client does not know it yet.
    Server,
    /// The client wanted another one, which guests alone choose.
    Prohibited,
}

/// What of an update is to follow: the picture that it is of, and parts of it.
struct Rest {
    picture: Arc<Picture>,
    strips: VecDeque<Rect>,
    /// As it was begun, whatever the client wants by now.
    format: Format,
    zrle: bool,
}

/// A client.
pub struct Session {
    security: Arc<Security>,
    station: Station,
    handshake: Option<Handshake>,
    input: Input,
    output: Vec<u8>,
    viewer: Viewer,
    typist: Typist,
    format: Format,
    understood: Understood,
    zrle: Zrle,
    /// What is not sent yet of what has changed.
    damage: Damage,
    /// The size that the client knows.
    told: Size,
    resize: Option<Resize>,
    /// It wants an update.
    wanted: bool,
    /// The rest of an update that was begun.
    rest: Option<Rest>,
    /// It is to be told that it may send keys by number.
    tell_keys: bool,
    compare: Compare,
    mask: u8,
}

impl Session {
    /// A session that has not begun, of a client at an address (`None`: of a socket of this host). `wake` is called when there may be something to send, from any thread; `challenge` is random.
    pub fn new(
        security: &Arc<Security>,
        station: &Station,
        challenge: [u8; CHALLENGE],
        from: Option<IpAddr>,
        wake: Box<dyn Fn() + Send + Sync>,
    ) -> Self {
        Self {
            security: Arc::clone(security),
            station: station.clone(),
            handshake: Some(Handshake::new(challenge, from)),
            input: Input::default(),
            output: GREETING.to_vec(),
            viewer: station.screen.view(wake),
            typist: Typist::new(Arc::clone(&station.keyboard)),
            format: Format::NATIVE,
            understood: Understood::default(),
            zrle: Zrle::default(),
            damage: Damage::default(),
            told: station.screen.picture().size(),
            resize: None,
            wanted: false,
            rest: None,
            tell_keys: false,
            compare: Compare::default(),
            mask: 0,
        }
    }

    /// Bytes for the client; whoever sends them takes them out.
    pub fn output(&mut self) -> &mut Vec<u8> {
        &mut self.output
    }

    /// Whether the handshake is over.
    pub fn is_up(&self) -> bool {
        self.handshake.is_none()
    }

    /// Takes bytes of the client. `true`: TLS begins after what is to be sent; the bytes that belong to it are given back by
    /// [`Self::take_input`].
    ///
    /// # Errors
    /// The session is over, after what is to be sent.
    pub fn receive(&mut self, bytes: &[u8]) -> Result<bool, SessionError> {
        self.input.push(bytes);
        if let Some(handshake) = &mut self.handshake {
            match handshake.step(&mut self.input, &self.security, &mut self.output)? {
                Step::More => return Ok(false),
                Step::StartTls => return Ok(true),
                Step::Done => self.begin(),
            }
        }
        while let Some(message) = self.input.message()? {
            self.serve(message);
        }
        Ok(false)
    }

    /// Bytes that came after those that started TLS.
    pub fn take_input(&mut self) -> Vec<u8> {
        self.input.take_all()
    }

    /// TLS stands.
    pub fn tls_stands(&mut self) {
        if let Some(handshake) = &mut self.handshake {
            handshake.tls_stands(&mut self.output);
        }
    }

    /// Says what the screen is.
    fn begin(&mut self) {
        self.handshake = None;
        self.told = self.station.screen.picture().size();
        for side in [self.told.width, self.told.height] {
            self.output.extend((side as u16).to_be_bytes());
        }
        self.output.extend(self.format.bytes());
        self.output.extend((NAME.len() as u32).to_be_bytes());
        self.output.extend(NAME);
    }

    fn serve(&mut self, message: Message) {
        match message {
            Message::SetPixelFormat(format) => self.format = format,
            Message::SetEncodings(known) => {
                let has = |e| known.contains(&e);
                self.understood = Understood {
                    zrle: has(encoding::ZRLE),
                    desktop_size: has(encoding::DESKTOP_SIZE),
                    extended_desktop_size: has(encoding::EXTENDED_DESKTOP_SIZE),
                };
                self.tell_keys |= has(encoding::EXTENDED_KEY);
                if self.understood.extended_desktop_size {
                    self.resize = Some(Resize::Server);
                }
            }
            Message::Update { incremental, area } => {
                self.wanted = true;
                if !incremental && let Some(area) = area.within(self.told) {
                    self.damage.add(area);
                }
            }
            Message::Key { down, symbol } => self.typist.symbol(symbol, down),
            Message::ExtendedKey { down, symbol, number } => match Key::from_qnum(number) {
                Some(key) => self.typist.key(key, down),
                None => self.typist.symbol(symbol, down),
            },
            Message::Pointer { mask, x, y } => self.point(mask, x, y),
            Message::SetDesktopSize => self.resize = Some(Resize::Prohibited),
            Message::CutText => {}
        }
    }

    fn point(&mut self, mask: u8, x: u16, y: u16) {
        let pressed = mask & !std::mem::replace(&mut self.mask, mask);
        self.station.pointer.report(PointerState {
            x: PointerState::place(x.into(), self.told.width),
            y: PointerState::place(y.into(), self.told.height),
            buttons: Buttons { left: mask & 1 != 0, middle: mask & 2 != 0, right: mask & 4 != 0 },
            wheel: i8::from(pressed & 8 != 0) - i8::from(pressed & 16 != 0),
        });
    }

    /// Where the device does not tell what has changed: looks for it.
    pub fn look(&mut self) {
        if self.is_up() && self.viewer.is_silent() {
            let changes = self.compare.changes(&self.station.screen.picture());
            changes.into_iter().for_each(|r| self.damage.add(r));
        }
    }

    /// Whether an update was begun, and not all of it is in the output yet.
    pub fn has_rest(&self) -> bool {
        self.rest.is_some()
    }

    /// Whether the device does not tell what has changed.
    pub fn has_to_look(&self) -> bool {
        self.is_up() && self.wanted && self.viewer.is_silent()
    }

    /// Puts an update into the output, or a part of one, if the client wants one and something is new. Only to be called when all
    /// that was in it has been sent.
    pub fn update(&mut self) {
        if !self.is_up() {
            return;
        }
        if let Some(rest) = self.rest.take() {
            return self.put_rest(rest);
        }
        let (picture, damage) = self.viewer.take();
        damage.into_iter().for_each(|r| self.damage.add(r));
        if !self.wanted {
            return;
        }
        let size = picture.size();
        let can_resize = self.understood.desktop_size || self.understood.extended_desktop_size;
        if size != self.told && can_resize {
            self.resize = Some(Resize::Server);
        }
        if self.resize.is_none() && self.damage.is_empty() && !self.tell_keys {
            return;
        }
        self.wanted = false;
        let header = self.output.len();
        self.output.extend([0; 4]);
        let mut count = 0;
        if std::mem::take(&mut self.tell_keys) {
            put_rect(Rect { x: 0, y: 0, width: 0, height: 0 }, encoding::EXTENDED_KEY, &mut self.output);
            count += 1;
        }
        let mut strips = VecDeque::new();
        match self.resize.take() {
            // All of it is new then, and follows when it is asked for.
            Some(why) => count += self.put_size(size, why),
            None => {
                let damage = self.damage.take();
                strips.extend(damage.into_iter().filter_map(|r| r.within(self.told)).flat_map(strips_of));
            }
        }
        // Rectangles are few, and 8192 lines are 128 strips.
        count += strips.len() as u16;
        self.output[header + 2..header + 4].copy_from_slice(&count.to_be_bytes());
        self.put_rest(Rest { picture, strips, format: self.format, zrle: self.understood.zrle });
    }

    /// Puts the rest of an update, or a part of that.
    fn put_rest(&mut self, mut rest: Rest) {
        while self.output.len() < PART {
            let Some(strip) = rest.strips.pop_front() else { return };
            self.put_pixels(&rest, strip);
        }
        self.rest = Some(rest);
    }

    fn put_size(&mut self, size: Size, why: Resize) -> u16 {
        let mut at = Rect { x: 0, y: 0, width: size.width, height: size.height };
        if self.understood.extended_desktop_size {
            if why == Resize::Prohibited {
                (at.x, at.y) = (1, 1);
            }
            put_rect(at, encoding::EXTENDED_DESKTOP_SIZE, &mut self.output);
            // One screen: number 0, all of it, no flags.
            self.output.extend([1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
            for side in [size.width, size.height] {
                self.output.extend((side as u16).to_be_bytes());
            }
            self.output.extend([0; 4]);
        } else if self.understood.desktop_size && size != self.told {
            put_rect(at, encoding::DESKTOP_SIZE, &mut self.output);
        } else {
            return 0;
        }
        if std::mem::replace(&mut self.told, size) != size {
            self.damage.take();
            self.damage.add(size.all());
        }
        1
    }

    fn put_pixels(&mut self, of: &Rest, rect: Rect) {
        let pixels = read_padded(&of.picture, rect);
        if of.zrle {
            put_rect(rect, encoding::ZRLE, &mut self.output);
            self.zrle.encode(&pixels, rect.width, &of.format, &mut self.output);
        } else {
            put_rect(rect, encoding::RAW, &mut self.output);
            of.format.raw(&pixels, &mut self.output);
        }
    }
}

/// A rectangle in parts of as many lines as tiles have.
fn strips_of(rect: Rect) -> impl Iterator<Item = Rect> {
    let starts = (rect.y..rect.bottom()).step_by(TILE as usize);
    starts.map(move |y| Rect { y, height: TILE.min(rect.bottom() - y), ..rect })
}

fn put_rect(rect: Rect, encoding: i32, to: &mut Vec<u8>) {
    for number in [rect.x, rect.y, rect.width, rect.height] {
        to.extend((number as u16).to_be_bytes());
    }
    to.extend(encoding.to_be_bytes());
}

/// Pixels of a rectangle that may reach beyond the picture: clients that cannot be told of another size see black there.
fn read_padded(picture: &Picture, rect: Rect) -> Vec<u8> {
    let mut pixels = Vec::new();
    if rect.within(picture.size()) == Some(rect) {
        picture.read(rect, &mut pixels);
        return pixels;
    }
    for y in rect.y..rect.bottom() {
        let end = pixels.len() + rect.width as usize * 4;
        picture.read(Rect { y, height: 1, ..rect }, &mut pixels);
        pixels.resize(end, 0);
    }
    pixels
}
