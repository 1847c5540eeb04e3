//! Receive-side scaling (sections 5.1.6.5.6 and 5.1.6.5.7): what is hashed, and where a hash leads.

use super::commands::class;
use super::config::RssLimits;
use super::control::Command;
use super::port::Port;
use crate::virtio::Features;
use crate::{Error, Result};

bitflags::bitflags! {
    /// What a hash may be calculated over (section 5.1.6.4.3).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct HashTypes: u32 {
        /// IPv4 addresses.
        const IPV4 = 1;
        /// IPv4 addresses and TCP ports.
        const TCPV4 = 1 << 1;
        /// IPv4 addresses and UDP ports.
        const UDPV4 = 1 << 2;
        /// IPv6 addresses.
        const IPV6 = 1 << 3;
        /// IPv6 addresses and TCP ports.
        const TCPV6 = 1 << 4;
        /// IPv6 addresses and UDP ports.
        const UDPV6 = 1 << 5;
        /// IPv6 addresses, those of extension headers where there are.
        const IP_EX = 1 << 6;
        /// The same and TCP ports.
        const TCP_EX = 1 << 7;
        /// The same and UDP ports.
        const UDP_EX = 1 << 8;
    }
}

/// How a device steers, or only hashes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rss {
    /// The Toeplitz key.
    pub key: Vec<u8>,
    /// What is hashed. A packet of no such type goes to `unclassified`.
    pub types: HashTypes,
    /// A packet goes to the pair `table[hash % table.len()]`. Empty: hashes are reported only.
    pub table: Vec<u16>,
    /// The pair of packets that have no hash.
    pub unclassified: u16,
}

const RSS_CONFIG: Command = Command { class: class::MQ, number: 1, name: "MQ_RSS_CONFIG" };
const HASH_CONFIG: Command = Command { class: class::MQ, number: 2, name: "MQ_HASH_CONFIG" };

impl Rss {
    fn check(&self, limits: &RssLimits, active: u16) -> Result<()> {
        if self.key.is_empty() || self.key.len() > limits.key.into() {
            return Err(Error::Invalid(format!(
                "the key of this device has 1 to {} bytes, not {}",
                limits.key,
                self.key.len()
            )));
        }
        let unknown = self.types - limits.types;
        if !unknown.is_empty() {
            return Err(Error::Invalid(format!(
                "the device cannot hash {unknown:?}, only {:?}",
                limits.types
            )));
        }
        if self.table.is_empty() {
            return Ok(());
        }
        if !self.table.len().is_power_of_two() || self.table.len() > limits.table.into() {
            return Err(Error::Invalid(format!(
                "the indirection table of this device has a power of two of entries up to {}, not {}",
                limits.table,
                self.table.len()
            )));
        }
        match self.table.iter().chain([&self.unclassified]).find(|&&pair| pair >= active) {
            None => Ok(()),
            Some(pair) => Err(Error::Invalid(format!(
                "the indirection table leads to queue {pair}; {active} are in use, numbered from 0"
            ))),
        }
    }

    /// `struct virtio_net_rss_config`. A receive queue is named by bits 1 to 16 of its index,
    /// which is the number of its pair.
    fn rss_config(&self, active: u16) -> Vec<u8> {
        let mut out = self.types.bits().to_le_bytes().to_vec();
        out.extend((self.table.len() as u16).wrapping_sub(1).to_le_bytes());
        out.extend(self.unclassified.to_le_bytes());
        out.extend(self.table.iter().flat_map(|pair| pair.to_le_bytes()));
        out.extend(active.to_le_bytes());
        self.key_to(out)
    }

    /// `struct virtio_net_hash_config`.
    fn hash_config(&self) -> Vec<u8> {
        let mut out = self.types.bits().to_le_bytes().to_vec();
        out.extend([0; 8]);
        self.key_to(out)
    }

    fn key_to(&self, mut out: Vec<u8>) -> Vec<u8> {
        // At most 255 bytes: `check`.
        out.push(self.key.len() as u8);
        out.extend(&self.key);
        out
    }
}

impl Port {
    /// Has the device steer received packets by a hash, or with an empty table only report
    /// hashes. [`Port::set_queues`] ends it.
    ///
    /// # Errors
    /// [`Error::Invalid`] for what the device cannot do; [`Error::Refused`] without the feature
    /// RSS (or HASH_REPORT, where the table is empty), and where the device refuses; and as for
    /// [`Port::recv`].
    pub fn set_rss(&self, rss: &Rss) -> Result<()> {
        let (feature, command) = if rss.table.is_empty() {
            (Features::HASH_REPORT, HASH_CONFIG)
        } else {
            (Features::RSS, RSS_CONFIG)
        };
        let arguments = format!(
            "types={:?}, table of {}, key of {}",
            rss.types,
            rss.table.len(),
            rss.key.len()
        );
        self.persist(|| self.try_set_rss(rss, feature, command, &arguments))
    }

    fn try_set_rss(
        &self,
        rss: &Rss,
        feature: Features,
        command: Command,
        arguments: &str,
    ) -> Result<()> {
        self.offered(feature, command, arguments)?;
        let _change = self.change()?;
        let active = self.active_pairs();
        if let Some(limits) = &self.rss_limits() {
            rss.check(limits, active)?;
        }
        let payload = if rss.table.is_empty() { rss.hash_config() } else { rss.rss_config(active) };
        self.run(command, &payload, arguments)?;
        self.settings().rss = Some(rss.clone());
        Ok(())
    }
}
