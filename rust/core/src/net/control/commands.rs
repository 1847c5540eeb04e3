//! What the control queue can be asked for: receive modes, filters, queues, offloads, coalescing.

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

/// Addresses of a filter table, both lists together. The device does not say its limit; QEMU's is
/// this, beyond which it silently takes everything.
const MAC_TABLE: usize = 64;
/// VLANs are 0 to this one; 4095 is reserved (IEEE 802.1Q).
const LAST_VLAN: u16 = 4094;

/// A receive mode that is on or off (section 5.1.6.5.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum ReceiveMode {
    /// Everything is received. This is how QEMU's devices start.
    Promiscuous = 0,
    /// All multicast frames are.
    AllMulticast = 1,
    /// All unicast frames are.
    AllUnicast = 2,
    /// No multicast frame is.
    NoMulticast = 3,
    /// No unicast frame is.
    NoUnicast = 4,
    /// No broadcast frame is.
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

/// When the device may hold an interrupt back (section 5.1.6.5.9).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Coalescing {
    /// For no more than so many packets.
    pub packets: u32,
    /// For no longer than so many microseconds.
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
    /// An error unless a command's feature is in force.
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
            "{name}({arguments}) needs the feature {feature}, which is not in force; `features` \
             says why"
        )))
    }

    /// Asks the device; its feature was checked.
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
        let _asking = self.asking.enter(|| transport.patience())?;
        let patient = Interruptible::new(transport.as_ref());
        let alive = || self.answering().and_then(|()| patient.ask());
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
            log::warn!("the device may use other queues than it was told to: {error}");
        }
        Ok(())
    }

    /// Looks whether the device has carried a command out whose time was over. Does not wait.
    pub(in crate::net) fn settle(&self) {
        let Some(control) = &self.control else { return };
        // Whoever has the journal gives a command, and finds it.
        if let Ok(mut journal) = self.journal.try_lock()
            && let Some(late) = control.late()
        {
            self.adopt(&mut journal, late);
        }
    }

    /// What the device was told and did late is so from now on, as if it had been in time. But for
    /// the number of pairs and steering: these are set again as they are known, with the next
    /// command, for the queues go by them.
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

    /// Undoes a change of the queues that was carried out when it had been given up.
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

    /// Asks the device; while it is away, waits until it is back.
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
    /// [`Error::Refused`] where the device refuses, or does not have the feature (CTRL_RX,
    /// CTRL_RX_EXTRA); [`Error::Timeout`]; and as for [`Port::recv`].
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

    /// Sets the addresses that are received beside the device's own and broadcast; these replace
    /// those before (feature CTRL_RX).
    ///
    /// # Errors
    /// As for [`Self::set_receive_mode`]; [`Error::Invalid`] for too many addresses and for one in
    /// the wrong list.
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

    /// Receives frames of a VLAN, where the device filters them (feature CTRL_VLAN).
    ///
    /// # Errors
    /// As for [`Self::set_receive_mode`]; [`Error::Invalid`] for no VLAN.
    pub fn add_vlan(&self, vlan: u16) -> Result<()> {
        self.vlan(VLAN_ADD, vlan)
    }
    /// No longer receives frames of a VLAN.
    ///
    /// # Errors
    /// As for [`Self::add_vlan`].
    pub fn remove_vlan(&self, vlan: u16) -> Result<()> {
        self.vlan(VLAN_DEL, vlan)
    }
    fn vlan(&self, command: Command, vlan: u16) -> Result<()> {
        if vlan > LAST_VLAN {
            return Err(Error::Invalid(format!("a VLAN is 0 to {LAST_VLAN}, not {vlan}")));
        }
        self.ask(Features::CTRL_VLAN, command, &vlan.to_le_bytes(), &vlan.to_string())
    }

    /// Has the device use so many queue pairs, in the way that it has for it.
    pub(in crate::net) fn command_queues(&self, count: u16) -> Result<()> {
        let transport = self.device.transport();
        if transport.pairs().is_some() {
            return transport.enable_pairs(count);
        }
        self.ask_once(Features::MQ, VQ_PAIRS_SET, &count.to_le_bytes(), &count.to_string())
    }

    /// Says which of the guest offloads that were negotiated are in force now (section
    /// 5.1.6.5.8, feature CTRL_GUEST_OFFLOADS).
    ///
    /// # Errors
    /// As for [`Self::set_receive_mode`]; [`Error::Invalid`] for one that was not negotiated.
    pub fn set_guest_offloads(&self, offloads: Features) -> Result<()> {
        let known = Features::RECEIVE_OFFLOADS;
        let wrong = offloads - known;
        if wrong != Features::NONE {
            return Err(Error::Invalid(format!("{wrong} is no offload of received packets")));
        }
        let missing = offloads - self.device.accepted();
        if missing != Features::NONE {
            return Err(Error::Invalid(format!(
                "{missing} was not negotiated, so it cannot be turned on; these were: {}",
                self.device.accepted() & known
            )));
        }
        // The bits of the command are those of the features; all are below 64.
        let payload = (offloads.0 as u64).to_le_bytes();
        let arguments = offloads.to_string();
        self.ask(Features::CTRL_GUEST_OFFLOADS, OFFLOADS_SET, &payload, &arguments)
    }

    /// Says how interrupts of all receive queues, or of all transmit queues, are held back
    /// (feature NOTF_COAL).
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
    /// As for [`Self::set_receive_mode`]; [`Error::Invalid`] where there is no such pair.
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

    /// Tells the network where the port is, as the device asked to (section 5.1.6.5.4), and
    /// acknowledges that.
    ///
    /// The port has no IP address that it could tell of, so it sends what QEMU itself sends for
    /// devices that cannot: a reverse ARP request, by which switches learn the MAC address.
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

/// Who am I (RFC 903)?
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
    /// Has the device steer received packets by a hash, or with an empty table only report
    /// hashes. [`Port::set_queues`] ends it.
    ///
    /// # Errors
    /// [`Error::Invalid`] for what the device cannot do; [`Error::Refused`] without the feature
    /// RSS (or HASH_REPORT, where the table is empty), and where the device refuses; and as for
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
