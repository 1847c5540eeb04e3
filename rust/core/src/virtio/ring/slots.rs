//! The driver's records of the chains in flight, in private memory.

use super::Violation;
use super::table::{Masked, Table};

/// One descriptor, no table: the shape of nearly every chain.
pub(super) const PLAIN: u32 = 1;
/// Set in `shape` of unpublished chains during [`super::Ring::pop`], as the device cannot have used
/// them.
const UNPUBLISHED: u32 = 1 << 15;
/// The most descriptors of a chain: less than the bit above.
pub(super) const MAX_CHAIN: usize = 0x7fff;

/// A chain that is with the device, by its identifier.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Slot {
    /// The caller's token.
    pub(super) token: u32,
    /// Bytes that the device may write; 0 if it only reads.
    pub(super) capacity: u32,
    /// In the low half the number of descriptors (0: no chain is in flight), in the high half 1 + the
    /// indirect table. One word, so that the usual case is one comparison.
    pub(super) shape: u32,
    /// The next descriptor of a direct chain in a split ring.
    pub(super) next: u16,
}

impl Slot {
    /// Sets it to a single buffer. `next` is not used then.
    #[inline(always)]
    pub(super) fn set_plain(&mut self, token: u32, capacity: u32) {
        self.token = token;
        self.capacity = capacity;
        self.shape = PLAIN;
    }

    /// Takes a single buffer: its token and the bytes written. `None`, without changes, if it is
    /// anything else or `len` is too large: [`Slots::used`] returns the reason.
    #[inline(always)]
    pub(super) fn take_plain(&mut self, len: u32) -> Option<(u32, u32)> {
        let written = if self.capacity == 0 { 0 } else { len };
        if self.shape != PLAIN || written > self.capacity {
            return None;
        }
        self.shape = 0;
        Some((self.token, written))
    }

    /// The number of descriptors.
    pub(super) fn count(&self) -> u16 {
        self.shape as u16
    }

    /// The indirect table in use.
    pub(super) fn table(&self) -> Option<u16> {
        ((self.shape >> 16) as u16).checked_sub(1)
    }
}

/// The shape of a chain of `count` descriptors with or without a table.
pub(super) fn shape(count: usize, table: Option<u16>) -> u32 {
    (count as u32 & 0xffff) | table.map_or(0, |table| (u32::from(table) + 1) << 16)
}

/// A slot for each identifier.
#[derive(Debug)]
pub(super) struct Slots {
    /// Those past `size` stay empty.
    slots: Table<Slot>,
    size: u16,
}

impl Slots {
    pub(super) fn new(size: u16) -> Self {
        Self { slots: Table::new(size), size }
    }

    /// The slots, for a loop.
    #[inline(always)]
    pub(super) fn view(&mut self) -> Masked<'_, Slot> {
        self.slots.view()
    }

    /// The slot of a valid identifier.
    #[inline(always)]
    pub(super) fn get_mut(&mut self, id: u16) -> &mut Slot {
        self.slots.view().into_get(id.into())
    }

    /// Checks a used entry of the device. Returns the slot and the number of bytes written.
    ///
    /// The length of a readable chain is ignored: some devices report the chain's own (section
    /// 2.7.8.2).
    #[inline(always)]
    pub(super) fn used(&mut self, id: u32, len: u32) -> Result<(&mut Slot, u32), Violation> {
        let size = self.size;
        let Some(slot) = self.slots.view().into_checked(id as usize) else {
            return Err(Violation::IdOutOfRange { id, size });
        };
        if slot.shape != PLAIN && (slot.shape == 0 || slot.shape & UNPUBLISHED != 0) {
            return Err(match u16::try_from(id) {
                Ok(narrow) if narrow < size => Violation::NotInFlight { id },
                _ => Violation::IdOutOfRange { id, size },
            });
        }
        let capacity = slot.capacity;
        if len > capacity && capacity != 0 {
            return Err(Violation::Length { id, len, capacity });
        }
        Ok((slot, len.min(capacity)))
    }

    /// Marks or unmarks chains as unpublished.
    #[cold]
    pub(super) fn mark_unpublished(&mut self, ids: impl Iterator<Item = u16>, unpublished: bool) {
        for id in ids {
            let slot = self.get_mut(id);
            if slot.shape != 0 {
                slot.shape =
                    (slot.shape & !UNPUBLISHED) | if unpublished { UNPUBLISHED } else { 0 };
            }
        }
    }

    /// Whether a single buffer is in flight with this identifier.
    pub(super) fn is_plain(&self, id: u16) -> bool {
        self.plain(id).is_some()
    }

    /// The single buffer in flight with this identifier.
    pub(super) fn plain(&self, id: u16) -> Option<&Slot> {
        let slot = self.slots.get(id.into());
        (id < self.size && slot.shape == PLAIN).then_some(slot)
    }

    /// The identifiers of all single buffers in flight; `None` if there are chains.
    pub(super) fn all_plain(&self) -> Option<Vec<u16>> {
        let used = (0..self.size).filter(|&id| self.slots.get(id.into()).shape != 0);
        used.map(|id| self.is_plain(id).then_some(id)).collect()
    }

    /// Removes every chain and passes its token to `returned`.
    pub(super) fn clear(&mut self, mut returned: impl FnMut(u32)) {
        for slot in self.slots.iter_mut() {
            if slot.shape != 0 {
                slot.shape = 0;
                returned(slot.token);
            }
        }
    }
}
