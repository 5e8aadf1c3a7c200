//! TLB flushes that one vCPU wants of others ([`vireo_core::TlbFlusher`]).
//!
//! Who wants one leaves it with the vCPU, sets [`request::FLUSH`], and waits until that vCPU has served it; it looks every few
//! microseconds. Nobody waits for a vCPU that is *outside*: one that sleeps in HLT, that is not in
//! [`Vcpu::run`](vireo_core::Vcpu::run), or that waits for others here. Such a one uses no translation before it has stepped in, and
//! looked. So two that flush each other go on at once, and a pause delays nobody.
//!
//! Either who asks sees that the vCPU is outside, or the vCPU sees the request: it says that it is inside before it looks,
//! and who asks makes the request before looking where it is, all in one order (`SeqCst`).

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::*};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use vireo_core::{PageRange, TlbFlusher, TlbScope, VcpuSet};

use crate::cpu::Cpu;
use crate::partition::{Shared, request};

/// How long a vCPU is watched: one that runs looks within that time.
const SPIN: Duration = Duration::from_micros(10);
/// How long the waiting thread then offers its processor to others before it sleeps. On a host that has more to do than
/// processors, who sleeps waits twice: for the other vCPU to run, and then for its own turn.
const YIELD: Duration = Duration::from_micros(200);

/// So many ranges of pages are told one by one. Who sleeps for long is asked for many: then all between them goes.
const MOST_RANGES: usize = 32;

/// Flushes that others want of a vCPU, all in one.
#[derive(Default)]
struct Wanted {
    all: bool,
    non_global: bool,
    pages: Vec<PageRange>,
}

impl Wanted {
    fn add(&mut self, scope: &TlbScope) {
        match scope {
            TlbScope::All => self.all = true,
            TlbScope::NonGlobal => self.non_global = true,
            TlbScope::Pages(pages) if !self.all => self.pages.extend(pages),
            TlbScope::Pages(_) => {}
        }
        if self.all {
            self.pages.clear();
        }
        if self.pages.len() > MOST_RANGES {
            self.pages = cover_halves(&self.pages);
        }
    }
}

/// A range with all of the lower half of the address space, where users are, and one of the upper half.
fn cover_halves(pages: &[PageRange]) -> Vec<PageRange> {
    let half = |upper| pages.iter().copied().filter(move |r| (r.first() >> 63 != 0) == upper);
    [false, true].into_iter().filter_map(|upper| half(upper).reduce(PageRange::cover)).collect()
}

#[derive(Default)]
struct Asked {
    wanted: Wanted,
    /// Number of the last request.
    last: u64,
    /// Threads that wait, asleep.
    sleepers: u32,
}

/// The flushes of one vCPU.
#[derive(Default)]
pub struct Flushes {
    inside: AtomicBool,
    asked: Mutex<Asked>,
    /// Number of the last request that was served. Grows while `asked` is locked.
    served: AtomicU64,
    /// Somebody asleep has to look at `served` and `inside` again.
    changed: Condvar,
    /// What this vCPU has asked of others during its hypercall, by index and number.
    owed: Mutex<Vec<(u32, u64)>>,
}

fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Flushes {
    /// The vCPU is going to use its TLB; it looks at its requests before.
    pub fn step_in(&self) {
        self.inside.store(true, SeqCst);
    }

    /// The vCPU does not use its TLB until it steps in again.
    pub fn step_out(&self) {
        self.inside.store(false, SeqCst);
        self.wake(&lock(&self.asked));
    }

    fn wake(&self, asked: &Asked) {
        if asked.sleepers != 0 {
            self.changed.notify_all();
        }
    }

    /// Leaves a request, and gives its number.
    fn ask(&self, scope: &TlbScope) -> u64 {
        let mut asked = lock(&self.asked);
        asked.wanted.add(scope);
        asked.last += 1;
        asked.last
    }

    /// Takes all requests, and the number of the last.
    fn take(&self) -> (Wanted, u64) {
        let mut asked = lock(&self.asked);
        (std::mem::take(&mut asked.wanted), asked.last)
    }

    /// Requests up to this one are served.
    fn served_up_to(&self, last: u64) {
        let asked = lock(&self.asked);
        self.served.store(last, Release);
        self.wake(&asked);
    }

    /// Whether the vCPU uses no translation any more that it was to forget by a request.
    fn is_done(&self, number: u64) -> bool {
        self.served.load(Acquire) >= number || !self.inside.load(SeqCst)
    }

    /// Waits until it is done.
    fn wait(&self, number: u64) {
        let begin = Instant::now();
        while begin.elapsed() < YIELD {
            if self.is_done(number) {
                return;
            }
            if begin.elapsed() < SPIN {
                (0..16).for_each(|_| std::hint::spin_loop());
            } else {
                std::thread::yield_now();
            }
        }
        let mut asked = lock(&self.asked);
        asked.sleepers += 1;
        while !self.is_done(number) {
            asked = self.changed.wait(asked).unwrap_or_else(PoisonError::into_inner);
        }
        asked.sleepers -= 1;
    }
}

