//! Matches replies with requests, dispatches interrupts, and handles the end of the connection.
//!
//! QTest replies have no request ids but arrive in the order of the requests. A request gets a slot in
//! the queue before its line is written, and the reading thread removes one slot per reply. No I/O
//! happens here.

use super::kept::{Before, Kept};
use super::signals::SignalCheck;
use super::sync::{Condvar, Mutex, MutexGuard, lock, wait};
use super::wire::{Answer, Command, Incoming, MAX_IRQ, quote};
use crate::locks::may_wait;
use crate::{Error, Result};
use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

/// The most requests without a reply; more wait, so that memory is bounded.
pub(super) const MAX_OUTSTANDING: usize = 1024;
/// How often a waiting thread calls its [`SignalCheck`].
const SLICE: Duration = Duration::from_millis(100);

/// Signalled by an interrupt or the end: an eventfd, or a fake in a model.
pub(super) trait Signal {
    fn signal(&self);
}

/// Why the connection ended.
#[derive(Clone, Debug)]
pub(super) enum End {
    /// We closed it.
    Closed,
    /// QEMU ended or broke the protocol.
    Died(String),
}

impl End {
    pub(super) fn error(&self) -> Error {
        match self {
            Self::Closed => Error::Closed("the QTest connection was closed".into()),
            Self::Died(why) => Error::QemuDied(why.clone()),
        }
    }
}

/// A request without a reply yet.
#[derive(Debug)]
pub(super) struct Slot {
    pub(super) command: Command,
    /// The waiting caller; none for a posted write.
    pub(super) ticket: Option<Arc<Ticket>>,
}

/// The replies to one caller's requests.
#[derive(Debug)]
pub(super) struct Ticket {
    replies: Mutex<Replies>,
    done: Condvar,
}

#[derive(Debug)]
struct Replies {
    expected: usize,
    list: Vec<Result<Answer, String>>,
    ended: bool,
}

impl Ticket {
    pub(super) fn new(expected: usize) -> Arc<Self> {
        let list = Vec::with_capacity(expected);
        let replies = Mutex::new(Replies { expected, list, ended: false });
        Arc::new(Self { replies, done: Condvar::new() })
    }

    fn put(&self, reply: Result<Answer, String>) {
        let mut replies = lock(&self.replies);
        replies.list.push(reply);
        let complete = replies.list.len() == replies.expected;
        drop(replies);
        if complete {
            self.done.notify_all();
        }
    }

    fn end(&self) {
        lock(&self.replies).ended = true;
        self.done.notify_all();
    }
}

/// The refusals of posted writes that are not reported yet.
#[derive(Debug)]
struct Refusals {
    first: String,
    count: usize,
}

impl fmt::Display for Refusals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "an earlier write was refused: {}", self.first)?;
        if self.count > 1 { write!(f, " (and {} more)", self.count - 1) } else { Ok(()) }
    }
}

#[derive(Debug)]
pub(super) struct State<S> {
    pub(super) outstanding: VecDeque<Slot>,
    /// Whether a thread has slots whose lines it is still writing.
    pub(super) writing: bool,
    /// Number of threads that wait for their turn to write, or for room.
    pub(super) queueing: usize,
    /// Kicks that could not be written yet.
    pub(super) kept: Kept,
    /// Number of replies, to detect a new one.
    pub(super) replies: u64,
    refusals: Option<Refusals>,
    pub(super) end: Option<End>,
    watchers: Vec<Weak<S>>,
    lines: Vec<(u32, Weak<S>)>,
    /// A bit for each interrupt line, set while it is raised.
    levels: [u64; MAX_IRQ as usize / 64],
}

/// The state machine: see the [module](self).
#[derive(Debug)]
pub(super) struct Pipeline<S> {
    pub(super) state: Mutex<State<S>>,
    pub(super) turn: Condvar,
}

impl<S> State<S> {
    /// Whether there is no room for another request.
    pub(super) fn is_full(&self) -> bool {
        self.outstanding.len() >= MAX_OUTSTANDING
    }
}

/// The right to write the lines of the slots just added.
#[derive(Debug)]
pub(super) struct Turn<'a, S> {
    pipeline: &'a Pipeline<S>,
    places: usize,
    /// Kept kicks, which are written first.
    before: Before,
}

impl<S> Turn<'_, S> {
    /// Lines to write before those of the caller; mostly none.
    pub(super) fn before(&self) -> &[u8] {
        &self.before.lines
    }
    /// Call after these lines were written.
    pub(super) fn wrote_before(&mut self) {
        self.before = Before::default();
    }

    /// Removes the slots, as nothing of their lines was written.
    pub(super) fn cancel(mut self) {
        let mut state = lock(&self.pipeline.state);
        let places = self.places + self.before.places();
        let keep = state.outstanding.len().saturating_sub(places);
        state.outstanding.truncate(keep);
        if state.end.is_none() {
            state.keep_again(std::mem::take(&mut self.before));
        }
    }
}

