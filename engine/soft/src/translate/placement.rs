//! Translations by physical page, and by the linear addresses that the page is used at.
//!
//! A *placement* is a physical page of user or kernel code at a linear address, with all its translations. When the page
//! turns up at another address, as that of a library does in each new process, a placement that no vCPU uses now is moved
//! there, with all translations, and the jumps between them, in it.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::*};

use super::relocation::movable;
use super::{Key, Map, Translation};

/// What a placement is of. Each view of code has ids and generations of its own, so no placement is in both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Home {
    /// The physical page.
    pub page: u32,
    /// Its linear address.
    pub linear: u64,
    /// It is the user's code there.
    pub user: bool,
}

/// A vCPU that looks up code, and how often it had forgotten all user pages by then
/// ([`crate::mmu::CodePages::times_user_forgotten`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct User {
    /// Its index.
    pub vcpu: u32,
    /// See above.
    pub times: u64,
}

/// See above.
struct Placement {
    home: Home,
    /// What it is told from others by, those that were at the same place before included: see [`crate::mmu::CodePages`]. Not
    /// given twice in an era ([`super::SharedCode::era`]).
    id: u32,
    /// Who has looked it up; the last of each vCPU. Only of user code.
    users: Vec<User>,
    code: Code,
}

impl Placement {
    fn use_by(&mut self, user: User) {
        match self.users.iter_mut().find(|u| u.vcpu == user.vcpu) {
            Some(u) => *u = user,
            None => self.users.push(user),
        }
    }
}

/// Translations of a placement, by what [`Key::in_page`] gives.
pub type Code = Map<u64, Box<Translation>>;

/// The translations of some of a partition's pages.
#[derive(Default)]
pub struct Placements {
    pages: Map<u32, Vec<Placement>>,
    /// Placements made since those without translations were dropped, and how many may be.
    made: usize,
    most_made: usize,
}

/// Placements that are made before those without translations are dropped, at least: pages are looked up in vain, too.
const MADE: usize = 256;

/// What all [`Placements`] of a partition need.
pub struct Users {
    /// [`User::times`] of each vCPU when it looked up user code last.
    now: Box<[AtomicU64]>,
    /// The last id that was given.
    last_id: AtomicU32,
}

impl Users {
    /// For so many vCPUs.
    pub fn new(vcpus: u32) -> Self {
        Self { now: (0..vcpus).map(|_| AtomicU64::new(0)).collect(), last_id: AtomicU32::new(0) }
    }

    /// A vCPU knows no ids from before this any more.
    fn note(&self, user: User) {
        self.now[user.vcpu as usize].store(user.times, SeqCst);
    }

    /// Whether a vCPU may know the id of a placement.
    fn know(&self, p: &Placement) -> bool {
        p.users.iter().any(|u| self.now[u.vcpu as usize].load(SeqCst) == u.times)
    }

    /// Whether ids run out, and everything has to begin anew.
    pub fn is_full(&self) -> bool {
        self.last_id.load(Relaxed) > u32::MAX / 2
    }

    /// As if nearly all ids had been given.
    #[cfg(test)]
    pub fn use_up(&self) {
        self.last_id.store(u32::MAX / 2 + 1, Relaxed);
    }

    /// Has ids begin anew. There are no placements, and each vCPU forgets the ids it knows before it asks for one.
    pub fn start_over(&self) {
        self.last_id.store(0, Relaxed);
    }
}

impl Key {
    /// The physical page that it begins in.
    pub fn page(&self) -> u32 {
        (self.gpa >> 12) as u32
    }

    /// Where its page is.
    pub fn home(&self) -> Home {
        Home { page: self.page(), linear: self.rip & !0xfff, user: self.world.user() }
    }

    /// Where the next page is, if it is this one.
    pub fn next_home(&self, page: u32) -> Home {
        Home { page, linear: self.next_page(), user: self.world.user() }
    }

    /// All but the page and its address.
    pub fn in_page(&self) -> u64 {
        self.gpa & 0xfff | (self.view as u64) << 12 | self.world.bits() << 16
    }
}

impl Placements {
    fn placement(&self, home: Home) -> Option<&Placement> {
        self.pages.get(&home.page)?.iter().find(|p| p.home == home)
    }

    fn placement_mut(&mut self, home: Home) -> Option<&mut Placement> {
        self.pages.get_mut(&home.page)?.iter_mut().find(|p| p.home == home)
    }

    /// The translation of a key.
    pub fn get(&self, key: &Key) -> Option<&Translation> {
        self.placement(key.home())?.code.get(&key.in_page()).map(|t| &**t)
    }

