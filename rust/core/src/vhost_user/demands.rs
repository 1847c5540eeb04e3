//! Requirements for a backend, checked before QEMU connects.
//!
//! If a backend does not meet QEMU's own requirements, QEMU disconnects and connects again, forever
//! while it creates a netdev.

use super::message::F_PROTOCOL_FEATURES;
use crate::virtio::Features;

/// Protocol feature 0: several queue pairs, and GET_QUEUE_NUM.
pub(super) const PROTOCOL_F_MQ: u64 = 1;
/// Logging of dirty pages, which only a migration uses.
const F_LOG_ALL: u64 = 1 << 26;

/// Protocol features 3 and 5: acknowledgements, and requests by the backend.
const PROTOCOL_F_REPLY_ACK: u64 = 1 << 3;
const PROTOCOL_F_BACKEND_REQ: u64 = 1 << 5;
/// Feature 33: addresses are translated.
pub(super) const F_ACCESS_PLATFORM: u64 = 1 << 33;

/// The requirements.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Demands {
    /// The number of queue pairs.
    pub pairs: u16,
    /// The negotiated features.
    pub features: u64,
}

/// What a backend offers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Offer {
    pub features: u64,
    /// Protocol features, if queried.
    pub protocol: Option<u64>,
    /// The number of queue pairs, if queried.
    pub pairs: Option<u64>,
}

impl Demands {
    /// The remaining requirements if the backend only lacks features of `may_lack`.
    pub(super) fn without(&self, offer: &Offer, may_lack: u64) -> Option<Self> {
        let missing = self.features & !F_LOG_ALL & !offer.features & may_lack;
        let left = Self { features: self.features & !missing, ..*self };
        left.lacking(offer).is_none().then_some(left)
    }

    /// What a backend lacks, in words.
    pub(super) fn lacking(&self, offer: &Offer) -> Option<String> {
        // QEMU requires protocol features.
        let missing = (self.features | F_PROTOCOL_FEATURES) & !F_LOG_ALL & !offer.features;
        if missing != 0 {
            let named = Features(u128::from(missing & !F_PROTOCOL_FEATURES));
            let also = match missing & F_PROTOCOL_FEATURES {
                0 => "",
                _ if named == Features::NONE => "protocol features",
                _ => ", protocol features",
            };
            return Some(format!("it is there, but without {named}{also}, which the port needs"));
        }
        let both = PROTOCOL_F_REPLY_ACK | PROTOCOL_F_BACKEND_REQ;
        if offer.features & F_ACCESS_PLATFORM != 0
            && offer.protocol.is_some_and(|p| p & both != both)
        {
            return Some(
                "it offers ACCESS_PLATFORM without the protocol features REPLY_ACK and \
                 BACKEND_REQ, which QEMU requires with it"
                    .into(),
            );
        }
        match offer.pairs {
            Some(pairs) if pairs < self.pairs.into() => Some(few_pairs(pairs, self.pairs)),
            _ => None,
        }
    }
}

/// The message for too few queue pairs.
pub(super) fn few_pairs(found: u64, wanted: u16) -> String {
    let s = |count: u64| if count == 1 { "" } else { "s" };
    let are = if wanted == 1 { "is" } else { "are" };
    format!("it has {found} queue pair{}, but {wanted} {are} required", s(found))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_that_may_be_missing_are_removed() {
        let demands = Demands { pairs: 2, features: 1 << 32 | 1 << 34 | F_LOG_ALL };
        let left = |features: u64, pairs, may_lack| {
            let features = features | F_PROTOCOL_FEATURES;
            let left = demands.without(&Offer { features, protocol: None, pairs }, may_lack);
            left.map(|demands| demands.features)
        };
        let bare = Offer { features: 1 << 32, protocol: None, pairs: Some(2) };
        assert!(demands.without(&bare, 1 << 34).is_none(), "QEMU requires protocol features");
        assert_eq!(left(1 << 32, Some(2), 1 << 34), Some(1 << 32 | F_LOG_ALL));
        assert_eq!(left(1 << 32, Some(2), 1 << 15), None);
        assert_eq!(left(1 << 34, Some(2), 1 << 34), None);
        assert_eq!(left(1 << 32, Some(1), 1 << 34), None);
    }

    #[test]
    fn missing_features_are_named() {
        let demands = Demands { pairs: 2, features: 1 << 32 | 1 << 34 | 1 << 30 | F_LOG_ALL };
        let offer = |features, pairs| demands.lacking(&Offer { features, protocol: None, pairs });
        assert_eq!(offer(demands.features & !F_LOG_ALL, Some(2)), None);
        let words = |features, pairs| offer(features, pairs).unwrap_or_default();
        assert!(words(1 << 32 | 1 << 30, Some(2)).contains("without RING_PACKED,"));
        assert!(words(1 << 32 | 1 << 34, None).contains("without protocol features,"));
        assert!(words(0, None).contains("without VERSION_1, RING_PACKED, protocol features,"));
        assert!(words(demands.features, Some(1)).contains("1 queue pair, but 2 are required"));
        let features = demands.features | F_ACCESS_PLATFORM;
        let with = |protocol| demands.lacking(&Offer { features, protocol, pairs: Some(2) });
        assert!(with(Some(PROTOCOL_F_REPLY_ACK)).unwrap_or_default().contains("ACCESS_PLATFORM"));
        assert_eq!(with(Some(PROTOCOL_F_REPLY_ACK | PROTOCOL_F_BACKEND_REQ)), None);
    }
}
