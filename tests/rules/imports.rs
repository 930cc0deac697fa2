//! Which file imports which, read from the source: `use` lines and the paths in the code. Test code
//! is left out.
//!
//! A name is followed to the file that defines it. `use crate::memory::Block` imports
//! `memory/block.rs`, because `memory/mod.rs` only re-exports the name (`pub use block::Block`). So
//! a re-export is marked as one, and naming a module is no import: the names in it are. A method
//! called on a value is not seen, but the file that made the value has imported its type.

use crate::graph::Graph;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use syn::visit::{self, Visit};

/// The files of a crate's `src`, by their path in it.
pub struct Sources(BTreeMap<String, String>);

/// One import, for messages: the importing file, the imported file, and the words.
#[derive(Clone, Debug)]
pub struct Import {
    pub from: String,
    pub to: String,
    pub path: String,
    /// The importing file only re-exports the name, with `pub use`.
    pub handed_on: bool,
}

impl Sources {
    /// The sources of this crate.
    pub fn of_this_crate() -> Sources {
        fn add(root: &Path, dir: &Path, files: &mut BTreeMap<String, String>) {
            for entry in std::fs::read_dir(dir).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    add(root, &path, files);
                } else if path.extension().is_some_and(|e| e == "rs") {
                    let name = path.strip_prefix(root).unwrap().to_str().unwrap();
                    files.insert(name.to_owned(), std::fs::read_to_string(&path).unwrap());
                }
            }
        }
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
        let mut files = BTreeMap::new();
        add(&root, &root, &mut files);
        Sources(files)
    }

    /// Sources made up for a test.
    pub fn new(files: &[(&str, &str)]) -> Sources {
        let owned = |(name, text): &(&str, &str)| ((*name).to_owned(), (*text).to_owned());
        Sources(files.iter().map(owned).collect())
    }

    /// Path and text of each file.
    pub fn files(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(path, text)| (&path[..], &text[..]))
    }

    /// All imports of code outside of tests, one for each pair of files.
    pub fn imports(&self) -> Vec<Import> {
        let mut tree = Tree {
            sources: self,
            modules: BTreeMap::new(),
            parsed: Vec::new(),
        };
        tree.load(&[], "lib.rs", "");
        let parsed = std::mem::take(&mut tree.parsed);
        let mut found = BTreeMap::new();
        for (module, file, items) in &parsed {
            let mut reader = Reader {
                tree: &tree,
                module,
                file,
                found: &mut found,
                handing_on: false,
            };
            for item in items {
                reader.visit_item(item);
            }
        }
        found.into_values().collect()
    }
}

/// The imports as a graph. A file that only re-exports a name does not depend on it.
pub fn graph(imports: &[Import]) -> Graph {
    let mut graph = Graph::new();
    for import in imports.iter().filter(|i| !i.handed_on) {
        graph.entry(import.to.clone()).or_default();
        let targets = graph.entry(import.from.clone()).or_default();
        targets.insert(import.to.clone());
    }
    graph
}

type Name = Vec<String>;

/// The names of one module.
#[derive(Default)]
struct Module {
    file: String,
    children: BTreeSet<String>,
    /// Names of items that it defines.
    defined: BTreeSet<String>,
    /// Names that `use` brings in, with the paths as written.
    aliases: BTreeMap<String, Name>,
    globs: Vec<Name>,
}

struct Tree<'a> {
    sources: &'a Sources,
    modules: BTreeMap<Name, Module>,
    /// For each module its file and its items outside of tests. Two modules can have one name, for
    /// different platforms.
    parsed: Vec<(Name, String, Vec<syn::Item>)>,
}

