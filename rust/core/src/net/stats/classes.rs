//! Frames by length and destination.
//!
//! Off unless asked for ([`Watch`](super::watch::Watch)). Lengths cost next to nothing: they are known.
//! Destinations cost the first line of a received frame's bytes, which a loop that only passes frames
//! on does not touch otherwise, and which the other side then has to get back from our cache.

use crate::memory::{BufferId, Pool, prefetch};
use crate::net::stats::Counter;

/// The number of frames prefetched before they are read.
const AHEAD: usize = 8;
/// Bytes of an Ethernet address.
const ADDRESS: u32 = 6;

/// Bytes of the frame check sequence, which neither side of a virtqueue sees.
const FCS: u32 = 4;

/// Number of length and destination classes.
const SIZES: usize = 8;
const CASTS: usize = 3;

/// Frames of each class: counter names end in `_packets`, as in DPDK's virtio PMD.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FrameClasses {
    /// By length on the wire, including the frame check sequence, as in RMON (RFC 2819): the
    /// shortest frame has 64 bytes. See [`Self::SIZE_NAMES`].
    pub sizes: [u64; SIZES],
    /// By destination, as [`Self::CAST_NAMES`] says, where these are counted.
    pub casts: Option<[u64; CASTS]>,
}

/// What is counted of frames besides their number and their bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Counting {
    /// Nothing.
    #[default]
    Basic,
    /// How long they are.
    Sizes,
    /// And whom they are for.
    Extended,
}

impl FrameClasses {
    /// Names of the length classes. `undersize` is below 64.
    pub const SIZE_NAMES: [&str; SIZES] = [
        "undersize",
        "size_64",
        "size_65_127",
        "size_128_255",
        "size_256_511",
        "size_512_1023",
        "size_1024_1518",
        "size_1519_max",
    ];
    /// Names of the destination classes. Broadcast frames are not counted as multicast.
    pub const CAST_NAMES: [&str; CASTS] = ["unicast", "multicast", "broadcast"];

    /// Each count with its name.
    #[must_use]
    pub fn fields(&self) -> Vec<(&'static str, u64)> {
        let sizes = Self::SIZE_NAMES.into_iter().zip(self.sizes);
        let casts = self.casts.map(|casts| Self::CAST_NAMES.into_iter().zip(casts));
        sizes.chain(casts.into_iter().flatten()).collect()
    }
}

/// The live counters of one queue.
#[derive(Debug, Default)]
pub(crate) struct LiveClasses {
    sizes: [Counter; SIZES],
    casts: [Counter; CASTS],
}

impl LiveClasses {
    /// `destinations`: of frames to whom they are, too.
    pub(crate) fn snapshot(&self, destinations: bool) -> FrameClasses {
        FrameClasses {
            sizes: self.sizes.each_ref().map(Counter::get),
            casts: destinations.then(|| self.casts.each_ref().map(Counter::get)),
        }
    }

    /// Counts frames in buffers of the pool: `frame(i)` is the `i`th and its length. The buffers
    /// are the caller's, or with a device that only reads them.
    #[inline(never)]
    pub(crate) fn count(
        &self,
        pool: &Pool,
        frames: usize,
        frame: impl Fn(usize) -> (BufferId, u32),
    ) {
        for i in 0..frames.min(AHEAD) {
            prefetch(pool.data_ptr(frame(i).0));
        }
        self.add_up(frames, |i| {
            if i + AHEAD < frames {
                prefetch(pool.data_ptr(frame(i + AHEAD).0));
            }
            let (id, length) = frame(i);
            Class::of(pool, id, length)
        });
    }

    /// Counts frames by their lengths: none is looked at.
    #[inline(never)]
    pub(crate) fn count_sizes(&self, frames: usize, frame: impl Fn(usize) -> (BufferId, u32)) {
        self.add_up(frames, |i| Class { size: size(frame(i).1), cast: NOBODY });
    }

