//! `NetPort`.

use crate::burst::Burst;
use crate::driver::{PortDriver, Started};
use crate::errors::to_py;
use crate::features::Feature;
use crate::features::unknown;
use crate::frames::{self, raise};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyDict;
use std::sync::Arc;
use std::time::Duration;
use virtnic::net::{Coalescing, Counting, Mac, ReceiveMode, RingFormat};
use virtnic::virtio::Features;
use virtnic::virtio::features::by_name;

/// A started virtio-net device for users. Made from its :class:`PortDriver`.
///
/// A subclass adds what is not part of the device; all methods may be called from any thread.
#[pyclass(frozen, subclass, module = "virtnic._native")]
pub(crate) struct NetPort {
    port: Arc<Started>,
}

/// Runs a request to the device without the interpreter.
pub(crate) fn ask(
    port: &Bound<'_, NetPort>,
    what: impl FnOnce(&virtnic::net::Port) -> virtnic::Result<()> + Send,
) -> PyResult<()> {
    port.get().port.ask(port.py(), what)
}

impl Drop for NetPort {
    /// A port that was never closed.
    fn drop(&mut self) {
        self.port.end();
    }
}

/// Parses a MAC address, `52:54:00:12:34:56`.
pub(crate) fn address(text: &str) -> PyResult<Mac> {
    let mut mac = Mac::default();
    let mut parts = text.split(':');
    let read = mac.0.iter_mut().all(|byte| {
        parts
            .next()
            .filter(|part| part.len() == 2)
            .is_some_and(|part| u8::from_str_radix(part, 16).map(|value| *byte = value).is_ok())
    });
    if read && parts.next().is_none() {
        return Ok(mac);
    }
    Err(PyValueError::new_err(format!(
        "a MAC address must have the form 52:54:00:12:34:56, not {text:?}"
    )))
}

fn vlan_number(vlan: i64) -> virtnic::Result<u16> {
    u16::try_from(vlan)
        .map_err(|_| virtnic::Error::Invalid(format!("the VLAN must be 0 to 4094, not {vlan}")))
}

/// Whether a direction is the receiving one.
pub(crate) fn receives(direction: &str) -> PyResult<bool> {
    match direction {
        "rx" => Ok(true),
        "tx" => Ok(false),
        other => {
            Err(PyValueError::new_err(format!("the direction must be rx or tx, not {other:?}")))
        }
    }
}

impl NetPort {
    pub(crate) fn core(&self) -> &virtnic::net::Port {
        &self.port
    }
    /// The port, for a thread of the core's own.
    pub(crate) fn shared(&self) -> Arc<virtnic::net::Port> {
        self.port.shared()
    }
    pub(crate) fn started(&self) -> &Started {
        &self.port
    }
    fn first(&self) -> &virtnic::net::QueuePair {
        // A port has at least one.
        &self.port.pairs()[0]
    }
}

#[pymethods]
impl NetPort {
    #[new]
    #[pyo3(signature = (driver, **_kwargs))]
    fn new(driver: &PortDriver, _kwargs: Option<&Bound<'_, PyDict>>) -> Self {
        Self { port: driver.started().clone() }
    }

