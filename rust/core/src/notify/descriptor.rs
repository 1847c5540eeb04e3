//! A descriptor that can be closed while others still refer to it.

use crate::Owned;
use rustix::io::Errno;
use std::os::fd::OwnedFd;
use std::sync::{Arc, PoisonError, RwLock, TryLockError};
use std::time::Duration;

/// The number of attempts and the pause of [`Descriptor::take`] while there are users.
const TRIES: u32 = 100;
const PAUSE: Duration = Duration::from_millis(1);

/// A descriptor that may be closed.
///
/// A closed object may be referenced for a long time: by a variable, an exception, a reference cycle.
/// Its kernel resources are freed when it is closed, not when it is dropped. A use takes an uncontended
/// read lock.
#[derive(Debug)]
pub(crate) struct Descriptor(RwLock<Option<Arc<Owned>>>);

impl Descriptor {
    pub(crate) fn new(fd: OwnedFd) -> Self {
        Self(RwLock::new(Some(Arc::new(fd.into()))))
    }

    /// Calls `call`, which must not wait. [`Errno::BADF`] if it is closed.
    #[inline]
    pub(crate) fn with<T>(
        &self,
        call: impl FnOnce(&OwnedFd) -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        match &*self.0.read().unwrap_or_else(PoisonError::into_inner) {
            Some(fd) => call(fd),
            None => Err(Errno::BADF),
        }
    }

    /// The descriptor for a wait: it stays open as long as the result exists. `None` if it is closed.
    pub(crate) fn share(&self) -> Option<Arc<Owned>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Closes it if `when` returns true: now, or when the last [share](Self::share) is dropped.
    ///
    /// It stays open if a peer blocks a user in a call that should not wait: see
    /// [`EventFd`](super::EventFd).
    pub(crate) fn take(&self, when: impl FnOnce() -> bool) {
        self.change(|fd| if when() { fd.take() } else { None });
    }

    /// Sets a new descriptor if there is none.
    pub(crate) fn fill(&self, fd: OwnedFd) {
        self.change(|old| match old {
            Some(_) => Some(Arc::new(fd.into())),
            None => {
                *old = Some(Arc::new(fd.into()));
                None
            }
        });
    }

    /// Changes the descriptor. The one that `change` returns is closed without the lock.
    fn change(&self, change: impl FnOnce(&mut Option<Arc<Owned>>) -> Option<Arc<Owned>>) {
        for _ in 0..TRIES {
            let mut fd = match self.0.try_write() {
                Ok(fd) => fd,
                Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
                Err(TryLockError::WouldBlock) => {
                    std::thread::sleep(PAUSE);
                    continue;
                }
            };
            let old = change(&mut fd);
            drop(fd);
            drop(old);
            return;
        }
        log::warn!("a descriptor is in use, so it stays open until its object is dropped");
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use rustix::event::{EventfdFlags, eventfd};
    use rustix::io::{fcntl_getfd, write};

    #[test]
    fn it_is_closed_when_the_last_share_is_dropped() {
        let descriptor = Descriptor::new(eventfd(0, EventfdFlags::CLOEXEC).unwrap());
        let shared = descriptor.share().unwrap();
        descriptor.take(|| false);
        descriptor.with(|fd| fcntl_getfd(fd)).unwrap();
        descriptor.take(|| true);
        assert_eq!(descriptor.with(|fd| fcntl_getfd(fd)).unwrap_err(), Errno::BADF);
        assert!(descriptor.share().is_none());
        assert_eq!(
            write(&shared, &1u64.to_ne_bytes()).unwrap(),
            8,
            "it is open while it is shared"
        );
        assert_eq!(Arc::strong_count(&shared), 1);
    }

    #[test]
    fn a_use_that_does_not_end_keeps_it_open() {
        let descriptor = Descriptor::new(eventfd(0, EventfdFlags::CLOEXEC).unwrap());
        let inside = |fd: &OwnedFd| {
            std::thread::scope(|scope| scope.spawn(|| descriptor.take(|| true)).join()).unwrap();
            fcntl_getfd(fd)
        };
        descriptor.with(inside).unwrap();
        assert!(descriptor.share().is_some());
    }
}
