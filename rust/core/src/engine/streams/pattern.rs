//! Fields that vary from frame to frame: their position and their values.

use crate::net::Layout;
use crate::{Error, Result};
use std::sync::Arc;

/// The increment of splitmix64: the golden ratio in 64 bits.
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// A field that varies.
#[derive(Clone, Debug)]
pub struct Field {
    /// Its position.
    pub place: Place,
    /// Its values.
    pub pattern: Pattern,
}

/// The position of a field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// By name: `eth.src`, `eth.dst`, `vlan.id`, `ip.src`, `ip.dst`, `ipv6.src`, `ipv6.dst`,
    /// `udp.sport`, `udp.dport`, `tcp.sport`, `tcp.dport`, or `payload`: its first eight bytes.
    Named(String),
    /// By position.
    At {
        /// The offset of its first byte.
        offset: usize,
        /// Its width in bytes, 1 to 8.
        width: usize,
    },
}

/// The values of a field.
#[derive(Clone, Debug)]
pub enum Pattern {
    /// `count` numbers in turn, each greater by `step` than the one before.
    Increment {
        /// The first number; `None`: the value in the template.
        first: Option<u128>,
        /// The difference between successive numbers.
        step: u64,
        /// How many numbers.
        count: u64,
    },
    /// These numbers in turn.
    List(Vec<u128>),
    /// Numbers from `low` to `high` that depend on the seed and the number of the frame.
    Random {
        /// The lowest.
        low: Option<u128>,
        /// The highest.
        high: Option<u128>,
        /// The seed of the random numbers.
        seed: u64,
    },
}

/// The bytes of a field in one template.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Span {
    pub offset: usize,
    /// 1 to 8.
    pub width: usize,
    /// The bits that vary, in the big-endian number.
    pub mask: u64,
}

impl Span {
    pub(super) fn new(offset: usize, width: usize) -> Self {
        Self { offset, width, mask: u64::MAX >> (64 - 8 * width.clamp(1, 8)) }
    }
    pub(super) fn end(&self) -> usize {
        self.offset + self.width
    }
    pub(super) fn overlaps(&self, other: &Self) -> bool {
        self.offset < other.end() && other.offset < self.end()
    }
    /// The number that a frame has in this span.
    pub(super) fn word(&self, frame: &[u8]) -> u64 {
        let bytes = frame.get(self.offset..self.end()).unwrap_or_default();
        bytes.iter().fold(0, |word, &byte| word << 8 | u64::from(byte))
    }
}

impl Place {
    fn shown(&self) -> String {
        match self {
            Self::Named(name) => name.clone(),
            Self::At { offset, width } => format!("the field of {width} bytes at {offset}"),
        }
    }

    /// Finds the field in a frame of which the first `usable` bytes may vary. Returns its span; for
    /// an IPv6 address, the lower 64 bits and the upper 64 bits.
    fn find(&self, layout: &Layout, usable: usize) -> Result<(Span, Option<Span>)> {
        let (offset, width) = match self {
            Self::At { offset, width } => {
                if !(1..=8).contains(width) {
                    return Err(Error::Invalid(format!("a field has 1 to 8 bytes, not {width}")));
                }
                (Some(*offset), *width)
            }
            Self::Named(name) => named(name, layout, usable)?,
        };
        let shown = self.shown();
        let Some(offset) = offset else {
            return Err(Error::Invalid(format!("the frame has no {shown}")));
        };
        if offset.checked_add(width).is_none_or(|end| end > usable) {
            return Err(Error::Invalid(format!(
                "{shown} ends at byte {}, and {usable} bytes of the frame may differ",
                offset.saturating_add(width)
            )));
        }
        if width == 16 {
            return Ok((Span::new(offset + 8, 8), Some(Span::new(offset, 8))));
        }
        let mut span = Span::new(offset, width);
        if matches!(self, Self::Named(name) if name == "vlan.id") {
            span.mask = 0xfff;
        }
        Ok((span, None))
    }
}

