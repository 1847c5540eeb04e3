//! `Relay`: the state machine of one interposer.

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

/// The pause after an unexpected error that may happen again.
pub(super) const PAUSE: Duration = Duration::from_millis(100);

/// How long a backend may take to stop its rings after QEMU disconnected.
const STOPPING: Duration = Duration::from_secs(1);

/// One interposer.
#[derive(Debug)]
pub(super) struct Relay {
    shared: Arc<Shared>,
    source: Source,
    /// The path that QEMU connects to.
    listen: PathBuf,
    attempts: Attempts,
    /// The time limit of each side for a message.
    timeout: Duration,
    /// The requirements for the next backend.
    demands: Demands,
    /// The rings of the last backend.
    rings: BTreeSet<u32>,
    /// When QEMU and the backend were last connected.
    joined: Instant,
    /// The last logged failure, which is logged once.
    last_failure: String,
}

/// The state of an interposer.
#[derive(Debug)]
pub(super) enum State {
    /// There is no backend.
    Away,
    /// A backend is connected and has not answered yet.
    Greeting(Greeting),
    /// A backend lacks features: it is held until QEMU is ready for the remaining requirements.
    Held { backend: Owned, demands: Demands },
    /// A backend is ready and QEMU can connect; not before `paused`, if descriptors were exhausted.
    Ready { backend: Owned, gate: Listener, paused: Option<Instant> },
    /// QEMU and the backend are connected.
    Linked(Box<Link>),
    /// QEMU disconnected, for this reason, and the backend stops its rings.
    Stopping(Box<(Link, Stopping, Cut)>),
    /// The backend failed while QEMU creates its netdev: QEMU can connect to a stand-in; not before
    /// `paused`.
    StandInReady { gate: Listener, paused: Option<Instant> },
    /// QEMU is connected to a stand-in.
    StandInLinked(StandIn),
    /// The last attempt to reconnect has failed.
    Over,
}

impl State {
    /// Whether the interposer can be closed now. A backend that may still write to our memory gets a short
    /// time to stop.
    pub(super) fn may_end(&self) -> bool {
        !matches!(self, Self::Stopping(_))
    }
}

