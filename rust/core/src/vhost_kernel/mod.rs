//! The kernel's vhost-net: a kernel thread moves frames between our rings and TAP devices (Linux:
//! `drivers/vhost/net.c`, `include/uapi/linux/vhost.h`, `include/uapi/linux/if_tun.h`).
//!
//! A descriptor of `/dev/vhost-net` belongs to the process that made it its own (VHOST_SET_OWNER): for
//! any other, each request fails with EPERM. So QEMU's descriptor is of no use to us.
//!
//! `request` has the ioctls, `net` the backend.

mod net;
mod request;

pub use net::{Net, NetPair};
