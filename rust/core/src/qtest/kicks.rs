//! Kicks: writes for which nobody waits, not even for the socket.
//!
//! A queue is kicked with its lock held, by threads that may hold Python's interpreter lock too. So
//! a kick is written where that is possible at once, and else kept: for whoever is writing now,
//! or for the thread that reads, after the next reply. One of the two always comes. A socket is
//! full of lines without a reply, and each has its place in the queue of requests.
//!
//! At most one kick is kept for each queue: the device looks at the ring itself, and a later kick says
//! all that an earlier one did. What is written after a kick was rung comes after it.

use super::kept::{Before, Kept};
use super::pipeline::{Pipeline, Signal, Slot, State};
use super::sync::{MutexGuard, lock};
use super::wire::Command;
use crate::Result;

impl<S> State<S> {
    /// Takes all that was kept, with a place for each kick.
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

    /// Nothing of it was written; its places were given back.
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
    /// Kicks. `write` writes what it can without waiting, and says how many bytes that was.
    ///
    /// # Errors
    /// The end's.
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

    /// Writes kicks that were kept, as far as that is possible without waiting. To be called after
    /// each turn, and after each reply.
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
        // Who is writing looks again at the end of his turn, and a reply makes room.
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
                    // Nobody took a place behind it: it was our turn.
                    state.outstanding.pop_back();
                    state.kept.put_back(kick);
                }
                _ => state.kept.rest = bytes.get(written..).unwrap_or_default().to_vec(),
            }
            // The thread that reads saw that it was our turn, if there was a reply meanwhile.
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
