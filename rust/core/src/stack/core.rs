//! A host: its thread, its lock, and how calls wait.

use super::Check;
use super::packets::Packets;
use super::state::{HostOptions, State, refuse};
use super::wire::Wire;
use crate::locks::may_wait;
use crate::process::{Home, background};
use crate::{Error, Result};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Frames taken from the wire at once.
const BURST: usize = 64;
/// A waiting call checks for signals this often.
const SLICE: Duration = Duration::from_millis(50);
/// Time between attempts to send on a full wire: the first, and the longest.
const RETRY: Duration = Duration::from_micros(50);
const RETRY_MOST: Duration = Duration::from_millis(5);
/// A thread that sends on the wire also sends the frames of other threads, this many times.
const ROUNDS: usize = 8;

/// What a host's thread and its sockets share.
pub(super) struct Shared {
    pub(super) wire: Box<dyn Wire>,
    state: Mutex<State>,
    home: Home,
}

/// A host on the network of a wire: addresses, sockets, and a thread that serves them.
///
/// Dropping it closes it: its sockets fail and its connections are reset.
pub struct Host {
    pub(super) shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Shared {
    /// Locks the state. Fails in a forked child, where the lock's owner may not exist.
    pub(super) fn lock(&self) -> Result<MutexGuard<'_, State>> {
        self.home.check("the stack")?;
        Ok(self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
    /// Whether this process created the host.
    pub(super) fn at_home(&self) -> bool {
        self.home.is_here()
    }

    /// Sends pending frames on the wire with the state unlocked. Wakes the thread if it has to act
    /// before its sleep ends.
    pub(super) fn flush<'a>(&'a self, mut state: MutexGuard<'a, State>) {
        state.pump();
        if !state.flushing && !state.stuck && state.failure.is_none() {
            state.flushing = true;
            let mut held = std::mem::take(&mut state.held);
            for round in 0.. {
                held.append(&mut state.device.outbox);
                if held.is_empty() || round == ROUNDS {
                    break;
                }
                state.device.held = held.len();
                drop(state);
                may_wait("a wire");
                let sent = self.wire.send(&held);
                state = self.state();
                match sent {
                    Ok(count) => {
                        state.counters.tx_frames += count as u64;
                        let bytes = held.iter().take(count).map(|packet| packet.bytes.len() as u64);
                        state.counters.tx_bytes += bytes.sum::<u64>();
                        held.done(count);
                    }
                    Err(error) => {
                        state.fail(error);
                        break;
                    }
                }
                state.device.held = held.len();
                if !held.is_empty() {
                    state.stuck = true;
                    break;
                }
                state.pump();
            }
            state.device.held = held.len();
            state.held = held;
            state.flushing = false;
        }
        let left = state.stuck || !state.held.is_empty() || !state.queue.is_empty();
        let first = state.timers.first().map(|(due, _)| *due).map(|due| state.moment(due));
        let sooner = match (state.asleep, first) {
            (Some(Some(until)), Some(first)) => first < until,
            (Some(None), Some(_)) => true,
            _ => false,
        };
        if state.asleep.is_some() && (left || sooner) {
            state.asleep = None;
            drop(state);
            self.wire.wake();
        }
    }

    /// Wakes the thread.
    pub(super) fn nudge(&self, mut state: MutexGuard<'_, State>) {
        state.asleep = None;
        drop(state);
        self.wire.wake();
    }

    /// Calls `attempt` until it succeeds; in between it waits for the condition variable that
    /// `changed` returns, and calls `check` at least every 50 ms. Returns `None` after the timeout.
    pub(super) fn wait_for<T>(
        &self,
        timeout: Option<Duration>,
        check: Check<'_>,
        mut attempt: impl FnMut(&mut State) -> Result<Option<T>>,
        mut changed: impl FnMut(&mut State, bool) -> Result<Arc<Condvar>>,
    ) -> Result<Option<T>> {
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        let mut state = self.lock()?;
        loop {
            let found = attempt(&mut state);
            if !matches!(found, Ok(None)) {
                self.flush(state);
                return found;
            }
            if !state.device.outbox.is_empty() || !state.queue.is_empty() {
                self.flush(state);
                state = self.lock()?;
                let found = attempt(&mut state);
                if !matches!(found, Ok(None)) {
                    self.flush(state);
                    return found;
                }
            }
            let now = Instant::now();
            let left = deadline.map_or(SLICE, |deadline| deadline.saturating_duration_since(now));
            if left.is_zero() {
                return Ok(None);
            }
            may_wait("a socket");
            let bell = changed(&mut state, true)?;
            let waited = bell.wait_timeout(state, left.min(SLICE));
            let (back, result) = waited.unwrap_or_else(PoisonError::into_inner);
            state = back;
            // If the socket is closed, the next attempt fails.
            let _ = changed(&mut state, false);
            if result.timed_out() {
                drop(state);
                check()?;
                state = self.lock()?;
            }
        }
    }

    /// Receives and sends once. Returns whether the wire is full, and how long to sleep; `None` if
    /// the host ends.
    fn turn(&self, inbox: &mut Packets) -> Result<Option<(bool, Option<Duration>)>> {
        let received = self.wire.recv(BURST, inbox)?;
        let arrived = Instant::now();
        let mut state = self.state();
        if state.ending {
            return Ok(None);
        }
        state.asleep = None;
        while let Some(packet) = inbox.pop() {
            state.ingest(packet, arrived);
        }
        state.run_timers();
        state.follow_lease();
        let common = &mut *state;
        if common.probes.arrived(&mut common.common) {
            state.news.notify_all();
        }
        if let Some(failure) = &state.failure {
            return Err(failure.clone());
        }
        state.stuck = false;
        // Reuse the storage of processed frames for received ones.
        let used = &mut state.device.used;
        used.append(inbox);
        self.flush(state);
        let mut state = self.state();
        if state.ending {
            return Ok(None);
        }
        let stuck = state.stuck;
        let rest = !state.queue.is_empty() || !state.held.is_empty();
        let more = received > 0 || (rest && !stuck);
        let pause = state.pause();
        if !more {
            state.asleep = Some(pause.map(|pause| Instant::now() + pause));
            state.counters.sleeps += u64::from(!stuck);
        }
        Ok(Some((stuck, if more { Some(Duration::ZERO) } else { pause })))
    }

    fn serve(&self) {
        let mut inbox = Packets::default();
        let mut retry = RETRY;
        let ended = loop {
            let turn =
                std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.turn(&mut inbox)));
            let turn = turn.unwrap_or_else(|_| {
                Err(Error::Device("an internal error of the TCP/IP stack".to_owned()))
            });
            let (stuck, mut pause) = match turn {
                Ok(Some(turn)) => turn,
                Ok(None) => return,
                Err(error) => break error,
            };
            if stuck {
                // The device makes room without notification.
                pause = Some(pause.map_or(retry, |pause| pause.min(retry)));
                retry = (retry * 2).min(RETRY_MOST);
            } else {
                retry = RETRY;
            }
            if pause == Some(Duration::ZERO) {
                continue;
            }
            if let Err(error) = self.sleep(pause) {
                break error;
            }
        };
        self.state().fail(ended);
    }

    /// Sleeps until a frame arrives, [`Wire::wake`] is called, or the time is over.
    fn sleep(&self, pause: Option<Duration>) -> Result<()> {
        match self.wire.wait(pause) {
            Ok(_) => Ok(()),
            Err(error) if error.is_interruption() => Ok(()),
            Err(error) => Err(error),
        }
    }
}

