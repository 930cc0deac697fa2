//! Calls on bitmaps, rates and errors, and those without a handle.

use super::{Answer, Export};
use crate::capi::bitmap::*;
use crate::capi::error::*;
use crate::capi::rate::*;
use crate::capi::version::*;
use std::ptr::{null, null_mut};

pub const CALLS: &[Export] = &[
    (
        "brant_bitmap_new",
        |e| {
            // SAFETY: every pointer is null, except that for the error.
            Answer::Code(unsafe { brant_bitmap_new(1, null_mut(), e) })
        },
        None,
    ),
    (
        "brant_bitmap_free",
        |_| {
            // SAFETY: every pointer is null.
            unsafe { brant_bitmap_free(null_mut()) };
            Answer::Nothing
        },
        Some("nothing"),
    ),
    (
        "brant_bitmap_count",
        |_| {
            // SAFETY: every pointer is null, except that for the error.
            Answer::Number(unsafe { brant_bitmap_count(null()) })
        },
        Some("0"),
    ),
    (
        "brant_bitmap_test",
        |_| {
            // SAFETY: every pointer is null, except that for the error.
            Answer::Code(unsafe { brant_bitmap_test(null(), 1) })
        },
        Some("0"),
    ),
    (
        "brant_bitmap_set",
        |e| {
            // SAFETY: every pointer is null, except that for the error.
            Answer::Code(unsafe { brant_bitmap_set(null_mut(), 1, 1, null_mut(), e) })
        },
        None,
    ),
    (
        "brant_bitmap_clear",
        |e| {
            // SAFETY: every pointer is null, except that for the error.
            Answer::Code(unsafe { brant_bitmap_clear(null_mut(), 1, 1, null_mut(), e) })
        },
        None,
    ),
    (
        "brant_bitmap_merge_words",
        |e| {
            // SAFETY: every pointer is null, except that for the error.
            Answer::Code(unsafe {
                brant_bitmap_merge_words(null_mut(), 1, null(), 1, null_mut(), e)
            })
        },
        None,
    ),
    (
        "brant_bitmap_merge",
        |e| {
            // SAFETY: every pointer is null, except that for the error.
            Answer::Code(unsafe { brant_bitmap_merge(null_mut(), null(), null_mut(), e) })
        },
        None,
    ),
    (
        "brant_bitmap_next_run",
        |_| {
            // SAFETY: every pointer is null, except that for the error.
            Answer::Code(unsafe { brant_bitmap_next_run(null(), 1, 1, null_mut(), null_mut()) })
        },
        Some("-22"),
    ),
    (
        "brant_error_code",
        |_| {
            // SAFETY: every pointer is null, except that for the error.
            Answer::Code(unsafe { brant_error_code(null()) })
        },
        Some("-22"),
    ),
    (
        "brant_error_message",
        |_| {
            // SAFETY: every pointer is null, except that for the error.
            Answer::Text(unsafe { brant_error_message(null()) })
        },
        Some("\"\""),
    ),
    (
        "brant_error_free",
        |_| {
            // SAFETY: every pointer is null.
            unsafe { brant_error_free(null_mut()) };
            Answer::Nothing
        },
        Some("nothing"),
    ),
    (
        "brant_error_name",
        |_| {
            // SAFETY: every pointer is null, except that for the error.
            Answer::Text(brant_error_name(-1))
        },
        Some("\"unknown error\""),
    ),
    (
        "brant_rate_new",
        |e| {
            // SAFETY: every pointer is null, except that for the error.
            Answer::Code(unsafe { brant_rate_new(null_mut(), null(), null_mut(), e) })
        },
        None,
    ),
    (
        "brant_rate_free",
        |_| {
            // SAFETY: every pointer is null.
            unsafe { brant_rate_free(null_mut()) };
            Answer::Nothing
        },
        Some("nothing"),
    ),
    (
        "brant_rate_measure",
        |e| {
            // SAFETY: every pointer is null, except that for the error.
            Answer::Code(unsafe { brant_rate_measure(null_mut(), null_mut(), e) })
        },
        None,
    ),
    (
        "brant_rate_finish",
        |e| {
            // SAFETY: every pointer is null, except that for the error.
            Answer::Code(unsafe { brant_rate_finish(null(), e) })
        },
        None,
    ),
    (
        "brant_rate_forecast",
        |e| {
            // SAFETY: every pointer is null, except that for the error.
            Answer::Code(unsafe { brant_rate_forecast(null(), null(), null(), 1, null_mut(), e) })
        },
        None,
    ),
    (
        "brant_rate_get_vcpus",
        |e| {
            // SAFETY: every pointer is null, except that for the error.
            Answer::Code(unsafe { brant_rate_get_vcpus(null(), null_mut(), 1, null_mut(), e) })
        },
        None,
    ),
    (
        "brant_rate_progress",
        |_| {
            // SAFETY: every pointer is null, except that for the error.
            Answer::Number(unsafe { brant_rate_progress(null()) })
        },
        Some("0"),
    ),
    (
        "brant_rate_cancel",
        |e| {
            // SAFETY: every pointer is null, except that for the error.
            Answer::Code(unsafe { brant_rate_cancel(null(), e) })
        },
        None,
    ),
    (
        "brant_version",
        |_| {
            // SAFETY: every pointer is null, except that for the error.
            Answer::Text(brant_version())
        },
        Some("\"\""),
    ),
    (
        "brant_has_feature",
        |_| {
            // SAFETY: every pointer is null, except that for the error.
            Answer::Code(unsafe { brant_has_feature(null()) })
        },
        Some("0"),
    ),
];
