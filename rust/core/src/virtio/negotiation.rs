//! Negotiation of features: which of those that the device offers are accepted, and why (VIRTIO 1.3,
//! section 3.1.1).

use super::features::Support::{Accepted, OnRequest, Required, Unsupported};
use super::features::{Feature, Features, TABLE, by_bit};
use crate::{Error, Result};

/// The result of negotiating one feature.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Its name; `bit N` for an unknown one.
    pub name: String,
    /// Its number.
    pub bit: u8,
    /// Whether the device offers it.
    pub offered: bool,
    /// Whether it is in use.
    pub accepted: bool,
    /// The reason.
    pub why: String,
}

/// Deviations from the defaults.
#[derive(Clone, Copy, Debug, Default)]
pub struct Preferences {
    /// Required: negotiation fails without them.
    pub insist: Features,
    /// Not accepted even if offered.
    pub refuse: Features,
    /// Accepted if offered.
    pub prefer: Features,
    /// Need MRG_RXBUF, as their frames do not fit one buffer.
    pub merged: Features,
}

/// Selects features from those that the device offers (section 3.1.1, step 4).
///
/// # Errors
/// [`Error::Device`] if a required or insisted-on feature is not offered, [`Error::Invalid`] if an
/// insisted-on feature is not supported.
pub fn negotiate(offered: Features, preferences: &Preferences) -> Result<(Features, Vec<Outcome>)> {
    let mut outcomes = Vec::new();
    for feature in TABLE {
        let offered = offered.contains(feature.set());
        let (accepted, why) = decide(feature, offered, preferences)?;
        outcomes.push(Outcome {
            name: feature.name.to_owned(),
            bit: feature.bit,
            offered,
            accepted,
            why,
        });
    }
    let merged = (preferences.merged, Features::MRG_RXBUF);
    // Each pass removes a feature that lacks a prerequisite.
    while let Some((outcome, missing)) = lacking(&outcomes, merged) {
        let outcome = &mut outcomes[outcome];
        let missing = missing.to_string().replace(", ", " or ");
        if preferences.insist.contains(Features::bit(outcome.bit)) {
            return Err(Error::Invalid(format!(
                "the feature {} cannot be insisted on without {missing}",
                outcome.name
            )));
        }
        (outcome.accepted, outcome.why) = (false, format!("needs {missing}"));
    }
    let accepted = accepted_of(&outcomes);
    for bit in offered.bits().filter(|bit| by_bit(*bit).is_none()) {
        outcomes.push(Outcome {
            name: format!("bit {bit}"),
            bit,
            offered: true,
            accepted: false,
            why: "unknown to this driver".to_owned(),
        });
    }
    outcomes.sort_by_key(|outcome| outcome.bit);
    Ok((accepted, outcomes))
}

fn accepted_of(outcomes: &[Outcome]) -> Features {
    let accepted = outcomes.iter().filter(|outcome| outcome.accepted);
    accepted.fold(Features::NONE, |set, outcome| set | Features::bit(outcome.bit))
}

/// The first accepted feature that lacks a prerequisite, and the features that would satisfy it.
fn lacking(outcomes: &[Outcome], more: (Features, Features)) -> Option<(usize, Features)> {
    let accepted = accepted_of(outcomes);
    let rules = NEEDS.iter().copied().chain([more]);
    let broken: Vec<_> = rules.filter(|(_, any)| accepted & *any == Features::NONE).collect();
    outcomes.iter().enumerate().find_map(|(index, outcome)| {
        let feature = Features::bit(outcome.bit);
        let rule = broken.iter().find(|(which, _)| outcome.accepted && which.contains(feature))?;
        Some((index, rule.1))
    })
}

/// The prerequisites of features (section 5.1.3.1).
#[must_use]
pub fn prerequisites(wanted: Features) -> Features {
    let mut all = wanted;
    // ECN needs segmentation, which needs checksums.
    for _ in 0..2 {
        for (which, needed) in NEEDS {
            if all & *which != Features::NONE {
                all |= *needed;
            }
        }
    }
    all - wanted
}

/// Removes the features that lack a prerequisite (section 5.1.3.1).
#[must_use]
pub fn consistent(mut features: Features) -> Features {
    let orphans = |features: Features| {
        let broken = NEEDS.iter().filter(|(_, any)| features & *any == Features::NONE);
        broken.fold(Features::NONE, |all, (which, _)| all | features & *which)
    };
    loop {
        match orphans(features) {
            Features::NONE => return features,
            some => features = features - some,
        }
    }
}

