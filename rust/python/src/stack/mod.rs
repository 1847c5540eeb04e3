//! `NetStack`, its sockets and what its calls return.

mod answers;
mod buffers;
mod carried;
mod options;
mod socket;
mod waiting;

pub(crate) use answers::{ArpReply, Connection, Lease, PingReply};
pub(crate) use carried::StackWire;
pub(crate) use socket::NetSocket;

use crate::errors::to_py;
use crate::port::NetPort;
use crate::queue::NetQueue;
use crate::time::span;
use pyo3::exceptions::{PyTimeoutError, PyTypeError, PyValueError};
use pyo3::gc::{PyTraverseError, PyVisit};
use pyo3::prelude::*;
use pyo3::types::PyDict;
use virtnic::stack::{Host, HostOptions, Network, PairWire, Transport, Wire, parse_ipv4};
use waiting::{parse, run};

/// A TCP/IP stack with its own thread, on a port, a queue or a StackWire.
#[pyclass(frozen, subclass, module = "virtnic._native")]
pub(crate) struct NetStack {
    host: Host,
    /// The port, queue or wire below it, kept alive.
    port: Py<PyAny>,
}

impl Drop for NetStack {
    fn drop(&mut self) {
        // None if the interpreter is shutting down: then nothing needs to be closed.
        Python::try_attach(|py| py.detach(|| self.host.close()));
    }
}

/// A 16-bit number.
fn number(what: &str, value: i64) -> PyResult<u16> {
    u16::try_from(value)
        .map_err(|_| PyValueError::new_err(format!("{what} must be 0 to 65535, not {value}")))
}

#[pymethods]
impl NetStack {
    #[new]
    #[pyo3(signature = (port, *, ipv6 = true, mtu = None, **_kwargs))]
    fn new(
        port: &Bound<'_, PyAny>,
        ipv6: bool,
        mtu: Option<i64>,
        _kwargs: Option<&Bound<'_, PyDict>>,
    ) -> PyResult<Self> {
        let mtu = mtu.map(|mtu| number("an MTU", mtu)).transpose()?;
        let wire: Box<dyn Wire> = if let Ok(port) = port.cast::<NetPort>() {
            Box::new(PairWire::new(port.get().shared(), 0).map_err(to_py)?)
        } else if let Ok(queue) = port.cast::<NetQueue>() {
            let queue = queue.get();
            let port = queue.owner().get().shared();
            Box::new(PairWire::new(port, queue.number()).map_err(to_py)?)
        } else if let Ok(wire) = port.cast::<StackWire>() {
            wire.get().end()
        } else {
            return Err(PyTypeError::new_err(format!(
                "a stack needs a port, a queue or a StackWire, not {}",
                port.get_type().name()?
            )));
        };
        let host = Host::new(wire, HostOptions { ipv6, mtu }).map_err(to_py)?;
        Ok(Self { host, port: port.clone().unbind() })
    }

    /// Reset the connections, close the sockets, end the thread.
    fn close(&self, py: Python<'_>) {
        py.detach(|| self.host.close());
    }
    /// Whether it was closed.
    #[getter]
    fn closed(&self) -> bool {
        self.host.is_closed()
    }
    /// All addresses with their prefixes: ``10.0.2.15/24``, ``fe80::…/64``.
    #[getter]
    fn addresses(&self, py: Python<'_>) -> PyResult<Vec<String>> {
        let networks = py.detach(|| self.host.networks()).map_err(to_py)?;
        Ok(networks.iter().map(ToString::to_string).collect())
    }
    /// The default gateways, IPv4 first.
    #[getter]
    fn gateways(&self, py: Python<'_>) -> PyResult<Vec<String>> {
        let gateways = py.detach(|| self.host.gateways()).map_err(to_py)?;
        Ok(gateways.iter().map(ToString::to_string).collect())
    }
    /// The name servers of the DHCP lease.
    #[getter]
    fn name_servers(&self, py: Python<'_>) -> PyResult<Vec<String>> {
        let servers = py.detach(|| self.host.name_servers()).map_err(to_py)?;
        Ok(servers.iter().map(ToString::to_string).collect())
    }

    /// Add an address with its prefix, and set the default gateway of its family.
    ///
    /// Raises ValueError; then nothing has changed.
    #[pyo3(signature = (address, gateway = None))]
    fn configure(&self, py: Python<'_>, address: &str, gateway: Option<&str>) -> PyResult<()> {
        let network: Network = address.parse().map_err(to_py)?;
        let gateway = gateway.map(parse).transpose()?;
        py.detach(|| self.host.configure(network, gateway)).map_err(to_py)
    }