fn named(name: &str, layout: &Layout, usable: usize) -> Result<(Option<usize>, usize)> {
    let transport = |udp: bool, at: usize| {
        layout.transport.filter(|found| found.is_udp == udp).map(|found| found.at + at)
    };
    Ok(match name {
        "eth.dst" => (Some(0), 6),
        "eth.src" => (Some(6), 6),
        "vlan.id" => (layout.vlan, 2),
        "ip.src" => (layout.ip4.map(|(at, _)| at + 12), 4),
        "ip.dst" => (layout.ip4.map(|(at, _)| at + 16), 4),
        "ipv6.src" => (layout.ip6.map(|at| at + 8), 16),
        "ipv6.dst" => (layout.ip6.map(|at| at + 24), 16),
        "udp.sport" => (transport(true, 0), 2),
        "udp.dport" => (transport(true, 2), 2),
        "tcp.sport" => (transport(false, 0), 2),
        "tcp.dport" => (transport(false, 2), 2),
        "payload" => {
            let width = usable.saturating_sub(layout.payload).min(8);
            ((width > 0).then_some(layout.payload), width.max(1))
        }
        other => {
            return Err(Error::Invalid(format!(
                "there is no field {other:?}; there are eth.dst, eth.src, vlan.id, ip.src, ip.dst, \
                 ipv6.src, ipv6.dst, udp.sport, udp.dport, tcp.sport, tcp.dport, payload, and any \
                 other by offset and width"
            )));
        }
    })
}

/// Generates the numbers of one span. From one frame to the next, a queue advances by its stride.
#[derive(Clone, Debug)]
pub(super) enum Variation {
    Increment { first: u64, step: u64, index: u64, count: u64, stride: u64 },
    List { values: Arc<[u64]>, index: usize, stride: usize },
    Random { state: u64, stride: u64, low: u64, span: u64 },
}

impl Variation {
    /// The number for the next frame.
    #[inline(always)]
    pub(super) fn next(&mut self) -> u64 {
        match self {
            Self::Increment { first, step, index, count, stride } => {
                let value = first.wrapping_add(step.wrapping_mul(*index));
                *index += *stride;
                if *index >= *count {
                    *index -= *count;
                }
                value
            }
            Self::List { values, index, stride } => {
                let value = values.get(*index).copied().unwrap_or_default();
                *index += *stride;
                if *index >= values.len() {
                    *index -= values.len();
                }
                value
            }
            Self::Random { state, stride, low, span } => {
                let mut mixed = *state;
                *state = state.wrapping_add(*stride);
                mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
                mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
                mixed ^= mixed >> 31;
                if *span == 0 {
                    return mixed;
                }
                low.wrapping_add(((u128::from(mixed) * u128::from(*span)) >> 64) as u64)
            }
        }
    }

    /// The part of queue `lane` out of `lanes` queues.
    pub(super) fn of_lane(&self, lane: u64, lanes: u64) -> Self {
        let mut own = self.clone();
        match &mut own {
            Self::Increment { index, count, stride, .. } => {
                (*index, *stride) = (lane % *count, lanes % *count);
            }
            Self::List { values, index, stride } => {
                let count = values.len().max(1) as u64;
                (*index, *stride) = ((lane % count) as usize, (lanes % count) as usize);
            }
            Self::Random { state, stride, .. } => {
                *state = state.wrapping_add(GOLDEN.wrapping_mul(lane + 1));
                *stride = GOLDEN.wrapping_mul(lanes);
            }
        }
        own
    }

    /// The number of frames after which the values repeat; `None` if they do not.
    pub(super) fn period(&self) -> Option<u64> {
        match self {
            Self::Increment { count, .. } => Some(*count),
            Self::List { values, .. } => Some(values.len() as u64),
            Self::Random { .. } => None,
        }
    }
}

