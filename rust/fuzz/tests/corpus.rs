//! Replays the corpus: every input that was ever interesting, on any toolchain.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use virtnic_fuzz::TARGETS;

fn corpus() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus")
}

fn names(directory: &Path) -> BTreeSet<String> {
    let entries = std::fs::read_dir(directory).unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

#[test]
fn every_target_has_a_corpus_and_every_corpus_a_target() {
    let mut targets: BTreeSet<String> = TARGETS.iter().map(|(name, _)| (*name).into()).collect();
    // Its code is Python's: tests/failure/test_pci_fuzz.py.
    targets.insert("pci_capabilities".to_owned());
    assert_eq!(names(&corpus()), targets);
    for target in targets {
        let count = names(&corpus().join(&target)).len();
        assert!(count >= 5, "{target} has {count} inputs");
    }
}

/// One target after the other: some count this process's descriptors.
#[test]
fn every_input_is_replayed() {
    for (name, target) in TARGETS {
        target(&[]);
        let directory = corpus().join(name);
        for file in names(&directory) {
            let data = std::fs::read(directory.join(&file)).unwrap();
            // A failure's output ends with the input that made it.
            println!("{name}/{file}");
            target(&data);
        }
    }
}