    /// The same, to be changed.
    pub fn get_mut(&mut self, key: &Key) -> Option<&mut Translation> {
        let code = &mut self.placement_mut(key.home())?.code;
        code.get_mut(&key.in_page()).map(|t| &mut **t)
    }

    /// The id of a page that a vCPU is about to know.
    pub fn id(&mut self, home: Home, user: User, users: &Users) -> u32 {
        if home.user {
            users.note(user);
        }
        if let Some(p) = self.placement_mut(home) {
            if home.user {
                p.use_by(user);
            }
            return p.id;
        }
        if self.made >= self.most_made.max(MADE) {
            self.drop_empty();
            self.most_made = 2 * self.pages.values().map(Vec::len).sum::<usize>();
        }
        self.made += 1;
        let id = users.last_id.fetch_add(1, Relaxed) + 1;
        let by = if home.user { vec![user] } else { Vec::new() };
        let new = Placement { home, id, users: by, code: Code::default() };
        self.pages.entry(home.page).or_default().push(new);
        id
    }

    /// Adds a translation; there is none of this key, but a placement for it.
    pub fn insert(&mut self, translation: Box<Translation>) {
        let key = translation.key();
        if let Some(p) = self.placement_mut(key.home()) {
            p.code.insert(key.in_page(), translation);
        }
    }

    /// Takes a translation out.
    pub fn remove(&mut self, key: &Key) -> Option<Box<Translation>> {
        let p = self.placement_mut(key.home())?;
        let translation = p.code.remove(&key.in_page())?;
        if p.code.is_empty() {
            self.forget(key.home());
        }
        Some(translation)
    }

    /// Drops a placement, which has no translations.
    pub fn forget(&mut self, home: Home) {
        let Some(all) = self.pages.get_mut(&home.page) else { return };
        all.retain(|p| p.home != home);
        if all.is_empty() {
            self.pages.remove(&home.page);
        }
    }

    /// Drops all placements. There are no translations.
    pub fn clear(&mut self) {
        self.pages.clear();
    }

    /// Drops placements without translations. What was translated with their ids is found to be out of date.
    pub fn drop_empty(&mut self) {
        self.pages.retain(|_, all| {
            all.retain(|p| !p.code.is_empty());
            !all.is_empty()
        });
        self.made = 0;
    }

    /// All translations.
    pub fn all(&mut self) -> impl Iterator<Item = &mut Translation> {
        self.pages.values_mut().flatten().flat_map(|p| p.code.values_mut().map(|t| &mut **t))
    }

    /// The id of a page, if it has one.
    pub fn id_of(&self, home: Home) -> Option<u32> {
        self.placement(home).map(|p| p.id)
    }

    /// Keys of the translations that begin in a page and were made from any of these granules of it.
    pub fn made_from(&self, page: u32, granules: u64) -> Vec<Key> {
        let all = self.pages.get(&page).into_iter().flatten().flat_map(|p| p.code.values());
        all.filter(|t| t.is_of(page, granules)).map(|t| t.key()).collect()
    }

    /// Whether what a key is of has been translated for another address.
    pub fn has_elsewhere(&self, key: &Key) -> bool {
        let all = self.pages.get(&key.page()).into_iter().flatten();
        let (user, in_page) = (key.world.user(), key.in_page());
        all.into_iter().any(|p| p.home.user == user && p.code.contains_key(&in_page))
    }

    /// The placement to be moved to where a key is: one with a translation of what the key is of that no vCPU uses, `user`
    /// included. There is none if any of the page's code has been translated for there: each process that runs at the
    /// same time needs a placement of its own, so two are not made one.
    pub fn movable_to(&self, key: &Key, user: User, users: &Users) -> Option<Home> {
        let to = key.home();
        // What is moved needs an id.
        if users.is_full()
            || !to.user
            || !movable(to.linear)
            || self.placement(to).is_some_and(|p| !p.code.is_empty())
        {
            return None;
        }
        users.note(user);
        let fits = |p: &&Placement| {
            p.home.user && movable(p.home.linear) && p.code.contains_key(&key.in_page()) && !users.know(p)
        };
        let all = self.pages.get(&to.page)?;
        all.iter().filter(fits).max_by_key(|p| p.code.len()).map(|p| p.home)
    }

    /// Takes a placement's translations: those that cannot be at another address, and the others.
    pub fn take(&mut self, from: Home) -> Option<(Code, Code)> {
        let mut code = std::mem::take(&mut self.placement_mut(from)?.code);
        self.forget(from);
        let staying: Code = code.extract_if(|_, t| t.relocations.is_none()).collect();
        Some((staying, code))
    }

    /// Adds translations that were taken to a placement, which is there and has none.
    pub fn put(&mut self, home: Home, code: Code) {
        if let Some(p) = self.placement_mut(home) {
            p.code = code;
        }
    }
}
