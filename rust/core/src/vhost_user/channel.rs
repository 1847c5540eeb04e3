//! Reading and writing messages on a non-blocking socket, in parts.
//!
//! Descriptors arrive with some byte of a message, mostly the first. A read never goes past the end of a
//! message, so that the descriptors belong to it. They are sent with the first byte, as a receiver may
//! expect them with the header.

use super::message::{Fd, HEADER, MAX_FDS, MAX_PAYLOAD, Message, parse_header};
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use std::fmt;
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};

/// Why a connection ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum End {
    /// The peer closed it between two messages.
    Gone,
    /// The peer closed it within a message or broke the protocol.
    Broken(String),
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Gone => f.write_str("it disconnected"),
            Self::Broken(why) => f.write_str(why),
        }
    }
}

/// The message that is being read.
#[derive(Debug)]
pub(super) struct Reader {
    header: [u8; HEADER],
    payload: Vec<u8>,
    fds: Vec<Fd>,
    /// Bytes read, of header and payload.
    got: usize,
}

impl Reader {
    pub(super) fn new() -> Self {
        Self { header: [0; HEADER], payload: Vec::new(), fds: Vec::new(), got: 0 }
    }

    /// Continues to read; `None` if the message is not complete yet.
    pub(super) fn read(&mut self, from: BorrowedFd<'_>) -> Result<Option<Message>, End> {
        loop {
            let into = if self.got < HEADER {
                &mut self.header[self.got..]
            } else {
                let (request, flags, size) = parse_header(&self.header);
                if size > MAX_PAYLOAD {
                    return Err(End::Broken(format!(
                        "its message {request} has a payload of {size} bytes, more than {MAX_PAYLOAD}"
                    )));
                }
                self.payload.resize(size, 0);
                if self.got == HEADER + size {
                    self.got = 0;
                    let (payload, fds) =
                        (std::mem::take(&mut self.payload), std::mem::take(&mut self.fds));
                    return Ok(Some(Message { request, flags, payload, fds }));
                }
                &mut self.payload[self.got - HEADER..]
            };
            match receive(from, into, &mut self.fds) {
                Ok(0) if self.got == 0 => return Err(End::Gone),
                Ok(0) => {
                    let got = self.got;
                    return Err(End::Broken(format!(
                        "it disconnected after {got} bytes of a message"
                    )));
                }
                Ok(count) => self.got += count,
                Err(Errno::AGAIN) => return Ok(None),
                Err(Errno::INTR) => {}
                Err(Errno::CONNRESET) => return Err(End::Gone),
                Err(Errno::MFILE) => {
                    return Err(End::Broken(format!(
                        "one of its messages has more than {MAX_FDS} descriptors, or this process \
                         has too few left"
                    )));
                }
                Err(e) => return Err(End::Broken(e.to_string())),
            }
        }
    }
}

/// Calls recvmsg. [`Errno::MFILE`] if not all descriptors fit; those that did are closed.
fn receive(from: BorrowedFd<'_>, into: &mut [u8], fds: &mut Vec<Fd>) -> Result<usize, Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
    let got = recvmsg(from, &mut [IoSliceMut::new(into)], &mut control, flags)?;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = message {
            fds.extend(received.map(Fd::Passing));
        }
    }
    if got.flags.contains(ReturnFlags::CTRUNC) || fds.len() > MAX_FDS {
        fds.clear();
        return Err(Errno::MFILE);
    }
    Ok(got.bytes)
}

/// The message that is being written.
#[derive(Debug, Default)]
pub(super) struct Writer {
    bytes: Vec<u8>,
    /// Descriptors that are not sent yet.
    fds: Vec<Fd>,
    sent: usize,
}

impl Writer {
    /// Whether the message is not completely written.
    pub(super) fn busy(&self) -> bool {
        self.sent < self.bytes.len()
    }

    /// Sets the next message; only if the last one is written.
    pub(super) fn put(&mut self, message: Message) {
        self.bytes = message.to_bytes();
        self.fds = message.fds;
        self.sent = 0;
    }

    /// Continues to write until the socket is full.
    pub(super) fn write(&mut self, to: BorrowedFd<'_>) -> Result<(), End> {
        while self.busy() {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            let fds: Vec<BorrowedFd<'_>> = self.fds.iter().map(AsFd::as_fd).collect();
            if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(&fds)) {
                return Err(End::Broken("its descriptors do not fit a message".into()));
            }
            let rest = IoSlice::new(&self.bytes[self.sent..]);
            match sendmsg(to, &[rest], &mut control, SendFlags::NOSIGNAL | SendFlags::DONTWAIT) {
                Ok(count) => {
                    self.sent += count;
                    drop(fds);
                    self.fds.clear();
                }
                Err(Errno::AGAIN) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(Errno::PIPE | Errno::CONNRESET) => return Err(End::Gone),
                Err(e) => return Err(End::Broken(format!("sending to it failed: {e}"))),
            }
        }
        Ok(())
    }
}
