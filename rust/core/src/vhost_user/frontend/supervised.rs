//! `FrontEnd`: a device that reconnects when its backend is lost.

use super::super::channel::End;
use super::super::demands::few_pairs;
use super::super::finding::find;
use super::super::interposer::Backend;
use super::super::message::MAX_QUEUES;
use super::super::retry::{Attempts, Retry};
use super::super::socket::{GREETING, Source};
use super::session::{Failed, Session};
use super::wire::{Failure, wait_either};
use crate::notify::EventFd;
use crate::process::{Home, background};
use crate::qtest::SignalCheck;
use crate::virtio::Features;
use crate::virtio::transport::Transport;
use crate::virtio::transport::vhost::{Driver, Vhost, VhostDevice, VhostOptions};
use crate::{Error, Result};
use rustix::event::PollFlags;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How often a held backend is checked.
const LOOK: Duration = Duration::from_millis(20);

/// Options of a front-end.
#[derive(Clone, Debug)]
pub struct FrontEndOptions {
    /// The backend's socket.
    pub backend: Backend,
    /// How long to wait for the first backend.
    pub wait: Duration,
    /// How to reconnect to a lost backend.
    pub retry: Retry,
    /// Signalled when something [changes](FrontEnd::changed), and not closed by the front-end. By
    /// default, it creates one.
    pub changed: Option<Arc<EventFd>>,
    /// The device.
    pub device: VhostOptions,
}

/// Counters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct FrontEndStats {
    /// Messages sent.
    pub messages: u64,
    /// Backends that were used; all but the first are reconnects.
    pub links: u64,
    /// Backends that connected but were not used.
    pub refusals: u64,
    /// Used backends that disconnected, broke the protocol or did not answer.
    pub losses: u64,
    /// Kicks while there was no backend.
    pub kicks_lost: u64,
}

/// The state shared by the thread and the users.
#[derive(Debug)]
struct Shared {
    device: Arc<VhostDevice>,
    path: String,
    signals: Option<SignalCheck>,
    /// Ends the thread, and its waits for a backend.
    stop: Arc<EventFd>,
    changed: Arc<EventFd>,
    changed_is_shared: bool,
    may_lack: AtomicU64,
    held: Mutex<Option<String>>,
    refusal: Mutex<Option<String>>,
    over: OnceLock<String>,
    connected: AtomicBool,
    offered: AtomicU64,
    messages: Arc<AtomicU64>,
    links: AtomicU64,
    refusals: AtomicU64,
    losses: AtomicU64,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A virtio-net device whose rings a vhost-user backend processes.
///
/// It is driven like any other ([`FrontEnd::transport`]). When the backend is lost, the link goes down,
/// and frames wait in the rings for the next backend. Closed on drop.
#[derive(Debug)]
pub struct FrontEnd {
    home: Home,
    shared: Arc<Shared>,
    /// The thread's initial state, before it is started.
    seed: Mutex<Option<Seed>>,
    thread: Mutex<Option<JoinHandle<()>>>,
    first: Mutex<Option<OwnedFd>>,
}

/// The initial state of the thread.
#[derive(Debug)]
struct Seed {
    source: Source,
    /// The first backend's socket.
    socket: OwnedFd,
    attempts: Attempts,
}

/// What a front-end is made of.
struct Whole {
    vhost: Box<dyn Vhost>,
    path: String,
    stop: Arc<EventFd>,
    changed: Option<Arc<EventFd>>,
    messages: Arc<AtomicU64>,
    device: VhostOptions,
}

impl Whole {
    fn front_end(self, seed: Option<Seed>, first: Option<OwnedFd>) -> Result<FrontEnd> {
        let Self { vhost, path, stop, changed, messages, device } = self;
        let signals = device.signals;
        let changed_is_shared = changed.is_some();
        let changed = changed.map_or_else(|| EventFd::new().map(Arc::new), Ok)?;
        let shared = Arc::new(Shared {
            offered: AtomicU64::new(vhost.offered()),
            device: Arc::new(VhostDevice::new(vhost, device)),
            path,
            signals,
            stop,
            changed,
            changed_is_shared,
            may_lack: AtomicU64::new(0),
            held: Mutex::default(),
            refusal: Mutex::default(),
            over: OnceLock::new(),
            connected: AtomicBool::new(true),
            messages,
            links: AtomicU64::new(1),
            refusals: AtomicU64::new(0),
            losses: AtomicU64::new(0),
        });
        Ok(FrontEnd {
            home: Home::here(),
            shared,
            seed: Mutex::new(seed),
            thread: Mutex::default(),
            first: Mutex::new(first),
        })
    }
}

impl FrontEnd {
    /// Connects to the backend, waiting up to [`FrontEndOptions::wait`] for it. The backend gets the rings
    /// once the driver has set up the device. It is supervised after [`Self::watch`].
    ///
    /// # Errors
    /// [`Error::Os`] (ENOENT, ECONNREFUSED if no backend listens); [`Error::Timeout`] if none connects or
    /// it does not answer; [`Error::Qemu`] if it gives a wrong answer, disconnects or has too few queue
    /// pairs; [`Error::Invalid`].
    pub fn start(options: FrontEndOptions) -> Result<Self> {
        let FrontEndOptions { backend, wait, retry, changed, device } = options;
        if usize::from(device.pairs) * 2 > MAX_QUEUES {
            return Err(Error::Invalid(format!(
                "a vhost-user device can have up to {} queue pairs, not {}",
                MAX_QUEUES / 2,
                device.pairs
            )));
        }
        let source = match &backend {
            Backend::Connect(path) => Source::connect(path),
            Backend::Listen(path) => Source::listen(path),
        }?;
        let stop = Arc::new(EventFd::new()?);
        let messages = Arc::<AtomicU64>::default();
        let (pairs, signals) = (device.pairs, device.signals);
        let path = source.path().display().to_string();
        let session = find(&source, wait, signals, |socket, time| {
            let meet = |socket| {
                let (stop, messages) = (Some(Arc::clone(&stop)), Arc::clone(&messages));
                Session::greet(socket, &path, time, signals, stop, messages)
            };
            match meet(socket) {
                Ok(session) if session.pairs() < pairs => {
                    Ok(Err(End::Broken(few_pairs(session.pairs().into(), pairs))))
                }
                Ok(session) => Ok(Ok(session)),
                Err(Failed { error: Error::Timeout(_), .. }) => Ok(Err(End::Broken(format!(
                    "it accepts connections, but did not answer for {} s",
                    time.as_secs_f32()
                )))),
                Err(Failed { end: Some(end), error }) if !error.is_interruption() => Ok(Err(end)),
                Err(Failed { error, .. }) => Err(error),
            }
        })?;
        let duplicate = || {
            let copied = session.socket().try_clone_to_owned();
            copied.map_err(|e| Error::os("keeping a vhost-user backend's socket", e))
        };
        let (socket, first) = (duplicate()?, duplicate().ok());
        let seed = Seed { source, socket, attempts: Attempts::new(retry) };
        let whole = Whole { vhost: Box::new(session), path, stop, changed, messages, device };
        whole.front_end(Some(seed), first)
    }

