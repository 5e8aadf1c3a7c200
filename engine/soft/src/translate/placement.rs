//! All translations of a partition: by physical page, and by the linear addresses that the page is used at.
//!
//! A *placement* is a physical page of user or kernel code at a linear address, with all its translations. When the page
//! turns up at another address, as that of a library does in each new process, a placement that no vCPU uses now is moved
//! there, with all translations, and the jumps between them, in it.

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
    /// What its pages are told from others by, see [`crate::mmu::CodePages`]. Never given twice.
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

/// All translations of a partition.
#[derive(Default)]
pub struct Placements {
    pages: Map<u32, Vec<Placement>>,
    /// Translations of an instruction that reaches into this page, from another.
    crossing: Map<u32, Vec<Key>>,
    next_id: u32,
    /// [`User::times`] of each vCPU when it looked up user code last.
    now: Box<[u64]>,
}

impl Key {
    /// Where its page is.
    pub fn home(&self) -> Home {
        Home { page: (self.gpa >> 12) as u32, linear: self.rip & !0xfff, user: self.world.user() }
    }

    /// Where the next page is, if it is this one.
    pub fn next_home(&self, page: u32) -> Home {
        Home { page, linear: self.next_page(), user: self.world.user() }
    }

    /// All but the page and its address.
    fn in_page(&self) -> u64 {
        self.gpa & 0xfff | (self.view as u64) << 12 | self.world.bits() << 16
    }
}

impl Placements {
    /// None, for so many vCPUs.
    pub fn new(vcpus: u32) -> Self {
        Self { now: (0..vcpus).map(|_| 0).collect(), ..Self::default() }
    }

    /// Whether a vCPU other than `but` may know the id of a placement.
    fn is_used(&self, p: &Placement, but: Option<u32>) -> bool {
        p.users.iter().any(|u| Some(u.vcpu) != but && self.now[u.vcpu as usize] == u.times)
    }

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
    pub fn id(&mut self, home: Home, user: User) -> u32 {
        if home.user {
            self.now[user.vcpu as usize] = user.times;
        }
        if let Some(p) = self.placement_mut(home) {
            if home.user {
                p.use_by(user);
            }
            return p.id;
        }
        self.next_id += 1;
        let users = if home.user { vec![user] } else { Vec::new() };
        let new = Placement { home, id: self.next_id, users, code: Code::default() };
        self.pages.entry(home.page).or_default().push(new);
        self.next_id
    }

    /// Whether ids run out, and everything has to begin anew.
    pub fn is_full(&self) -> bool {
        self.next_id > u32::MAX / 2
    }

    /// Adds a translation; there is none of this key.
    pub fn insert(&mut self, translation: Box<Translation>) {
        let key = translation.key();
        if let Some((second, _)) = translation.pages[1] {
            self.crossing.entry(second).or_default().push(key);
        }
        if let Some(p) = self.placement_mut(key.home()) {
            p.code.insert(key.in_page(), translation);
        }
    }

    /// Takes a translation out.
    pub fn remove(&mut self, key: &Key) -> Option<Box<Translation>> {
        let translation = self.placement_mut(key.home())?.code.remove(&key.in_page())?;
        self.forget_crossing(&translation);
        self.drop_empty(key.home());
        Some(translation)
    }

    /// A translation was taken out.
    fn forget_crossing(&mut self, t: &Translation) {
        let Some((second, _)) = t.pages[1] else { return };
        let Some(keys) = self.crossing.get_mut(&second) else { return };
        keys.retain(|k| *k != t.key());
        if keys.is_empty() {
            self.crossing.remove(&second);
        }
    }

    /// Drops a placement if nobody needs its id: it has no translations, and none reaches into its page.
    fn drop_empty(&mut self, home: Home) {
        if self.crossing.contains_key(&home.page) {
            return;
        }
        let Some(all) = self.pages.get_mut(&home.page) else { return };
        all.retain(|p| p.home != home || !p.code.is_empty());
        if all.is_empty() {
            self.pages.remove(&home.page);
        }
    }

    /// Has ids begin anew. There are no translations, and each vCPU forgets the ids it knows before it asks for one.
    pub fn start_over(&mut self) {
        *self = Self::new(self.now.len() as u32);
    }

    /// Keys of the translations made from any of these granules of a page.
    pub fn made_from(&self, page: u32, granules: u64) -> Vec<Key> {
        let of_page =
            self.pages.get(&page).into_iter().flatten().flat_map(|p| p.code.values().map(|t| t.key()));
        let reaching = self.crossing.get(&page).into_iter().flatten().copied();
        let hit = |k: &Key| self.get(k).is_some_and(|t| t.is_of(page, granules));
        of_page.chain(reaching).filter(hit).collect()
    }

    /// A placement of the key's page elsewhere that has a translation of what the key is of, and that no vCPU uses. `user`
    /// is about to use it where the key is; if others do already, they might enter it half moved: then there is none.
    pub fn movable_to(&mut self, key: &Key, user: User) -> Option<Home> {
        let to = key.home();
        if !to.user || !movable(to.linear) {
            return None;
        }
        self.now[user.vcpu as usize] = user.times;
        let fits = |p: &&Placement| {
            p.home.user
                && p.home.linear != to.linear
                && movable(p.home.linear)
                && p.code.contains_key(&key.in_page())
                && !self.is_used(p, None)
        };
        let all = self.pages.get(&to.page)?;
        if all.iter().any(|p| p.home == to && self.is_used(p, Some(user.vcpu))) {
            return None;
        }
        all.iter().find(fits).map(|p| p.home)
    }

    /// Takes a placement's translations: first those that cannot be at another address, or are there already.
    pub fn take(&mut self, from: Home, to: Home) -> Option<(Code, Code)> {
        let all = self.pages.get_mut(&from.page)?;
        let at = all.iter().position(|p| p.home == from)?;
        let mut code = all.swap_remove(at).code;
        let there = all.iter().find(|p| p.home == to).map(|p| &p.code);
        let stays = |in_page: &u64, t: &mut Box<Translation>| {
            t.relocations.is_none() || there.is_some_and(|c| c.contains_key(in_page))
        };
        let staying: Code = code.extract_if(stays).collect();
        staying.values().for_each(|t| self.forget_crossing(t));
        Some((staying, code))
    }

    /// Adds translations that were taken to a placement, which is there.
    pub fn put(&mut self, home: Home, code: Code) {
        match self.placement_mut(home) {
            Some(p) if p.code.is_empty() => p.code = code,
            Some(p) => p.code.extend(code),
            None => {}
        }
    }

    /// Keys of translations that reach from elsewhere into a placement's page.
    pub fn reaching_into(&self, home: Home) -> Vec<Key> {
        let keys = self.crossing.get(&home.page).into_iter().flatten();
        keys.filter(|k| k.next_home(home.page) == home).copied().collect()
    }
}
