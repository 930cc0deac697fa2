//! Where unit tests are: those of `x.rs` at its end or in `x/tests.rs` (`x/tests/`), their helpers
//! in `x/testing/`. So a path tells whether a file is test code.

use crate::imports::{of_tests, Sources};

/// The modules of a file that are out of place.
fn out_of_place(path: &str, text: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    let name = path.rsplit('/').next().unwrap();
    if name.ends_with("_tests.rs") || name == "testing.rs" {
        wrong.push(format!(
            "{path}: the file is to be x/tests.rs, or in x/testing/"
        ));
    }
    let of_a_test = path.contains("testing/") || path.contains("tests/") || name == "tests.rs";
    for item in syn::parse_file(text).unwrap().items {
        let syn::Item::Mod(module) = item else {
            continue;
        };
        let named = module.ident.to_string();
        let for_tests = named == "tests" || named == "testing";
        if !of_a_test && of_tests(&module.attrs) != for_tests {
            wrong.push(format!(
                "{path}: mod {named}: `tests` and `testing`, and no others, are behind #[cfg(test)]"
            ));
        }
        // `#[path]` may still name the regular place. A file that `tests/loom` compiles too, from
        // elsewhere, needs that.
        let its_own = format!("{}/{named}.rs", name.trim_end_matches(".rs"));
        let elsewhere = module.attrs.iter().any(|a| match &a.meta {
            syn::Meta::NameValue(meta) if a.path().is_ident("path") => {
                quoted(&meta.value) != Some(its_own.clone())
            }
            _ => false,
        });
        if elsewhere && !path.ends_with("testing/mod.rs") {
            wrong.push(format!(
                "{path}: mod {named}: is where #[path] says, not its name"
            ));
        }
    }
    wrong
}

/// A string literal's text.
pub fn quoted(value: &syn::Expr) -> Option<String> {
    match value {
        syn::Expr::Lit(syn::ExprLit {
            lit: syn::Lit::Str(text),
            ..
        }) => Some(text.value()),
        _ => None,
    }
}

#[test]
fn test_code_is_where_its_name_says() {
    let sources = Sources::of_this_crate();
    let all = sources
        .files()
        .flat_map(|(path, text)| out_of_place(path, text));
    let wrong: Vec<String> = all.collect();
    assert!(wrong.is_empty(), "\n{}\n", wrong.join("\n"));
}

#[test]
fn test_code_elsewhere_is_complained_of() {
    for (path, text) in [
        ("a.rs", "#[cfg(test)] mod tests;"),
        ("a.rs", "#[cfg(test)] mod tests { fn x() {} }"),
        ("a/mod.rs", "mod b; #[cfg(test)] pub(crate) mod testing;"),
        ("a/tests.rs", "mod helper { fn x() {} }"),
        ("a/testing/mod.rs", "#[path = \"../x.rs\"] mod x;"),
        ("b/a.rs", "#[cfg(test)] #[path = \"a/tests.rs\"] mod tests;"),
    ] {
        assert_eq!(
            out_of_place(path, text),
            Vec::<String>::new(),
            "{path}: {text}"
        );
    }
    for (path, text) in [
        ("a_tests.rs", "fn x() {}"),
        ("a/testing.rs", "fn x() {}"),
        ("a.rs", "#[cfg(test)] mod model;"),
        ("a.rs", "mod tests;"),
        ("a.rs", "#[cfg(test)] #[path = \"a_tests.rs\"] mod tests;"),
    ] {
        assert_eq!(out_of_place(path, text).len(), 1, "{path}: {text}");
    }
}
