//! The state behind a host's lock: the smoltcp interface, the sockets, the ports in use.

use super::accounts::HostCounters;
use super::demux::{Flow, FragmentKey};
use super::device::Device;
use super::dhcp::Client;
use super::entry::{Entry, Id, Kind};
use super::hops::Hops;
use super::packets::Packets;
use super::probe::Probes;
use super::ready::Ready;
use super::wire::Abilities;
use super::{Cidr, random};
use crate::net::Mac;
use crate::{Error, Result};
use smoltcp::iface::{Config, Interface, SocketSet};
use smoltcp::wire::{EthernetAddress, HardwareAddress, IpCidr, Ipv6Cidr};
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Condvar};
use std::time::Instant;

/// The number of fragmented datagrams whose ports are remembered.
const FRAGMENTED: usize = 64;
/// The first ephemeral port (RFC 6335, section 6).
const EPHEMERAL: u16 = 49152;

pub(super) type Time = smoltcp::time::Instant;

/// Options of a host.
#[derive(Clone, Copy, Debug, Default)]
pub struct HostOptions {
    /// Whether it uses IPv6: a link-local address, and one for each router's prefix.
    pub ipv6: bool,
    /// The longest IP packet in bytes; by default the wire's MTU.
    pub mtu: Option<u16>,
}

/// The sockets of each port, in the order of binding.
#[derive(Debug, Default)]
pub(super) struct Ports(HashMap<u16, Vec<Id>>);

impl Ports {
    pub(super) fn of(&self, port: u16) -> &[Id] {
        self.0.get(&port).map_or(&[], Vec::as_slice)
    }
    pub(super) fn add(&mut self, port: u16, id: Id) {
        self.0.entry(port).or_default().push(id);
    }
    pub(super) fn remove(&mut self, port: u16, id: Id) {
        if let Some(ids) = self.0.get_mut(&port) {
            ids.retain(|other| *other != id);
            if ids.is_empty() {
                self.0.remove(&port);
            }
        }
    }
}

pub(super) struct State {
    pub(super) mac: Mac,
    pub(super) device: Device,
    pub(super) interface: Box<Interface>,
    /// The sockets of DHCP and echo requests.
    pub(super) common: SocketSet<'static>,
    pub(super) none: SocketSet<'static>,
    epoch: Instant,
    pub(super) sockets: HashMap<Id, Entry>,
    /// The descriptors of sockets that the program still has and that ended with the host.
    pub(super) ended: HashMap<Id, Ready>,
    next: Id,
    pub(super) flows: HashMap<Flow, Id>,
    /// Ports of bound TCP sockets, including listening ones.
    pub(super) tcp_ports: Ports,
    pub(super) udp_ports: Ports,
    pub(super) groups: HashMap<IpAddr, usize>,
    pub(super) fragments: HashMap<FragmentKey, Flow>,
    pub(super) fragment_order: VecDeque<FragmentKey>,
    /// Sockets that may have something to send.
    pub(super) queue: VecDeque<Id>,
    pub(super) timers: BTreeSet<(Time, Id)>,
    pub(super) counters: HostCounters,
    pub(super) dhcp: Option<Client>,
    /// The address and the gateway that are in use from the lease.
    pub(super) leased: Option<(Cidr, Option<Ipv4Addr>)>,
    pub(super) probes: Probes,
    pub(super) hops: Hops,
    /// Notified when addresses or routes change, or a reply arrives.
    pub(super) news: Arc<Condvar>,
    /// The error that ended the host.
    pub(super) failure: Option<Error>,
    /// The host is being closed.
    pub(super) ending: bool,
    /// A thread is sending frames on the wire.
    pub(super) flushing: bool,
    /// Frames that the wire had no room for.
    pub(super) held: Packets,
    /// The wire was full.
    pub(super) stuck: bool,
    /// The end of the thread's sleep, if it sleeps and if the sleep is limited.
    pub(super) asleep: Option<Option<Instant>>,
    pub(super) ipv6: bool,
}

/// An error with an error number, as Python's `socket` raises it.
pub(super) fn refuse(errno: i32, what: impl Into<String>) -> Error {
    Error::os(what, std::io::Error::from_raw_os_error(errno))
}

