#![allow(clippy::unwrap_used)]
use super::super::{PageRequest, PageSize, Placement, RegionOptions};
use super::*;
use proptest::prelude::*;
use std::collections::HashSet;

fn pool_of(buffer_size: usize) -> Arc<Pool> {
    pool_with(buffer_size, 0)
}

fn pool_with(buffer_size: usize, jumbos: usize) -> Arc<Pool> {
    Region::new(&options(1 << 20, buffer_size, Some(jumbos))).unwrap().pool()
}

fn options(size: usize, buffer_size: usize, jumbo_buffers: Option<usize>) -> RegionOptions {
    RegionOptions {
        size,
        pages: PageRequest::Exactly(PageSize::Base),
        placement: Placement::Virtual,
        node: None,
        directory: None,
        buffer_size,
        jumbo_buffers,
        jumbo_size: None,
    }
}

fn take(pool: &Pool, wanted: usize) -> Vec<BufferId> {
    let mut ids = Vec::new();
    assert_eq!(pool.take(&mut ids, wanted), ids.len());
    ids
}

#[test]
fn strides_are_odd_numbers_of_lines() {
    for size in [1, 63, 64, 65, 128, 1500, 1518, 2048, 9018, 65_550] {
        let layout = Layout::new(size, 1 << 20).unwrap();
        assert_eq!(layout.stride / LINE % 2, 1, "{size}");
        assert_eq!(layout.stride % LINE, 0, "{size}");
        assert!(layout.capacity >= size && layout.capacity < size + LINE, "{size}");
        assert!(layout.stride >= DATA_OFFSET + layout.capacity, "{size}");
        assert!(layout.count as usize * layout.stride <= 1 << 20, "{size}");
    }
    assert_eq!(Layout::new(2048, 1 << 20).unwrap().stride, 33 * 64);
    assert_eq!(Layout::new(1, 1 << 46).unwrap().count, JUMBO);
    for size in [0, 1 << 20, usize::MAX, usize::MAX - 63, usize::MAX - 127] {
        assert!(matches!(Layout::new(size, 1 << 20), Err(Error::Invalid(_))), "{size}");
    }
}

#[test]
fn every_buffer_lies_in_the_region_apart_and_aligned() {
    let pool = pool_of(1500);
    let region = pool.region();
    let ids = take(&pool, usize::MAX);
    assert_eq!((ids.len(), pool.free()), (pool.count(), 0));
    let mut starts: Vec<_> = ids.iter().map(|&id| pool.data_ptr(id).addr()).collect();
    starts.sort_unstable();
    for pair in starts.windows(2) {
        assert!(pair[1] - pair[0] >= pool.capacity() + DATA_OFFSET);
    }
    for &id in &ids {
        let offset = pool.data_ptr(id).addr() - region.address();
        assert!(offset.is_multiple_of(64));
        assert!(offset - DATA_OFFSET >= 256 << 10, "behind the part kept for rings");
        assert_eq!(region.iova_of(offset, pool.capacity()), Some(pool.data_iova(id)));
    }
}

#[test]
fn an_id_out_of_range_reaches_nothing_else() {
    let pool = pool_of(2048);
    for id in [pool.count() as u32, u32::MAX] {
        assert_eq!(pool.data_ptr(id), pool.data_ptr(0));
        assert_eq!(pool.data_iova(id), pool.data_iova(0));
        pool.give(&[id]);
        pool.export(id);
        pool.unexport(id);
        assert!(!pool.is_exported(id) && !pool.any_exported());
    }
    assert_eq!(pool.free(), pool.count());
    let ids = take(&pool, 2);
    pool.give(&[ids[0], u32::MAX, ids[1]]);
    assert_eq!(pool.free(), pool.count(), "the good ones of a bad call are taken");
}

#[test]
fn jumbo_buffers_lie_behind_the_others_apart_and_aligned() {
    let pool = pool_with(2048, 3);
    let (region, mut all) = (pool.region(), take(&pool, usize::MAX));
    assert_eq!(all.len(), pool.count());
    all.extend(std::iter::from_fn(|| pool.take_jumbo()));
    assert_eq!((all.len(), pool.jumbo_count(), pool.jumbo_free()), (pool.count() + 3, 3, 0));
    assert!(pool.jumbo_capacity() >= JUMBO_SIZE && pool.largest_frame() == pool.jumbo_capacity());
    let mut taken: Vec<_> = all
        .iter()
        .map(|&id| {
            let at = pool.data_ptr(id).addr() - region.address();
            assert!(at.is_multiple_of(64));
            assert_eq!(region.iova_of(at, pool.capacity_of(id)), Some(pool.data_iova(id)));
            (at - DATA_OFFSET, at + pool.capacity_of(id))
        })
        .collect();
    taken.sort_unstable();
    assert!(taken.windows(2).all(|pair| pair[0].1 <= pair[1].0));
    assert!(taken[0].0 >= 256 << 10, "behind the part kept for rings");
    let jumbos = &all[pool.count()..];
    assert!(jumbos.iter().all(|&id| pool.is_jumbo(id) && id >> 31 == 0));
    assert!(!all[..pool.count()].iter().any(|&id| pool.is_jumbo(id)));
    assert_eq!(
        pool.data_ptr(JUMBO + 1).addr() - pool.data_ptr(JUMBO).addr(),
        pool.stride_of(JUMBO)
    );
    pool.give(&all);
    assert_eq!((pool.free(), pool.jumbo_free()), (pool.count(), 3));
}

