//! The parts common to all virtio devices: feature bits, device status, transports, rings.

pub mod catalogue;
pub mod features;
pub mod negotiation;
pub mod ring;
pub mod status;
pub mod transport;

pub use features::Features;
pub use status::Status;
