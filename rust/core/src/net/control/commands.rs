//! Commands of the control queue: receive modes, filters, queues, offloads, coalescing.

use crate::net::config::Mac;
use crate::net::control::class;
use crate::net::control::journal::{Entry, Journal};
use crate::net::control::queue::{Command, ControlQueue, Late};
use crate::net::control::rss::{HASH_CONFIG, RSS_CONFIG, Rss};
use crate::net::interruptible::Interruptible;
use crate::net::port::Port;
use crate::virtio::Features;
use crate::{Error, Result};

const MAC_TABLE_SET: Command = Command { class: class::MAC, number: 0, name: "MAC_TABLE_SET" };
const MAC_ADDR_SET: Command = Command { class: class::MAC, number: 1, name: "MAC_ADDR_SET" };
const VLAN_ADD: Command = Command { class: class::VLAN, number: 0, name: "VLAN_ADD" };
const VLAN_DEL: Command = Command { class: class::VLAN, number: 1, name: "VLAN_DEL" };
const ANNOUNCE_ACK: Command = Command { class: class::ANNOUNCE, number: 0, name: "ANNOUNCE_ACK" };
const VQ_PAIRS_SET: Command = Command { class: class::MQ, number: 0, name: "MQ_VQ_PAIRS_SET" };
const OFFLOADS_SET: Command =
    Command { class: class::GUEST_OFFLOADS, number: 0, name: "GUEST_OFFLOADS_SET" };
const COAL_TX_SET: Command =
    Command { class: class::NOTF_COAL, number: 0, name: "NOTF_COAL_TX_SET" };
const COAL_RX_SET: Command =
    Command { class: class::NOTF_COAL, number: 1, name: "NOTF_COAL_RX_SET" };
const COAL_VQ_SET: Command =
    Command { class: class::NOTF_COAL, number: 2, name: "NOTF_COAL_VQ_SET" };

/// Most addresses of a filter table, both lists together. The device does not report its limit;
/// this is QEMU's, beyond which it silently accepts everything.
const MAC_TABLE: usize = 64;
/// The highest VLAN; 4095 is reserved (IEEE 802.1Q).
const LAST_VLAN: u16 = 4094;

/// A receive mode (section 5.1.6.5.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum ReceiveMode {
    /// Receive everything. QEMU's devices start with this.
    Promiscuous = 0,
    /// Receive all multicast frames.
    AllMulticast = 1,
    /// Receive all unicast frames.
    AllUnicast = 2,
    /// Receive no multicast frames.
    NoMulticast = 3,
    /// Receive no unicast frames.
    NoUnicast = 4,
    /// Receive no broadcast frames.
    NoBroadcast = 5,
}

impl ReceiveMode {
    fn name(self) -> &'static str {
        match self {
            Self::Promiscuous => "RX_PROMISC",
            Self::AllMulticast => "RX_ALLMULTI",
            Self::AllUnicast => "RX_ALLUNI",
            Self::NoMulticast => "RX_NOMULTI",
            Self::NoUnicast => "RX_NOUNI",
            Self::NoBroadcast => "RX_NOBCAST",
        }
    }
    fn feature(self) -> Features {
        match self {
            Self::Promiscuous | Self::AllMulticast => Features::CTRL_RX,
            _ => Features::CTRL_RX_EXTRA,
        }
    }
}

/// How long the device may delay an interrupt (section 5.1.6.5.9).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Coalescing {
    /// For at most this many packets.
    pub packets: u32,
    /// For at most this many microseconds.
    pub microseconds: u32,
}

impl Coalescing {
    fn bytes(self) -> impl Iterator<Item = u8> {
        self.packets.to_le_bytes().into_iter().chain(self.microseconds.to_le_bytes())
    }
    fn arguments(self) -> String {
        format!("max_packets={}, max_usecs={}", self.packets, self.microseconds)
    }
}