#[test]
fn a_jumbo_id_out_of_range_reaches_nothing_else() {
    for jumbos in [0, 3] {
        let pool = pool_with(2048, jumbos);
        for id in [JUMBO + jumbos as u32, JUMBO | pool.count() as u32, u32::MAX ^ JUMBO] {
            assert!(!pool.is_jumbo(id));
            assert_eq!(pool.data_ptr(id), pool.data_ptr(0));
            assert_eq!(
                (pool.capacity_of(id), pool.stride_of(id)),
                (pool.capacity(), pool.stride())
            );
            pool.give(&[id]);
            pool.export(id);
            assert!(!pool.any_exported());
        }
        // An index of the export words that is no id.
        pool.export(pool.count() as u32);
        assert!(!pool.any_exported());
        assert_eq!((pool.free(), pool.jumbo_free()), (pool.count(), jumbos));
    }
}

#[test]
fn an_exported_jumbo_buffer_is_not_handed_out() {
    let pool = pool_with(2048, 1);
    let (id, other) = (pool.take_jumbo().unwrap(), take(&pool, 1));
    pool.export(id);
    assert!(pool.is_exported(id) && !pool.is_exported(other[0]));
    pool.give(&[id, other[0]]);
    assert_eq!((pool.free(), pool.jumbo_free(), pool.take_jumbo()), (pool.count(), 0, None));
    pool.unexport(id);
    assert_eq!((pool.any_exported(), pool.take_jumbo()), (false, Some(id)));
}

#[test]
fn how_many_jumbo_buffers_there_are() {
    let count = |wanted, size: usize, buffer_size| {
        Layout::jumbo(&options(size, buffer_size, wanted), size / 16 * 15)
            .map(|layout| layout.count)
    };
    assert_eq!(count(None, 2 << 20, 2048).unwrap(), 0);
    assert_eq!(count(None, 4 << 20, 2048).unwrap(), 3);
    assert_eq!(count(None, 32 << 20, 2048).unwrap(), 31);
    assert_eq!(count(None, 32 << 20, JUMBO_SIZE).unwrap(), 0, "every buffer is as large");
    assert_eq!(count(Some(5), 1 << 20, 2048).unwrap(), 5);
    assert_eq!(count(Some(0), 32 << 20, 2048).unwrap(), 0);
    for wanted in [15, 1 << 31, usize::MAX] {
        let error = count(Some(wanted), 1 << 20, 2048).unwrap_err().to_string();
        assert!(error.contains("jumbo buffers") && error.contains("room for 14"), "{error}");
    }
    let large = Layout::jumbo(&options(1 << 20, 100_000, Some(1)), 1 << 20).unwrap();
    assert!(large.capacity >= 100_000, "no smaller than a common buffer");
    let smaller = RegionOptions { jumbo_size: Some(9018), ..options(32 << 20, 2048, None) };
    let smaller = Layout::jumbo(&smaller, 30 << 20).unwrap();
    assert!((9018..9018 + 64).contains(&smaller.capacity) && smaller.count > 200);
    for jumbo_size in [0, 2048] {
        let wrong = RegionOptions { jumbo_size: Some(jumbo_size), ..options(32 << 20, 2048, None) };
        assert!(Layout::jumbo(&wrong, 30 << 20).is_err());
    }
}

#[test]
fn the_most_recently_freed_come_first_and_rows_stay_rows() {
    let pool = pool_of(2048);
    let ids = take(&pool, 8);
    assert!(ids.windows(2).all(|pair| pair[0] + 1 == pair[1]));
    pool.give(&ids);
    assert_eq!(take(&pool, 8), ids);
    pool.give(&ids[2..4]);
    assert_eq!(take(&pool, 2), ids[2..4]);
}

#[test]
fn an_exported_buffer_is_not_handed_out() {
    let pool = pool_of(2048);
    let ids = take(&pool, 3);
    pool.export(ids[1]);
    pool.export(ids[1]);
    pool.give(&ids);
    assert_eq!(pool.free(), pool.count() - 1);
    assert!(!take(&pool, usize::MAX).contains(&ids[1]));
    pool.unexport(ids[1]);
    assert!(pool.any_exported() && pool.is_exported(ids[1]));
    assert_eq!(pool.free(), 0);
    pool.unexport(ids[1]);
    assert!(!pool.any_exported() && !pool.is_exported(ids[1]));
    assert_eq!(take(&pool, usize::MAX), [ids[1]]);
}