impl Host {
    /// Creates a host without an IPv4 address.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a wire with an unusable MAC address or MTU; [`Error::Os`] if no thread
    /// can be started.
    pub fn new(wire: Box<dyn Wire>, options: HostOptions) -> Result<Self> {
        let state = State::new(wire.mac(), wire.mtu(), wire.abilities(), options)?;
        let shared = Arc::new(Shared { wire, state: Mutex::new(state), home: Home::here() });
        let serving = shared.clone();
        let thread = background("virtnic-stack", move || serving.serve())
            .map_err(|cause| Error::os("starting the stack's thread", cause))?;
        Ok(Self { shared, thread: Mutex::new(Some(thread)) })
    }

    /// Closes the host: resets connections, fails sockets, ends the thread.
    pub fn close(&self) {
        if !self.shared.at_home() {
            return;
        }
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(thread) = thread else { return };
        let mut state = self.shared.state();
        let ids: Vec<_> = state.sockets.keys().copied().collect();
        for id in ids {
            let mut ready = None;
            if let Some(entry) = state.sockets.get_mut(&id) {
                entry.options.reset_on_close = true;
                entry.owned = true;
                ready = entry.ready.take();
            }
            state.close(id);
            if let Some(mut ready) = ready {
                // Whoever waits for the descriptor must learn of the end; closing it would wake
                // nobody, and its number would soon be another's.
                ready.set(true, true);
                state.ended.insert(id, ready);
            }
        }
        self.shared.flush(state);
        let mut state = self.shared.state();
        state.ending = true;
        state.news.notify_all();
        self.shared.nudge(state);
        may_wait("the stack's thread");
        let _ = thread.join();
        self.shared.wire.end();
    }

    /// Whether it was closed.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.thread.lock().unwrap_or_else(PoisonError::into_inner).is_none()
    }

    /// Fails unless the host works.
    ///
    /// # Errors
    /// EBADF after it was closed, ENETDOWN after its wire failed.
    pub fn check(&self) -> Result<()> {
        self.shared.lock()?.check()
    }

    /// Waits for changes of the host itself.
    pub(super) fn wait_news<T>(
        &self,
        timeout: Option<Duration>,
        check: Check<'_>,
        attempt: impl FnMut(&mut State) -> Result<Option<T>>,
    ) -> Result<Option<T>> {
        self.shared.wait_for(timeout, check, attempt, |state, _| {
            state.check()?;
            Ok(state.news.clone())
        })
    }

    /// An EINVAL error.
    pub(super) fn invalid(what: impl Into<String>) -> Error {
        refuse(libc::EINVAL, what)
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.close();
        if !self.shared.at_home()
            && let Ok(mut thread) = self.thread.lock()
        {
            // The thread does not exist in a forked child.
            std::mem::forget(thread.take());
        }
    }
}

impl std::fmt::Debug for Host {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Host").finish_non_exhaustive()
    }
}
