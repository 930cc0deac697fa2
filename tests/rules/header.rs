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

/// The header alone, twice in one file, as each of the languages that it promises; for whoever
/// has cargo only. `scripts/test` does it with every compiler that is there.
#[test]
fn the_header_compiles_as_c99_c11_and_cxx17_with_every_warning_an_error() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let host = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    for (cpp, language, std) in [
        (false, "c", "c99"),
        (false, "c", "c11"),
        (true, "c++", "c++17"),
    ] {
        let compiler = match cc::Build::new()
            .cpp(cpp)
            .target(&host)
            .host(&host)
            .opt_level(0)
            .cargo_metadata(false)
            .try_get_compiler()
        {
            Ok(compiler) => compiler,
            Err(e) => {
                println!("skipped as {std}: there is no compiler: {e}");
                continue;
            }
        };
        let done = compiler
            .to_command()
            .args(["-x", language, "-fsyntax-only", "-Wall", "-Wextra"])
            .args(["-pedantic", "-Werror"])
            .arg(format!("-std={std}"))
            .arg("-I")
            .arg(root.join("include"))
            .arg(root.join("c-tests/header/twice.c"))
            .output();
        match done {
            Ok(done) => assert!(
                done.status.success(),
                "as {std}: {}",
                String::from_utf8_lossy(&done.stderr)
            ),
            Err(e) => println!("skipped as {std}: {e}"),
        }
    }
}