#[cfg(debug_assertions)]
mod mistakes {
    use super::*;

    #[test]
    #[should_panic(expected = "given back twice")]
    fn a_buffer_given_twice_is_noticed() {
        let pool = pool_of(2048);
        let ids = take(&pool, 2);
        pool.give(&ids);
        pool.give(&ids[..1]);
    }

    #[test]
    #[should_panic(expected = "given back twice")]
    fn a_zombie_given_twice_is_noticed() {
        let pool = pool_of(2048);
        let ids = take(&pool, 1);
        pool.export(ids[0]);
        pool.give(&ids);
        pool.give(&ids);
    }

    #[test]
    #[should_panic(expected = "ended twice")]
    fn a_view_that_ends_twice_is_noticed() {
        let pool = pool_of(2048);
        let ids = take(&pool, 1);
        pool.export(ids[0]);
        pool.unexport(ids[0]);
        pool.unexport(ids[0]);
    }
}

/// A view ends in one thread while its buffer is given back in another, again and
/// again: it is freed exactly once each time.
#[test]
fn given_back_while_the_last_view_ends() {
    let pool = pool_of(2048);
    let rounds = 20_000;
    let (send, receive) = std::sync::mpsc::sync_channel::<Vec<BufferId>>(1);
    std::thread::scope(|scope| {
        let views = Arc::clone(&pool);
        scope.spawn(move || {
            for ids in receive {
                ids.iter().for_each(|&id| views.unexport(id));
            }
        });
        let mut mine = Vec::new();
        for round in 0..rounds {
            mine.clear();
            while pool.take(&mut mine, 1 + round % 16) == 0 {
                std::hint::spin_loop();
            }
            assert_eq!(mine.iter().collect::<HashSet<_>>().len(), mine.len());
            assert!(mine.iter().all(|&id| !pool.is_exported(id)), "freed with a live view");
            mine.iter().for_each(|&id| pool.export(id));
            send.send(mine.clone()).unwrap();
            pool.give(&mine);
        }
        drop(send);
    });
    assert_eq!(pool.free(), pool.count());
    assert!(!pool.any_exported());
    let all = take(&pool, usize::MAX);
    assert_eq!(all.iter().collect::<HashSet<_>>().len(), pool.count());
}

#[derive(Clone, Debug)]
enum Step {
    Take(usize),
    Give(Vec<usize>),
    Export(usize),
    Unexport(usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (0usize..600).prop_map(Step::Take),
        prop::collection::vec(any::<usize>(), 0..64).prop_map(Step::Give),
        any::<usize>().prop_map(Step::Export),
        any::<usize>().prop_map(Step::Unexport),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn every_buffer_has_one_owner(steps in prop::collection::vec(step(), 1..100)) {
        let pool = pool_of(2048);
        let mut owned: Vec<BufferId> = Vec::new();
        let mut views: Vec<BufferId> = Vec::new();
        for step in steps {
            match step {
                Step::Take(wanted) => {
                    let expected = wanted.min(pool.free());
                    let before = owned.len();
                    prop_assert_eq!(pool.take(&mut owned, wanted), expected);
                    prop_assert_eq!(owned.len() - before, expected);
                    for id in &owned[before..] {
                        prop_assert!((*id as usize) < pool.count());
                        prop_assert!(!views.contains(id), "taken while a view lives");
                    }
                    prop_assert_eq!(owned.iter().collect::<HashSet<_>>().len(), owned.len());
                }
                Step::Give(picks) => {
                    let mut given = Vec::new();
                    for pick in picks {
                        if !owned.is_empty() {
                            given.push(owned.swap_remove(pick % owned.len()));
                        }
                    }
                    pool.give(&given);
                }
                Step::Export(pick) if !owned.is_empty() => {
                    let id = owned[pick % owned.len()];
                    pool.export(id);
                    views.push(id);
                }
                Step::Unexport(pick) if !views.is_empty() => {
                    pool.unexport(views.swap_remove(pick % views.len()));
                }
                Step::Export(_) | Step::Unexport(_) => {}
            }
            let mut zombies: HashSet<BufferId> = views.iter().copied().collect();
            owned.iter().for_each(|id| { zombies.remove(id); });
            prop_assert_eq!(pool.free() + owned.len() + zombies.len(), pool.count());
            prop_assert_eq!(pool.any_exported(), !views.is_empty());
        }
        pool.give(&owned);
        views.into_iter().for_each(|id| pool.unexport(id));
        let all = take(&pool, usize::MAX);
        prop_assert_eq!(all.iter().collect::<HashSet<_>>().len(), pool.count());
    }
}
