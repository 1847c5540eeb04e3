//! `Interposer`: the API.

use super::channel::End;
use super::demands::{Demands, Offer};
use super::finding::{SLICE, find, uninterrupted};
use super::link::TIMEOUT;
use super::message::MAX_QUEUES;
use super::relay::{Relay, State};
use super::retry::{Attempts, Retry};
use super::rewrite::Vrings;
use super::shared::{Held, Shared, Trial};
use super::socket::{Greeting, Listener, Source};
use super::thread::{Attended, attend};
use crate::notify::{EventFd, Kick, wait_readable};
use crate::process::Home;
use crate::qtest::SignalCheck;
use crate::virtio::transport::vhost::Driver;
use crate::{Error, Result};
use rustix::fs::Mode;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

/// The backend's socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Backend {
    /// The backend listens at this path.
    Connect(PathBuf),
    /// The backend connects to this path, where we listen.
    Listen(PathBuf),
}

/// Counters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Messages forwarded to the backend.
    pub messages_to_backend: u64,
    /// Messages forwarded to QEMU.
    pub messages_to_qemu: u64,
    /// How often a QEMU and a backend were connected; all but the first are reconnects.
    pub links: u64,
    /// Backends that connected but were not used: they lacked something, QEMU disconnected, or they
    /// disconnected before their rings were started.
    pub refusals: u64,
    /// Links that ended because the backend disconnected, broke the protocol or did not answer.
    pub backend_losses: u64,
    /// Links that ended because QEMU disconnected or broke the protocol.
    pub qemu_losses: u64,
    /// Kick eventfds learnt.
    pub kicks_learnt: u64,
    /// Kick eventfds not kept because descriptors are scarce: QEMU kicks instead.
    pub kicks_not_kept: u64,
    /// Call eventfds replaced.
    pub calls_replaced: u64,
    /// Kicks while there was no backend.
    pub kicks_lost: u64,
}

/// An interposer between a QEMU and a vhost-user backend; see the [module](super).
///
/// The socket for QEMU only exists while there is a backend and no connected QEMU, so QEMU's chardev
/// must reconnect (`reconnect`, `reconnect-ms`). When the backend is lost, QEMU is disconnected, so that
/// its link goes down. When a backend connects again, QEMU reconnects and sets everything up. Closed on
/// drop.
#[derive(Debug)]
pub struct Interposer {
    home: Home,
    shared: Arc<Shared>,
    /// Until it is closed.
    attended: Mutex<Option<Arc<Attended>>>,
    /// The first backend's socket, which identifies its process.
    first: Mutex<Option<OwnedFd>>,
}

/// Options of an interposer.
#[derive(Clone, Debug)]
pub struct Terms {
    /// The required number of queue pairs.
    pub pairs: u16,
    /// How to reconnect to a lost backend.
    pub retry: Retry,
    /// How long the backend may take to answer QEMU.
    pub timeout: Duration,
    /// Signalled when something [changes](Interposer::changed), and not closed by the interposer. By
    /// default, it creates one. Sharing one saves descriptors.
    pub changed: Option<Arc<EventFd>>,
}

impl Default for Terms {
    fn default() -> Self {
        Self { pairs: 1, retry: Retry::default(), timeout: TIMEOUT, changed: None }
    }
}

impl Interposer {
    /// Connects to the backend, waiting up to `wait` for it, then listens at `listen` for QEMU. The
    /// socket file gets mode 0600, in a directory writable by others 0660 or 0666.
    ///
    /// The backend signals `calls[i]` for queue `i`; without one, it keeps QEMU's eventfd.
    ///
    /// # Errors
    /// [`Error::Os`] (ENOENT, ECONNREFUSED if no backend listens); [`Error::Timeout`] if none connects or
    /// it does not answer; [`Error::Qemu`] if it gives a wrong answer; [`Error::Invalid`] (a path too
    /// long, too many queues).
    pub fn start(
        listen: &Path,
        backend: Backend,
        wait: Duration,
        calls: Vec<Option<Arc<EventFd>>>,
    ) -> Result<Self> {
        Self::start_interruptible(listen, backend, wait, calls, Terms::default(), None)
    }

    /// [`Self::start`] with options; calls `signals` every 100 ms while it waits.
    ///
    /// # Errors
    /// See [`Self::start`], and the error of `signals`.
    pub fn start_interruptible(
        listen: &Path,
        backend: Backend,
        wait: Duration,
        calls: Vec<Option<Arc<EventFd>>>,
        terms: Terms,
        signals: Option<SignalCheck>,
    ) -> Result<Self> {
        if calls.len() > MAX_QUEUES {
            return Err(Error::Invalid(format!(
                "a vhost-user device can have up to {MAX_QUEUES} queues, not {}",
                calls.len()
            )));
        }
        let source = match &backend {
            Backend::Connect(path) => Source::connect(path),
            Backend::Listen(path) => Source::listen(path),
        }?;
        let demands = Demands { pairs: terms.pairs, features: 0 };
        let (socket, offer) =
            find(&source, wait, signals, |socket, time| greet(socket, time, &demands, signals))?;
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
        let (listen, timeout) = (listen.to_owned(), terms.timeout);
        let relay = Relay::new(Arc::clone(&shared), source, listen, attempts, timeout, demands);
        let ready = State::Ready { backend: socket.into(), gate, paused: None };
        let attended = Mutex::new(Some(Arc::new(attend(relay, ready)?)));
        Ok(Self { home: Home::here(), shared, attended, first: Mutex::new(first) })
    }

