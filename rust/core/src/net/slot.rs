//! A queue behind a lock, which a loop can claim for itself.

use crate::{Error, Result};
use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};

/// A queue: locked for the short time of a burst, or claimed for long.
#[derive(Debug)]
pub(crate) struct Slot<Q> {
    queue: Mutex<Q>,
    claimed: AtomicBool,
    name: &'static str,
}

impl<Q> Slot<Q> {
    pub(crate) fn new(queue: Q, name: &'static str) -> Self {
        Self { queue: Mutex::new(queue), claimed: AtomicBool::new(false), name }
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

    /// For as long as the claim lives.
    pub(crate) fn claim(&self) -> Result<Claim<'_, Q>> {
        if self.claimed.swap(true, Ordering::Relaxed) {
            return Err(self.busy());
        }
        Ok(Claim { guard: self.wait_for_it(), claimed: &self.claimed })
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
    guard: MutexGuard<'a, Q>,
    claimed: &'a AtomicBool,
}

impl<Q> Drop for Claim<'_, Q> {
    fn drop(&mut self) {
        self.claimed.store(false, Ordering::Relaxed);
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
