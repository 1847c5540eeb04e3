//! The packet pool: buffers of one stride, a few large ones, and who owns each.
//!
//! A buffer is with a device, in a burst, or free. The free lists live in
//! private memory. The stride is an odd number of cache lines, so that the
//! first lines of many packets do not compete for the same cache sets.
//!
//! ```text
//!  | ...padding | virtio_net_hdr | data ................ |
//!  0            52               64 = DATA_OFFSET        stride
//! ```
//!
//! A frame always lies in one buffer. The few *jumbo* buffers, at the end of the pool, are for
//! frames longer than a common buffer: what devices spread over several receive buffers is put
//! together there. Their ids have [`JUMBO`] set; all else is the same.
//!
//! A buffer that is given back while views of it are alive is a *zombie*: nobody's,
//! and not free. One atomic word per buffer holds the count of its views and the
//! zombie bit, so that of "given back" and "last view ended", in whatever order
//! two threads do them, exactly one sees that both have happened and frees it.

use super::demand::Registry;
use super::free::Free;
use super::pages::human;
use super::{Iova, Region, RegionOptions};
use crate::process::Home;
use crate::{Error, Result};
use std::ops::Range;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A buffer of the region's pool, by its index.
pub type BufferId = u32;

/// Bytes in front of a buffer's data. The virtio header (10, 12 or 20 bytes) ends
/// where the data starts, so that data is aligned to 64 bytes.
pub const DATA_OFFSET: usize = 64;

/// Bytes of data that a jumbo buffer holds unless somebody says less: the longest frame of a virtio-net device
/// (section 5.1.6.3.1: 65,562 bytes with its header of 12).
pub const JUMBO_SIZE: usize = 65_550;

/// Marks the id of a jumbo buffer. Bit 31 is left to the queues, for tokens of their own.
const JUMBO: BufferId = 1 << 30;

/// A cache line.
const LINE: usize = 64;

/// In an export word: the buffer was given back. The other bits count views.
const ZOMBIE: u32 = 1 << 31;

/// How a part of the region is cut into buffers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Layout {
    pub(super) capacity: usize,
    pub(super) stride: usize,
    pub(super) count: u32,
}

impl Layout {
    /// No buffers.
    const NONE: Self = Self { capacity: 0, stride: 0, count: 0 };

    /// Smaller regions have no jumbo buffers unless they are asked for.
    const SMALLEST_WITH_JUMBOS: usize = 4 << 20;

    /// Jumbo buffers of a region: as many as are wanted, else a sixteenth of the region's size,
    /// and none where every buffer is that large.
    pub(super) fn jumbo(options: &RegionOptions, room: usize) -> Result<Self> {
        let &RegionOptions { size, buffer_size, jumbo_buffers, jumbo_size, .. } = options;
        if let Some(jumbo_size) = jumbo_size
            && jumbo_size <= buffer_size
        {
            return Err(Error::Invalid(format!(
                "a jumbo buffer holds more than the {buffer_size} bytes of a common one, not \
                 {jumbo_size}"
            )));
        }
        let jumbo_size = jumbo_size.unwrap_or(JUMBO_SIZE);
        let count = match jumbo_buffers {
            Some(0) => return Ok(Self::NONE),
            None if size < Self::SMALLEST_WITH_JUMBOS || buffer_size >= jumbo_size => {
                return Ok(Self::NONE);
            }
            other => other,
        };
        let most = Self::new(jumbo_size.max(buffer_size), room)?;
        let count = count.unwrap_or_else(|| (size / 16 / most.stride).max(2));
        match u32::try_from(count) {
            Ok(count) if count <= most.count => Ok(Self { count, ..most }),
            _ => Err(Error::Invalid(format!(
                "{count} jumbo buffers of {} do not fit the pool's {}, which has room for {}; ask \
                 for fewer or make the memory larger",
                human(most.stride as u64),
                human(room as u64),
                most.count
            ))),
        }
    }

    /// Bytes of all buffers together.
    pub(super) fn len(&self) -> usize {
        self.count as usize * self.stride
    }

