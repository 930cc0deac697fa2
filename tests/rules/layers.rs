//! The layers of brant: no import goes up, and no two files import each other.

use crate::graph::circles;
use crate::imports::{graph, Import, Sources};
use std::collections::BTreeMap;

/// Each line is a layer: its modules, and what they are. A module uses modules of lower lines.
/// `docs/architecture.md` has the same words.
const LAYERS: &str = "\
capi                        the C interface: checks, converts, calls down
migrate, snapshot           what moves, when, and who runs the guest; memory at one instant
rate, kvmstate              how fast a guest dirties, without migrating it; the state of vCPUs and VM
image                       memory in a file: an outlet of a walk, and its reader
walk                        in what order pages go, and where to
dirty                       who wrote to memory: a log for each kind of writer, and the tracker
memory                      blocks, map, what a page holds, the balloon
wire, channel               records, bytes in and bytes out; connections
bits, page                  bitmaps; what is inside a page
device                      devices whose state is a stream: VFIO, vhost-user back ends
vmm                         what is asked of the VMM
gate                        threads of the VMM that stand still at a pause
runtime                     threads and their signal masks, cancel, deadlines, grace periods
sys                         every system call and ioctl, one file a subsystem
fallible                    allocations that may fail
units, error                pages and bytes as types; what went wrong
";

/// Known imports that go up: from, to, and why. Remove a line when you have mended its import.
const UPWARDS: &[(&str, &str, &str)] = &[];

/// Known files that import each other, and why. Remove a line when you have opened its circle.
const CIRCLES: &[(&[&str], &str)] = &[];

/// The layer of each module, counted from the top.
fn layers() -> BTreeMap<&'static str, usize> {
    let mut layers = BTreeMap::new();
    for (layer, line) in LAYERS.lines().enumerate() {
        let modules = line.split("  ").next().unwrap();
        for module in modules.split(", ") {
            assert!(
                layers.insert(module, layer).is_none(),
                "{module} is there twice"
            );
        }
    }
    layers
}

/// `migrate` of `migrate/outgoing/mod.rs`, `error` of `error.rs`.
fn module_of(file: &str) -> &str {
    file.split('/').next().unwrap().trim_end_matches(".rs")
}

/// The imports that go up or sideways.
fn upwards(imports: &[Import]) -> Vec<&Import> {
    let layers = layers();
    let layer = |file: &str| match layers.get(module_of(file)) {
        Some(layer) => *layer,
        None => panic!("src/{file} belongs to no layer: give its module a line in LAYERS"),
    };
    // The crate's root re-exports names.
    let among = imports.iter().filter(|i| i.from != "lib.rs");
    among
        .filter(|i| module_of(&i.from) != module_of(&i.to) && layer(&i.to) <= layer(&i.from))
        .collect()
}

/// The wrong imports that are not in the lists of known ones, and the known ones that are gone.
fn complaints(
    imports: &[Import],
    known_upwards: &[(&str, &str, &str)],
    known_circles: &[(&[&str], &str)],
) -> Vec<String> {
    let mut wrong = Vec::new();
    let up = upwards(imports);
    for import in &up {
        let listed = |(from, to, _): &(&str, &str, &str)| *from == import.from && *to == import.to;
        if !known_upwards.iter().any(listed) {
            let Import { from, to, path, .. } = import;
            wrong.push(format!("{from} imports upwards: {path}, from {to}"));
        }
    }
    for (from, to, reason) in known_upwards {
        if !up.iter().any(|i| i.from == *from && i.to == *to) {
            wrong.push(format!(
                "{from} no longer imports {to}: remove it from UPWARDS"
            ));
        }
        assert!(!reason.is_empty(), "{from} -> {to}: a reason");
    }
    let found = circles(&graph(imports));
    for circle in &found {
        if !known_circles.iter().any(|(known, _)| circle == known) {
            let among = imports
                .iter()
                .filter(|i| circle.contains(&i.from) && circle.contains(&i.to))
                .map(|i| format!("\n  {} -> {}: {}", i.from, i.to, i.path));
            wrong.push(format!("a circle: {circle:?}{}", among.collect::<String>()));
        }
    }
    for (known, reason) in known_circles {
        assert!(!reason.is_empty(), "{known:?}: a reason");
        if !found.iter().any(|circle| circle == known) {
            wrong.push(format!(
                "no longer a circle: {known:?}; remove it from CIRCLES"
            ));
        }
    }
    wrong
}

