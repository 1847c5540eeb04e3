//! The locks of this module: the standard library's, or loom's in a model.

#[cfg(loom)]
pub(super) use loom::sync::{Condvar, Mutex, MutexGuard};
use std::sync::PoisonError;
#[cfg(not(loom))]
pub(super) use std::sync::{Condvar, Mutex, MutexGuard};
use std::time::Duration;

/// Locks, ignoring poison: every change under these locks is a single step.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Waits on a condition variable, up to the timeout.
pub(super) fn wait<'a, T>(
    condition: &Condvar,
    guard: MutexGuard<'a, T>,
    timeout: Option<Duration>,
) -> MutexGuard<'a, T> {
    match timeout {
        None => condition.wait(guard).unwrap_or_else(PoisonError::into_inner),
        Some(t) => condition.wait_timeout(guard, t).unwrap_or_else(PoisonError::into_inner).0,
    }
}
