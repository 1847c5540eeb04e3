//! NUMA nodes: enumeration, and binding memory to one (`mbind(2)`).
//!
//! The binding is strict (`MPOL_BIND`): if a node has too little memory, prefaulting fails instead
//! of silently using another node. For hugepages the policy belongs to our mapping, and so, as
//! every page is prefaulted through it, to the existing pages. For ordinary pages the kernel keeps
//! it with the file.

use crate::{Error, Result};
use std::ffi::{c_long, c_void};
use std::fs;
use std::io;
use std::path::Path;

/// The system call number of `mbind`, if known.
const SYS_MBIND: Option<c_long> = if cfg!(target_arch = "x86_64") {
    Some(237)
} else if cfg!(any(target_arch = "aarch64", target_arch = "riscv64")) {
    Some(235)
} else {
    None
};

/// Strict binding to the given nodes (`linux/mempolicy.h`).
const MPOL_BIND: c_long = 2;

/// Number of nodes in a mask; the kernel's own limit is 1,024.
const MAX_NODES: usize = 1024;

unsafe extern "C" {
    // libc's wrapper: rustix has no `mbind`, and a single call does not justify a crate.
    fn syscall(number: c_long, ...) -> c_long;
}

/// The nodes that are online; empty if the kernel has no NUMA support.
pub(super) fn online() -> Vec<u32> {
    online_in(Path::new("/sys"))
}

fn online_in(sys: &Path) -> Vec<u32> {
    let text = fs::read_to_string(sys.join("devices/system/node/online")).unwrap_or_default();
    parse_list(text.trim())
}

/// The kernel's list format: `0-1,4`.
fn parse_list(text: &str) -> Vec<u32> {
    let mut nodes = Vec::new();
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        if let (Ok(first), Ok(last)) = (first.parse::<u32>(), last.parse::<u32>()) {
            nodes.extend(first..=last.min(first.saturating_add(MAX_NODES as u32)));
        }
    }
    nodes
}

/// Whether the node exists.
pub(super) fn check(sys: &Path, node: u32) -> Result<()> {
    let nodes = online_in(sys);
    if nodes.contains(&node) {
        return Ok(());
    }
    let found = if nodes.is_empty() {
        "this kernel reports no NUMA nodes; pass node=None".to_owned()
    } else {
        let list: Vec<_> = nodes.iter().map(u32::to_string).collect();
        format!("this machine has {}", list.join(", "))
    };
    Err(Error::Invalid(format!("there is no NUMA node {node}: {found}")))
}

/// Binds the pages that will be faulted in at `address` to a node.
///
/// # Safety
/// The range is a mapping of the caller's.
pub(super) unsafe fn bind(address: *mut c_void, len: usize, node: u32) -> Result<()> {
    const BITS: usize = c_long::BITS as usize;
    let index = node as usize;
    let Some(number) = SYS_MBIND.filter(|_| index < MAX_NODES) else {
        return Err(Error::Invalid(format!(
            "cannot bind memory to NUMA node {node} on this architecture; pass node=None"
        )));
    };
    let mut mask: [c_long; MAX_NODES / BITS] = [0; MAX_NODES / BITS];
    mask[index / BITS] = 1 << (index % BITS);
    // The kernel reads one bit less than `maxnode` (set_mempolicy(2), BUGS).
    let maxnode = MAX_NODES as c_long + 1;
    let mask = mask.as_ptr();
    //  SAFETY: `mbind` reads the mask, which outlives the call, and changes only the placement of
    //  future
    // pages of the range, which is the caller's mapping.
    let result = unsafe { syscall(number, address, len, MPOL_BIND, mask, maxnode, 0 as c_long) };
    if result == 0 {
        return Ok(());
    }
    let cause = io::Error::last_os_error();
    let what = format!("cannot bind memory to NUMA node {node} (mbind: {cause})");
    Err(match cause.kind() {
        io::ErrorKind::PermissionDenied => Error::Permission(format!(
            "{what}; a container needs CAP_SYS_NICE or a seccomp profile that allows mbind, \
             or pass node=None"
        )),
        _ => Error::Invalid(format!("{what}; the node may have no memory, or pass node=None")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_lists_are_read() {
        assert_eq!(parse_list("0"), [0]);
        assert_eq!(parse_list("0-2,5,8-9"), [0, 1, 2, 5, 8, 9]);
        assert!(parse_list("").is_empty());
        assert!(parse_list("x-y").is_empty());
    }
}
