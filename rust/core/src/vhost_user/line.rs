//! A connection.

use crate::Owned;
use rustix::net::{Shutdown, shutdown};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// A connection that ends with this value.
///
/// Closing would not do where a forked child of this process has copies of the descriptor: the
/// other side would see no end.
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
