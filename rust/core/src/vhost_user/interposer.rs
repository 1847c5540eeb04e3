//! What users hold.

use super::channel::End;
use super::demands::{Demands, Offer};
use super::finding::{SLICE, find, uninterrupted};
use super::link::PATIENCE;
use super::message::MAX_QUEUES;
use super::relay::{Relay, State};
use super::retry::{Attempts, Retry};
use super::rewrite::Vrings;
use super::shared::{Held, Shared, Trial};
use super::socket::{Greeting, Listener, Source};
use super::thread::{Attended, attend};
use crate::notify::{EventFd, Kick, wait_readable};
use crate::process::Home;
use crate::qtest::Patience;
use crate::virtio::transport::vhost::Driver;
use crate::{Error, Result};
use rustix::fs::Mode;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

/// Where the backend is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Backend {
    /// It listens at this path.
    Connect(PathBuf),
    /// It connects to this path, where we listen.
    Listen(PathBuf),
}

/// What has happened so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Messages passed to the backend.
    pub messages_to_backend: u64,
    /// Messages passed to QEMU.
    pub messages_to_qemu: u64,
    /// Times that a QEMU and a backend were joined; all but the first are reconnects.
    pub links: u64,
    /// Backends that came and did not serve: they lacked something, QEMU hung up on them, or
    /// they went before their rings were started.
    pub refusals: u64,
    /// Links that ended because the backend went, broke the protocol or hung.
    pub backend_losses: u64,
    /// Links that ended because QEMU went or broke the protocol.
    pub qemu_losses: u64,
    /// Kick eventfds learnt.
    pub kicks_learnt: u64,
    /// Kick eventfds not kept, because descriptors are scarce: QEMU kicks instead.
    pub kicks_not_kept: u64,
    /// Call eventfds put in.
    pub calls_replaced: u64,
    /// Kicks that had nobody to go to.
    pub kicks_lost: u64,
}

/// Stands between a QEMU and a vhost-user backend; see the [module](super).
///
/// While there is no backend, and while a QEMU is served, the socket for QEMU does not exist:
/// QEMU's chardev must be one that connects again (`reconnect`, `reconnect-ms`). When the
/// backend goes, QEMU's connection is closed too, so that it sees the loss (the link goes
/// down); when there is a backend again, QEMU connects anew and sets everything up.
/// Closed on drop.
#[derive(Debug)]
pub struct Interposer {
    home: Home,
    shared: Arc<Shared>,
    /// Until it is closed.
    attended: Mutex<Option<Arc<Attended>>>,
    /// The first backend's socket, for those who want to know who it is.
    first: Mutex<Option<OwnedFd>>,
}

/// How a backend is to be treated.
#[derive(Clone, Debug)]
pub struct Terms {
    /// Queue pairs that it must have.
    pub pairs: u16,
    /// How often it is looked for when it went.
    pub retry: Retry,
    /// How long it may leave QEMU without an answer.
    pub patience: Duration,
    /// Signalled when something [changes](Interposer::changed), and left open at the end; without
    /// it there is one of its own. One for several costs no more descriptors.
    pub changed: Option<Arc<EventFd>>,
}

impl Default for Terms {
    fn default() -> Self {
        Self { pairs: 1, retry: Retry::default(), patience: PATIENCE, changed: None }
    }
}

impl Interposer {
    /// Gets a connection to the backend at once (waiting up to `wait` for it), then listens
    /// at `listen` for QEMU; the file gets mode 0600, in a directory
    /// that others may write to 0660 or 0666.
    ///
    /// `calls[i]` is what the backend signals for queue `i`; where there is none, QEMU's
    /// own eventfd stays.
    ///
    /// # Errors
    /// [`Error::Os`] (ENOENT, ECONNREFUSED when no backend listens), [`Error::Timeout`] when
    /// none connects, or it does not answer; [`Error::Qemu`] when it answers with something
    /// else; [`Error::Invalid`] (a path too long, too many queues).
    pub fn start(
        listen: &Path,
        backend: Backend,
        wait: Duration,
        calls: Vec<Option<Arc<EventFd>>>,
    ) -> Result<Self> {
        Self::start_interruptible(listen, backend, wait, calls, Terms::default(), None)
    }

