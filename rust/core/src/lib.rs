//! A userspace virtio-net driver for the devices of a parked QEMU.
//!
//! The process drives the virtio-net device of a QEMU whose vCPU never executes guest code, over
//! QEMU's QTest socket, and shares its packet memory with QEMU through an ivshmem device. Section
//! numbers refer to VIRTIO 1.3.
//!
//! Layers, lowest first; each uses only those above it in this list:
//!
//! - [`memory`]: one shared file, its IOVA, the packet pool
//! - [`notify`]: eventfds, doorbells and interrupts
//! - [`qtest`]: the QTest wire client; [`ivshmem`]: the memory and interrupt server
//! - [`vhost_user`]: the socket interposer that learns the kick and call eventfds
//! - [`virtio`]: features, status, transports, rings
//! - [`vhost_kernel`]: the kernel's vhost-net as the backend of a device
//! - [`net`]: the virtio-net device: queues of packets
//! - `stack` (feature `stack`): TCP/IP on top of a port
//! - [`engine`]: loops over bursts that run without the interpreter
//! - [`capture`]: what ports send and receive, in files; and replayed

pub mod capture;
pub mod engine;
pub mod error;
pub mod ivshmem;
pub mod locks;
pub mod memory;
pub mod net;
pub mod notify;
mod owned;
pub mod process;
pub mod qtest;
#[cfg(feature = "stack")]
pub mod stack;
mod unix;
pub mod vhost_kernel;
pub mod vhost_user;
pub mod virtio;

pub use error::{Error, Result};
pub use owned::Owned;