/// Features, and the prerequisites of which each needs at least one (section 5.1.3.1).
const NEEDS: &[(Features, Features)] = &[
    (NEEDS_CONTROL, Features::CTRL_VQ),
    (
        Features(
            Features::HOST_TSO4.0
                | Features::HOST_TSO6.0
                | Features::HOST_UFO.0
                | Features::HOST_USO.0,
        ),
        Features::CSUM,
    ),
    (
        Features(
            Features::GUEST_TSO4.0
                | Features::GUEST_TSO6.0
                | Features::GUEST_UFO.0
                | Features::GUEST_USO4.0
                | Features::GUEST_USO6.0,
        ),
        Features::GUEST_CSUM,
    ),
    (
        Features(Features::HOST_ECN.0 | Features::RSC_EXT.0),
        Features(Features::HOST_TSO4.0 | Features::HOST_TSO6.0),
    ),
    (Features::GUEST_ECN, Features(Features::GUEST_TSO4.0 | Features::GUEST_TSO6.0)),
];

/// Features that need the control queue.
const NEEDS_CONTROL: Features = Features(
    Features::CTRL_GUEST_OFFLOADS.0
        | Features::CTRL_RX.0
        | Features::CTRL_VLAN.0
        | Features::CTRL_RX_EXTRA.0
        | Features::GUEST_ANNOUNCE.0
        | Features::MQ.0
        | Features::CTRL_MAC_ADDR.0
        | Features::VQ_NOTF_COAL.0
        | Features::NOTF_COAL.0
        | Features::HASH_REPORT.0
        | Features::RSS.0,
);

fn decide(feature: &Feature, offered: bool, preferences: &Preferences) -> Result<(bool, String)> {
    let name = feature.name;
    let insisted = preferences.insist.contains(feature.set());
    if insisted && let Unsupported(why) = feature.support {
        return Err(Error::Invalid(format!("the feature {name} cannot be insisted on: {why}")));
    }
    if !offered {
        if insisted || feature.support == Required {
            return Err(Error::Device(format!(
                "the device does not offer {name}, which is {}",
                if insisted { "insisted on" } else { "required" }
            )));
        }
        return Ok((false, "not offered".to_owned()));
    }
    if preferences.refuse.contains(feature.set()) {
        if feature.support == Required {
            return Err(Error::Invalid(format!(
                "the feature {name} is required and cannot be refused"
            )));
        }
        return Ok((false, "refused by argument".to_owned()));
    }
    if insisted
        || preferences.prefer.contains(feature.set()) && !matches!(feature.support, Unsupported(_))
    {
        return Ok((true, "requested".to_owned()));
    }
    Ok(match feature.support {
        Required | Accepted => (true, String::new()),
        OnRequest(why) | Unsupported(why) => (false, why.to_owned()),
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const BASE: Features = Features(Features::VERSION_1.0 | Features::MAC.0);

    #[test]
    fn version_1_is_required() {
        let error = negotiate(Features::MAC, &Preferences::default()).unwrap_err();
        assert!(error.to_string().contains("VERSION_1"), "{error}");
    }

    #[test]
    fn unknown_bits_are_reported_and_refused() {
        let (accepted, outcomes) =
            negotiate(BASE | Features::bit(99), &Preferences::default()).unwrap();
        assert_eq!(accepted, BASE);
        let unknown = outcomes.iter().find(|o| o.bit == 99).unwrap();
        assert!(unknown.offered && !unknown.accepted);
    }

    #[test]
    fn preferences_are_applied() {
        let offered = BASE | Features::MRG_RXBUF | Features::EVENT_IDX;
        let preferences = Preferences {
            insist: Features::MRG_RXBUF,
            refuse: Features::EVENT_IDX,
            ..Preferences::default()
        };
        assert_eq!(negotiate(offered, &preferences).unwrap().0, BASE | Features::MRG_RXBUF);
        let preferences = Preferences { insist: Features::RING_PACKED, ..Preferences::default() };
        assert!(matches!(negotiate(offered, &preferences), Err(Error::Device(_))));
        let preferences = Preferences { insist: Features::ADMIN_VQ, ..Preferences::default() };
        assert!(matches!(negotiate(offered, &preferences), Err(Error::Invalid(_))));
        let queues = offered | Features::CTRL_VQ | Features::MQ;
        let preferences = Preferences { refuse: Features::CTRL_VQ, ..Preferences::default() };
        assert_eq!(negotiate(queues, &preferences).unwrap().0, BASE | Features::EVENT_IDX);
        assert!(negotiate(queues, &Preferences::default()).unwrap().0.contains(Features::MQ));
        let preferences = Preferences { insist: Features::MQ, ..preferences };
        assert!(matches!(negotiate(queues, &preferences), Err(Error::Invalid(_))));
        let preferences = Preferences {
            prefer: Features::MRG_RXBUF | Features::RING_PACKED,
            ..Preferences::default()
        };
        assert!(negotiate(offered, &preferences).unwrap().0.contains(Features::MRG_RXBUF));
    }
}