    /// Whether the device is being reset, or was lost with its QEMU and may come back.
    #[getter]
    fn away(&self) -> bool {
        self.port.is_away()
    }
    /// How often the device was restarted.
    #[getter]
    fn restarts(&self) -> u64 {
        self.port.restarts()
    }
    /// Reset the device and restart it with the same settings.
    ///
    /// Also works for a broken port. Frames that had arrived are still received; those that were
    /// with the device are counted as ``tx_lost``. Raises DeviceError, CommandRefused, QemuDied,
    /// PortClosed.
    fn restart(slf: &Bound<'_, Self>) -> PyResult<()> {
        ask(slf, virtnic::net::Port::restart)
    }
    /// The device's MAC address, as ``52:54:00:12:34:56``.
    #[getter]
    fn mac(&self) -> String {
        self.port.mac().to_string()
    }
    /// The device's MTU; 1500 if it does not report one.
    #[getter]
    fn mtu(&self) -> u16 {
        self.port.config().mtu
    }
    /// Whether the link is up. Without interrupts this asks the device (some 50 µs).
    #[getter]
    fn link(&self, py: Python<'_>) -> PyResult<bool> {
        if self.port.events().is_none() && !self.port.is_closed() {
            return self.port.ask(py, virtnic::net::Port::refresh_link);
        }
        Ok(self.port.link())
    }
    /// The line speed in Mbit/s as last reported; None if unknown.
    ///
    /// Feature SPEED_DUPLEX; QEMU's property ``speed``.
    #[getter]
    fn speed(&self) -> Option<u32> {
        self.port.line().speed
    }
    /// The duplex mode as last reported; None if unknown.
    #[getter]
    fn duplex(&self) -> Option<&'static str> {
        self.port.line().full_duplex.map(|full| if full { "full" } else { "half" })
    }
    /// Whether the device is a standby for another one with the same MAC address.
    ///
    /// Feature STANDBY; QEMU's property ``failover``.
    #[getter]
    fn standby(&self) -> bool {
        let mut outcomes = self.port.outcomes().into_iter();
        outcomes.any(|outcome| outcome.offered && Features::bit(outcome.bit) == Features::STANDBY)
    }
    /// All offered or known features, in order of number.
    #[getter]
    fn features(&self) -> Vec<Feature> {
        self.port.outcomes().into_iter().map(Feature::from).collect()
    }
    /// Number of entries of each queue.
    #[getter]
    fn queue_size(&self) -> u16 {
        self.port.queues()[0].size
    }
    /// Each queue's name (``rx``, ``tx``) and the IOVAs of its three areas (VIRTIO 1.3, 2.6).
    #[getter]
    fn queue_addresses(&self) -> [(&'static str, u64, u64, u64); 2] {
        let [rx, tx] = self.port.queues();
        [("rx", rx), ("tx", tx)].map(|(n, q)| (n, q.descriptors.0, q.driver.0, q.device.0))
    }
    /// Ring format: ``split`` or ``packed``.
    #[getter]
    fn ring(&self) -> &'static str {
        match self.port.ring_format() {
            RingFormat::Split => "split",
            RingFormat::Packed => "packed",
        }
    }

    /// Whether the device is driven through its legacy interface (virtio 0.9.5).
    #[getter]
    fn legacy(&self) -> bool {
        self.port.is_legacy()
    }

    /// Queue frames for transmission and return how many fitted the ring.
    ///
    /// ``frames`` is a burst or an iterable of bytes-like objects or objects accepted by
    /// ``bytes()``, such as scapy packets; a single frame is a TypeError. A burst is moved: queued
    /// frames leave it, and no byte is copied, except for frames with live views or in another
    /// memory, which are counted as copied. Other frames are copied once. Frames that did not fit
    /// are not an error: they are counted and can be sent again.
    ///
    /// ``offload``: their offload metadata (an :class:`Offload` for all, or one or None for each).
    /// It must match the frame, and its feature must have been negotiated; otherwise ValueError.
    /// Without it, frames of a burst keep the metadata with which they were received: a checksum
    /// that this device does not support is calculated, and a frame that it cannot segment
    /// (``tx_no_offload``), or that does not match its metadata (``tx_bad_offload``), is dropped
    /// and counted.
    ///
    /// Raises ValueError (an empty frame, or one longer than a buffer) and TypeError (not
    /// bytes-like); the attribute ``queued`` is the number of frames queued before it. Raises
    /// PortClosed, QemuDied, DeviceError, PortBusy.
    #[pyo3(signature = (frames, offload = None))]
    fn send(
        slf: &Bound<'_, Self>,
        frames: &Bound<'_, PyAny>,
        offload: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<usize> {
        frames::send(slf, slf.get().first(), frames, offload)
    }

    /// Return up to ``maximum`` frames; an empty burst if none came in time.
    ///
    /// ``timeout`` in seconds: 0 does not wait, None waits for ever. Waits only for the first
    /// frame.
    ///
    /// Raises PortClosed, QemuDied, DeviceError, PortBusy, ValueError.
    #[pyo3(signature = (maximum = 256, timeout = Some(0.0)),
           text_signature = "($self, maximum=256, timeout=0.0)")]
    fn recv(slf: &Bound<'_, Self>, maximum: i64, timeout: Option<f64>) -> PyResult<Burst> {
        frames::recv(slf, slf.get().first(), maximum, timeout)
    }

    /// Return an eventfd that is readable when ``recv`` would find frames or an error.
    ///
    /// From the first call on, interrupts stay enabled between calls of ``recv``. The eventfd stays
    /// open, and readable once the port is closed, as long as this object lives. Raises ValueError
    /// if the port has no interrupts.
    fn fileno(&self) -> PyResult<i32> {
        self.port.arm().and_then(|event| event.lend()).map_err(to_py)
    }

    /// Return an eventfd that is readable until ``send`` does not take all frames.
    ///
    /// It is readable again once half of the queue is free and the memory has a free buffer, or on
    /// an error. It stays open as that of :meth:`fileno`. Raises ValueError if the port has no
    /// interrupts.
    fn tx_fileno(&self) -> PyResult<i32> {
        self.port.arm_tx().and_then(|event| event.lend()).map_err(to_py)
    }

    /// Wait until half of the transmit queue is free; False after the timeout.
    ///
    /// Uses the transmit interrupt if the port has interrupts. After a ``send`` that found no free
    /// buffer, also waits for one. Raises as ``recv``.
    #[pyo3(signature = (timeout = None))]
    fn wait_writable(slf: &Bound<'_, Self>, timeout: Option<f64>) -> PyResult<bool> {
        frames::wait_writable(slf, slf.get().first(), timeout)
    }

    /// Microseconds for which a waiting ``recv`` polls before it sleeps; see ``set_polling``.
    #[getter]
    fn polling(&self) -> f64 {
        self.port.spin().as_secs_f64() * 1e6
    }

    /// Make a waiting ``recv`` poll the ring before it sleeps; 0 disables polling.
    ///
    /// It polls only while recent waits were shorter than that, so a busy port needs no interrupts
    /// and an idle one no processor. ``stats`` counts waits ended by polling (``rx_polls``) and
    /// sleeps (``rx_sleeps``). Raises ValueError (negative, more than 100,000).
    fn set_polling(&self, microseconds: f64) -> PyResult<()> {
        let Ok(limit) = Duration::try_from_secs_f64(microseconds / 1e6) else {
            return Err(PyValueError::new_err(format!(
                "the polling time must be a number of microseconds, 0 or more, not {microseconds}"
            )));
        };
        self.port.set_spin(limit).map_err(to_py)
    }

    /// Return packets, bytes, drops by reason, kicks and interrupts since the start.
    ///
    /// These are sums over all queues; :meth:`NetQueue.stats` has those of one.
    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        frames::stats(py, self.port.stats())
    }

    /// Return all counters: those of ``stats``, and those of each queue.
    ///
    /// Named ``rx_q0_packets`` and so on, as in DPDK's extended statistics: the counters of
    /// :meth:`stats`; ``errors``, the sum of ``bad_length`` and ``bad_chain``; ``ring_size``,
    /// ``ring_used`` and ``ring_free``, descriptors as they were after the last call that moved
    /// frames. With ``set_statistics("sizes")`` also ``undersize_packets`` (below 64
    /// bytes on the wire, so with the four of the checksum that nobody sees),
    /// ``size_64_packets``, ``size_65_127_packets``, ``size_128_255_packets``,
    /// ``size_256_511_packets``, ``size_512_1023_packets``, ``size_1024_1518_packets``,
    /// ``size_1519_max_packets``; with ``"extended"`` these, ``unicast_packets``,
    /// ``multicast_packets`` and ``broadcast_packets``.
    ///
    /// Takes no lock: the data path is not delayed.
    fn xstats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        frames::xstats(py, &self.port)
    }
    /// The setting of ``set_statistics``.
    #[getter]
    fn statistics(&self) -> &'static str {
        match self.port.counting() {
            Counting::Basic => "basic",
            Counting::Sizes => "sizes",
            Counting::Extended => "extended",
        }
    }
    /// Choose ``basic`` or ``extended`` statistics, also for running loops.
    ///
    /// ``sizes`` counts lengths, which costs next to nothing. ``extended`` counts destinations too,
    /// so that the first bytes of every received frame are read. Raises ValueError.
    fn set_statistics(&self, which: &str) -> PyResult<()> {
        match which {
            "basic" => self.port.count_classes(Counting::Basic),
            "sizes" => self.port.count_classes(Counting::Sizes),
            "extended" => self.port.count_classes(Counting::Extended),
            other => {
                return Err(PyValueError::new_err(format!(
                    "statistics must be basic, sizes or extended, not {other:?}"
                )));
            }
        }
        Ok(())
    }

    /// Whether received bursts have a timestamp.
    #[getter]
    fn timestamps(&self) -> bool {
        self.port.timestamps()
    }
    /// Record when received bursts were taken from the ring (:attr:`Burst.timestamp`).
    ///
    /// From the next burst on. Costs one reading of the clock per burst, and nothing if disabled.
    #[pyo3(signature = (on = true), text_signature = "($self, on=True)")]
    fn set_timestamps(&self, on: bool) {
        self.port.set_timestamps(on);
    }

    /// Number of queue pairs in use.
    #[getter]
    fn queues(&self) -> u16 {
        self.port.active_pairs()
    }
    /// Number of queue pairs that the port was opened with.
    #[getter]
    fn max_queues(&self) -> usize {
        self.port.pairs().len()
    }
    /// Use the first ``count`` queue pairs, while the port runs.
    ///
    /// Frames already received by the others remain readable. Ends steering by RSS. Raises
    /// ValueError (none, more than ``max_queues``), CommandRefused, PortBusy, and as ``recv``.
    fn set_queues(slf: &Bound<'_, Self>, count: i64) -> PyResult<()> {
        // Numbers outside u16 are out of range as well.
        let wanted = u16::try_from(count).unwrap_or(if count < 0 { 0 } else { u16::MAX });
        ask(slf, |port| port.set_queues(wanted))
    }

    /// Turn a receive mode on or off (VIRTIO 1.3, section 5.1.6.5.1).
    ///
    /// ``promiscuous``, ``all-multicast``, ``all-unicast``, ``no-multicast``, ``no-unicast``,
    /// ``no-broadcast``. Raises ValueError, CommandRefused, and as ``recv``.
    #[pyo3(signature = (mode, on = true))]
    fn set_receive_mode(slf: &Bound<'_, Self>, mode: &str, on: bool) -> PyResult<()> {
        let mode = match mode {
            "promiscuous" => ReceiveMode::Promiscuous,
            "all-multicast" => ReceiveMode::AllMulticast,
            "all-unicast" => ReceiveMode::AllUnicast,
            "no-multicast" => ReceiveMode::NoMulticast,
            "no-unicast" => ReceiveMode::NoUnicast,
            "no-broadcast" => ReceiveMode::NoBroadcast,
            other => {
                return Err(PyValueError::new_err(format!(
                    "the receive mode must be promiscuous, all-multicast, all-unicast, no-multicast, \
                     no-unicast or no-broadcast, not {other:?}"
                )));
            }
        };
        ask(slf, |port| port.set_receive_mode(mode, on))
    }
    /// Change the device's MAC address. Raises ValueError, CommandRefused, and as ``recv``.
    fn set_mac(slf: &Bound<'_, Self>, mac: &str) -> PyResult<()> {
        let mac = address(mac)?;
        ask(slf, |port| port.set_mac(mac))
    }
    /// Set the addresses to receive besides the device's own and broadcast.
    ///
    /// They replace earlier ones; at most 64 in total. No effect while the device is promiscuous.
    /// Raises ValueError, CommandRefused, and as ``recv``.
    #[pyo3(signature = (unicast = Vec::new(), multicast = Vec::new()),
           text_signature = "($self, unicast=(), multicast=())")]
    fn set_mac_filter(
        slf: &Bound<'_, Self>,
        unicast: Vec<String>,
        multicast: Vec<String>,
    ) -> PyResult<()> {
        let addresses =
            |list: Vec<String>| list.iter().map(|mac| address(mac)).collect::<PyResult<Vec<Mac>>>();
        let (unicast, multicast) = (addresses(unicast)?, addresses(multicast)?);
        ask(slf, |port| port.set_mac_filter(&unicast, &multicast))
    }
    /// Receive a VLAN's frames (0 to 4094) while the device is not promiscuous.
    ///
    /// Raises ValueError, CommandRefused, and as ``recv``.
    fn add_vlan(slf: &Bound<'_, Self>, vlan: i64) -> PyResult<()> {
        ask(slf, |port| port.add_vlan(vlan_number(vlan)?))
    }
    /// Stop receiving a VLAN's frames. Raises as ``add_vlan``.
    fn remove_vlan(slf: &Bound<'_, Self>, vlan: i64) -> PyResult<()> {
        ask(slf, |port| port.remove_vlan(vlan_number(vlan)?))
    }
    /// Choose which of the negotiated offloads of received packets are active.
    ///
    /// By feature name, such as ``GUEST_CSUM``. Raises ValueError for one that was not negotiated,
    /// CommandRefused, and as ``recv``.
    fn set_guest_offloads(slf: &Bound<'_, Self>, offloads: Vec<String>) -> PyResult<()> {
        let mut set = Features::NONE;
        for name in offloads {
            set |= by_name(&name).ok_or_else(|| unknown(&name))?.set();
        }
        ask(slf, |port| port.set_guest_offloads(set))
    }
    /// Delay interrupts of all ``rx`` or ``tx`` queues by a number of packets or a time.
    ///
    /// Raises CommandRefused if the device does not offer NOTF_COAL, ValueError, and as ``recv``.
    fn set_coalescing(
        slf: &Bound<'_, Self>,
        direction: &str,
        packets: u32,
        microseconds: u32,
    ) -> PyResult<()> {
        let receive = receives(direction)?;
        ask(slf, |port| port.set_coalescing(receive, Coalescing { packets, microseconds }))
    }

    /// Take back the buffers of transmitted frames that the device has finished.
    ///
    /// ``send`` does this when it needs room. Raises as ``recv``.
    fn reclaim(slf: &Bound<'_, Self>) -> PyResult<()> {
        slf.get().port.reclaim().map_err(|error| raise(slf, error))
    }

    /// Whether the port was closed.
    #[getter]
    fn closed(&self) -> bool {
        self.port.is_closed()
    }
}
