//! Connecting to backends and accepting QEMU.

use super::channel::{End, Reader, Writer};
use super::demands::{F_ACCESS_PLATFORM, Offer, PROTOCOL_F_MQ};
use super::message::{F_PROTOCOL_FEATURES, Message, request};
use crate::process::Home;
use crate::unix::{FileId, address, listen_at, remove, unconnected};
use crate::{Owned, Result};
use rustix::event::PollFlags;
use rustix::fs::Mode;
use rustix::io::Errno;
use rustix::net::{SocketAddrUnix, SocketFlags, accept_with, connect};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long a backend may take to answer the first request. DPDK 22.11 serves a new listening socket up
/// to a second late, and later on a busy processor.
pub(super) const GREETING: Duration = Duration::from_secs(5);
const FOREVER: Duration = Duration::from_secs(100 * 365 * 86_400);

/// A listening socket, whose file is removed on drop.
#[derive(Debug)]
pub(super) struct Listener {
    home: Home,
    socket: Owned,
    path: PathBuf,
    file: FileId,
}

impl Listener {
    /// Listens at `path`. Without `mode`, the file's mode depends on the umask.
    pub(super) fn open(path: &Path, mode: Option<Mode>) -> Result<Self> {
        let (socket, file) = listen_at(path, "vhost-user", mode)?;
        Ok(Self { home: Home::here(), socket: socket.into(), path: path.to_owned(), file })
    }

    /// Accepts the next connection; `None` if there is none.
    pub(super) fn accept(&self) -> Result<Option<OwnedFd>, Errno> {
        match accept_with(&self.socket, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
            Ok(socket) => Ok(Some(socket)),
            // There is none, or it was closed already.
            Err(Errno::AGAIN | Errno::INTR | Errno::CONNABORTED) => Ok(None),
            Err(e) => Err(e),
        }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Drop for Listener {
    /// Removes the file before the socket is closed, so that no client connects in between.
    fn drop(&mut self) {
        if self.home.is_here() {
            remove(&self.path, self.file);
        }
    }
}

/// How to get connections to backends.
#[derive(Debug)]
pub(super) enum Source {
    /// Backends listen there.
    Connect(PathBuf, SocketAddrUnix),
    /// Backends connect to us.
    Listen(Listener),
}

impl Source {
    pub(super) fn connect(path: &Path) -> Result<Self> {
        Ok(Self::Connect(path.to_owned(), address(path)?))
    }

    pub(super) fn listen(path: &Path) -> Result<Self> {
        Listener::open(path, None).map(Self::Listen)
    }

    pub(super) fn path(&self) -> &Path {
        match self {
            Self::Connect(path, _) => path,
            Self::Listen(listener) => &listener.path,
        }
    }

    /// A descriptor that becomes readable when a backend connects; without it, poll.
    pub(super) fn listener(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Self::Connect(..) => None,
            Self::Listen(listener) => Some(listener.as_fd()),
        }
    }

    /// Tries to get a connection without waiting. `None` if no backend has connected to us.
    pub(super) fn attempt(&self) -> Result<Option<OwnedFd>, Errno> {
        match self {
            Self::Connect(_, address) => {
                let socket = unconnected()?;
                connect(&socket, address).map(|()| Some(socket))
            }
            Self::Listen(listener) => listener.accept(),
        }
    }
}

/// Whether another attempt may succeed later: nobody listens yet, or the backlog is full.
pub(super) fn may_come(error: Errno) -> bool {
    matches!(error, Errno::NOENT | Errno::CONNREFUSED | Errno::AGAIN | Errno::INTR)
}

/// A connection to a backend whose offer is being queried.
///
/// QEMU, which would block, only connects to a backend that answers. If several queue pairs are
/// required, their number is queried as QEMU does.
#[derive(Debug)]
pub(super) struct Greeting {
    socket: OwnedFd,
    reader: Reader,
    /// The last request.
    asked: u32,
    features: u64,
    protocol: Option<u64>,
    /// Whether several queue pairs are required.
    several: bool,
    begun: Instant,
    pub(super) until: Instant,
}

impl Greeting {
    /// Sends the first request; the answers may take `timeout`.
    pub(super) fn begin(socket: OwnedFd, timeout: Duration, pairs: u16) -> Result<Self, End> {
        let begun = Instant::now();
        let until = begun.checked_add(timeout).unwrap_or(begun + FOREVER);
        let (reader, several) = (Reader::new(), pairs > 1);
        let mut greeting =
            Self { socket, reader, asked: 0, features: 0, protocol: None, several, begun, until };
        greeting.ask(request::GET_FEATURES)?;
        Ok(greeting)
    }

