//! Kicks that could not be written yet: see [`super::kicks`].

use super::wire::Command;

/// Lines to write as soon as possible.
#[derive(Debug, Default)]
pub(super) struct Kept {
    /// The rest of a partly written line, which has a slot already.
    pub(super) rest: Vec<u8>,
    /// At most one kick per queue, oldest first, without slots.
    pub(super) kicks: Vec<Command>,
}

impl Kept {
    pub(super) fn is_empty(&self) -> bool {
        self.rest.is_empty() && self.kicks.is_empty()
    }

    /// Keeps a kick. Replaces an earlier one of the same queue.
    pub(super) fn keep(&mut self, kick: Command) {
        match self.kicks.iter_mut().find(|kept| kept.kicks_the_queue_of(&kick)) {
            Some(kept) => *kept = kick,
            None => self.kicks.push(kick),
        }
    }

    /// Puts back the oldest kick, which was not written.
    pub(super) fn put_back(&mut self, kick: Command) {
        if !self.kicks.iter().any(|kept| kept.kicks_the_queue_of(&kick)) {
            self.kicks.insert(0, kick);
        }
    }
}

/// Kept lines, written before the lines of the next writer.
#[derive(Debug, Default)]
pub(super) struct Before {
    /// The bytes; mostly empty.
    pub(super) lines: Vec<u8>,
    pub(super) rest: usize,
    pub(super) kicks: Vec<Command>,
}

impl Before {
    /// The number of slots of its lines.
    pub(super) fn places(&self) -> usize {
        self.kicks.len()
    }
}
