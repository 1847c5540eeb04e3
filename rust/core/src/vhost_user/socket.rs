//! Finding a backend, and letting a QEMU in.

use super::channel::{End, Reader, Writer};
use super::message::{Message, request};
use crate::Result;
use crate::process::Home;
use crate::unix::{FileId, address, listen_at, remove, unconnected};
use rustix::event::PollFlags;
use rustix::fs::Mode;
use rustix::io::Errno;
use rustix::net::{SocketAddrUnix, SocketFlags, accept_with, connect};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long a backend has for the answer to the first question. DPDK 22.11 looks at a new
/// listening socket up to a second late.
pub(super) const GREETING: Duration = Duration::from_secs(2);
const FOREVER: Duration = Duration::from_secs(100 * 365 * 86_400);

/// A listening socket; its file goes with it.
#[derive(Debug)]
pub(super) struct Listener {
    home: Home,
    socket: OwnedFd,
    path: PathBuf,
    file: FileId,
}

impl Listener {
    /// Listens at `path`; with a mode for the file, else as the umask has it.
    pub(super) fn open(path: &Path, mode: Option<Mode>) -> Result<Self> {
        let (socket, file) = listen_at(path, "vhost-user", mode)?;
        Ok(Self { home: Home::here(), socket, path: path.to_owned(), file })
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

/// A connection on which a backend was asked for its features.
///
/// It tells a backend that serves from one that merely has a socket, and QEMU, which would
/// stand still with the latter, is let in to the former only.
#[derive(Debug)]
pub(super) struct Greeting {
    socket: OwnedFd,
    reader: Reader,
    begun: Instant,
    pub(super) until: Instant,
}

impl Greeting {
    /// Asks, and gives so long for the answer.
    pub(super) fn begin(socket: OwnedFd, patience: Duration) -> Result<Self, End> {
        let mut writer = Writer::default();
        writer.put(Message::ask(request::GET_FEATURES));
        writer.write(socket.as_fd())?;
        if writer.busy() {
            return Err(End::Broken("its socket takes no message".into()));
        }
        let begun = Instant::now();
        // Too far away for the clock is for ever, or nearly.
        let until = begun.checked_add(patience).unwrap_or(begun + FOREVER);
        Ok(Self { socket, reader: Reader::new(), begun, until })
    }

    /// Takes the answer: the feature bits it offers; `None` when it has not come yet.
    pub(super) fn proceed(&mut self) -> Result<Option<u64>, End> {
        match self.reader.read(self.socket.as_fd())? {
            Some(reply) => match reply.number() {
                Some(features) if reply.is_reply() && reply.request == request::GET_FEATURES => {
                    Ok(Some(features))
                }
                _ => Err(End::Broken(format!(
                    "it does not speak vhost-user: it answered GET_FEATURES with message {} of {} bytes",
                    reply.request,
                    reply.payload.len()
                ))),
            },
            None if Instant::now() >= self.until => {
                let seconds = (self.until - self.begun).as_secs_f32();
                Err(End::Broken(format!("it has a socket, but did not answer for {seconds} s")))
            }
            None => Ok(None),
        }
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
