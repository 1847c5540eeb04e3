//! Violations of the virtqueue rules by a device.

use crate::Error;

/// The rule that the device broke, with the values that show it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// Split ring: `used.idx` is past the available buffers (section 2.7.8).
    #[error(
        "used.idx went from {from} to {to}, which is {} buffers, but only {in_flight} are with the device",
        to.wrapping_sub(*from)
    )]
    UsedIndex {
        /// The index up to which buffers were popped.
        from: u16,
        /// The index that the device wrote.
        to: u16,
        /// The number of buffers that were with the device.
        in_flight: usize,
    },
    /// A used identifier is out of range.
    #[error("used id {id} is out of range for a queue of {size}")]
    IdOutOfRange {
        /// The identifier that the device wrote.
        id: u32,
        /// The queue's size.
        size: u16,
    },
    /// A used identifier is not that of a chain in flight: it was never made available, was used
    /// before, or is in the middle of a chain.
    #[error(
        "used id {id} is not a buffer that is with the device (used twice, or never available)"
    )]
    NotInFlight {
        /// The identifier that the device wrote.
        id: u32,
    },
    /// The device reported more bytes as written than the chain can hold.
    #[error("used id {id} reports {len} bytes written, but its buffer takes only {capacity}")]
    Length {
        /// The chain's identifier.
        id: u32,
        /// The length that the device wrote.
        len: u32,
        /// The writable length of the chain.
        capacity: u32,
    },
    /// `VIRTIO_F_IN_ORDER`: the identifier is not among the buffers that `used.idx` covers.
    #[error(
        "in-order used id {id} is not among the {count} buffers that the device reported as used"
    )]
    OutOfOrder {
        /// The identifier that the device wrote.
        id: u32,
        /// The number of buffers reported.
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
