//! The packet pool: buffers of equal stride, some jumbo buffers, and their ownership.
//!
//! A buffer is with a device, in a burst, or free. The free lists are in private memory. The stride
//! is an odd number of cache lines, so that the first lines of many packets do not compete for the
//! same cache sets.
//!
//! ```text
//!  | ...padding | virtio_net_hdr | data ................ |
//!  0            52               64 = DATA_OFFSET        stride
//! ```
//!
//! A frame always occupies one buffer. The few *jumbo* buffers, at the end of the pool, hold frames
//! longer than a common buffer: frames that devices spread over several receive buffers are
//! assembled there. Their ids have [`JUMBO`] set; otherwise they are the same.
//!
//! A buffer that is given back while it has live views is a *zombie*: owned by nobody, and not
//! free. One atomic word per buffer holds the number of views and the zombie bit, so that of "given
//! back" and "last view ended", in whatever order two threads do them, exactly one sees both and
//! frees it.

use super::demand::Registry;
use super::free::Free;
use super::pages::human;
use super::{Iova, Region, RegionOptions};
use crate::process::Home;
use crate::{Error, Result};
use std::ops::Range;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A buffer of the region's pool, by index.
pub type BufferId = u32;

/// Bytes in front of a buffer's data. The virtio header (10, 12 or 20 bytes) ends where the data
/// starts, so that data is aligned to 64 bytes.
pub const DATA_OFFSET: usize = 64;

/// Default data bytes of a jumbo buffer: the longest frame of a virtio-net device (section
/// 5.1.6.3.1: 65,562 bytes including the header of 12).
pub const JUMBO_SIZE: usize = 65_550;

/// Marks the id of a jumbo buffer. Bit 31 is reserved for tokens of the queues.
const JUMBO: BufferId = 1 << 30;

/// A cache line.
const LINE: usize = 64;

/// In an export word: the buffer was given back. The other bits count views.
const ZOMBIE: u32 = 1 << 31;

/// How a part of the region is divided into buffers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Layout {
    pub(super) capacity: usize,
    pub(super) stride: usize,
    pub(super) count: u32,
}

impl Layout {
    /// No buffers.
    const NONE: Self = Self { capacity: 0, stride: 0, count: 0 };

    /// Smaller regions have no jumbo buffers unless requested.
    const SMALLEST_WITH_JUMBOS: usize = 4 << 20;

    /// Jumbo buffers of a region: the requested number, or a sixteenth of the region's size, and
    /// none if every buffer is that large.
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

/// Packet buffers of a fixed stride in a region, shared by all its ports.
#[derive(Debug)]
pub struct Pool {
    home: Home,
    region: Arc<Region>,
    /// Offset in the region of the first buffer's data, and its device address.
    first: usize,
    first_iova: Iova,
    layout: Layout,
    /// The jumbo buffers, and the distance in bytes from the first buffer to the first of them.
    pub(super) jumbo: Layout,
    jumbo_distance: usize,
    // One lock per list; if both are taken, in this order.
    pub(super) free: Mutex<Free>,
    pub(super) free_jumbos: Mutex<Free>,
    /// Jumbo buffers that are not free. If zero, ids need not be checked.
    pub(super) jumbos_taken: AtomicUsize,
    /// Holders to ask for finished buffers, and queues to tell when buffers are freed.
    pub(super) registry: Arc<Registry>,
    /// Common and jumbo buffers reserved for receiving.
    pub(super) kept: AtomicUsize,
    pub(super) kept_jumbos: AtomicUsize,
    /// Buffers with a live view, by number of views. If zero, `give` skips `exports`.
    exported: AtomicUsize,
    /// The export words: of the common buffers, then of the jumbo ones.
    exports: Box<[AtomicU32]>,
}

impl Pool {
    /// A pool over `part` of the region; the caller uses each part once.
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

    /// Number of common buffers; jumbo buffers are counted separately.
    #[inline]
    pub fn count(&self) -> usize {
        self.layout.count as usize
    }
    /// How many of them are free.
    pub fn free(&self) -> usize {
        self.lock().ids.len()
    }
    /// Data bytes of a common buffer.
    #[inline]
    pub fn capacity(&self) -> usize {
        self.layout.capacity
    }
    /// Data bytes of this buffer.
    #[inline]
    pub fn capacity_of(&self, id: BufferId) -> usize {
        if self.is_jumbo(id) { self.jumbo.capacity } else { self.layout.capacity }
    }
    /// Distance in bytes between common buffers.
    #[inline]
    pub fn stride(&self) -> usize {
        self.layout.stride
    }
    /// Distance in bytes from this buffer to the next of its kind.
    #[inline]
    pub fn stride_of(&self, id: BufferId) -> usize {
        if self.is_jumbo(id) { self.jumbo.stride } else { self.layout.stride }
    }
    /// Number of jumbo buffers.
    pub fn jumbo_count(&self) -> usize {
        self.jumbo.count as usize
    }
    /// How many of them are free.
    pub fn jumbo_free(&self) -> usize {
        lock(&self.free_jumbos).ids.len()
    }
    /// Data bytes of a jumbo buffer; 0 if there is none.
    pub fn jumbo_capacity(&self) -> usize {
        self.jumbo.capacity
    }
    /// The longest frame that fits a buffer.
    pub fn largest_frame(&self) -> usize {
        self.layout.capacity.max(self.jumbo.capacity)
    }
    /// Whether an id is that of a jumbo buffer.
    #[inline]
    pub fn is_jumbo(&self, id: BufferId) -> bool {
        // Without the mark it is at least any count.
        id ^ JUMBO < self.jumbo.count
    }
    /// Whether one of these buffers, which the caller owns, is a jumbo buffer. Free if no jumbo
    /// buffer is in use.
    #[inline]
    pub(crate) fn any_jumbo(&self, ids: &[BufferId]) -> bool {
        // The owner of a jumbo buffer sees it counted.
        self.jumbos_taken.load(Ordering::Relaxed) != 0 && highest(ids) >= self.layout.count
    }

