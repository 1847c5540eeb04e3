//! `Interposer`: the interposer between QEMU and a vhost-user backend.

use crate::driver::PortDriver;
use crate::errors::to_py;
use crate::eventfd::{EventFd, raise};
use crate::time::duration;
use pyo3::prelude::*;
use pyo3::types::PyDict;
use std::os::fd::IntoRawFd;
use std::path::PathBuf;
use std::sync::Arc;
use virtnic::vhost_user::{Backend, Retry, Terms};

/// Forwards messages between a QEMU and a vhost-user backend.
///
/// QEMU's chardev connects to ``listen`` and must reconnect: the socket only exists while a backend
/// answers and no QEMU is connected.
#[pyclass(frozen, module = "virtnic._native")]
pub(crate) struct Interposer(Arc<virtnic::vhost_user::Interposer>);

impl Interposer {
    /// The core's object.
    pub(crate) fn core(&self) -> &Arc<virtnic::vhost_user::Interposer> {
        &self.0
    }
}

/// When to reconnect: the number of attempts, the first and the longest pause in seconds.
pub(crate) type Pauses = (u32, f64, f64);

/// When to reconnect; by default forever.
pub(crate) fn retry_of(pauses: Option<Pauses>) -> PyResult<Retry> {
    let Some((attempts, first, longest)) = pauses else { return Ok(Retry::default()) };
    Ok(Retry { attempts: Some(attempts), pause: duration(first)?, longest: duration(longest)? })
}

/// The backend's socket: the backend connects to it if we are the server.
pub(crate) fn backend_at(path: PathBuf, server: bool) -> Backend {
    if server { Backend::Listen(path) } else { Backend::Connect(path) }
}

/// Counters by name.
pub(crate) fn counters<'py>(
    py: Python<'py>,
    named: &[(&str, u64)],
) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    for (name, value) in named {
        dict.set_item(name, value)?;
    }
    Ok(dict)
}

#[pymethods]
impl Interposer {
    #[new]
    #[pyo3(signature = (listen, backend, server=false, wait=0.0, calls=Vec::new(), retry=None,
                        pairs=1, reply_timeout=10.0, changed=None),
           text_signature = "(listen, backend, server=False, wait=0.0, calls=(), retry=None, \
                             pairs=1, reply_timeout=10.0, changed=None)")]
    #[expect(clippy::too_many_arguments, reason = "the signature of a Python class")]
    fn new(
        py: Python<'_>,
        listen: PathBuf,
        backend: PathBuf,
        server: bool,
        wait: f64,
        calls: Vec<Option<PyRef<'_, EventFd>>>,
        retry: Option<Pauses>,
        pairs: u16,
        reply_timeout: f64,
        changed: Option<PyRef<'_, EventFd>>,
    ) -> PyResult<Self> {
        let (answers, wait) = (duration(reply_timeout)?, duration(wait)?);
        let retry = retry_of(retry)?;
        let changed = changed.map(|event| Arc::clone(event.inner()));
        let terms = Terms { pairs, retry, timeout: answers, changed };
        let backend = backend_at(backend, server);
        let calls: Vec<_> =
            calls.into_iter().map(|call| call.map(|event| Arc::clone(event.inner()))).collect();
        py.detach(|| {
            virtnic::vhost_user::Interposer::start_interruptible(
                &listen,
                backend,
                wait,
                calls,
                terms,
                Some(crate::eventfd::check_signals),
            )
        })
        .map(|core| Self(Arc::new(core)))
        .map_err(raise)
    }

    /// Whether a QEMU and a backend are connected through it.
    #[getter]
    fn connected(&self) -> bool {
        self.0.connected()
    }

    /// Whether the backend processes the rings: they are started, and it has answered since.
    #[getter]
    fn serving(&self) -> bool {
        self.0.serving()
    }

    /// Why the last backend is not used; None if it is, or none has connected.
    #[getter]
    fn refusal(&self) -> Option<String> {
        self.0.refusal()
    }

    /// Call before QEMU creates its netdev, so that a failing backend does not block QEMU.
    fn begin_trial(&self) {
        self.0.begin_trial();
    }

    /// Call after QEMU has created its netdev; return why the backend failed, else None.
    fn end_trial(&self) -> Option<String> {
        self.0.end_trial()
    }

    /// Hold a new backend that only lacks features that the port can do without.
    ///
    /// A backend that lacks others is refused. QEMU chooses a device's features when it is plugged,
    /// so the device is replugged; :meth:`accept_held` is called once the old one is gone.
    fn spare(&self, port: &PortDriver) {
        // vhost-user has 64 features.
        self.0.may_lack(port.started().dispensable().0 as u64);
    }

    /// What the held backend lacks; None if none is held.
    #[getter]
    fn held(&self) -> Option<String> {
        self.0.held()
    }

    /// Let QEMU connect to the held backend, whose features are the new minimum.
    fn accept_held(&self) {
        self.0.accept_held();
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

    /// Kick a queue's current backend, as a port does.
    fn kick(&self, queue: u16) -> PyResult<()> {
        self.0.kick(queue).map(|kick| kick.ring()).map_err(to_py)
    }

    /// Return counters.
    ///
    /// ``messages_to_backend``, ``messages_to_qemu``, ``links`` (how often the two were connected),
    /// ``refusals`` (connected backends that were not used), ``backend_losses``, ``qemu_losses``,
    /// ``kicks_learnt``, ``kicks_not_kept`` (eventfds closed because descriptors are scarce: the
    /// backend is kicked through QEMU), ``calls_replaced``, ``kicks_lost`` (kicks without a
    /// backend).
    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let stats = self.0.stats();
        let named = [
            ("messages_to_backend", stats.messages_to_backend),
            ("messages_to_qemu", stats.messages_to_qemu),
            ("links", stats.links),
            ("refusals", stats.refusals),
            ("backend_losses", stats.backend_losses),
            ("qemu_losses", stats.qemu_losses),
            ("kicks_learnt", stats.kicks_learnt),
            ("kicks_not_kept", stats.kicks_not_kept),
            ("calls_replaced", stats.calls_replaced),
            ("kicks_lost", stats.kicks_lost),
        ];
        counters(py, &named)
    }

    /// Close the connections and remove the sockets.
    fn close(&self, py: Python<'_>) {
        py.detach(|| self.0.close());
    }
}

/// The driver of a port's queue, which a vhost backend informs when it stops and starts.
pub(crate) struct Served(pub(crate) Arc<virtnic::net::Outage>);

impl virtnic::vhost_user::Driver for Served {
    fn stopped(&self) -> bool {
        self.0.begin()
    }
    fn starting(&self) -> Option<u16> {
        self.0.end()
    }
}
