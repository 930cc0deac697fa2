//! Puts the C header together: the text of `header/brant.h.in`, with each declaration of `src/capi`
//! in the section that the text gives it. Pure: text in, text out. `build.rs` calls it with
//! cbindgen's output for the declarations; `tests/rules/header.rs` tries it on small examples.
//!
//! Two kinds of lines of the text are commands:
//!
//! - `@items WORD...` stands for declarations, in the order of the words. A word is a file of
//!   `src/capi` (`stats.rs`), a name (`brant_sync`), or the beginning of names (`BRANT_SYNC_*`). A
//!   file stands for all of its declarations that no other word names, in the file's order.
//! - `@program FILE` stands for a file of `header/`, as lines of the comment around it.
//!
//! A declaration without a section is an error, and so is a word without a declaration.

use std::collections::{BTreeMap, BTreeSet};

/// The parts of the header.
pub struct Parts<'a> {
    /// The text with the commands.
    pub template: &'a str,
    /// The programs of the opening comment: name and text.
    pub programs: &'a [(String, String)],
    /// The files of `src/capi`: name and text.
    pub sources: &'a [(String, String)],
    /// The declarations as cbindgen writes them, with a blank line between two.
    pub generated: &'a str,
}

/// A declaration of `src/capi`: its place there, and its text in C.
struct Item {
    name: String,
    file: String,
    /// Follows the declaration before it without a blank line: one of a group of constants.
    joined: bool,
    text: String,
}

/// The whole header, or the error in its parts.
pub fn assemble(parts: &Parts) -> Result<String, String> {
    let items = items(parts)?;
    let placed = placed(parts.template, &items)?;
    let mut sections = placed.into_iter();
    let mut declared = BTreeSet::new();
    let mut header = String::new();
    for line in parts.template.lines() {
        match command(line) {
            Some(("items", _)) => {
                if !header.ends_with("\n\n") {
                    header.push('\n');
                }
                let section = sections.next().unwrap_or_default();
                header.push_str(&section_text(&items, &section, &mut declared));
            }
            Some(("program", file)) => {
                let program = parts.programs.iter().find(|(name, _)| name == file);
                let (_, text) = program.ok_or(format!("there is no header/{file}"))?;
                header.push_str(&in_comment(file, text)?);
            }
            Some((other, _)) => return Err(format!("header/brant.h.in: @{other} is no command")),
            None => {
                header.push_str(line);
                header.push('\n');
            }
        }
    }
    Ok(header)
}

fn command(line: &str) -> Option<(&str, &str)> {
    let line = line.strip_prefix('@')?;
    Some(line.split_once(' ').unwrap_or((line, "")))
}

/// The declarations in the order of `src/capi`, each with its text in C.
fn items(parts: &Parts) -> Result<Vec<Item>, String> {
    let mut texts = BTreeMap::new();
    for text in parts.generated.split("\n\n").map(str::trim) {
        if !text.is_empty() {
            texts.insert(declares(text)?.to_owned(), compact(text));
        }
    }
    let mut items = Vec::new();
    for (file, text) in parts.sources {
        for (name, joined) in declared_in(text) {
            let text = texts.remove(name).ok_or(format!(
                "src/capi/{file}: cbindgen leaves {name} out of the header: a constant is to be a \
                 number, a type is to be used by a function or a structure"
            ))?;
            items.push(Item {
                name: name.to_owned(),
                file: file.clone(),
                joined,
                text,
            });
        }
    }
    match texts.keys().next() {
        Some(name) => Err(format!(
            "{name} is declared in no file of src/capi: expected a line that begins with `pub const \
             {name}`, `pub struct {name}` or `pub extern \"C\" fn {name}`"
        )),
        None => Ok(items),
    }
}

/// The names that a file of `src/capi` declares for C, and whether each follows the declaration
/// before it without a blank line.
fn declared_in(text: &str) -> Vec<(&str, bool)> {
    let lines: Vec<&str> = text.lines().collect();
    let mut found = Vec::new();
    for (i, line) in lines.iter().enumerate() {
        let name = [
            "pub const ",
            "pub struct ",
            "pub unsafe extern \"C\" fn ",
            "pub extern \"C\" fn ",
        ]
        .iter()
        .find_map(|begin| line.strip_prefix(begin))
        .map(word)
        .filter(|name| name.starts_with("BRANT_") || name.starts_with("brant_"));
        if let Some(name) = name {
            let mut above = lines[..i].iter().rev();
            let above = above.find(|l| !l.starts_with("///") && !l.starts_with("#["));
            found.push((name, above.is_some_and(|l| l.starts_with("pub const "))));
        }
    }
    found
}

