//! An eventfd, non-blocking, close-on-exec.
//!
//! Whoever holds the descriptor too (QEMU, a backend) shares its file status flags, and can
//! clear `O_NONBLOCK` under our feet. So no call here relies on the flag alone: a read says
//! itself that it must not wait, and a write looks first at the flag and, where it is gone,
//! whether the count has room. Between that look and the write a peer would have to clear the
//! flag or fill the count to hold a thread, and could not hold it against a signal.

use crate::{Error, Result};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::fs::{OFlags, fcntl_getfl};
use rustix::io::{Errno, FdFlags, ReadWriteFlags, fcntl_setfd, preadv2, read, write};
use std::io::IoSliceMut;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

/// preadv2(2): from where the file stands, which is all that an eventfd knows.
const HERE: u64 = u64::MAX;

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

    /// Adds one; wakes whoever waits. Does not block, whatever the descriptor's flags are.
    pub fn signal(&self) {
        // A count at its maximum has no room: it is signalled already. Reading the flags takes
        // a third of the time that poll(2) does.
        let nonblocking = fcntl_getfl(&self.0).is_ok_and(|flags| flags.contains(OFlags::NONBLOCK));
        if nonblocking || is_ready(self.as_fd(), PollFlags::OUT) {
            let _ = write(&self.0, &1u64.to_ne_bytes());
        }
    }

    /// Sets the count to zero; says what it was (0: was not signalled). Does not block,
    /// whatever the descriptor's flags are.
    pub fn drain(&self) -> u64 {
        let mut count = [0; 8];
        let into = &mut [IoSliceMut::new(&mut count)];
        let got = match preadv2(&self.0, into, HERE, ReadWriteFlags::NOWAIT) {
            // A descriptor that is no eventfd, or a kernel that does not know the flag here.
            Err(Errno::OPNOTSUPP | Errno::NOSYS) if is_ready(self.as_fd(), PollFlags::IN) => {
                read(&self.0, &mut count)
            }
            other => other,
        };
        match got {
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

/// Whether a descriptor can be read or written right now.
fn is_ready(fd: BorrowedFd<'_>, what: PollFlags) -> bool {
    let mut fds = [PollFd::new(&fd, what)];
    poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).is_ok_and(|ready| ready > 0)
}

/// A duration as poll(2) takes it; one too long for it means for ever.
pub(crate) fn timespec(timeout: Option<Duration>) -> Option<Timespec> {
    timeout.and_then(|t| Timespec::try_from(t).ok())
}

/// Waits until a descriptor is readable or hung up; `false` after the timeout.
pub(crate) fn wait_readable(fd: BorrowedFd<'_>, timeout: Option<Duration>) -> Result<bool> {
    if timeout != Some(Duration::ZERO) {
        crate::locks::may_wait("an eventfd or process");
    }
    let mut fds = [PollFd::new(&fd, PollFlags::IN)];
    match poll(&mut fds, timespec(timeout).as_ref()) {
        Ok(ready) => Ok(ready > 0),
        Err(e) => Err(Error::os("waiting for a descriptor", e)),
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
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

    /// `O_NONBLOCK` belongs to the open file, so a peer that was given the eventfd can clear it.
    #[test]
    fn a_peer_that_makes_it_blocking_holds_nobody() {
        let event = Arc::new(EventFd::new().unwrap());
        let peer = event.0.try_clone().unwrap();
        rustix::io::ioctl_fionbio(&peer, false).unwrap();
        let (done, finished) = std::sync::mpsc::channel();
        let other = Arc::clone(&event);
        let worker = std::thread::spawn(move || {
            assert_eq!(other.drain(), 0);
            write(&peer, &(u64::MAX - 1).to_ne_bytes()).unwrap();
            other.signal();
            assert_eq!(other.drain(), u64::MAX - 1);
            other.signal();
            assert_eq!(other.drain(), 1);
            done.send(()).unwrap();
        });
        let ended = finished.recv_timeout(Duration::from_secs(5));
        if ended.is_err() {
            // Let it go, so that the failure is one.
            write(&event.0, &1u64.to_ne_bytes()).unwrap();
        }
        ended.expect("no call waits for the peer");
        worker.join().unwrap();
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