    /// Buffers of at least `buffer_size` bytes of data in `room` bytes.
    pub(super) fn new(buffer_size: usize, room: usize) -> Result<Self> {
        let layout = || {
            let lines = buffer_size.div_ceil(LINE);
            let capacity = lines.checked_mul(LINE).filter(|&capacity| capacity > 0)?;
            let stride = capacity.checked_add(DATA_OFFSET)?;
            let stride = if (stride / LINE).is_multiple_of(2) { stride + LINE } else { stride };
            // Every id is below those of jumbo buffers.
            let count = u32::try_from(room / stride).unwrap_or(JUMBO).min(JUMBO);
            (count > 0).then_some(Self { capacity, stride, count })
        };
        layout().ok_or_else(|| {
            Error::Invalid(format!(
                "a buffer size of {buffer_size} bytes does not fit: from 1 byte up to what the \
                 pool's {} hold; 2048 suits frames of an MTU of 1500",
                human(room as u64)
            ))
        })
    }
}

/// Fixed-stride packet buffers of a region, shared by all its ports.
#[derive(Debug)]
pub struct Pool {
    home: Home,
    region: Arc<Region>,
    /// Offset in the region of the first buffer's data, and its address for the device.
    first: usize,
    first_iova: Iova,
    layout: Layout,
    /// The jumbo buffers, and bytes from the first buffer to the first of them.
    pub(super) jumbo: Layout,
    jumbo_distance: usize,
    // One lock for each list; where both are taken, in this order.
    pub(super) free: Mutex<Free>,
    pub(super) free_jumbos: Mutex<Free>,
    /// Jumbo buffers that are not free. Zero spares a look at ids.
    pub(super) jumbos_taken: AtomicUsize,
    /// Who is asked for finished buffers when there are too few, and who is told when there are more.
    pub(super) registry: Arc<Registry>,
    /// Common and jumbo buffers that are for receiving only.
    pub(super) kept: AtomicUsize,
    pub(super) kept_jumbos: AtomicUsize,
    /// Buffers with a live view, views counted. Zero lets `give` skip `exports`.
    exported: AtomicUsize,
    /// The export words: of the common buffers, then of the jumbo ones.
    exports: Box<[AtomicU32]>,
}

impl Pool {
    /// A pool over `part` of the region; the caller hands each part out once.
    pub(super) fn new(
        region: &Arc<Region>,
        part: Range<usize>,
        layout: Layout,
        jumbo: Layout,
    ) -> Self {
        debug_assert!(layout.len() + jumbo.len() <= part.len());
        debug_assert!(part.end <= region.size() && part.start.is_multiple_of(LINE));
        let first = part.start + DATA_OFFSET;
        Self {
            home: Home::here(),
            region: Arc::clone(region),
            first,
            first_iova: region.iova().plus(first as u64),
            layout,
            jumbo,
            jumbo_distance: part.len() - jumbo.len(),
            free: Mutex::new(Free::new(0, layout.count)),
            free_jumbos: Mutex::new(Free::new(JUMBO, jumbo.count)),
            jumbos_taken: AtomicUsize::new(0),
            registry: Arc::default(),
            kept: AtomicUsize::new(0),
            kept_jumbos: AtomicUsize::new(0),
            exported: AtomicUsize::new(0),
            exports: (0..layout.count + jumbo.count).map(|_| AtomicU32::new(0)).collect(),
        }
    }

    /// How many common buffers there are; the jumbo ones are counted apart.
    #[inline]
    pub fn count(&self) -> usize {
        self.layout.count as usize
    }
    /// How many of them are free now.
    pub fn free(&self) -> usize {
        self.lock().ids.len()
    }
    /// Bytes of data a common buffer holds.
    #[inline]
    pub fn capacity(&self) -> usize {
        self.layout.capacity
    }
    /// Bytes of data this buffer holds.
    #[inline]
    pub fn capacity_of(&self, id: BufferId) -> usize {
        if self.is_jumbo(id) { self.jumbo.capacity } else { self.layout.capacity }
    }
    /// Bytes from a common buffer to the next.
    #[inline]
    pub fn stride(&self) -> usize {
        self.layout.stride
    }
    /// Bytes from this buffer to the next of its kind.
    #[inline]
    pub fn stride_of(&self, id: BufferId) -> usize {
        if self.is_jumbo(id) { self.jumbo.stride } else { self.layout.stride }
    }
    /// How many jumbo buffers there are.
    pub fn jumbo_count(&self) -> usize {
        self.jumbo.count as usize
    }
    /// How many of them are free now.
    pub fn jumbo_free(&self) -> usize {
        lock(&self.free_jumbos).ids.len()
    }
    /// Bytes of data a jumbo buffer holds; 0 where there is none.
    pub fn jumbo_capacity(&self) -> usize {
        self.jumbo.capacity
    }
    /// The longest frame that fits a buffer.
    pub fn largest_frame(&self) -> usize {
        self.layout.capacity.max(self.jumbo.capacity)
    }
    /// Whether it is the id of a jumbo buffer.
    #[inline]
    pub fn is_jumbo(&self, id: BufferId) -> bool {
        // Without the mark it is no less than any count.
        id ^ JUMBO < self.jumbo.count
    }
    /// Whether one of these, which the caller owns, is a jumbo buffer. Costs nothing where
    /// nobody has any.
    #[inline]
    pub(crate) fn any_jumbo(&self, ids: &[BufferId]) -> bool {
        // Whoever owns a jumbo buffer sees that it was counted.
        self.jumbos_taken.load(Ordering::Relaxed) != 0 && highest(ids) >= self.layout.count
    }

