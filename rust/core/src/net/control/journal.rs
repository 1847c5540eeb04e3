//! The device's settings, to be restored on the next device.

use crate::net::control::class;
use crate::net::control::queue::Command;
use crate::virtio::Features;
use std::collections::BTreeMap;

/// Executed commands of the control queue: the last one of each kind, in the order of classes and
/// numbers.
#[derive(Debug, Default)]
pub(in crate::net) struct Journal {
    told: BTreeMap<(u8, u8, u16), Entry>,
    /// Whether the device may use different pairs or steering than configured last.
    pub(in crate::net) steering_unknown: bool,
}

#[derive(Clone, Debug)]
pub(in crate::net) struct Entry {
    pub(in crate::net) command: Command,
    pub(in crate::net) payload: Vec<u8>,
    pub(in crate::net) arguments: String,
}

impl Journal {
    /// The last command of each kind, in the order of classes and numbers.
    pub(in crate::net) fn entries(&self) -> Vec<Entry> {
        self.told.values().cloned().collect()
    }

    /// Records an executed command.
    pub(in crate::net) fn note(&mut self, command: Command, payload: &[u8], arguments: &str) {
        let Command { class, number, .. } = command;
        // The command's subject, if there can be several: a VLAN, a queue.
        let about = match payload {
            [low, high, ..] => u16::from_le_bytes([*low, *high]),
            _ => 0,
        };
        let entry =
            || Entry { command, payload: payload.to_vec(), arguments: arguments.to_owned() };
        match (class, number) {
            (class::ANNOUNCE, _) => {}
            (class::VLAN, 0) => {
                self.told.insert((class, 0, about), entry());
            }
            (class::VLAN, _) => {
                self.told.remove(&(class, 0, about));
            }
            (class::NOTF_COAL, 2) => {
                self.told.insert((class, 2, about), entry());
            }
            (class::NOTF_COAL, _) => {
                // It applies to all queues of a direction, including those set before.
                let odd = number == 0;
                self.told
                    .retain(|&(c, n, queue), _| (c, n) != (class, 2) || (queue % 2 == 1) != odd);
                self.told.insert((class, number, 0), entry());
            }
            _ => {
                self.told.insert((class, number, 0), entry());
            }
        }
    }

    /// The configured steering, apart from the number of pairs.
    pub(in crate::net) fn steering(&self) -> impl Iterator<Item = &Entry> {
        let entries = self.told.iter();
        entries.filter(|((c, number, _), _)| *c == class::MQ && *number > 0).map(|(_, entry)| entry)
    }

    /// Fewer features were negotiated: drop other offloads for the next device.
    pub(in crate::net) fn renegotiate(&mut self, accepted: Features) {
        let offloads = (accepted & Features::RECEIVE_OFFLOADS).0 as u64;
        for (_, entry) in self.told.iter_mut().filter(|((c, ..), _)| *c == class::GUEST_OFFLOADS) {
            // All are below 64: see `Port::set_guest_offloads`.
            for (byte, kept) in entry.payload.iter_mut().zip(offloads.to_le_bytes()) {
                *byte &= kept;
            }
        }
    }

    /// Setting the number of pairs ends steering.
    pub(in crate::net) fn forget_steering(&mut self) {
        self.told.retain(|&(c, number, _), _| c != class::MQ || number == 0);
    }
}
