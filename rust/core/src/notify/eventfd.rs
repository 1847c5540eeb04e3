//! `EventFd`: a non-blocking, close-on-exec eventfd.
//!
//! A peer with a copy of the descriptor (QEMU, a backend) shares its file status flags and can clear
//! `O_NONBLOCK`. Therefore no call relies on the flag alone: reads use RWF_NOWAIT, and a write first
//! checks the flag or, without it, that the count has room. To block a thread, a peer would have to
//! clear the flag or fill the count between check and write, and a signal still interrupts the thread.
//!
//! It is closed with the object that signals it, even if there are other references, unless its number
//! was lent: see [`EventFd::close`].

use super::descriptor::Descriptor;
use crate::{Error, Owned, Result};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::fs::{OFlags, fcntl_getfl};
use rustix::io::{Errno, FdFlags, ReadWriteFlags, fcntl_setfd, preadv2, read, write};
use std::io::IoSliceMut;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// The offset of preadv2(2) for the current file position.
const HERE: u64 = u64::MAX;

/// A Linux eventfd (eventfd(2)) in non-blocking mode.
#[derive(Debug)]
pub struct EventFd {
    fd: Descriptor,
    /// Whether its number was lent. Written with the descriptor's read lock, read with its write lock.
    lent: AtomicBool,
}

impl EventFd {
    /// Creates one with count 0.
    ///
    /// # Errors
    /// [`crate::Error::Os`] if the process has no descriptors left.
    pub fn new() -> Result<Self> {
        Ok(Self { fd: Descriptor::new(make()?), lent: AtomicBool::new(false) })
    }

    /// Takes over a received descriptor and makes it non-blocking.
    ///
    /// # Errors
    /// [`crate::Error::Os`].
    pub fn from_fd(fd: OwnedFd) -> Result<Self> {
        let context = |e| Error::os("setting up a received eventfd", e);
        fcntl_setfd(&fd, FdFlags::CLOEXEC).map_err(context)?;
        rustix::io::ioctl_fionbio(&fd, true).map_err(context)?;
        Ok(Self { fd: Descriptor::new(fd), lent: AtomicBool::new(false) })
    }

    /// Adds one and wakes waiters. Does not block, even if O_NONBLOCK was cleared.
    pub fn signal(&self) {
        let _ = self.fd.with(|fd| {
            // At its maximum the count is signalled already. Reading the flags takes a third of the
            // time of poll(2).
            let nonblocking = fcntl_getfl(fd).is_ok_and(|flags| flags.contains(OFlags::NONBLOCK));
            if nonblocking || is_ready(fd.as_fd(), PollFlags::OUT) {
                write(fd, &1u64.to_ne_bytes())
            } else {
                Ok(0)
            }
        });
    }

    /// Sets the count to zero and returns the old one (0: it was not signalled). Does not block, even if
    /// O_NONBLOCK was cleared.
    pub fn drain(&self) -> u64 {
        let mut count = [0; 8];
        let got = self.fd.with(|fd| {
            let into = &mut [IoSliceMut::new(&mut count)];
            match preadv2(fd, into, HERE, ReadWriteFlags::NOWAIT) {
                // Not an eventfd, or a kernel without this flag for it.
                Err(Errno::OPNOTSUPP | Errno::NOSYS) if is_ready(fd.as_fd(), PollFlags::IN) => {
                    read(fd, &mut count)
                }
                other => other,
            }
        });
        match got {
            Ok(8) => u64::from_ne_bytes(count),
            _ => 0,
        }
    }

    /// Waits until it is signalled; `None` waits forever. Returns `false` after the timeout. Does not
    /// drain. A closed one counts as signalled.
    ///
    /// # Errors
    /// [`crate::Error::Os`] with errno EINTR after a signal, which the caller handles.
    pub fn wait(&self, timeout: Option<Duration>) -> Result<bool> {
        match self.fd.share() {
            Some(fd) => wait_readable(fd.as_fd(), timeout),
            None => Ok(true),
        }
    }

    /// Its number, which is valid until it is closed. `None` if it is closed.
    pub fn number(&self) -> Option<RawFd> {
        self.fd.with(|fd| Ok(fd.as_raw_fd())).ok()
    }

    /// Its number for a caller that waits by its own means: from now on it is open as long as `self`
    /// exists. If it was closed, the number of another eventfd, which stays signalled.
    ///
    /// # Errors
    /// [`crate::Error::Os`] if the process has no descriptors left.
    pub fn lend(&self) -> Result<RawFd> {
        loop {
            let lent = self.fd.with(|fd| {
                self.lent.store(true, Ordering::Relaxed);
                Ok(fd.as_raw_fd())
            });
            if let Ok(number) = lent {
                return Ok(number);
            }
            self.fd.fill(signalled()?);
        }
    }

