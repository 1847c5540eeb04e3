//! What users hold, and the one thread behind it.

use super::channel::End;
use super::link::{Cut, Link, Side};
use super::message::MAX_QUEUES;
use super::retry::{Attempts, Retry};
use super::rewrite::{Driver, Vrings};
use super::socket::{GREETING, Greeting, Listener, Source, may_come};
use crate::notify::{EventFd, Kick, timespec, wait_readable};
use crate::process::{Home, background};
use crate::qtest::Patience;
use crate::{Error, Result};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::Mode;
use rustix::io::Errno;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// The pause after something that should not happen and may happen again.
const PAUSE: Duration = Duration::from_millis(100);
/// The longest that a waiting caller is not asked whether to go on.
const SLICE: Duration = Duration::from_millis(100);

/// How long a backend has to stop its rings after QEMU went.
const STOPPING: Duration = Duration::from_secs(1);

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
    /// Links that ended because the backend went, broke the protocol or hung.
    pub backend_losses: u64,
    /// Links that ended because QEMU went or broke the protocol.
    pub qemu_losses: u64,
    /// Kick eventfds learnt.
    pub kicks_learnt: u64,
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
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// What the thread and the users have in common.
#[derive(Debug)]
struct Shared {
    vrings: Vrings,
    connected: AtomicBool,
    features: AtomicU64,
    changed: Arc<EventFd>,
    stop: EventFd,
    /// Why no backend is looked for any more.
    over: OnceLock<String>,
    to_backend: AtomicU64,
    to_qemu: AtomicU64,
    links: AtomicU64,
    backend_losses: AtomicU64,
    qemu_losses: AtomicU64,
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
        Self::start_patiently(listen, backend, wait, calls, Retry::default(), None)
    }

    /// As [`Self::start`], with another way to look for a backend that went; every 100 ms of
    /// waiting asks `patience`, in its own thread, whether to go on.
    ///
    /// # Errors
    /// See [`Self::start`], and what `patience` returns.
    pub fn start_patiently(
        listen: &Path,
        backend: Backend,
        wait: Duration,
        calls: Vec<Option<Arc<EventFd>>>,
        retry: Retry,
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
        let (socket, features) = find(&source, wait, patience)?;
        let gate = Listener::open(listen, Some(Mode::RUSR | Mode::WUSR))?;
        let shared = Arc::new(Shared {
            vrings: Vrings::new(calls),
            connected: AtomicBool::new(false),
            features: AtomicU64::new(features),
            changed: Arc::new(EventFd::new()?),
            stop: EventFd::new()?,
            over: OnceLock::new(),
            to_backend: AtomicU64::new(0),
            to_qemu: AtomicU64::new(0),
            links: AtomicU64::new(0),
            backend_losses: AtomicU64::new(0),
            qemu_losses: AtomicU64::new(0),
        });
        let relay = Relay {
            shared: Arc::clone(&shared),
            source,
            listen: listen.to_owned(),
            attempts: Attempts::new(retry),
            joined: Instant::now(),
            last_failure: String::new(),
        };
        let ready = State::Ready { backend: socket, gate, deaf: None };
        let thread = background("virtnic-vhost", move || relay.run(ready))
            .map_err(|e| Error::os("starting the vhost-user interposer's thread", e))?;
        Ok(Self { home: Home::here(), shared, thread: Mutex::new(Some(thread)) })
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

    /// The feature bits that the backend offered when it came last, before QEMU took
    /// away or added any.
    pub fn features(&self) -> u64 {
        self.shared.features.load(Ordering::Relaxed)
    }

    /// Why no backend is looked for any more, once that is so: see [`Retry::attempts`].
    pub fn given_up(&self) -> Option<&str> {
        self.shared.over.get().map(String::as_str)
    }

    /// Signalled when [`Self::connected`] or [`Self::given_up`] changes.
    pub fn changed(&self) -> &Arc<EventFd> {
        &self.shared.changed
    }

    /// What has happened so far.
    pub fn stats(&self) -> Stats {
        let Shared { vrings, to_backend, to_qemu, links, backend_losses, qemu_losses, .. } =
            &*self.shared;
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Stats {
            messages_to_backend: get(to_backend),
            messages_to_qemu: get(to_qemu),
            links: get(links),
            backend_losses: get(backend_losses),
            qemu_losses: get(qemu_losses),
            kicks_learnt: get(&vrings.learnt),
            calls_replaced: get(&vrings.replaced),
            kicks_lost: vrings.kicks.iter().map(|kick| kick.lost()).sum(),
        }
    }

    /// Ends the connections and the thread, and removes the socket files. Closing twice is
    /// fine. Nothing in a forked child.
    pub fn close(&self) {
        if !self.home.is_here() {
            return;
        }
        self.shared.stop.signal();
        let mut thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(handle) = thread.take() {
            // A thread that panicked has printed why.
            let _ = handle.join();
            self.shared.disconnected();
        }
    }
}

