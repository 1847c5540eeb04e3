//! A link in memory, for tests: what the stack sends goes to a closure, which may answer.

#![allow(clippy::unwrap_used)]

use super::{Frames, Link};
use crate::net::{Mac, Wake};
use crate::{Error, Result};
use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

/// Frames on their way to a stack.
#[derive(Default)]
pub(super) struct Inbox {
    frames: Mutex<VecDeque<Vec<u8>>>,
    arrived: Condvar,
}

impl Inbox {
    pub(super) fn push(&self, frame: Vec<u8>) {
        self.frames.lock().unwrap().push_back(frame);
        self.arrived.notify_all();
    }
}

pub(super) type Peer = Box<dyn FnMut(&[u8]) + Send>;

/// The fake.
pub(super) struct Wire {
    pub(super) mac: Mac,
    pub(super) mtu: u16,
    pub(super) inbox: Arc<Inbox>,
    /// What gets the frames that the stack sends.
    pub(super) peer: Mutex<Peer>,
    /// Frames that one `send` takes, as a short ring would.
    pub(super) room: usize,
    /// Calls of `send`: doorbells.
    pub(super) doorbells: AtomicUsize,
    /// When set, every call fails so.
    pub(super) failure: Mutex<Option<Error>>,
}

impl Wire {
    pub(super) fn new(last: u8) -> Self {
        Self {
            mac: Mac([0x52, 0x54, 0, 0, 0, last]),
            mtu: 1500,
            inbox: Arc::default(),
            peer: Mutex::new(Box::new(|_| {})),
            room: usize::MAX,
            doorbells: AtomicUsize::new(0),
            failure: Mutex::new(None),
        }
    }
    /// A wire at whose other end `peer` gets each frame, with the inbox to answer into.
    pub(super) fn with_peer(mut peer: impl FnMut(&[u8], &Inbox) + Send + 'static) -> Arc<Self> {
        let wire = Self::new(1);
        let inbox = wire.inbox.clone();
        *wire.peer.lock().unwrap() = Box::new(move |frame| peer(frame, &inbox));
        Arc::new(wire)
    }
    /// Two ends of one wire.
    pub(super) fn pair() -> (Arc<Self>, Arc<Self>) {
        let (a, b) = (Self::new(1), Self::new(2));
        let (to_a, to_b) = (a.inbox.clone(), b.inbox.clone());
        *a.peer.lock().unwrap() = Box::new(move |frame| to_b.push(frame.to_vec()));
        *b.peer.lock().unwrap() = Box::new(move |frame| to_a.push(frame.to_vec()));
        (Arc::new(a), Arc::new(b))
    }
    fn check(&self) -> Result<()> {
        self.failure.lock().unwrap().clone().map_or(Ok(()), Err)
    }
}

impl Link for Wire {
    fn mac(&self) -> Mac {
        self.mac
    }
    fn mtu(&self) -> u16 {
        self.mtu
    }
    fn recv(&self, max: usize, frames: &mut Frames) -> Result<usize> {
        self.check()?;
        let mut inbox = self.inbox.frames.lock().unwrap();
        let count = max.min(inbox.len());
        inbox.drain(..count).for_each(|frame| frames.push(&frame));
        Ok(count)
    }
    fn wait(&self, timeout: Option<Duration>) -> Result<Wake> {
        self.check()?;
        let inbox = self.inbox.frames.lock().unwrap();
        let timeout = timeout.unwrap_or(Duration::from_secs(3600));
        let (inbox, _) =
            self.inbox.arrived.wait_timeout_while(inbox, timeout, |i| i.is_empty()).unwrap();
        Ok(if inbox.is_empty() { Wake::Timeout } else { Wake::Ready })
    }
    fn send(&self, frames: &[Vec<u8>]) -> Result<usize> {
        self.check()?;
        self.doorbells.fetch_add(1, Ordering::Relaxed);
        let count = frames.len().min(self.room);
        let mut peer = self.peer.lock().unwrap();
        frames[..count].iter().for_each(|frame| peer(frame));
        Ok(count)
    }
}
