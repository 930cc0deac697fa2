//! What a build has, and what it answers for what it lacks. `scripts/test` runs this program in the
//! usual build and in one that has nothing but the C face.

use brant::capi::error::{brant_error, brant_error_free, brant_error_message, BRANT_E_UNSUPPORTED};
use brant::capi::guest::{brant_guest, brant_guest_free, brant_guest_new};
use brant::capi::incoming::{brant_incoming, brant_incoming_free, brant_incoming_new};
use brant::capi::ops::brant_ops;
use brant::capi::outgoing::{brant_outgoing, brant_outgoing_free, brant_outgoing_new};
use brant::capi::params::{
    brant_params, BRANT_COMPRESSION_ADAPTIVE, BRANT_COMPRESSION_ALWAYS, BRANT_COMPRESSION_OFF,
};
use brant::capi::tracker::{brant_tracker, brant_tracker_free, brant_tracker_new};
use brant::capi::version::brant_has_feature;
use std::ffi::{c_void, CStr};
use std::ptr::{null, null_mut};

const COMPRESSION: bool = cfg!(feature = "compression");

unsafe extern "C" fn done(_: *mut c_void, _: *mut brant::capi::ops::brant_reason) -> i32 {
    0
}

/// A structure as BRANT_INIT makes it.
macro_rules! init {
    ($type:ty) => {{
        // SAFETY: C's structures may be all zeros.
        let mut made: $type = unsafe { std::mem::zeroed() };
        made.size = size_of::<$type>();
        made
    }};
}

/// What both sides answer to these parameters: code and message.
fn answers(compression: u32) -> [(i32, String); 2] {
    let mut params = init!(brant_params);
    params.compression = compression;
    let mut ops = init!(brant_ops);
    ops.pause = Some(done);
    ops.resume = Some(done);
    ops.run = Some(done);
    let mut guest: *mut brant_guest = null_mut();
    let mut tracker: *mut brant_tracker = null_mut();
    let mut outgoing: *mut brant_outgoing = null_mut();
    let mut incoming: *mut brant_incoming = null_mut();
    let mut error: *mut brant_error = null_mut();
    let said = |code, error: *mut brant_error| {
        if error.is_null() {
            return (code, String::new());
        }
        // SAFETY: an error of brant's, freed once.
        unsafe {
            let text = CStr::from_ptr(brant_error_message(error))
                .to_string_lossy()
                .into_owned();
            brant_error_free(error);
            (code, text)
        }
    };
    // SAFETY: every pointer is a local's or one that brant gave.
    unsafe {
        assert_eq!(brant_guest_new(&ops, null_mut(), &mut guest, null_mut()), 0);
        assert_eq!(
            brant_tracker_new(guest, null(), &mut tracker, null_mut()),
            0
        );
        let source = brant_outgoing_new(tracker, &params, &mut outgoing, &mut error);
        let source = said(source, error);
        let destination = brant_incoming_new(guest, &params, &mut incoming, &mut error);
        let destination = said(destination, error);
        assert_eq!(brant_outgoing_free(outgoing), 0);
        assert_eq!(brant_incoming_free(incoming), 0);
        brant_tracker_free(tracker);
        brant_guest_free(guest);
        [source, destination]
    }
}

#[test]
fn a_feature_that_the_build_lacks_is_unsupported_by_name_and_no_program_fails_to_link() {
    // SAFETY: a string.
    let has = unsafe { brant_has_feature(c"compression".as_ptr()) };
    assert_eq!(has, COMPRESSION as i32);
    for compression in [BRANT_COMPRESSION_ADAPTIVE, BRANT_COMPRESSION_ALWAYS] {
        for (code, message) in answers(compression) {
            if COMPRESSION {
                assert_eq!(code, 0, "{message}");
            } else {
                assert_eq!(code, BRANT_E_UNSUPPORTED, "{message}");
                assert!(message.contains("compression"), "{message}");
            }
        }
    }
    for (code, message) in answers(BRANT_COMPRESSION_OFF) {
        assert_eq!(code, 0, "{message}");
    }
}

#[test]
fn the_features_of_every_build_are_in_this_one() {
    for name in [
        c"bitmap",
        c"tracker",
        c"migration",
        c"kvm-log",
        c"postcopy",
        c"image",
    ] {
        // SAFETY: a string.
        assert_eq!(unsafe { brant_has_feature(name.as_ptr()) }, 1, "{name:?}");
    }
    for name in [c"", c"Bitmap", c"compression ", c"unknown"] {
        // SAFETY: a string.
        assert_eq!(unsafe { brant_has_feature(name.as_ptr()) }, 0, "{name:?}");
    }
}

#[test]
fn the_header_and_its_functions_are_the_same_whatever_the_build_has() {
    let generated = include_str!(concat!(env!("OUT_DIR"), "/brant.h"));
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let committed = std::fs::read_to_string(root.join("include/brant.h")).unwrap();
    assert!(generated == committed, "run: make header");
    // A function under a condition would be in the header, and not in every library.
    for entry in std::fs::read_dir(root.join("src/capi")).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() {
            let text = std::fs::read_to_string(&path).unwrap();
            assert!(!text.contains("cfg(feature"), "{}", path.display());
        }
    }
}
