//! The parts of DHCP messages (RFC 2131) that smoltcp's client does not return, and checks of leases.

use crate::stack::address::is_unicast;
use crate::stack::{Cidr, Lease};
use crate::{Error, Result};
use smoltcp::iface::SocketHandle;
use smoltcp::socket::dhcpv4;
use smoltcp::wire::{
    DHCP_CLIENT_PORT, DhcpMessageType, DhcpPacket, DhcpRepr, EthernetAddress, EthernetFrame,
    EthernetProtocol, IpProtocol, Ipv4Packet, UdpPacket,
};
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

/// How long smoltcp keeps a lease without a lease time, in seconds.
const DEFAULT_SECONDS: u32 = 120;

/// The DHCP client, if any.
#[derive(Debug, Default)]
pub(super) struct Leases {
    pub(super) client: Option<Client>,
}

impl Leases {
    /// Reads a received frame.
    pub(super) fn read(&mut self, frame: &[u8]) {
        if let Some(client) = &mut self.client {
            // Fails for frames that are not DHCP.
            let _ = client.read(frame);
        }
    }
}

/// A DHCP client, with or without a lease.
#[derive(Debug)]
pub(super) struct Client {
    pub(super) handle: SocketHandle,
    own: EthernetAddress,
    started: Instant,
    /// The server of the last offer.
    offered: Option<Ipv4Addr>,
    /// Lease time of the last acknowledged lease.
    seconds: u32,
    /// Why the first unusable lease is unusable.
    pub(super) unusable: Option<String>,
    pub(super) lease: Option<Lease>,
}

impl Client {
    pub(super) fn new(handle: SocketHandle, own: EthernetAddress) -> Self {
        let (started, seconds) = (Instant::now(), DEFAULT_SECONDS);
        Self { handle, own, started, offered: None, seconds, unusable: None, lease: None }
    }

    fn read(&mut self, frame: &[u8]) -> Result<(), smoltcp::wire::Error> {
        let frame = EthernetFrame::new_checked(frame)?;
        if frame.ethertype() != EthernetProtocol::Ipv4 {
            return Ok(());
        }
        let ip = Ipv4Packet::new_checked(frame.payload())?;
        if ip.next_header() != IpProtocol::Udp {
            return Ok(());
        }
        let udp = UdpPacket::new_checked(ip.payload())?;
        if udp.dst_port() != DHCP_CLIENT_PORT {
            return Ok(());
        }
        let packet = DhcpPacket::new_checked(udp.payload())?;
        let message = DhcpRepr::parse(&packet)?;
        if message.client_hardware_address != self.own {
            return Ok(());
        }
        match message.message_type {
            DhcpMessageType::Offer => self.offered = message.server_identifier,
            DhcpMessageType::Ack => {
                self.seconds = message.lease_duration.unwrap_or(DEFAULT_SECONDS)
            }
            _ => {}
        }
        Ok(())
    }

    /// Checks the lease that smoltcp accepted.
    pub(super) fn take(&self, config: &dhcpv4::Config) -> Result<Lease> {
        let server = config.server;
        let address =
            Cidr { address: config.address.address(), prefix: config.address.prefix_len() };
        address.check()?;
        // The client sends renewals to this address.
        if !is_unicast(server.address) {
            return Err(Error::Invalid(format!(
                "the server's address {} is not a unicast address",
                server.address
            )));
        }
        let gateway = config.router.filter(|gateway| {
            let usable = is_unicast(*gateway) && *gateway != address.address;
            if !usable {
                log::warn!("DHCP: {gateway} cannot be a gateway; ignored");
            } else if !address.contains(*gateway) {
                log::warn!("DHCP: the gateway {gateway} is outside of {address}, so unreachable");
            }
            usable
        });
        Ok(Lease {
            address,
            gateway,
            server: server.identifier,
            dns: config.dns_servers.to_vec(),
            duration: Duration::from_secs(self.seconds.into()),
            elapsed: self.started.elapsed(),
        })
    }

    /// Why there is no lease yet.
    pub(super) fn why_not(&self, within: &str) -> Error {
        Error::Timeout(match (&self.unusable, self.offered) {
            (Some(why), _) => format!("no usable DHCP lease within {within}: {why}"),
            (None, Some(server)) => format!(
                "the DHCP server {server} made an offer but did not acknowledge it within {within}"
            ),
            _ => format!(
                "no DHCP offer within {within}; is there a DHCP server on this network? QEMU's `user` netdev has one"
            ),
        })
    }
}