    /// Reads answers. Returns the offer; `None` if it is not complete yet.
    pub(super) fn proceed(&mut self) -> Result<Option<Offer>, End> {
        loop {
            let Some(reply) = self.reader.read(self.socket.as_fd())? else {
                if Instant::now() < self.until {
                    return Ok(None);
                }
                let seconds = (self.until - self.begun).as_secs_f32();
                return Err(End::Broken(format!(
                    "it accepts connections, but did not answer {} for {seconds} s",
                    name(self.asked)
                )));
            };
            let number = match reply.number() {
                Some(number) if reply.is_reply() && reply.request == self.asked => number,
                _ => {
                    return Err(End::Broken(format!(
                        "it does not speak vhost-user: it answered {} with message {} of {} bytes",
                        name(self.asked),
                        reply.request,
                        reply.payload.len()
                    )));
                }
            };
            if let Some(pairs) = self.took(number)? {
                let Self { features, protocol, .. } = *self;
                return Ok(Some(Offer { features, protocol, pairs }));
            }
        }
    }

    /// Processes one answer. After the last, returns the number of queue pairs, if known.
    fn took(&mut self, number: u64) -> Result<Option<Option<u64>>, End> {
        match self.asked {
            request::GET_FEATURES => {
                self.features = number;
                if !self.several && number & F_ACCESS_PLATFORM == 0 {
                    return Ok(Some(None));
                }
                if number & F_PROTOCOL_FEATURES == 0 {
                    return Ok(Some(Some(1)));
                }
                self.ask(request::GET_PROTOCOL_FEATURES)?;
            }
            request::GET_PROTOCOL_FEATURES => {
                self.protocol = Some(number);
                if !self.several || number & PROTOCOL_F_MQ == 0 {
                    return Ok(Some(Some(1)));
                }
                // Some backends only answer GET_QUEUE_NUM with this feature. QEMU sets its own features
                // later.
                let mut chosen = Message::ask(request::SET_PROTOCOL_FEATURES);
                chosen.set_number(PROTOCOL_F_MQ);
                self.send(chosen)?;
                self.ask(request::GET_QUEUE_NUM)?;
            }
            _ => return Ok(Some(Some(number))),
        }
        Ok(None)
    }

    fn ask(&mut self, question: u32) -> Result<(), End> {
        self.asked = question;
        self.send(Message::ask(question))
    }

    fn send(&self, message: Message) -> Result<(), End> {
        let mut writer = Writer::default();
        writer.put(message);
        writer.write(self.socket.as_fd())?;
        if writer.busy() {
            return Err(End::Broken("its socket is full".into()));
        }
        Ok(())
    }

    /// The events to wait for.
    pub(super) const INTEREST: PollFlags = PollFlags::IN;

    pub(super) fn into_socket(self) -> OwnedFd {
        self.socket
    }
}

impl AsFd for Greeting {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// The name of a request.
fn name(question: u32) -> &'static str {
    match question {
        request::GET_FEATURES => "GET_FEATURES",
        request::GET_PROTOCOL_FEATURES => "GET_PROTOCOL_FEATURES",
        _ => "GET_QUEUE_NUM",
    }
}
