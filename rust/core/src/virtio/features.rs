//! Feature bits (VIRTIO 1.3, sections 2.2, 5.1.3 and 6) and their negotiation.

use std::fmt;
use std::ops::{BitAnd, BitOr, BitOrAssign, Sub};

/// A set of feature bits.
#[derive(Clone, Copy, PartialEq, Eq, Default, Hash)]
pub struct Features(pub u128);

impl Features {
    /// No feature.
    pub const NONE: Self = Self(0);

    /// The set of one bit.
    #[must_use]
    pub const fn bit(bit: u8) -> Self {
        Self(1 << bit)
    }
    /// Whether every feature of `other` is in this set.
    #[must_use]
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
    /// The 32 bits for the value `index` of the feature select register (section 4.1.4.3).
    #[must_use]
    pub const fn word(self, index: u32) -> u32 {
        (self.0 >> (32 * index)) as u32
    }
    /// The bits, lowest first.
    pub fn bits(self) -> impl Iterator<Item = u8> {
        (0..128).filter(move |bit| self.contains(Self::bit(*bit)))
    }
}

impl BitOr for Features {
    type Output = Self;
    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl BitOrAssign for Features {
    fn bitor_assign(&mut self, other: Self) {
        self.0 |= other.0;
    }
}

impl BitAnd for Features {
    type Output = Self;
    fn bitand(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }
}

impl Sub for Features {
    type Output = Self;
    fn sub(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }
}

impl fmt::Debug for Features {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Features({self})")
    }
}

impl fmt::Display for Features {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        for bit in self.bits() {
            match by_bit(bit) {
                Some(known) => write!(f, "{separator}{}", known.name)?,
                None => write!(f, "{separator}bit {bit}")?,
            }
            separator = ", ";
        }
        Ok(())
    }
}

