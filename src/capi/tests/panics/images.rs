//! Calls on saves to an image, restores from one, merges and descriptions.

use super::{Answer, Export};
use crate::capi::chain::*;
use crate::capi::image_merge::*;
use crate::capi::image_restore::*;
use crate::capi::image_save::*;
use std::ptr::{null, null_mut};

pub const CALLS: &[Export] = &[
    (
        "brant_image_chain_new",
        |e| {
            // SAFETY: every pointer is null, except that for the error.
            Answer::Code(unsafe { brant_image_chain_new(null_mut(), null_mut(), e) })
        },
        None,
    ),
    (
        "brant_image_chain_free",
        |_| {
            // SAFETY: null is nothing.
            unsafe { brant_image_chain_free(null_mut()) };
            Answer::Nothing
        },
        Some("nothing"),
    ),
    (
        "brant_image_merge",
        |e| {
            // SAFETY: every pointer is null, except that for the error.
            Answer::Code(unsafe { brant_image_merge(null(), null(), e) })
        },
        None,
    ),
    (
        "brant_image_merging_new",
        |e| {
            // SAFETY: every pointer is null, except that for the error.
            Answer::Code(unsafe { brant_image_merging_new(null(), null_mut(), e) })
        },
        None,
    ),
    (
        "brant_image_merging_free",
        |_| {
            // SAFETY: null is nothing.
            unsafe { brant_image_merging_free(null_mut()) };
            Answer::Nothing
        },
        Some("nothing"),
    ),
    (
        "brant_image_merging_start",
        |e| {
            // SAFETY: every pointer is null, except that for the error.
            Answer::Code(unsafe { brant_image_merging_start(null_mut(), null(), null(), e) })
        },
        None,
    ),
    (
        "brant_image_merging_cancel",
        |e| {
            // SAFETY: every pointer is null, except that for the error.
            Answer::Code(unsafe { brant_image_merging_cancel(null_mut(), e) })
        },
        None,
    ),
    (
        "brant_image_merging_wait",
        |e| {
            // SAFETY: every pointer is null, except that for the error.
            Answer::Code(unsafe { brant_image_merging_wait(null_mut(), 1, e) })
        },
        None,
    ),
    (
        "brant_image_merging_get_stats",
        |e| {
            // SAFETY: every pointer is null, except that for the error.
            Answer::Code(unsafe { brant_image_merging_get_stats(null(), null_mut(), e) })
        },
        None,
    ),
    (
        "brant_image_merging_event_fd",
        |_| {
            // SAFETY: a null pointer.
            Answer::Code(unsafe { brant_image_merging_event_fd(null()) })
        },
        Some("-22"),
    ),
    (
        "brant_image_describe",
        |e| {
            // SAFETY: every pointer is null, except that for the error.
            Answer::Code(unsafe { brant_image_describe(null(), null_mut(), 0, null_mut(), e) })
        },
        None,
    ),
    (
        "brant_image_save_new",
        |e| {
            // SAFETY: every pointer is null, except that for the error.
            Answer::Code(unsafe { brant_image_save_new(null_mut(), null(), null_mut(), e) })
        },
        None,
    ),
    (
        "brant_image_save_free",
        |_| {
            // SAFETY: every pointer is null, except that for the error.
            Answer::Code(unsafe { brant_image_save_free(null_mut()) })
        },
        Some("-22"),
    ),
    (
        "brant_image_save_start",
        |e| {
            // SAFETY: every pointer is null, except that for the error.
            Answer::Code(unsafe { brant_image_save_start(null_mut(), null(), e) })
        },
        None,
    ),
    (
        "brant_image_save_cancel",
        |e| {
            // SAFETY: every pointer is null, except that for the error.
            Answer::Code(unsafe { brant_image_save_cancel(null_mut(), e) })
        },
        None,
    ),
    (
        "brant_image_save_wait",
        |e| {
            // SAFETY: every pointer is null, except that for the error.
            Answer::Code(unsafe { brant_image_save_wait(null_mut(), 1, e) })
        },
        None,
    ),
    (
        "brant_image_save_get_stats",
        |e| {
            // SAFETY: every pointer is null, except that for the error.
            Answer::Code(unsafe { brant_image_save_get_stats(null(), null_mut(), e) })
        },
        None,
    ),
    (
        "brant_image_save_event_fd",
        |_| {
            // SAFETY: every pointer is null, except that for the error.
            Answer::Code(unsafe { brant_image_save_event_fd(null()) })
        },
        Some("-22"),
    ),
    (
        "brant_image_restore_new",
        |e| {
            // SAFETY: every pointer is null, except that for the error.
            Answer::Code(unsafe { brant_image_restore_new(null_mut(), null(), null_mut(), e) })
        },
        None,
    ),
    (
        "brant_image_restore_free",
        |_| {
            // SAFETY: every pointer is null, except that for the error.
            Answer::Code(unsafe { brant_image_restore_free(null_mut()) })
        },
        Some("-22"),
    ),
    (
        "brant_image_restore_start",
        |e| {
            // SAFETY: every pointer is null, except that for the error.
            Answer::Code(unsafe { brant_image_restore_start(null_mut(), null(), e) })
        },
        None,
    ),
    (
        "brant_image_restore_cancel",
        |e| {
            // SAFETY: every pointer is null, except that for the error.
            Answer::Code(unsafe { brant_image_restore_cancel(null_mut(), e) })
        },
        None,
    ),
    (
        "brant_image_restore_wait",
        |e| {
            // SAFETY: every pointer is null, except that for the error.
            Answer::Code(unsafe { brant_image_restore_wait(null_mut(), 1, e) })
        },
        None,
    ),
    (
        "brant_image_restore_finish",
        |e| {
            // SAFETY: every pointer is null, except that for the error.
            Answer::Code(unsafe { brant_image_restore_finish(null_mut(), 1, e) })
        },
        None,
    ),
    (
        "brant_image_restore_get_stats",
        |e| {
            // SAFETY: every pointer is null, except that for the error.
            Answer::Code(unsafe { brant_image_restore_get_stats(null(), null_mut(), e) })
        },
        None,
    ),
    (
        "brant_image_restore_event_fd",
        |_| {
            // SAFETY: every pointer is null, except that for the error.
            Answer::Code(unsafe { brant_image_restore_event_fd(null()) })
        },
        Some("-22"),
    ),
];
