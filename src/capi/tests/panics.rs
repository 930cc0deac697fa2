//! A panic below any export comes back as the value that the function returns when it fails. The
//! exports are read from the header. Only tests use this file.

mod gate;
mod guest;
mod images;
mod migration;
mod others;
mod tracking;

use crate::capi::error::*;
use crate::migrate::planted::plant;
use std::collections::BTreeSet;
use std::ffi::{c_char, CStr};
use std::ptr::null_mut;
use std::sync::atomic::Ordering;

const HEADER: &str = include_str!("../../../include/brant.h");

/// How a function reports a panic.
enum Answer {
    Nothing,
    Code(i32),
    Number(u64),
    Text(*const c_char),
}

impl Answer {
    fn of(self) -> String {
        match self {
            Answer::Nothing => "nothing".to_owned(),
            Answer::Code(code) => code.to_string(),
            Answer::Number(number) => number.to_string(),
            // SAFETY: what these functions return is a static string.
            Answer::Text(text) => format!("{:?}", unsafe { CStr::from_ptr(text) }),
        }
    }
}

type Call = unsafe fn(*mut *mut brant_error) -> Answer;

/// Name, a call, and its return value after a panic; null if that is BRANT_E_INTERNAL with an error
/// object. The arguments do not matter: the panic comes before they are used, and before errors
/// about them.
type Export = (&'static str, Call, Option<&'static str>);

const EXPORTS: [&[Export]; 6] = [
    gate::CALLS,
    guest::CALLS,
    images::CALLS,
    migration::CALLS,
    others::CALLS,
    tracking::CALLS,
];

#[test]
fn a_panic_below_any_export_comes_back_as_an_error() {
    let declared: BTreeSet<&str> = HEADER
        .split(|c: char| !c.is_alphanumeric() && c != '_' && c != '(')
        .filter_map(|word| word.split_once('('))
        .map(|(name, _)| name)
        .filter(|name| name.starts_with("brant_"))
        .collect();
    let tried: BTreeSet<&str> = EXPORTS.concat().iter().map(|(name, ..)| *name).collect();
    let lost: Vec<_> = declared.symmetric_difference(&tried).collect();
    assert!(
        lost.is_empty(),
        "{lost:?}: only the header has them, or only CALLS in src/capi/tests/panics/"
    );
    for (name, call, answer) in EXPORTS.concat() {
        for place in ["before export", "after export"] {
            let mut error = null_mut();
            let fired = plant(place);
            // SAFETY: a place for an error.
            let found = unsafe { call(&mut error) }.of();
            assert!(
                fired.load(Ordering::SeqCst),
                "{name}: the panic {place} did not happen"
            );
            match answer {
                Some(answer) => assert_eq!(found, answer, "{name} {place}"),
                None => {
                    assert_eq!(found, BRANT_E_INTERNAL.to_string(), "{name} {place}");
                    // SAFETY: just made.
                    unsafe {
                        assert_eq!(brant_error_code(error), BRANT_E_INTERNAL, "{name}");
                        let text = CStr::from_ptr(brant_error_message(error));
                        assert!(
                            text.to_string_lossy().contains("planted"),
                            "{name}: {text:?}"
                        );
                        brant_error_free(error);
                    }
                }
            }
        }
    }
}
