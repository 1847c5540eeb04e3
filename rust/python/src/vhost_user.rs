//! `Interposer`: between QEMU and a vhost-user backend.

use crate::driver::PortDriver;
use crate::errors::to_py;
use crate::eventfd::{EventFd, raise};
use crate::time::span;
use pyo3::prelude::*;
use pyo3::types::PyDict;
use std::os::fd::IntoRawFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use virtnic::vhost_user::{Backend, Retry, Terms};

/// Relays between a QEMU and a vhost-user backend.
///
/// QEMU's chardev connects to ``listen`` and must be set to reconnect: the socket exists only while
/// a backend answers and no QEMU is connected.
#[pyclass(frozen, module = "virtnic._native")]
pub(crate) struct Interposer(Arc<virtnic::vhost_user::Interposer>);

impl Interposer {
    /// The core's object.
    pub(crate) fn core(&self) -> &Arc<virtnic::vhost_user::Interposer> {
        &self.0
    }
}

/// How often a backend is looked for: attempts, seconds before the second, the longest pause.
pub(crate) type Pauses = (u32, f64, f64);

/// The same; without it, for ever.
pub(crate) fn retry_of(pauses: Option<Pauses>) -> PyResult<Retry> {
    let Some((attempts, first, longest)) = pauses else { return Ok(Retry::default()) };
    let pause = |seconds| Ok::<_, PyErr>(span(Some(seconds))?.unwrap_or(Duration::MAX));
    Ok(Retry { attempts: Some(attempts), pause: pause(first)?, longest: pause(longest)? })
}

#[pymethods]
impl Interposer {
    #[new]
    #[pyo3(signature = (listen, backend, server=false, wait=0.0, calls=Vec::new(), retry=None,
                        pairs=1, patience=10.0, changed=None),
           text_signature = "(listen, backend, server=False, wait=0.0, calls=(), retry=None, \
                             pairs=1, patience=10.0, changed=None)")]
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
        patience: f64,
        changed: Option<PyRef<'_, EventFd>>,
    ) -> PyResult<Self> {
        let answers = span(Some(patience))?.unwrap_or(Duration::MAX);
        let retry = retry_of(retry)?;
        let changed = changed.map(|event| Arc::clone(event.inner()));
        let terms = Terms { pairs, retry, patience: answers, changed };
        let wait = span(Some(wait))?.unwrap_or(Duration::MAX);
        let backend = if server { Backend::Listen(backend) } else { Backend::Connect(backend) };
        let calls: Vec<_> =
            calls.into_iter().map(|call| call.map(|event| Arc::clone(event.inner()))).collect();
        py.detach(|| {
            virtnic::vhost_user::Interposer::start_interruptible(
                &listen,
                backend,
                wait,
                calls,
                terms,
                Some(crate::eventfd::patience),
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

    /// Whether the backend serves: its rings are started, and it has sent something since.
    #[getter]
    fn serving(&self) -> bool {
        self.0.serving()
    }

    /// Why the last backend does not serve; None if it does, or none has come.
    #[getter]
    fn refusal(&self) -> Option<String> {
        self.0.refusal()
    }

    /// Begin a trial before QEMU creates its netdev, so that a failing backend ends it.
    fn begin_trial(&self) {
        self.0.begin_trial();
    }

    /// Return why no backend is behind the netdev that QEMU has created; None if one is.
    fn end_trial(&self) -> Option<String> {
        self.0.end_trial()
    }

    /// Hold a backend that comes back without features that the port can do without.
    ///
    /// Any other is refused. QEMU negotiates a device's features when it is plugged in, so the
    /// device is replugged; :meth:`accept_held` is called once the old one is gone.
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

    /// Kick the backend that currently serves a queue, as a port does.
    fn kick(&self, queue: u16) -> PyResult<()> {
        self.0.kick(queue).map(|kick| kick.ring()).map_err(to_py)
    }

    /// Return counters.
    ///
    /// ``messages_to_backend``, ``messages_to_qemu``, ``links`` (how often the two were connected),
    /// ``refusals`` (backends that came and did not serve), ``backend_losses``, ``qemu_losses``,
    /// ``kicks_learnt``, ``kicks_not_kept`` (eventfds closed because descriptors are scarce: the
    /// backend is kicked through QEMU), ``calls_replaced``, ``kicks_lost`` (kicks without a
    /// backend).
    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let stats = self.0.stats();
        let dict = PyDict::new(py);
        for (name, value) in [
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
        ] {
            dict.set_item(name, value)?;
        }
        Ok(dict)
    }

    /// Close the connections and remove the sockets.
    fn close(&self, py: Python<'_>) {
        py.detach(|| self.0.close());
    }
}

/// Tells a queue of a port whether a backend serves it.
pub(crate) struct Served(pub(crate) Arc<virtnic::net::Outage>);

impl virtnic::vhost_user::Driver for Served {
    fn stopped(&self) -> bool {
        self.0.begin()
    }
    fn starting(&self) -> Option<u16> {
        self.0.end()
    }
}
