//! An interposer without a thread, for tests and fuzzing.

use super::link::Link;
use super::rewrite::Vrings;
use crate::Result;
use crate::notify::EventFd;
use rustix::event::PollFlags;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The longest payload of a message.
pub const MAX_PAYLOAD: usize = super::message::MAX_PAYLOAD;
/// The most descriptors of a message.
pub const MAX_FDS: usize = super::message::MAX_FDS;

/// The interposer between two sockets whose other ends are the caller's.
#[derive(Debug)]
pub struct Joint {
    vrings: Vrings,
    link: Option<Link>,
    started: Instant,
}

impl Joint {
    /// Connects a QEMU and a backend, given the interposer's ends of two non-blocking sockets. The first
    /// `calls` queues have our own call eventfd.
    ///
    /// # Errors
    /// [`crate::Error::Os`].
    pub fn new(qemu: UnixStream, backend: UnixStream, calls: usize) -> Result<Self> {
        let calls: Result<Vec<_>> =
            (0..calls).map(|_| Ok(Some(Arc::new(EventFd::new()?)))).collect();
        let link = Some(Link::new(OwnedFd::from(qemu).into(), OwnedFd::from(backend).into()));
        Ok(Self { vrings: Vrings::new(calls?), link, started: Instant::now() })
    }

    /// Forwards at most one message in each direction, as if `after` had passed since the start. An error
    /// ends it.
    ///
    /// # Errors
    /// Which side was disconnected, and why.
    pub fn serve(&mut self, after: Duration) -> Result<(), String> {
        let Some(link) = &mut self.link else { return Err("it has ended".to_owned()) };
        let any = PollFlags::IN | PollFlags::OUT;
        let served = link.serve(&self.vrings, any, any, self.started + after);
        served.map_err(|cut| {
            self.link = None;
            self.vrings.forget();
            format!("{:?}: {}", cut.side, cut.end)
        })
    }

    /// Kicks every queue.
    pub fn ring(&self) {
        self.vrings.kicks.iter().for_each(|kick| kick.ring());
    }

    /// The number of queues with a kick eventfd.
    pub fn connected(&self) -> usize {
        self.vrings.kicks.iter().filter(|kick| kick.connected()).count()
    }
}
