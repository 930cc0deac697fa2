//! The C header: the committed one is the generated one, it compiles, and each declaration of
//! `src/capi` has its section. `scripts/test` compiles it with more compilers.

use crate::assemble::{assemble, Parts};

/// The header that the build script has just made of `src/capi`.
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

/// Compiles the header alone, twice in one file, in each language that it promises. This is for
/// developers with cargo only; `scripts/test` does so with every available compiler.
#[test]
fn the_header_compiles_as_c99_c11_and_cxx17_with_every_warning_an_error() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let host = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    for (cpp, language, std, file) in [
        (false, "c", "c99", "twice.c"),
        (false, "c", "c11", "twice.c"),
        (true, "c++", "c++17", "twice.c"),
        (false, "c", "c99", "init.c"),
        (false, "c", "c11", "init.c"),
        (true, "c++", "c++17", "init.c"),
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
            .arg(root.join("c-tests/header").join(file))
            .output();
        match done {
            Ok(done) => assert!(
                done.status.success(),
                "{file} as {std}: {}",
                String::from_utf8_lossy(&done.stderr)
            ),
            Err(e) => println!("skipped as {std}: {e}"),
        }
    }
}

/// Makes a header of two files of declarations and of cbindgen's output for them (constants first).
fn small(template: &str) -> Result<String, String> {
    let sources = [
        (
            "first.rs",
            "/// The door.\npub struct brant_door {\n}\n\n/// Ajar.\npub const BRANT_AJAR: i32 = -1;\n\
             /// Open.\npub const BRANT_OPEN: u32 = 2;\n\n/// Not for C.\npub const SPARE: u32 = 3;\n\n\
             /// Opens.\n/// Or not.\n#[no_mangle]\npub unsafe extern \"C\" fn brant_open(\n",
        ),
        ("second.rs", "/// The key.\npub struct brant_key {\n"),
    ];
    let generated = "/**\n * Ajar.\n */\n#define BRANT_AJAR -1\n\n\
                     /**\n * Open.\n */\n#define BRANT_OPEN 2\n\n\
                     /**\n * The door.\n */\ntypedef struct brant_door brant_door;\n\n\
                     /**\n * The key, as a struct brant_lock has it.\n */\ntypedef struct brant_key {\n    \
                     /**\n     * Its teeth.\n     */\n    uint32_t teeth;\n} brant_key;\n\n\
                     /**\n * Opens.\n * Or not.\n */\nint32_t brant_open(struct brant_door *door,\n                   \
                     const struct brant_key *key);\n";
    assemble(&Parts {
        template,
        programs: &[("program.c".into(), "int main(void)\n{\n\n}\n".into())],
        sources: &sources.map(|(name, text)| (name.to_owned(), text.to_owned())),
        generated,
    })
}

#[test]
fn a_section_has_its_declarations_together_in_the_order_of_the_source() {
    let header =
        small("one\n@items first.rs\n\n/*\n@program program.c\n */\n@items second.rs\n").unwrap();
    let wanted = "\
one

/** The door. */
typedef struct brant_door brant_door;

/** Ajar. */
#define BRANT_AJAR (-1)
/** Open. */
#define BRANT_OPEN 2

struct brant_key;

/**
 * Opens.
 * Or not.
 */
int32_t brant_open(struct brant_door *door,
                   const struct brant_key *key);

/*
 *     int main(void)
 *     {
 *
 *     }
 */

/** The key, as a struct brant_lock has it. */
typedef struct brant_key {
    /** Its teeth. */
    uint32_t teeth;
} brant_key;
";
    assert_eq!(header, wanted);
}

#[test]
fn a_name_or_the_begin_of_names_takes_a_declaration_out_of_its_file() {
    let header = small("@items second.rs BRANT_* first.rs\n").unwrap();
    let at = |what: &str| {
        header
            .find(what)
            .unwrap_or_else(|| panic!("{what}: {header}"))
    };
    assert!(at("brant_key {") < at("#define BRANT_AJAR"));
    assert!(at("#define BRANT_OPEN") < at("brant_door;"));
    assert!(!header.contains("struct brant_key;"), "{header}");
}

