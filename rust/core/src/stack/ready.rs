//! A descriptor that `select`, `poll` and `epoll` can wait on for reading and for writing.
//!
//! It is one end of a connected pair of UNIX sockets. To make it readable, we send a byte from the
//! other end. Its send buffer always contains some bytes, which the other end never reads. To make
//! it not writable, we set the size of the send buffer below their number. The other end is shut
//! down for reading, so a program that writes to the descriptor, as if it were the connection, gets
//! EPIPE instead of losing data.

use crate::{Error, Result};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, Shutdown, SocketFlags, SocketType, recv, send, shutdown,
    socketpair, sockopt,
};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

/// Written repeatedly at the start, until the smallest send buffer is full.
const FILLING: [u8; 2048] = [0; 2048];
/// A limit on the number of these writes; the smallest send buffer needs fewer.
const ROUNDS: usize = 64;
/// The size while it is not writable. The kernel raises this to its minimum.
const SMALL: usize = 1;
/// The size while it is writable: several times what the bytes in it use, with kernel overhead.
const LARGE: usize = 1 << 17;

#[derive(Debug)]
pub(super) struct Ready {
    given: OwnedFd,
    ours: OwnedFd,
    readable: bool,
    writable: bool,
}

impl Ready {
    pub(super) fn new() -> Result<Self> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let pair = socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None);
        let (given, ours) =
            pair.map_err(|cause| Error::os("making a pair of sockets to wait on", cause))?;
        let what = "preparing a pair of sockets to wait on";
        size(&given, SMALL).map_err(|cause| Error::os(what, cause))?;
        let mut rounds = 0..ROUNDS;
        while rounds.next().is_some() && send(&given, &FILLING, SendFlags::NOSIGNAL).is_ok() {}
        size(&given, LARGE).map_err(|cause| Error::os(what, cause))?;
        shutdown(&ours, Shutdown::Read).map_err(|cause| Error::os(what, cause))?;
        Ok(Self { given, ours, readable: false, writable: true })
    }
    /// The descriptor to wait on.
    pub(super) fn number(&self) -> RawFd {
        self.given.as_raw_fd()
    }
    /// Sets whether it is readable and writable.
    pub(super) fn set(&mut self, readable: bool, writable: bool) {
        if readable != self.readable {
            self.readable = readable;
            if readable {
                let _ = send(&self.ours, &[1], SendFlags::NOSIGNAL);
            } else {
                drain(&self.given);
            }
        }
        if writable != self.writable {
            self.writable = writable;
            // When it becomes writable, the kernel wakes the waiters.
            let _ = size(&self.given, if writable { LARGE } else { SMALL });
        }
    }
    /// Takes back that it is readable, or that it is writable.
    pub(super) fn told(&mut self, readable: bool) {
        if readable {
            self.set(false, self.writable);
        } else {
            self.set(self.readable, false);
        }
    }
}

fn size(end: &OwnedFd, bytes: usize) -> rustix::io::Result<()> {
    sockopt::set_socket_send_buffer_size(end, bytes)
}

fn drain(end: &OwnedFd) {
    let _ = recv(end, &mut [0; 8][..], RecvFlags::empty());
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use rustix::event::{PollFd, PollFlags, Timespec, poll};

    fn look(ready: &Ready) -> (bool, bool) {
        let mut fds = [PollFd::new(&ready.given, PollFlags::IN | PollFlags::OUT)];
        poll(&mut fds, Some(&Timespec::default())).unwrap();
        let found = fds[0].revents();
        (found.contains(PollFlags::IN), found.contains(PollFlags::OUT))
    }

    #[test]
    fn readable_and_writable_are_independent() {
        let mut ready = Ready::new().unwrap();
        assert_eq!(look(&ready), (false, true));
        for _ in 0..3 {
            for (readable, writable) in
                [(true, true), (true, false), (false, false), (true, false), (false, true)]
            {
                ready.set(readable, writable);
                assert_eq!(look(&ready), (readable, writable));
            }
        }
    }

    #[test]
    fn writing_to_it_fails() {
        let mut ready = Ready::new().unwrap();
        for writable in [true, false, true] {
            ready.set(false, writable);
            let refused = send(&ready.given, b"x", SendFlags::NOSIGNAL);
            assert_eq!(refused, Err(rustix::io::Errno::PIPE));
            assert_eq!(look(&ready), (false, writable));
        }
    }
}
