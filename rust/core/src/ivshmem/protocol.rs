//! Little-endian 64-bit messages, each with at most one descriptor.
//!
//! Only the server sends. A new client gets, in this order:
//!
//! | message | descriptor | meaning |
//! |---|---|---|
//! | 0 | | the protocol's version |
//! | its peer number | | |
//!  | a peer number of ours, for each existing vector | eventfd | how to interrupt us |
//! | -1 | the memory | |
//!  | a peer number of ours, for each later vector | eventfd | |
//!
//! The specification puts the memory before the peers. QEMU handles everything up to the memory
//! while it realizes the device, and the rest later in its main loop; with the memory last, the
//! existing doorbells work from the start. Peers may be added at any time. Their removal is never
//! announced: QEMU frees the data of a removed peer, but still uses it when the number is reused
//! (`close_peer_eventfds` in `hw/misc/ivshmem.c`). Clients are not introduced to each other, and
//! get no eventfds: nobody interrupts a QEMU whose vCPU never runs.

use rustix::io::Errno;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::BorrowedFd;

/// The protocol's version.
const VERSION: i64 = 0;
/// The message with the memory.
const MEMORY: i64 = -1;
/// The number of every client. It belongs to nobody who can be interrupted, so that a stray write
/// of zero to a doorbell has no effect.
const CLIENT: i64 = 0;

/// One message.
#[derive(Clone, Copy, Debug)]
pub(super) struct Message<'a> {
    value: i64,
    fd: Option<BorrowedFd<'a>>,
}

/// The subject of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum About {
    Version,
    Client,
    Memory,
    /// The vector of this number.
    Vector(u16),
}

/// The subject of the `index`th message to a client for which there were `first` vectors initially.
pub(super) fn about(index: usize, first: u16) -> About {
    let first = usize::from(first);
    // Message numbers never exceed the number of vectors.
    let vector = |number: usize| About::Vector(u16::try_from(number).unwrap_or(u16::MAX));
    match index {
        0 => About::Version,
        1 => About::Client,
        _ if index - 2 < first => vector(index - 2),
        _ if index - 2 == first => About::Memory,
        _ => vector(index - 3),
    }
}

/// Our peer number for a vector: each is a peer with one vector.
pub(super) fn peer(vector: u16) -> u16 {
    vector.saturating_add(1)
}

impl<'a> Message<'a> {
    pub(super) fn version() -> Self {
        Self { value: VERSION, fd: None }
    }
    pub(super) fn client() -> Self {
        Self { value: CLIENT, fd: None }
    }
    pub(super) fn memory(fd: BorrowedFd<'a>) -> Self {
        Self { value: MEMORY, fd: Some(fd) }
    }
    pub(super) fn vector(number: u16, fd: BorrowedFd<'a>) -> Self {
        Self { value: i64::from(peer(number)), fd: Some(fd) }
    }

    /// Sends it without blocking.
    ///
    /// # Errors
    /// [`Errno::AGAIN`] if the client has not read enough; [`Errno::MSGSIZE`] if only a part was
    /// sent, after which the connection is unusable.
    pub(super) fn send(&self, to: BorrowedFd<'_>) -> Result<(), Errno> {
        let bytes = self.value.to_le_bytes();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let fds = self.fd.map(|fd| [fd]);
        if let Some(fds) = &fds
            && !control.push(SendAncillaryMessage::ScmRights(fds))
        {
            return Err(Errno::NOBUFS);
        }
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        match sendmsg(to, &[IoSlice::new(&bytes)], &mut control, flags)? {
            8 => Ok(()),
            _ => Err(Errno::MSGSIZE),
        }
    }
}