impl State {
    pub(super) fn new(
        mac: Mac,
        mtu: u16,
        abilities: Abilities,
        options: HostOptions,
    ) -> Result<Self> {
        let address = check_mac(mac)?;
        let mtu = options.mtu.map_or(mtu, |own| own.min(mtu));
        let least = if options.ipv6 { 1280 } else { 576 };
        if mtu < least {
            return Err(Error::Invalid(format!(
                "an MTU of {mtu} bytes is too small; the stack needs at least {least}"
            )));
        }
        let mut device = Device::new(mtu, abilities);
        let mut config = Config::new(HardwareAddress::Ethernet(address));
        config.random_seed = random();
        config.slaac = options.ipv6;
        let mut interface = Box::new(Interface::new(config, &mut device, Time::ZERO));
        if options.ipv6 {
            // smoltcp needs a link-local address for its router solicitation.
            let link_local = Ipv6Cidr::new(link_local(mac), 64);
            interface.update_ip_addrs(|list| {
                let _ = list.push(IpCidr::Ipv6(link_local));
            });
        }
        Ok(Self {
            mac,
            device,
            interface,
            common: SocketSet::new(Vec::new()),
            none: SocketSet::new(Vec::new()),
            epoch: Instant::now(),
            sockets: HashMap::new(),
            ended: HashMap::new(),
            next: 1,
            flows: HashMap::new(),
            tcp_ports: Ports::default(),
            udp_ports: Ports::default(),
            groups: HashMap::new(),
            fragments: HashMap::new(),
            fragment_order: VecDeque::new(),
            queue: VecDeque::new(),
            timers: BTreeSet::new(),
            counters: HostCounters::default(),
            dhcp: None,
            leased: None,
            probes: Probes::new(),
            hops: Hops::default(),
            news: Arc::default(),
            failure: None,
            ending: false,
            flushing: false,
            held: Packets::default(),
            stuck: false,
            asleep: None,
            ipv6: options.ipv6,
        })
    }

    pub(super) fn now(&self) -> Time {
        self.time(Instant::now())
    }
    pub(super) fn time(&self, at: Instant) -> Time {
        let micros = at.saturating_duration_since(self.epoch).as_micros();
        Time::from_micros(i64::try_from(micros).unwrap_or(i64::MAX))
    }
    pub(super) fn moment(&self, time: Time) -> Instant {
        let micros = u64::try_from(time.total_micros()).unwrap_or(0);
        self.epoch + std::time::Duration::from_micros(micros)
    }

    /// Fails if the host is closed or has failed.
    pub(super) fn check(&self) -> Result<()> {
        if self.ending {
            return Err(refuse(libc::EBADF, "the stack is closed"));
        }
        match &self.failure {
            Some(error) => Err(Error::Down(Box::new(error.clone()))),
            None => Ok(()),
        }
    }

    pub(super) fn add(&mut self, entry: Entry) -> Id {
        let id = self.next;
        self.next += 1;
        self.sockets.insert(id, entry);
        id
    }
    /// A socket, unless it is closed.
    pub(super) fn entry(&mut self, id: Id) -> Result<&mut Entry> {
        self.sockets
            .get_mut(&id)
            .filter(|entry| entry.owned)
            .ok_or_else(|| refuse(libc::EBADF, "the socket is closed"))
    }

    /// A socket, unless it is closed; of one that ended with the host, the descriptor tells whoever
    /// receives, or sends, of the end until they have got this error.
    pub(super) fn told(&mut self, id: Id, receiving: bool) -> Result<&mut Entry> {
        if let Some(ready) = self.ended.get_mut(&id) {
            ready.told(receiving);
        }
        self.entry(id)
    }

    /// The source address for a destination.
    pub(super) fn source(&self, to: IpAddr) -> Result<IpAddr> {
        let mut any = false;
        for cidr in self.interface.ip_addrs() {
            if IpAddr::from(cidr.address()).is_ipv4() == to.is_ipv4() {
                any = true;
            }
        }
        if !any {
            let kind = if to.is_ipv4() { "IPv4" } else { "IPv6" };
            let hint = if to.is_ipv4() {
                "use dhcp=True, address= or configure()"
            } else {
                "use ipv6=True"
            };
            return Err(refuse(
                libc::ENETUNREACH,
                format!("{to} cannot be reached: the stack has no {kind} address; {hint}"),
            ));
        }
        let all = to.is_multicast() || self.is_broadcast(to);
        if !all && self.next_hop(to).is_none() {
            return Err(refuse(
                libc::ENETUNREACH,
                format!(
                    "{to} cannot be reached: it is in none of the stack's networks, and there is no gateway"
                ),
            ));
        }
        let source = self.interface.get_source_address(&to.into()).map(IpAddr::from);
        source.ok_or_else(|| {
            refuse(libc::EADDRNOTAVAIL, format!("the stack has no source address for {to}"))
        })
    }
    /// Whether an address is one of the host's.
    pub(super) fn is_ours(&self, address: IpAddr) -> bool {
        self.interface.ip_addrs().iter().any(|cidr| IpAddr::from(cidr.address()) == address)
    }

