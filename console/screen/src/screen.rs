//! What is shown, and who looks.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use crate::{Damage, Mode, Picture, Pixels, Rect, Size};

/// Tells a viewer that there is something new; called with no lock held, on the device's thread: it must not wait.
type Wake = Box<dyn Fn() + Send + Sync>;

/// The screen of a machine: a device shows pictures, viewers look at them.
pub struct Screen {
    preferred: Size,
    state: Mutex<State>,
}

struct State {
    picture: Arc<Picture>,
    /// The device has told of no change since it shows this picture.
    silent: bool,
    viewers: Vec<Weak<Seen>>,
}

/// What one viewer has not seen yet.
struct Seen {
    damage: Mutex<Damage>,
    wake: Wake,
}

fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Screen {
    /// A black screen. Guests that ask are told to use this size.
    pub fn new(preferred: Size) -> Arc<Self> {
        let state = State { picture: Arc::new(Picture::black(preferred)), silent: true, viewers: Vec::new() };
        Arc::new(Self { preferred, state: Mutex::new(state) })
    }

    /// The size that guests are told to use.
    pub fn preferred(&self) -> Size {
        self.preferred
    }

    /// What is shown now.
    pub fn picture(&self) -> Arc<Picture> {
        Arc::clone(&lock(&self.state).picture)
    }

    /// For the device: this is shown from now on.
    pub fn show(&self, mode: Mode, pixels: Arc<dyn Pixels>) {
        self.replace(Picture::new(mode, pixels));
    }

    /// For the device: nothing is shown any more.
    pub fn blank(&self) {
        if self.picture().is_shown() {
            self.replace(Picture::black(self.picture().size()));
        }
    }

    fn replace(&self, picture: Picture) {
        let size = picture.size();
        let mut state = lock(&self.state);
        state.picture = Arc::new(picture);
        state.silent = true;
        self.tell(state, &[size.all()]);
    }

    /// For the device: these have changed; they are cut to the picture.
    pub fn changed(&self, rects: impl Iterator<Item = Rect>) {
        let mut state = lock(&self.state);
        state.silent = false;
        let size = state.picture.size();
        let rects: Vec<Rect> = rects.filter_map(|r| r.within(size)).collect();
        self.tell(state, &rects);
    }

    fn tell(&self, mut state: MutexGuard<'_, State>, rects: &[Rect]) {
        state.viewers.retain(|v| v.strong_count() > 0);
        let viewers: Vec<Arc<Seen>> = state.viewers.iter().filter_map(Weak::upgrade).collect();
        // Noted while the picture cannot be another: a viewer that sees the new one has the damage, too.
        for viewer in &viewers {
            let mut damage = lock(&viewer.damage);
            rects.iter().for_each(|r| damage.add(*r));
        }
        drop(state);
        viewers.iter().for_each(|v| (v.wake)());
    }

    /// Looks at the screen from now on. `wake` is called when there is something new, at the latest each time after
    /// [`Viewer::take`]; it must not wait.
    pub fn view(self: &Arc<Self>, wake: Wake) -> Viewer {
        let seen = Arc::new(Seen { damage: Mutex::default(), wake });
        let viewers = &mut lock(&self.state).viewers;
        // Where nothing changes, nobody else forgets those that have left.
        viewers.retain(|v| v.strong_count() > 0);
        viewers.push(Arc::downgrade(&seen));
        Viewer { screen: Arc::clone(self), seen }
    }
}

/// One who looks.
pub struct Viewer {
    screen: Arc<Screen>,
    seen: Arc<Seen>,
}

impl Viewer {
    /// What is shown, and what of it has changed since the last call. A picture of another size is all new.
    pub fn take(&self) -> (Arc<Picture>, Vec<Rect>) {
        let state = lock(&self.screen.state);
        let size = state.picture.size();
        let damage = lock(&self.seen.damage).take();
        // Some may be of a larger picture before.
        let damage = damage.into_iter().filter_map(|r| r.within(size)).collect();
        (Arc::clone(&state.picture), damage)
    }

    /// Whether the device does not tell of changes: who wants to see them compares ([`crate::Compare`]).
    pub fn is_silent(&self) -> bool {
        let state = lock(&self.screen.state);
        state.silent && state.picture.is_shown()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    struct Grey;
    impl Pixels for Grey {
        fn read(&self, _: u64, to: &mut [u8]) -> bool {
            to.fill(128);
            true
        }
    }

    #[test]
    fn a_viewer_learns_of_pictures_and_changes() {
        let screen = Screen::new(Size { width: 100, height: 50 });
        let woken = Arc::new(AtomicU32::new(0));
        let told = Arc::clone(&woken);
        let viewer = screen.view(Box::new(move || _ = told.fetch_add(1, Ordering::SeqCst)));
        assert!(viewer.take().1.is_empty() && !viewer.is_silent());
        let mode = Mode::new(20, 10, 80, 0, 800).unwrap();
        screen.show(mode, Arc::new(Grey));
        assert_eq!(woken.load(Ordering::SeqCst), 1);
        assert!(viewer.is_silent());
        screen.changed([Rect { x: 15, y: 5, width: 50, height: 50 }].into_iter());
        assert!(!viewer.is_silent());
        let (picture, damage) = viewer.take();
        assert_eq!((picture.size(), damage), (mode.size, vec![mode.size.all()]));
        screen.changed([Rect { x: 15, y: 5, width: 50, height: 50 }].into_iter());
        assert_eq!(viewer.take().1, [Rect { x: 15, y: 5, width: 5, height: 5 }]);
        // It goes dark, at the same size.
        screen.blank();
        let (picture, damage) = viewer.take();
        let mut pixel = Vec::new();
        picture.read(Rect { x: 0, y: 0, width: 1, height: 1 }, &mut pixel);
        assert_eq!((damage, pixel), (vec![mode.size.all()], vec![0; 4]));
        let before = woken.load(Ordering::SeqCst);
        screen.blank();
        assert_eq!(woken.load(Ordering::SeqCst), before, "nothing is new");
        drop(viewer);
        screen.changed([mode.size.all()].into_iter());
        assert!(lock(&screen.state).viewers.is_empty(), "who has gone is remembered");
    }
}
