//! A lock for operations that wait for QEMU.

use crate::locks::{may_wait, this_thread};
use crate::{Error, Result};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// How often a waiting thread checks whether to continue.
const SLICE: Duration = Duration::from_millis(100);

/// A lock that may be held while waiting for QEMU.
///
/// Such a wait runs Python's signal handlers in the waiting thread. If one of them takes the same
/// lock, it gets [`Error::Busy`] instead of a deadlock.
#[derive(Debug, Default)]
pub(in crate::net) struct Exclusive {
    /// The thread that holds it; 0 for none.
    owner: Mutex<usize>,
    free: Condvar,
}

impl Exclusive {
    /// Waits for the lock; `check` is called meanwhile.
    ///
    /// # Errors
    /// [`Error::Busy`] if this thread holds it; what `check` returns.
    pub(in crate::net) fn enter(&self, check: impl Fn() -> Result<()>) -> Result<Turn<'_>> {
        may_wait("another change of the port");
        let mut owner = self.owner();
        while *owner != 0 {
            not_mine(*owner)?;
            let waited =
                self.free.wait_timeout(owner, SLICE).unwrap_or_else(PoisonError::into_inner);
            owner = waited.0;
            if *owner != 0 {
                drop(owner);
                check()?;
                owner = self.owner();
            }
        }
        *owner = this_thread();
        Ok(Turn { of: self })
    }

    /// An error if this thread holds it: what it waits for does not happen meanwhile.
    ///
    /// # Errors
    /// [`Error::Busy`].
    pub(in crate::net) fn not_mine(&self) -> Result<()> {
        not_mine(*self.owner())
    }

    fn owner(&self) -> MutexGuard<'_, usize> {
        self.owner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn not_mine(owner: usize) -> Result<()> {
    if owner != this_thread() {
        return Ok(());
    }
    Err(Error::Busy(
        "this thread is changing the port already: a signal handler or callback interrupted that; \
         call it afterwards"
            .to_owned(),
    ))
}

/// Held by this thread, until dropped.
#[derive(Debug)]
pub(in crate::net) struct Turn<'a> {
    of: &'a Exclusive,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        *self.of.owner() = 0;
        self.of.free.notify_one();
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn its_owner_does_not_wait_for_itself() {
        let lock = Exclusive::default();
        let turn = lock.enter(|| Ok(())).unwrap();
        assert!(matches!(lock.enter(|| Ok(())), Err(Error::Busy(_))));
        assert!(matches!(lock.not_mine(), Err(Error::Busy(_))));
        drop(turn);
        lock.not_mine().unwrap();
        lock.enter(|| Ok(())).unwrap();
    }

    #[test]
    fn others_wait_and_get_it() {
        let lock = Exclusive::default();
        std::thread::scope(|scope| {
            let turn = lock.enter(|| Ok(())).unwrap();
            let interrupted =
                scope.spawn(|| lock.enter(|| Err(Error::Closed("a signal".to_owned()))).map(drop));
            assert!(matches!(interrupted.join().unwrap(), Err(Error::Closed(_))));
            let other = scope.spawn(|| lock.enter(|| Ok(())).map(drop));
            drop(turn);
            other.join().unwrap().unwrap();
        });
    }
}
