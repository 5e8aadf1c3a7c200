//! All translations of a vCPU: by physical page, and by the linear addresses that the page is used at.
//!
//! A *placement* is a physical page of code at a linear address, with all its translations. When the page turns up at another
//! address, as that of a library does in each new process, a placement that this address space has not used is moved
//! there, with all translations, and the jumps between them, in it.

use super::relocation::movable;
use super::{Key, Map, Translation};
use crate::mmu::View;

/// A physical page at a linear address.
struct Placement {
    linear: u64,
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
    fn page(&self) -> u32 {
        (self.gpa >> 12) as u32
    }

    /// Address of its page.
    fn linear(&self) -> u64 {
        self.rip & !0xfff
    }

    /// All but the page and its address.
    fn in_page(&self) -> u64 {
        self.gpa & 0xfff | (self.view as u64) << 12 | self.world.bits() << 16
    }
}

impl Placements {
    fn placement(&self, page: u32, linear: u64) -> Option<&Placement> {
        self.pages.get(&page)?.iter().find(|p| p.linear == linear)
    }

    fn placement_mut(&mut self, page: u32, linear: u64) -> Option<&mut Placement> {
        self.pages.get_mut(&page)?.iter_mut().find(|p| p.linear == linear)
    }

    /// The translation of a key.
    pub fn get(&self, key: &Key) -> Option<&Translation> {
        self.placement(key.page(), key.linear())?.code.get(&key.in_page()).map(|t| &**t)
    }

    /// The same, to be changed.
    pub fn get_mut(&mut self, key: &Key) -> Option<&mut Translation> {
        let code = &mut self.placement_mut(key.page(), key.linear())?.code;
        code.get_mut(&key.in_page()).map(|t| &mut **t)
    }

    /// The id of a page that is used at a linear address, in this generation of its view.
    pub fn id(&mut self, page: u32, linear: u64, generation: u64) -> u32 {
        let linear = linear & !0xfff;
        if let Some(p) = self.placement_mut(page, linear) {
            p.used = generation;
            return p.id;
        }
        self.next_id += 1;
        let new = Placement { linear, id: self.next_id, used: generation, code: Code::default() };
        self.pages.entry(page).or_default().push(new);
        self.next_id
    }

    /// Whether ids run out, and everything has to begin anew.
    pub fn is_full(&self) -> bool {
        self.next_id > u32::MAX / 2
    }

    /// Adds a translation; there is none of this key.
    pub fn insert(&mut self, key: Key, translation: Box<Translation>) {
        if let Some((second, _)) = translation.pages[1] {
            self.crossing.entry(second).or_default().push(key);
        }
        if let Some(p) = self.placement_mut(key.page(), key.linear()) {
            p.code.insert(key.in_page(), translation);
        }
    }

    /// Takes a translation out.
    pub fn remove(&mut self, key: &Key) -> Option<Box<Translation>> {
        let translation = self.placement_mut(key.page(), key.linear())?.code.remove(&key.in_page())?;
        self.forget_crossing(&translation);
        if !self.crossing.contains_key(&key.page()) {
            self.drop_empty(key.page(), key.linear());
        }
        Some(translation)
    }

    /// A translation was taken out.
    fn forget_crossing(&mut self, t: &Translation) {
        let Some((second, _)) = t.pages[1] else { return };
        let Some(keys) = self.crossing.get_mut(&second) else { return };
        keys.retain(|k| *k != t.key);
        if keys.is_empty() {
            self.crossing.remove(&second);
        }
    }

    /// Drops a placement if it has no translations: nobody needs its id.
    fn drop_empty(&mut self, page: u32, linear: u64) {
        let Some(all) = self.pages.get_mut(&page) else { return };
        all.retain(|p| p.linear != linear || !p.code.is_empty());
        if all.is_empty() {
            self.pages.remove(&page);
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
            self.pages.get(&page).into_iter().flatten().flat_map(|p| p.code.values().map(|t| t.key));
        let reaching = self.crossing.get(&page).into_iter().flatten().copied();
        let hit = |k: &Key| self.get(k).is_some_and(|t| t.is_of(page, granules));
        of_page.chain(reaching).filter(hit).collect()
    }

    /// Where the page of a key is also known, with a translation of what the key is of, and can be moved from: where it
    /// was not used for longest.
    pub fn movable_to(&self, key: &Key, generation: u64) -> Option<u64> {
        if key.view != View::User || !movable(key.rip) {
            return None;
        }
        let all = self.pages.get(&key.page())?;
        let fits = |p: &&Placement| {
            p.linear != key.linear()
                && p.used != generation
                && movable(p.linear)
                && p.code.contains_key(&key.in_page())
        };
        all.iter().filter(fits).min_by_key(|p| p.used).map(|p| p.linear)
    }

    /// Takes the translations of a placement, and its id. First those that cannot be at another address, or are there already.
    pub fn take(&mut self, page: u32, from: u64, to: u64) -> Option<(u32, Code, Code)> {
        let all = self.pages.get_mut(&page)?;
        let at = all.iter().position(|p| p.linear == from)?;
        let Placement { id, mut code, .. } = all.swap_remove(at);
        let there = all.iter().find(|p| p.linear == to).map(|p| &p.code);
        let stays = |in_page: &u64, t: &mut Box<Translation>| {
            t.relocations.is_none() || there.is_some_and(|c| c.contains_key(in_page))
        };
        let staying: Code = code.extract_if(stays).collect();
        staying.values().for_each(|t| self.forget_crossing(t));
        Some((id, staying, code))
    }

    /// Adds translations that were taken to a placement, which is there.
    pub fn put(&mut self, page: u32, linear: u64, code: Code) {
        match self.placement_mut(page, linear) {
            Some(p) if p.code.is_empty() => p.code = code,
            Some(p) => p.code.extend(code),
            None => {}
        }
    }

    /// Keys of translations that reach from elsewhere into a page at a linear address.
    pub fn reaching_into(&self, page: u32, linear: u64) -> Vec<Key> {
        let keys = self.crossing.get(&page).into_iter().flatten();
        keys.filter(|k| k.next_page() == linear).copied().collect()
    }
}
