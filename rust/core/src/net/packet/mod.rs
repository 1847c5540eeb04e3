//! Frames: bursts, the header in front of each frame, and offloads.

pub(in crate::net) mod burst;
mod finish;
pub(in crate::net) mod frame;
pub(in crate::net) mod hash;
pub(in crate::net) mod header;
mod layout;
pub(in crate::net) mod offload;

pub use burst::Burst;
pub(crate) use finish::recalculate;
pub use frame::{FrameBuffer, FrameSource};
pub use hash::HashTypes;
pub use header::{HASH_HEADER_LEN, HEADER_LEN};
pub(crate) use layout::{Layout, Transport};
pub use offload::{Offload, Refusal, name as segmentation_name};
