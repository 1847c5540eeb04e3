#![allow(clippy::unwrap_used, clippy::panic)]
use super::super::reserved::Reserved;
use super::super::{IOVA_LIMIT, hugepages};
use super::*;
use rustix::fs::{SealFlags, fcntl_get_seals, ftruncate};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

const MIB: usize = 1 << 20;

fn options(size: usize) -> RegionOptions {
    RegionOptions {
        size,
        pages: PageRequest::Exactly(PageSize::Base),
        placement: Placement::Virtual,
        node: None,
        directory: None,
        buffer_size: 2048,
        jumbo_buffers: None,
        jumbo_size: None,
    }
}

fn huge(size: usize) -> RegionOptions {
    RegionOptions { pages: PageRequest::Exactly(PageSize::Huge2M), ..options(size) }
}

fn invalid(options: &RegionOptions) -> String {
    match Region::new(options) {
        Err(Error::Invalid(message)) => message,
        other => panic!("not refused as invalid: {other:?}"),
    }
}

fn unavailable(options: &RegionOptions) -> String {
    match Region::new(options) {
        Err(Error::MemoryUnavailable(message)) => message,
        other => panic!("not refused as unavailable: {other:?}"),
    }
}

/// What the file holds, read through the file and not through the mapping.
fn in_file(region: &Region, offset: usize, len: usize) -> Vec<u8> {
    let file = std::fs::File::from(region.file().unwrap().try_clone().unwrap());
    let mut bytes = vec![0; len];
    file.read_exact_at(&mut bytes, offset as u64).unwrap();
    bytes
}

/// The physical addresses behind a region, by independent means (`None` when hidden).
fn frames(region: &Region) -> Option<Vec<u64>> {
    let base = PageSize::Base.bytes();
    let pagemap = std::fs::File::open("/proc/self/pagemap").ok()?;
    let mut words = vec![0; region.size() / base * 8];
    pagemap.read_exact_at(&mut words, (region.address() / base * 8) as u64).ok()?;
    let frame = |word: &[u8]| {
        let word = u64::from_ne_bytes(word.try_into().ok()?);
        (word >> 63 == 1 && word & ((1 << 55) - 1) != 0)
            .then(|| (word & ((1 << 55) - 1)) * base as u64)
    };
    words.chunks_exact(8).map(frame).collect()
}

#[test]
fn a_region_is_aligned_sealed_prefaulted_and_below_the_limit() {
    let region = Region::new(&options(4 * MIB)).unwrap();
    assert_eq!(region.address() % region.size(), 0);
    assert_eq!(region.iova().0, region.address() as u64);
    assert!(region.iova().0 + 4 * MIB as u64 <= IOVA_LIMIT);
    assert_eq!(
        (region.page_size(), region.fallback(), region.path()),
        (PageSize::Base, None, None)
    );
    let stat = rustix::fs::fstat(region.file().unwrap()).unwrap();
    assert_eq!((stat.st_size, stat.st_blocks * 512), ((4 * MIB) as i64, (4 * MIB) as i64));
    let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
    assert_eq!(fcntl_get_seals(region.file().unwrap()).unwrap(), seals);
    assert!(ftruncate(region.file().unwrap(), 0).is_err());
}

#[test]
fn the_mapping_is_the_file() {
    let region = Region::new(&options(MIB)).unwrap();
    region.write(12_345, b"virtqueue").unwrap();
    assert_eq!(in_file(&region, 12_345, 9), b"virtqueue");
    let mut out = [0; 9];
    region.read(12_345, &mut out).unwrap();
    assert_eq!(&out, b"virtqueue");
    region.write(MIB, b"").unwrap();
    for (offset, len) in [(MIB, 1), (MIB - 1, 2), (usize::MAX, 2), (usize::MAX, 0)] {
        assert!(matches!(region.write(offset, &vec![0; len]), Err(Error::Invalid(_))));
        assert!(matches!(region.read(offset, &mut vec![0; len]), Err(Error::Invalid(_))));
        assert_eq!(region.iova_of(offset, len), None);
    }
}

#[test]
fn addresses_translate_in_both_directions() {
    let at = Iova(0x10_0000_0000);
    let region =
        Region::new(&RegionOptions { placement: Placement::At(at), ..options(MIB) }).unwrap();
    assert_eq!(region.iova(), at);
    assert_eq!(region.iova_of(4096, 1), Some(at.plus(4096)));
    assert_eq!(region.offset_of(at.plus(4096), MIB - 4096), Some(4096));
    assert_eq!(region.offset_of(at.plus(4096), MIB - 4095), None);
    assert_eq!(region.offset_of(Iova(at.0 - 1), 1), None);
    assert_eq!(region.offset_of(Iova(u64::MAX), 2), None);
}

