//! The exports of the C interface, read from its source. Every exported function is in `src/capi`
//! and is only the panic boundary, and everything for C is in the header. `scripts/test` checks the
//! symbols of the linked library.

use std::fs;
use std::path::{Path, PathBuf};

use syn::visit::{self, Visit};

/// The macro that every export is written through.
const BOUNDARY: &str = "boundary";
const HEADER: &str = include_str!(concat!(env!("OUT_DIR"), "/brant.h"));

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every Rust file under `dir`, in a fixed order.
fn rust_files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut entries: Vec<_> = fs::read_dir(dir)
        .unwrap_or_else(|e| panic!("{}: {e}", dir.display()))
        .map(|entry| entry.expect("a directory entry").path())
        .collect();
    entries.sort();
    for path in entries {
        if path.is_dir() {
            found.extend(rust_files(&path));
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
    found
}

fn parsed(path: &Path) -> syn::File {
    let text = fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    syn::parse_file(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// The wrong exports of one file, and the number of all its exports.
#[derive(Default)]
struct Exports {
    in_capi: bool,
    found: Vec<String>,
    complaints: Vec<String>,
}

/// Whether an attribute makes a symbol: `no_mangle`, `export_name`, also inside
/// `unsafe(...)` or `cfg_attr(...)`.
fn makes_symbol(attribute: &syn::Attribute) -> bool {
    let written = match &attribute.meta {
        syn::Meta::Path(path) => path.get_ident().map(ToString::to_string),
        syn::Meta::NameValue(pair) => pair.path.get_ident().map(ToString::to_string),
        syn::Meta::List(list) => Some(list.tokens.to_string()),
    };
    written.is_some_and(|text| names_symbol(&text))
}

fn names_symbol(tokens: &str) -> bool {
    tokens
        .split(|c: char| !c.is_alphanumeric() && c != '_')
        .any(|word| word == "no_mangle" || word == "export_name")
}

/// Whether a body is exactly one invocation of the boundary macro, whose value
/// is the function's.
fn is_one_boundary(block: &syn::Block) -> bool {
    let invoked = match block.stmts.as_slice() {
        [syn::Stmt::Expr(syn::Expr::Macro(expression), None)] => &expression.mac,
        [syn::Stmt::Macro(statement)] if statement.semi_token.is_none() => &statement.mac,
        _ => return false,
    };
    invoked.path.is_ident(BOUNDARY)
}

impl Exports {
    fn function(&mut self, attributes: &[syn::Attribute], sig: &syn::Signature, body: &syn::Block) {
        if !attributes.iter().any(makes_symbol) {
            return;
        }
        let name = sig.ident.to_string();
        if !self.in_capi {
            self.complaints
                .push(format!("{name} is exported outside src/capi"));
        }
        if !name.starts_with("brant_") {
            self.complaints
                .push(format!("{name} is exported, but is not brant_*"));
        }
        let abi = sig.abi.as_ref().and_then(|abi| abi.name.as_ref());
        if abi.is_none_or(|abi| abi.value() != "C") {
            self.complaints
                .push(format!("{name} is exported, but is not extern \"C\""));
        }
        if !is_one_boundary(body) {
            self.complaints.push(format!(
                "the body of {name} is not exactly one {BOUNDARY}!(...): a panic would cross into C"
            ));
        }
        self.found.push(name);
    }
}

impl<'ast> Visit<'ast> for Exports {
    fn visit_item_fn(&mut self, item: &'ast syn::ItemFn) {
        self.function(&item.attrs, &item.sig, &item.block);
        visit::visit_item_fn(self, item);
    }
    fn visit_impl_item_fn(&mut self, item: &'ast syn::ImplItemFn) {
        self.function(&item.attrs, &item.sig, &item.block);
        visit::visit_impl_item_fn(self, item);
    }
    fn visit_item_static(&mut self, item: &'ast syn::ItemStatic) {
        if item.attrs.iter().any(makes_symbol) {
            self.complaints.push(format!(
                "{} is exported data; only functions are",
                item.ident
            ));
        }
        visit::visit_item_static(self, item);
    }
    fn visit_macro(&mut self, item: &'ast syn::Macro) {
        // Neither this test nor cbindgen can see an export that a macro makes.
        if names_symbol(&item.tokens.to_string()) {
            self.complaints
                .push("a macro writes an exported function; write it out".to_string());
        }
        visit::visit_macro(self, item);
    }
}

fn exports_of(file: &syn::File, in_capi: bool) -> Exports {
    let mut exports = Exports {
        in_capi,
        ..Exports::default()
    };
    exports.visit_file(file);
    exports
}

#[test]
fn every_export_is_in_capi_and_is_one_panic_boundary() {
    let mut found = 0;
    let mut complaints = Vec::new();
    for path in rust_files(&root().join("src")) {
        let in_capi = path.starts_with(root().join("src/capi"));
        let exports = exports_of(&parsed(&path), in_capi);
        found += exports.found.len();
        for complaint in exports.complaints {
            complaints.push(format!("{}: {complaint}", path.display()));
        }
    }
    assert!(complaints.is_empty(), "{}", complaints.join("\n"));
    assert!(found > 0, "no export was found: is src/capi still there?");
}

#[test]
fn an_export_without_the_boundary_is_noticed() {
    let verdict = |text: &str, in_capi| {
        let file = syn::parse_file(text).expect("the example parses");
        exports_of(&file, in_capi).complaints.len()
    };
    let good = [
        r#"#[no_mangle] pub extern "C" fn brant_a() -> i32 { boundary!(0) }"#,
        r#"#[no_mangle] pub extern "C" fn brant_a() -> i32 { boundary! { 0 } }"#,
        r#"#[unsafe(no_mangle)] pub unsafe extern "C" fn brant_a() { boundary!({}) }"#,
        r#"pub fn inner() -> i32 { 0 }"#,
    ];
    for text in good {
        assert_eq!(verdict(text, true), 0, "{text}");
    }
    let bad = [
        r#"#[no_mangle] pub extern "C" fn brant_a() -> i32 { 0 }"#,
        r#"#[no_mangle] pub extern "C" fn brant_a() -> i32 { let a = f(); boundary!(a) }"#,
        r#"#[no_mangle] pub extern "C" fn brant_a() -> i32 { boundary!(0); 1 }"#,
        r#"#[no_mangle] pub extern "C" fn brant_a() { boundary!(0); }"#,
        r#"#[no_mangle] pub extern "C" fn brant_a() { other!(0) }"#,
        r#"#[unsafe(no_mangle)] pub extern "C" fn brant_a() {}"#,
        r#"#[export_name = "brant_a"] pub extern "C" fn a() { boundary!(0) }"#,
        r#"#[no_mangle] pub fn brant_a() -> i32 { boundary!(0) }"#,
        r#"#[no_mangle] pub extern "C" fn stray() -> i32 { boundary!(0) }"#,
        r#"#[no_mangle] pub static brant_a: i32 = 0;"#,
        r#"mod m { fn f() { #[no_mangle] extern "C" fn brant_a() {} } }"#,
        r#"macro_rules! e { () => { #[no_mangle] extern "C" fn brant_a() {} } }"#,
    ];
    for text in bad {
        assert_ne!(verdict(text, true), 0, "{text}");
    }
    assert_ne!(verdict(good[0], false), 0, "an export outside src/capi");
}

#[test]
fn everything_written_for_c_reaches_the_header() {
    // cbindgen drops constants that it cannot evaluate (a cast, for example) and types that no
    // function mentions, with no more than a warning.
    let mut missing = Vec::new();
    let words: std::collections::HashSet<&str> = HEADER
        .split(|c: char| !c.is_alphanumeric() && c != '_')
        .collect();
    for path in rust_files(&root().join("src/capi")) {
        let file = parsed(&path);
        for item in &file.items {
            let (visibility, name) = match item {
                syn::Item::Const(item) => (&item.vis, &item.ident),
                syn::Item::Struct(item) => (&item.vis, &item.ident),
                syn::Item::Union(item) => (&item.vis, &item.ident),
                syn::Item::Type(item) => (&item.vis, &item.ident),
                _ => continue,
            };
            let name = name.to_string();
            let for_c = name.starts_with("BRANT_") || name.starts_with("brant_");
            if matches!(visibility, syn::Visibility::Public(_)) && for_c {
                let defined = if name.starts_with("BRANT_") {
                    HEADER.contains(&format!("\n#define {name} "))
                } else {
                    words.contains(name.as_str())
                };
                if !defined {
                    missing.push(format!("{}: {name}", path.display()));
                }
            }
        }
        for name in exports_of(&file, true).found {
            if !HEADER.contains(&format!("{name}(")) {
                missing.push(format!("{}: {name}", path.display()));
            }
        }
    }
    assert!(
        missing.is_empty(),
        "not in the generated header:\n{}",
        missing.join("\n")
    );
}
