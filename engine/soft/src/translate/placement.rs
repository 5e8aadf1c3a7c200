//! All translations of a vCPU: by physical page, and by the linear addresses that the page is used at.
//!
//! A *placement* is a physical page of user or kernel code at a linear address, with all its translations. When the page
//! turns up at another address, as that of a library does in each new process, a placement that this address space has not
//! used is moved there, with all translations, and the jumps between them, in it.

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

/// See above.
struct Placement {
    home: Home,
    /// What its pages are told from others by, see [`crate::mmu::CodePages`]. Never given twice.
    id: u32,
    /// Generation of the view when it was looked up last.
    used: u64,
    code: Code,
}

/// Translations of a placement, by what [`Key::in_page`] gives.
pub type Code = Map<u64, Box<Translation>>;

/// All translations of a vCPU.
#[derive(Default)]
pub struct Placements {
    pages: Map<u32, Vec<Placement>>,
    /// Translations of an instruction that reaches into this page, from another.
    crossing: Map<u32, Vec<Key>>,
    next_id: u32,
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

    /// The id of a page that is used, in this generation of its view.
    pub fn id(&mut self, home: Home, generation: u64) -> u32 {
        if let Some(p) = self.placement_mut(home) {
            p.used = generation;
            return p.id;
        }
        self.next_id += 1;
        let new = Placement { home, id: self.next_id, used: generation, code: Code::default() };
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

    /// Has ids begin anew. There are no translations.
    pub fn start_over(&mut self) {
        *self = Self::default();
    }

    /// Takes all out. Ids go on.
    pub fn drain(&mut self) -> impl Iterator<Item = Box<Translation>> {
        self.crossing.clear();
        let pages = std::mem::take(&mut self.pages);
        pages.into_values().flatten().flat_map(|p| p.code.into_values())
    }

    /// Keys of the translations made from any of these granules of a page.
    pub fn made_from(&self, page: u32, granules: u64) -> Vec<Key> {
        let of_page =
            self.pages.get(&page).into_iter().flatten().flat_map(|p| p.code.values().map(|t| t.key()));
        let reaching = self.crossing.get(&page).into_iter().flatten().copied();
        let hit = |k: &Key| self.get(k).is_some_and(|t| t.is_of(page, granules));
        of_page.chain(reaching).filter(hit).collect()
    }

    /// A placement of the key's page elsewhere that has a translation of what the key is of, and that nobody uses in this
    /// generation of the view: the one that was not used for longest.
    pub fn movable_to(&self, key: &Key, generation: u64) -> Option<Home> {
        let to = key.home();
        if !to.user || !movable(to.linear) {
            return None;
        }
        let fits = |p: &&Placement| {
            p.home.user
                && p.home.linear != to.linear
                && p.used != generation
                && movable(p.home.linear)
                && p.code.contains_key(&key.in_page())
        };
        self.pages.get(&to.page)?.iter().filter(fits).min_by_key(|p| p.used).map(|p| p.home)
    }

    /// Takes a placement's id and its translations: first those that cannot be at another address, or are there already.
    pub fn take(&mut self, from: Home, to: Home) -> Option<(u32, Code, Code)> {
        let all = self.pages.get_mut(&from.page)?;
        let at = all.iter().position(|p| p.home == from)?;
        let Placement { id, mut code, .. } = all.swap_remove(at);
        let there = all.iter().find(|p| p.home == to).map(|p| &p.code);
        let stays = |in_page: &u64, t: &mut Box<Translation>| {
            t.relocations.is_none() || there.is_some_and(|c| c.contains_key(in_page))
        };
        let staying: Code = code.extract_if(stays).collect();
        staying.values().for_each(|t| self.forget_crossing(t));
        Some((id, staying, code))
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