/// The name at the beginning of a text.
fn word(text: &str) -> &str {
    let end = text.find(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    &text[..end.unwrap_or(text.len())]
}

/// The name that a declaration of C declares.
fn declares(text: &str) -> Result<&str, String> {
    let code = code(text);
    let name = code
        .strip_prefix("#define ")
        .or_else(|| code.strip_prefix("typedef struct "))
        .or_else(|| {
            // A function: its name is the last word before the first parenthesis.
            let before = &code[..code.find('(')?];
            let begin = before.rfind(|c: char| !c.is_ascii_alphanumeric() && c != '_')?;
            Some(&before[begin + 1..])
        })
        .map(word)
        .filter(|name| name.to_lowercase().starts_with("brant_"));
    name.ok_or(format!("no declaration of brant's: {text}"))
}

/// A declaration without the comment before it.
fn code(text: &str) -> &str {
    match (text.starts_with("/*"), text.find("*/")) {
        (true, Some(end)) => text[end + 2..].trim_start(),
        _ => text,
    }
}

/// The declarations of each `@items`, in the order of the commands.
fn placed(template: &str, items: &[Item]) -> Result<Vec<Vec<usize>>, String> {
    let lines = template.lines().filter_map(command);
    let lists: Vec<Vec<&str>> = lines
        .filter(|(name, _)| *name == "items")
        .map(|(_, words)| words.split_whitespace().collect())
        .collect();
    let named = |word: &str, item: &Item| match word.strip_suffix('*') {
        Some(begin) => item.name.starts_with(begin),
        None => item.name == word,
    };
    let words = || lists.iter().flatten();
    let mut seen: BTreeMap<usize, &str> = BTreeMap::new();
    let mut sections = Vec::new();
    for list in &lists {
        let mut section = Vec::new();
        for word in list {
            let before = seen.len();
            for (i, item) in items.iter().enumerate() {
                let wanted = match word.ends_with(".rs") {
                    true => item.file == *word && !words().any(|w| named(w, item)),
                    false => named(word, item),
                };
                if !wanted {
                    continue;
                }
                if let Some(other) = seen.insert(i, word) {
                    return Err(format!(
                        "header/brant.h.in places {} twice: by `{other}` and by `{word}`",
                        item.name
                    ));
                }
                section.push(i);
            }
            if seen.len() == before {
                return Err(format!(
                    "header/brant.h.in places `{word}`, and src/capi declares nothing of it: where it \
                     was renamed or moved, change the word in its @items line"
                ));
            }
        }
        sections.push(section);
    }
    match items.iter().enumerate().find(|(i, _)| !seen.contains_key(i)) {
        Some((_, item)) => Err(format!(
            "src/capi/{}: {} has no section in the header: add `{}` (all of the file), or `{}`, to the \
             @items line of its section in header/brant.h.in",
            item.file, item.name, item.file, item.name
        )),
        None => Ok(sections),
    }
}

/// Declarations one after the other. Types that they use and that come later are put before them.
fn section_text(items: &[Item], section: &[usize], declared: &mut BTreeSet<String>) -> String {
    let mut text = String::new();
    for (at, &i) in section.iter().enumerate() {
        let item = &items[i];
        let follows = at > 0 && section[at - 1] + 1 == i && item.joined;
        if at > 0 && !follows {
            text.push('\n');
        }
        declared.insert(item.name.clone());
        let used = structures(&item.text);
        let later: Vec<_> = used
            .into_iter()
            .filter(|t| declared.insert((*t).to_owned()))
            .collect();
        for name in &later {
            text.push_str(&format!("struct {name};\n"));
        }
        if !later.is_empty() {
            text.push('\n');
        }
        text.push_str(&item.text);
        text.push('\n');
    }
    text
}

/// The structures that the code of a declaration names, in its order.
fn structures(text: &str) -> Vec<&str> {
    let mut found = Vec::new();
    let mut rest = text;
    while let Some(at) = rest
        .find("/*")
        .into_iter()
        .chain(rest.find("struct "))
        .min()
    {
        rest = &rest[at..];
        if rest.starts_with("/*") {
            rest = rest.find("*/").map_or("", |end| &rest[end..]);
        } else {
            rest = &rest["struct ".len()..];
            found.push(word(rest));
        }
    }
    found
}

/// A declaration with each comment of one line on one line, and its negative number in parentheses:
/// `code -BRANT_E_STATE` must not become `code --2`.
fn compact(text: &str) -> String {
    const WIDTH: usize = 100;
    let lines: Vec<&str> = text.lines().collect();
    let mut result = Vec::new();
    let mut i = 0;
    while i < lines.len() {
        let indent = &lines[i][..lines[i].len() - lines[i].trim_start().len()];
        let one = match lines[i..] {
            [begin, only, end, ..] if begin.trim() == "/**" && end.trim() == "*/" => {
                only.trim_start().strip_prefix("* ")
            }
            _ => None,
        };
        let one = one.map(|words| format!("{indent}/** {words} */"));
        if let Some(short) = one.filter(|line| line.len() <= WIDTH) {
            result.push(short);
            i += 3;
            continue;
        }
        let mut words = lines[i].splitn(3, ' ');
        result.push(match (words.next(), words.next(), words.next()) {
            (Some("#define"), Some(name), Some(value)) if value.starts_with('-') => {
                format!("#define {name} ({value})")
            }
            _ => lines[i].to_owned(),
        });
        i += 1;
    }
    result.join("\n")
}

/// A program as lines of a comment.
fn in_comment(file: &str, text: &str) -> Result<String, String> {
    if text.contains("/*") || text.contains("*/") {
        return Err(format!(
            "header/{file} stands inside a comment: its own comments begin with //"
        ));
    }
    let line = |line: &str| format!(" *     {line}").trim_end().to_owned() + "\n";
    Ok(text.lines().map(line).collect())
}