impl Drop for Interposer {
    fn drop(&mut self) {
        if !self.home.is_here() {
            // There is no such thread here: the handle's end would detach somebody else's.
            let thread = self.thread.get_mut().unwrap_or_else(PoisonError::into_inner);
            std::mem::forget(thread.take());
        }
        self.close();
    }
}

impl Shared {
    fn disconnected(&self) {
        self.vrings.forget();
        if self.connected.swap(false, Ordering::AcqRel) {
            self.changed.signal();
        }
    }
}

/// Gets the first backend, in the caller's thread: the connection and its feature bits.
fn find(source: &Source, wait: Duration, patience: Option<Patience>) -> Result<(OwnedFd, u64)> {
    let path = source.path().display();
    let started = Instant::now();
    loop {
        let failure = match source.attempt() {
            Ok(Some(socket)) => {
                match greet(socket, wait.saturating_sub(started.elapsed()).max(GREETING), patience)?
                {
                    Ok(found) => return Ok(found),
                    Err(End::Gone) => Error::Qemu(format!(
                        "the vhost-user backend at {path} closed the connection at once; it may \
                     serve somebody else"
                    )),
                    // It is there and will not get better.
                    Err(End::Broken(why)) => {
                        return Err(Error::Qemu(format!(
                            "the vhost-user backend at {path}: {why}"
                        )));
                    }
                }
            }
            Ok(None) => Error::Timeout(format!(
                "no vhost-user backend connected to {path} within {wait:?}; start it (as a \
                 client), or wait longer with wait=SECONDS"
            )),
            Err(e) if may_come(e) => absent(source, wait, e),
            Err(e) => {
                return Err(Error::os(format!("connecting to the vhost-user backend {path}"), e));
            }
        };
        let left = wait.saturating_sub(started.elapsed());
        if left.is_zero() {
            return Err(failure);
        }
        match source.listener() {
            Some(listener) => {
                uninterrupted(wait_readable(listener, Some(left.min(SLICE))))?;
            }
            None => std::thread::sleep(left.min(SLICE / 5)),
        }
        patience.map_or(Ok(()), |ask| ask())?;
    }
}

/// The error of a backend that is not there.
fn absent(source: &Source, wait: Duration, error: Errno) -> Error {
    let within = if wait.is_zero() { String::new() } else { format!(" within {wait:?}") };
    match Error::os("", error) {
        Error::Os { message, errno, .. } => Error::Os {
            what: format!("no vhost-user backend listens at {}{within}", source.path().display()),
            message: format!("{message}; start it first, or wait for it with wait=SECONDS"),
            errno,
        },
        other => other,
    }
}

/// Asks a backend for its features, and waits for the answer.
fn greet(
    socket: OwnedFd,
    time: Duration,
    patience: Option<Patience>,
) -> Result<Result<(OwnedFd, u64), End>> {
    let mut greeting = match Greeting::begin(socket, time) {
        Ok(greeting) => greeting,
        Err(end) => return Ok(Err(end)),
    };
    loop {
        uninterrupted(wait_readable(greeting.as_fd(), Some(SLICE)))?;
        match greeting.proceed() {
            Ok(Some(features)) => return Ok(Ok((greeting.into_socket(), features))),
            Ok(None) => patience.map_or(Ok(()), |ask| ask())?,
            Err(end) => return Ok(Err(end)),
        }
    }
}

/// A wait that a signal ended is over like any other: `patience` looks at the signal.
fn uninterrupted(waited: Result<bool>) -> Result<()> {
    match waited {
        Err(Error::Os { errno, .. }) if errno == Errno::INTR.raw_os_error() => Ok(()),
        other => other.map(drop),
    }
}

