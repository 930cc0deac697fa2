//! The build script: generates the C header from `src/capi` into `OUT_DIR` (with the
//! feature `capi`), and gives the cdylib its soname. It never writes into the source tree: copying
//! the header to `include/brant.h` is `make header`, and `tests/header.rs`
//! says when that is due. Symbol versions are not its business either: they are
//! put on when the Makefile links the shared library that is shipped.

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
mod header {
    use super::variable;
    use std::path::Path;
    use std::{fs, process};

    /// Where the C face lives, relative to the crate.
    const CAPI: &str = "src/capi";

    pub fn generate() {
        println!("cargo:rerun-if-changed=cbindgen.toml");
        println!("cargo:rerun-if-changed={CAPI}");
        let out = Path::new(&variable("OUT_DIR")).join("brant.h");
        if let Err(why) = write(Path::new(&variable("CARGO_MANIFEST_DIR")), &out) {
            // One "error:" line a cause, not a backtrace of this script.
            eprintln!("error: brant.h cannot be generated: {why}");
            process::exit(1);
        }
    }

    /// Writes the header made from `root`/src/capi to `out`.
    ///
    /// cbindgen follows the `mod` lines of `mod.rs` (not those for tests), so their
    /// order is the order of the header, on every machine.
    fn write(root: &Path, out: &Path) -> Result<(), String> {
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
        let text = String::from_utf8(text).map_err(|e| format!("cbindgen: {e}"))?;
        fs::write(out, parenthesised(&text)).map_err(|e| format!("{}: {e}", out.display()))
    }

    /// The header with its negative macros in parentheses: `code -BRANT_E_STATE`
    /// must not become `code --2`.
    fn parenthesised(text: &str) -> String {
        let mut result = String::with_capacity(text.len());
        for line in text.lines() {
            let mut words = line.splitn(3, ' ');
            match (words.next(), words.next(), words.next()) {
                (Some("#define"), Some(name), Some(value)) if value.starts_with('-') => {
                    result.push_str(&format!("#define {name} ({value})"));
                }
                _ => result.push_str(line),
            }
            result.push('\n');
        }
        result
    }
}