    /// As [`Self::start`], on other terms; every 100 ms of waiting asks `patience`, in its own thread, whether to go on.
    ///
    /// # Errors
    /// See [`Self::start`], and what `patience` returns.
    pub fn start_interruptible(
        listen: &Path,
        backend: Backend,
        wait: Duration,
        calls: Vec<Option<Arc<EventFd>>>,
        terms: Terms,
        patience: Option<Patience>,
    ) -> Result<Self> {
        if calls.len() > MAX_QUEUES {
            return Err(Error::Invalid(format!(
                "a vhost-user device has up to {MAX_QUEUES} queues, not {}",
                calls.len()
            )));
        }
        let source = match &backend {
            Backend::Connect(path) => Source::connect(path),
            Backend::Listen(path) => Source::listen(path),
        }?;
        let demands = Demands { pairs: terms.pairs, features: 0 };
        let (socket, offer) =
            find(&source, wait, patience, |socket, time| greet(socket, time, &demands, patience))?;
        let first = socket.try_clone().ok();
        let gate = Listener::open(listen, Some(Mode::RUSR | Mode::WUSR))?;
        let changed_is_shared = terms.changed.is_some();
        let changed = terms.changed.map_or_else(|| EventFd::new().map(Arc::new), Ok)?;
        let shared = Arc::new(Shared {
            vrings: Vrings::new(calls),
            connected: AtomicBool::new(false),
            served: AtomicBool::new(false),
            trial: Mutex::new(Trial::Over),
            may_lack: AtomicU64::new(0),
            held: Mutex::default(),
            refusal: Mutex::default(),
            refusals: AtomicU64::new(0),
            features: AtomicU64::new(offer.features),
            changed,
            changed_is_shared,
            over: OnceLock::new(),
            to_backend: AtomicU64::new(0),
            to_qemu: AtomicU64::new(0),
            links: AtomicU64::new(0),
            backend_losses: AtomicU64::new(0),
            qemu_losses: AtomicU64::new(0),
        });
        let attempts = Attempts::new(terms.retry);
        let (listen, patience) = (listen.to_owned(), terms.patience);
        let relay = Relay::new(Arc::clone(&shared), source, listen, attempts, patience, demands);
        let ready = State::Ready { backend: socket.into(), gate, deaf: None };
        let attended = Mutex::new(Some(Arc::new(attend(relay, ready)?)));
        Ok(Self { home: Home::here(), shared, attended, first: Mutex::new(first) })
    }

    /// The kick of a queue: rings for the backend that serves it at the moment.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a queue that vhost-user has no number for.
    pub fn kick(&self, queue: u16) -> Result<Arc<Kick>> {
        self.shared.vrings.kicks.get(usize::from(queue)).cloned().ok_or_else(|| {
            Error::Invalid(format!("vhost-user numbers its queues 0 to 255; {queue} is none"))
        })
    }

    /// Tells a queue's driver when a backend stops, or is gone, and when the next starts; the driver
    /// says where that goes on in a packed ring.
    ///
    /// QEMU asks a backend for its position when it stops it. One that died answers nothing,
    /// and a packed ring does not show the position to those who did not follow it, so QEMU
    /// sends the next backend to a place where nothing ever happens again. The driver knows:
    /// behind the last descriptor that the device has used. With a split ring QEMU reads it
    /// in the ring, and nothing needs to be said.
    ///
    /// `None` takes it away.
    pub fn follow(&self, queue: u16, driver: Option<Arc<dyn Driver>>) {
        let mut drivers = self.shared.vrings.drivers();
        match driver {
            Some(driver) => drivers.insert(queue, driver),
            None => drivers.remove(&queue),
        };
    }

    /// Whether a QEMU and a backend are joined.
    pub fn connected(&self) -> bool {
        self.shared.connected.load(Ordering::Acquire)
    }

    /// Whether the backend serves: its rings are started, and it has said something since.
    pub fn serving(&self) -> bool {
        self.shared.served.load(Ordering::Acquire)
    }

    /// QEMU is about to make its netdev, and does nothing else until that is done. A backend that
    /// fails meanwhile is not looked for again: QEMU is told that all is well, so that the
    /// netdev can be deleted, and [`Self::end_trial`] says why.
    pub fn begin_trial(&self) {
        *self.shared.trial() = Trial::Open;
    }

    /// QEMU has made its netdev; why there is no backend behind it, where that is so.
    pub fn end_trial(&self) -> Option<String> {
        match std::mem::replace(&mut *self.shared.trial(), Trial::Over) {
            Trial::Failed(why) => Some(why),
            _ => None,
        }
    }