    /// A device whose backend is there as long as the device is, such as the kernel.
    ///
    /// `name` is its name in messages, `changed` as in [`FrontEndOptions`].
    ///
    /// # Errors
    /// [`Error::Invalid`] if it has too few queue pairs, [`Error::Os`].
    pub fn fixed(
        vhost: Box<dyn Vhost>,
        name: String,
        changed: Option<Arc<EventFd>>,
        device: VhostOptions,
    ) -> Result<Self> {
        if vhost.pairs() < device.pairs {
            return Err(Error::Invalid(few_pairs(vhost.pairs().into(), device.pairs)));
        }
        let (stop, messages) = (Arc::new(EventFd::new()?), Arc::default());
        Whole { vhost, path: name, stop, changed, messages, device }.front_end(None, None)
    }

    /// The device's registers.
    pub fn transport(&self) -> Arc<dyn Transport> {
        Arc::<VhostDevice>::clone(&self.shared.device)
    }

    /// Registers the driver of a queue, which is called when backends stop and start. Before
    /// [`Self::watch`].
    pub fn follow(&self, queue: u16, driver: Arc<dyn Driver>) {
        self.shared.device.follow(queue, driver);
    }

    /// Starts to supervise the backend. Idempotent.
    ///
    /// # Errors
    /// [`Error::Os`] if the thread cannot be started.
    pub fn watch(&self) -> Result<()> {
        let mut thread = lock(&self.thread);
        let Some(seed) = lock(&self.seed).take() else { return Ok(()) };
        let Seed { source, socket, attempts } = seed;
        let shared = Arc::clone(&self.shared);
        let supervisor = Supervisor { shared, source, attempts, last_failure: String::new() };
        let handle = background("virtnic-vhost", move || supervisor.run(socket))
            .map_err(|e| Error::os("starting a vhost-user front-end's thread", e))?;
        *thread = Some(handle);
        Ok(())
    }