impl Tree<'_> {
    /// Reads a module's file, and then those of its children, which are in `dir`.
    fn load(&mut self, module: &[String], file: &str, dir: &str) {
        let text = &self.sources.0.get(file);
        let text = text.unwrap_or_else(|| panic!("{file} is declared and not there"));
        let parsed = syn::parse_file(text).unwrap_or_else(|e| panic!("{file}: {e}"));
        self.add(module, file, dir, parsed.items);
    }

    fn add(&mut self, module: &[String], file: &str, dir: &str, items: Vec<syn::Item>) {
        let mut names = Names::default();
        let (mut own, mut inline) = (Vec::new(), Vec::new());
        for item in items {
            if of_tests(attributes(&item)) {
                continue;
            }
            match item {
                syn::Item::Mod(child) => {
                    names.module.children.insert(child.ident.to_string());
                    inline.push(child);
                }
                item => {
                    names.visit_item(&item);
                    own.push(item);
                }
            }
        }
        let known = self.modules.entry(module.to_vec()).or_default();
        if known.file.is_empty() {
            known.file = file.to_owned();
        }
        known.children.extend(names.module.children);
        known.defined.extend(names.module.defined);
        known.aliases.extend(names.module.aliases);
        known.globs.extend(names.module.globs);
        self.parsed.push((module.to_vec(), file.to_owned(), own));
        for child in inline {
            let name = child.ident.to_string();
            let path = [module, std::slice::from_ref(&name)].concat();
            let below = format!("{dir}{name}/");
            match child.content {
                Some((_, items)) => self.add(&path, file, &below, items),
                None => {
                    let flat = format!("{dir}{name}.rs");
                    let file = match self.sources.0.contains_key(&flat) {
                        true => flat,
                        false => format!("{below}mod.rs"),
                    };
                    self.load(&path, &file, &below);
                }
            }
        }
    }

    /// A path as written in a module, made absolute from the crate's root; `None` for a path into
    /// another crate.
    fn absolute(&self, module: &[String], path: &[String], depth: usize) -> Option<Name> {
        let mut here = module.to_vec();
        let mut rest = path;
        match rest.first()?.as_str() {
            "crate" => {
                here.clear();
                rest = &rest[1..];
            }
            "self" => rest = &rest[1..],
            "super" => {
                while rest.first().is_some_and(|s| s == "super") {
                    here.pop()?;
                    rest = &rest[1..];
                }
            }
            first => {
                let known = &self.modules[module];
                if let Some(path) = known.aliases.get(first) {
                    if depth > 8 || path.first().is_some_and(|p| p == first) {
                        return None;
                    }
                    here = self.absolute(module, path, depth + 1)?;
                    rest = &rest[1..];
                } else if !known.children.contains(first) {
                    return None;
                }
            }
        }
        here.extend_from_slice(rest);
        Some(here)
    }

    /// The file that defines a name, given from the crate's root; `None` for a module.
    fn defines(&self, path: &[String], depth: usize) -> Option<String> {
        let mut module = Name::new();
        for (at, name) in path.iter().enumerate() {
            let known = &self.modules[&module];
            if known.children.contains(name) {
                module.push(name.clone());
                continue;
            }
            if depth < 8 && !known.defined.contains(name) {
                let by_name = known.aliases.get(name).cloned();
                let by_glob = known.globs.iter().find_map(|glob| {
                    let of = self.absolute(&module, glob, 0)?;
                    let there = self.modules.get(&of)?;
                    let has = there.defined.contains(name) || there.aliases.contains_key(name);
                    has.then(|| [&glob[..], std::slice::from_ref(name)].concat())
                });
                if let Some(other) = by_name.or(by_glob) {
                    // This file re-exports the name of another crate.
                    let Some(other) = self.absolute(&module, &other, 0) else {
                        return Some(known.file.clone());
                    };
                    return self.defines(&[&other[..], &path[at + 1..]].concat(), depth + 1);
                }
            }
            return Some(known.file.clone());
        }
        None
    }
}

/// Collects the names that one module defines and brings in.
#[derive(Default)]
struct Names {
    module: Module,
}