    /// A free ephemeral port.
    ///
    /// # Errors
    /// EADDRINUSE.
    pub(super) fn ephemeral(&self, tcp: bool, remote: Option<(IpAddr, SocketAddr)>) -> Result<u16> {
        let count = u16::MAX - EPHEMERAL + 1;
        let start = (random() % u64::from(count)) as u16;
        for step in 0..count {
            let port = EPHEMERAL + (start + step) % count;
            let bound = if tcp { self.tcp_ports.of(port) } else { self.udp_ports.of(port) };
            let taken = remote.is_some_and(|(source, remote)| {
                self.flows.contains_key(&Flow { local: SocketAddr::new(source, port), remote })
            });
            if bound.is_empty() && !taken {
                return Ok(port);
            }
        }
        Err(refuse(libc::EADDRINUSE, "no ephemeral port is free"))
    }

    /// Binds a socket.
    ///
    /// # Errors
    /// EINVAL, EADDRINUSE, EADDRNOTAVAIL.
    pub(super) fn bind(&mut self, id: Id, address: SocketAddr) -> Result<()> {
        let address = SocketAddr::new(address.ip(), address.port());
        let entry = self.entry(id)?;
        let (v6, reuse, tcp) =
            (entry.v6, entry.options.reuse, !matches!(entry.kind, Kind::Datagram(_)));
        if entry.local.is_some() {
            return Err(refuse(libc::EINVAL, "the socket is already bound"));
        }
        if address.is_ipv6() != v6 {
            return Err(refuse(
                libc::EAFNOSUPPORT,
                format!("{address} has the other address family"),
            ));
        }
        let ip = address.ip();
        if !ip.is_unspecified() && !ip.is_multicast() && !self.is_ours(ip) {
            return Err(refuse(
                libc::EADDRNOTAVAIL,
                format!("cannot bind to {ip}: it is not an address of the stack"),
            ));
        }
        let port = match address.port() {
            0 => self.ephemeral(tcp, None)?,
            port => port,
        };
        let ports = if tcp { &self.tcp_ports } else { &self.udp_ports };
        for other in ports.of(port) {
            let Some(other) = self.sockets.get(other) else { continue };
            let listens = matches!(other.kind, Kind::Listener(_));
            let meets = other.v6 == v6
                && other.local.is_none_or(|local| {
                    local.ip() == ip || local.ip().is_unspecified() || ip.is_unspecified()
                });
            if meets && !(reuse && other.options.reuse && !listens) {
                return Err(refuse(
                    libc::EADDRINUSE,
                    format!("cannot bind to port {port}: another socket of the stack uses it"),
                ));
            }
        }
        let local = SocketAddr::new(ip, port);
        if tcp {
            self.tcp_ports.add(port, id);
        } else {
            self.udp_ports.add(port, id);
        }
        let entry = self.entry(id)?;
        entry.local = Some(local);
        if !tcp {
            let socket = entry.make_udp();
            // Only the port: `take_datagram` compares the address.
            let _ = socket.bind(port);
        }
        Ok(())
    }

    /// Remembers the flow of a fragmented datagram, for its other fragments.
    pub(super) fn remember(&mut self, key: FragmentKey, flow: Flow) {
        if self.fragments.insert(key, flow).is_none() {
            self.fragment_order.push_back(key);
            if self.fragment_order.len() > FRAGMENTED
                && let Some(oldest) = self.fragment_order.pop_front()
            {
                self.fragments.remove(&oldest);
            }
        }
    }

    /// Counts the members of a multicast group; joins it for the first, leaves it after the last.
    pub(super) fn group(&mut self, group: IpAddr, join: bool) -> Result<()> {
        let members = self.groups.entry(group).or_default();
        *members = if join { *members + 1 } else { members.saturating_sub(1) };
        let members = *members;
        if members == 0 {
            self.groups.remove(&group);
        }
        let changed = match (join, members) {
            (true, 1) => self.interface.join_multicast_group(group),
            (false, 0) => self.interface.leave_multicast_group(group),
            _ => Ok(()),
        };
        if changed.is_err() {
            self.groups.remove(&group);
            return Err(refuse(
                libc::ENOBUFS,
                format!("cannot join {group}: the stack is in too many groups"),
            ));
        }
        Ok(())
    }
}

/// Checks that a host can have this MAC address.
fn check_mac(mac: Mac) -> Result<EthernetAddress> {
    let address = EthernetAddress(mac.0);
    if address.is_unicast() && mac.0 != [0; 6] {
        return Ok(address);
    }
    Err(Error::Invalid(format!(
        "the port's MAC address {mac} is not a unicast address: give the device another"
    )))
}

/// The link-local address of a MAC address (RFC 4291, appendix A).
pub(super) fn link_local(mac: Mac) -> Ipv6Addr {
    let [a, b, c, d, e, f] = mac.0;
    Ipv6Addr::from([0xfe, 0x80, 0, 0, 0, 0, 0, 0, a ^ 2, b, c, 0xff, 0xfe, d, e, f])
}
