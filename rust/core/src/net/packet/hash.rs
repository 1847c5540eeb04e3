//! Hash types (section 5.1.6.4.3).

bitflags::bitflags! {
    /// What a hash may cover (section 5.1.6.4.3).
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
        /// IPv6 addresses, those of extension headers if present.
        const IP_EX = 1 << 6;
        /// The same and TCP ports.
        const TCP_EX = 1 << 7;
        /// The same and UDP ports.
        const UDP_EX = 1 << 8;
    }
}
