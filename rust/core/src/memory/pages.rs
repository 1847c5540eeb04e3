//! Page sizes, and how many hugepages the machine has.

use super::Placement;
use crate::Result;
use std::fs;
use std::path::{Path, PathBuf};

/// A page size that can back a region.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PageSize {
    /// The ordinary page.
    Base,
    /// 2 MiB.
    Huge2M,
    /// 1 GiB.
    Huge1G,
}

impl PageSize {
    /// The sizes of hugepage, largest first.
    pub(super) const HUGE: [Self; 2] = [Self::Huge1G, Self::Huge2M];

    /// The size in bytes.
    pub fn bytes(self) -> usize {
        match self {
            Self::Base => rustix::param::page_size(),
            Self::Huge2M => 2 << 20,
            Self::Huge1G => 1 << 30,
        }
    }

    /// The page size of `bytes` bytes, if it is one of these.
    pub fn from_bytes(bytes: usize) -> Option<Self> {
        [Self::Base, Self::Huge2M, Self::Huge1G].into_iter().find(|page| page.bytes() == bytes)
    }

    /// Name of the pages in messages.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Base => "ordinary pages",
            Self::Huge2M => "2 MiB hugepages",
            Self::Huge1G => "1 GiB hugepages",
        }
    }

    /// Its folder under `/sys/.../hugepages`.
    fn folder(self) -> String {
        format!("hugepages-{}kB", self.bytes() >> 10)
    }
}

/// The requested pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PageRequest {
    /// The largest size with free pages that divides the size; a fallback is a warning.
    Auto,
    /// This size, or an error.
    Exactly(PageSize),
}

/// How many hugepages of a size the machine (or one NUMA node) has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HugepageCount {
    /// The page size.
    pub size: PageSize,
    /// Total reserved for hugetlb (`nr_hugepages`).
    pub total: usize,
    /// Of these, not in use (`free_hugepages`) and not promised (`resv_hugepages`). The kernel
    /// counts promises only for the machine, so a node never shows more than the machine has left.
    pub free: usize,
}

/// The hugepages of the machine or of one NUMA node according to `/sys`; largest size first. Sizes
/// that the kernel does not support are missing.
///
/// # Errors
/// [`crate::Error::Invalid`] when the node does not exist.
pub fn hugepages(node: Option<u32>) -> Result<Vec<HugepageCount>> {
    hugepages_in(Path::new("/sys"), node)
}

fn hugepages_in(sys: &Path, node: Option<u32>) -> Result<Vec<HugepageCount>> {
    let machine = sys.join("kernel/mm/hugepages");
    let folder = match node {
        None => machine.clone(),
        Some(node) => {
            super::numa::check(sys, node)?;
            sys.join(format!("devices/system/node/node{node}/hugepages"))
        }
    };
    let count = |size: PageSize| -> Option<HugepageCount> {
        let of = |folder: &Path, file| number(&folder.join(size.folder()).join(file));
        let promised = of(&machine, "resv_hugepages").unwrap_or(0);
        let free = of(&machine, "free_hugepages")?.saturating_sub(promised);
        Some(HugepageCount {
            size,
            total: of(&folder, "nr_hugepages")?,
            free: free.min(of(&folder, "free_hugepages")?),
        })
    };
    Ok(PageSize::HUGE.into_iter().filter_map(count).collect())
}

fn number(path: &PathBuf) -> Option<usize> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// Whether the kernel may create hugepages of this size on demand (`nr_overcommit_hugepages`), so
/// that the count of free ones is not conclusive.
pub(super) fn overcommits(size: PageSize) -> bool {
    let folder = Path::new("/sys/kernel/mm/hugepages").join(size.folder());
    number(&folder.join("nr_overcommit_hugepages")).is_some_and(|count| count > 0)
}

/// The count of one size for the machine or a node; zero of zero if the kernel has none.
pub(super) fn count(size: PageSize, node: Option<u32>) -> Result<HugepageCount> {
    let found = hugepages(node)?.into_iter().find(|count| count.size == size);
    Ok(found.unwrap_or(HugepageCount { size, total: 0, free: 0 }))
}