    /// Whether a backend is connected.
    pub fn connected(&self) -> bool {
        self.shared.connected.load(Ordering::Acquire)
    }
    /// Whether a backend processes the rings.
    pub fn serving(&self) -> bool {
        self.connected() && self.shared.device.is_served()
    }
    /// Sets the features that a new backend may lack. Such a backend is not refused but held until the
    /// driver has reset the device to negotiate again.
    pub fn may_lack(&self, features: u64) {
        self.shared.may_lack.store(features, Ordering::Relaxed);
    }
    /// What a held backend lacks.
    pub fn held(&self) -> Option<String> {
        lock(&self.shared.held).clone()
    }
    /// Why the last backend that connected is not used; `None` if it is, or none has connected.
    pub fn refusal(&self) -> Option<String> {
        lock(&self.shared.refusal).clone()
    }
    /// Takes the first backend's socket, which identifies its process.
    pub fn take_first(&self) -> Option<OwnedFd> {
        lock(&self.first).take()
    }
    /// The feature bits that the last backend offered.
    pub fn features(&self) -> u64 {
        self.shared.offered.load(Ordering::Relaxed)
    }
    /// Why the front-end has stopped to reconnect, if it has.
    pub fn given_up(&self) -> Option<&str> {
        self.shared.over.get().map(String::as_str)
    }
    /// Signalled when [`Self::connected`], [`Self::serving`], [`Self::refusal`], [`Self::held`] or
    /// [`Self::given_up`] changes.
    pub fn changed(&self) -> &Arc<EventFd> {
        &self.shared.changed
    }
    /// The counters.
    pub fn stats(&self) -> FrontEndStats {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let Shared { messages, links, refusals, losses, device, .. } = &*self.shared;
        FrontEndStats {
            messages: get(messages),
            links: get(links),
            refusals: get(refusals),
            losses: get(losses),
            kicks_lost: device.kicks_lost(),
        }
    }

    /// Disconnects and removes the socket file, if any. The driver must have ended. Idempotent; does
    /// nothing in a forked child.
    pub fn close(&self) {
        if !self.home.is_here() {
            return;
        }
        self.shared.stop.signal();
        let handle = lock(&self.thread).take();
        if let Some(handle) = handle {
            // A thread that panicked has printed why.
            let _ = handle.join();
        }
        drop(lock(&self.seed).take());
        drop(self.take_first());
        if self.shared.connected.swap(false, Ordering::AcqRel) {
            self.shared.device.lost();
        }
        self.shared.stop.close();
        if !self.shared.changed_is_shared {
            self.shared.changed.close();
        }
    }
}

impl Drop for FrontEnd {
    fn drop(&mut self) {
        if !self.home.is_here() {
            // The thread does not exist in a forked child, and the socket file is the parent's.
            std::mem::forget(lock(&self.thread).take());
            std::mem::forget(lock(&self.seed).take());
        }
        self.close();
    }
}

/// The thread that supervises a device's backend.
struct Supervisor {
    shared: Arc<Shared>,
    source: Source,
    attempts: Attempts,
    last_failure: String,
}

/// The front-end was closed.
struct Stopped;

impl Supervisor {
    fn run(mut self, first: OwnedFd) {
        let mut socket = first;
        loop {
            let since = Instant::now();
            if self.until_gone(&socket).is_err() {
                return;
            }
            drop(socket);
            self.lost(since.elapsed());
            match self.next() {
                Ok(Some(next)) => socket = next,
                Ok(None) | Err(Stopped) => return,
            }
        }
    }

    /// Waits until the backend's connection ends.
    fn until_gone(&self, socket: &OwnedFd) -> Result<(), Stopped> {
        loop {
            match wait_either(socket.as_fd(), PollFlags::RDHUP, Some(&self.shared.stop), None) {
                Ok(false) => {}
                Ok(true) => return Ok(()),
                Err(Failure::Stopped(Error::Os { .. })) => std::thread::sleep(LOOK),
                Err(_) => return Err(Stopped),
            }
        }
    }

    fn lost(&mut self, lasted: Duration) {
        let shared = &self.shared;
        log::info!("vhost-user {}: the backend is gone", shared.path);
        shared.connected.store(false, Ordering::Release);
        shared.device.lost();
        shared.losses.fetch_add(1, Ordering::Release);
        shared.changed.signal();
        self.attempts.ended(lasted);
        self.last_failure = "the backend disconnected right after connecting".into();
    }

