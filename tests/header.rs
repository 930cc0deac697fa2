//! The committed C header is the one that `src/capi` generates. Called by
//! `cargo test`; that it compiles is checked by `scripts/test`.

/// What the build script made of `src/capi`, just now.
const GENERATED: &str = include_str!(concat!(env!("OUT_DIR"), "/brant.h"));

#[test]
fn the_committed_header_is_the_generated_one() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/include/brant.h");
    let committed = std::fs::read_to_string(path).unwrap_or_default();
    if committed == GENERATED {
        return;
    }
    let mut differing = committed.lines().zip(GENERATED.lines()).enumerate();
    let (number, old, new) = match differing.find(|(_, (old, new))| old != new) {
        Some((index, (old, new))) => (index + 1, old, new),
        None => (
            committed.lines().count().min(GENERATED.lines().count()) + 1,
            "(one of the two ends here)",
            "",
        ),
    };
    panic!(
        "include/brant.h is not what src/capi generates; run: make header\n\
         first difference in line {number}:\n  committed: {old}\n  generated: {new}"
    );
}
