//! A QEMU and a backend, joined without the thread, for tests and fuzzing.

use super::link::Link;
use super::rewrite::Vrings;
use crate::Result;
use crate::notify::EventFd;
use rustix::event::PollFlags;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The longest payload that passes.
pub const MAX_PAYLOAD: usize = super::message::MAX_PAYLOAD;
/// The most descriptors with one message.
pub const MAX_FDS: usize = super::message::MAX_FDS;

/// The interposer between two sockets whose other ends are the caller's.
#[derive(Debug)]
pub struct Joint {
    vrings: Vrings,
    link: Option<Link>,
    started: Instant,
}

impl Joint {
    /// Joins a QEMU and a backend: the interposer's ends of two non-blocking sockets. The
    /// first `calls` queues have a call eventfd of ours.
    ///
    /// # Errors
    /// [`crate::Error::Os`].
    pub fn new(qemu: UnixStream, backend: UnixStream, calls: usize) -> Result<Self> {
        let calls: Result<Vec<_>> =
            (0..calls).map(|_| Ok(Some(Arc::new(EventFd::new()?)))).collect();
        let link = Some(Link::new(OwnedFd::from(qemu).into(), OwnedFd::from(backend).into()));
        Ok(Self { vrings: Vrings::new(calls?), link, started: Instant::now() })
    }

    /// Passes on what there is, one message at most in each direction, as if so much time had
    /// passed since the start. An error ends it.
    ///
    /// # Errors
    /// Who was cut off, and why.
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

    /// Rings for every queue.
    pub fn ring(&self) {
        self.vrings.kicks.iter().for_each(|kick| kick.ring());
    }

    /// Queues that have a kick eventfd.
    pub fn connected(&self) -> usize {
        self.vrings.kicks.iter().filter(|kick| kick.connected()).count()
    }
}