#[test]
fn parts_are_zeroed_apart_and_given_back() {
    let region = Region::new(&options(MIB)).unwrap();
    let one = region.allocate(5000, 4096).unwrap();
    region.write(one.offset(), &[0xff; 5000]).unwrap();
    let two = region.allocate(100, 64).unwrap();
    assert!(two.offset() >= one.offset() + one.len() || two.offset() + two.len() <= one.offset());
    assert_eq!(one.iova(), region.iova_of(one.offset(), one.len()).unwrap());
    assert_eq!(one.as_ptr().addr(), region.address() + one.offset());
    let at = one.offset();
    drop(one);
    let again = region.allocate(5000, 4096).unwrap();
    assert_eq!(again.offset(), at);
    assert_eq!(in_file(&region, at, 5000), [0; 5000]);
    assert!(matches!(region.allocate(257 << 10, 64), Err(Error::MemoryUnavailable(_))));
    assert!(matches!(region.allocate(0, 64), Err(Error::Invalid(_))));
    assert!(matches!(region.allocate(64, 3), Err(Error::Invalid(_))));
    drop((two, again));
    assert_eq!(region.allocate(256 << 10, 64).unwrap().offset(), 0);
}

#[test]
fn rings_and_packets_have_their_shares() {
    for (size, rings) in [(MIB, 256 << 10), (16 * MIB, MIB), (64 * MIB, 4 * MIB)] {
        let region = Region::new(&options(size)).unwrap();
        let pool = region.pool();
        let jumbos = pool.jumbo_count() * pool.stride_of(1 << 30);
        assert_eq!(pool.count(), (size - rings - jumbos) / pool.stride());
        assert!(jumbos <= size / 16);
        assert_eq!(pool.jumbo_count() > 0, size > MIB);
        assert!(region.allocate(rings, 64).is_ok());
    }
}

#[test]
fn the_pool_is_one_for_all() {
    let region = Region::new(&options(MIB)).unwrap();
    let (one, two) = (region.pool(), region.pool());
    assert!(Arc::ptr_eq(&one, &two));
    let mut ids = Vec::new();
    one.take(&mut ids, 5);
    assert_eq!(two.free(), two.count() - 5);
    drop((one, two));
    assert_eq!(region.pool().free(), region.pool().count(), "whoever held buffers is gone");
}

#[test]
fn sizes_and_places_are_checked() {
    for size in [0, 1, MIB - 1, 512 << 10, 3 * MIB, usize::MAX] {
        assert!(invalid(&options(size)).contains("power of"), "{size}");
    }
    assert!(invalid(&RegionOptions { buffer_size: 0, ..options(MIB) }).contains("buffer size"));
    assert!(invalid(&RegionOptions { buffer_size: MIB, ..options(MIB) }).contains("buffer size"));
    assert!(invalid(&RegionOptions { node: Some(999), ..options(MIB) }).contains("999"));
    assert!(invalid(&huge(MIB)).contains("2 MiB hugepages"));
    let at = |address| Placement::At(Iova(address));
    assert!(invalid(&RegionOptions { placement: at(0), ..options(MIB) }).contains("RAM"));
    assert!(invalid(&RegionOptions { placement: at(1), ..options(MIB) }).contains("multiple"));
    let disk = RegionOptions { directory: Some("/proc".into()), ..options(MIB) };
    assert!(invalid(&disk).contains("hugetlbfs"));
}

#[test]
fn physical_memory_needs_hugepages() {
    let on_base = RegionOptions { placement: Placement::Physical, ..options(4 * MIB) };
    assert!(invalid(&on_base).contains("hugepages"));
    let small = RegionOptions { pages: PageRequest::Auto, ..on_base };
    assert!(invalid(&RegionOptions { size: MIB, ..small }).contains("multiple of 2 MiB"));
}

#[test]
fn more_than_the_machine_has_is_an_error_and_not_a_signal() {
    let text = unavailable(&options(1 << 38));
    assert!(text.contains("available") || text.contains("does not give"), "{text}");
    if !pages::overcommits(PageSize::Huge2M) {
        let text = unavailable(&huge(1 << 38));
        assert!(text.contains("131072 needed") && text.contains("sysctl"), "{text}");
    }
}