impl<'ast> Visit<'ast> for Names {
    fn visit_item(&mut self, item: &'ast syn::Item) {
        use syn::Item as I;
        if of_tests(attributes(item)) {
            return;
        }
        let name = match item {
            I::Const(i) => Some(&i.ident),
            I::Enum(i) => Some(&i.ident),
            I::Fn(i) => Some(&i.sig.ident),
            I::Macro(i) => i.ident.as_ref(),
            I::Static(i) => Some(&i.ident),
            I::Struct(i) => Some(&i.ident),
            I::Trait(i) => Some(&i.ident),
            I::Type(i) => Some(&i.ident),
            I::Union(i) => Some(&i.ident),
            _ => None,
        };
        self.module.defined.extend(name.map(ToString::to_string));
        visit::visit_item(self, item);
    }

    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        for (alias, path) in leaves(&item.tree) {
            match alias {
                Some(alias) => drop(self.module.aliases.insert(alias, path)),
                None => self.module.globs.push(path),
            }
        }
    }
}

/// The names that a `use` brings in, with their paths; no name for a `*`.
fn leaves(tree: &syn::UseTree) -> Vec<(Option<String>, Name)> {
    fn go(tree: &syn::UseTree, before: &Name, found: &mut Vec<(Option<String>, Name)>) {
        let with = |ident: &syn::Ident| match ident.to_string() {
            name if name == "self" && !before.is_empty() => before.clone(),
            name => [&before[..], &[name]].concat(),
        };
        match tree {
            syn::UseTree::Path(path) => go(&path.tree, &with(&path.ident), found),
            syn::UseTree::Name(name) => {
                let path = with(&name.ident);
                found.push((path.last().cloned(), path));
            }
            syn::UseTree::Rename(name) => {
                found.push((Some(name.rename.to_string()), with(&name.ident)));
            }
            syn::UseTree::Glob(_) => found.push((None, before.clone())),
            syn::UseTree::Group(group) => {
                group.items.iter().for_each(|tree| go(tree, before, found));
            }
        }
    }
    let mut found = Vec::new();
    go(tree, &Name::new(), &mut found);
    found
}

/// Collects the files that one module's code names.
struct Reader<'a> {
    tree: &'a Tree<'a>,
    module: &'a [String],
    file: &'a str,
    found: &'a mut BTreeMap<(String, String), Import>,
    handing_on: bool,
}

impl Reader<'_> {
    fn names(&mut self, path: &[String]) {
        let absolute = self.tree.absolute(self.module, path, 0);
        let Some(to) = absolute.and_then(|path| self.tree.defines(&path, 0)) else {
            return;
        };
        self.imports(to, path);
    }

    fn imports(&mut self, to: String, path: &[String]) {
        let from = self.file.to_owned();
        if from != to {
            let import = Import {
                from: from.clone(),
                to: to.clone(),
                path: path.join("::"),
                handed_on: self.handing_on,
            };
            let known = self
                .found
                .entry((from, to))
                .or_insert_with(|| import.clone());
            if known.handed_on && !import.handed_on {
                *known = import;
            }
        }
    }

    /// The arguments of a macro are not parsed: everything that looks like a path counts as one.
    fn words(&mut self, text: &str) {
        let (mut path, mut joined) = (Name::new(), false);
        let mut chars = text.chars().peekable();
        while let Some(c) = chars.next() {
            if c == '"' {
                while let Some(c) = chars.next() {
                    match c {
                        '\\' => drop(chars.next()),
                        '"' => break,
                        _ => {}
                    }
                }
            } else if c.is_alphabetic() || c == '_' {
                let mut word = String::from(c);
                while let Some(c) = chars.next_if(|c| c.is_alphanumeric() || *c == '_') {
                    word.push(c);
                }
                if !joined {
                    self.names(&std::mem::take(&mut path));
                }
                path.push(word);
                joined = false;
                continue;
            } else if c == ':' && chars.next_if_eq(&':').is_some() {
                joined = !path.is_empty();
                continue;
            } else if c.is_whitespace() {
                continue;
            }
            self.names(&std::mem::take(&mut path));
            joined = false;
        }
        self.names(&path);
    }
}

