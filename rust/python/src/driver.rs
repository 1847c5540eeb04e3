//! `PortDriver`: starts a device and controls it until it is gone.

use crate::errors::{QemuDied, to_py};
use crate::eventfd::{Descriptor, EventFd};
use crate::features::unknown;
use crate::front_end::FrontEnd;
use crate::memory::Memory;
use crate::qtest::QTest;
use crate::vhost_user::{Interposer, Served};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyDict;
use std::ops::Deref;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use virtnic::net::{Events, HashTypes, Mac, PairEvents, PortOptions, Rss, Vectors};
use virtnic::notify::Doorbell;
use virtnic::virtio::features::by_name;
use virtnic::virtio::negotiation::Preferences;
use virtnic::virtio::transport::Transport;
use virtnic::virtio::transport::legacy::{LegacyPci, LegacyRegisters};
use virtnic::virtio::transport::modern::{ModernPci, Registers};

/// The eventfds of one pair's receive and transmit queue.
type EventPair = (Py<EventFd>, Py<EventFd>);

/// How often the state of a device without interrupts is checked, when there is reason to.
const ASK: Duration = Duration::from_millis(500);

/// A started device, shared by the user's [`NetPort`](crate::port::NetPort) and its [`PortDriver`].
pub(crate) struct Started {
    port: Arc<virtnic::net::Port>,
    /// When the state of a device without interrupts was last checked.
    asked: Mutex<Instant>,
    /// Returns how QEMU ended.
    ended: Py<PyAny>,
}

impl Deref for Started {
    type Target = virtnic::net::Port;
    fn deref(&self) -> &Self::Target {
        &self.port
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        self.end();
    }
}

impl Started {
    /// The port, for a thread of the core.
    pub(crate) fn shared(&self) -> Arc<virtnic::net::Port> {
        self.port.clone()
    }
    /// Stops an unclosed port, waiting for QEMU without the interpreter.
    pub(crate) fn end(&self) {
        // None: the interpreter has ended.
        Python::try_attach(|py| py.detach(|| self.port.stop()));
    }

    /// Converts an error of the core. The owner of the process adds how QEMU ended.
    pub(crate) fn raise(&self, py: Python<'_>, error: virtnic::Error) -> PyErr {
        if let virtnic::Error::QemuDied(_) = error
            && let Ok(words) = self.ended.call0(py).and_then(|words| words.extract::<String>(py))
        {
            return QemuDied::new_err((words,));
        }
        to_py(error)
    }

    /// Runs a request to the device without the interpreter.
    pub(crate) fn ask<T: Send>(
        &self,
        py: Python<'_>,
        what: impl FnOnce(&virtnic::net::Port) -> virtnic::Result<T> + Send,
    ) -> PyResult<T> {
        py.detach(|| what(&self.port)).map_err(|error| self.raise(py, error))
    }

    /// Nothing came, or a queue is full: checks whether the device needs a reset, if no interrupt
    /// would report it.
    #[cold]
    pub(crate) fn look_after(&self, py: Python<'_>) -> virtnic::Result<()> {
        if self.port.events().is_some() {
            return Ok(());
        }
        {
            let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
            if asked.elapsed() < ASK {
                return Ok(());
            }
            *asked = Instant::now();
        }
        // A loop that has a queue may need the interpreter before it lends it.
        match py.detach(|| self.port.restart_if_needed()) {
            // An outage is not an error.
            Err(virtnic::Error::QemuDied(_)) if self.port.is_away() => Ok(()),
            other => other.map(drop),
        }
    }
}

/// Makes a dead QEMU wake all who wait for its interrupts.
fn watch(port: &virtnic::net::Port, qtest: &virtnic::qtest::QTest) {
    let Some(events) = port.events() else { return };
    for event in events.pairs.iter().flat_map(|pair| [&pair.rx, &pair.tx]) {
        qtest.watch(event);
    }
    qtest.watch(&events.config);
}

/// The doorbells of the queues that the interposer's backend serves.
fn doorbells(kicks: &Py<Interposer>, pairs: u16) -> PyResult<Vec<Doorbell>> {
    let kick = |queue| {
        let kick = kicks.get().core().kick(queue).map_err(to_py)?;
        // If its eventfd is not kept, the device's own doorbell reaches it.
        Ok(Doorbell::Kick(kick, Box::new(Doorbell::Silent)))
    };
    (0..pairs.saturating_mul(2)).map(kick).collect()
}

/// Feature preferences by name: True requires, False refuses, None prefers.
fn preferences(features: Option<&Bound<'_, PyDict>>) -> PyResult<Preferences> {
    let mut preferences = Preferences::default();
    for (name, wanted) in features.into_iter().flatten() {
        let name: String = name.extract()?;
        let Some(feature) = by_name(&name) else {
            return Err(unknown(&name));
        };
        match wanted.extract::<Option<bool>>()? {
            Some(true) => preferences.insist |= feature.set(),
            Some(false) => preferences.refuse |= feature.set(),
            None => preferences.prefer |= feature.set(),
        }
    }
    Ok(preferences)
}

