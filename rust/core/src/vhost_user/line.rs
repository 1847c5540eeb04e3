//! A connection that is shut down on drop.

use crate::Owned;
use rustix::net::{Shutdown, shutdown};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// A connection that is shut down on drop.
///
/// Closing is not enough: if a forked child has a copy of the descriptor, the peer would see no end.
#[derive(Debug)]
pub(super) struct Line(Owned);

impl Drop for Line {
    fn drop(&mut self) {
        let _ = shutdown(&self.0, Shutdown::Both);
    }
}

impl AsFd for Line {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl From<Owned> for Line {
    fn from(socket: Owned) -> Self {
        Self(socket)
    }
}

impl From<OwnedFd> for Line {
    fn from(socket: OwnedFd) -> Self {
        Self(socket.into())
    }
}