impl Port {
    /// An error unless a command's feature was negotiated.
    pub(in crate::net) fn offered(
        &self,
        feature: Features,
        command: Command,
        arguments: &str,
    ) -> Result<()> {
        self.device.check()?;
        if self.device.accepted().contains(feature) {
            return Ok(());
        }
        let name = command.name;
        Err(Error::Refused(format!(
            "{name}({arguments}) needs the feature {feature}, which was not negotiated; `features` \
             says why"
        )))
    }

    /// Sends the command; its feature was checked.
    pub(in crate::net) fn run(
        &self,
        command: Command,
        payload: &[u8],
        arguments: &str,
    ) -> Result<()> {
        let Some(control) = &self.control else {
            return Err(Error::Refused(format!(
                "{}({arguments}): the device has no control queue",
                command.name
            )));
        };
        let transport = self.device.transport();
        let _asking = self.asking.enter(|| transport.check_signals())?;
        let signals = Interruptible::new(transport.as_ref());
        let alive = || self.answering().and_then(|()| signals.check());
        let mut late = None;
        let done = control.run(alive, command, payload, arguments, &mut late);
        if let Some(late) = late {
            self.adopt(&mut self.journal(), late);
        }
        done.map_err(|error| self.device.note(error))?;
        self.journal().note(command, payload, arguments);
        if command.class == class::MQ {
            self.journal().steering_unknown = false;
        } else if let Err(error) = self.steer_as_known(control, alive) {
            // The next command tries again.
            log::warn!("the device may use different queues than configured: {error}");
        }
        Ok(())
    }

    /// Checks whether the device has executed a timed-out command. Does not wait.
    pub(in crate::net) fn settle(&self) {
        let Some(control) = &self.control else { return };
        // The holder of the journal is sending a command, and will find it.
        if let Ok(mut journal) = self.journal.try_lock()
            && let Some(late) = control.late()
        {
            self.adopt(&mut journal, late);
        }
    }

    /// A late change takes effect as if it had been in time, except for the number of pairs and
    /// steering: these are set back with the next command, because the queues depend on them.
    fn adopt(&self, journal: &mut Journal, late: Late) {
        let Late { command, payload, arguments } = late;
        if command.class == class::MQ {
            journal.steering_unknown = true;
            return;
        }
        if (command.class, command.number) == (class::MAC, MAC_ADDR_SET.number)
            && let Ok(mac) = payload.as_slice().try_into()
        {
            self.settings().mac = Mac(mac);
        }
        journal.note(command, &payload, &arguments);
    }

    /// Undoes a change of the queues that was executed after it had timed out.
    fn steer_as_known(&self, control: &ControlQueue, alive: impl Fn() -> Result<()>) -> Result<()> {
        let steering: Vec<Entry> = {
            let journal = self.journal();
            if !journal.steering_unknown {
                return Ok(());
            }
            journal.steering().cloned().collect()
        };
        let tell = |command: Command, payload: &[u8], arguments: &str| {
            control
                .run(&alive, command, payload, arguments, &mut None)
                .map_err(|error| self.device.note(error))
        };
        let count = self.active_pairs();
        tell(VQ_PAIRS_SET, &count.to_le_bytes(), &count.to_string())?;
        for Entry { command, payload, arguments } in &steering {
            tell(*command, payload, arguments)?;
        }
        self.journal().steering_unknown = false;
        Ok(())
    }

    /// Sends a command; waits for the device if it is away.
    fn ask(
        &self,
        feature: Features,
        command: Command,
        payload: &[u8],
        arguments: &str,
    ) -> Result<()> {
        self.persist(|| self.ask_once(feature, command, payload, arguments))
    }

    fn ask_once(
        &self,
        feature: Features,
        command: Command,
        payload: &[u8],
        arguments: &str,
    ) -> Result<()> {
        self.offered(feature, command, arguments)?;
        self.run(command, payload, arguments)
    }

    /// Turns a receive mode on or off.
    ///
    /// # Errors
    /// [`Error::Refused`] if the device refuses or lacks the feature (CTRL_RX, CTRL_RX_EXTRA);
    /// [`Error::Timeout`]; and as for [`Port::recv`].
    pub fn set_receive_mode(&self, mode: ReceiveMode, on: bool) -> Result<()> {
        let command = Command { class: class::RX, number: mode as u8, name: mode.name() };
        self.ask(mode.feature(), command, &[u8::from(on)], if on { "on" } else { "off" })
    }