/// The error for a lack of hugepages for `bytes`, with a remedy.
pub(super) fn shortage(
    have: HugepageCount,
    bytes: usize,
    node: Option<u32>,
    placement: Placement,
) -> String {
    let HugepageCount { size, total, free } = have;
    let needed = bytes / size.bytes();
    let name = size.name();
    let place = node.map(|node| format!(" on NUMA node {node}")).unwrap_or_default();
    let found = if free == 0 {
        format!("no free {name}{place} (0 of {total}, {needed} needed)")
    } else {
        format!("not enough free {name}{place} ({free} of {total}, {needed} needed)")
    };
    let wanted = total + needed.saturating_sub(free).max(1);
    let folder = size.folder();
    let reserve = match (node, size) {
        (Some(node), _) => format!(
            "echo {wanted} > /sys/devices/system/node/node{node}/hugepages/{folder}/nr_hugepages"
        ),
        (None, PageSize::Huge2M) => format!("sysctl vm.nr_hugepages={wanted}"),
        (None, _) => format!("echo {wanted} > /sys/kernel/mm/hugepages/{folder}/nr_hugepages"),
    };
    let instead = match placement {
        Placement::Physical => "use iova=\"va\", which needs no hugepages",
        _ => "pass hugepages=None for ordinary pages",
    };
    format!("{found}; reserve some with `{reserve}`, or {instead}")
}

/// Formats a size: `64 MiB`.
pub(super) fn human(bytes: u64) -> String {
    const UNITS: [(u32, &str); 4] = [(40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")];
    UNITS.into_iter().find(|(shift, _)| bytes != 0 && bytes.is_multiple_of(1 << shift)).map_or_else(
        || format!("{bytes} bytes"),
        |(shift, unit)| format!("{} {unit}", bytes >> shift),
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::Error;

    /// A `/sys` with one size on the machine and two nodes.
    struct FakeSys(PathBuf);

    impl FakeSys {
        fn new(name: &str) -> Self {
            let root = std::env::temp_dir().join(format!("virtnic-{name}-{}", std::process::id()));
            let sys = Self(root);
            sys.put(
                "kernel/mm/hugepages/hugepages-2048kB",
                &[("nr", 64), ("free", 40), ("resv", 8)],
            );
            sys.put(
                "devices/system/node/node0/hugepages/hugepages-2048kB",
                &[("nr", 32), ("free", 4)],
            );
            sys.put(
                "devices/system/node/node1/hugepages/hugepages-2048kB",
                &[("nr", 32), ("free", 36)],
            );
            fs::write(sys.0.join("devices/system/node/online"), "0-1\n").unwrap();
            sys
        }
        fn put(&self, folder: &str, counts: &[(&str, usize)]) {
            let folder = self.0.join(folder);
            fs::create_dir_all(&folder).unwrap();
            for (name, value) in counts {
                fs::write(folder.join(format!("{name}_hugepages")), format!("{value}\n")).unwrap();
            }
        }
    }

    impl Drop for FakeSys {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn counts_leave_out_what_is_promised() {
        let sys = FakeSys::new("counts");
        let size = PageSize::Huge2M;
        let of = |node| hugepages_in(&sys.0, node).unwrap();
        assert_eq!(of(None), [HugepageCount { size, total: 64, free: 32 }]);
        assert_eq!(of(Some(0)), [HugepageCount { size, total: 32, free: 4 }]);
        assert_eq!(of(Some(1)), [HugepageCount { size, total: 32, free: 32 }]);
    }

    #[test]
    fn a_node_that_is_not_there_is_named() {
        let sys = FakeSys::new("node");
        let error = hugepages_in(&sys.0, Some(7)).unwrap_err();
        assert!(
            matches!(&error, Error::Invalid(m) if m.contains('7') && m.contains("0, 1")),
            "{error}"
        );
        assert!(hugepages(Some(4000)).is_err());
    }

    #[test]
    fn this_machine_reports_its_sizes_largest_first() {
        let found = hugepages(None).unwrap();
        assert!(found.is_sorted_by(|a, b| a.size > b.size), "{found:?}");
        assert!(found.iter().all(|count| count.free <= count.total), "{found:?}");
    }

    #[test]
    fn shortage_says_what_to_type() {
        let have = |total, free| HugepageCount { size: PageSize::Huge2M, total, free };
        let text = shortage(have(0, 0), 256 << 20, None, Placement::Virtual);
        assert!(text.contains("(0 of 0, 128 needed)"), "{text}");
        assert!(text.contains("sysctl vm.nr_hugepages=128"), "{text}");
        let text = shortage(have(100, 28), 256 << 20, Some(1), Placement::Physical);
        assert!(text.contains("echo 200 > /sys/devices/system/node/node1"), "{text}");
        assert!(text.contains("iova=\"va\"") && !text.contains("hugepages=None"), "{text}");
    }

    #[test]
    fn sizes_have_names() {
        assert_eq!(human(64 << 20), "64 MiB");
        assert_eq!(human(3 << 30), "3 GiB");
        assert_eq!(human(1000), "1000 bytes");
        assert_eq!(PageSize::from_bytes(2 << 20), Some(PageSize::Huge2M));
        assert_eq!(PageSize::from_bytes(12345), None);
    }
}
