//! A device is brought up, reset, and brought up again, with fewer features where it has them.

mod bring_up;
mod closing;
pub(in crate::net) mod exclusive;
mod large_frames;
mod legacy;
mod renegotiate;
mod restart;

pub use bring_up::PortOptions;
