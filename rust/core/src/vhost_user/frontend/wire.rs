//! `Wire`: one connection with blocking calls.

use super::super::channel::{End, Reader, Writer};
use super::super::message::{Fd, MAX_FDS, MAX_PAYLOAD, Message};
use crate::notify::{EventFd, timespec};
use crate::qtest::SignalCheck;
use crate::unix::{address, unconnected};
use crate::{Error, Owned, Result};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::net::{Shutdown, connect, shutdown};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A waiting caller checks for signals this often.
const SLICE: Duration = Duration::from_millis(100);

/// Why a message was not sent or received.
#[derive(Debug)]
pub(super) enum Failure {
    /// The peer disconnected or broke the protocol.
    End(End),
    /// The time is over.
    Late,
    /// An error of the caller's check for signals, or the front-end was closed.
    Stopped(Error),
}

impl From<End> for Failure {
    fn from(end: End) -> Self {
        Self::End(end)
    }
}

/// The limits of a wait.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wait<'a> {
    pub until: Instant,
    pub signals: Option<SignalCheck>,
    pub stop: Option<&'a EventFd>,
}

/// A received message.
#[derive(Debug)]
pub struct Received {
    /// The request number.
    pub request: u32,
    /// The protocol version, and whether it is a reply or needs one.
    pub flags: u32,
    /// The bytes after the header.
    pub payload: Vec<u8>,
    /// The descriptors.
    pub fds: Vec<OwnedFd>,
}

/// A connection to a backend.
#[derive(Debug)]
pub struct Wire {
    socket: Owned,
    reader: Reader,
}

impl Wire {
    pub(super) fn new(socket: OwnedFd) -> Self {
        Self { socket: socket.into(), reader: Reader::new() }
    }

    /// Connects to the backend that listens at `path`.
    ///
    /// # Errors
    /// [`Error::Os`] if none does, [`Error::Invalid`] for a path that is too long for a socket.
    pub fn connect(path: &Path) -> Result<Self> {
        let address = address(path)?;
        let socket = unconnected()
            .and_then(|socket| connect(&socket, &address).map(|()| socket))
            .map_err(|e| {
            Error::os(format!("connecting to the vhost-user backend {}", path.display()), e)
        })?;
        Ok(Self::new(socket))
    }

    /// Sends a message without checking it; descriptors go with its first byte.
    ///
    /// # Errors
    /// [`Error::Invalid`] if it is too long, [`Error::Timeout`], [`Error::Closed`] if the peer
    /// disconnected, and the error of `signals`.
    pub fn send_message(
        &mut self,
        (request, flags): (u32, u32),
        payload: Vec<u8>,
        fds: Vec<Arc<Owned>>,
        time: Duration,
        signals: Option<SignalCheck>,
    ) -> Result<()> {
        if payload.len() > MAX_PAYLOAD || fds.len() > MAX_FDS {
            return Err(Error::Invalid(format!(
                "a message can have up to {MAX_PAYLOAD} bytes and {MAX_FDS} descriptors, not {} and {}",
                payload.len(),
                fds.len()
            )));
        }
        let fds = fds.into_iter().map(Fd::Ours).collect();
        let wait = Wait { until: after(time), signals, stop: None };
        self.send(Message { request, flags, payload, fds }, wait).map_err(|failure| match failure {
            Failure::End(end) => Error::Closed(format!("sending to the backend failed: {end}")),
            Failure::Late => Error::Timeout(format!("the backend did not read for {time:?}")),
            Failure::Stopped(error) => error,
        })
    }

    /// Receives the next message; `None` if none arrives in time.
    ///
    /// # Errors
    /// [`Error::Closed`] if the peer disconnected, [`Error::Device`] if it broke the protocol, and the
    /// error of `signals`.
    pub fn receive_message(
        &mut self,
        time: Duration,
        signals: Option<SignalCheck>,
    ) -> Result<Option<Received>> {
        let wait = Wait { until: after(time), signals, stop: None };
        let message = match self.receive(wait) {
            Ok(message) => message,
            Err(Failure::Late) => return Ok(None),
            Err(Failure::Stopped(error)) => return Err(error),
            Err(Failure::End(End::Gone)) => {
                return Err(Error::Closed("the backend closed the connection".to_owned()));
            }
            Err(Failure::End(End::Broken(why))) => {
                return Err(Error::Device(format!("the backend broke the protocol: {why}")));
            }
        };
        let Message { request, flags, payload, fds } = message;
        let fds = fds.into_iter().filter_map(|fd| match fd {
            Fd::Passing(fd) => Some(fd),
            Fd::Ours(_) => None,
        });
        Ok(Some(Received { request, flags, payload, fds: fds.collect() }))
    }

    pub(super) fn send(&mut self, message: Message, wait: Wait<'_>) -> Result<(), Failure> {
        let mut writer = Writer::default();
        writer.put(message);
        loop {
            writer.write(self.socket.as_fd())?;
            if !writer.busy() {
                return Ok(());
            }
            self.wait_for(PollFlags::OUT, wait)?;
        }
    }

    pub(super) fn receive(&mut self, wait: Wait<'_>) -> Result<Message, Failure> {
        loop {
            if let Some(message) = self.reader.read(self.socket.as_fd())? {
                return Ok(message);
            }
            self.wait_for(PollFlags::IN, wait)?;
        }
    }

    /// Waits until the socket is ready.
    fn wait_for(&self, what: PollFlags, wait: Wait<'_>) -> Result<(), Failure> {
        loop {
            let left = wait.until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Failure::Late);
            }
            if wait_either(self.socket.as_fd(), what, wait.stop, Some(left.min(SLICE)))? {
                return Ok(());
            }
            wait.signals.map_or(Ok(()), |ask| ask()).map_err(Failure::Stopped)?;
        }
    }

    /// Disconnects, which also ends other threads' waits for the peer.
    pub(super) fn disconnect(&self) {
        let _ = shutdown(&self.socket, Shutdown::Both); // the peer may have disconnected
    }

    /// Its socket.
    pub(super) fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// The end of a wait, at most a day from now.
pub(super) fn after(time: Duration) -> Instant {
    const DAY: Duration = Duration::from_secs(86_400);
    Instant::now() + time.min(DAY)
}

/// Waits for events of a socket. Returns whether there are any; fails if `stop` is signalled.
pub(super) fn wait_either(
    socket: BorrowedFd<'_>,
    what: PollFlags,
    stop: Option<&EventFd>,
    timeout: Option<Duration>,
) -> Result<bool, Failure> {
    let stopping = stop.and_then(EventFd::hold);
    if stop.is_some() && stopping.is_none() {
        return Err(stopped());
    }
    let mut fds = vec![PollFd::from_borrowed_fd(socket, what)];
    fds.extend(stopping.as_ref().map(|fd| PollFd::new(fd, PollFlags::IN)));
    match poll(&mut fds, timespec(timeout).as_ref()) {
        Ok(_) | Err(Errno::INTR) => {}
        Err(e) => return Err(Failure::Stopped(Error::os("waiting for a vhost-user backend", e))),
    }
    if fds.get(1).is_some_and(|fd| !fd.revents().is_empty()) {
        return Err(stopped());
    }
    Ok(!fds[0].revents().is_empty())
}

fn stopped() -> Failure {
    Failure::Stopped(Error::Closed("the front-end was closed".to_owned()))
}