    /// The kick of a queue, which goes to the current backend.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a queue above 255.
    pub fn kick(&self, queue: u16) -> Result<Arc<Kick>> {
        self.shared.vrings.kicks.get(usize::from(queue)).cloned().ok_or_else(|| {
            Error::Invalid(format!("the queues of vhost-user are 0 to 255, not {queue}"))
        })
    }

    /// Registers the driver of a queue, which is called when backends stop and start, and which returns
    /// the start position in a packed ring. `None` removes it.
    ///
    /// QEMU asks a backend for its position when it stops the backend. A dead backend does not answer,
    /// and a packed ring does not show the position, so QEMU would start the next backend at a wrong one.
    /// The driver knows it: after the last descriptor that the device has used. The position in a split
    /// ring is in its memory.
    pub fn follow(&self, queue: u16, driver: Option<Arc<dyn Driver>>) {
        let mut drivers = self.shared.vrings.drivers();
        match driver {
            Some(driver) => drivers.insert(queue, driver),
            None => drivers.remove(&queue),
        };
    }

    /// Whether a QEMU and a backend are connected.
    pub fn connected(&self) -> bool {
        self.shared.connected.load(Ordering::Acquire)
    }

    /// Whether the backend processes the rings: they are started, and it has answered since.
    pub fn serving(&self) -> bool {
        self.shared.served.load(Ordering::Acquire)
    }

    /// Call before QEMU creates its netdev, which blocks QEMU. If the backend fails meanwhile, the
    /// interposer does not reconnect but lets QEMU create the netdev, which can then be deleted, and
    /// [`Self::end_trial`] returns the reason.
    pub fn begin_trial(&self) {
        *self.shared.trial() = Trial::Open;
    }

    /// Call after QEMU has created its netdev. Returns why the backend failed, if it did.
    pub fn end_trial(&self) -> Option<String> {
        match std::mem::replace(&mut *self.shared.trial(), Trial::Over) {
            Trial::Failed(why) => Some(why),
            _ => None,
        }
    }

    /// Sets the features that a new backend may lack. Such a backend is not refused but held until
    /// [`Self::accept_held`]: QEMU chooses a device's features when it is plugged, so it needs a new
    /// device for that backend.
    pub fn may_lack(&self, features: u64) {
        self.shared.may_lack.store(features, Ordering::Relaxed);
    }

    /// What a held backend lacks.
    pub fn held(&self) -> Option<String> {
        match &*self.shared.held() {
            Held::Waiting(lacking) => Some(lacking.clone()),
            _ => None,
        }
    }

    /// Lets QEMU connect to the held backend. QEMU must not have a device with the missing features.
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

    /// Why the last backend that connected is not used; `None` if it is, or none has connected.
    pub fn refusal(&self) -> Option<String> {
        self.shared.refusal().clone()
    }

    /// Takes the first backend's socket, which identifies its process.
    pub fn take_first(&self) -> Option<OwnedFd> {
        self.first.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// The feature bits that the last backend offered, before QEMU changed them.
    pub fn features(&self) -> u64 {
        self.shared.features.load(Ordering::Relaxed)
    }

    /// Why the interposer has stopped to reconnect, if it has: see [`Retry::attempts`].
    pub fn given_up(&self) -> Option<&str> {
        self.shared.over.get().map(String::as_str)
    }

    /// Signalled when [`Self::connected`], [`Self::serving`], [`Self::refusal`], [`Self::held`] or
    /// [`Self::given_up`] changes.
    pub fn changed(&self) -> &Arc<EventFd> {
        &self.shared.changed
    }

    /// The counters.
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
            kicks_not_kept: get(&vrings.not_kept),
            calls_replaced: get(&vrings.replaced),
            kicks_lost: vrings.kicks.iter().map(|kick| kick.lost()).sum(),
        }
    }

    /// Closes the connections and all descriptors, and removes the socket files. Idempotent; does nothing
    /// in a forked child.
    pub fn close(&self) {
        if !self.home.is_here() {
            return;
        }
        // Do not wait with the lock held.
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
            // The thread does not exist in a forked child.
            let attended = self.attended.get_mut().unwrap_or_else(PoisonError::into_inner);
            std::mem::forget(attended.take());
        }
        self.close();
    }
}

/// Queries a backend's features and waits for the answers.
fn greet(
    socket: OwnedFd,
    time: Duration,
    demands: &Demands,
    signals: Option<SignalCheck>,
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
            Ok(None) => signals.map_or(Ok(()), |ask| ask())?,
            Err(end) => return Ok(Err(end)),
        }
    }
}