#[test]
fn no_import_goes_up_and_no_two_files_import_each_other() {
    let imports = Sources::of_this_crate().imports();
    // If the reader finds few imports, it has not read the sources.
    assert!(imports.len() > 300, "{} imports", imports.len());
    let wrong = complaints(&imports, UPWARDS, CIRCLES);
    assert!(wrong.is_empty(), "\n{}\n", wrong.join("\n"));
}

#[test]
fn the_architecture_page_has_the_same_layers() {
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/architecture.md");
    let page = std::fs::read_to_string(page).unwrap();
    assert!(
        page.contains(LAYERS),
        "docs/architecture.md has other layers than tests/rules/layers.rs"
    );
}

#[test]
fn an_import_upwards_and_a_circle_are_complained_of_and_so_is_a_list_that_is_out_of_date() {
    let sound = [
        ("lib.rs", "mod migrate; mod memory; mod rate; mod error;"),
        (
            "migrate/mod.rs",
            "mod lane; use crate::memory::Block; use lane::Lane;",
        ),
        (
            "migrate/lane.rs",
            "pub struct Lane; use crate::memory::Block;",
        ),
        ("memory.rs", "pub struct Block; use crate::error::Error;"),
        ("rate.rs", "pub struct Rate; use crate::memory::Block;"),
        ("error.rs", "pub struct Error;"),
    ];
    let with = |file: &str, more: &str| {
        let text = |(f, t): &(&str, &str)| match *f == file {
            true => (f.to_string(), format!("{t} {more}")),
            false => (f.to_string(), t.to_string()),
        };
        let files: Vec<(String, String)> = sound.iter().map(text).collect();
        let files: Vec<(&str, &str)> = files.iter().map(|(f, t)| (&f[..], &t[..])).collect();
        Sources::new(&files).imports()
    };
    let none: &[(&str, &str, &str)] = &[];
    assert_eq!(complaints(&with("", ""), none, &[]), Vec::<String>::new());

    let up = with("rate.rs", "use crate::migrate::lane::Lane;");
    let wrong = complaints(&up, none, &[]);
    let said = "rate.rs imports upwards: crate::migrate::lane::Lane, from migrate/lane.rs";
    assert_eq!(wrong, [said]);
    let listed = &[("rate.rs", "migrate/lane.rs", "made up")];
    assert_eq!(complaints(&up, listed, &[]), Vec::<String>::new());
    let wrong = complaints(&with("", ""), listed, &[]);
    assert!(
        wrong.len() == 1 && wrong[0].contains("no longer imports"),
        "{wrong:?}"
    );

    // A re-export goes up too.
    let handed = with("rate.rs", "pub use crate::migrate::lane::Lane;");
    assert_eq!(complaints(&handed, none, &[]), [said]);

    let circle = with("migrate/lane.rs", "pub fn x(_: super::Driver) {}");
    let wrong = complaints(&circle, none, &[]);
    assert!(
        wrong.len() == 1 && wrong[0].contains("a circle") && wrong[0].contains("super::Driver"),
        "{wrong:?}"
    );
    let listed: &[(&[&str], &str)] = &[(&["migrate/lane.rs", "migrate/mod.rs"], "made up")];
    assert_eq!(complaints(&circle, none, listed), Vec::<String>::new());
    let wrong = complaints(&with("", ""), none, listed);
    assert!(
        wrong.len() == 1 && wrong[0].contains("no longer a circle"),
        "{wrong:?}"
    );
}
