//! `FrontEnd`: a device without QEMU, whose rings a vhost-user backend processes.

use crate::driver::PortDriver;
use crate::errors::to_py;
use crate::eventfd::{EventFd, check_signals, raise};
use crate::memory::Memory;
use crate::port::address;
use crate::time::duration;
use crate::vhost_user::{Pauses, backend_at, counters, retry_of};
use crate::wire::copy;
use pyo3::prelude::*;
use pyo3::types::PyDict;
use std::os::fd::{IntoRawFd, RawFd};
use std::path::PathBuf;
use std::sync::Arc;
use virtnic::vhost_kernel::{Net, NetPair};
use virtnic::vhost_user::frontend::FrontEndOptions;
use virtnic::virtio::transport::vhost::VhostOptions;

/// A virtio-net device without QEMU, whose rings a vhost-user backend processes.
///
/// A :class:`PortDriver` drives it. Its link is up while a backend is connected.
#[pyclass(frozen, module = "virtnic._native")]
pub(crate) struct FrontEnd(Arc<virtnic::vhost_user::frontend::FrontEnd>);

impl FrontEnd {
    /// The core's object.
    pub(crate) fn core(&self) -> &Arc<virtnic::vhost_user::frontend::FrontEnd> {
        &self.0
    }
}

#[pymethods]
impl FrontEnd {
    #[new]
    #[pyo3(signature = (memory, backend, mac, *, server=false, wait=0.0, pairs=1, mtu=None,
                        calls=Vec::new(), config=None, retry=None, reply_timeout=10.0, changed=None),
           text_signature = "(memory, backend, mac, *, server=False, wait=0.0, pairs=1, mtu=None, \
                             calls=(), config=None, retry=None, reply_timeout=10.0, changed=None)")]
    #[expect(clippy::too_many_arguments, reason = "the signature of a Python class")]
    fn new(
        py: Python<'_>,
        memory: &Bound<'_, Memory>,
        backend: PathBuf,
        mac: &str,
        server: bool,
        wait: f64,
        pairs: u16,
        mtu: Option<u16>,
        calls: Vec<PyRef<'_, EventFd>>,
        config: Option<PyRef<'_, EventFd>>,
        retry: Option<Pauses>,
        reply_timeout: f64,
        changed: Option<PyRef<'_, EventFd>>,
    ) -> PyResult<Self> {
        let device = VhostOptions {
            region: Arc::clone(memory.get().region()),
            mac: address(mac)?.0,
            mtu,
            pairs,
            calls: calls.iter().map(|call| Arc::clone(call.inner())).collect(),
            config: config.map(|event| Arc::clone(event.inner())),
            time: duration(reply_timeout)?,
            signals: Some(check_signals),
        };
        let options = FrontEndOptions {
            backend: backend_at(backend, server),
            wait: duration(wait)?,
            retry: retry_of(retry)?,
            changed: changed.map(|event| Arc::clone(event.inner())),
            device,
        };
        py.detach(|| virtnic::vhost_user::frontend::FrontEnd::start(options))
            .map(|core| Self(Arc::new(core)))
            .map_err(raise)
    }

    /// Return a device whose rings the kernel's vhost-net processes.
    ///
    /// ``pairs``: for each queue pair a descriptor of ``/dev/vhost-net`` that has no owner yet, and
    /// one of a TAP's queue; both are duplicated. ``name``: the TAP's name in messages. The rest is
    /// as for the class.
    ///
    /// Raises PermissionError if a descriptor has an owner, ValueError, OSError.
    #[staticmethod]
    #[pyo3(signature = (memory, pairs, mac, *, name, mtu=None, calls=Vec::new(), config=None,
                        reply_timeout=10.0, changed=None),
           text_signature = "(memory, pairs, mac, *, name, mtu=None, calls=(), config=None, \
                             reply_timeout=10.0, changed=None)")]
    #[expect(clippy::too_many_arguments, reason = "the signature of a Python class")]
    fn kernel(
        memory: &Bound<'_, Memory>,
        pairs: Vec<(RawFd, RawFd)>,
        mac: &str,
        name: &str,
        mtu: Option<u16>,
        calls: Vec<PyRef<'_, EventFd>>,
        config: Option<PyRef<'_, EventFd>>,
        reply_timeout: f64,
        changed: Option<PyRef<'_, EventFd>>,
    ) -> PyResult<Self> {
        let device = VhostOptions {
            region: Arc::clone(memory.get().region()),
            mac: address(mac)?.0,
            mtu,
            pairs: pairs.len() as u16,
            calls: calls.iter().map(|call| Arc::clone(call.inner())).collect(),
            config: config.map(|event| Arc::clone(event.inner())),
            time: duration(reply_timeout)?,
            signals: Some(check_signals),
        };
        let changed = changed.map(|event| Arc::clone(event.inner()));
        let pair = |(vhost, tap)| NetPair::new(copy(vhost)?, copy(tap)?);
        let net = pairs.into_iter().map(pair).collect::<virtnic::Result<_>>().and_then(Net::new);
        net.and_then(|net| {
            let name = format!("vhost-net with {name}");
            virtnic::vhost_user::frontend::FrontEnd::fixed(Box::new(net), name, changed, device)
        })
        .map(|core| Self(Arc::new(core)))
        .map_err(raise)
    }

    /// Whether a backend is connected.
    #[getter]
    fn connected(&self) -> bool {
        self.0.connected()
    }
    /// Whether a backend processes the rings.
    #[getter]
    fn serving(&self) -> bool {
        self.0.serving()
    }
    /// Why the last backend is not used; None if it is, or none has connected.
    #[getter]
    fn refusal(&self) -> Option<String> {
        self.0.refusal()
    }
    /// Hold a new backend that only lacks features that the port can do without.
    ///
    /// It waits until the port has renegotiated. A backend that lacks others is refused.
    fn spare(&self, port: &PortDriver) {
        // vhost-user has 64 features.
        self.0.may_lack(port.started().dispensable().0 as u64);
    }
    /// What the held backend lacks; None if none is held.
    #[getter]
    fn held(&self) -> Option<String> {
        self.0.held()
    }
    /// Return a descriptor of the first backend's socket, once; the caller closes it.
    fn take_first(&self) -> Option<i32> {
        self.0.take_first().map(IntoRawFd::into_raw_fd)
    }
    /// The feature bits that the last backend offered.
    #[getter]
    fn features(&self) -> u64 {
        self.0.features()
    }
    /// Why it has stopped to reconnect; None if it has not.
    #[getter]
    fn given_up(&self) -> Option<&str> {
        self.0.given_up()
    }
    /// Signalled when ``connected``, ``serving``, ``refusal``, ``held``, ``given_up`` change.
    #[getter]
    fn changed(&self) -> EventFd {
        Arc::clone(self.0.changed()).into()
    }
    /// Start to supervise the backend: reconnect when it is lost.
    ///
    /// Raises OSError if the thread cannot be started.
    fn watch(&self) -> PyResult<()> {
        self.0.watch().map_err(to_py)
    }

    /// Return counters.
    ///
    /// ``messages`` (sent), ``links`` (backends used), ``refusals`` (connected backends
    /// that were not used), ``backend_losses``, ``kicks_lost`` (kicks without a backend).
    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let stats = self.0.stats();
        let named = [
            ("messages", stats.messages),
            ("links", stats.links),
            ("refusals", stats.refusals),
            ("backend_losses", stats.losses),
            ("kicks_lost", stats.kicks_lost),
        ];
        counters(py, &named)
    }

    /// Close the connection and remove the socket, if any; call after the port has stopped.
    fn close(&self, py: Python<'_>) {
        py.detach(|| self.0.close());
    }
}