    /// Connects to the next backend; `None` after the last attempt.
    fn next(&mut self) -> Result<Option<OwnedFd>, Stopped> {
        while self.attempts.left() {
            self.pause()?;
            let failure = match self.source.attempt() {
                Ok(Some(socket)) => match self.start(socket)? {
                    Ok(socket) => return Ok(Some(socket)),
                    Err(why) => {
                        *lock(&self.shared.refusal) = Some(why.clone());
                        self.shared.refusals.fetch_add(1, Ordering::Relaxed);
                        self.shared.changed.signal();
                        why
                    }
                },
                Ok(None) => "none has connected".to_owned(),
                Err(e) => e.to_string(),
            };
            if self.last_failure != failure {
                log::info!("no vhost-user backend from {}: {failure}", self.shared.path);
                self.last_failure = failure;
            }
            self.attempts.failed();
        }
        let path = &self.shared.path;
        let why = if self.attempts.are_none() {
            format!("the vhost-user backend {path} disconnected")
        } else {
            let (attempts, last) = (self.attempts.failures(), &self.last_failure);
            format!("no vhost-user backend from {path} in {attempts} attempts: {last}")
        };
        log::warn!("{why}");
        let _ = self.shared.over.set(why); // not set elsewhere
        self.shared.changed.signal();
        Ok(None)
    }

    /// Waits for the time of the next attempt, or for a backend to connect to us.
    fn pause(&self) -> Result<(), Stopped> {
        loop {
            let left = self.attempts.due().saturating_duration_since(Instant::now());
            let waited = match self.source.listener() {
                // Attempts are not counted, so accept a backend whenever it connects.
                Some(listener) if self.attempts.are_endless() && left.is_zero() => {
                    let come = wait_either(listener, PollFlags::IN, Some(&self.shared.stop), None);
                    come.map_err(|_| Stopped)
                }
                _ => match self.shared.stop.wait(Some(left)) {
                    Ok(true) => return Err(Stopped),
                    _ => Ok(left.is_zero()),
                },
            };
            if waited? {
                return Ok(());
            }
        }
    }

    /// Greets and starts a backend. The inner error says why it is not used.
    fn start(&self, socket: OwnedFd) -> Result<Result<OwnedFd, String>, Stopped> {
        let shared = &self.shared;
        let (stop, messages) = (Some(Arc::clone(&shared.stop)), Arc::clone(&shared.messages));
        let session =
            match Session::greet(socket, &shared.path, GREETING, shared.signals, stop, messages) {
                Ok(session) => session,
                Err(Failed { end: _, error: Error::Closed(_) }) => return Err(Stopped),
                Err(Failed { error, .. }) => return Ok(Err(error.to_string())),
            };
        let socket = match session.socket().try_clone_to_owned() {
            Ok(socket) => socket,
            Err(e) => return Ok(Err(e.to_string())),
        };
        let offered = session.offered();
        shared.offered.store(offered, Ordering::Relaxed);
        let wanted = shared.device.pairs().unwrap_or(1);
        if session.pairs() < wanted {
            return Ok(Err(few_pairs(session.pairs().into(), wanted)));
        }
        if let Err(why) = self.hold(&socket, offered)? {
            return Ok(Err(why));
        }
        match shared.device.returned(Box::new(session)) {
            Ok(()) => {}
            Err(Error::Closed(_)) => return Err(Stopped),
            Err(error) => return Ok(Err(error.to_string())),
        }
        *lock(&shared.refusal) = None;
        shared.connected.store(true, Ordering::Release);
        shared.links.fetch_add(1, Ordering::Relaxed);
        shared.changed.signal();
        Ok(Ok(socket))
    }

    /// Holds a backend that lacks negotiated features which the driver can do without, until the driver
    /// has negotiated again. The inner error says what it lacks.
    fn hold(&self, socket: &OwnedFd, offered: u64) -> Result<Result<(), String>, Stopped> {
        let shared = &self.shared;
        let missing = || shared.device.demanded() & !offered;
        if missing() == 0 {
            return Ok(Ok(()));
        }
        let lacking = format!(
            "it is there, but without {}, which the port needs",
            Features(missing().into())
        );
        if missing() & !shared.may_lack.load(Ordering::Relaxed) != 0 {
            return Ok(Err(lacking));
        }
        shared.device.expect(offered);
        *lock(&shared.held) = Some(lacking.clone());
        shared.changed.signal();
        let held = loop {
            match wait_either(socket.as_fd(), PollFlags::RDHUP, Some(&shared.stop), Some(LOOK)) {
                Ok(false) if missing() == 0 => break Ok(Ok(())),
                Ok(false) => {}
                Ok(true) => break Ok(Err("it disconnected while it was held".to_owned())),
                Err(_) => break Err(Stopped),
            }
        };
        *lock(&shared.held) = None;
        held
    }
}