    /// Changes the device's MAC address (feature CTRL_MAC_ADDR).
    ///
    /// # Errors
    /// As for [`Self::set_receive_mode`]; [`Error::Invalid`] for a multicast address or zero.
    pub fn set_mac(&self, mac: Mac) -> Result<()> {
        if mac.0[0] & 1 != 0 || mac == Mac::default() {
            return Err(Error::Invalid(format!(
                "{mac} is {}; a device's own is unicast",
                if mac == Mac::default() { "no address" } else { "a multicast address" }
            )));
        }
        self.persist(|| {
            let _change = self.change()?;
            self.ask_once(Features::CTRL_MAC_ADDR, MAC_ADDR_SET, &mac.0, &mac.to_string())?;
            self.settings().mac = mac;
            Ok(())
        })
    }

    /// Sets the addresses to receive besides the device's own and broadcast, replacing earlier ones
    /// (feature CTRL_RX).
    ///
    /// # Errors
    /// As for [`Self::set_receive_mode`]; [`Error::Invalid`] for too many addresses or one in the
    /// wrong list.
    pub fn set_mac_filter(&self, unicast: &[Mac], multicast: &[Mac]) -> Result<()> {
        for (list, name, group) in [(unicast, "unicast", 0), (multicast, "multicast", 1)] {
            if let Some(wrong) = list.iter().find(|mac| mac.0[0] & 1 != group) {
                return Err(Error::Invalid(format!("{wrong} is no {name} address")));
            }
        }
        let count = unicast.len() + multicast.len();
        if count > MAC_TABLE {
            return Err(Error::Invalid(format!(
                "a filter has at most {MAC_TABLE} addresses, not {count}; set_receive_mode() can \
                 receive all unicast or multicast frames instead"
            )));
        }
        let mut payload = Vec::with_capacity(8 + 6 * count);
        for list in [unicast, multicast] {
            // At most MAC_TABLE.
            payload.extend((list.len() as u32).to_le_bytes());
            payload.extend(list.iter().flat_map(|mac| mac.0));
        }
        let arguments =
            format!("{} unicast, {} multicast addresses", unicast.len(), multicast.len());
        self.ask(Features::CTRL_RX, MAC_TABLE_SET, &payload, &arguments)
    }

    /// Receives frames of a VLAN, if the device filters them (feature CTRL_VLAN).
    ///
    /// # Errors
    /// As for [`Self::set_receive_mode`]; [`Error::Invalid`] for an invalid VLAN.
    pub fn add_vlan(&self, vlan: u16) -> Result<()> {
        self.vlan(VLAN_ADD, vlan)
    }
    /// Stops receiving frames of a VLAN.
    ///
    /// # Errors
    /// As for [`Self::add_vlan`].
    pub fn remove_vlan(&self, vlan: u16) -> Result<()> {
        self.vlan(VLAN_DEL, vlan)
    }
    fn vlan(&self, command: Command, vlan: u16) -> Result<()> {
        if vlan > LAST_VLAN {
            return Err(Error::Invalid(format!("the VLAN must be 0 to {LAST_VLAN}, not {vlan}")));
        }
        self.ask(Features::CTRL_VLAN, command, &vlan.to_le_bytes(), &vlan.to_string())
    }

    /// Sets the number of queue pairs, by the command that the device supports.
    pub(in crate::net) fn command_queues(&self, count: u16) -> Result<()> {
        let transport = self.device.transport();
        if transport.pairs().is_some() {
            return transport.enable_pairs(count);
        }
        self.ask_once(Features::MQ, VQ_PAIRS_SET, &count.to_le_bytes(), &count.to_string())
    }

