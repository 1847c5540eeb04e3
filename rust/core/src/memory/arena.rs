//! First-fit allocation of offsets.
//!
//! Rings are few, long-lived and allocated when a port starts, so the simplest allocator is enough:
//! free ranges by offset, first fit, joined with their neighbours on release. Its state is in
//! private memory.

use std::collections::BTreeMap;

/// Parts never share a cache line.
const LINE: usize = 64;

/// Free ranges of `0..len`: offset to length. No two touch.
#[derive(Debug)]
pub(super) struct Arena {
    free: BTreeMap<usize, usize>,
}

impl Arena {
    pub(super) fn new(len: usize) -> Self {
        Self { free: BTreeMap::from([(0, len)]) }
    }

    /// Bytes taken by a part of `len` bytes.
    fn footprint(len: usize) -> Option<usize> {
        len.checked_next_multiple_of(LINE)
    }

    /// Returns the offset of an exclusive part; `align` is a power of two.
    pub(super) fn allocate(&mut self, len: usize, align: usize) -> Option<usize> {
        let len = Self::footprint(len)?;
        let align = align.max(LINE);
        let (start, room, at) = self.free.iter().find_map(|(&start, &room)| {
            let at = start.checked_next_multiple_of(align)?;
            (at.checked_add(len)? <= start + room).then_some((start, room, at))
        })?;
        self.free.remove(&start);
        if at > start {
            self.free.insert(start, at - start);
        }
        if at + len < start + room {
            self.free.insert(at + len, start + room - at - len);
        }
        Some(at)
    }

    /// Releases a part that `allocate` returned for the same `len`.
    pub(super) fn release(&mut self, offset: usize, len: usize) {
        let Some(len) = Self::footprint(len) else { return };
        let (mut start, mut end) = (offset, offset + len);
        if let Some((&before, &room)) = self.free.range(..start).next_back()
            && before + room == start
        {
            self.free.remove(&before);
            start = before;
        }
        if let Some(room) = self.free.remove(&end) {
            end += room;
        }
        self.free.insert(start, end - start);
    }

    /// Returns the free bytes, and the longest possible part.
    pub(super) fn room(&self) -> (usize, usize) {
        (self.free.values().sum(), self.free.values().copied().max().unwrap_or(0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LEN: usize = 1 << 16;

    #[derive(Clone, Debug)]
    enum Step {
        Allocate(usize, u32),
        Release(usize),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (1..LEN / 4, 0u32..14).prop_map(|(len, shift)| Step::Allocate(len, shift)),
            any::<usize>().prop_map(Step::Release),
        ]
    }

    proptest! {
        #[test]
        fn parts_never_overlap_and_nothing_is_lost(steps in prop::collection::vec(step(), 1..200)) {
            let mut arena = Arena::new(LEN);
            let mut live: Vec<(usize, usize)> = Vec::new();
            for step in steps {
                match step {
                    Step::Allocate(len, shift) => match arena.allocate(len, 1 << shift) {
                        Some(at) => {
                            prop_assert_eq!(at % (1 << shift).max(LINE), 0);
                            prop_assert!(at + len <= LEN);
                            for &(other, size) in &live {
                                prop_assert!(at + len <= other || other + size <= at);
                            }
                            live.push((at, len));
                        }
                        // A refusal is honest: no gap would have taken it, aligned.
                        None => prop_assert!(
                            arena.room().1 < len.next_multiple_of(LINE) + (1 << shift).max(LINE)
                        ),
                    },
                    Step::Release(index) if !live.is_empty() => {
                        let (at, len) = live.swap_remove(index % live.len());
                        arena.release(at, len);
                    }
                    Step::Release(_) => {}
                }
                let used: usize = live.iter().map(|part| part.1.next_multiple_of(LINE)).sum();
                prop_assert_eq!(arena.room().0 + used, LEN);
            }
            for (at, len) in live {
                arena.release(at, len);
            }
            prop_assert_eq!(arena.room(), (LEN, LEN), "the free ranges join again");
        }
    }

    #[test]
    fn absurd_lengths_are_refused() {
        let mut arena = Arena::new(LEN);
        assert_eq!(arena.allocate(usize::MAX, 1), None);
        assert_eq!(arena.allocate(usize::MAX - 4096, 1), None);
        assert_eq!(arena.allocate(1, 1 << 63), Some(0));
        assert_eq!(arena.allocate(1, 1 << 63), None);
        assert_eq!(arena.allocate(LEN - LINE, 1), Some(LINE));
        assert_eq!(arena.allocate(1, 1), None);
    }
}
