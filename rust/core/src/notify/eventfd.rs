//! An eventfd, non-blocking, close-on-exec.
//!
//! Whoever holds the descriptor too (QEMU, a backend) shares its file status flags, and can
//! clear `O_NONBLOCK` under our feet. So no call here relies on the flag alone: a read says
//! itself that it must not wait, and a write looks first at the flag and, where it is gone,
//! whether the count has room. Between that look and the write a peer would have to clear the
//! flag or fill the count to hold a thread, and could not hold it against a signal.
//!
//! It is closed with what it tells of, whoever still refers to it, but not where its number was
//! handed out: see [`EventFd::close`].

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

/// preadv2(2): from where the file stands, which is all that an eventfd knows.
const HERE: u64 = u64::MAX;

/// A Linux eventfd (eventfd(2)) in non-blocking mode.
#[derive(Debug)]
pub struct EventFd {
    fd: Descriptor,
    /// Its number was handed out. Written where the descriptor is used, read where it is taken.
    lent: AtomicBool,
}

impl EventFd {
    /// A new one with count 0.
    ///
    /// # Errors
    /// [`crate::Error::Os`] when the process has no descriptors left.
    pub fn new() -> Result<Self> {
        Ok(Self { fd: Descriptor::new(make()?), lent: AtomicBool::new(false) })
    }

    /// Takes over a descriptor received from somebody else; sets it non-blocking.
    ///
    /// # Errors
    /// [`crate::Error::Os`].
    pub fn from_fd(fd: OwnedFd) -> Result<Self> {
        let context = |e| Error::os("setting up a received eventfd", e);
        fcntl_setfd(&fd, FdFlags::CLOEXEC).map_err(context)?;
        rustix::io::ioctl_fionbio(&fd, true).map_err(context)?;
        Ok(Self { fd: Descriptor::new(fd), lent: AtomicBool::new(false) })
    }

    /// Adds one; wakes whoever waits. Does not block, whatever the descriptor's flags are.
    pub fn signal(&self) {
        let _ = self.fd.with(|fd| {
            // A count at its maximum has no room: it is signalled already. Reading the flags takes
            // a third of the time that poll(2) does.
            let nonblocking = fcntl_getfl(fd).is_ok_and(|flags| flags.contains(OFlags::NONBLOCK));
            if nonblocking || is_ready(fd.as_fd(), PollFlags::OUT) {
                write(fd, &1u64.to_ne_bytes())
            } else {
                Ok(0)
            }
        });
    }

    /// Sets the count to zero; says what it was (0: was not signalled). Does not block,
    /// whatever the descriptor's flags are.
    pub fn drain(&self) -> u64 {
        let mut count = [0; 8];
        let got = self.fd.with(|fd| {
            let into = &mut [IoSliceMut::new(&mut count)];
            match preadv2(fd, into, HERE, ReadWriteFlags::NOWAIT) {
                // A descriptor that is no eventfd, or a kernel that does not know the flag here.
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

    /// Waits until it is signalled; `None` waits for ever. `false` after the timeout.
    /// Does not drain. One that is closed counts as signalled: what it told of is over.
    ///
    /// # Errors
    /// [`crate::Error::Os`] with errno EINTR when a signal came, for the caller to look at.
    pub fn wait(&self, timeout: Option<Duration>) -> Result<bool> {
        match self.fd.share() {
            Some(fd) => wait_readable(fd.as_fd(), timeout),
            None => Ok(true),
        }
    }

    /// Its number; it is good for as long as this is not closed. `None` once it is.
    pub fn number(&self) -> Option<RawFd> {
        self.fd.with(|fd| Ok(fd.as_raw_fd())).ok()
    }

    /// Its number, for whoever waits by means of his own: from now on it is open as long as this
    /// lives. Of one that was closed, that of another, which is signalled for good.
    ///
    /// # Errors
    /// [`crate::Error::Os`] when the process has no descriptors left.
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

    /// The descriptor for a wait, open as long as the answer lives. Of one that was closed, another,
    /// which is signalled for good.
    ///
    /// # Errors
    /// [`crate::Error::Os`] when the process has no descriptors left.
    pub fn borrow(&self) -> Result<Arc<Owned>> {
        self.fd.share().map_or_else(|| signalled().map(|fd| Arc::new(fd.into())), Ok)
    }

    /// The descriptor, open as long as the answer lives. `None` once it is closed.
    pub fn hold(&self) -> Option<Arc<Owned>> {
        self.fd.share()
    }

    /// There is nothing to wait for any more: signals it, and gives the descriptor back as soon
    /// as nobody [waits](Self::wait) for it, [borrows](Self::borrow) or [holds](Self::hold) it. Twice
    /// is fine.
    ///
    /// One that was [lent](Self::lend) stays open, and readable, as long as this lives. Its number
    /// may be in a `select` of another thread, which would sleep on if it were closed, or in an
    /// event loop, which the kernel would take it from without a word; and the number would soon
    /// be another file's.
    pub fn close(&self) {
        self.signal();
        self.fd.take(|| !self.lent.load(Ordering::Relaxed));
    }
}

fn make() -> Result<OwnedFd> {
    eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
        .map_err(|e| Error::os("making an eventfd", e))
}

/// One that is signalled from the beginning.
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
        // virtnic does not close it during a wait, so it was closed from outside.
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

    /// `O_NONBLOCK` belongs to the open file, so a peer that was given the eventfd can clear it.
    #[test]
    fn a_peer_that_makes_it_blocking_holds_nobody() {
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
            // Let it go, so that the failure is one.
            write(event.hold().unwrap(), &1u64.to_ne_bytes()).unwrap();
        }
        ended.expect("no call waits for the peer");
        worker.join().unwrap();
    }

    #[test]
    fn a_closed_one_is_signalled_for_good_and_open_no_more() {
        let event = EventFd::new().unwrap();
        let number = event.number();
        let held = event.hold().unwrap();
        event.close();
        assert_eq!((number.is_some(), event.number()), (true, None));
        assert!(wait_readable(held.as_fd(), Some(Duration::ZERO)).unwrap(), "who waits is woken");
        event.signal();
        assert_eq!(event.drain(), 0);
        assert!(event.wait(None).unwrap());
        event.close();
        // Who asks now gets one that says that it is over.
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
