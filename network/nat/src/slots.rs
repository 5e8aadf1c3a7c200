//! Places for flows, with names that are not given twice; and when who is to be looked at.

use std::collections::BTreeSet;

use ahash::AHashMap as HashMap;
use vireo_frame::Mac;

use crate::host::Token;

/// Since some moment that stays the same, in nanoseconds.
pub type Nanos = u64;
pub const MILLISECOND: Nanos = 1_000_000;
pub const SECOND: Nanos = 1_000 * MILLISECOND;

/// What a token is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Table {
    Tcp = 1,
    Talk = 2,
    Forward = 3,
}

impl Token {
    fn new(table: Table, index: usize, turn: u32) -> Self {
        Self((table as u64) << 56 | (index as u64 & 0xff_ffff) << 32 | u64::from(turn))
    }

    pub fn table(self) -> Option<Table> {
        [Table::Tcp, Table::Talk, Table::Forward].into_iter().find(|t| *t as u64 == self.0 >> 56)
    }

    fn index(self) -> usize {
        (self.0 >> 32) as usize & 0xff_ffff
    }
}

/// Places, at most so many. A name of one that was left is not that of who comes after.
#[derive(Debug)]
pub struct Slots<T> {
    table: Table,
    most: usize,
    places: Vec<(u32, Option<T>)>,
    free: Vec<usize>,
}

impl<T> Slots<T> {
    pub fn new(table: Table, most: usize) -> Self {
        Self { table, most: most.min(0xff_ffff), places: Vec::new(), free: Vec::new() }
    }

    pub fn len(&self) -> usize {
        self.places.len() - self.free.len()
    }

    pub fn is_full(&self) -> bool {
        self.len() >= self.most
    }

    /// The name that the next one will have; `None`: there is no place.
    pub fn next(&mut self) -> Option<Token> {
        if self.is_full() {
            return None;
        }
        if self.free.is_empty() {
            self.free.push(self.places.len());
            self.places.push((0, None));
        }
        let index = *self.free.last()?;
        Some(Token::new(self.table, index, self.places[index].0))
    }

    /// Takes the next place, whose name was told.
    pub fn insert(&mut self, token: Token, item: T) {
        if self.free.last() == Some(&token.index()) {
            self.free.pop();
            self.places[token.index()].1 = Some(item);
        }
    }

    pub fn get_mut(&mut self, token: Token) -> Option<&mut T> {
        let (turn, item) = self.places.get_mut(token.index())?;
        item.as_mut().filter(|_| token == Token::new(self.table, token.index(), *turn))
    }

    pub fn remove(&mut self, token: Token) -> Option<T> {
        self.get_mut(token)?;
        let (turn, item) = &mut self.places[token.index()];
        *turn = turn.wrapping_add(1);
        self.free.push(token.index());
        item.take()
    }

    pub fn iter(&self) -> impl Iterator<Item = (Token, &T)> {
        let table = self.table;
        let name = move |(n, (turn, item)): (usize, &'_ (u32, Option<T>))| {
            item.as_ref().map(|_| Token::new(table, n, *turn))
        };
        self.places
            .iter()
            .enumerate()
            .filter_map(move |(n, place)| Some((name((n, place))?, place.1.as_ref()?)))
    }
}

/// Who has the flows that come by forwarded ports: all who use these together, as if they were one more guest.
pub const CALLERS: Mac = Mac([0; 6]);

/// How many flows each station has: of the flows that there may be, all have the same share, and what one does not need the others have.
#[derive(Debug, Default)]
pub struct Shares {
    all: usize,
    of: HashMap<Mac, usize>,
}

impl Shares {
    /// Of all stations.
    pub fn len(&self) -> usize {
        self.all
    }

    /// A station has one more.
    pub fn add(&mut self, station: Mac) {
        self.all += 1;
        *self.of.entry(station).or_default() += 1;
    }

    /// A station has one less.
    pub fn remove(&mut self, station: Mac) {
        if let Some(count) = self.of.get_mut(&station) {
            self.all -= 1;
            *count -= 1;
            if *count == 0 {
                self.of.remove(&station);
            }
        }
    }

    /// Who has to give up a flow so that a station may have one more: the one that has most, if that leaves it no less.
    pub fn gives_way(&self, to: Mac) -> Option<Mac> {
        let (station, count) = self.of.iter().max_by_key(|(_, count)| **count)?;
        let wants = self.of.get(&to).copied().unwrap_or(0) + 1;
        (*count > wants).then_some(*station)
    }
}

/// When who is to be looked at: each flow once. Each looks for itself whether it is time: one that was told may be early, never late.
#[derive(Debug, Default)]
pub struct Timers {
    all: BTreeSet<(Nanos, Token)>,
}

/// What a flow knows of its own timer.
#[derive(Clone, Copy, Debug, Default)]
pub struct Timer {
    /// When it is to be looked at.
    pub due: Option<Nanos>,
    /// When it will be.
    set: Option<Nanos>,
}

impl Timers {
    /// A flow is to be looked at when it says. Later than it will be already costs nothing.
    pub fn set(&mut self, token: Token, timer: &mut Timer, due: Option<Nanos>) {
        timer.due = due;
        if let Some(due) = due
            && timer.set.is_none_or(|set| due < set)
        {
            self.forget(token, timer);
            timer.set = Some(due);
            self.all.insert((due, token));
        }
    }

    /// A flow is not looked at any more: it is over.
    pub fn forget(&mut self, token: Token, timer: &mut Timer) {
        if let Some(set) = timer.set.take() {
            self.all.remove(&(set, token));
        }
    }

    /// Who is to be looked at now; whoever it is calls [`Self::is_due`].
    pub fn pop(&mut self, now: Nanos) -> Option<Token> {
        self.all.first().filter(|(due, _)| *due <= now)?;
        self.all.pop_first().map(|(_, token)| token)
    }

    /// Whether it is time for a flow that was told; else it will be told again.
    pub fn is_due(&mut self, token: Token, timer: &mut Timer, now: Nanos) -> bool {
        timer.set = None;
        match timer.due {
            Some(due) if due <= now => {
                timer.due = None;
                true
            }
            due => {
                self.set(token, timer, due);
                false
            }
        }
    }

    /// When the first is to be looked at.
    pub fn first(&self) -> Option<Nanos> {
        self.all.first().map(|(due, _)| *due)
    }

    /// How many wait to be looked at.
    pub fn len(&self) -> usize {
        self.all.len()
    }
}
