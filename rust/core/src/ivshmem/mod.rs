//! The ivshmem server: hands the memory and the interrupt eventfds to QEMU
//! (QEMU: `docs/specs/ivshmem-spec.rst`, protocol version 0).
//!
//! Access is controlled by the directory of the socket, not by credentials: a QEMU in another
//! container has another user id.

mod protocol;
mod server;

pub use server::Server;