impl<S> Drop for Turn<'_, S> {
    fn drop(&mut self) {
        let mut state = lock(&self.pipeline.state);
        state.writing = false;
        let queueing = state.queueing > 0;
        drop(state);
        if queueing {
            self.pipeline.turn.notify_all();
        }
    }
}

/// Waits until `done`, which is called with the lock held. Calls `signals` after each [`SLICE`].
/// Returns `None` after the deadline.
fn interruptible<'a, T>(
    mutex: &'a Mutex<T>,
    condition: &Condvar,
    deadline: Option<Instant>,
    signals: Option<SignalCheck>,
    mut done: impl FnMut(&mut T) -> bool,
) -> Result<Option<MutexGuard<'a, T>>> {
    may_wait("QEMU");
    let mut guard = lock(mutex);
    loop {
        if done(&mut guard) {
            return Ok(Some(guard));
        }
        let left = deadline.map(|d| d.saturating_duration_since(Instant::now()));
        if left == Some(Duration::ZERO) {
            return Ok(None);
        }
        let slice = match signals {
            Some(_) => Some(left.map_or(SLICE, |l| l.min(SLICE))),
            None => left,
        };
        guard = wait(condition, guard, slice);
        if let Some(ask) = signals
            && !done(&mut guard)
        {
            drop(guard);
            ask()?;
            guard = lock(mutex);
        }
    }
}

impl<S: Signal> Pipeline<S> {
    pub(super) fn new() -> Self {
        let state = State {
            outstanding: VecDeque::with_capacity(MAX_OUTSTANDING),
            writing: false,
            queueing: 0,
            kept: Kept::default(),
            replies: 0,
            refusals: None,
            end: None,
            watchers: Vec::new(),
            lines: Vec::new(),
            levels: [0; MAX_IRQ as usize / 64],
        };
        Self { state: Mutex::new(state), turn: Condvar::new() }
    }

