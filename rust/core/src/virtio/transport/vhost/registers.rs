//! The parts of a virtio-net device that a vhost backend lacks: the configuration (VIRTIO 1.3, section
//! 5.1.4) and some features.

use crate::virtio::Features;

/// The length of the configuration in bytes, up to `supported_hash_types`.
const LENGTH: usize = 24;
const MAC: usize = 0;
const STATUS: usize = 6;
const PAIRS: usize = 8;
const MTU: usize = 10;
const SPEED: usize = 12;
const DUPLEX: usize = 16;
const LINK_UP: u16 = 1;

/// Features that the backend offers: those about the format of frames and rings.
///
/// Without those that need a control queue, those about the device's properties, and address
/// translation, which needs an IOMMU.
pub(super) const PASSED: Features = Features(
    Features::SEND_OFFLOADS.0
        | (Features::RECEIVE_OFFLOADS.0 & !Features::RSC_EXT.0)
        | Features::MRG_RXBUF.0
        | Features::ANY_LAYOUT.0
        | Features::NOTIFY_ON_EMPTY.0
        | Features::INDIRECT_DESC.0
        | Features::EVENT_IDX.0
        | Features::VERSION_1.0
        | Features::RING_PACKED.0
        | Features::IN_ORDER.0
        | Features::ORDER_PLATFORM.0
        | Features::RING_RESET.0
        | Features::GUEST_HDRLEN.0,
);

/// The device's properties.
#[derive(Clone, Copy, Debug)]
pub(super) struct Registers {
    pub mac: [u8; 6],
    pub mtu: Option<u16>,
    pub pairs: u16,
    pub link: bool,
}

impl Registers {
    /// The features that are implemented here.
    pub(super) fn features(&self) -> Features {
        let mtu = self.mtu.map_or(Features::NONE, |_| Features::MTU);
        Features::MAC | Features::STATUS | mtu
    }

    /// The configuration.
    pub(super) fn bytes(&self) -> [u8; LENGTH] {
        let mut bytes = [0; LENGTH];
        let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
        put(MAC, &self.mac);
        put(STATUS, &(if self.link { LINK_UP } else { 0 }).to_le_bytes());
        put(PAIRS, &self.pairs.to_le_bytes());
        put(MTU, &self.mtu.unwrap_or_default().to_le_bytes());
        put(SPEED, &u32::MAX.to_le_bytes());
        put(DUPLEX, &[0xff]);
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_configuration_has_the_specified_layout() {
        let mac = [0x52, 0x54, 0, 1, 2, 3];
        let registers = Registers { mac, mtu: Some(9000), pairs: 2, link: true };
        let bytes = registers.bytes();
        assert_eq!(bytes[..12], [0x52, 0x54, 0, 1, 2, 3, 1, 0, 2, 0, 0x28, 0x23]);
        assert!(registers.features().contains(Features::MTU));
        let registers = Registers { mtu: None, link: false, ..registers };
        assert_eq!(registers.bytes()[6..8], [0, 0]);
        assert!(!registers.features().contains(Features::MTU));
    }
}