    /// Sets which of the negotiated guest offloads are active (section 5.1.6.5.8, feature
    /// CTRL_GUEST_OFFLOADS).
    ///
    /// # Errors
    /// As for [`Self::set_receive_mode`]; [`Error::Invalid`] for one that was not negotiated.
    pub fn set_guest_offloads(&self, offloads: Features) -> Result<()> {
        let known = Features::RECEIVE_OFFLOADS;
        let wrong = offloads - known;
        if wrong != Features::NONE {
            return Err(Error::Invalid(format!("{wrong} is not an offload of received packets")));
        }
        let missing = offloads - self.device.accepted();
        if missing != Features::NONE {
            return Err(Error::Invalid(format!(
                "{missing} was not negotiated, so it cannot be turned on; these were: {}",
                self.device.accepted() & known
            )));
        }
        // The bits of the command are those of the features, all below 64.
        let payload = (offloads.0 as u64).to_le_bytes();
        let arguments = offloads.to_string();
        self.ask(Features::CTRL_GUEST_OFFLOADS, OFFLOADS_SET, &payload, &arguments)
    }

    /// Sets the delay of interrupts of all receive queues, or of all transmit queues (feature
    /// NOTF_COAL).
    ///
    /// # Errors
    /// As for [`Self::set_receive_mode`].
    pub fn set_coalescing(&self, receive: bool, coalescing: Coalescing) -> Result<()> {
        let command = if receive { COAL_RX_SET } else { COAL_TX_SET };
        let payload: Vec<u8> = coalescing.bytes().collect();
        self.ask(Features::NOTF_COAL, command, &payload, &coalescing.arguments())
    }

    /// The same for the receive or the transmit queue of one pair (feature VQ_NOTF_COAL).
    ///
    /// # Errors
    /// As for [`Self::set_receive_mode`]; [`Error::Invalid`] if there is no such pair.
    pub fn set_queue_coalescing(
        &self,
        pair: usize,
        receive: bool,
        coalescing: Coalescing,
    ) -> Result<()> {
        let queue = 2 * self.pair(pair)?.index() + u16::from(!receive);
        let mut payload = queue.to_le_bytes().to_vec();
        payload.extend([0; 2]);
        payload.extend(coalescing.bytes());
        let arguments = format!("vqn={queue}, {}", coalescing.arguments());
        self.ask(Features::VQ_NOTF_COAL, COAL_VQ_SET, &payload, &arguments)
    }

    /// Announces the port to the network, as the device requested (section 5.1.6.5.4), and
    /// acknowledges the request.
    ///
    /// The port has no IP address to announce, so it sends what QEMU sends for devices that cannot
    /// do it themselves: a reverse ARP request, from which switches learn the MAC address.
    pub(in crate::net) fn announce(&self) -> Result<()> {
        let frame = reverse_arp(self.mac());
        match self.send(&mut [frame].as_slice()) {
            Ok((1, _)) => {}
            Ok((_, stop)) => log::warn!("the port was not announced: {stop:?}"),
            Err(error) => log::warn!("the port was not announced: {error}"),
        }
        self.ask(Features::GUEST_ANNOUNCE, ANNOUNCE_ACK, &[], "")
    }
}

/// Builds a reverse ARP request (RFC 903).
fn reverse_arp(mac: Mac) -> [u8; 60] {
    let mut frame = [0; 60];
    frame[..6].fill(0xff);
    frame[6..12].copy_from_slice(&mac.0);
    // Reverse ARP; Ethernet, IPv4, addresses of 6 and 4 bytes, operation 3: request reverse.
    frame[12..22].copy_from_slice(&[0x80, 0x35, 0, 1, 8, 0, 6, 4, 0, 3]);
    frame[22..28].copy_from_slice(&mac.0);
    frame[32..38].copy_from_slice(&mac.0);
    frame
}

impl Port {
    /// Steers received packets by a hash, or with an empty table only reports hashes.
    /// [`Port::set_queues`] ends it.
    ///
    /// # Errors
    /// [`Error::Invalid`] for something the device cannot do; [`Error::Refused`] without the
    /// feature RSS (or HASH_REPORT, with an empty table), and if the device refuses; and as for
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

#[cfg(test)]
#[path = "command_tests.rs"]
mod tests;
