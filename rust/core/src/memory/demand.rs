//! Who wants buffers that were not there, and who may have some that nobody uses any more.
//!
//! A buffer that is given back is of use to a queue that starves only if that queue is told: nothing
//! else makes it look again. So a [`Demand`] is marked in the same critical section of the free list
//! in which its buffers were missing ([`Threshold`]), and whoever gives buffers back sees there, at
//! the cost of one comparison, that somebody is to be told. Where nobody starves, that is all.
//!
//! Buffers of transmitted frames come back when their queue is used the next time, and a silent one
//! may never be. So an empty pool asks all its [`Holder`]s. What a device has not finished then is
//! waited for by one thread, which lives for as long as somebody starves.

use crate::process::background;
#[cfg(loom)]
use loom::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::fmt;
#[cfg(not(loom))]
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::Duration;

/// The first pauses between two questions to the holders; each is twice as long as that before.
const FIRST_PAUSE: Duration = Duration::from_millis(2);
const LONGEST_PAUSE: Duration = Duration::from_millis(100);

/// Somebody who has buffers that a device may have finished with: a transmit queue.
pub(crate) trait Holder: fmt::Debug + Send + Sync {
    /// Gives such buffers back to the pool, if that is possible now; must not wait. Whether there
    /// may be more later.
    fn release(&self) -> bool;
}

type Bell = Box<dyn Fn() + Send + Sync>;

/// One queue's preference for buffers.
pub(crate) struct Demand {
    unmet: AtomicBool,
    /// How many demands of the pool are unmet.
    all: Arc<AtomicUsize>,
    /// Buffers that transmitting leaves in the pool for it.
    kept: usize,
    bell: OnceLock<Bell>,
}

impl Demand {
    fn new(all: &Arc<AtomicUsize>, kept: usize) -> Self {
        Self { unmet: AtomicBool::new(false), all: Arc::clone(all), kept, bell: OnceLock::new() }
    }

    /// What is called, by whoever gives buffers back, when it is worth looking again: must not
    /// wait. Without it, whoever waits has to look at [`Self::is_unmet`].
    pub(crate) fn ring(&self, bell: impl Fn() + Send + Sync + 'static) {
        // The first stays: there is one for each queue.
        let _ = self.bell.set(Box::new(bell));
    }

    /// Whether buffers were missing, and none came back since.
    #[inline]
    pub(crate) fn is_unmet(&self) -> bool {
        self.unmet.load(Ordering::Acquire)
    }

    /// Nobody waits for it any more.
    #[inline]
    pub(crate) fn withdraw(&self) {
        if self.is_unmet() {
            self.meet();
        }
    }

    fn mark(&self) {
        if !self.unmet.swap(true, Ordering::AcqRel) {
            self.all.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Whether it was unmet.
    #[cold]
    fn meet(&self) -> bool {
        let was = self.unmet.swap(false, Ordering::AcqRel);
        if was {
            self.all.fetch_sub(1, Ordering::Relaxed);
        }
        was
    }
}

impl Drop for Demand {
    fn drop(&mut self) {
        self.withdraw();
    }
}

impl fmt::Debug for Demand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Demand").field("unmet", &self.is_unmet()).finish_non_exhaustive()
    }
}

/// With how many free buffers somebody is to be told. Part of a free list, under its lock.
#[derive(Debug)]
pub(super) struct Threshold(usize);

impl Threshold {
    pub(super) fn new() -> Self {
        Self(usize::MAX)
    }

    /// A demand could not be met; it can be with so many free buffers.
    pub(super) fn want(&mut self, demand: &Demand, free: usize) {
        demand.mark();
        self.0 = self.0.min(free);
    }

    /// After buffers were added: whether [`Registry::tell`] has to follow, without the lock.
    #[inline]
    pub(super) fn reached(&mut self, free: usize) -> bool {
        let reached = free >= self.0;
        if reached {
            self.0 = usize::MAX;
        }
        reached
    }
}

/// All holders and demands of a pool.
#[derive(Debug, Default)]
pub(super) struct Registry {
    holders: Mutex<Vec<Weak<dyn Holder>>>,
    demands: Mutex<Vec<Weak<Demand>>>,
    unmet: Arc<AtomicUsize>,
    /// There is a thread that asks the holders.
    watched: AtomicBool,
}

impl Registry {
    pub(super) fn add_holder(&self, holder: Weak<dyn Holder>) {
        let mut holders = lock(&self.holders);
        holders.retain(|holder| holder.strong_count() > 0);
        holders.push(holder);
    }

    pub(super) fn add_demand(&self, kept: usize) -> Arc<Demand> {
        let demand = Arc::new(Demand::new(&self.unmet, kept));
        let mut demands = lock(&self.demands);
        demands.retain(|demand| demand.strong_count() > 0);
        demands.push(Arc::downgrade(&demand));
        demand
    }

    /// Buffers that are kept for those who receive.
    pub(super) fn kept(&self) -> usize {
        lock(&self.demands).iter().filter_map(Weak::upgrade).map(|demand| demand.kept).sum()
    }

    /// Whether somebody starves.
    #[inline]
    pub(super) fn starved(&self) -> bool {
        self.unmet.load(Ordering::Relaxed) != 0
    }

    /// There are buffers again: tells everybody who starved. Those for whom they were too few
    /// come again.
    #[cold]
    pub(super) fn tell(&self) {
        // A bell of the last reference to a queue's demand must not end under the lock.
        let demands: Vec<_> = lock(&self.demands).iter().filter_map(Weak::upgrade).collect();
        for demand in demands {
            // First the mark, then the bell: who forgets the bell and looks then sees it.
            if demand.meet()
                && let Some(bell) = demand.bell.get()
            {
                bell();
            }
        }
    }

    /// Has the holders give back what they can; whether they may have more later.
    #[cold]
    pub(super) fn ask_holders(&self) -> bool {
        // A holder may be the last to go, and its end needs no lock of ours.
        let holders: Vec<_> = lock(&self.holders).iter().filter_map(Weak::upgrade).collect();
        holders.iter().fold(false, |more, holder| holder.release() | more)
    }

    /// Asks the holders again and again, in a thread, as long as somebody starves and they have
    /// something.
    #[cold]
    pub(super) fn watch(self: &Arc<Self>) {
        if self.watched.swap(true, Ordering::SeqCst) {
            return;
        }
        let registry = Arc::downgrade(self);
        if let Err(error) = background("virtnic-buffers", move || keep_asking(&registry)) {
            self.watched.store(false, Ordering::SeqCst);
            log::warn!(
                "no thread to wait for transmitted buffers ({error}): a port that has none may \
                 wait until another of its memory sends"
            );
        }
    }
}

fn keep_asking(registry: &Weak<Registry>) {
    let mut pause = FIRST_PAUSE;
    loop {
        std::thread::sleep(pause);
        pause = (pause * 2).min(LONGEST_PAUSE);
        let Some(registry) = registry.upgrade() else { return };
        if registry.starved() && registry.ask_holders() {
            continue;
        }
        registry.watched.store(false, Ordering::SeqCst);
        // One that starves since then found this thread still there.
        if !registry.starved() || registry.watched.swap(true, Ordering::SeqCst) {
            return;
        }
        if !registry.ask_holders() {
            registry.watched.store(false, Ordering::SeqCst);
            return;
        }
    }
}

fn lock<T>(list: &Mutex<T>) -> MutexGuard<'_, T> {
    list.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(all(test, loom))]
#[path = "demand_loom.rs"]
mod loom_tests;
