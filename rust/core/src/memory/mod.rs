//! The shared file: the only memory that a device can access.
//!
//! A [`Region`] is the mapped, prefaulted and sealed file with its place in the device's address
//! space ([`Iova`]). A [`Chunk`] is an exclusive part of it (a ring). The [`Pool`] is its largest
//! part, divided into packet buffers and shared by all ports of the region, so that forwarding
//! between them needs no copies.
//!
//! Shared memory is hostile: any holder of the file can change any byte at any time. Nothing here
//! hands out `&T` or `&mut T` to it.
//!
//! Bottom up: `pages` (sizes and counts), `available` (ordinary memory), `numa`, `backing` (the
//! file), `mapping` (its address), `physical` (contiguity), `region` (all of it combined), and on
//! top of the region `arena` with `chunk`, and `pool`.

#[cfg(not(target_pointer_width = "64"))]
compile_error!("virtnic places its memory above 4 GiB: it needs a 64-bit target");

mod arena;
mod available;
mod backing;
mod cgroup;
mod chunk;
mod demand;
mod free;
mod iova;
mod mapping;
mod numa;
mod pages;
mod physical;
mod pool;
mod prefetch;
mod region;
#[cfg(test)]
mod reserved;
mod scarce;

pub use chunk::Chunk;
pub(crate) use demand::{Demand, Holder};
pub use iova::{IOVA_LIMIT, Iova, Placement};
pub use pages::{HugepageCount, PageRequest, PageSize, hugepages};
pub use pool::{BufferId, DATA_OFFSET, JUMBO_SIZE, Pool};
pub(crate) use prefetch::prefetch;
pub use region::{Region, RegionOptions};
