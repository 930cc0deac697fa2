//! The build script. It generates the C header from `src/capi` and `header` into `OUT_DIR` (with
//! the feature `capi`), and gives the cdylib its soname. It never writes into the source tree:
//! `make header` copies the header to `include/brant.h`, and `tests/rules/header.rs` says when that
//! is needed. It adds no symbol versions: the Makefile does when it links the shared library for
//! release.

use std::env;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");

    let major = variable("CARGO_PKG_VERSION_MAJOR");
    if variable("CARGO_CFG_TARGET_OS") == "linux" {
        println!("cargo:rustc-cdylib-link-arg=-Wl,-soname,libbrant.so.{major}");
    }
    #[cfg(feature = "capi")]
    header::generate();
}

fn variable(name: &str) -> String {
    env::var(name).unwrap_or_else(|_| panic!("cargo sets {name} for build scripts"))
}

#[cfg(feature = "capi")]
#[path = "header/assemble.rs"]
mod assemble;

#[cfg(feature = "capi")]
mod header {
    use super::assemble::{assemble, Parts};
    use super::variable;
    use std::path::Path;
    use std::{fs, process};

    /// The directory of the C interface, relative to the crate.
    const CAPI: &str = "src/capi";
    /// The directory of the header's other parts: its sections, and the programs of its opening
    /// comment.
    const TEXT: &str = "header";

    pub fn generate() {
        for input in ["cbindgen.toml", CAPI, TEXT] {
            println!("cargo:rerun-if-changed={input}");
        }
        let out = Path::new(&variable("OUT_DIR")).join("brant.h");
        let made = header(Path::new(&variable("CARGO_MANIFEST_DIR")));
        let written = made
            .and_then(|text| fs::write(&out, text).map_err(|e| format!("{}: {e}", out.display())));
        if let Err(why) = written {
            // One "error:" line for each cause, instead of a backtrace of this script.
            eprintln!("error: brant.h cannot be generated: {why}");
            process::exit(1);
        }
    }

    /// The header: cbindgen writes each declaration, `header/assemble.rs` puts it in its place.
    fn header(root: &Path) -> Result<String, String> {
        let template = root.join(TEXT).join("brant.h.in");
        assemble(&Parts {
            template: &fs::read_to_string(&template)
                .map_err(|e| format!("{}: {e}", template.display()))?,
            programs: &files(&root.join(TEXT), "c")?,
            sources: &files(&root.join(CAPI), "rs")?,
            generated: &declarations(root)?,
        })
    }

    /// cbindgen's output for `src/capi`. It follows the `mod` lines of `mod.rs`, except those for
    /// tests.
    fn declarations(root: &Path) -> Result<String, String> {
        let settings = root.join("cbindgen.toml");
        let config = cbindgen::Config::from_file(&settings)
            .map_err(|e| format!("{}: {e}", settings.display()))?;
        let bindings = cbindgen::Builder::new()
            .with_config(config)
            .with_src(root.join(CAPI).join("mod.rs"))
            .generate()
            .map_err(|e| format!("cbindgen: {e}"))?;
        let mut text = Vec::new();
        bindings.write(&mut text);
        String::from_utf8(text).map_err(|e| format!("cbindgen: {e}"))
    }

    /// The files of a directory whose names end in `.kind`: names and texts, by name.
    fn files(place: &Path, kind: &str) -> Result<Vec<(String, String)>, String> {
        let failed = |e: std::io::Error| format!("{}: {e}", place.display());
        let mut found = Vec::new();
        for entry in fs::read_dir(place).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            if path.extension().is_some_and(|e| e == kind) {
                let name = path
                    .file_name()
                    .unwrap_or_default()
                    .to_string_lossy()
                    .into_owned();
                found.push((name, fs::read_to_string(&path).map_err(failed)?));
            }
        }
        found.sort();
        Ok(found)
    }
}
