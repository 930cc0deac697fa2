//! No call passes by the door, and a planned fault comes at its call.

use super::testing::plan::{Call, Fault, Scope, CALLER};
use super::testing::plausible::{faults, TABLE};
use crate::sys::{event, net};
use std::collections::BTreeSet;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use syn::visit::Visit;

/// Functions of the C library that make no system call which could fail: they compute, ask the C
/// library itself, or cannot fail with correct arguments.
const HARMLESS: &[&str] = &[
    "clock_gettime",
    "getrlimit",
    "major",
    "minor",
    "pthread_attr_destroy",
    "pthread_attr_getstack",
    "pthread_getattr_np",
    "gettid",
    "pthread_self",
    "pthread_sigmask",
    "sigaddset",
    "sigfillset",
    "sigismember",
    "sigtimedwait",
    "sysconf",
];

/// Modules and types of the standard library whose functions make system calls.
const STANDARD: &[&[&str]] = &[
    &["fs"],
    &["File"],
    &["OpenOptions"],
    &["process", "Command"],
    &["net", "TcpStream"],
    &["net", "TcpListener"],
    &["UnixStream"],
    &["UnixListener"],
    &["thread", "spawn"],
    &["thread", "Builder"],
    &["try_clone_to_owned"],
];

/// Every function that a file names and every method that it calls, except in parts that only tests
/// compile.
#[derive(Default)]
struct Calls(Vec<String>);

fn is_test(attributes: &[syn::Attribute]) -> bool {
    attributes.iter().any(|attribute| match &attribute.meta {
        syn::Meta::List(list) => {
            list.path.is_ident("cfg")
                && list.tokens.to_string().split(' ').any(|t| t == "test")
                && !list.tokens.to_string().contains("not")
        }
        _ => attribute.path().is_ident("test"),
    })
}

impl<'ast> Visit<'ast> for Calls {
    fn visit_item_mod(&mut self, item: &'ast syn::ItemMod) {
        if !is_test(&item.attrs) {
            syn::visit::visit_item_mod(self, item);
        }
    }
    fn visit_item_fn(&mut self, item: &'ast syn::ItemFn) {
        if !is_test(&item.attrs) {
            syn::visit::visit_item_fn(self, item);
        }
    }
    fn visit_expr_path(&mut self, path: &'ast syn::ExprPath) {
        let names: Vec<String> = path
            .path
            .segments
            .iter()
            .map(|s| s.ident.to_string())
            .collect();
        // A function is named to be called or to be passed on. A constant's name has capitals.
        let last = names.last().and_then(|name| name.chars().next());
        if last.is_some_and(char::is_lowercase) {
            self.0.push(names.join("::"));
        }
        syn::visit::visit_expr_path(self, path);
    }
    fn visit_expr_method_call(&mut self, call: &'ast syn::ExprMethodCall) {
        self.0.push(call.method.to_string());
        syn::visit::visit_expr_method_call(self, call);
    }
}

/// The reason why a call passes by the door, if it does.
fn passes_by(call: &str) -> bool {
    let names: Vec<&str> = call.split("::").collect();
    match names[..] {
        ["libc", name] => !HARMLESS.contains(&name),
        ["File", "from" | "options"] | ["sys", "thread", "spawn"] => false,
        ["std", "fs", "OpenOptions", "new"] | ["OpenOptions", "new"] => false,
        _ => STANDARD
            .iter()
            .any(|bad| names.windows(bad.len()).any(|part| part == *bad)),
    }
}

fn sources(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
}

/// Files that only a test module uses, by their path in `src`, because a checkout may be anywhere.
fn only_tests(path: &Path) -> bool {
    let name = path.file_stem().unwrap().to_str().unwrap();
    let parts = path.iter().filter_map(|p| p.to_str());
    name == "tests"
        || name == "testing"
        || parts
            .clone()
            .any(|p| ["tests", "testing", "faults"].contains(&p))
}

#[test]
fn every_system_call_of_the_crate_goes_through_the_door() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&root, &mut files);
    assert!(files.len() > 100, "{}", files.len());
    let mut strays = Vec::new();
    let mut through = 0;
    for file in files
        .iter()
        .filter(|file| !only_tests(file.strip_prefix(&root).unwrap()))
    {
        let text = std::fs::read_to_string(file).unwrap();
        let mut calls = Calls::default();
        calls.visit_file(&syn::parse_file(&text).unwrap());
        let inside = file.starts_with(root.join("sys/kernel"));
        through += calls
            .0
            .iter()
            .filter(|call| call.starts_with("kernel::"))
            .count();
        if !inside {
            let strange = calls.0.into_iter().filter(|call| passes_by(call));
            strays.extend(strange.map(|call| format!("{}: {call}", file.display())));
        }
    }
    // If the test finds no call, it has not looked at the sources.
    assert!(through > 60, "{through}");
    assert!(strays.is_empty(), "{strays:#?}");
}