    /// Remove an address, and the gateway that only its network reaches.
    ///
    /// The prefix length may be omitted. Removing the address of the DHCP lease ends the lease.
    /// Sockets that are bound to the address remain, but receive nothing more. Raises ValueError if
    /// it is none of the stack's addresses.
    fn remove_address(&self, py: Python<'_>, address: &str) -> PyResult<()> {
        let address = parse(address.split('/').next().unwrap_or(address))?;
        py.detach(|| self.host.remove_address(address)).map_err(to_py)
    }

    /// Get a lease by DHCP, use it, and keep renewing it.
    ///
    /// It takes the place of an earlier lease; addresses that were configured remain, and so does
    /// their gateway. Raises TimeoutError without a lease within ``timeout`` seconds.
    #[pyo3(signature = (timeout = Some(10.0)), text_signature = "($self, timeout=10.0)")]
    fn dhcp(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<Lease> {
        let timeout = span(timeout)?;
        run(py, |check| self.host.dhcp(timeout, check)).map(Lease::from)
    }

    /// Wait for an IPv6 address of global scope from a router; return it with its prefix.
    ///
    /// Raises TimeoutError without one within ``timeout`` seconds.
    #[pyo3(signature = (timeout = Some(10.0)), text_signature = "($self, timeout=10.0)")]
    fn wait_ipv6(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<String> {
        let timeout = span(timeout)?;
        run(py, |check| self.host.await_global_v6(timeout, check)).map(|found| found.to_string())
    }

    /// Resolve an IPv4 address.
    ///
    /// Raises TimeoutError without a reply within ``timeout`` seconds.
    #[pyo3(signature = (address, timeout = Some(1.0)), text_signature = "($self, address, timeout=1.0)")]
    fn arp(&self, py: Python<'_>, address: &str, timeout: Option<f64>) -> PyResult<ArpReply> {
        let (address, timeout) = (parse_ipv4(address).map_err(to_py)?, span(timeout)?);
        let (mac, took) = run(py, |check| self.host.arp(address, timeout, check))?;
        Ok(ArpReply { mac: mac.to_string(), seconds: took.as_secs_f64() })
    }

    /// Send one ICMP echo request with ``payload`` bytes, and wait for its reply.
    ///
    /// Raises TimeoutError without a reply within ``timeout`` seconds.
    #[pyo3(signature = (address, sequence = 0, payload = 56, timeout = Some(1.0)),
           text_signature = "($self, address, sequence=0, payload=56, timeout=1.0)")]
    fn ping(
        &self,
        py: Python<'_>,
        address: &str,
        sequence: i64,
        payload: i64,
        timeout: Option<f64>,
    ) -> PyResult<PingReply> {
        let (to, timeout) = (parse(address)?, span(timeout)?);
        let sequence = number("a sequence number", sequence)?;
        let payload = number("a payload's length", payload)?;
        let took = run(py, |check| self.host.ping(to, sequence, payload.into(), timeout, check))?;
        match took {
            Some(took) => Ok(PingReply { sequence, seconds: took.as_secs_f64() }),
            None => {
                let seconds = timeout.map_or(0.0, |timeout| timeout.as_secs_f64());
                let why = format!("no echo reply from {address} within {seconds} s");
                Err(PyTimeoutError::new_err(why))
            }
        }
    }

    /// Create a socket: TCP or UDP, IPv4 or IPv6.
    #[pyo3(name = "_open")]
    fn open(&self, py: Python<'_>, stream: bool, ipv6: bool) -> PyResult<NetSocket> {
        let transport = if stream { Transport::Stream } else { Transport::Datagram };
        py.detach(|| self.host.socket(transport, ipv6)).map(NetSocket).map_err(to_py)
    }

    /// Return the counters by name.
    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let counters = py.detach(|| self.host.counters()).map_err(to_py)?;
        let dict = PyDict::new(py);
        for (name, value) in counters.fields() {
            dict.set_item(name, value)?;
        }
        Ok(dict)
    }

    /// Return all sockets, in the order of creation.
    fn connections(&self, py: Python<'_>) -> PyResult<Vec<Connection>> {
        let all = py.detach(|| self.host.connections()).map_err(to_py)?;
        all.into_iter().map(|one| Connection::new(py, one)).collect()
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.port)
    }
}
