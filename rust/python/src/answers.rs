//! Results of calls: frozen classes with named fields.

use pyo3::prelude::*;

/// The outcome of negotiating a feature bit.
#[pyclass(frozen, get_all, eq, hash, module = "virtnic._native")]
#[derive(PartialEq, Eq, Hash)]
pub(crate) struct Feature {
    /// Name in VIRTIO 1.3, without the prefix: ``MRG_RXBUF``.
    name: String,
    /// Bit number.
    bit: u8,
    /// Whether the device offers it.
    offered: bool,
    /// Whether it was negotiated.
    accepted: bool,
    /// The reason.
    why: String,
}

#[pymethods]
impl Feature {
    fn __repr__(&self) -> String {
        let Self { name, bit, offered, accepted, why } = self;
        let [offered, accepted] = [offered, accepted].map(|&known| word(known));
        format!(
            "Feature(name={name:?}, bit={bit}, offered={offered}, accepted={accepted}, why={why:?})"
        )
    }
}

impl From<virtnic::virtio::negotiation::Outcome> for Feature {
    fn from(outcome: virtnic::virtio::negotiation::Outcome) -> Self {
        let virtnic::virtio::negotiation::Outcome { name, bit, offered, accepted, why } = outcome;
        Self { name, bit, offered, accepted, why }
    }
}

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
    pub(crate) mac: String,
    /// Seconds from the request to the reply.
    pub(crate) seconds: f64,
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
    pub(crate) sequence: u16,
    /// Seconds from the request to the reply.
    pub(crate) seconds: f64,
}

#[pymethods]
impl PingReply {
    fn __repr__(&self) -> String {
        format!("PingReply(sequence={}, seconds={:?})", self.sequence, self.seconds)
    }
}

/// Formats a bool as Python does.
fn word(known: bool) -> &'static str {
    if known { "True" } else { "False" }
}
