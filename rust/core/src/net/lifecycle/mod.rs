//! Starting, resetting and restarting a device, possibly with fewer features.

mod bring_up;
mod closing;
pub(in crate::net) mod exclusive;
mod large_frames;
mod legacy;
mod renegotiate;
mod restart;

pub use bring_up::PortOptions;