    /// Counts frames of classes that are known.
    #[inline]
    pub(crate) fn add_up(&self, frames: usize, class: impl Fn(usize) -> Class) {
        let mut next = 0;
        while next < frames {
            let end = frames.min(next + Tally::MOST);
            let mut tally = Tally::default();
            for i in next..end {
                tally.add(class(i));
            }
            next = end;
            // One store for each counter, however many frames there were.
            for (counter, n) in self.sizes.iter().zip(tally.sizes.to_le_bytes()) {
                counter.add(n.into());
            }
            for (counter, n) in self.casts.iter().zip(tally.casts.to_le_bytes()) {
                counter.add(n.into());
            }
        }
    }
}

/// A destination that is not counted.
const NOBODY: u8 = CASTS as u8;

/// What kind of frame one is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Class {
    size: u8,
    cast: u8,
}

impl Class {
    /// The class of a frame that lies in a buffer of the pool, which is the caller's, or with a
    /// device that only reads it.
    #[inline]
    pub(crate) fn of(pool: &Pool, id: BufferId, length: u32) -> Self {
        // SAFETY: data is 64-byte aligned and a buffer has room for that much at least; one
        // volatile read, whatever the device does meanwhile.
        let first = unsafe { pool.data_ptr(id).cast::<u64>().read_volatile() };
        Self { size: size(length), cast: cast(u64::from_le(first), length) as u8 }
    }
}

/// How many frames of each class, a byte for each: a frame costs two additions to registers.
#[derive(Debug, Default)]
struct Tally {
    sizes: u64,
    casts: u64,
}

impl Tally {
    /// More frames may not fit a byte.
    const MOST: usize = 255;

    #[inline]
    fn add(&mut self, class: Class) {
        self.sizes += 1 << (8 * u32::from(class.size));
        self.casts += 1 << (8 * u32::from(class.cast));
    }
}

/// Which of [`FrameClasses::SIZE_NAMES`] a frame of this length is.
#[inline]
fn size(length: u32) -> u8 {
    size_of_frame(length.saturating_add(FCS)) as u8
}

/// Which of [`FrameClasses::SIZE_NAMES`] a length on the wire is, without a branch.
#[inline]
fn size_of_frame(length: u32) -> usize {
    // 6 for all below 64, 7 for 64 to 127, and so on; 11 for all from 1024.
    let bits = (u32::BITS - length.leading_zeros()).clamp(6, 11);
    (bits - 6 + u32::from(length > 64) + u32::from(length > 1518)) as usize
}

/// The index in [`FrameClasses::CAST_NAMES`] of a frame with these first eight bytes.
#[inline]
fn cast(first: u64, length: u32) -> usize {
    let all = u64::MAX >> 16;
    let broadcast = (first & all == all) & (length >= ADDRESS);
    usize::from(first & 1 == 1) + usize::from(broadcast)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_length_is_in_its_class() {
        let wanted = |length: u32| match length {
            0..64 => 0,
            64 => 1,
            65..=127 => 2,
            128..=255 => 3,
            256..=511 => 4,
            512..=1023 => 5,
            1024..=1518 => 6,
            _ => 7,
        };
        for length in (0..70_000).chain([u32::MAX - 1, u32::MAX]) {
            assert_eq!(size_of_frame(length), wanted(length), "{length}");
        }
    }

    #[test]
    fn every_destination_is_in_its_class() {
        let read = |bytes: [u8; 8]| u64::from_le_bytes(bytes);
        assert_eq!(cast(read([0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0]), 60), 2);
        assert_eq!(cast(read([0xff; 8]), 60), 2);
        // Bytes after a short frame are not its own.
        assert_eq!(cast(read([0xff; 8]), 5), 1);
        assert_eq!(cast(read([0x01, 0, 0x5e, 0, 0, 1, 0xff, 0xff]), 60), 1);
        assert_eq!(cast(read([0xff, 0xff, 0xff, 0xff, 0xff, 0xfe, 0xff, 0xff]), 60), 1);
        assert_eq!(cast(read([0x52, 0x54, 0, 1, 2, 3, 0xff, 0xff]), 60), 0);
        assert_eq!(cast(read([0xfe, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0]), 60), 0);
    }
}
