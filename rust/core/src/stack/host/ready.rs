//! A descriptor that `select`, `poll` and `epoll` can wait on for reading and for writing.
//!
//! It is one end of a pair of connected UNIX sockets. *Readable*: there is a byte in it that we sent from
//! the other end. *Not writable*: its send buffer is made smaller than what is in it for good, which the
//! other end does not read. The other end is shut down for reading: who takes the descriptor for that of a
//! connection and writes to it, by `write` or `sendfile`, gets EPIPE and no bytes are lost unnoticed.

use crate::{Error, Result};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, Shutdown, SocketFlags, SocketType, recv, send, shutdown,
    socketpair, sockopt,
};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

/// What is in it for good: as many bytes as the smallest send buffer takes.
const FILLING: [u8; 2048] = [0; 2048];
/// The smallest buffer takes fewer bytes; more rounds than this are not made.
const ROUNDS: usize = 64;
/// The kernel makes this the least that there is; what is in it is then too much to be writable.
const SMALL: usize = 1;
/// Several times what is in it, as the kernel counts that: with its own overhead, in quarters.
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
    /// Says what is possible from now on.
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
            // Writable again: the kernel wakes who waits.
            let _ = size(&self.given, if writable { LARGE } else { SMALL });
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
    fn reading_and_writing_are_told_apart() {
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
