//! A descriptor that `select`, `poll` and `epoll` can wait on for reading and for writing.
//!
//! It is one end of a pair of connected UNIX sockets. *Readable*: there is a byte in it that we sent from
//! the other end. *Not writable*: we have filled it, by writing into it what the other end does not read;
//! reading it there makes it writable. Nobody else reads or writes it.

use crate::{Error, Result};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socketpair, sockopt,
};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

/// A pair has room for far fewer bytes; more rounds than this are not made.
const ROUNDS: usize = 64;
const STUFFING: [u8; 2048] = [0; 2048];

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
        // The kernel makes it the least that there is.
        let _ = sockopt::set_socket_send_buffer_size(&given, 1);
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
            if writable {
                drain(&self.ours);
            } else {
                let mut rounds = 0..ROUNDS;
                while rounds.next().is_some()
                    && send(&self.given, &STUFFING, SendFlags::NOSIGNAL).is_ok()
                {}
            }
        }
    }
}

fn drain(end: &OwnedFd) {
    let mut bytes = [0; 4096];
    for _ in 0..ROUNDS {
        match recv(end, &mut bytes[..], RecvFlags::empty()) {
            Ok((1.., _)) => {}
            _ => break,
        }
    }
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
}