/// How this driver supports a feature.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Support {
    /// The device must offer it.
    Required,
    /// Accepted if offered.
    Accepted,
    /// Supported, but only accepted on request; with the reason.
    OnRequest(&'static str),
    /// Not accepted; with the reason.
    Unsupported(&'static str),
}

/// One feature bit.
#[derive(Clone, Copy, Debug)]
pub struct Feature {
    /// Its name in the specification, without the prefix `VIRTIO_`, `VIRTIO_F_` or `VIRTIO_NET_F_`.
    pub name: &'static str,
    /// Its number.
    pub bit: u8,
    /// The section of VIRTIO 1.3 that defines it.
    pub section: &'static str,
    /// How this driver supports it.
    pub support: Support,
}

impl Feature {
    /// The set of this feature alone.
    #[must_use]
    pub const fn set(&self) -> Features {
        Features::bit(self.bit)
    }
}

macro_rules! features {
    ($($(#[$doc:meta])* $name:ident = $bit:literal, $section:literal, $support:expr;)*) => {
        impl Features {
            $($(#[$doc])* pub const $name: Self = Self::bit($bit);)*
        }
        /// Every feature bit of a virtio-net device, by number.
        pub const TABLE: &[Feature] = &[
            $(Feature { name: stringify!($name), bit: $bit, section: $section, support: $support },)*
        ];
    };
}

use Support::{Accepted, OnRequest, Required, Unsupported};

/// Frames of the usual size fit one buffer and need no merging. A port prefers the feature if the
/// device's MTU requires it; `attach` also if QEMU moves the frames, where its cost is negligible.
const MERGE_ON_REQUEST: Support = OnRequest(
    "reads a header for each frame, which slows down a backend; used if QEMU moves the frames or \
     the MTU needs it",
);
/// Programs that ignore `burst.offload` would misread such frames.
const OFFLOAD_ON_REQUEST: Support =
    OnRequest("received frames may then lack checksums or be 64 KiB long; use offload=True");
const COALESCED_ON_REQUEST: Support =
    OnRequest("coalesced frames cannot be forwarded as the original segments");
const NO_TUNNELS: Support =
    Unsupported("VIRTIO 1.4; the longer header for tunnels is not supported");

features! {
    /// The device handles packets with partial checksum.
    CSUM = 0, "5.1.3", Accepted;
    /// The driver handles packets with partial checksum.
    GUEST_CSUM = 1, "5.1.3", OFFLOAD_ON_REQUEST;
    /// Offloads can be changed at run time by the control queue.
    CTRL_GUEST_OFFLOADS = 2, "5.1.3", Accepted;
    /// The device reports its MTU.
    MTU = 3, "5.1.3", Accepted;
    /// The device has a MAC address.
    MAC = 5, "5.1.3", Accepted;
    /// The device can segment frames of all kinds.
    GSO = 6, "5.1.3.2", Unsupported("legacy; replaced by CSUM, HOST_TSO4 and others");
    /// The driver can receive TSOv4.
    GUEST_TSO4 = 7, "5.1.3", OFFLOAD_ON_REQUEST;
    /// The driver can receive TSOv6.
    GUEST_TSO6 = 8, "5.1.3", OFFLOAD_ON_REQUEST;
    /// The driver can receive TSO with ECN.
    GUEST_ECN = 9, "5.1.3", OFFLOAD_ON_REQUEST;
    /// The driver can receive UFO.
    GUEST_UFO = 10, "5.1.3", OFFLOAD_ON_REQUEST;
    /// The device can receive TSOv4.
    HOST_TSO4 = 11, "5.1.3", Accepted;
    /// The device can receive TSOv6.
    HOST_TSO6 = 12, "5.1.3", Accepted;
    /// The device can receive TSO with ECN.
    HOST_ECN = 13, "5.1.3", Accepted;
    /// The device can receive UFO.
    HOST_UFO = 14, "5.1.3", Accepted;
    /// The driver can merge receive buffers.
    MRG_RXBUF = 15, "5.1.3", MERGE_ON_REQUEST;
    /// The configuration has a status field.
    STATUS = 16, "5.1.3", Accepted;
    /// There is a control queue.
    CTRL_VQ = 17, "5.1.3", Accepted;
    /// The control queue sets receive modes.
    CTRL_RX = 18, "5.1.3", Accepted;
    /// The control queue filters VLANs.
    CTRL_VLAN = 19, "5.1.3", Accepted;
    /// The control queue has extra receive modes.
    CTRL_RX_EXTRA = 20, "5.1.3", Accepted;
    /// The driver can send gratuitous packets.
    GUEST_ANNOUNCE = 21, "5.1.3", Accepted;
    /// The device has several queue pairs.
    MQ = 22, "5.1.3", Accepted;
    /// The control queue sets the MAC address.
    CTRL_MAC_ADDR = 23, "5.1.3", Accepted;
    /// The device notifies when it runs out of buffers, even if notifications are suppressed.
    NOTIFY_ON_EMPTY = 24, "6.3", Unsupported("legacy; of no use to a driver that polls used rings");
    /// Descriptors may be laid out in any way.
    ANY_LAYOUT = 27, "6.3", Accepted;
    /// A descriptor can point to a table of descriptors.
    INDIRECT_DESC = 28, "6", Accepted;
    /// Notifications are suppressed by index.
    EVENT_IDX = 29, "6", Accepted;
    /// Not a feature: a check for early drivers.
    UNUSED = 30, "6.3", Unsupported("legacy; a driver must not accept it");
    /// The device complies with version 1 of the specification.
    VERSION_1 = 32, "6", Required;
    /// The device's memory access is translated or limited by the platform.
    ACCESS_PLATFORM = 33, "6", Accepted;
    /// The packed ring.
    RING_PACKED = 34, "6", Accepted;
    /// Buffers are used in the order in which they were made available.
    IN_ORDER = 35, "6", Accepted;
    /// Memory accesses are ordered as the platform orders them.
    ORDER_PLATFORM = 36, "6", Accepted;
    /// The device has virtual functions.
    SR_IOV = 37, "6", Unsupported("virtual functions cannot be reached over QTest");
    /// Notifications carry data.
    NOTIFICATION_DATA = 38, "6", Accepted;
    /// The notification value comes from the device.
    NOTIF_CONFIG_DATA = 39, "6", Accepted;
    /// One queue can be reset alone.
    RING_RESET = 40, "6", Accepted;
    /// The device has an administration queue.
    ADMIN_VQ = 41, "6", Unsupported("the administration queue is not used");
    /// The device keeps statistics.
    DEVICE_STATS = 50, "5.1.3", Unsupported("the device's own counters are not read");
    /// The device hashes the packet inside a tunnel.
    HASH_TUNNEL = 51, "5.1.3", Unsupported("only the outer packet is hashed");
    /// Notifications can be coalesced for each queue.
    VQ_NOTF_COAL = 52, "5.1.3", Accepted;
    /// Notifications can be coalesced.
    NOTF_COAL = 53, "5.1.3", Accepted;
    /// The driver can receive USOv4.
    GUEST_USO4 = 54, "5.1.3", OFFLOAD_ON_REQUEST;
    /// The driver can receive USOv6.
    GUEST_USO6 = 55, "5.1.3", OFFLOAD_ON_REQUEST;
    /// The device can receive USO.
    HOST_USO = 56, "5.1.3", Accepted;
    /// The device reports a hash with each packet.
    HASH_REPORT = 57, "5.1.3", Accepted;
    /// The driver gives the exact header length.
    GUEST_HDRLEN = 59, "5.1.3", Accepted;
    /// The device steers by hash.
    RSS = 60, "5.1.3", Accepted;
    /// The device can merge TCP segments.
    RSC_EXT = 61, "5.1.3", COALESCED_ON_REQUEST;
    /// The device is the standby of another with the same MAC address.
    STANDBY = 62, "5.1.3", OnRequest("there is no primary device; port.standby reports whether it is offered");
    /// The device reports its speed and duplex mode.
    SPEED_DUPLEX = 63, "5.1.3", Accepted;
    /// The driver can receive segmented UDP tunnels.
    GUEST_UDP_TUNNEL_GSO = 65, "5.1.3", NO_TUNNELS;
    /// The driver can receive them with an incomplete outer checksum.
    GUEST_UDP_TUNNEL_GSO_CSUM = 66, "5.1.3", NO_TUNNELS;
    /// The device can receive segmented UDP tunnels.
    HOST_UDP_TUNNEL_GSO = 67, "5.1.3", NO_TUNNELS;
    /// The device can receive them with an incomplete outer checksum.
    HOST_UDP_TUNNEL_GSO_CSUM = 68, "5.1.3", NO_TUNNELS;
}

/// The feature of a bit, if it is known.
#[must_use]
pub fn by_bit(bit: u8) -> Option<&'static Feature> {
    TABLE.iter().find(|feature| feature.bit == bit)
}

/// The feature with a name, ignoring case and the specification's prefixes.
#[must_use]
pub fn by_name(name: &str) -> Option<&'static Feature> {
    let upper = name.to_ascii_uppercase();
    let short = ["VIRTIO_NET_F_", "VIRTIO_F_", "VIRTIO_RING_F_", "VIRTIO_"]
        .iter()
        .find_map(|prefix| upper.strip_prefix(prefix))
        .unwrap_or(&upper);
    let short = match short {
        "PACKED" => "RING_PACKED",
        "IOMMU_PLATFORM" => "ACCESS_PLATFORM",
        other => other,
    };
    TABLE.iter().find(|feature| feature.name == short)
}

impl Features {
    /// Offloads of transmitted frames.
    pub const SEND_OFFLOADS: Self = Self(
        Self::CSUM.0
            | Self::HOST_TSO4.0
            | Self::HOST_TSO6.0
            | Self::HOST_ECN.0
            | Self::HOST_UFO.0
            | Self::HOST_USO.0,
    );
    /// Offloads of received frames, which the control queue can turn off and on.
    pub const RECEIVE_OFFLOADS: Self =
        Self(Self::GUEST_CSUM.0 | Self::GUEST_ECN.0 | Self::LARGE_RECEIVE.0);
    /// Offloads that make received frames up to 64 KiB long.
    pub const LARGE_RECEIVE: Self = Self(
        Self::GUEST_TSO4.0
            | Self::GUEST_TSO6.0
            | Self::GUEST_UFO.0
            | Self::GUEST_USO4.0
            | Self::GUEST_USO6.0
            | Self::RSC_EXT.0,
    );
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn bits_and_names_are_unique() {
        for (i, a) in TABLE.iter().enumerate() {
            for b in &TABLE[i + 1..] {
                assert_ne!(a.bit, b.bit, "{} and {}", a.name, b.name);
                assert_ne!(a.name, b.name);
            }
        }
    }

    #[test]
    fn names_are_found_with_and_without_prefix() {
        for name in ["mrg_rxbuf", "VIRTIO_NET_F_MRG_RXBUF", "MRG_RXBUF"] {
            assert_eq!(by_name(name).unwrap().bit, 15);
        }
        assert_eq!(by_name("VIRTIO_F_RING_PACKED").unwrap().bit, 34);
        assert_eq!(by_name("packed").unwrap().bit, 34);
        assert!(by_name("VIRTIO_F_NONSENSE").is_none());
    }
}