/// The thread's.
#[derive(Debug)]
struct Relay {
    shared: Arc<Shared>,
    source: Source,
    /// Where QEMU connects to.
    listen: PathBuf,
    attempts: Attempts,
    /// When QEMU and the backend were joined last.
    joined: Instant,
    /// What was logged last, to say it once only.
    last_failure: String,
}

/// How far we are.
#[derive(Debug)]
enum State {
    /// There is no backend.
    Away,
    /// There is one; it has not answered yet.
    Greeting(Greeting),
    /// There is one, and QEMU may come; not before `deaf`, for want of descriptors.
    Ready { backend: OwnedFd, gate: Listener, deaf: Option<Instant> },
    /// They talk.
    Linked(Box<Link>),
    /// No backend is looked for any more.
    Over,
}

impl Relay {
    /// Nothing in it blocks but the one poll.
    fn run(mut self, mut state: State) {
        loop {
            let events = match self.wait(&state) {
                Ok(Some(events)) => events,
                Ok(None) => break,
                Err(Errno::INTR) => continue,
                Err(e) => {
                    log::warn!("the vhost-user interposer cannot wait: {e}");
                    std::thread::sleep(PAUSE);
                    continue;
                }
            };
            state = self.step(state, events);
        }
    }

    /// Waits until there is something to do; `None` is the end. The two events are those of
    /// the two sockets of a link, or the first is that of the one socket there is.
    fn wait(&self, state: &State) -> Result<Option<[PollFlags; 2]>, Errno> {
        let nothing = PollFlags::empty();
        let mut watched: [Option<(BorrowedFd<'_>, PollFlags)>; 2] = [None, None];
        let until = match state {
            State::Away => match self.source.listener() {
                // Nothing to count: whoever comes is let in when it comes.
                Some(listener) if self.attempts.are_endless() && self.attempts.is_due() => {
                    watched[0] = Some((listener, PollFlags::IN));
                    None
                }
                _ => Some(self.attempts.due()),
            },
            State::Over => None,
            State::Greeting(greeting) => {
                watched[0] = Some((greeting.as_fd(), Greeting::INTEREST));
                Some(greeting.until)
            }
            State::Ready { backend, gate, deaf } => {
                watched[0] = Some((backend.as_fd(), PollFlags::IN));
                if deaf.is_none() {
                    watched[1] = Some((gate.as_fd(), PollFlags::IN));
                }
                *deaf
            }
            State::Linked(link) => {
                let (at_qemu, at_backend) = link.interest();
                watched[0] = Some((link.qemu(), at_qemu));
                watched[1] = Some((link.backend(), at_backend));
                link.deadline()
            }
        };
        let mut fds = vec![PollFd::new(&self.shared.stop, PollFlags::IN)];
        let polled = watched.map(|one| match one {
            Some((fd, interest)) if interest != nothing => {
                fds.push(PollFd::from_borrowed_fd(fd, interest));
                true
            }
            _ => false,
        });
        let left = until.map(|t| t.saturating_duration_since(Instant::now()));
        poll(&mut fds, timespec(left).as_ref())?;
        let mut events = fds.iter().map(PollFd::revents);
        if events.next() != Some(nothing) {
            return Ok(None);
        }
        Ok(Some(polled.map(|was| if was { events.next().unwrap_or(nothing) } else { nothing })))
    }

    /// One step on, after a wait.
    fn step(&mut self, state: State, [first, second]: [PollFlags; 2]) -> State {
        match state {
            State::Away => self.try_for_backend(),
            State::Over => State::Over,
            State::Greeting(mut greeting) => match greeting.proceed() {
                Ok(None) => State::Greeting(greeting),
                Ok(Some(features)) => {
                    self.shared.features.store(features, Ordering::Relaxed);
                    self.open_gate(greeting.into_socket())
                }
                Err(end) => self.failed(format!("it was there, but {end}")),
            },
            State::Ready { .. } if !first.is_empty() => {
                // It has nothing to say before QEMU asks.
                self.failed("it went before QEMU came".into())
            }
            State::Ready { backend, gate, .. } if second.is_empty() => {
                State::Ready { backend, gate, deaf: None }
            }
            State::Ready { backend, gate, .. } => match gate.accept() {
                Ok(Some(qemu)) => self.joined(qemu, backend),
                Ok(None) => State::Ready { backend, gate, deaf: None },
                Err(e) => {
                    log::warn!("QEMU must wait for its vhost-user backend: {e}");
                    State::Ready { backend, gate, deaf: Some(Instant::now() + PAUSE) }
                }
            },
            State::Linked(mut link) => {
                let served = link.serve(&self.shared.vrings, first, second, Instant::now());
                link.count(&self.shared.to_backend, &self.shared.to_qemu);
                match served {
                    Ok(()) => State::Linked(link),
                    Err(cut) => {
                        match cut.side {
                            Side::Qemu => self.stop_rings(&mut link),
                            // QEMU learns of it when the link is dropped.
                            Side::Backend => self.shared.vrings.stopped(),
                        }
                        self.parted(&cut)
                    }
                }
            }
        }
    }

    /// Tries for a backend, if it is time.
    fn try_for_backend(&mut self) -> State {
        if !self.attempts.is_due() {
            return State::Away;
        }
        match self.source.attempt() {
            Ok(Some(socket)) => match Greeting::begin(socket, GREETING) {
                Ok(greeting) => State::Greeting(greeting),
                Err(end) => self.failed(end.to_string()),
            },
            Ok(None) => self.failed("none has connected".into()),
            Err(e) => self.failed(e.to_string()),
        }
    }

    /// Lets QEMU in.
    fn open_gate(&mut self, backend: OwnedFd) -> State {
        match Listener::open(&self.listen, Some(Mode::RUSR | Mode::WUSR)) {
            Ok(gate) => {
                self.last_failure.clear();
                State::Ready { backend, gate, deaf: None }
            }
            Err(error) => self.failed(error.to_string()),
        }
    }

    fn failed(&mut self, why: String) -> State {
        if self.last_failure != why {
            log::info!("no vhost-user backend from {}: {why}", self.source.path().display());
            self.last_failure = why;
        }
        self.attempts.failed();
        self.again_or_over()
    }

    /// Waits before the next attempt, if there is to be one.
    fn again_or_over(&mut self) -> State {
        if self.attempts.left() {
            return State::Away;
        }
        let path = self.source.path().display();
        let why = if self.attempts.are_none() {
            format!("the vhost-user backend {path} went")
        } else {
            let (attempts, last) = (self.attempts.failures(), &self.last_failure);
            format!("no vhost-user backend from {path} in {attempts} attempts: {last}")
        };
        log::warn!("{why}");
        let _ = self.shared.over.set(why); // nobody else sets it
        self.shared.changed.signal();
        State::Over
    }

    fn joined(&mut self, qemu: OwnedFd, backend: OwnedFd) -> State {
        log::debug!("QEMU is joined with its backend {}", self.source.path().display());
        self.shared.links.fetch_add(1, Ordering::Relaxed);
        self.joined = Instant::now();
        self.shared.connected.store(true, Ordering::Release);
        self.shared.changed.signal();
        State::Linked(Box::new(Link::new(qemu, backend)))
    }

    /// Until it has stopped, a backend whose QEMU is gone may write into buffers.
    fn stop_rings(&self, link: &mut Link) {
        let kicks = (0..).zip(&self.shared.vrings.kicks);
        let rings: Vec<u32> =
            kicks.filter(|(_, kick)| kick.connected()).map(|(ring, _)| ring).collect();
        self.shared.vrings.forget();
        if !link.stop_rings(&rings, STOPPING) {
            log::warn!(
                "the vhost-user backend {} did not say that it stopped its rings",
                self.source.path().display()
            );
        }
    }

    fn parted(&mut self, cut: &Cut) -> State {
        let (who, counter) = match cut.side {
            Side::Qemu => ("QEMU", &self.shared.qemu_losses),
            Side::Backend => ("the backend", &self.shared.backend_losses),
        };
        counter.fetch_add(1, Ordering::Relaxed);
        let path = self.source.path().display();
        match &cut.end {
            End::Gone => log::info!("vhost-user {path}: {who} disconnected"),
            End::Broken(why) => log::warn!("vhost-user {path}: {who} is cut off: {why}"),
        }
        self.shared.disconnected();
        self.attempts.ended(self.joined.elapsed());
        self.last_failure = format!("{who} went as soon as it had come");
        if cut.side == Side::Qemu {
            return State::Away; // no fault of the backend, whom another QEMU may want
        }
        self.again_or_over()
    }
}
