//! Test programs: each file in `tests` is a module of one. A file that no program names would run
//! nowhere, and nobody would notice.

use crate::names::quoted;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Adds a file and the files of its modules. `inside`: the directory of its modules.
fn follow(file: &Path, inside: &Path, found: &mut BTreeSet<PathBuf>) {
    found.insert(file.to_owned());
    let text = std::fs::read_to_string(file);
    let text = text.unwrap_or_else(|e| panic!("{}: {e}", file.display()));
    for item in syn::parse_file(&text).unwrap().items {
        let syn::Item::Mod(module) = item else {
            continue;
        };
        if module.content.is_some() {
            continue;
        }
        let name = module.ident.to_string();
        let elsewhere = module.attrs.iter().find_map(|a| match &a.meta {
            syn::Meta::NameValue(meta) if a.path().is_ident("path") => quoted(&meta.value),
            _ => None,
        });
        let own = inside.join(&name);
        match elsewhere {
            Some(path) => {
                let path = file.parent().unwrap().join(path);
                follow(&path, &path.with_extension(""), found);
            }
            None if own.is_dir() && own.join("mod.rs").exists() => {
                follow(&own.join("mod.rs"), &own, found)
            }
            None => follow(&own.with_extension("rs"), &own, found),
        }
    }
}

/// The files below a directory that end in `.rs`.
fn files(dir: &Path, found: &mut BTreeSet<PathBuf>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.insert(path);
        }
    }
}

/// The files below `root/tests` that no program of `root/Cargo.toml` names. `tests/loom` is a package
/// of its own.
fn in_no_program(root: &Path) -> Vec<String> {
    let manifest = std::fs::read_to_string(root.join("Cargo.toml")).unwrap();
    let mut named = BTreeSet::new();
    for line in manifest.lines() {
        let path = line.strip_prefix("path = \"tests/");
        if let Some(path) = path.and_then(|p| p.strip_suffix('"')) {
            let path = root.join("tests").join(path);
            follow(&path, path.parent().unwrap(), &mut named);
        }
    }
    let mut there = BTreeSet::new();
    files(&root.join("tests"), &mut there);
    let named: BTreeSet<PathBuf> = named.iter().map(|p| p.canonicalize().unwrap()).collect();
    there
        .iter()
        .filter(|p| !p.starts_with(root.join("tests/loom")))
        .filter(|p| !named.contains(&p.canonicalize().unwrap()))
        .map(|p| p.strip_prefix(root).unwrap().display().to_string())
        .collect()
}

#[test]
fn every_file_of_the_tests_belongs_to_a_program() {
    let lost = in_no_program(Path::new(env!("CARGO_MANIFEST_DIR")));
    assert!(
        lost.is_empty(),
        "no program has {lost:?}: tests/all.rs, or the mod.rs beside it, needs `mod name;`"
    );
}

#[test]
fn a_file_that_no_program_names_is_complained_of() {
    let root = tempfile::tempdir().unwrap();
    let write = |path: &str, text: &str| {
        let path = root.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    };
    write(
        "Cargo.toml",
        "[[test]]\nname = \"all\"\npath = \"tests/all.rs\"\n",
    );
    write(
        "tests/all.rs",
        "#[path = \"support/a.rs\"] mod b;\nmod c;\nmod d;\nmod e {}\n",
    );
    write("tests/support/a.rs", "");
    write("tests/c.rs", "");
    write("tests/d/mod.rs", "mod f;");
    write("tests/d/f.rs", "");
    write("tests/loom/src/lib.rs", "");
    assert_eq!(in_no_program(root.path()), Vec::<String>::new());
    write("tests/g.rs", "");
    write("tests/d/h.rs", "");
    assert_eq!(in_no_program(root.path()), ["tests/d/h.rs", "tests/g.rs"]);
}
