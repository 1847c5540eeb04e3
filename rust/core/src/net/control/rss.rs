//! Receive-side scaling (sections 5.1.6.5.6 and 5.1.6.5.7): hash types and the indirection table.

use crate::net::config::RssLimits;
use crate::net::control::class;
use crate::net::control::queue::Command;
use crate::net::packet::HashTypes;
use crate::{Error, Result};

/// How a device steers or hashes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rss {
    /// The Toeplitz key.
    pub key: Vec<u8>,
    /// The hash types. A packet of no such type goes to `unclassified`.
    pub types: HashTypes,
    /// A packet goes to the pair `table[hash % table.len()]`. Empty: hashes are only reported.
    pub table: Vec<u16>,
    /// The pair of packets without a hash.
    pub unclassified: u16,
}

pub(in crate::net) const RSS_CONFIG: Command =
    Command { class: class::MQ, number: 1, name: "MQ_RSS_CONFIG" };
pub(in crate::net) const HASH_CONFIG: Command =
    Command { class: class::MQ, number: 2, name: "MQ_HASH_CONFIG" };

impl Rss {
    pub(in crate::net) fn check(&self, limits: &RssLimits, active: u16) -> Result<()> {
        if self.key.is_empty() || self.key.len() > limits.key.into() {
            return Err(Error::Invalid(format!(
                "the key for this device must have 1 to {} bytes, not {}",
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
                "the indirection table for this device must have a power of two of entries up to {}, not {}",
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

    /// `struct virtio_net_rss_config`. A receive queue is named by bits 1 to 16 of its index: the
    /// number of its pair.
    pub(in crate::net) fn rss_config(&self, active: u16) -> Vec<u8> {
        let mut out = self.types.bits().to_le_bytes().to_vec();
        out.extend((self.table.len() as u16).wrapping_sub(1).to_le_bytes());
        out.extend(self.unclassified.to_le_bytes());
        out.extend(self.table.iter().flat_map(|pair| pair.to_le_bytes()));
        out.extend(active.to_le_bytes());
        self.key_to(out)
    }

    /// `struct virtio_net_hash_config`.
    pub(in crate::net) fn hash_config(&self) -> Vec<u8> {
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
