//! A queue behind a lock, which a loop can claim for itself.

use crate::{Error, Result};
use std::mem::ManuallyDrop;
use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::{Duration, Instant};

/// The pause between two attempts to borrow a queue.
const BORROW: Duration = Duration::from_micros(50);

/// A queue: locked for the short time of a burst, or claimed for long.
#[derive(Debug)]
pub(crate) struct Slot<Q> {
    queue: Mutex<Q>,
    claimed: AtomicBool,
    /// Somebody waits for a queue that may be claimed.
    wanted: AtomicBool,
    name: &'static str,
}

impl<Q> Slot<Q> {
    pub(crate) fn new(queue: Q, name: &'static str) -> Self {
        let (claimed, wanted) = Default::default();
        Self { queue: Mutex::new(queue), claimed, wanted, name }
    }

    /// For one burst. [`Error::Busy`] while it is claimed, instead of a long wait: the caller
    /// may hold the interpreter. Everybody else has the queue for microseconds only.
    #[inline]
    pub(crate) fn lock(&self) -> Result<MutexGuard<'_, Q>> {
        loop {
            match self.queue.try_lock() {
                Ok(guard) => return Ok(guard),
                Err(TryLockError::Poisoned(poisoned)) => return Ok(poisoned.into_inner()),
                Err(TryLockError::WouldBlock) if self.claimed.load(Ordering::Relaxed) => {
                    return Err(self.busy());
                }
                Err(TryLockError::WouldBlock) => std::thread::yield_now(),
            }
        }
    }

    /// The queue, unless somebody has it.
    pub(crate) fn try_lock(&self) -> Option<MutexGuard<'_, Q>> {
        match self.queue.try_lock() {
            Ok(guard) => Some(guard),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    /// The queue, however long somebody else has it.
    pub(crate) fn wait_for_it(&self) -> MutexGuard<'_, Q> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The queue, for a moment: a loop that has claimed it [lends](Claim::lend) it. For one
    /// caller at a time, who may have no other queue meanwhile.
    pub(crate) fn borrow(&self) -> MutexGuard<'_, Q> {
        self.wanted.store(true, Ordering::Release);
        let guard = self.wait_for_it();
        self.wanted.store(false, Ordering::Release);
        guard
    }

    /// The queue, as [`Self::borrow`] gets it, unless that takes longer than this: for whoever must
    /// not wait for long.
    pub(crate) fn borrow_within(&self, limit: Duration) -> Option<MutexGuard<'_, Q>> {
        let start = Instant::now();
        loop {
            // Again each time: another who borrows takes it back.
            self.wanted.store(true, Ordering::Release);
            let guard = self.try_lock();
            if guard.is_some() || start.elapsed() > limit {
                self.wanted.store(false, Ordering::Release);
                return guard;
            }
            std::thread::sleep(BORROW);
        }
    }

    /// For as long as the claim lives.
    pub(crate) fn claim(&self) -> Result<Claim<'_, Q>> {
        if self.claimed.swap(true, Ordering::Relaxed) {
            return Err(self.busy());
        }
        Ok(Claim { guard: ManuallyDrop::new(self.wait_for_it()), slot: self })
    }

    #[cold]
    fn busy(&self) -> Error {
        Error::Busy(format!(
            "the {} queue is in use by a running loop (forward, reflect, generate, drop)",
            self.name
        ))
    }
}

/// A queue that is somebody's alone.
#[derive(Debug)]
pub(crate) struct Claim<'a, Q> {
    /// Always there, but inside of [`Self::give_way`].
    guard: ManuallyDrop<MutexGuard<'a, Q>>,
    slot: &'a Slot<Q>,
}

impl<Q> Claim<'_, Q> {
    /// Lends the queue to whoever waits for it; a loop does so in every turn.
    #[inline]
    pub(crate) fn lend(&mut self) {
        if self.slot.wanted.load(Ordering::Relaxed) {
            self.give_way();
        }
    }

    #[cold]
    fn give_way(&mut self) {
        // SAFETY: the guard is there, and is not used before there is another: nothing in
        // between touches it or panics.
        unsafe { ManuallyDrop::drop(&mut self.guard) };
        while self.slot.wanted.load(Ordering::Acquire) {
            std::thread::yield_now();
        }
        self.guard = ManuallyDrop::new(self.slot.wait_for_it());
    }
}

impl<Q> Drop for Claim<'_, Q> {
    fn drop(&mut self) {
        // SAFETY: the guard is there, and this is its end.
        unsafe { ManuallyDrop::drop(&mut self.guard) };
        self.slot.claimed.store(false, Ordering::Relaxed);
    }
}

impl<Q> Deref for Claim<'_, Q> {
    type Target = Q;
    #[inline]
    fn deref(&self) -> &Q {
        &self.guard
    }
}

impl<Q> DerefMut for Claim<'_, Q> {
    #[inline]
    fn deref_mut(&mut self) -> &mut Q {
        &mut self.guard
    }
}
