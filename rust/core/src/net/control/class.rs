//! The classes of commands (section 5.1.6.5).

pub(in crate::net) const RX: u8 = 0;
pub(in crate::net) const MAC: u8 = 1;
pub(in crate::net) const VLAN: u8 = 2;
pub(in crate::net) const ANNOUNCE: u8 = 3;
pub(in crate::net) const MQ: u8 = 4;
pub(in crate::net) const GUEST_OFFLOADS: u8 = 5;
pub(in crate::net) const NOTF_COAL: u8 = 6;
