//! The module `virtnic._native`: one small file per class, no logic.

use pyo3::prelude::*;

mod burst;
mod capture;
mod driver;
mod engine;
mod errors;
mod eventfd;
mod features;
mod frames;
mod front_end;
mod given;
mod ivshmem;
mod log;
mod measure;
mod memory;
mod offload;
mod plugging;
mod port;
mod process;
mod qtest;
mod queue;
mod sequence;
mod stack;
mod time;
mod vhost_user;
mod views;
mod wire;

/// The Rust core of virtnic.
#[pymodule(gil_used = false)]
mod _native {
    #[pymodule_export]
    use super::burst::Burst;
    #[pymodule_export]
    use super::capture::{CaptureReader, CaptureWriter, CapturedFrame, play};
    #[pymodule_export]
    use super::driver::PortDriver;
    #[pymodule_export]
    use super::engine::{drop, exchange, forward, generate, reflect, run};
    #[pymodule_export]
    use super::eventfd::{Descriptor, EventFd};
    #[pymodule_export]
    use super::features::{Feature, features_table};
    #[pymodule_export]
    use super::front_end::FrontEnd;
    #[pymodule_export]
    use super::given::as_frames;
    #[pymodule_export]
    use super::ivshmem::IvshmemServer;
    #[pymodule_export]
    use super::log::set_log_level;
    #[pymodule_export]
    use super::measure::measure;
    #[pymodule_export]
    use super::memory::{Memory, hugepages};
    #[pymodule_export]
    use super::offload::{Offload, Offloads};
    #[pymodule_export]
    use super::plugging::PluggingLock;
    #[pymodule_export]
    use super::port::NetPort;
    #[pymodule_export]
    use super::process::{Child, after_fork_in_child, brings_devices_back, spawn};
    #[pymodule_export]
    use super::qtest::QTest;
    #[pymodule_export]
    use super::queue::NetQueue;
    #[pymodule_export]
    use super::stack::{ArpReply, Connection, Lease, NetSocket, NetStack, PingReply, StackWire};
    #[pymodule_export]
    use super::vhost_user::Interposer;
    #[pymodule_export]
    use super::wire::VhostWire;
    use pyo3::prelude::*;

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        module.add("__version__", env!("CARGO_PKG_VERSION"))?;
        let sequences = ["Burst", "Offloads"].map(|name| module.getattr(name));
        let sequences = sequences.into_iter().collect::<PyResult<Vec<_>>>()?;
        super::sequence::register(module.py(), &sequences)?;
        super::errors::add_to(module)
    }
}
