//! Little-endian 64-bit messages, each with at most one descriptor.
//!
//! The server only speaks, a client never does. A new client is told, in this order:
//!
//! | message | descriptor | meaning |
//! |---|---|---|
//! | 0 | | the protocol's version |
//! | its peer number | | |
//! | our peer number, once for each vector | eventfd | how to interrupt us |
//! | -1 | the memory | |
//!
//! The specification puts the memory before the peers. QEMU handles whatever comes up
//! to the memory while it realizes the device, and the rest later in its main loop; with
//! the memory last, every doorbell works from QEMU's first moment on.
//! The clients are not introduced to each other, and get no eventfds of their own:
//! nobody interrupts a QEMU whose vCPU never runs.

use rustix::io::Errno;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::BorrowedFd;

/// The protocol's version.
const VERSION: i64 = 0;
/// The message that the memory comes with.
const MEMORY: i64 = -1;

/// One message.
#[derive(Clone, Copy, Debug)]
pub(super) struct Message<'a> {
    value: i64,
    fd: Option<BorrowedFd<'a>>,
}

/// The `index`th message of the introduction; `None` after the last.
pub(super) fn introduction<'a>(
    index: usize,
    client: u16,
    ours: u16,
    memory: BorrowedFd<'a>,
    vector: impl Fn(usize) -> Option<BorrowedFd<'a>>,
) -> Option<Message<'a>> {
    let (value, fd) = match index {
        0 => (VERSION, None),
        1 => (i64::from(client), None),
        _ => match vector(index - 2) {
            Some(fd) => (i64::from(ours), Some(fd)),
            None if index == 2 || vector(index - 3).is_some() => (MEMORY, Some(memory)),
            None => return None,
        },
    };
    Some(Message { value, fd })
}

impl Message<'_> {
    /// Sends it without blocking.
    ///
    /// # Errors
    /// [`Errno::AGAIN`] when the client has not read enough; [`Errno::MSGSIZE`] when only
    /// a part went, after which the client cannot be talked to any more.
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
