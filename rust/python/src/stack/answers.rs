//! What the calls of a stack return: frozen classes with named fields.

use super::waiting::{Address, spell};
use pyo3::prelude::*;
use pyo3::types::PyDict;
use virtnic::stack::SocketCounters;

/// A DHCP lease (RFC 2131), now used by the stack.
#[pyclass(frozen, get_all, eq, module = "virtnic._native")]
#[derive(PartialEq)]
pub(crate) struct Lease {
    /// Our address, without prefix length.
    address: String,
    /// Prefix length in bits.
    prefix: u8,
    /// Default gateway; None if the server names none.
    gateway: Option<String>,
    /// The server's address.
    server: String,
    /// Name servers, in order of preference.
    dns: Vec<String>,
    /// Lease time in seconds.
    duration: f64,
    /// Seconds until the lease was received.
    elapsed: f64,
}

#[pymethods]
impl Lease {
    fn __repr__(&self) -> String {
        format!("Lease({}/{} from {})", self.address, self.prefix, self.server)
    }
}

impl From<virtnic::stack::Lease> for Lease {
    fn from(lease: virtnic::stack::Lease) -> Self {
        Self {
            address: lease.address.address.to_string(),
            prefix: lease.address.prefix,
            gateway: lease.gateway.map(|gateway| gateway.to_string()),
            server: lease.server.to_string(),
            dns: lease.dns.iter().map(ToString::to_string).collect(),
            duration: lease.duration.as_secs_f64(),
            elapsed: lease.elapsed.as_secs_f64(),
        }
    }
}

/// The reply to an ARP request (RFC 826).
#[pyclass(frozen, get_all, eq, module = "virtnic._native")]
#[derive(PartialEq)]
pub(crate) struct ArpReply {
    /// MAC address of the IP address.
    pub(super) mac: String,
    /// Seconds from the request to the reply.
    pub(super) seconds: f64,
}

#[pymethods]
impl ArpReply {
    fn __repr__(&self) -> String {
        format!("ArpReply(mac={:?}, seconds={:?})", self.mac, self.seconds)
    }
}

/// An ICMP echo reply (RFC 792).
#[pyclass(frozen, get_all, eq, module = "virtnic._native")]
#[derive(PartialEq)]
pub(crate) struct PingReply {
    /// Sequence number of the request.
    pub(super) sequence: u16,
    /// Seconds from the request to the reply.
    pub(super) seconds: f64,
}

#[pymethods]
impl PingReply {
    fn __repr__(&self) -> String {
        format!("PingReply(sequence={}, seconds={:?})", self.sequence, self.seconds)
    }
}

/// The counters of a socket by name.
pub(super) fn counted<'py>(
    py: Python<'py>,
    counters: &SocketCounters,
) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    for (name, value) in counters.fields() {
        dict.set_item(name, value)?;
    }
    dict.set_item("rtt", counters.rtt.map(|rtt| rtt.as_secs_f64()))?;
    Ok(dict)
}

/// One socket of a stack, as ``connections`` lists it.
#[pyclass(frozen, get_all, module = "virtnic._native")]
pub(crate) struct Connection {
    /// ``tcp`` or ``udp``.
    protocol: &'static str,
    /// The state: ``established``, ``listen`` and so on.
    state: &'static str,
    /// The local address and port; None if it is not bound.
    local: Option<Address>,
    /// The peer's address and port; None if it is not connected.
    remote: Option<Address>,
    /// Bytes that the program has not received yet; connections that it has not accepted yet.
    receive_queue: usize,
    /// Bytes that the peer has not acknowledged yet.
    send_queue: usize,
    /// The counters, as ``stats`` of the socket.
    stats: Py<PyDict>,
}

#[pymethods]
impl Connection {
    fn __repr__(&self) -> String {
        let end = |address: &Option<Address>| {
            address.as_ref().map_or_else(
                || "*".to_owned(),
                |(host, port)| {
                    if host.contains(':') {
                        format!("[{host}]:{port}")
                    } else {
                        format!("{host}:{port}")
                    }
                },
            )
        };
        let (local, remote) = (end(&self.local), end(&self.remote));
        format!("<{} {} {local} {remote}>", self.protocol, self.state)
    }
}

impl Connection {
    pub(super) fn new(py: Python<'_>, one: virtnic::stack::Connection) -> PyResult<Self> {
        Ok(Self {
            protocol: one.protocol,
            state: one.state,
            local: one.local.map(spell),
            remote: one.remote.map(spell),
            receive_queue: one.receive_queue,
            send_queue: one.send_queue,
            stats: counted(py, &one.counters)?.unbind(),
        })
    }
}
