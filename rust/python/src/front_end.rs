//! `FrontEnd`: a device implemented here, served by a vhost-user backend.

use crate::driver::PortDriver;
use crate::errors::to_py;
use crate::eventfd::{EventFd, patience as interruptible, raise};
use crate::memory::Memory;
use crate::port::address;
use crate::time::span;
use crate::vhost_user::{Pauses, retry_of};
use pyo3::prelude::*;
use pyo3::types::PyDict;
use std::os::fd::IntoRawFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use virtnic::vhost_user::Backend;
use virtnic::vhost_user::frontend::FrontEndOptions;
use virtnic::virtio::transport::vhost::VhostOptions;

/// A virtio-net device without QEMU, whose rings are served by a vhost-user backend.
///
/// A :class:`PortDriver` drives it. Its link is up while there is a backend.
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
                        calls=Vec::new(), config=None, retry=None, patience=10.0, changed=None),
           text_signature = "(memory, backend, mac, *, server=False, wait=0.0, pairs=1, mtu=None, \
                             calls=(), config=None, retry=None, patience=10.0, changed=None)")]
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
        patience: f64,
        changed: Option<PyRef<'_, EventFd>>,
    ) -> PyResult<Self> {
        let device = VhostOptions {
            region: Arc::clone(memory.get().region()),
            mac: address(mac)?.0,
            mtu,
            pairs,
            calls: calls.iter().map(|call| Arc::clone(call.inner())).collect(),
            config: config.map(|event| Arc::clone(event.inner())),
            time: span(Some(patience))?.unwrap_or(Duration::MAX),
            patience: Some(interruptible),
        };
        let options = FrontEndOptions {
            backend: if server { Backend::Listen(backend) } else { Backend::Connect(backend) },
            wait: span(Some(wait))?.unwrap_or(Duration::MAX),
            retry: retry_of(retry)?,
            changed: changed.map(|event| Arc::clone(event.inner())),
            device,
        };
        py.detach(|| virtnic::vhost_user::frontend::FrontEnd::start(options))
            .map(|core| Self(Arc::new(core)))
            .map_err(raise)
    }

    /// Whether there is a backend.
    #[getter]
    fn connected(&self) -> bool {
        self.0.connected()
    }
    /// Whether a backend serves the rings.
    #[getter]
    fn serving(&self) -> bool {
        self.0.serving()
    }
    /// Why the last backend does not serve; None if it does, or none has come.
    #[getter]
    fn refusal(&self) -> Option<String> {
        self.0.refusal()
    }
    /// Hold a backend that comes back without features that the port can do without.
    ///
    /// Any other is refused. It waits until the port has renegotiated.
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
    /// The feature bits that the backend offered when it last connected.
    #[getter]
    fn features(&self) -> u64 {
        self.0.features()
    }
    /// Why it stopped looking for a backend; None while it still does.
    #[getter]
    fn given_up(&self) -> Option<&str> {
        self.0.given_up()
    }
    /// Signalled when ``connected``, ``serving``, ``refusal``, ``held``, ``given_up`` change.
    #[getter]
    fn changed(&self) -> EventFd {
        Arc::clone(self.0.changed()).into()
    }
    /// Start watching the backend: notice when it goes, and look for the next.
    ///
    /// Raises OSError if the thread cannot be started.
    fn watch(&self) -> PyResult<()> {
        self.0.watch().map_err(to_py)
    }

    /// Return counters.
    ///
    /// ``messages`` (sent), ``links`` (backends that served), ``refusals`` (backends that came
    /// and did not serve), ``backend_losses``, ``kicks_lost`` (kicks without a backend).
    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let stats = self.0.stats();
        let dict = PyDict::new(py);
        for (name, value) in [
            ("messages", stats.messages),
            ("links", stats.links),
            ("refusals", stats.refusals),
            ("backend_losses", stats.losses),
            ("kicks_lost", stats.kicks_lost),
        ] {
            dict.set_item(name, value)?;
        }
        Ok(dict)
    }

    /// Close the connection and remove the socket, if any; call after the port has stopped.
    fn close(&self, py: Python<'_>) {
        py.detach(|| self.0.close());
    }
}