impl TlbFlusher for Shared {
    fn flush_tlbs(&self, by: u32, of: &VcpuSet, scope: &TlbScope) {
        let Some(caller) = self.vcpus.get(by as usize) else { return };
        let mut owed = lock(&caller.flushes.owed);
        for index in of.iter_below(self.vcpus.len() as u32) {
            let v = &self.vcpus[index as usize];
            let number = v.flushes.ask(scope);
            v.requests.fetch_or(request::FLUSH, SeqCst);
            if index != by {
                owed.push((index, number));
            }
        }
    }
}

impl Cpu {
    /// Serves what others want of this vCPU.
    pub(crate) fn serve_flushes(&mut self) {
        let (wanted, last) = self.own().flushes.take();
        if wanted.all {
            self.mmu.flush_all();
        } else {
            if wanted.non_global {
                self.mmu.flush_non_global();
            }
            wanted.pages.iter().for_each(|pages| self.mmu.flush_pages(*pages));
            self.mmu.forget_other_spaces();
        }
        self.own().flushes.served_up_to(last);
    }

    /// Ends a hypercall: waits for the others of which it wanted a flush, and serves what is wanted of this vCPU.
    pub(crate) fn finish_flushes(&mut self) {
        let mut owed = std::mem::take(&mut *lock(&self.own().flushes.owed));
        let flushes = |index: u32| &self.shared.vcpus[index as usize].flushes;
        owed.retain(|(index, number)| !flushes(*index).is_done(*number));
        if !owed.is_empty() {
            self.own().flushes.step_out();
            owed.iter().for_each(|(index, number)| flushes(*index).wait(*number));
            self.own().flushes.step_in();
        }
        let requests = &self.own().requests;
        if requests.load(SeqCst) & request::FLUSH != 0 {
            requests.fetch_and(!request::FLUSH, SeqCst);
            self.serve_flushes();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wanted_adds_up_to_no_more_than_what_is_between() {
        const KERNEL: u64 = 0xffff_8000_0000_0000;
        let pages = |at| TlbScope::Pages(vec![PageRange::at(at)]);
        let mut w = Wanted::default();
        w.add(&TlbScope::NonGlobal);
        (1..=30).for_each(|n| w.add(&pages(0x2000 * n)));
        (1..=2).for_each(|n| w.add(&pages(KERNEL + 0x4000 * n)));
        assert!(w.non_global && !w.all && w.pages.len() == 32);
        w.add(&pages(0x1000));
        let covered =
            [PageRange::between(0x1000, 60 << 12), PageRange::between(KERNEL + 0x4000, KERNEL + 0x8000)];
        assert_eq!(w.pages, covered);
        w.add(&pages(0x1000));
        assert_eq!(w.pages.len(), 3);
        w.add(&TlbScope::All);
        w.add(&pages(0x1000));
        assert!(w.all && w.pages.is_empty());
    }

    /// Asks a vCPU that is inside, and has `then` happen once who waits for it is asleep.
    fn wait_until(then: impl FnOnce(&Flushes)) {
        let flushes = Flushes::default();
        flushes.step_in();
        let number = flushes.ask(&TlbScope::All);
        assert!(!flushes.is_done(number));
        std::thread::scope(|scope| {
            scope.spawn(|| flushes.wait(number));
            while lock(&flushes.asked).sleepers == 0 {
                std::thread::yield_now();
            }
            then(&flushes);
        });
    }

    #[test]
    fn who_waits_wakes_when_the_other_steps_out() {
        wait_until(Flushes::step_out);
    }

    #[test]
    fn who_waits_wakes_when_it_is_served() {
        wait_until(|f| {
            let (_, last) = f.take();
            f.served_up_to(last);
        });
    }

    #[test]
    fn who_is_outside_keeps_nobody_waiting() {
        let flushes = Flushes::default();
        let first = flushes.ask(&TlbScope::All);
        assert!(flushes.is_done(first));
        flushes.wait(first);
        flushes.step_in();
        assert!(!flushes.is_done(first), "it has to look first");
    }
}