impl<'ast> Visit<'ast> for Reader<'_> {
    fn visit_item(&mut self, item: &'ast syn::Item) {
        if !of_tests(attributes(item)) {
            visit::visit_item(self, item);
        }
    }
    fn visit_impl_item_fn(&mut self, item: &'ast syn::ImplItemFn) {
        if !of_tests(&item.attrs) {
            visit::visit_impl_item_fn(self, item);
        }
    }
    fn visit_field(&mut self, field: &'ast syn::Field) {
        if !of_tests(&field.attrs) {
            visit::visit_field(self, field);
        }
    }
    fn visit_field_value(&mut self, field: &'ast syn::FieldValue) {
        if !of_tests(&field.attrs) {
            visit::visit_field_value(self, field);
        }
    }
    fn visit_arm(&mut self, arm: &'ast syn::Arm) {
        if !of_tests(&arm.attrs) {
            visit::visit_arm(self, arm);
        }
    }
    fn visit_local(&mut self, local: &'ast syn::Local) {
        if !of_tests(&local.attrs) {
            visit::visit_local(self, local);
        }
    }
    fn visit_expr(&mut self, expression: &'ast syn::Expr) {
        use syn::Expr as E;
        let attributes: &[syn::Attribute] = match expression {
            E::Block(e) => &e.attrs,
            E::Call(e) => &e.attrs,
            E::If(e) => &e.attrs,
            E::Macro(e) => &e.attrs,
            E::MethodCall(e) => &e.attrs,
            _ => &[],
        };
        if !of_tests(attributes) {
            visit::visit_expr(self, expression);
        }
    }

    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        self.handing_on = !matches!(item.vis, syn::Visibility::Inherited);
        for (alias, path) in leaves(&item.tree) {
            match alias {
                Some(_) => self.names(&path),
                None => {
                    let of = self.tree.absolute(self.module, &path, 0);
                    let file = of.and_then(|of| Some(self.tree.modules.get(&of)?.file.clone()));
                    if let Some(file) = file {
                        self.imports(file, &path);
                    }
                }
            }
        }
        self.handing_on = false;
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let names: Name = path.segments.iter().map(|s| s.ident.to_string()).collect();
        self.names(&names);
        visit::visit_path(self, path);
    }

    fn visit_macro(&mut self, call: &'ast syn::Macro) {
        self.visit_path(&call.path);
        self.words(&call.tokens.to_string());
    }

    /// `pub(in crate::x)` and `pub(super)` import nothing.
    fn visit_visibility(&mut self, _: &'ast syn::Visibility) {}
    /// An attribute imports nothing.
    fn visit_attribute(&mut self, _: &'ast syn::Attribute) {}
}

/// Whether an item with these attributes exists only for tests.
pub fn of_tests(attributes: &[syn::Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        let syn::Meta::List(list) = &attribute.meta else {
            return false;
        };
        let words = list.tokens.to_string();
        let mut words = words.split(|c: char| !(c.is_alphanumeric() || c == '_'));
        list.path.is_ident("cfg") && {
            let all: Vec<&str> = words.by_ref().filter(|w| !w.is_empty()).collect();
            all.contains(&"test") && !all.contains(&"not")
        }
    })
}

fn attributes(item: &syn::Item) -> &[syn::Attribute] {
    use syn::Item as I;
    match item {
        I::Const(i) => &i.attrs,
        I::Enum(i) => &i.attrs,
        I::ExternCrate(i) => &i.attrs,
        I::Fn(i) => &i.attrs,
        I::ForeignMod(i) => &i.attrs,
        I::Impl(i) => &i.attrs,
        I::Macro(i) => &i.attrs,
        I::Mod(i) => &i.attrs,
        I::Static(i) => &i.attrs,
        I::Struct(i) => &i.attrs,
        I::Trait(i) => &i.attrs,
        I::Type(i) => &i.attrs,
        I::Union(i) => &i.attrs,
        I::Use(i) => &i.attrs,
        _ => &[],
    }
}

