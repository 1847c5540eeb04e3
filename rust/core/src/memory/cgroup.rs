//! Memory left in the cgroups of the process, version 1 or 2.
//!
//! A cgroup is located by two files: `/proc/self/cgroup` has its path in the hierarchy, and
//! `/proc/self/mountinfo` where the hierarchy is mounted, and which part (cgroups(7)). In a
//! container that part is often only our own cgroup, and the path begins outside it.

use std::fs;
use std::path::{Path, PathBuf};

/// File names of a version. "No limit" is a word or an impossibly large number; a group without a
/// file has no such limit.
struct Version {
    /// The name of the hierarchy among the controllers of `/proc/self/cgroup`.
    controller: &'static str,
    /// Beyond the last one the kernel kills, beyond the others it throttles.
    limits: &'static [&'static str],
    used: &'static str,
    /// From `memory.stat`: file cache, which is dropped first.
    cache: &'static str,
}

const V1: Version = Version {
    controller: "memory",
    limits: &["memory.limit_in_bytes"],
    used: "memory.usage_in_bytes",
    cache: "total_inactive_file ",
};
const V2: Version = Version {
    controller: "",
    limits: &["memory.high", "memory.max"],
    used: "memory.current",
    cache: "inactive_file ",
};

/// The least memory left in our cgroups and their ancestors.
pub(super) fn available() -> Option<u64> {
    let membership = fs::read_to_string("/proc/self/cgroup").ok()?;
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    least(&membership, &mounts)
}

fn least(membership: &str, mounts: &str) -> Option<u64> {
    mounts
        .lines()
        .filter_map(Mount::parse)
        .filter_map(|mount| {
            let path = membership.lines().find_map(|line| mount.membership(line))?;
            mount.least(path)
        })
        .min()
}

/// A mounted hierarchy that may limit memory.
struct Mount {
    version: &'static Version,
    /// Which part of the hierarchy is mounted, and where.
    root: PathBuf,
    point: PathBuf,
}

impl Mount {
    /// `36 35 98:0 ROOT POINT OPTIONS … - TYPE SOURCE OPTIONS` (proc_pid_mountinfo(5)).
    fn parse(line: &str) -> Option<Self> {
        let (mount, system) = line.split_once(" - ")?;
        let mut system = system.split(' ');
        let version = match (system.next()?, system.nth(1)?) {
            ("cgroup2", _) => &V2,
            ("cgroup", options) if options.split(',').any(|name| name == "memory") => &V1,
            _ => return None,
        };
        let mut mount = mount.split(' ').skip(3);
        let (root, point) = (mount.next()?.into(), mount.next()?.into());
        Some(Self { version, root, point })
    }

    /// The path in a line of `/proc/self/cgroup`, `4:cpu,memory:/a/b` or `0::/a/b`, if it belongs
    /// to this hierarchy.
    fn membership<'a>(&self, line: &'a str) -> Option<&'a str> {
        let (_number, rest) = line.split_once(':')?;
        let (controllers, path) = rest.split_once(':')?;
        controllers.split(',').any(|name| name == self.version.controller).then_some(path)
    }

    fn least(&self, path: &str) -> Option<u64> {
        // A path outside the mounted part: use the nearest visible cgroup.
        let below = Path::new(path).strip_prefix(&self.root).unwrap_or(Path::new(""));
        let mut folder = self.point.join(below);
        let mut least = None;
        while folder.starts_with(&self.point) {
            least = self.version.left(&folder).into_iter().chain(least).min();
            if !folder.pop() {
                break;
            }
        }
        least
    }
}

impl Version {
    /// Memory left in one cgroup: its limit minus its use, not counting file cache that can be
    /// dropped.
    fn left(&self, folder: &Path) -> Option<u64> {
        let number =
            |file: &str| fs::read_to_string(folder.join(file)).ok()?.trim().parse::<u64>().ok();
        let limit = self.limits.iter().filter_map(|&file| number(file)).min()?;
        let used = number(self.used)?;
        let stat = fs::read_to_string(folder.join("memory.stat")).unwrap_or_default();
        let cache = stat
            .lines()
            .find_map(|line| line.strip_prefix(self.cache))
            .and_then(|value| value.parse::<u64>().ok())
            .unwrap_or(0);
        Some(limit.saturating_sub(used.saturating_sub(cache)))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// A hierarchy in a directory, as it would be mounted.
    struct Hierarchy(PathBuf);

    impl Hierarchy {
        fn new(name: &str) -> Self {
            let name = format!("virtnic-cgroup-{name}-{}", std::process::id());
            Self(std::env::temp_dir().join(name))
        }

        fn put(&self, group: &str, files: &[(&str, &str)]) {
            let folder = self.0.join(group);
            fs::create_dir_all(&folder).unwrap();
            for (name, text) in files {
                fs::write(folder.join(name), text).unwrap();
            }
        }

        fn mounted(&self, root: &str, system: &str) -> String {
            let tmpfs = "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw";
            format!(
                "{tmpfs}\n32 31 0:29 {root} {} rw,nosuid shared:1 - {system}\n",
                self.0.display()
            )
        }
    }

    impl Drop for Hierarchy {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn the_tightest_of_version_2_counts() {
        let made = Hierarchy::new("v2");
        let put = |group: &str, max: &str, current: &str, cache: &str| {
            let stat = format!("anon 1\ninactive_file {cache}\n");
            let files =
                [("memory.max", max), ("memory.current", current), ("memory.stat", stat.as_str())];
            made.put(group, &files);
        };
        put("a", "1000\n", "900\n", "0");
        put("a/b", "5000\n", "700\n", "200");
        put("c", "max\n", "700\n", "0");
        let mounts = made.mounted("/", "cgroup2 cgroup2 rw");
        let of = |membership: &str| least(membership, &mounts);
        assert_eq!(of("1:name=x:/\n0::/a/b\n"), Some(100));
        assert_eq!(of("0::/c\n"), None);
        assert_eq!(of("3:memory:/a\n"), None);
        put("a", "9000\n", "900\n", "0");
        assert_eq!(of("0::/a/b\n"), Some(4500));
        made.put("a/b", &[("memory.high", "1500\n")]);
        assert_eq!(of("0::/a/b\n"), Some(1000));
    }

    #[test]
    fn version_1_has_its_own_names() {
        let made = Hierarchy::new("v1");
        let stat = "inactive_file 7\ntotal_inactive_file 300\n";
        let put = |group: &str, limit: &str| {
            let files = [
                ("memory.limit_in_bytes", limit),
                ("memory.usage_in_bytes", "800\n"),
                ("memory.stat", stat),
            ];
            made.put(group, &files);
        };
        put("", "9223372036854771712\n");
        put("docker/1", "1000\n");
        let system = "cgroup cgroup rw,cpu,memory";
        let of = |membership: &str, root: &str| least(membership, &made.mounted(root, system));
        assert_eq!(of("4:cpu,memory:/docker/1\n0::/docker/1\n", "/"), Some(500));
        assert_eq!(of("4:pids:/docker/1\n", "/"), None);
        assert_eq!(
            least("4:memory:/docker/1\n", &made.mounted("/", "cgroup cgroup rw,pids")),
            None
        );
        // A container sees its own cgroup alone, at the top; its path is the host's.
        put("", "2000\n");
        assert_eq!(of("4:memory:/docker/1\n", "/docker/1"), Some(1500));
        assert_eq!(of("4:memory:/../elsewhere\n", "/docker"), Some(1500));
    }
}
