//! What the thread does for one interposer.

use super::channel::End;
use super::demands::{Demands, Offer};
use super::link::{Cut, Link, Side};
use super::retry::Attempts;
use super::service::first_pair;
use super::shared::Shared;
use super::socket::{GREETING, Greeting, Listener, Source};
use super::stand_in::StandIn;
use super::stopping::Stopping;
use crate::Owned;
use rustix::event::PollFlags;
use rustix::fs::Mode;
use std::collections::BTreeSet;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// The pause after something that should not happen and may happen again.
pub(super) const PAUSE: Duration = Duration::from_millis(100);

/// How long a backend has to stop its rings after QEMU went.
const STOPPING: Duration = Duration::from_secs(1);

/// One interposer, as the thread sees it.
#[derive(Debug)]
pub(super) struct Relay {
    shared: Arc<Shared>,
    source: Source,
    /// Where QEMU connects to.
    listen: PathBuf,
    attempts: Attempts,
    /// How long each side has for its messages.
    patience: Duration,
    /// What the next backend must have.
    demands: Demands,
    /// The rings that the last backend served.
    rings: BTreeSet<u32>,
    /// When QEMU and the backend were joined last.
    joined: Instant,
    /// What was logged last, to say it once only.
    last_failure: String,
}

/// How far we are.
#[derive(Debug)]
pub(super) enum State {
    /// There is no backend.
    Away,
    /// There is one; it has not answered yet.
    Greeting(Greeting),
    /// There is one that lacks something: it waits until QEMU is prepared for what is left to demand.
    Held { backend: Owned, demands: Demands },
    /// There is one, and QEMU may come; not before `deaf`, for want of descriptors.
    Ready { backend: Owned, gate: Listener, deaf: Option<Instant> },
    /// They talk.
    Linked(Box<Link>),
    /// QEMU is gone, for that reason: the backend is told to stop its rings.
    Stopping(Box<(Link, Stopping, Cut)>),
    /// QEMU is to be let out of the command that makes its netdev: it may come; not before `deaf`.
    Letting { gate: Listener, deaf: Option<Instant> },
    /// It came.
    LetOut(StandIn),
    /// No backend is looked for any more.
    Over,
}

impl State {
    /// Whether it may be left as it is. A backend that may still write to our memory is waited for, but not
    /// for long.
    pub(super) fn may_end(&self) -> bool {
        !matches!(self, Self::Stopping(_))
    }
}