#[test]
fn memory_is_bound_to_a_node() {
    let Some(&node) = numa::online().first() else {
        let _ = writeln!(std::io::stderr(), "SKIPPED: this kernel reports no NUMA nodes");
        return;
    };
    let region = Region::new(&RegionOptions { node: Some(node), ..options(4 * MIB) }).unwrap();
    let maps = std::fs::read_to_string("/proc/self/numa_maps").unwrap();
    let line = maps.lines().find(|line| line.starts_with(&format!("{:x} ", region.address())));
    let line = line.unwrap();
    let pages = 4 * MIB / PageSize::Base.bytes();
    assert!(line.contains(&format!("bind:{node} ")), "{line}");
    assert!(line.contains(&format!("N{node}={pages}")), "{line}");
}

#[test]
fn a_named_file_can_be_opened_by_path_and_goes_with_the_region() {
    let directory = PathBuf::from("/dev/shm");
    let region =
        Region::new(&RegionOptions { directory: Some(directory), ..options(MIB) }).unwrap();
    let path = region.path().unwrap().to_owned();
    region.write(77, b"by path").unwrap();
    assert_eq!(std::fs::read(&path).unwrap()[77..84], *b"by path");
    drop(region);
    assert!(!path.exists());
}

#[test]
fn auto_takes_hugepages_while_there_are_some_and_says_when_not() {
    let Some(_pages) = Reserved::pages(4) else { return };
    let auto = |size| RegionOptions { pages: PageRequest::Auto, ..options(size) };
    let region = Region::new(&auto(8 * MIB)).unwrap();
    assert_eq!((region.page_size(), region.fallback()), (PageSize::Huge2M, None));
    let small = Region::new(&auto(MIB)).unwrap();
    assert_eq!((small.page_size(), small.fallback()), (PageSize::Base, None), "none divides it");
    // More than all together have, and no more than that: the machine has to have it.
    let all: usize = hugepages(None).unwrap().iter().map(|has| has.total * has.size.bytes()).sum();
    let second = Region::new(&auto((all + 1).next_power_of_two().max(8 * MIB))).unwrap();
    assert_eq!(second.page_size(), PageSize::Base);
    assert!(second.fallback().unwrap().contains("2 MiB hugepages"), "{:?}", second.fallback());
}

#[test]
fn hugepages_come_promised_filled_and_go_back() {
    let Some(_pages) = Reserved::pages(8) else { return };
    let free = || hugepages(None).unwrap().last().unwrap().free;
    let before = free();
    let region = Region::new(&huge(16 * MIB)).unwrap();
    assert_eq!((region.page_size(), before - free()), (PageSize::Huge2M, 8));
    region.write(16 * MIB - 1, &[9]).unwrap();
    assert_eq!(fcntl_get_seals(region.file().unwrap()).unwrap().bits() & 7, 7);
    drop(region);
    assert_eq!(free(), before);
}

