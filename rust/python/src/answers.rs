//! What calls answer with: frozen classes with names for everything.

use pyo3::prelude::*;

/// What became of a feature bit of the device.
#[pyclass(frozen, get_all, eq, hash, module = "virtnic._native")]
#[derive(PartialEq, Eq, Hash)]
pub(crate) struct Feature {
    /// Its name in VIRTIO 1.3, without the prefix: ``MRG_RXBUF``.
    name: String,
    /// Its number.
    bit: u8,
    /// Whether the device offers it.
    offered: bool,
    /// Whether it is in force.
    accepted: bool,
    /// Why it is, or is not.
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

impl From<virtnic::virtio::features::Outcome> for Feature {
    fn from(outcome: virtnic::virtio::features::Outcome) -> Self {
        let virtnic::virtio::features::Outcome { name, bit, offered, accepted, why } = outcome;
        Self { name, bit, offered, accepted, why }
    }
}

/// A DHCP lease (RFC 2131), which the stack uses from then on.
#[pyclass(frozen, get_all, eq, module = "virtnic._native")]
#[derive(PartialEq)]
pub(crate) struct Lease {
    /// Our address, without its prefix.
    address: String,
    /// Bits of the network's prefix.
    prefix: u8,
    /// The default gateway; None where the server names none.
    gateway: Option<String>,
    /// Who gave it.
    server: String,
    /// Name servers, the first one first.
    dns: Vec<String>,
    /// Seconds for which it holds.
    duration: f64,
    /// Seconds that it took to get it.
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

/// Who answered an ARP request (RFC 826), and how soon.
#[pyclass(frozen, get_all, eq, module = "virtnic._native")]
#[derive(PartialEq)]
pub(crate) struct ArpReply {
    /// The MAC address that has the IP address.
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
    /// The number of the request that it answers.
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

/// A bool, as Python writes it.
fn word(known: bool) -> &'static str {
    if known { "True" } else { "False" }
}
