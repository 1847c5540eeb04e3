//! A link in memory, for tests. Sent frames are passed to a closure, which may answer.

#![allow(clippy::unwrap_used)]

use super::{Frames, Link};
use crate::net::{Mac, Wake};
use crate::{Error, Result};
use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

/// Frames for a stack to receive.
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

/// A link to a closure.
pub(super) struct Wire {
    pub(super) mac: Mac,
    pub(super) mtu: u16,
    pub(super) inbox: Arc<Inbox>,
    /// Called with each sent frame.
    pub(super) peer: Mutex<Peer>,
    /// The most frames that one `send` takes.
    pub(super) room: usize,
    /// Number of `send` calls.
    pub(super) doorbells: AtomicUsize,
    /// When set, every call fails with it.
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
    /// A wire that calls `peer` with each sent frame and the inbox for answers.
    pub(super) fn with_peer(mut peer: impl FnMut(&[u8], &Inbox) + Send + 'static) -> Arc<Self> {
        let wire = Self::new(1);
        let inbox = wire.inbox.clone();
        *wire.peer.lock().unwrap() = Box::new(move |frame| peer(frame, &inbox));
        Arc::new(wire)
    }
    /// The two ends of a wire.
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