    /// Waits for our turn to write and adds a slot for each command.
    ///
    /// # Errors
    /// The error of the connection's end; [`Error::Timeout`] after the deadline.
    pub(super) fn begin(
        &self,
        commands: &[Command],
        ticket: Option<&Arc<Ticket>>,
        deadline: Option<Instant>,
        signals: Option<SignalCheck>,
    ) -> Result<Turn<'_, S>> {
        debug_assert!(commands.len() <= MAX_OUTSTANDING);
        let places = commands.len();
        let ready = |state: &mut State<S>| {
            state.end.is_some()
                || (!state.writing && state.outstanding.len() + places <= MAX_OUTSTANDING)
        };
        let mut state = lock(&self.state);
        if !ready(&mut state) {
            state.queueing += 1;
            drop(state);
            let waited = interruptible(&self.state, &self.turn, deadline, signals, ready);
            state = match waited {
                Ok(Some(state)) => state,
                Ok(None) => {
                    let mut state = lock(&self.state);
                    state.queueing -= 1;
                    return Err(Error::Timeout(format!(
                        "no turn to send `{}`: {} QTest commands are without a reply; \
                         QEMU's main loop is blocked or stopped",
                        commands.first().map(ToString::to_string).unwrap_or_default(),
                        state.outstanding.len(),
                    )));
                }
                Err(error) => {
                    lock(&self.state).queueing -= 1;
                    return Err(error);
                }
            };
            state.queueing -= 1;
        }
        if let Some(end) = &state.end {
            return Err(end.error());
        }
        state.writing = true;
        let before = state.take_kept();
        for command in commands {
            state.outstanding.push_back(Slot { command: *command, ticket: ticket.cloned() });
        }
        Ok(Turn { pipeline: self, places, before })
    }

    /// Waits for the replies of a ticket whose lines were written.
    ///
    /// # Errors
    /// The error of the connection's end; [`Error::Timeout`]; [`Error::Qemu`] if one was refused.
    pub(super) fn finish(
        &self,
        ticket: &Ticket,
        command: Command,
        deadline: Option<Instant>,
        signals: Option<SignalCheck>,
    ) -> Result<Vec<Answer>> {
        let complete = |r: &mut Replies| r.ended || r.list.len() == r.expected;
        let waited = interruptible(&ticket.replies, &ticket.done, deadline, signals, complete)?;
        let Some(mut replies) = waited else {
            return Err(Error::Timeout(format!(
                "no reply to `{command}` in time; QEMU's main loop is blocked or stopped"
            )));
        };
        let complete = replies.list.len() == replies.expected;
        let list = std::mem::take(&mut replies.list);
        drop(replies);
        if !complete {
            return Err(self.end().map_or_else(|| End::Closed.error(), |end| end.error()));
        }
        list.into_iter().collect::<Result<Vec<_>, _>>().map_err(Error::Qemu)
    }

    /// Reports the refusals of posted writes, once.
    ///
    /// # Errors
    /// [`Error::Qemu`] with the first refusal's text.
    pub(super) fn check_refusals(&self) -> Result<()> {
        match lock(&self.state).refusals.take() {
            Some(refusals) => Err(Error::Qemu(refusals.to_string())),
            None => Ok(()),
        }
    }

    /// Processes one line from QEMU.
    ///
    /// # Errors
    /// How the line breaks the protocol. The caller then ends the connection.
    pub(super) fn deliver(&self, incoming: &Incoming<'_>) -> Result<(), String> {
        let rest = match incoming {
            Incoming::Irq { line, raised } => {
                self.interrupt(*line, *raised);
                return Ok(());
            }
            Incoming::Ok(rest) => Ok(*rest),
            Incoming::Refused(line) => Err(*line),
        };
        let mut state = lock(&self.state);
        state.replies = state.replies.wrapping_add(1);
        let Some(slot) = state.outstanding.pop_front() else {
            return Err(match state.end {
                // Ignore replies after the end.
                Some(_) => return Ok(()),
                None => "QEMU sent a reply without a request".to_owned(),
            });
        };
        let queueing = state.queueing > 0;
        let reply = match rest {
            Ok(rest) => match slot.command.answer(rest) {
                Ok(answer) => Ok(answer),
                Err(violation) => {
                    // `die` ends its ticket.
                    state.outstanding.push_front(slot);
                    return Err(violation);
                }
            },
            Err(line) => {
                Err(format!("QEMU refused `{}`: {}", slot.command, quote(line.as_bytes())))
            }
        };
        let refused = if slot.ticket.is_none() { reply.as_ref().err() } else { None };
        if let Some(refusal) = refused {
            match &mut state.refusals {
                Some(refusals) => refusals.count += 1,
                none => *none = Some(Refusals { first: refusal.clone(), count: 1 }),
            }
        }
        drop(state);
        if let Some(refusal) = refused {
            log::warn!("{refusal}");
        }
        if queueing {
            self.turn.notify_all();
        }
        if let Some(ticket) = slot.ticket {
            ticket.put(reply);
        }
        Ok(())
    }

    fn interrupt(&self, line: u32, raised: bool) {
        let mut state = lock(&self.state);
        let bit = 1 << (line % 64);
        let Some(word) = state.levels.get_mut(line as usize / 64) else { return };
        if raised {
            *word |= bit;
            Self::signal_line(&state, line);
        } else {
            *word &= !bit;
        }
    }

    fn signal_line(state: &State<S>, line: u32) {
        for (_, event) in state.lines.iter().filter(|(l, _)| *l == line) {
            if let Some(event) = event.upgrade() {
                event.signal();
            }
        }
    }

    /// Whether an interrupt line is raised, according to the lines read so far.
    pub(super) fn level(&self, line: u32) -> bool {
        lock(&self.state)
            .levels
            .get(line as usize / 64)
            .is_some_and(|word| word & (1 << (line % 64)) != 0)
    }

    /// Signals `event` whenever the line is raised; at once if it is raised now.
    pub(super) fn on_irq(&self, line: u32, event: &Arc<S>) {
        let mut state = lock(&self.state);
        state.lines.retain(|(_, e)| e.strong_count() > 0);
        state.lines.push((line, Arc::downgrade(event)));
        if state.levels.get(line as usize / 64).is_some_and(|w| w & (1 << (line % 64)) != 0) {
            event.signal();
        }
    }

    /// Signals `event` when the connection ends; at once if it has ended.
    pub(super) fn watch(&self, event: &Arc<S>) {
        let mut state = lock(&self.state);
        if state.end.is_some() {
            drop(state);
            event.signal();
            return;
        }
        state.watchers.retain(|e| e.strong_count() > 0);
        // Several ports may share an eventfd; keep it once.
        if !state.watchers.iter().any(|e| std::ptr::addr_eq(e.as_ptr(), Arc::as_ptr(event))) {
            state.watchers.push(Arc::downgrade(event));
        }
    }

    /// Ends the connection: wakes all waiters and watchers. Only the first call counts. Returns whether
    /// this was the first.
    pub(super) fn die(&self, end: End) -> bool {
        let mut state = lock(&self.state);
        if state.end.is_some() {
            return false;
        }
        state.end = Some(end);
        let slots = std::mem::take(&mut state.outstanding);
        state.kept = Kept::default();
        let watchers = std::mem::take(&mut state.watchers);
        drop(state);
        self.turn.notify_all();
        for ticket in slots.into_iter().filter_map(|slot| slot.ticket) {
            ticket.end();
        }
        for event in watchers.iter().filter_map(Weak::upgrade) {
            event.signal();
        }
        true
    }

    /// Why it ended, if it has.
    pub(super) fn end(&self) -> Option<End> {
        lock(&self.state).end.clone()
    }
}

/// `RUSTFLAGS="--cfg loom" cargo test -p virtnic --release --lib loom`

#[cfg(all(test, loom))]
#[path = "pipeline_loom.rs"]
mod loom_tests;