    /// Moves up to `wanted` free buffers to the end of `out`; says how many.
    /// Those most recently freed, while they are in cache, and in the order in which
    /// they were given, so that buffers in a row stay in a row. One short lock.
    #[inline]
    pub fn take(&self, out: &mut Vec<BufferId>, wanted: usize) -> usize {
        self.lock().take(out, wanted)
    }

    /// Gives buffers back. Those with live exports (see [`Self::export`]) become
    /// free when the last export ends. One short lock; where no buffer of the pool
    /// is exported (one atomic counter says so) no look at each buffer's exports.
    ///
    /// The caller owns the ids: each came from `take` and is given back once.
    /// An id out of range is ignored and logged. In a forked child all are: nothing is taken
    /// there, and a lock may be held by a thread that is not.
    #[inline]
    pub fn give(&self, ids: &[BufferId]) {
        if !self.home.is_here() {
            return;
        }
        // An export of one of these ids happened before its owner gives it here, so
        // it is counted unless it has ended; then Acquire sees all that its view did.
        let quiet = self.exported.load(Ordering::Acquire) == 0;
        let tell = if quiet && highest(ids) < self.layout.count {
            self.lock().give(ids)
        } else {
            self.give_checked(ids)
        };
        if tell {
            self.registry.tell();
        }
    }

    /// The slow way: buffer by buffer.
    #[cold]
    fn give_checked(&self, ids: &[BufferId]) -> bool {
        let mut tell = false;
        let mut free = self.lock();
        let mut free_jumbos = lock(&self.free_jumbos);
        for &id in ids {
            let Some(word) = self.word(id) else {
                log::error!("buffer {id} does not exist (of {}): not given back", self.count());
                continue;
            };
            // Acquire: what a view's holder did comes before the buffer's next owner.
            // Without a view nobody else looks at the word: it needs no exchange.
            let before = match word.load(Ordering::Acquire) {
                0 => 0,
                _ => word.fetch_or(ZOMBIE, Ordering::AcqRel),
            };
            if before & ZOMBIE != 0 {
                debug_assert!(false, "buffer {id} was given back twice");
                log::error!("buffer {id} was given back twice: the second time is ignored");
            } else if before == 0 {
                // No view: ours alone until it is in the list.
                word.store(0, Ordering::Relaxed);
                if self.is_jumbo(id) {
                    self.jumbos_taken.fetch_sub(1, Ordering::Relaxed);
                    tell |= free_jumbos.give(&[id]);
                } else {
                    tell |= free.give(&[id]);
                }
            }
            // Else the last view frees it.
        }
        tell
    }

    /// Counts one more live view of a buffer that the caller owns.
    pub fn export(&self, id: BufferId) {
        let Some(word) = self.word(id) else {
            log::error!("buffer {id} does not exist (of {}): not exported", self.count());
            return;
        };
        self.exported.fetch_add(1, Ordering::Relaxed);
        word.fetch_add(1, Ordering::Relaxed);
    }

