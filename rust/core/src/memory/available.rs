//! How much ordinary memory is available before the out-of-memory killer acts.
//!
//! Prefaulting more ordinary pages than available does not fail: the kernel kills a process
//! instead. So this is checked first, for the machine (or node) and for every memory cgroup of the
//! process.

use super::cgroup;
use std::fs;

/// Bytes available now, if the kernel says.
pub(super) fn available(node: Option<u32>) -> Option<u64> {
    let machine = match node {
        None => {
            fs::read_to_string("/proc/meminfo").ok().and_then(|text| field(&text, "MemAvailable:"))
        }
        Some(node) => fs::read_to_string(format!("/sys/devices/system/node/node{node}/meminfo"))
            .ok()
            .and_then(|text| Some(field(&text, "MemFree:")? + field(&text, "Inactive(file):")?)),
    };
    machine.into_iter().chain(cgroup::available()).min()
}

/// A line of `meminfo` in bytes: `[Node 0] MemFree:  1234 kB`.
fn field(text: &str, name: &str) -> Option<u64> {
    let rest = text.lines().find_map(|line| line.split_once(name))?.1;
    rest.split_whitespace().next()?.parse::<u64>().ok().map(|kib| kib << 10)
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
}