/// What a step waits for: one of these events at one of these sockets, or this moment.
#[derive(Debug)]
pub(super) struct Interest<'a> {
    /// Those of a link are QEMU's and the backend's.
    pub(super) sockets: [Option<(BorrowedFd<'a>, PollFlags)>; 2],
    pub(super) until: Option<Instant>,
}

impl Relay {
    pub(super) fn new(
        shared: Arc<Shared>,
        source: Source,
        listen: PathBuf,
        attempts: Attempts,
        patience: Duration,
        demands: Demands,
    ) -> Self {
        Self {
            shared,
            source,
            listen,
            attempts,
            patience,
            demands,
            rings: first_pair(),
            joined: Instant::now(),
            last_failure: String::new(),
        }
    }

    /// What to wait for before the next step.
    pub(super) fn interest<'a>(&'a self, state: &'a State) -> Interest<'a> {
        let mut sockets: [Option<(BorrowedFd<'a>, PollFlags)>; 2] = [None, None];
        let until = match state {
            State::Away => match self.source.listener() {
                // Nothing to count: whoever comes is let in when it comes.
                Some(listener) if self.attempts.are_endless() && self.attempts.is_due() => {
                    sockets[0] = Some((listener, PollFlags::IN));
                    None
                }
                _ => Some(self.attempts.due()),
            },
            State::Over => None,
            State::Letting { gate, deaf } => {
                if deaf.is_none() {
                    sockets[0] = Some((gate.as_fd(), PollFlags::IN));
                }
                Some(Instant::now() + PAUSE)
            }
            State::LetOut(qemu) => {
                sockets[0] = Some((qemu.as_fd(), qemu.interest()));
                None
            }
            State::Greeting(greeting) => {
                sockets[0] = Some((greeting.as_fd(), Greeting::INTEREST));
                Some(greeting.until)
            }
            State::Held { backend, .. } => {
                sockets[0] = Some((backend.as_fd(), PollFlags::IN));
                // Who makes a netdev meanwhile waits for no answer.
                let now = Instant::now();
                Some(if self.shared.is_accepted() { now } else { now + PAUSE })
            }
            State::Ready { backend, gate, deaf } => {
                sockets[0] = Some((backend.as_fd(), PollFlags::IN));
                if deaf.is_none() {
                    sockets[1] = Some((gate.as_fd(), PollFlags::IN));
                }
                *deaf
            }
            State::Linked(link) => {
                let (at_qemu, at_backend) = link.interest();
                sockets[0] = Some((link.qemu(), at_qemu));
                sockets[1] = Some((link.backend(), at_backend));
                link.deadline()
            }
            State::Stopping(parting) => {
                let (link, stopping, _) = &**parting;
                sockets[1] = Some((link.backend(), link.stopping_interest()));
                Some(stopping.until)
            }
        };
        Interest { sockets, until }
    }

    /// One step on, after a wait.
    pub(super) fn step(&mut self, state: State, [first, second]: [PollFlags; 2]) -> State {
        match state {
            State::Away => self.try_for_backend(),
            State::Over => State::Over,
            State::Greeting(mut greeting) => match greeting.proceed() {
                Ok(None) => State::Greeting(greeting),
                Ok(Some(offer)) => self.met(greeting.into_socket().into(), &offer),
                // One that dies has a socket for a moment more.
                Err(End::Gone) => self.failed("it was there, but it disconnected".into()),
                Err(end) => self.refused(format!("it was there, but {end}")),
            },
            State::Letting { .. } if !self.shared.trial_failed() => self.again_or_over(),
            State::Letting { gate, .. } if first.is_empty() => State::Letting { gate, deaf: None },
            State::Letting { gate, .. } => match gate.accept() {
                Ok(Some(qemu)) => State::LetOut(StandIn::new(qemu)),
                Ok(None) => State::Letting { gate, deaf: None },
                // No descriptors: nothing else is to be done.
                Err(_) => State::Letting { gate, deaf: Some(Instant::now() + PAUSE) },
            },
            State::LetOut(mut qemu) => match qemu.serve() {
                Ok(()) => State::LetOut(qemu),
                Err(_) => self.again_or_over(),
            },
            State::Held { .. } if !first.is_empty() => {
                self.shared.hold_no_more();
                self.refused("it went before QEMU came".into())
            }
            State::Held { backend, demands } => self.held(backend, demands),
            State::Ready { .. } if !first.is_empty() => {
                // It has nothing to say before QEMU asks.
                self.refused("it went, or said something, before QEMU came".into())
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
                link.set_strict(self.shared.trial_is_open());
                let served = link.serve(&self.shared.vrings, first, second, Instant::now());
                link.count(&self.shared.to_backend, &self.shared.to_qemu);
                if link.serves() {
                    self.shared.serves();
                }
                match served {
                    Ok(()) => State::Linked(link),
                    Err(cut) => {
                        self.remember(&link);
                        if cut.side == Side::Qemu {
                            let stopping = self.stop_rings();
                            return self.stopping(Box::new((*link, stopping, cut)));
                        }
                        // QEMU learns of it when the link is dropped.
                        self.shared.vrings.stopped();
                        self.parted(&cut, *link)
                    }
                }
            }
            State::Stopping(parting) => self.stopping(parting),
        }
    }

    /// Tries for a backend, if it is time.
    fn try_for_backend(&mut self) -> State {
        if !self.attempts.is_due() {
            return State::Away;
        }
        match self.source.attempt() {
            Ok(Some(socket)) => match Greeting::begin(socket, GREETING, self.demands.pairs) {
                Ok(greeting) => State::Greeting(greeting),
                Err(end) => self.refused(end.to_string()),
            },
            Ok(None) => self.failed("none has connected".into()),
            Err(e) => self.failed(e.to_string()),
        }
    }

    /// A backend has said what it offers.
    fn met(&mut self, backend: Owned, offer: &Offer) -> State {
        self.shared.features.store(offer.features, Ordering::Relaxed);
        let Some(lacking) = self.demands.lacking(offer) else {
            return self.open_gate(backend);
        };
        match self.demands.without(offer, self.shared.spared()) {
            Some(demands) => {
                self.shared.hold(lacking);
                State::Held { backend, demands }
            }
            None => self.refused(lacking),
        }
    }

    /// Whether a backend that lacks something waits any longer.
    fn held(&mut self, backend: Owned, demands: Demands) -> State {
        let accepted = self.shared.is_accepted();
        if !accepted && self.shared.spared() != 0 {
            return State::Held { backend, demands };
        }
        self.shared.hold_no_more();
        if accepted {
            self.demands = demands;
            return self.open_gate(backend);
        }
        self.refused("it lacks features that the port uses".into())
    }

    /// What the next backend must have: all that this one was told to use.
    fn remember(&mut self, link: &Link) {
        let told = link.told();
        if told.features() != 0 {
            self.demands.features = told.features();
        }
        if link.serves() && told.has(&first_pair()) {
            self.rings = told.rings();
        }
    }

    /// Lets QEMU in.
    fn open_gate(&mut self, backend: Owned) -> State {
        match Listener::open(&self.listen, Some(Mode::RUSR | Mode::WUSR)) {
            Ok(gate) => {
                self.last_failure.clear();
                State::Ready { backend, gate, deaf: None }
            }
            Err(error) => self.failed(error.to_string()),
        }
    }

    /// A backend was there, and will not do.
    fn refused(&mut self, why: String) -> State {
        self.shared.refuse(&why);
        self.failed(why)
    }

    fn failed(&mut self, why: String) -> State {
        if self.last_failure != why {
            log::info!("no vhost-user backend from {}: {why}", self.source.path().display());
            self.last_failure = why;
        }
        self.attempts.failed();
        self.next(self.last_failure.clone())
    }

    /// What comes after a failure before QEMU came: while it makes its netdev it is let in.
    fn next(&mut self, why: String) -> State {
        if !self.shared.fail_trial(why) {
            return self.again_or_over();
        }
        match Listener::open(&self.listen, Some(Mode::RUSR | Mode::WUSR)) {
            Ok(gate) => State::Letting { gate, deaf: None },
            Err(error) => {
                log::warn!("QEMU is not let out: {error}");
                self.again_or_over()
            }
        }
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

    fn joined(&mut self, qemu: OwnedFd, backend: Owned) -> State {
        log::debug!("QEMU is joined with its backend {}", self.source.path().display());
        self.shared.links.fetch_add(1, Ordering::Relaxed);
        self.joined = Instant::now();
        self.shared.connected.store(true, Ordering::Release);
        self.shared.changed.signal();
        let link = Link::new(qemu.into(), backend.into()).expecting(
            self.demands.pairs,
            self.rings.clone(),
            self.patience,
        );
        State::Linked(Box::new(link))
    }

    /// Until it has stopped, a backend whose QEMU is gone may write into buffers.
    fn stop_rings(&self) -> Stopping {
        let kicks = (0..).zip(&self.shared.vrings.kicks);
        let rings: Vec<u32> =
            kicks.filter(|(_, kick)| kick.connected()).map(|(ring, _)| ring).collect();
        self.shared.vrings.forget();
        Stopping::of(rings, STOPPING)
    }

    /// Goes on with that.
    fn stopping(&mut self, mut parting: Box<(Link, Stopping, Cut)>) -> State {
        let (link, stopping, _) = &mut *parting;
        match link.stop_rings(stopping) {
            None => return State::Stopping(parting),
            Some(true) => {}
            Some(false) => log::warn!(
                "the vhost-user backend {} did not say that it stopped its rings",
                self.source.path().display()
            ),
        }
        let (link, _, cut) = *parting;
        self.parted(&cut, link)
    }

    /// A step panicked: there is no backend any more, nor will there be one.
    pub(super) fn broke(&self) {
        let path = self.source.path().display();
        let why =
            format!("the vhost-user backend {path} is left alone after a fault of virtnic's own");
        let _ = self.shared.over.set(why); // it may be over anyway
        self.shared.disconnected();
        self.shared.changed.signal();
    }

    fn parted(&mut self, cut: &Cut, link: Link) -> State {
        let served = link.serves();
        let (who, counter) = match cut.side {
            Side::Qemu => ("QEMU", &self.shared.qemu_losses),
            Side::Backend => ("the backend", &self.shared.backend_losses),
        };
        self.shared.serves_no_more();
        counter.fetch_add(1, Ordering::Release);
        let path = self.source.path().display();
        match &cut.end {
            End::Gone => log::info!("vhost-user {path}: {who} disconnected"),
            End::Broken(why) => log::warn!("vhost-user {path}: {who} is cut off: {why}"),
        }
        if served {
            self.attempts.ended(self.joined.elapsed());
            self.last_failure = format!("{who} went as soon as it had come");
        } else {
            self.attempts.failed();
            self.last_failure = match (&cut.end, cut.side) {
                (End::Broken(why), Side::Backend) => format!("it came, but {why}"),
                (End::Gone, Side::Backend) => "it went before its rings were started".into(),
                (end, Side::Qemu) => format!("QEMU hung up on it while it was set up: {end}"),
            };
            self.shared.refuse(&self.last_failure);
        }
        self.shared.disconnected();
        if cut.side == Side::Qemu {
            drop(link);
            // Where it served that is no fault of the backend, whom another QEMU may want. And a
            // QEMU that hangs up while it makes its netdev is lost: it does so for ever.
            return if served { State::Away } else { self.again_or_over() };
        }
        if self.shared.fail_trial(self.last_failure.clone())
            && let Some(qemu) = link.into_stand_in()
        {
            return State::LetOut(qemu);
        }
        self.again_or_over()
    }
}
