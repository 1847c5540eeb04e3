//! IPv4 addresses: parsing and checks.

use crate::{Error, Result};
use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

/// An address and its prefix length, such as `10.0.2.15/24`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cidr {
    /// The address.
    pub address: Ipv4Addr,
    /// The prefix length in bits, at most 32.
    pub prefix: u8,
}

impl Cidr {
    fn mask(self) -> u32 {
        u32::MAX.checked_shl(32 - u32::from(self.prefix.min(32))).unwrap_or(0)
    }
    /// Whether the other address is in the same network.
    #[must_use]
    pub fn contains(self, other: Ipv4Addr) -> bool {
        (self.address.to_bits() ^ other.to_bits()) & self.mask() == 0
    }
    /// Whether `other` is the network or broadcast address, which no host has if the prefix is shorter
    /// than 31 bits (RFC 3021).
    #[must_use]
    pub fn reserves(self, other: Ipv4Addr) -> bool {
        let host = other.to_bits() & !self.mask();
        self.prefix < 31 && self.contains(other) && (host == 0 || host == !self.mask())
    }
    /// Checks that a host can have this address.
    pub(super) fn check(self) -> Result<()> {
        if self.prefix > 32 {
            return Err(invalid(self, "a prefix has 0 to 32 bits"));
        }
        if !is_unicast(self.address) {
            return Err(invalid(
                self,
                "it is unspecified, or a broadcast, multicast or loopback address",
            ));
        }
        if self.reserves(self.address) {
            return Err(invalid(self, "it is the network or broadcast address"));
        }
        Ok(())
    }
}

fn invalid(given: impl fmt::Display, why: &str) -> Error {
    Error::Invalid(format!("{given} cannot be used: {why}"))
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

impl FromStr for Cidr {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self> {
        let parsed = text.split_once('/').and_then(|(address, prefix)| {
            Some(Self { address: address.parse().ok()?, prefix: prefix.parse().ok()? })
        });
        let cidr = parsed.ok_or_else(|| {
            Error::Invalid(format!(
                "expected an IPv4 address with its prefix length, such as 10.0.2.15/24, not {text:?}"
            ))
        })?;
        cidr.check()?;
        Ok(cidr)
    }
}

/// Parses an IPv4 address.
///
/// # Errors
/// [`Error::Invalid`].
pub fn parse_ipv4(text: &str) -> Result<Ipv4Addr> {
    text.parse().map_err(|_| {
        let more = if text.contains(':') { " (IPv6 is not supported)" } else { "" };
        Error::Invalid(format!("expected an IPv4 address such as 10.0.2.2, not {text:?}{more}"))
    })
}

/// Whether a host on a link can have this address.
pub(super) fn is_unicast(address: Ipv4Addr) -> bool {
    !(address.is_unspecified()
        || address.is_broadcast()
        || address.is_multicast()
        || address.is_loopback())
}
