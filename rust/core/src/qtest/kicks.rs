//! Kicks: writes that never wait, not even for the socket.
//!
//! A thread kicks a queue with the queue's lock held, and possibly Python's interpreter lock. A kick
//! that cannot be written at once is kept: for the thread that is writing, or for the reading thread
//! after the next reply. There is always one of the two, as a full socket contains lines without a
//! reply, and each has its slot in the queue of requests.
//!
//! At most one kick per queue is kept, as the device reads the ring itself and a later kick replaces an
//! earlier one. Kicks are written before later requests.

use super::kept::{Before, Kept};
use super::pipeline::{Pipeline, Signal, Slot, State};
use super::sync::{MutexGuard, lock};
use super::wire::Command;
use crate::Result;

impl<S> State<S> {
    /// Takes all kept lines and adds a slot for each kick.
    pub(super) fn take_kept(&mut self) -> Before {
        if self.kept.is_empty() {
            return Before::default();
        }
        let Kept { rest, kicks } = std::mem::take(&mut self.kept);
        let (mut lines, rest) = (rest.clone(), rest.len());
        for kick in &kicks {
            lines.extend_from_slice(kick.line().bytes());
            self.outstanding.push_back(Slot { command: *kick, ticket: None });
        }
        Before { lines, rest, kicks }
    }

    /// Keeps lines again that were not written and whose slots were removed.
    pub(super) fn keep_again(&mut self, before: Before) {
        let Before { mut lines, rest, kicks } = before;
        lines.truncate(rest);
        self.kept.rest = lines;
        for kick in kicks.into_iter().rev() {
            self.kept.put_back(kick);
        }
    }
}

impl<S: Signal> Pipeline<S> {
    /// Kicks. `write` writes without waiting and returns the number of bytes written.
    ///
    /// # Errors
    /// The error of the connection's end.
    #[inline]
    pub(super) fn kick(&self, kick: Command, write: impl FnMut(&[u8]) -> usize) -> Result<()> {
        let mut state = lock(&self.state);
        if let Some(end) = &state.end {
            return Err(end.error());
        }
        state.kept.keep(kick);
        self.write_kept(state, write);
        Ok(())
    }

    /// Writes kept kicks as far as possible without waiting. Called after each turn and each reply.
    pub(super) fn go_on(&self, write: impl FnMut(&[u8]) -> usize) {
        let state = lock(&self.state);
        if !state.kept.is_empty() {
            self.write_kept(state, write);
        }
    }

    fn write_kept<'a>(
        &'a self,
        mut state: MutexGuard<'a, State<S>>,
        mut write: impl FnMut(&[u8]) -> usize,
    ) {
        // A thread that is writing calls `go_on` after its turn; after a reply there is room.
        while !state.writing && !state.is_full() && state.end.is_none() && !state.kept.is_empty() {
            let rest = std::mem::take(&mut state.kept.rest);
            let kick = if rest.is_empty() { Some(state.kept.kicks.remove(0)) } else { None };
            if let Some(kick) = kick {
                state.outstanding.push_back(Slot { command: kick, ticket: None });
            }
            let line = kick.map(|kick| kick.line());
            let bytes = line.as_ref().map_or(rest.as_slice(), |line| line.bytes());
            state.writing = true;
            let replies = state.replies;
            drop(state);
            let written = write(bytes);
            state = lock(&self.state);
            state.writing = false;
            if state.end.is_some() || written >= bytes.len() {
                continue;
            }
            match kick {
                Some(kick) if written == 0 => {
                    // It was our turn, so the slot is still the last one.
                    state.outstanding.pop_back();
                    state.kept.put_back(kick);
                }
                _ => state.kept.rest = bytes.get(written..).unwrap_or_default().to_vec(),
            }
            // After a reply, continue: the reading thread did not write during our turn.
            if state.replies == replies {
                break;
            }
        }
        let queueing = state.queueing > 0;
        drop(state);
        if queueing {
            self.turn.notify_all();
        }
    }
}

#[cfg(all(test, loom))]
#[path = "kicks_loom.rs"]
mod loom_tests;