#[test]
fn what_passes_the_door_by_is_seen() {
    let text = "
        fn f() { unsafe { libc::recvmsg(0, p, 0) }; }
        #[cfg(not(test))]
        fn g() { std::fs::write(a, b); c.map(File::open); fd.try_clone_to_owned(); }
        #[cfg(test)]
        mod tests { fn h() { libc::close(3); } }
    ";
    let mut calls = Calls::default();
    calls.visit_file(&syn::parse_file(text).unwrap());
    let found: Vec<&str> = calls
        .0
        .iter()
        .map(String::as_str)
        .filter(|c| passes_by(c))
        .collect();
    let expected = [
        "libc::recvmsg",
        "std::fs::write",
        "File::open",
        "try_clone_to_owned",
    ];
    assert_eq!(found, expected);
}

/// The names by which the door's functions ask are those of the table.
#[test]
fn every_call_at_the_door_has_its_faults() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/sys/kernel/testing/faulty.rs");
    let text = std::fs::read_to_string(file).unwrap();
    let asked: BTreeSet<&str> = text
        .split("next(\"")
        .skip(1)
        .chain(text.split("check(\"").skip(1))
        .chain(
            text.split("    fn ")
                .skip(1)
                .map(|rest| rest.split('(').next().unwrap()),
        )
        .map(|rest| rest.split('"').next().unwrap())
        .filter(|name| *name != "word")
        .collect();
    let known: BTreeSet<&str> = TABLE.iter().map(|(name, _)| *name).collect();
    let unknown: Vec<&&str> = asked.difference(&known).collect();
    assert!(asked.len() > 40 && unknown.is_empty(), "{unknown:?}");
    assert_eq!(known.len(), TABLE.len(), "named twice");
}

fn call(name: &'static str, number: u64) -> Call {
    Call {
        role: CALLER,
        name,
        number,
    }
}

#[test]
fn the_planned_call_fails_once_and_no_other() {
    let scope = Scope::default();
    scope.plan(call("eventfd", 1), Fault::Error(libc::EMFILE));
    scope.enter(|| {
        let made: Vec<bool> = (0..4).map(|_| event::eventfd().is_ok()).collect();
        assert_eq!(made, [true, false, true, true]);
    });
    assert!(scope.fired());
    assert_eq!(scope.calls().len(), 4);
    // Threads outside of any scope are not affected.
    scope.plan(call("eventfd", 4), Fault::Error(libc::EMFILE));
    assert!(event::eventfd().is_ok());
    assert!(!scope.fired());
}

#[test]
fn a_thread_belongs_to_the_scope_of_the_one_that_started_it() {
    use crate::runtime::{spawn, Role};
    let scope = Scope::default();
    let planned = Call {
        role: Role::Migration.name(),
        ..call("eventfd", 0)
    };
    scope.plan(planned, Fault::Error(libc::ENFILE));
    let there = scope.enter(|| {
        assert!(event::eventfd().is_ok());
        spawn(Role::Migration, |_| (), || event::eventfd().map(|_| ())).unwrap()
    });
    let error = there.join().unwrap().unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::ENFILE));
    assert!(scope.calls().contains(&planned));
}

#[test]
fn a_short_count_moves_so_much_and_not_more() {
    let scope = Scope::default();
    let (from, to) = UnixStream::pair().unwrap();
    let (mut bytes, mut room) = (*b"12345678", [0u8; 8]);
    let parts = |all: &mut [u8; 8]| {
        let (first, rest) = all.split_at_mut(3);
        [first, rest].map(|part| libc::iovec {
            iov_base: part.as_mut_ptr().cast(),
            iov_len: part.len(),
        })
    };
    scope.plan(call("sendmsg", 0), Fault::Short(5));
    let bytes = parts(&mut bytes);
    // SAFETY: bytes of this test's.
    let sent = scope.enter(|| unsafe { net::send(from.as_fd(), &bytes, net::Manner::Copied) });
    assert_eq!(sent.unwrap(), 5);
    scope.plan(call("recvmsg", 0), Fault::Short(4));
    let room = parts(&mut room);
    // SAFETY: a buffer of this test's.
    let receive = || scope.enter(|| unsafe { net::recv(to.as_fd(), &room) });
    assert_eq!(receive().unwrap(), 4);
    assert_eq!(receive().unwrap(), 1);
    scope.plan(call("recvmsg", 2), Fault::End);
    assert_eq!(receive().unwrap(), 0);
    assert!(faults("sendmsg").contains(&Fault::Short(1)));
}