/// The imports of a made-up crate: `"from -> to"`.
#[cfg(test)]
fn read(files: &[(&str, &str)]) -> Vec<String> {
    let all = Sources::new(files).imports();
    all.iter()
        .filter(|i| !i.handed_on)
        .map(|i| format!("{} -> {}", i.from, i.to))
        .collect()
}

#[test]
fn an_import_is_found_however_it_is_written() {
    let lib = ("lib.rs", "mod a; mod b;");
    let b = ("b/mod.rs", "pub mod c; pub struct B; pub fn f() {}");
    let c = ("b/c.rs", "pub struct C; pub fn g() {}");
    for (text, to) in [
        ("use crate::b::B;", "b/mod.rs"),
        ("use crate::b::c::C;", "b/c.rs"),
        ("use crate::b::{c::{C as D}};", "b/c.rs"),
        ("use crate::b::*;", "b/mod.rs"),
        ("use super::b; fn x() { b::f(); }", "b/mod.rs"),
        ("use super::b::c; fn x() -> c::C { todo!() }", "b/c.rs"),
        ("fn x() { crate::b::c::g() }", "b/c.rs"),
        ("fn x() { use crate::b::c::g; g() }", "b/c.rs"),
        ("fn x() { assert!(crate::b::c::g() == \"a\"); }", "b/c.rs"),
        ("struct S(Option<super::b::B>);", "b/mod.rs"),
        ("impl crate::b::T for u8 {}", "b/mod.rs"),
        ("macro_rules! m { () => { $crate::b::c::g() } }", "b/c.rs"),
    ] {
        assert_eq!(
            read(&[lib, ("a.rs", text), b, c]),
            [format!("a.rs -> {to}")],
            "{text}"
        );
    }
    for text in [
        "use crate::b;",
        "pub use crate::b::B;",
        "pub(super) fn x() {}",
        "/// See [`crate::b::B`].\nfn x() {}",
        "fn x() { println!(\"crate::b::B\"); }",
        "#[cfg(test)] mod tests { use crate::b::B; }",
        "#[cfg(test)] use crate::b::B;",
        "#[cfg(test)] mod tests;",
        "fn x() { #[cfg(test)] crate::b::f(); }",
        "struct S { #[cfg(test)] b: crate::b::B }",
    ] {
        assert_eq!(
            read(&[lib, ("a.rs", text), b, c]),
            Vec::<String>::new(),
            "{text}"
        );
    }
}

#[test]
fn a_module_with_a_stand_in_for_other_platforms_imports_no_more_than_it_says() {
    let files = [
        ("lib.rs", "mod a;"),
        (
            "a/mod.rs",
            "#[cfg(x)] mod b; #[cfg(not(x))] mod b { use super::*; } fn f() { b::g() } struct A;",
        ),
        ("a/b.rs", "pub fn g() {}"),
    ];
    assert_eq!(read(&files), ["a/mod.rs -> a/b.rs"]);
}

#[test]
fn a_name_that_was_handed_on_is_an_import_of_the_file_that_defines_it() {
    let files = [
        ("lib.rs", "mod a; mod b; mod d;"),
        ("a.rs", "use crate::b::C; use crate::b::D; use crate::b::E;"),
        (
            "b/mod.rs",
            "mod c; mod e; pub use c::C; pub use self::e::*; pub use crate::d::D;",
        ),
        ("b/c.rs", "pub struct C;"),
        ("b/e.rs", "pub struct E; use super::C;"),
        ("d.rs", "pub struct D;"),
    ];
    let found = [
        "a.rs -> b/c.rs",
        "a.rs -> b/e.rs",
        "a.rs -> d.rs",
        "b/e.rs -> b/c.rs",
    ];
    assert_eq!(read(&files), found);
}
