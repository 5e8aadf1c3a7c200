//! A guest's TCP, made by hand: it knows nothing of the one that is tested.

use std::collections::BTreeMap;

use super::*;

/// A guest that sends some bytes and gets some.
pub struct Guest {
    ports: (u16, u16),
    to: Ipv4Addr,
    seq: u32,
    /// What is to be sent, how much of it has arrived, how much is under way.
    data: Vec<u8>,
    arrived: usize,
    under_way: usize,
    fin_sent: bool,
    pub fin_arrived: bool,
    window: usize,
    shift: u8,
    /// What has come in order, and what waits for what is before it.
    pub got: Vec<u8>,
    later: BTreeMap<usize, Vec<u8>>,
    first: u32,
    read: usize,
    room: usize,
    end: Option<usize>,
    pub ended: bool,
    pub reset: bool,
    state: u8,
    last: u64,
    patience: u64,
    duplicates: u32,
    update: bool,
}

const MSS: usize = 1460;
const SHIFT: u8 = 5;

impl Guest {
    /// One that will call; it takes `room` bytes before they are read.
    pub fn new(data: Vec<u8>, room: usize) -> Self {
        Self {
            ports: (1000, 80),
            to: OUTSIDE,
            // Numbers wrap in the midst of it.
            seq: 0xffff_f000,
            data,
            arrived: 0,
            under_way: 0,
            fin_sent: false,
            fin_arrived: false,
            window: 0,
            shift: 0,
            got: Vec::new(),
            later: BTreeMap::new(),
            first: 0,
            read: 0,
            room,
            end: None,
            ended: false,
            reset: false,
            state: 0,
            last: 0,
            patience: 300 * MILLISECOND,
            duplicates: 0,
            update: false,
        }
    }

    /// One that is called, and listens.
    pub fn listening(data: Vec<u8>, room: usize, port: u16) -> Self {
        Self { ports: (port, 0), state: 9, ..Self::new(data, room) }
    }

    fn segment(&self, flags: u8, at: usize, payload: &[u8]) -> Seg {
        let free = (self.room - (self.got.len() - self.read).min(self.room))
            >> if flags & SYN == 0 { SHIFT } else { 0 };
        let fin = u32::from(self.ended);
        Seg {
            ports: self.ports,
            seq: self.seq.wrapping_add(1 + at as u32),
            ack: self.first.wrapping_add(self.got.len() as u32 + fin),
            flags: flags | if self.state >= 2 { ACK } else { 0 },
            window: free.min(0xffff) as u16,
            options: if flags & SYN == 0 { vec![] } else { vec![2, 4, 5, 0xb4, 1, 3, 3, SHIFT] },
            payload: payload.to_vec(),
        }
    }

    /// The application reads.
    pub fn consume(&mut self, bytes: usize) {
        let before = self.got.len() - self.read >= self.room / 2;
        self.read = (self.read + bytes).min(self.got.len());
        self.update |= before && self.got.len() - self.read < self.room / 2;
    }

    /// What it sends now.
    pub fn poll(&mut self, now: u64) -> Vec<Vec<u8>> {
        let mut all = Vec::new();
        let late = now >= self.last + self.patience;
        match self.state {
            0 => {
                let mut syn = self.segment(SYN, 0, &[]);
                syn.seq = self.seq;
                all.push(syn);
                (self.state, self.last) = (1, now);
            }
            1 if late => self.state = 0,
            2 => {
                let waits = self.under_way > 0 || self.fin_sent && !self.fin_arrived;
                if late && (waits || self.arrived < self.data.len()) {
                    self.under_way = 0;
                    self.fin_sent = false;
                    self.last = now;
                    self.patience = (self.patience * 2).min(3 * SECOND);
                    if self.window == 0 && self.arrived < self.data.len() {
                        // One byte more than may be, to hear whether it may be now.
                        let byte = [self.data[self.arrived]];
                        all.push(self.segment(ACK, self.arrived, &byte));
                    }
                }
                while self.under_way < self.window && self.arrived + self.under_way < self.data.len() {
                    let from = self.arrived + self.under_way;
                    let count = MSS.min(self.window - self.under_way).min(self.data.len() - from);
                    all.push(self.segment(ACK, from, &self.data[from..from + count]));
                    self.under_way += count;
                }
                if self.arrived + self.under_way == self.data.len() && !self.fin_sent {
                    all.push(self.segment(ACK | FIN, self.data.len(), &[]));
                    self.fin_sent = true;
                }
                if std::mem::take(&mut self.update) && all.is_empty() {
                    all.push(self.segment(ACK, self.arrived + self.under_way, &[]));
                }
            }
            _ => {}
        }
        all.iter().map(|s| s.frame(self.to)).collect()
    }

