//! One shared file: everything that a device may touch lies in it.
//!
//! A [`Region`] is the file, mapped, prefaulted and sealed, with its place in
//! the device's address space ([`Iova`]). A [`Chunk`] is an exclusive part of
//! it (a ring). The [`Pool`] is its largest part, cut into packet buffers; all
//! ports of one region share it, which is what makes forwarding between them
//! free of copies.
//!
//! Shared memory is hostile: whoever holds the file can change any byte at any
//! time. Nothing here hands out `&T` or `&mut T` to it.
//!
//! From the bottom: `pages` (sizes and counts), `available` (how much ordinary
//! memory there is), `numa`, `backing` (the file), `mapping` (its address),
//! `physical` (contiguity), `region` (all of it together), and on top of the
//! region `arena` with `chunk`, and `pool`.

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
