//! Which parts of the library are public for Rust programs.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use syn::{Attribute, Item, Visibility};

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn items(file: &Path) -> Vec<Item> {
    let text = std::fs::read_to_string(file).unwrap();
    syn::parse_file(&text).unwrap().items
}

fn is_hidden(attributes: &[Attribute]) -> bool {
    let of_doc = attributes.iter().filter(|a| a.path().is_ident("doc"));
    let mut lists = of_doc.filter_map(|a| a.meta.require_list().ok());
    lists.any(|list| list.tokens.to_string() == "hidden")
}

/// The names of a file's public modules that are documented.
fn documented_modules(file: &Path) -> BTreeSet<String> {
    let items = items(file);
    let modules = items.iter().filter_map(|item| match item {
        Item::Mod(module) if matches!(module.vis, Visibility::Public(_)) => Some(module),
        _ => None,
    });
    modules
        .filter(|module| !is_hidden(&module.attrs))
        .map(|module| module.ident.to_string())
        .collect()
}

#[test]
fn public_and_documented_is_what_a_rust_vmm_needs_and_nothing_else() {
    let found = documented_modules(&root().join("src/lib.rs"));
    let wanted = [
        "bits", "device", "dirty", "error", "gate", "guide", "kvmstate", "memory", "migrate",
        "rate", "snapshot", "units", "vmm",
    ];
    assert_eq!(found, wanted.map(String::from).into());
}

#[test]
fn errors_of_the_crates_whose_types_brant_takes_become_brants_own() {
    fn memory() -> brant::Result<brant::vm_memory::GuestMemoryMmap> {
        use brant::vm_memory::{GuestAddress, GuestMemoryMmap};
        let twice = [(GuestAddress(0), 4096), (GuestAddress(0), 4096)];
        Ok(GuestMemoryMmap::from_ranges(&twice)?)
    }
    fn kvm() -> brant::Result<brant::kvm_ioctls::Kvm> {
        Ok(brant::kvm_ioctls::Kvm::new_with_path(c"/dev/null/kvm")?)
    }
    assert_eq!(memory().unwrap_err().kind(), brant::Kind::Invalid);
    let error = kvm().unwrap_err();
    assert_eq!(error.kind(), brant::Kind::Kernel);
    assert!(std::error::Error::source(&error).is_some());
}
