//! Queues that lack buffers, and queues that may hold finished ones.
//!
//! A freed buffer helps a starved queue only if that queue is told: nothing else makes it check
//! again. So a [`Demand`] is marked in the same critical section of the free list in which buffers
//! were missing ([`Threshold`]), and whoever frees buffers sees there, at the cost of one
//! comparison, that a queue must be told. Without starvation there is no other cost.
//!
//! Buffers of transmitted frames are freed when their queue is next used, which for a silent one
//! may be never. So an empty pool asks all its [`Holder`]s. For buffers that the device has not
//! finished, one thread waits while there is starvation.

use crate::process::background;
#[cfg(loom)]
use loom::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::fmt;
#[cfg(not(loom))]
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::Duration;

/// Initial pauses between two rounds of asking the holders; each is twice the previous one.
const FIRST_PAUSE: Duration = Duration::from_millis(2);
const LONGEST_PAUSE: Duration = Duration::from_millis(100);

/// A holder of buffers that a device may have finished: a transmit queue.
pub(crate) trait Holder: fmt::Debug + Send + Sync {
    /// Returns such buffers to the pool, if possible now, without waiting. Whether there may be
    /// more later.
    fn release(&self) -> bool;
}

type Bell = Box<dyn Fn() + Send + Sync>;

/// A queue's demand for buffers.
pub(crate) struct Demand {
    unmet: AtomicBool,
    /// Number of unmet demands of the pool.
    all: Arc<AtomicUsize>,
    /// Buffers that transmission leaves in the pool for it.
    kept: usize,
    bell: OnceLock<Bell>,
}

impl Demand {
    fn new(all: &Arc<AtomicUsize>, kept: usize) -> Self {
        Self { unmet: AtomicBool::new(false), all: Arc::clone(all), kept, bell: OnceLock::new() }
    }

    /// Sets the function to call when buffers were freed; it must not wait. Without one, poll
    /// [`Self::is_unmet`].
    pub(crate) fn ring(&self, bell: impl Fn() + Send + Sync + 'static) {
        // The first one stays: there is one per queue.
        let _ = self.bell.set(Box::new(bell));
    }

    /// Whether buffers were missing and none has been freed since.
    #[inline]
    pub(crate) fn is_unmet(&self) -> bool {
        self.unmet.load(Ordering::Acquire)
    }

    /// Cancels the demand.
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

    /// Returns whether it was unmet.
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

/// The number of free buffers at which to tell a queue. Part of a free list, under its lock.
#[derive(Debug)]
pub(super) struct Threshold(usize);

impl Threshold {
    pub(super) fn new() -> Self {
        Self(usize::MAX)
    }

    /// Records an unmet demand that needs this many free buffers.
    pub(super) fn want(&mut self, demand: &Demand, free: usize) {
        demand.mark();
        self.0 = self.0.min(free);
    }

    /// After buffers were added: whether [`Registry::tell`] must be called, without the lock.
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
    /// Whether a thread is asking the holders.
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

    /// Buffers reserved for receiving.
    pub(super) fn kept(&self) -> usize {
        lock(&self.demands).iter().filter_map(Weak::upgrade).map(|demand| demand.kept).sum()
    }

    /// Whether any queue is starved.
    #[inline]
    pub(super) fn starved(&self) -> bool {
        self.unmet.load(Ordering::Relaxed) != 0
    }

    /// Tells all starved queues that buffers are available. Those for which they do not suffice
    /// come again.
    #[cold]
    pub(super) fn tell(&self) {
        // Dropping the last reference to a queue's bell must happen outside the lock.
        let demands: Vec<_> = lock(&self.demands).iter().filter_map(Weak::upgrade).collect();
        for demand in demands {
            // Mark first, then ring: a queue that misses the bell and then checks sees the mark.
            if demand.meet()
                && let Some(bell) = demand.bell.get()
            {
                bell();
            }
        }
    }

    /// Asks the holders to free what they can; whether they may have more later.
    #[cold]
    pub(super) fn ask_holders(&self) -> bool {
        // A holder may be dropped here, which needs none of our locks.
        let holders: Vec<_> = lock(&self.holders).iter().filter_map(Weak::upgrade).collect();
        holders.iter().fold(false, |more, holder| holder.release() | more)
    }

    /// Keeps asking the holders, in a thread, while there is starvation and they hold something.
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
        // A queue starved meanwhile has found this thread running.
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
