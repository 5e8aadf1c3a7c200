//! A table whose entries keep their number.

/// See the [module](self).
#[derive(Debug)]
pub struct Slab<T> {
    entries: Vec<Option<T>>,
    free: Vec<usize>,
}

impl<T> Default for Slab<T> {
    fn default() -> Self {
        Self { entries: Vec::new(), free: Vec::new() }
    }
}

impl<T> Slab<T> {
    /// Puts one in; gives its number.
    pub fn insert(&mut self, entry: T) -> usize {
        match self.free.pop() {
            Some(n) => {
                self.entries[n] = Some(entry);
                n
            }
            None => {
                self.entries.push(Some(entry));
                self.entries.len() - 1
            }
        }
    }

    /// The entry of a number, if there is one.
    pub fn get_mut(&mut self, n: usize) -> Option<&mut T> {
        self.entries.get_mut(n)?.as_mut()
    }

    /// The same, to be looked at.
    pub fn get(&self, n: usize) -> Option<&T> {
        self.entries.get(n)?.as_ref()
    }

    /// Takes one out; its number may come again.
    pub fn remove(&mut self, n: usize) -> Option<T> {
        let entry = self.entries.get_mut(n)?.take()?;
        self.free.push(n);
        Some(entry)
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.free.len() == self.entries.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_stay_and_come_again() {
        let mut slab = Slab::default();
        let (a, b) = (slab.insert('a'), slab.insert('b'));
        assert_eq!(slab.remove(a), Some('a'));
        assert_eq!((slab.remove(a), slab.get(b)), (None, Some(&'b')));
        assert_eq!(slab.insert('c'), a);
        assert_eq!((slab.get(a), slab.get(b), slab.is_empty()), (Some(&'c'), Some(&'b'), false));
        slab.remove(a);
        slab.remove(b);
        assert!(slab.is_empty());
    }
}