#[test]
fn what_has_no_section_or_two_or_is_gone_is_an_error_that_says_what_to_do() {
    for (template, words) in [
        (
            "@items first.rs\n",
            ["second.rs", "brant_key", "add", "@items line"],
        ),
        (
            "@items second.rs brant_door brant_open BRANT_A*\n",
            ["first.rs", "BRANT_OPEN", "add", "@items line"],
        ),
        (
            "@items first.rs second.rs\n@items first.rs\n",
            ["brant_door", "twice", "`first.rs`", "by"],
        ),
        (
            "@items first.rs second.rs brant_window\n",
            ["`brant_window`", "renamed", "change", "@items line"],
        ),
        (
            "@items first.rs second.rs third.rs\n",
            ["`third.rs`", "moved", "change", "@items line"],
        ),
        (
            "@program other.c\n@items first.rs second.rs\n",
            ["header/other.c", "there", "is", "no"],
        ),
        (
            "@item first.rs second.rs\n",
            ["first.rs", "no section", "add", "@items line"],
        ),
        (
            "@items first.rs second.rs\n@item x\n",
            ["@item", "is", "no", "command"],
        ),
    ] {
        let error = small(template).unwrap_err();
        for word in words {
            assert!(
                error.contains(word),
                "{template}: {error}: {word} is missing"
            );
        }
    }
}

#[test]
fn what_cbindgen_and_the_source_do_not_have_both_is_an_error() {
    let parts = |source: &str, generated: &str| {
        assemble(&Parts {
            template: "@items a.rs\n",
            programs: &[],
            sources: &[("a.rs".to_owned(), source.to_owned())],
            generated,
        })
    };
    let cast = "pub const BRANT_CAST: u32 = X as u32;\n";
    let error = parts(cast, "").unwrap_err();
    assert!(
        error.contains("a.rs") && error.contains("BRANT_CAST"),
        "{error}"
    );
    let error = parts("", "void brant_hidden(void);\n").unwrap_err();
    assert!(
        error.contains("brant_hidden is declared in no file"),
        "{error}"
    );
    let error = parts("", "void stranger(void);\n").unwrap_err();
    assert!(error.contains("stranger"), "{error}");
}

#[test]
fn a_program_whose_comments_would_end_the_header_s_is_refused() {
    let refused = |text: &str| {
        let parts = Parts {
            template: "@program p.c\n",
            programs: &[("p.c".to_owned(), text.to_owned())],
            sources: &[],
            generated: "",
        };
        assemble(&parts).unwrap_err()
    };
    assert!(refused("/* x */").contains("header/p.c"));
    assert!(refused("a */").contains("begin with //"));
}

/// The handles of the header: name and comment.
fn handles(header: &str) -> Vec<(&str, &str)> {
    let items = header.split("\n\n");
    let found = items.filter_map(|item| {
        let (comment, code) = item.rsplit_once("*/\ntypedef struct ")?;
        let (name, again) = code.trim_end().strip_suffix(';')?.split_once(' ')?;
        (name == again).then_some((name, comment))
    });
    found.collect()
}

/// What is missing in a handle's comment.
fn unsaid(header: &str, name: &str, comment: &str) -> Vec<String> {
    let mut words = vec!["Threads: ".to_owned()];
    let declared = |function: &str| header.contains(&format!(" {function}("));
    if declared(&format!("{name}_free")) {
        words.extend([format!("`{name}_free`"), "last call".to_owned()]);
    }
    if declared(&format!("{name}_cancel")) {
        words.push(format!("`{name}_cancel`"));
    }
    // Words are compared, wherever the lines break.
    let comment = comment.replace('*', " ");
    let comment = comment.split_whitespace().collect::<Vec<_>>().join(" ");
    words.retain(|w| !comment.contains(w.trim()));
    words
}

#[test]
fn each_handle_says_which_threads_may_use_it_and_how_free_and_cancel_may_race() {
    let all = handles(GENERATED);
    assert!(all.len() >= 11, "{all:?}");
    for (name, comment) in all {
        let lacks = unsaid(GENERATED, name, comment);
        assert!(lacks.is_empty(), "{name}: its comment lacks {lacks:?}");
    }
    let silent = "/** A door.\n *\n * Threads: any. */\ntypedef struct brant_door brant_door;\n\n\
                  void brant_door_free(struct brant_door *door);\n\n\
                  int32_t brant_door_cancel(struct brant_door *door);\n";
    let [(name, comment)] = handles(silent)[..] else {
        panic!("there is one handle");
    };
    assert_eq!(
        unsaid(silent, name, comment),
        ["`brant_door_free`", "last call", "`brant_door_cancel`"]
    );
}

