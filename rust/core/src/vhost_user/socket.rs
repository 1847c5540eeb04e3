//! Finding a backend, and letting a QEMU in.

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

/// How long a backend has for the answer to the first question. DPDK 22.11 looks at a new
/// listening socket up to a second late, and later where others want its processor.
pub(super) const GREETING: Duration = Duration::from_secs(5);
const FOREVER: Duration = Duration::from_secs(100 * 365 * 86_400);

/// A listening socket; its file goes with it.
#[derive(Debug)]
pub(super) struct Listener {
    home: Home,
    socket: Owned,
    path: PathBuf,
    file: FileId,
}

impl Listener {
    /// Listens at `path`; with a mode for the file, else as the umask has it.
    pub(super) fn open(path: &Path, mode: Option<Mode>) -> Result<Self> {
        let (socket, file) = listen_at(path, "vhost-user", mode)?;
        Ok(Self { home: Home::here(), socket: socket.into(), path: path.to_owned(), file })
    }

    /// Takes the next connection; `None` when there is none.
    pub(super) fn accept(&self) -> Result<Option<OwnedFd>, Errno> {
        match accept_with(&self.socket, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
            Ok(socket) => Ok(Some(socket)),
            // None, or it was gone again before we looked.
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
    /// Removes the file first: from then on nobody connects and waits in vain.
    fn drop(&mut self) {
        if self.home.is_here() {
            remove(&self.path, self.file);
        }
    }
}

/// Where backends come from.
#[derive(Debug)]
pub(super) enum Source {
    /// They listen there.
    Connect(PathBuf, SocketAddrUnix),
    /// They connect to us.
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

    /// What becomes readable when there may be a backend; without it, try now and then.
    pub(super) fn listener(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Self::Connect(..) => None,
            Self::Listen(listener) => Some(listener.as_fd()),
        }
    }

    /// Tries to get a connection, without waiting. `None` when no backend has come.
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

/// Whether an attempt that failed so may succeed later: nobody is there (yet), or its
/// queue of connections is full.
pub(super) fn may_come(error: Errno) -> bool {
    matches!(error, Errno::NOENT | Errno::CONNREFUSED | Errno::AGAIN | Errno::INTR)
}

/// A connection on which a backend is asked what it offers.
///
/// It tells a backend that serves from one that merely has a socket, and QEMU, which would
/// stand still with the latter, is let in to the former only. Where several queue pairs are
/// wanted the backend is asked for their number as QEMU asks for it.
#[derive(Debug)]
pub(super) struct Greeting {
    socket: OwnedFd,
    reader: Reader,
    /// What was asked last.
    asked: u32,
    features: u64,
    protocol: Option<u64>,
    /// Whether the number of queue pairs is of interest.
    several: bool,
    begun: Instant,
    pub(super) until: Instant,
}

impl Greeting {
    /// Asks, and gives so long for the answers.
    pub(super) fn begin(socket: OwnedFd, patience: Duration, pairs: u16) -> Result<Self, End> {
        let begun = Instant::now();
        // Too far away for the clock is for ever, or nearly.
        let until = begun.checked_add(patience).unwrap_or(begun + FOREVER);
        let (reader, several) = (Reader::new(), pairs > 1);
        let mut greeting =
            Self { socket, reader, asked: 0, features: 0, protocol: None, several, begun, until };
        greeting.ask(request::GET_FEATURES)?;
        Ok(greeting)
    }

    /// Takes the answers: what it offers; `None` when they have not all come yet.
    pub(super) fn proceed(&mut self) -> Result<Option<Offer>, End> {
        loop {
            let Some(reply) = self.reader.read(self.socket.as_fd())? else {
                if Instant::now() < self.until {
                    return Ok(None);
                }
                let seconds = (self.until - self.begun).as_secs_f32();
                return Err(End::Broken(format!(
                    "it has a socket, but did not answer {} for {seconds} s",
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

    /// One answer came. The number of queue pairs, where there is nothing more to ask.
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
                // Some answer GET_QUEUE_NUM to those only who have this feature; QEMU says anew
                // which it will have.
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
            return Err(End::Broken("its socket takes no message".into()));
        }
        Ok(())
    }

    /// What to wait for.
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

/// What a question is called.
fn name(question: u32) -> &'static str {
    match question {
        request::GET_FEATURES => "GET_FEATURES",
        request::GET_PROTOCOL_FEATURES => "GET_PROTOCOL_FEATURES",
        _ => "GET_QUEUE_NUM",
    }
}
