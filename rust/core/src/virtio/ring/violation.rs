//! The rules that a device can break.

use crate::Error;

/// Which rule of the virtqueue the device broke, with the values that show it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// Split ring: `used.idx` passed what was made available (section 2.7.8).
    #[error(
        "used.idx went from {from} to {to}, which is {} buffers, but only {in_flight} are with the device",
        to.wrapping_sub(*from)
    )]
    UsedIndex {
        /// The index up to which buffers had been taken.
        from: u16,
        /// What the device wrote.
        to: u16,
        /// How many buffers it had.
        in_flight: usize,
    },
    /// A used identifier is no identifier of this queue.
    #[error("used id {id} is out of range for a queue of {size}")]
    IdOutOfRange {
        /// What the device wrote.
        id: u32,
        /// The queue's size.
        size: u16,
    },
    /// A used identifier is not that of a chain that the device holds: it was
    /// never made available, was used before, or names the middle of a chain.
    #[error(
        "used id {id} is not a buffer that is with the device (used twice, or never available)"
    )]
    NotInFlight {
        /// What the device wrote.
        id: u32,
    },
    /// More bytes were reported as written than the chain could take.
    #[error("used id {id} reports {len} bytes written, but its buffer takes only {capacity}")]
    Length {
        /// The chain's identifier.
        id: u32,
        /// What the device wrote.
        len: u32,
        /// The writable length of the chain.
        capacity: u32,
    },
    /// `VIRTIO_F_IN_ORDER`: the identifier lies past the buffers that `used.idx` covers.
    #[error(
        "in-order used id {id} lies beyond the {count} buffers that the device reported as used"
    )]
    OutOfOrder {
        /// What the device wrote.
        id: u32,
        /// How many buffers were reported.
        count: u16,
    },
}

impl From<Violation> for Error {
    fn from(violation: Violation) -> Self {
        Self::Device(format!(
            "the device broke a virtqueue rule: {violation}; reset the device to use the queue again"
        ))
    }
}