/// The sections of the header: the banner's first line, and the text below it.
fn sections(header: &str) -> Vec<(&str, &str)> {
    let banner = |text: &'static str| format!("\n/* {text}");
    let (thick, thin) = (banner("===="), banner("----"));
    let mut found = Vec::new();
    let mut rest = header;
    while let Some(at) = rest.find(&thick).into_iter().chain(rest.find(&thin)).min() {
        let (_, title) = rest[at..].split_once("\n * ").unwrap();
        let (title, below) = title.split_once('\n').unwrap();
        let (_, below) = below.split_once("*/\n").unwrap();
        let end = below
            .find(&thick)
            .into_iter()
            .chain(below.find(&thin))
            .min();
        found.push((title, &below[..end.unwrap_or(below.len())]));
        rest = below;
    }
    found
}

#[test]
fn the_sections_of_the_header_go_from_the_guest_over_its_migration_to_bitmaps() {
    let found = sections(GENERATED).into_iter();
    let titles: Vec<&str> = found
        .map(|(title, _)| title.split([':', ',']).next().unwrap())
        .collect();
    let wanted = [
        "Version and features",
        "Errors",
        "The guest",
        "Operations",
        "The gate",
        "The state of KVM's vCPUs and VMs",
        "Devices whose state is streamed",
        "The tracker",
        "The tracker's logs",
        "The tracker's logs",
        "Consumers",
        "Hints",
        "Outgoing",
        "Incoming",
        "Parameters of a migration",
        "Statistics of a migration",
        "Rate",
        "Images",
        "Bitmaps",
    ];
    assert_eq!(titles, wanted);
}

/// Constants of a section that no other text in it mentions, by name or as one of a group
/// (`BRANT_E_*`).
fn constants_without_users(section: &str) -> Vec<&str> {
    let defined = section.split("#define ").skip(1);
    let names = defined.map(|rest| rest.split(' ').next().unwrap());
    names
        .filter(|name| {
            let whole = section.matches(name).count() > 1;
            let mut group = name
                .match_indices('_')
                .map(|(at, _)| format!("{}*", &name[..=at]));
            !whole && !group.any(|group| group != "BRANT_*" && section.contains(&group))
        })
        .collect()
}

#[test]
fn constants_stand_beside_their_users() {
    for (title, section) in sections(GENERATED) {
        let mut alone = constants_without_users(section);
        // These are for programs that compare versions.
        alone.retain(|name| !name.starts_with("BRANT_VERSION_"));
        assert!(
            alone.is_empty(),
            "{title}: nothing here speaks of {alone:?}"
        );
    }
    let section = "#define BRANT_DOOR_OPEN 1\n#define BRANT_LOCK 2\n#define BRANT_KEY 3\n\
                   /** BRANT_DOOR_*, or BRANT_LOCK. */\nint32_t brant_door(void);\n";
    assert_eq!(constants_without_users(section), ["BRANT_KEY"]);
}

#[test]
fn a_free_returns_nothing_or_the_opening_comment_names_it() {
    let (opening, declarations) = GENERATED.split_once("*/").unwrap();
    let mut codes = Vec::new();
    for declaration in declarations.split(";\n") {
        let line = declaration.lines().last().unwrap_or_default();
        // A `_free` function takes the handle and nothing else.
        let Some((before, _)) = line.split_once("_free(struct ") else {
            continue;
        };
        match before.split_once(' ').unwrap() {
            ("void", _) => {}
            ("int32_t", name) => codes.push(format!("{name}_free")),
            other => panic!("{other:?}: a _free returns nothing or a code"),
        }
    }
    codes.sort();
    let wanted = [
        "brant_image_restore_free",
        "brant_image_save_free",
        "brant_incoming_free",
        "brant_outgoing_free",
    ];
    assert_eq!(codes, wanted);
    for name in codes {
        assert!(opening.contains(&name), "{name} returns a code");
    }
}
