//! How much ordinary memory can be had without the out-of-memory killer.
//!
//! Prefaulting ordinary pages past what there is does not fail: the kernel kills
//! a process instead. So the question is asked first: of the machine (or node),
//! and of every memory cgroup that we are in.

use std::fs;
use std::path::Path;

/// Bytes that can be had now, where the kernel says.
pub(super) fn available(node: Option<u32>) -> Option<u64> {
    let machine = match node {
        None => {
            fs::read_to_string("/proc/meminfo").ok().and_then(|text| field(&text, "MemAvailable:"))
        }
        Some(node) => fs::read_to_string(format!("/sys/devices/system/node/node{node}/meminfo"))
            .ok()
            .and_then(|text| Some(field(&text, "MemFree:")? + field(&text, "Inactive(file):")?)),
    };
    let group = fs::read_to_string("/proc/self/cgroup")
        .ok()
        .and_then(|text| cgroup(Path::new("/sys/fs/cgroup"), &text));
    machine.into_iter().chain(group).min()
}

/// A line of `meminfo` in bytes: `[Node 0] MemFree:  1234 kB`.
fn field(text: &str, name: &str) -> Option<u64> {
    let rest = text.lines().find_map(|line| line.split_once(name))?.1;
    rest.split_whitespace().next()?.parse::<u64>().ok().map(|kib| kib << 10)
}

/// The least that is left in our cgroup and those above it (version 2).
fn cgroup(root: &Path, membership: &str) -> Option<u64> {
    let path = membership.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let mut folder = root.join(path);
    let mut least = None;
    while folder.starts_with(root) {
        least = left(&folder).into_iter().chain(least).min();
        if !folder.pop() {
            break;
        }
    }
    least
}

/// What one cgroup has left: its limit less its use, the file cache that it can
/// drop not counted as use.
fn left(folder: &Path) -> Option<u64> {
    let number = |file| fs::read_to_string(folder.join(file)).ok()?.trim().parse::<u64>().ok();
    let limit = number("memory.max")?;
    let used = number("memory.current")?;
    let stat = fs::read_to_string(folder.join("memory.stat")).unwrap_or_default();
    let cache = stat
        .lines()
        .find_map(|line| line.strip_prefix("inactive_file "))
        .and_then(|value| value.parse::<u64>().ok())
        .unwrap_or(0);
    Some(limit.saturating_sub(used.saturating_sub(cache)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn meminfo_of_machine_and_node() {
        assert_eq!(field("MemTotal: 9 kB\nMemAvailable:   4 kB\n", "MemAvailable:"), Some(4096));
        assert_eq!(field("Node 0 MemFree:  2 kB\n", "MemFree:"), Some(2048));
        assert_eq!(field("", "MemFree:"), None);
        assert!(available(None).unwrap() > 0);
    }

    #[test]
    fn the_tightest_cgroup_counts() {
        let root = std::env::temp_dir().join(format!("virtnic-cgroup-{}", std::process::id()));
        let put = |folder: &str, max: &str, current: &str, cache: &str| {
            let folder = root.join(folder);
            fs::create_dir_all(&folder).unwrap();
            fs::write(folder.join("memory.max"), max).unwrap();
            fs::write(folder.join("memory.current"), current).unwrap();
            fs::write(folder.join("memory.stat"), format!("anon 1\ninactive_file {cache}\n"))
                .unwrap();
        };
        put("a", "1000\n", "900\n", "0");
        put("a/b", "5000\n", "700\n", "200");
        put("c", "max\n", "700\n", "0");
        let of = |membership: &str| cgroup(&root, membership);
        assert_eq!(of("1:name=x:/\n0::/a/b\n"), Some(100));
        assert_eq!(of("0::/c\n"), None);
        assert_eq!(of("3:memory:/old\n"), None);
        put("a", "9000\n", "900\n", "0");
        assert_eq!(of("0::/a/b\n"), Some(4500));
        fs::remove_dir_all(&root).unwrap();
    }
}
