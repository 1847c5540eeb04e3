//! The device configuration (section 5.1.4).

use crate::net::packet::HashTypes;
use crate::virtio::Features;
use crate::virtio::transport::Transport;
use crate::{Error, Result};
use std::fmt;

/// An Ethernet address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct Mac(pub [u8; 6]);

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// The default MTU (Ethernet's).
pub const DEFAULT_MTU: u16 = 1500;
const LINK_UP: u16 = 1;
const ANNOUNCE: u16 = 2;

mod offset {
    pub const MAC: usize = 0;
    pub const STATUS: usize = 6;
    pub const MAX_PAIRS: usize = 8;
    pub const MTU: usize = 10;
    pub const SPEED: usize = 12;
    pub const RSS: usize = 17;
}

/// The line that a device is connected to (section 5.1.4, feature SPEED_DUPLEX).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Line {
    /// Mbit/s, if known.
    pub speed: Option<u32>,
    /// Whether it is full duplex, if known.
    pub full_duplex: Option<bool>,
}

impl Line {
    /// Reads it; unknown for a device without the feature.
    pub(in crate::net) fn read(transport: &dyn Transport, accepted: Features) -> Result<Self> {
        if !accepted.contains(Features::SPEED_DUPLEX) {
            return Ok(Self::default());
        }
        let mut bytes = [0; 5];
        transport.read_config(offset::SPEED, &mut bytes)?;
        let [a, b, c, d, duplex] = bytes;
        let speed = u32::from_le_bytes([a, b, c, d]);
        Ok(Self {
            // Anything above means unknown.
            speed: (speed <= 0x7fff_ffff).then_some(speed),
            full_duplex: match duplex {
                0 => Some(false),
                1 => Some(true),
                _ => None,
            },
        })
    }
}

/// The device's configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NetConfig {
    /// Its MAC address.
    pub mac: Mac,
    /// Its MTU.
    pub mtu: u16,
    /// Whether the link is up.
    pub link: bool,
    /// Speed and duplex.
    pub line: Line,
    /// Number of queue pairs.
    pub max_pairs: u16,
    /// Its hash capabilities, if it steers by hash or reports hashes.
    pub rss: Option<RssLimits>,
}

/// A device's hash capabilities.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RssLimits {
    /// Bytes of the longest key.
    pub key: u8,
    /// Entries of the longest indirection table.
    pub table: u16,
    /// What it can calculate a hash of.
    pub types: HashTypes,
}

impl NetConfig {
    /// Reads the fields of the accepted features. A device without a MAC address gets `fallback`
    /// (section
    /// 5.1.5: the driver chooses one).
    pub(in crate::net) fn read(
        transport: &dyn Transport,
        accepted: Features,
        fallback: Mac,
    ) -> Result<Self> {
        let mut mac = fallback;
        if accepted.contains(Features::MAC) {
            transport.read_config(offset::MAC, &mut mac.0)?;
        }
        let mut mtu = DEFAULT_MTU;
        if accepted.contains(Features::MTU) {
            mtu = read16(transport, offset::MTU)?;
            // Section 5.1.4.1: not less than IPv4's 68.
            if mtu < 68 {
                return Err(Error::Device(format!(
                    "the device offers an MTU of {mtu}; the minimum is 68"
                )));
            }
        }
        let hashes = accepted.contains(Features::RSS) || accepted.contains(Features::HASH_REPORT);
        let several = accepted.contains(Features::MQ) || accepted.contains(Features::RSS);
        let max_pairs = match transport.pairs() {
            Some(pairs) => pairs,
            None if several => read16(transport, offset::MAX_PAIRS)?,
            None => 1,
        };
        // Section 5.1.4.1.
        if !(1..=0x8000).contains(&max_pairs) {
            return Err(Error::Device(format!(
                "the device says that it has {max_pairs} queue pairs; it can be 1 to 32768"
            )));
        }
        Ok(Self {
            mac,
            mtu,
            link: read_status(transport, accepted)?.0,
            line: Line::read(transport, accepted)?,
            max_pairs,
            rss: if hashes { Some(read_rss(transport)?) } else { None },
        })
    }

    /// The index of the control queue, after those of all pairs (section 5.1.2).
    pub(in crate::net) fn control_queue(&self) -> u16 {
        self.max_pairs.saturating_mul(2)
    }
}

/// Whether the link is up (always, for a device without STATUS, section 5.1.4.2), and whether the
/// device asks the driver to announce itself.
pub(in crate::net) fn read_status(
    transport: &dyn Transport,
    accepted: Features,
) -> Result<(bool, bool)> {
    if !accepted.contains(Features::STATUS) {
        return Ok((true, false));
    }
    let status = read16(transport, offset::STATUS)?;
    let announce = accepted.contains(Features::GUEST_ANNOUNCE) && status & ANNOUNCE != 0;
    Ok((status & LINK_UP != 0, announce))
}

fn read_rss(transport: &dyn Transport) -> Result<RssLimits> {
    let mut bytes = [0; 7];
    transport.read_config(offset::RSS, &mut bytes)?;
    let [key, t0, t1, h0, h1, h2, h3] = bytes;
    Ok(RssLimits {
        key,
        table: u16::from_le_bytes([t0, t1]),
        types: HashTypes::from_bits_truncate(u32::from_le_bytes([h0, h1, h2, h3])),
    })
}

fn read16(transport: &dyn Transport, offset: usize) -> Result<u16> {
    let mut bytes = [0; 2];
    transport.read_config(offset, &mut bytes)?;
    Ok(u16::from_le_bytes(bytes))
}
