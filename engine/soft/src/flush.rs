//! TLB flushes that one vCPU wants of others ([`vireo_core::TlbFlusher`]).
//!
//! Who wants one leaves it with the vCPU, sets [`request::FLUSH`], and waits until that vCPU has served it; it looks every few
//! microseconds. Nobody waits for a vCPU that is *outside*: one that sleeps in HLT, that is not in
//! [`Vcpu::run`](vireo_core::Vcpu::run), that offers its processor to others, or that waits for others here. Such a one uses no translation before it has stepped in, and
//! looked. So two that flush each other go on at once, and a pause delays nobody.
//!
//! Either who asks sees that the vCPU is outside, or the vCPU sees the request: it says that it is inside before it looks,
//! and who asks makes the request before looking where it is, all in one order (`SeqCst`).

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::*};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
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
    fn step_in(&self) {
        self.inside.store(true, SeqCst);
    }

    /// As [`Flushes::step_in`], until the answer is dropped.
    pub fn inside(&self) -> Inside<'_> {
        self.step_in();
        Inside(self)
    }

    /// Has the vCPU do something that uses no translation, outside. It looks at its requests after.
    pub fn outside(&self, f: impl FnOnce()) {
        self.step_out();
        f();
        self.step_in();
    }

    /// The vCPU does not use its TLB until it steps in again.
    fn step_out(&self) {
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

    /// Sleeps until it is done.
    fn sleep(&self, number: u64) {
        let mut asked = lock(&self.asked);
        asked.sleepers += 1;
        while !self.is_done(number) {
            asked = self.changed.wait(asked).unwrap_or_else(PoisonError::into_inner);
        }
        asked.sleepers -= 1;
    }
}

/// A vCPU that is inside.
pub struct Inside<'a>(&'a Flushes);

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        self.0.step_out();
    }
}

/// Waits until all of these requests are done.
fn wait_for(mut owed: Vec<(&Flushes, u64)>) {
    let begin = Instant::now();
    while begin.elapsed() < YIELD {
        owed.retain(|(flushes, number)| !flushes.is_done(*number));
        if owed.is_empty() {
            return;
        }
        if begin.elapsed() < SPIN {
            (0..16).for_each(|_| std::hint::spin_loop());
        } else {
            std::thread::yield_now();
        }
    }
    owed.iter().for_each(|(flushes, number)| flushes.sleep(*number));
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

    /// Ends a hypercall: serves what is wanted of this vCPU, and waits for the others of which it wanted a flush.
    pub(crate) fn finish_flushes(&mut self) {
        self.serve_flushes_if_wanted();
        let shared = Arc::clone(&self.shared);
        let own = &shared.vcpus[self.index as usize].flushes;
        let owed = std::mem::take(&mut *lock(&own.owed)).into_iter();
        let owed = owed.map(|(index, number)| (&shared.vcpus[index as usize].flushes, number));
        let owed: Vec<_> = owed.filter(|(flushes, number)| !flushes.is_done(*number)).collect();
        if !owed.is_empty() {
            own.outside(|| wait_for(owed));
            self.serve_flushes_if_wanted();
        }
    }

    fn serve_flushes_if_wanted(&mut self) {
        let requests = &self.own().requests;
        if requests.load(SeqCst) & request::FLUSH != 0 {
            requests.fetch_and(!request::FLUSH, SeqCst);
            self.serve_flushes();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use iced_x86::IcedError;
    use iced_x86::code_asm::{CodeAssembler, al, dx};
    use vireo_core::model::Vendor;
    use vireo_core::{Exit, Vcpu};

    use super::*;
    use crate::system::tests::guest::{CODE, Guest, PANICS};
    use crate::vcpu::SoftVcpu;

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
            scope.spawn(|| wait_for(vec![(&flushes, number)]));
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
        wait_for(vec![(&flushes, first)]);
        flushes.step_in();
        assert!(!flushes.is_done(first), "it has to look first");
    }

    /// A vCPU, its bus, and what it shares with others.
    fn vcpu(
        code: fn(&mut CodeAssembler) -> Result<(), IcedError>,
    ) -> (SoftVcpu, Box<impl vireo_core::Bus>, Arc<Shared>) {
        let mut g = Guest::long(Vendor::Intel);
        g.code(CODE, 64, code);
        let shared = Arc::clone(&g.cpu.shared);
        (g.cpu.into(), g.bus, shared)
    }

    #[test]
    fn who_panics_keeps_nobody_waiting() {
        let (mut vcpu, bus, shared) = vcpu(|a| {
            a.mov(dx, i32::from(PANICS))?;
            a.out(dx, al)
        });
        assert!(catch_unwind(AssertUnwindSafe(|| vcpu.run(&*bus))).is_err());
        let flushes = &shared.vcpus[0].flushes;
        assert!(flushes.is_done(flushes.ask(&TlbScope::All)));
    }

    #[test]
    fn who_offers_its_processor_to_others_is_outside() {
        let (mut vcpu, bus, shared) = vcpu(|a| {
            let mut again = a.create_label();
            a.set_label(&mut again)?;
            a.pause()?;
            a.jmp(again)
        });
        let end = Instant::now() + Duration::from_secs(20);
        std::thread::scope(|scope| {
            let running = scope.spawn(move || vcpu.run(&*bus));
            // It does both again and again until it is told to end.
            let seen = [true, false, true, false].into_iter().all(|inside| {
                while shared.vcpus[0].flushes.inside.load(SeqCst) != inside {
                    if Instant::now() > end {
                        return false;
                    }
                }
                true
            });
            shared.vcpus[0].request(request::KICK);
            assert!(matches!(running.join(), Ok(Ok(Exit::Kicked))));
            assert!(seen);
        });
    }
}
