//! Tracks how QEMU sets up a backend.
//!
//! QEMU sets up a backend with some thirty messages, and disconnects on the way if the backend is not
//! what it was. A backend processes its rings once they were started (and enabled, if required) and it
//! has answered a later request.

use super::message::{F_PROTOCOL_FEATURES, Message, request};
use std::collections::BTreeSet;

/// The rings of the first queue pair, which every device has.
const FIRST_PAIR: [u32; 2] = [0, 1];

/// The setup of a backend.
#[derive(Debug, Default)]
pub(super) struct Setup {
    /// The negotiated features.
    features: u64,
    started: BTreeSet<u32>,
    enabled: BTreeSet<u32>,
}

impl Setup {
    /// Records a forwarded request.
    pub(super) fn request(&mut self, message: &Message) {
        match message.request {
            request::SET_FEATURES => self.features = message.number().unwrap_or_default(),
            request::SET_VRING_KICK => {
                // Without a descriptor, the backend polls; the ring is started, too.
                self.started.extend(message.number().map(|number| (number & 0xff) as u32));
            }
            request::SET_VRING_ENABLE => {
                if let (Some(ring), Some(on)) = (message.vring(), message.vring_num()) {
                    match on {
                        0 => self.enabled.remove(&ring),
                        _ => self.enabled.insert(ring),
                    };
                }
            }
            request::GET_VRING_BASE => {
                self.started.retain(|&ring| Some(ring) != message.vring());
            }
            request::RESET_OWNER | request::RESET_DEVICE => *self = Self::default(),
            _ => {}
        }
    }

    pub(super) fn features(&self) -> u64 {
        self.features
    }

    /// The started and enabled rings.
    pub(super) fn rings(&self) -> BTreeSet<u32> {
        // Without protocol features, rings need not be enabled.
        match self.features & F_PROTOCOL_FEATURES {
            0 => self.started.clone(),
            _ => self.started.intersection(&self.enabled).copied().collect(),
        }
    }

    /// Whether these are among them.
    pub(super) fn has(&self, rings: &BTreeSet<u32>) -> bool {
        self.rings().is_superset(rings)
    }
}

/// The rings of the first queue pair.
pub(super) fn first_pair() -> BTreeSet<u32> {
    FIRST_PAIR.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn send(setup: &mut Setup, request: u32, payload: &[u8]) {
        let mut message = Message::ask(request);
        message.payload = payload.to_vec();
        setup.request(&message);
    }

    fn state(ring: u32, num: u32) -> [u8; 8] {
        (u64::from(ring) | u64::from(num) << 32).to_ne_bytes()
    }

    #[test]
    fn rings_are_started_and_enabled() {
        let mut setup = Setup::default();
        for ring in FIRST_PAIR {
            assert!(!setup.has(&first_pair()));
            send(&mut setup, request::SET_VRING_KICK, &u64::from(ring).to_ne_bytes());
        }
        assert!(setup.has(&first_pair()), "without protocol features they are enabled");
        send(&mut setup, request::SET_FEATURES, &F_PROTOCOL_FEATURES.to_ne_bytes());
        assert!(!setup.has(&first_pair()));
        for ring in [0, 1, 2] {
            send(&mut setup, request::SET_VRING_ENABLE, &state(ring, 1));
        }
        assert!(setup.has(&first_pair()) && setup.rings() == first_pair());
        send(&mut setup, request::GET_VRING_BASE, &state(1, 0));
        assert!(!setup.has(&first_pair()));
        send(&mut setup, request::SET_VRING_ENABLE, &state(0, 0));
        assert!(setup.rings().is_empty());
    }
}