/// What a step waits for: events at these sockets, or this time.
#[derive(Debug)]
pub(super) struct Interest<'a> {
    /// For a link: QEMU's and the backend's.
    pub(super) sockets: [Option<(BorrowedFd<'a>, PollFlags)>; 2],
    pub(super) until: Option<Instant>,
}

impl Relay {
    pub(super) fn new(
        shared: Arc<Shared>,
        source: Source,
        listen: PathBuf,
        attempts: Attempts,
        timeout: Duration,
        demands: Demands,
    ) -> Self {
        Self {
            shared,
            source,
            listen,
            attempts,
            timeout,
            demands,
            rings: first_pair(),
            joined: Instant::now(),
            last_failure: String::new(),
        }
    }

    /// What the next step waits for.
    pub(super) fn interest<'a>(&'a self, state: &'a State) -> Interest<'a> {
        let mut sockets: [Option<(BorrowedFd<'a>, PollFlags)>; 2] = [None, None];
        let until = match state {
            State::Away => match self.source.listener() {
                // Attempts are not counted, so accept a backend whenever it connects.
                Some(listener) if self.attempts.are_endless() && self.attempts.is_due() => {
                    sockets[0] = Some((listener, PollFlags::IN));
                    None
                }
                _ => Some(self.attempts.due()),
            },
            State::Over => None,
            State::StandInReady { gate, paused } => {
                if paused.is_none() {
                    sockets[0] = Some((gate.as_fd(), PollFlags::IN));
                }
                Some(Instant::now() + PAUSE)
            }
            State::StandInLinked(qemu) => {
                sockets[0] = Some((qemu.as_fd(), qemu.interest()));
                None
            }
            State::Greeting(greeting) => {
                sockets[0] = Some((greeting.as_fd(), Greeting::INTEREST));
                Some(greeting.until)
            }
            State::Held { backend, .. } => {
                sockets[0] = Some((backend.as_fd(), PollFlags::IN));
                // A thread that creates a netdev meanwhile does not wake us.
                let now = Instant::now();
                Some(if self.shared.is_accepted() { now } else { now + PAUSE })
            }
            State::Ready { backend, gate, paused } => {
                sockets[0] = Some((backend.as_fd(), PollFlags::IN));
                if paused.is_none() {
                    sockets[1] = Some((gate.as_fd(), PollFlags::IN));
                }
                *paused
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

    /// Makes one step after a wait.
    pub(super) fn step(&mut self, state: State, [first, second]: [PollFlags; 2]) -> State {
        match state {
            State::Away => self.try_for_backend(),
            State::Over => State::Over,
            State::Greeting(mut greeting) => match greeting.proceed() {
                Ok(None) => State::Greeting(greeting),
                Ok(Some(offer)) => self.greeted(greeting.into_socket().into(), &offer),
                // A dying backend may still accept connections, so this is no refusal.
                Err(End::Gone) => self.failed("it disconnected without an answer".into()),
                Err(end) => self.refused(end.to_string()),
            },
            State::StandInReady { .. } if !self.shared.trial_failed() => self.again_or_over(),
            State::StandInReady { gate, .. } if first.is_empty() => {
                State::StandInReady { gate, paused: None }
            }
            State::StandInReady { gate, .. } => match gate.accept() {
                Ok(Some(qemu)) => State::StandInLinked(StandIn::new(qemu)),
                Ok(None) => State::StandInReady { gate, paused: None },
                // No descriptors left: try again later.
                Err(_) => State::StandInReady { gate, paused: Some(Instant::now() + PAUSE) },
            },
            State::StandInLinked(mut qemu) => match qemu.serve() {
                Ok(()) => State::StandInLinked(qemu),
                Err(_) => self.again_or_over(),
            },
            State::Held { .. } if !first.is_empty() => {
                self.shared.end_hold();
                self.refused("it disconnected before QEMU connected".into())
            }
            State::Held { backend, demands } => self.held(backend, demands),
            State::Ready { .. } if !first.is_empty() => {
                // It has nothing to send before QEMU's first request.
                self.refused("it disconnected, or sent data, before QEMU connected".into())
            }
            State::Ready { backend, gate, .. } if second.is_empty() => {
                State::Ready { backend, gate, paused: None }
            }
            State::Ready { backend, gate, .. } => match gate.accept() {
                Ok(Some(qemu)) => self.joined(qemu, backend),
                Ok(None) => State::Ready { backend, gate, paused: None },
                Err(e) => {
                    log::warn!("QEMU's connection to the vhost-user backend is delayed: {e}");
                    State::Ready { backend, gate, paused: Some(Instant::now() + PAUSE) }
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
                        // Dropping the link disconnects QEMU.
                        self.shared.vrings.stopped();
                        self.parted(&cut, *link)
                    }
                }
            }
            State::Stopping(parting) => self.stopping(parting),
        }
    }

    /// Tries to connect to a backend if the next attempt is due.
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

    /// Decides on a backend whose offer is known.
    fn greeted(&mut self, backend: Owned, offer: &Offer) -> State {
        self.shared.features.store(offer.features, Ordering::Relaxed);
        let Some(lacking) = self.demands.lacking(offer) else {
            return self.open_gate(backend);
        };
        match self.demands.without(offer, self.shared.may_lack_now()) {
            Some(demands) => {
                self.shared.hold(lacking);
                State::Held { backend, demands }
            }
            None => self.refused(lacking),
        }
    }

    /// Decides whether to continue to hold a backend.
    fn held(&mut self, backend: Owned, demands: Demands) -> State {
        let accepted = self.shared.is_accepted();
        if !accepted && self.shared.may_lack_now() != 0 {
            return State::Held { backend, demands };
        }
        self.shared.end_hold();
        if accepted {
            self.demands = demands;
            return self.open_gate(backend);
        }
        self.refused("it lacks features that the port uses".into())
    }

    /// Records what the next backend must offer: everything that this one used.
    fn remember(&mut self, link: &Link) {
        let setup = link.setup();
        if setup.features() != 0 {
            self.demands.features = setup.features();
        }
        if link.serves() && setup.has(&first_pair()) {
            self.rings = setup.rings();
        }
    }

    /// Lets QEMU connect.
    fn open_gate(&mut self, backend: Owned) -> State {
        match Listener::open(&self.listen, Some(Mode::RUSR | Mode::WUSR)) {
            Ok(gate) => {
                self.last_failure.clear();
                State::Ready { backend, gate, paused: None }
            }
            Err(error) => self.failed(error.to_string()),
        }
    }

    /// A backend connected but cannot be used.
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

    /// The state after a failure before QEMU connected: a stand-in while it creates its netdev.
    fn next(&mut self, why: String) -> State {
        if !self.shared.fail_trial(why) {
            return self.again_or_over();
        }
        match Listener::open(&self.listen, Some(Mode::RUSR | Mode::WUSR)) {
            Ok(gate) => State::StandInReady { gate, paused: None },
            Err(error) => {
                log::warn!("QEMU stays blocked without its vhost-user backend: {error}");
                self.again_or_over()
            }
        }
    }

    /// Waits for the next attempt, if any is left.
    fn again_or_over(&mut self) -> State {
        if self.attempts.left() {
            return State::Away;
        }
        let path = self.source.path().display();
        let why = if self.attempts.are_none() {
            format!("the vhost-user backend {path} disconnected")
        } else {
            let (attempts, last) = (self.attempts.failures(), &self.last_failure);
            format!("no vhost-user backend from {path} in {attempts} attempts: {last}")
        };
        log::warn!("{why}");
        let _ = self.shared.over.set(why); // not set elsewhere
        self.shared.changed.signal();
        State::Over
    }

    fn joined(&mut self, qemu: OwnedFd, backend: Owned) -> State {
        log::debug!("QEMU is connected to its backend {}", self.source.path().display());
        self.shared.links.fetch_add(1, Ordering::Relaxed);
        self.joined = Instant::now();
        self.shared.connected.store(true, Ordering::Release);
        self.shared.changed.signal();
        let link = Link::new(qemu.into(), backend.into()).expecting(
            self.demands.pairs,
            self.rings.clone(),
            self.timeout,
        );
        State::Linked(Box::new(link))
    }

    /// Starts to stop the rings of a backend whose QEMU is gone, as it may still write to buffers.
    fn stop_rings(&self) -> Stopping {
        let kicks = (0..).zip(&self.shared.vrings.kicks);
        let rings: Vec<u32> =
            kicks.filter(|(_, kick)| kick.connected()).map(|(ring, _)| ring).collect();
        self.shared.vrings.forget();
        Stopping::of(rings, STOPPING)
    }

    /// Continues to stop the rings.
    fn stopping(&mut self, mut parting: Box<(Link, Stopping, Cut)>) -> State {
        let (link, stopping, _) = &mut *parting;
        match link.stop_rings(stopping) {
            None => return State::Stopping(parting),
            Some(true) => {}
            Some(false) => log::warn!(
                "the vhost-user backend {} did not confirm that it stopped its rings",
                self.source.path().display()
            ),
        }
        let (link, _, cut) = *parting;
        self.parted(&cut, link)
    }

    /// Ends the interposer after a step has panicked.
    pub(super) fn broke(&self) {
        let path = self.source.path().display();
        let why = format!(
            "the vhost-user backend {path} was disconnected by an internal error of virtnic"
        );
        let _ = self.shared.over.set(why); // it may be set already
        self.shared.disconnected();
        self.shared.changed.signal();
    }

    fn parted(&mut self, cut: &Cut, link: Link) -> State {
        let served = link.serves();
        let (who, counter) = match cut.side {
            Side::Qemu => ("QEMU", &self.shared.qemu_losses),
            Side::Backend => ("the backend", &self.shared.backend_losses),
        };
        self.shared.stops_serving();
        counter.fetch_add(1, Ordering::Release);
        let path = self.source.path().display();
        match &cut.end {
            End::Gone => log::info!("vhost-user {path}: {who} disconnected"),
            End::Broken(why) => log::warn!("vhost-user {path}: disconnected {who}: {why}"),
        }
        if served {
            self.attempts.ended(self.joined.elapsed());
            self.last_failure = format!("{who} disconnected right after connecting");
        } else {
            self.attempts.failed();
            self.last_failure = match (&cut.end, cut.side) {
                (End::Broken(why), Side::Backend) => format!("it connected, but {why}"),
                (End::Gone, Side::Backend) => {
                    "it disconnected before its rings were started".into()
                }
                (end, Side::Qemu) => format!("QEMU disconnected during setup: {end}"),
            };
            self.shared.refuse(&self.last_failure);
        }
        self.shared.disconnected();
        if cut.side == Side::Qemu {
            drop(link);
            // If the rings were in use, the backend is not at fault, and another QEMU may connect. A QEMU
            // that disconnects while it creates its netdev does so forever.
            return if served { State::Away } else { self.again_or_over() };
        }
        if self.shared.fail_trial(self.last_failure.clone())
            && let Some(qemu) = link.into_stand_in()
        {
            return State::StandInLinked(qemu);
        }
        self.again_or_over()
    }
}