    /// Ends one view; frees the buffer if it was given back meanwhile.
    pub fn unexport(&self, id: BufferId) {
        if !self.home.is_here() {
            return;
        }
        let Some(word) = self.word(id) else {
            log::error!("buffer {id} does not exist (of {}): not exported", self.count());
            return;
        };
        // The last view of a zombie clears the word; nobody else looks at it then.
        let end = |word: u32| match word {
            0 | ZOMBIE => None,
            _ if word == ZOMBIE | 1 => Some(0),
            _ => Some(word - 1),
        };
        match word.fetch_update(Ordering::AcqRel, Ordering::Relaxed, end) {
            Ok(before) => {
                let mut tell = false;
                if before == ZOMBIE | 1 {
                    tell = if self.is_jumbo(id) {
                        self.jumbos_taken.fetch_sub(1, Ordering::Relaxed);
                        lock(&self.free_jumbos).give(&[id])
                    } else {
                        self.lock().give(&[id])
                    };
                }
                // After the word: `give` may see a count too high, never one too low.
                self.exported.fetch_sub(1, Ordering::Release);
                if tell {
                    self.registry.tell();
                }
            }
            Err(_) => {
                debug_assert!(false, "a view of buffer {id} ended twice");
                log::error!("a view of buffer {id} ended twice: the second time is ignored");
            }
        }
    }

    /// Whether any buffer has a live view.
    #[inline]
    pub fn any_exported(&self) -> bool {
        self.exported.load(Ordering::Acquire) != 0
    }
    /// Whether this buffer has a live view.
    pub fn is_exported(&self, id: BufferId) -> bool {
        self.word(id).is_some_and(|word| word.load(Ordering::Acquire) & !ZOMBIE != 0)
    }

    /// The data of a buffer as the device addresses it; that of buffer 0 for an id that does
    /// not exist.
    #[inline]
    pub fn data_iova(&self, id: BufferId) -> Iova {
        self.first_iova.plus(self.distance(id) as u64)
    }
    /// The data of a buffer as we address it; `capacity_of(id)` bytes from there, and
    /// `DATA_OFFSET` bytes before, belong to the buffer. An id that does not exist yields
    /// buffer 0, never an address outside the pool.
    #[inline]
    pub fn data_ptr(&self, id: BufferId) -> *mut u8 {
        // SAFETY: `distance` is that of a buffer inside the pool's part of the
        // region, which the mapping that `region` keeps alive covers.
        unsafe { self.region.base().add(self.first + self.distance(id)) }
    }
    /// The data of a common buffer as the device addresses it; that of buffer 0 for any other.
    #[inline]
    pub(crate) fn common_iova(&self, id: BufferId) -> Iova {
        // A conditional move, not a branch.
        let id = if id < self.layout.count { id } else { 0 };
        self.first_iova.plus((id as usize * self.layout.stride) as u64)
    }
    /// The data of a buffer as we address it and as the device does, at the cost of one.
    #[inline]
    pub(crate) fn data(&self, id: BufferId) -> (*mut u8, Iova) {
        let distance = self.distance(id);
        // SAFETY: as in `data_ptr`.
        let at = unsafe { self.region.base().add(self.first + distance) };
        (at, self.first_iova.plus(distance as u64))
    }
    /// The region it is part of.
    pub fn region(&self) -> &Arc<Region> {
        &self.region
    }

    /// Bytes from the first buffer to this; 0 for one that does not exist. For a common
    /// buffer one comparison and one multiplication.
    #[inline]
    fn distance(&self, id: BufferId) -> usize {
        if id < self.layout.count {
            id as usize * self.layout.stride
        } else {
            self.distance_of_jumbo(id)
        }
    }

    /// Apart, so that the common way stays a branch that is always predicted.
    #[cold]
    #[inline(never)]
    fn distance_of_jumbo(&self, id: BufferId) -> usize {
        if !self.is_jumbo(id) {
            return 0;
        }
        self.jumbo_distance + (id ^ JUMBO) as usize * self.jumbo.stride
    }

    /// The export word of a buffer that exists.
    #[inline]
    fn word(&self, id: BufferId) -> Option<&AtomicU32> {
        let index = if id < self.layout.count {
            id
        } else if self.is_jumbo(id) {
            self.layout.count + (id ^ JUMBO)
        } else {
            return None;
        };
        self.exports.get(index as usize)
    }

    #[inline]
    pub(super) fn lock(&self) -> MutexGuard<'_, Free> {
        lock(&self.free)
    }
}

#[inline]
pub(super) fn lock(list: &Mutex<Free>) -> MutexGuard<'_, Free> {
    // Poisoned means that the assertion about a buffer given twice failed: the
    // list itself is whole.
    list.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The highest id: the maximum and not `any`, which stops early and so is not vectorised.
#[inline]
fn highest(ids: &[BufferId]) -> BufferId {
    ids.iter().fold(0, |highest, &id| id.max(highest))
}

#[cfg(test)]
#[path = "pool_tests.rs"]
mod tests;
