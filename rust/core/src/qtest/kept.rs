//! Kicks that could not be written at once: see [`super::kicks`].

use super::wire::Command;

/// What is to be written as soon as something can be.
#[derive(Debug, Default)]
pub(super) struct Kept {
    /// The rest of a line of which a part was written; it has its place.
    pub(super) rest: Vec<u8>,
    /// Each for another queue, the oldest first. None has a place yet.
    pub(super) kicks: Vec<Command>,
}

impl Kept {
    pub(super) fn is_empty(&self) -> bool {
        self.rest.is_empty() && self.kicks.is_empty()
    }

    /// Keeps a kick, in the place of an earlier one of the same queue.
    pub(super) fn keep(&mut self, kick: Command) {
        match self.kicks.iter_mut().find(|kept| kept.kicks_the_queue_of(&kick)) {
            Some(kept) => *kept = kick,
            None => self.kicks.push(kick),
        }
    }

    /// The kick was not written after all; it is the oldest.
    pub(super) fn put_back(&mut self, kick: Command) {
        if !self.kicks.iter().any(|kept| kept.kicks_the_queue_of(&kick)) {
            self.kicks.insert(0, kick);
        }
    }
}

/// What goes out before the lines of somebody who waited for his turn.
#[derive(Debug, Default)]
pub(super) struct Before {
    /// All of it; empty where nothing was kept.
    pub(super) lines: Vec<u8>,
    pub(super) rest: usize,
    pub(super) kicks: Vec<Command>,
}

impl Before {
    /// How many of its lines have taken a place.
    pub(super) fn places(&self) -> usize {
        self.kicks.len()
    }
}