#[test]
fn a_file_on_hugetlbfs_has_its_pages() {
    let Some(_pages) = Reserved::pages(8) else { return };
    let directory = std::env::temp_dir().join(format!("virtnic-huge-{}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    let mount = |arguments: &[&str]| {
        let done =
            std::process::Command::new(arguments[0]).args(&arguments[1..]).arg(&directory).status();
        done.is_ok_and(|status| status.success())
    };
    if mount(&["mount", "-t", "hugetlbfs", "-o", "pagesize=2M", "none"]) {
        let wanted = RegionOptions { directory: Some(directory.clone()), ..huge(8 * MIB) };
        let region = Region::new(&wanted).unwrap();
        assert_eq!(region.page_size(), PageSize::Huge2M);
        region.write(8 * MIB - 3, b"end").unwrap();
        let path = region.path().unwrap().to_owned();
        let other =
            Region::new(&RegionOptions { placement: Placement::Physical, ..wanted.clone() });
        if let Ok(other) = &other {
            assert_eq!(frames(other).unwrap()[0], other.iova().0);
        }
        drop((region, other));
        assert!(!path.exists());
        let base = RegionOptions { directory: Some(directory.clone()), ..options(8 * MIB) };
        assert!(invalid(&base).contains("2 MiB hugepages, not ordinary pages"));
        assert!(mount(&["umount"]));
    } else {
        let _ = writeln!(std::io::stderr(), "SKIPPED: hugetlbfs cannot be mounted");
    }
    std::fs::remove_dir(&directory).unwrap();
}

/// Capabilities belong to a thread: this one gives CAP_SYS_ADMIN up.
#[test]
fn physical_memory_without_the_privilege_is_a_permission_error() {
    use rustix::thread::{CapabilitySet, capabilities, set_capabilities};
    let refused = std::thread::spawn(|| {
        let mut sets = capabilities(None).unwrap();
        sets.effective.remove(CapabilitySet::SYS_ADMIN);
        set_capabilities(None, sets).unwrap();
        Region::new(&RegionOptions { placement: Placement::Physical, ..huge(4 * MIB) })
    });
    match refused.join().unwrap() {
        Err(Error::Permission(text)) => assert!(text.contains("CAP_SYS_ADMIN"), "{text}"),
        other => panic!("not refused: {other:?}"),
    }
}

#[test]
fn a_gigantic_page_is_contiguous_by_itself() {
    let Some(_page) = Reserved::of(PageSize::Huge1G, 1) else { return };
    let wanted = RegionOptions {
        pages: PageRequest::Auto,
        placement: Placement::Physical,
        ..options(1 << 30)
    };
    match Region::new(&wanted) {
        Ok(region) => {
            assert_eq!((region.page_size(), region.fallback()), (PageSize::Huge1G, None));
            let found = frames(&region).unwrap();
            assert_eq!(found.first(), Some(&region.iova().0));
            let last = region.iova().0 + (1 << 30) - PageSize::Base.bytes() as u64;
            assert_eq!(found.last(), Some(&last));
        }
        Err(Error::Permission(_)) => {}
        // The one page may lie where a PC has its BIOS.
        Err(error) => assert!(error.to_string().contains("in a row"), "{error}"),
    }
}

#[test]
fn physical_memory_is_contiguous_frame_by_frame() {
    let Some(_pages) = Reserved::pages(1024) else { return };
    let before = own_hugepages();
    // A machine that has run for long may have no 32 hugepages in a row; two it has.
    let sizes = [64, 32, 16, 8, 4].map(|mib| mib * MIB);
    let started = Instant::now();
    let found = sizes.into_iter().find_map(|size| {
        match Region::new(&RegionOptions { placement: Placement::Physical, ..huge(size) }) {
            Err(Error::MemoryUnavailable(text)) => {
                let _ = writeln!(std::io::stderr(), "{} MiB: {text}", size / MIB);
                None
            }
            other => Some(other),
        }
    });
    let region = match found {
        Some(Err(Error::Permission(text))) => {
            assert!(text.contains("CAP_SYS_ADMIN"));
            let _ = writeln!(std::io::stderr(), "SKIPPED: {text}");
            return;
        }
        other => other.unwrap().unwrap(),
    };
    let size = region.size();
    println!("{} MiB of contiguous memory in {:?}", size / MIB, started.elapsed());
    assert_eq!(own_hugepages() - before, size / (2 * MIB), "the others are given back");
    let Iova(start) = region.iova();
    assert_eq!(start % size as u64, 0);
    let expected: Vec<u64> = (0..size as u64).step_by(PageSize::Base.bytes()).collect();
    let found: Vec<u64> = frames(&region).unwrap().iter().map(|frame| frame - start).collect();
    assert_eq!(found, expected);
    region.write(size - 1, &[1]).unwrap();
    drop(region);
    assert_eq!(own_hugepages(), before);
}

/// Hugepages of 2 MiB that this process has mapped. Those of the whole machine are
/// everybody's.
fn own_hugepages() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("HugetlbPages:")).unwrap();
    let kib: usize = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    kib / 2048
}

#[test]
fn physical_memory_is_found_while_others_search_and_take() {
    let Some(_pages) = Reserved::pages(512) else { return };
    if physical::check_privilege().is_err() {
        return;
    }
    // Two pages in a row: a machine that has run for long may have no more.
    let wanted = RegionOptions { placement: Placement::Physical, ..huge(4 * MIB) };
    let found = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for searcher in 0..3 {
            let (wanted, found) = (&wanted, &found);
            scope.spawn(move || {
                for _ in 0..4 {
                    // One takes and returns pages without asking whose turn it is.
                    let region = if searcher == 0 {
                        Region::new(&huge(16 * MIB))
                    } else {
                        Region::new(wanted)
                    };
                    match region {
                        Ok(region) if searcher > 0 => {
                            let start = region.iova().0;
                            let all = frames(&region).unwrap();
                            let contiguous = all.iter().enumerate().all(|(index, &frame)| {
                                frame == start + (index * PageSize::Base.bytes()) as u64
                            });
                            assert!(contiguous);
                            found.fetch_add(1, Ordering::Relaxed);
                        }
                        Ok(_) => {}
                        // Everything may be held by another at that moment.
                        Err(Error::MemoryUnavailable(_)) => {}
                        Err(error) => panic!("{error}"),
                    }
                }
            });
        }
    });
    assert!(found.into_inner() > 0, "none of the searchers found two pages in a row");
}