    /// Moves up to `wanted` free buffers to the end of `out` and returns their number. These are
    /// the most recently freed ones, still in cache, in the order in which they were given back, so
    /// that adjacent buffers stay adjacent. One short lock.
    #[inline]
    pub fn take(&self, out: &mut Vec<BufferId>, wanted: usize) -> usize {
        self.lock().take(out, wanted)
    }

    /// Gives buffers back. Those with live exports (see [`Self::export`]) become free when the last
    /// export ends. One short lock; if no buffer of the pool is exported (according to one atomic
    /// counter), the exports of single buffers are not checked.
    ///
    /// The caller owns the ids: each came from `take` and is given back once. An id out of range is
    /// ignored and logged. In a forked child all are ignored: nothing is taken there, and a lock
    /// may be held by a thread that does not exist.
    #[inline]
    pub fn give(&self, ids: &[BufferId]) {
        if !self.home.is_here() {
            return;
        }
        // An export of one of these ids happened before its owner gives it back here, so it is
        // counted unless it has ended; Acquire then orders everything its view did before.
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

    /// The slow path: one buffer at a time.
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
            // Acquire: the view's accesses happen before the buffer's next use. Without a view
            // nobody else uses the word, so no exchange is needed.
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
            // Otherwise the last view frees it.
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
        // The last view of a zombie clears the word, which nobody else uses then.
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
                // After the word: `give` may see a count too high, never too low.
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

    /// The device address of a buffer's data; that of buffer 0 for a nonexistent id.
    #[inline]
    pub fn data_iova(&self, id: BufferId) -> Iova {
        self.first_iova.plus(self.distance(id) as u64)
    }
    /// Our address of a buffer's data; the `capacity_of(id)` bytes from there, and `DATA_OFFSET`
    /// bytes before, belong to the buffer. A nonexistent id yields buffer 0, never an address
    /// outside the pool.
    #[inline]
    pub fn data_ptr(&self, id: BufferId) -> *mut u8 {
        //  SAFETY: `distance` is that of a buffer inside the pool's part of the region, which is
        //  covered by
        // the mapping that `region` keeps alive.
        unsafe { self.region.base().add(self.first + self.distance(id)) }
    }
    /// The device address of a common buffer's data; that of buffer 0 for any other.
    #[inline]
    pub(crate) fn common_iova(&self, id: BufferId) -> Iova {
        // A conditional move, not a branch.
        let id = if id < self.layout.count { id } else { 0 };
        self.first_iova.plus((id as usize * self.layout.stride) as u64)
    }
    /// Both addresses of a buffer's data, at the cost of one.
    #[inline]
    pub(crate) fn data(&self, id: BufferId) -> (*mut u8, Iova) {
        let distance = self.distance(id);
        // SAFETY: as in `data_ptr`.
        let at = unsafe { self.region.base().add(self.first + distance) };
        (at, self.first_iova.plus(distance as u64))
    }
    /// The region that it is part of.
    pub fn region(&self) -> &Arc<Region> {
        &self.region
    }

    /// Distance in bytes from the first buffer; 0 for a nonexistent one. For a common buffer one
    /// comparison and one multiplication.
    #[inline]
    fn distance(&self, id: BufferId) -> usize {
        if id < self.layout.count {
            id as usize * self.layout.stride
        } else {
            self.distance_of_jumbo(id)
        }
    }

    /// Separate, so that the common case remains an always predicted branch.
    #[cold]
    #[inline(never)]
    fn distance_of_jumbo(&self, id: BufferId) -> usize {
        if !self.is_jumbo(id) {
            return 0;
        }
        self.jumbo_distance + (id ^ JUMBO) as usize * self.jumbo.stride
    }

    /// The export word of an existing buffer.
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
    // Poisoned means that the assertion about a double free failed: the list itself is intact.
    list.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The highest id: `max` instead of `any`, which stops early and so is not vectorised.
#[inline]
fn highest(ids: &[BufferId]) -> BufferId {
    ids.iter().fold(0, |highest, &id| id.max(highest))
}

#[cfg(test)]
#[path = "pool_tests.rs"]
mod tests;