impl Field {
    /// Its spans in a frame, that of the lower bits first.
    pub(super) fn spans(&self, layout: &Layout, usable: usize) -> Result<Vec<Span>> {
        let (span, front) = self.place.find(layout, usable)?;
        let mut spans = vec![span];
        // The upper half of an address is only written if it was given.
        spans.extend(front.filter(|_| self.front().is_some()));
        Ok(spans)
    }

    /// The upper 64 bits of the given IPv6 addresses, if any were given.
    fn front(&self) -> Option<Vec<u64>> {
        let high = |value: &u128| (*value >> 64) as u64;
        let given = match &self.pattern {
            Pattern::Increment { first, .. } => first.iter().map(high).collect(),
            Pattern::List(values) => values.iter().map(high).collect(),
            Pattern::Random { low, .. } => low.iter().map(high).collect::<Vec<_>>(),
        };
        (!given.is_empty()).then_some(given)
    }

    /// The values for each of the spans that [`Self::spans`] found in `frame`.
    pub(super) fn variations(&self, spans: &[Span], frame: &[u8]) -> Result<Vec<Variation>> {
        let shown = self.place.shown();
        let Some(&span) = spans.first() else { return Ok(Vec::new()) };
        let wide = matches!(&self.place, Place::Named(name) if name.starts_with("ipv6"));
        let limit = if wide { u128::MAX } else { u128::from(span.mask) };
        let fits = |value: u128| {
            if value <= limit {
                return Ok(value as u64);
            }
            Err(Error::Invalid(format!("{value} does not fit {shown}: the most is {limit}")))
        };
        let values =
            |values: Vec<u64>| Variation::List { values: values.into(), index: 0, stride: 1 };
        let first = match &self.pattern {
            Pattern::Increment { first, step, count } => {
                if *count == 0 {
                    return Err(Error::Invalid(format!("{shown} has one value at least, not 0")));
                }
                let first = first.map_or(Ok(span.word(frame) & span.mask), fits)?;
                let last = u128::from(*step) * u128::from(count - 1) + u128::from(first);
                if last > u128::from(span.mask) {
                    return Err(Error::Invalid(format!(
                        "{shown} from {first} on in {count} steps of {step} ends at {last}, and the \
                         most is {}",
                        span.mask
                    )));
                }
                Variation::Increment { first, step: *step, index: 0, count: *count, stride: 1 }
            }
            Pattern::List(given) => {
                if given.is_empty() {
                    return Err(Error::Invalid(format!("{shown} has a list without a value")));
                }
                values(given.iter().map(|&value| fits(value)).collect::<Result<_>>()?)
            }
            Pattern::Random { low, high, seed } => {
                let (low, high) = match (low, high) {
                    (None, None) => self.usual(span, frame),
                    _ => (low.unwrap_or(0), high.unwrap_or(u128::from(span.mask))),
                };
                if low > high || wide && low >> 64 != high >> 64 && high >> 64 != 0 {
                    return Err(Error::Invalid(format!(
                        "{shown} is from {low} to {high}, which is no range (of IPv6 addresses the \
                         last 64 bits differ)"
                    )));
                }
                let (low, high) = (fits(low)?, fits(high)?);
                let span = (high - low).wrapping_add(1); // 0: all 64-bit numbers
                let state = seed.wrapping_mul(0xd6e8_feb8_6659_fd93);
                Variation::Random { state, stride: GOLDEN, low, span }
            }
        };
        let mut found = vec![first];
        if spans.len() > 1 {
            found.push(values(self.front().unwrap_or_default()));
        }
        Ok(found)
    }

    /// The default range of random numbers: all that fit. In MAC and IPv4 addresses, only the last
    /// three bytes vary.
    fn usual(&self, span: Span, frame: &[u8]) -> (u128, u128) {
        let varied = match &self.place {
            Place::Named(name) if name.starts_with("eth") || name.starts_with("ip.") => 0xff_ffff,
            _ => span.mask,
        };
        let fixed = span.word(frame) & span.mask & !varied;
        (u128::from(fixed), u128::from(fixed | varied))
    }
}