/// Addresses of the common, ISR, device and notify structures; the length of the device structure;
/// the notify multiplier.
type ModernRegisters = (u64, u64, u64, u64, u32, u32);

/// The location of a device's registers.
struct Place<'a> {
    qtest: Option<virtnic::qtest::QTest>,
    registers: Option<ModernRegisters>,
    legacy_io: Option<(u16, u16, bool)>,
    front_end: Option<&'a Py<FrontEnd>>,
}

impl Place<'_> {
    /// Access to them, whatever their kind.
    fn transport(&self) -> PyResult<Arc<dyn Transport>> {
        match (&self.qtest, self.registers, self.legacy_io, self.front_end) {
            (Some(qtest), Some(registers), None, None) => {
                let (common, isr, device, notify, device_length, notify_multiplier) = registers;
                let registers =
                    Registers { common, isr, device, notify, device_length, notify_multiplier };
                Ok(Arc::new(ModernPci::new(qtest.clone(), registers)))
            }
            (Some(qtest), None, Some((base, length, msix)), None) => {
                let registers = LegacyRegisters { base, length, msix };
                Ok(Arc::new(LegacyPci::new(qtest.clone(), registers).map_err(to_py)?))
            }
            (None, None, None, Some(front_end)) => Ok(front_end.get().core().transport()),
            _ => Err(PyValueError::new_err(
                "a device has its registers in QEMU's memory (qtest, registers), in its ports (qtest, \
                 legacy_io) or with us (front_end): give one",
            )),
        }
    }
}

/// A started virtio-net device, for the code that plugs, restores and unplugs it.
///
/// Users have a :class:`NetPort`, which is made from this.
#[pyclass(frozen, module = "virtnic._native")]
pub(crate) struct PortDriver {
    started: Arc<Started>,
}

impl PortDriver {
    pub(crate) fn started(&self) -> &Arc<Started> {
        &self.started
    }
}

