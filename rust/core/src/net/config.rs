//! The device configuration (section 5.1.4).

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

/// The MTU of a device that does not say (Ethernet's).
pub const DEFAULT_MTU: u16 = 1500;
const LINK_UP: u16 = 1;

mod offset {
    pub const MAC: usize = 0;
    pub const STATUS: usize = 6;
    pub const MTU: usize = 10;
}

/// What the device says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NetConfig {
    /// Its MAC address.
    pub mac: Mac,
    /// Its MTU.
    pub mtu: u16,
    /// Whether the link is up.
    pub link: bool,
}

impl NetConfig {
    /// Reads what the accepted features say is there. A device without a MAC address
    /// of its own gets `fallback` (section 5.1.5: the driver chooses one).
    pub(super) fn read(
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
                    "the device offers an MTU of {mtu}; the least is 68"
                )));
            }
        }
        Ok(Self { mac, mtu, link: read_link(transport, accepted)? })
    }
}

/// Whether the link is up; always, for a device without the STATUS feature (section 5.1.4.2).
pub(super) fn read_link(transport: &dyn Transport, accepted: Features) -> Result<bool> {
    if !accepted.contains(Features::STATUS) {
        return Ok(true);
    }
    Ok(read16(transport, offset::STATUS)? & LINK_UP != 0)
}

fn read16(transport: &dyn Transport, offset: usize) -> Result<u16> {
    let mut bytes = [0; 2];
    transport.read_config(offset, &mut bytes)?;
    Ok(u16::from_le_bytes(bytes))
}
