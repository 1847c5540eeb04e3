//! An eventfd, non-blocking, close-on-exec.

use super::Wake;
use crate::{Error, Result};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::{FdFlags, fcntl_setfd, read, write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

/// A Linux eventfd (eventfd(2)) in non-blocking mode.
#[derive(Debug)]
pub struct EventFd(OwnedFd);

impl EventFd {
    /// A new one with count 0.
    ///
    /// # Errors
    /// [`crate::Error::Os`] when the process has no descriptors left.
    pub fn new() -> Result<Self> {
        eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map(Self)
            .map_err(|e| Error::os("making an eventfd", e))
    }

    /// Takes over a descriptor received from somebody else; sets it non-blocking.
    ///
    /// # Errors
    /// [`crate::Error::Os`].
    pub fn from_fd(fd: OwnedFd) -> Result<Self> {
        let context = |e| Error::os("setting up a received eventfd", e);
        fcntl_setfd(&fd, FdFlags::CLOEXEC).map_err(context)?;
        rustix::io::ioctl_fionbio(&fd, true).map_err(context)?;
        Ok(Self(fd))
    }

    /// Adds one; wakes whoever waits. Never blocks.
    pub fn signal(&self) {
        // The only failure of a valid eventfd is EAGAIN: the count is at its
        // maximum, so it is signalled already.
        let _ = write(&self.0, &1u64.to_ne_bytes());
    }

    /// Sets the count to zero; says what it was (0: was not signalled).
    pub fn drain(&self) -> u64 {
        let mut count = [0; 8];
        match read(&self.0, &mut count) {
            Ok(8) => u64::from_ne_bytes(count),
            _ => 0,
        }
    }

    /// Waits until it is signalled; `None` waits for ever. `false` after the timeout.
    /// Does not drain.
    ///
    /// # Errors
    /// [`crate::Error::Os`] with errno EINTR when a signal came, for the caller to look at.
    pub fn wait(&self, timeout: Option<Duration>) -> Result<bool> {
        wait_readable(self.as_fd(), timeout)
    }
}

impl AsFd for EventFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Wake for EventFd {
    fn drain(&self) -> u64 {
        self.drain()
    }
    fn wait(&self, timeout: Option<Duration>) -> Result<bool> {
        self.wait(timeout)
    }
}

/// A duration as poll(2) takes it; one too long for it means for ever.
pub(crate) fn timespec(timeout: Option<Duration>) -> Option<Timespec> {
    timeout.and_then(|t| Timespec::try_from(t).ok())
}

/// Waits until a descriptor is readable or hung up; `false` after the timeout.
pub(crate) fn wait_readable(fd: BorrowedFd<'_>, timeout: Option<Duration>) -> Result<bool> {
    let mut fds = [PollFd::new(&fd, PollFlags::IN)];
    match poll(&mut fds, timespec(timeout).as_ref()) {
        Ok(ready) => Ok(ready > 0),
        Err(e) => Err(Error::os("waiting for a descriptor", e)),
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::sync::Arc;
    use std::time::Instant;

    #[test]
    fn counts_and_drains() {
        let event = EventFd::new().unwrap();
        assert_eq!(event.drain(), 0);
        assert!(!event.wait(Some(Duration::ZERO)).unwrap());
        event.signal();
        event.signal();
        assert!(event.wait(Some(Duration::ZERO)).unwrap());
        assert_eq!(event.drain(), 2);
        assert!(!event.wait(Some(Duration::from_millis(1))).unwrap());
    }

    #[test]
    fn a_signal_at_the_maximum_does_not_block() {
        let event = EventFd::new().unwrap();
        write(&event.0, &(u64::MAX - 1).to_ne_bytes()).unwrap();
        event.signal();
        assert_eq!(event.drain(), u64::MAX - 1);
    }

    #[test]
    fn a_received_eventfd_becomes_non_blocking() {
        let event = EventFd::from_fd(eventfd(0, EventfdFlags::empty()).unwrap()).unwrap();
        assert_eq!(event.drain(), 0);
    }

    #[test]
    fn wakes_a_waiting_thread() {
        let event = Arc::new(EventFd::new().unwrap());
        let other = Arc::clone(&event);
        let started = Instant::now();
        let waiter = std::thread::spawn(move || other.wait(Some(Duration::from_secs(10))));
        std::thread::sleep(Duration::from_millis(10));
        event.signal();
        assert!(waiter.join().unwrap().unwrap());
        assert!(started.elapsed() < Duration::from_secs(5));
    }
}
