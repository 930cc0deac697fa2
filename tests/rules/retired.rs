//! Words: the glossary has each term once, and retired words do not come back.
//!
//! `docs/glossary.md` has one word for each thing. A retired word was a second word for a thing, or
//! a wrong one. If it came back, a reader would look for a difference that does not exist.

use std::fs;
use std::path::Path;

/// Retired words, in any letter case, each with the right word.
const RETIRED: &[(&str, &str)] = &[
    (
        "given back",
        "a page in the balloon is ballooned, one that madvise frees is discarded",
    ),
    (
        "given-back",
        "a page in the balloon is ballooned, one that madvise frees is discarded",
    ),
    (
        "given_back",
        "a page in the balloon is ballooned, one that madvise frees is discarded",
    ),
    (
        "gave back",
        "a page in the balloon is ballooned, one that madvise frees is discarded",
    ),
    (
        "mark_discarded",
        "brant_guest_mark_ballooned, Memory::mark_ballooned",
    ),
    (
        "mark_taken",
        "brant_guest_clear_ballooned, Memory::clear_ballooned; taken is a page out of pending",
    ),
    (
        "skipped_pages",
        "ballooned_pages; what is skipped is a record or a test",
    ),
    ("broken_pages", "ballooned_written_pages"),
    ("skip_returned", "skip_ballooned"),
    (
        "brant_returned",
        "BRANT_BALLOONED_SKIP, BRANT_BALLOONED_SEND",
    ),
    (
        "brant_hint_",
        "brant_tracker_begin_hints, brant_tracker_hint_free, brant_tracker_end_hints",
    ),
    ("brant_unblock", "brant_blocker_free; a block is RAM"),
    (
        "source::connected",
        "AcceptFrom::Connected; a source is a side",
    ),
    (
        "source::listener",
        "AcceptFrom::Listener; a source is a side",
    ),
    ("target::endpoint", "ConnectTo::Endpoint"),
    ("bits::shared", "bits::ConcurrentBitmap"),
];

/// The directories and files that are searched, below the crate's root.
const PLACES: &[&str] = &[
    "README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    "src",
    "include",
    "header",
    "docs",
    "c-tests",
    "examples",
    "bindings",
    "benches",
    "tests",
];

/// Each retired word in a text, by line.
fn found(path: &str, text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let line = line.to_lowercase();
        for (word, instead) in RETIRED {
            if line.contains(word) {
                found.push(format!("{path}:{}: \"{word}\": {instead}", number + 1));
            }
        }
    }
    found
}

/// Calls `f` with the path and the text of a file, or of each text file below a directory.
fn each_text(at: &Path, f: &mut impl FnMut(&str, &str)) {
    if at.is_file() {
        f(&at.display().to_string(), &fs::read_to_string(at).unwrap());
        return;
    }
    let mut entries: Vec<_> = fs::read_dir(at)
        .unwrap()
        .map(|e| e.unwrap().path())
        .collect();
    entries.sort();
    for path in entries {
        let name = path.file_name().unwrap().to_string_lossy();
        if path.is_dir() {
            // Build directories and this test's own directory are left out.
            if name != "target"
                && name != "rules"
                && name != "__pycache__"
                && !name.starts_with('.')
            {
                each_text(&path, f);
            }
            continue;
        }
        let ends = [
            ".rs", ".h", ".in", ".c", ".md", ".py", ".pyi", ".abi", ".map", ".S",
        ];
        if ends.iter().any(|end| name.ends_with(end)) {
            f(
                &path.display().to_string(),
                &fs::read_to_string(&path).unwrap(),
            );
        }
    }
}

#[test]
fn no_retired_word_comes_back() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let (mut wrong, mut files) = (Vec::new(), 0);
    for place in PLACES {
        each_text(&root.join(place), &mut |path, text| {
            files += 1;
            wrong.extend(found(path, text));
        });
    }
    assert!(files > 300, "only {files} files were looked at");
    assert!(wrong.is_empty(), "\n{}\n", wrong.join("\n"));
}

#[test]
fn a_retired_word_is_complained_of_with_its_line_and_the_right_word() {
    let text = "first\nA page that the guest Gave Back.\nbrant_hint_free();\nreturned\n";
    let found = found("x.c", text);
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(found[0].starts_with("x.c:2: \"gave back\": ") && found[0].contains("ballooned"));
    assert!(found[1].starts_with("x.c:3: ") && found[1].contains("brant_tracker_hint_free"));
}

#[test]
fn a_term_stands_once_in_the_glossary_and_in_order() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/glossary.md");
    let text = fs::read_to_string(path).unwrap();
    let rows = text.lines().filter_map(|line| line.strip_prefix("| **"));
    let terms: Vec<String> = rows
        .map(|row| row.split("**").next().unwrap().to_lowercase())
        .collect();
    assert!(terms.len() > 50, "{terms:?}");
    for pair in terms.windows(2) {
        assert!(pair[0] < pair[1], "{} before {}", pair[0], pair[1]);
    }
}