#[pymethods]
impl PortDriver {
    #[new]
    #[pyo3(signature = (*, memory, qtest = None, registers = None, legacy_io = None,
                        front_end = None, queues = 1, queue_size = 0, vectors = None,
                        events = None, intx = None, kicks = None, features = None, ended))]
    #[allow(clippy::too_many_arguments, reason = "keyword arguments of a constructor")]
    fn new(
        py: Python<'_>,
        memory: &Bound<'_, Memory>,
        qtest: Option<&Bound<'_, QTest>>,
        registers: Option<ModernRegisters>,
        legacy_io: Option<(u16, u16, bool)>,
        front_end: Option<Py<FrontEnd>>,
        queues: u16,
        queue_size: i64,
        vectors: Option<(Vec<(u16, u16)>, u16)>,
        events: Option<(Vec<EventPair>, Py<EventFd>)>,
        intx: Option<Py<EventFd>>,
        kicks: Option<Py<Interposer>>,
        features: Option<&Bound<'_, PyDict>>,
        ended: Py<PyAny>,
    ) -> PyResult<Self> {
        let Ok(queue_size) = u16::try_from(queue_size) else {
            return Err(PyValueError::new_err(format!(
                "the queue size must be a power of two up to 32768, or 0 for the device's own, not {queue_size}"
            )));
        };
        let core = |event: &Py<EventFd>| event.get().inner().clone();
        let events = events.map(|(pairs, config)| Events {
            pairs: pairs.iter().map(|(rx, tx)| PairEvents { rx: core(rx), tx: core(tx) }).collect(),
            config: core(&config),
        });
        let options = PortOptions {
            pairs: queues,
            queue_size,
            preferences: preferences(features)?,
            events,
            vectors: vectors.map(|(pairs, config)| Vectors { pairs, config }),
            intx: intx.map(|line| line.get().inner().clone()),
            doorbells: kicks.as_ref().map(|kicks| doorbells(kicks, queues)).transpose()?,
            mac: Mac::default(),
        };
        let qtest = qtest.map(|qtest| qtest.get().inner().clone());
        let place =
            Place { qtest: qtest.clone(), registers, legacy_io, front_end: front_end.as_ref() };
        let transport = place.transport()?;
        let pool = memory.get().region().pool();
        let port =
            py.detach(|| virtnic::net::Port::start(transport, pool, options)).map_err(to_py)?;
        // A returning backend continues where the last one ended.
        for (queue, outage) in (0..).zip(port.pairs().iter().flat_map(|pair| pair.outages())) {
            if let Some(kicks) = &kicks {
                kicks.get().core().follow(queue, Some(Arc::new(Served(outage.clone()))));
            }
            if let Some(front_end) = &front_end {
                front_end.get().core().follow(queue, Arc::new(Served(outage.clone())));
            }
        }
        if let Some(qtest) = &qtest {
            watch(&port, qtest);
        }
        let started = Started { port: Arc::new(port), asked: Mutex::new(Instant::now()), ended };
        Ok(Self { started: Arc::new(started) })
    }
    /// Treat the end of QEMU as an outage.
    fn set_recoverable(&self, on: bool) {
        self.started.set_recoverable(on);
    }
    /// Give up waiting for another device.
    fn abandon(&self, py: Python<'_>, why: &str) {
        py.detach(|| self.started.abandon(why));
    }
    /// Suspend the queues of a device that is gone or about to be unplugged.
    ///
    /// Raises VirtnicError, TimeoutError.
    fn suspend(&self, py: Python<'_>) -> PyResult<()> {
        py.detach(|| self.started.suspend()).map_err(to_py)
    }
    /// Continue with another device like the last one.
    #[pyo3(signature = (qtest = None, registers = None, legacy_io = None, front_end = None))]
    fn reattach(
        &self,
        py: Python<'_>,
        qtest: Option<&Bound<'_, QTest>>,
        registers: Option<ModernRegisters>,
        legacy_io: Option<(u16, u16, bool)>,
        front_end: Option<Py<FrontEnd>>,
    ) -> PyResult<()> {
        let qtest = qtest.map(|qtest| qtest.get().inner().clone());
        let place =
            Place { qtest: qtest.clone(), registers, legacy_io, front_end: front_end.as_ref() };
        let transport = place.transport()?;
        py.detach(|| self.started.reattach(transport)).map_err(to_py)?;
        if let Some(qtest) = &qtest {
            watch(&self.started, qtest);
        }
        Ok(())
    }
    /// Reset the device if it set DEVICE_NEEDS_RESET (VIRTIO 1.3, 2.1); return whether it had.
    ///
    /// Raises as :meth:`NetPort.restart`.
    fn restart_if_needed(&self, py: Python<'_>) -> PyResult<bool> {
        self.started.ask(py, virtnic::net::Port::restart_if_needed)
    }
    /// Whether received frames were dropped, and counted, because they fit no buffer.
    #[getter]
    fn drops_long_frames(&self) -> bool {
        self.started.drops_long_frames()
    }
    /// Whether the link is up, as last reported.
    #[getter]
    fn link(&self) -> bool {
        self.started.link()
    }
    /// Query the device, and return whether the link is up.
    fn refresh_link(&self, py: Python<'_>) -> PyResult<bool> {
        self.started.ask(py, virtnic::net::Port::refresh_link)
    }
    /// Raise what ended the port, if it has ended: PortClosed, QemuDied, DeviceError.
    fn check(&self, py: Python<'_>) -> PyResult<()> {
        self.started.ask(py, virtnic::net::Port::running)
    }

    /// Return the descriptor of :meth:`NetPort.fileno` for a single wait.
    ///
    /// A port closed meanwhile closes it after the wait.
    fn rx_descriptor(&self) -> PyResult<Descriptor> {
        Descriptor::of(self.started.arm().map_err(to_py)?)
    }

    /// Return the descriptor of :meth:`NetPort.tx_fileno` for a single wait.
    fn tx_descriptor(&self) -> PyResult<Descriptor> {
        Descriptor::of(self.started.arm_tx().map_err(to_py)?)
    }

    /// The device's limits: key length, table length, hash types; None if it does not hash.
    #[getter]
    fn rss_limits(&self) -> Option<(u8, u16, u32)> {
        self.started.rss_limits().map(|limits| (limits.key, limits.table, limits.types.bits()))
    }
    /// Return the current key, table, types and the queue of unhashed packets.
    fn rss_config(&self) -> Option<(Vec<u8>, Vec<u16>, u32, u16)> {
        let rss = self.started.rss()?;
        Some((rss.key, rss.table, rss.types.bits(), rss.unclassified))
    }
    /// Set steering and hashing; see :meth:`virtnic.Port.set_rss`.
    #[pyo3(signature = (key, table, types, unclassified = 0))]
    fn set_rss_config(
        &self,
        py: Python<'_>,
        key: Vec<u8>,
        table: Vec<u16>,
        types: u32,
        unclassified: u16,
    ) -> PyResult<()> {
        let rss = Rss { key, table, types: HashTypes::from_bits_retain(types), unclassified };
        self.started.ask(py, |port| port.set_rss(&rss))
    }

    /// Raise PortClosed from now on, also in waiting calls.
    ///
    /// QEMU is not involved: ``stop`` does the rest.
    fn refuse(&self) {
        self.started.refuse();
    }

    /// Whether it was stopped, but its device was not reset and still has its buffers.
    #[getter]
    fn withholds(&self) -> bool {
        self.started.withholds()
    }

    /// Report that a device that kept buffers is gone.
    fn device_gone(&self, py: Python<'_>) {
        py.detach(|| self.started.device_gone());
    }

    /// Reset the device and take every buffer back; waiting calls raise PortClosed.
    ///
    /// If QEMU does not answer in time, the buffers stay with the device until that is gone.
    fn stop(&self, py: Python<'_>) -> PyResult<()> {
        py.detach(|| self.started.try_stop()).map_err(to_py)
    }
}