    /// The descriptor for a wait, open as long as the result exists. If it was closed, another one, which
    /// stays signalled.
    ///
    /// # Errors
    /// [`crate::Error::Os`] if the process has no descriptors left.
    pub fn borrow(&self) -> Result<Arc<Owned>> {
        self.fd.share().map_or_else(|| signalled().map(|fd| Arc::new(fd.into())), Ok)
    }

    /// The descriptor, open as long as the result exists. `None` if it is closed.
    pub fn hold(&self) -> Option<Arc<Owned>> {
        self.fd.share()
    }

    /// Signals it for the last time, and closes it as soon as nobody [waits](Self::wait) for it,
    /// [borrows](Self::borrow) or [holds](Self::hold) it. Idempotent.
    ///
    /// One that was [lent](Self::lend) stays open and readable as long as `self` exists. Its number may
    /// be in a `select` of another thread, which a close does not wake, or in an epoll set, from which a
    /// close silently removes it; and the number could soon refer to another file.
    pub fn close(&self) {
        self.signal();
        self.fd.take(|| !self.lent.load(Ordering::Relaxed));
    }
}

fn make() -> Result<OwnedFd> {
    eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
        .map_err(|e| Error::os("making an eventfd", e))
}

/// Creates one that is signalled.
fn signalled() -> Result<OwnedFd> {
    let fd = make()?;
    write(&fd, &1u64.to_ne_bytes()).map_err(|e| Error::os("signalling an eventfd", e))?;
    Ok(fd)
}

/// Whether a descriptor can be read or written right now.
fn is_ready(fd: BorrowedFd<'_>, what: PollFlags) -> bool {
    let mut fds = [PollFd::new(&fd, what)];
    poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).is_ok_and(|ready| ready > 0)
}

/// A timeout of poll(2); `None`, forever, if it is too long.
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
        // virtnic does not close it during a wait, so foreign code did.
        Ok(_) if fds[0].revents().contains(PollFlags::NVAL) => Err(Error::os(
            "waiting for a descriptor of virtnic that was closed from outside (os.closerange, or a \
             library that daemonises the program)",
            Errno::BADF,
        )),
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
        write(event.hold().unwrap(), &(u64::MAX - 1).to_ne_bytes()).unwrap();
        event.signal();
        assert_eq!(event.drain(), u64::MAX - 1);
    }

    #[test]
    fn a_received_eventfd_becomes_non_blocking() {
        let event = EventFd::from_fd(eventfd(0, EventfdFlags::empty()).unwrap()).unwrap();
        assert_eq!(event.drain(), 0);
    }

    /// `O_NONBLOCK` belongs to the open file, so a peer with a copy of the descriptor can clear it.
    #[test]
    fn a_peer_that_clears_o_nonblock_does_not_block_us() {
        let event = Arc::new(EventFd::new().unwrap());
        let peer = event.hold().unwrap().try_clone().unwrap();
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
            // End the wait, so that the test fails.
            write(event.hold().unwrap(), &1u64.to_ne_bytes()).unwrap();
        }
        ended.expect("no call waits for the peer");
        worker.join().unwrap();
    }

    #[test]
    fn a_closed_one_counts_as_signalled() {
        let event = EventFd::new().unwrap();
        let number = event.number();
        let held = event.hold().unwrap();
        event.close();
        assert_eq!((number.is_some(), event.number()), (true, None));
        assert!(wait_readable(held.as_fd(), Some(Duration::ZERO)).unwrap(), "waiters are woken");
        event.signal();
        assert_eq!(event.drain(), 0);
        assert!(event.wait(None).unwrap());
        event.close();
        // From now on another one, which stays signalled.
        let borrowed = event.borrow().unwrap();
        assert!(wait_readable(borrowed.as_fd(), Some(Duration::ZERO)).unwrap());
        assert_eq!((event.number(), Arc::strong_count(&borrowed)), (None, 1));
        assert_eq!(event.lend().unwrap(), event.number().unwrap());
        assert!(event.wait(Some(Duration::ZERO)).unwrap());
    }

    #[test]
    fn a_lent_one_stays_open() {
        let event = EventFd::new().unwrap();
        let number = event.lend().unwrap();
        event.close();
        assert_eq!(event.number(), Some(number));
        assert!(event.wait(Some(Duration::ZERO)).unwrap());
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