    /// A backend that returns without some of these features is not refused, but held until
    /// [`Self::accept_held`]: QEMU chooses a device's features when it is plugged in, so it must
    /// have a new device when it meets that backend.
    pub fn may_lack(&self, features: u64) {
        self.shared.may_lack.store(features, Ordering::Relaxed);
    }

    /// What a backend lacks that is there and held.
    pub fn held(&self) -> Option<String> {
        match &*self.shared.held() {
            Held::Waiting(lacking) => Some(lacking.clone()),
            _ => None,
        }
    }

    /// QEMU may meet the backend that is held: nothing of it is there that knows more features.
    pub fn accept_held(&self) {
        let mut held = self.shared.held();
        if matches!(*held, Held::Waiting(_)) {
            *held = Held::Accepted;
            drop(held);
            if let Some(attended) = &*self.attended() {
                attended.wake();
            }
        }
    }

    fn attended(&self) -> MutexGuard<'_, Option<Arc<Attended>>> {
        self.attended.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Why the last backend that came does not serve; `None` where it does, or none has come.
    pub fn refusal(&self) -> Option<String> {
        self.shared.refusal().clone()
    }

    /// The first backend's socket, once: it says who the backend is.
    pub fn take_first(&self) -> Option<OwnedFd> {
        self.first.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// The feature bits that the backend offered when it came last, before QEMU took
    /// away or added any.
    pub fn features(&self) -> u64 {
        self.shared.features.load(Ordering::Relaxed)
    }

    /// Why no backend is looked for any more, once that is so: see [`Retry::attempts`].
    pub fn given_up(&self) -> Option<&str> {
        self.shared.over.get().map(String::as_str)
    }

    /// Signalled when [`Self::connected`], [`Self::serving`], [`Self::refusal`], [`Self::held`] or
    /// [`Self::given_up`] changes.
    pub fn changed(&self) -> &Arc<EventFd> {
        &self.shared.changed
    }

    /// What has happened so far.
    pub fn stats(&self) -> Stats {
        let Shared { vrings, to_backend, to_qemu, links, .. } = &*self.shared;
        let Shared { refusals, backend_losses, qemu_losses, .. } = &*self.shared;
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Stats {
            messages_to_backend: get(to_backend),
            messages_to_qemu: get(to_qemu),
            links: get(links),
            refusals: get(refusals),
            backend_losses: get(backend_losses),
            qemu_losses: get(qemu_losses),
            kicks_learnt: get(&vrings.learnt),
            kicks_not_kept: get(&vrings.let_go),
            calls_replaced: get(&vrings.replaced),
            kicks_lost: vrings.kicks.iter().map(|kick| kick.lost()).sum(),
        }
    }

    /// Ends the connections, and removes the socket files; nothing that was open
    /// is, whoever keeps this. Closing twice is fine. Nothing in a forked child.
    pub fn close(&self) {
        if !self.home.is_here() {
            return;
        }
        // It is waited for without the lock, which nobody waits for.
        let attended = self.attended().clone();
        if let Some(attended) = attended {
            attended.stop();
            self.shared.disconnected();
        }
        *self.attended() = None;
        drop(self.take_first());
        if !self.shared.changed_is_shared {
            self.shared.changed.close();
        }
    }
}

impl Drop for Interposer {
    fn drop(&mut self) {
        if !self.home.is_here() {
            // There is no such thread here: the handle's end would detach somebody else's.
            let attended = self.attended.get_mut().unwrap_or_else(PoisonError::into_inner);
            std::mem::forget(attended.take());
        }
        self.close();
    }
}

/// Asks a backend what it offers, and waits for the answers.
fn greet(
    socket: OwnedFd,
    time: Duration,
    demands: &Demands,
    patience: Option<Patience>,
) -> Result<Result<(OwnedFd, Offer), End>> {
    let mut greeting = match Greeting::begin(socket, time, demands.pairs) {
        Ok(greeting) => greeting,
        Err(end) => return Ok(Err(end)),
    };
    loop {
        uninterrupted(wait_readable(greeting.as_fd(), Some(SLICE)))?;
        match greeting.proceed() {
            Ok(Some(offer)) => match demands.lacking(&offer) {
                Some(lacking) => return Ok(Err(End::Broken(lacking))),
                None => return Ok(Ok((greeting.into_socket(), offer))),
            },
            Ok(None) => patience.map_or(Ok(()), |ask| ask())?,
            Err(end) => return Ok(Err(end)),
        }
    }
}