    /// When it is to be polled, though nothing comes.
    pub fn due(&self) -> u64 {
        let waits = self.arrived < self.data.len() || self.fin_sent && !self.fin_arrived;
        match self.state {
            1 => self.last + self.patience,
            2 if waits => self.last + self.patience,
            _ => u64::MAX,
        }
    }

    /// A packet has come; what it answers.
    pub fn input(&mut self, now: u64, packet: &[u8]) -> Vec<Vec<u8>> {
        let Some(segment) = Seg::read(packet) else { return Vec::new() };
        if segment.flags & RST != 0 {
            self.reset = true;
            return Vec::new();
        }
        if segment.flags & SYN != 0 {
            return self.input_syn(now, &segment, packet);
        }
        if self.state == 10 {
            (self.state, self.last) = (2, now);
        }
        if self.state != 2 {
            return Vec::new();
        }
        self.input_ack(now, &segment);
        let length = segment.payload.len() + usize::from(segment.flags & FIN);
        if length == 0 {
            // One before what was acknowledged asks whether somebody is there.
            let probe =
                (segment.seq.wrapping_sub(self.first) as i32) < self.got.len() as i32 + i32::from(self.ended);
            return if probe { vec![self.answer()] } else { Vec::new() };
        }
        self.input_payload(&segment);
        vec![self.answer()]
    }

    fn answer(&self) -> Vec<u8> {
        let fin = usize::from(self.fin_sent && self.arrived + self.under_way == self.data.len());
        self.segment(ACK, self.arrived + self.under_way + fin, &[]).frame(self.to)
    }

    fn input_syn(&mut self, now: u64, segment: &Seg, packet: &[u8]) -> Vec<Vec<u8>> {
        let called = segment.flags & ACK == 0;
        if self.state == 2 && called || called != (self.state >= 9) && self.state != 2 {
            return Vec::new();
        }
        self.shift = if segment.options.len() == 8 { segment.options[7] } else { 0 };
        self.first = segment.seq.wrapping_add(1);
        self.window = segment.window.into();
        if called {
            let (source, ..) = ipv4(packet);
            let IpAddr::V4(source) = source else { unreachable!() };
            (self.to, self.ports.1, self.state) = (source, segment.ports.0, 9);
            let mut answer = self.segment(SYN | ACK, 0, &[]);
            answer.seq = self.seq;
            self.state = 10;
            return vec![answer.frame(self.to)];
        }
        (self.state, self.last) = (2, now);
        vec![self.answer()]
    }

    fn input_ack(&mut self, now: u64, segment: &Seg) {
        let ack = segment.ack.wrapping_sub(self.seq.wrapping_add(1)) as i32;
        if ack < 0 {
            return;
        }
        let ack = ack as usize;
        assert!(ack <= self.data.len() + 1, "it acknowledges what was never sent");
        let window = usize::from(segment.window) << self.shift;
        if ack > self.data.len() {
            self.fin_arrived = true;
        }
        let bytes = ack.min(self.data.len());
        if bytes > self.arrived || self.fin_arrived && self.last < now {
            let more = bytes.saturating_sub(self.arrived);
            self.arrived = self.arrived.max(bytes);
            self.under_way = self.under_way.saturating_sub(more);
            (self.last, self.patience, self.duplicates) = (now, 300 * MILLISECOND, 0);
        } else if bytes == self.arrived
            && segment.payload.is_empty()
            && self.under_way > 0
            && window == self.window
        {
            self.duplicates += 1;
            if self.duplicates == 3 {
                self.under_way = 0;
                self.fin_sent = false;
            }
        }
        self.window = window;
    }

    fn input_payload(&mut self, segment: &Seg) {
        let at = segment.seq.wrapping_sub(self.first) as i32;
        let fin = segment.flags & FIN != 0;
        if fin {
            self.end = Some((at as usize).wrapping_add(segment.payload.len()));
        }
        let skip = (self.got.len() as i32 - at).max(0) as usize;
        if let Some(new) = segment.payload.get(skip..)
            && !new.is_empty()
        {
            let at = at.max(self.got.len() as i32) as usize;
            let beyond = (at + new.len()).saturating_sub(self.read + self.room + (1 << SHIFT));
            assert!(beyond == 0, "{beyond} bytes more than were asked for");
            self.later.insert(at, new.to_vec());
        }
        while let Some((at, bytes)) = self.later.pop_first() {
            if at > self.got.len() {
                self.later.insert(at, bytes);
                break;
            }
            let skip = self.got.len() - at;
            self.got.extend(bytes.get(skip..).unwrap_or_default());
        }
        self.ended |= self.end == Some(self.got.len());
    }
}
