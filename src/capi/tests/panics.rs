//! A panic below any export comes back as what that function returns when it fails. Which
//! exports there are is read from the header. A test, and nothing else.

use crate::capi::balloon::*;
use crate::capi::bitmap::*;
use crate::capi::blocker::*;
use crate::capi::consumer::*;
use crate::capi::error::*;
use crate::capi::guest::*;
use crate::capi::hints::*;
use crate::capi::image::*;
use crate::capi::incoming::*;
use crate::capi::kvm::*;
use crate::capi::measure::*;
use crate::capi::ops::*;
use crate::capi::outgoing::*;
use crate::capi::owner::*;
use crate::capi::rate::*;
use crate::capi::ring::*;
use crate::capi::tracker::*;
use crate::capi::userfault::*;
use crate::capi::version::*;
use crate::capi::vfio::*;
use crate::capi::vhost::*;
use crate::migrate::planted::plant;
use std::collections::BTreeSet;
use std::ffi::{c_char, CStr};
use std::ptr::{null, null_mut};
use std::sync::atomic::Ordering;

const HEADER: &str = include_str!("../../../include/brant.h");

/// What a function makes of a panic.
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

/// Name, a call, and what it returns when it panics; null where that is BRANT_E_INTERNAL with
/// an error object. The arguments do not matter: none is used before the panic, and what is
/// wrong with them is said before the other.
const EXPORTS: &[(&str, Call, Option<&str>)] = &[
    (
        "brant_bitmap_new",
        |e| {
            // SAFETY: nothing is passed, but a place for an error.
            Answer::Code(unsafe { brant_bitmap_new(1, null_mut(), e) })
        },
        None,
    ),
    (
        "brant_bitmap_free",
        |_| {
            // SAFETY: nothing is passed.
            unsafe { brant_bitmap_free(null_mut()) };
            Answer::Nothing
        },
        Some("nothing"),
    ),
    (
        "brant_bitmap_count",
        |_| {
            // SAFETY: nothing is passed, but a place for an error.
            Answer::Number(unsafe { brant_bitmap_count(null()) })
        },
        Some("0"),
    ),
    (
        "brant_bitmap_test",
        |_| {
            // SAFETY: nothing is passed, but a place for an error.
            Answer::Code(unsafe { brant_bitmap_test(null(), 1) })
        },
        Some("0"),
    ),
    (
        "brant_bitmap_set",
        |e| {
            // SAFETY: nothing is passed, but a place for an error.
            Answer::Code(unsafe { brant_bitmap_set(null_mut(), 1, 1, null_mut(), e) })
        },
        None,
    ),
    (
        "brant_bitmap_clear",
        |e| {
            // SAFETY: nothing is passed, but a place for an error.
            Answer::Code(unsafe { brant_bitmap_clear(null_mut(), 1, 1, null_mut(), e) })
        },
        None,
    ),
    (
        "brant_bitmap_merge_words",
        |e| {
            // SAFETY: nothing is passed, but a place for an error.
            Answer::Code(unsafe {
                brant_bitmap_merge_words(null_mut(), 1, null(), 1, null_mut(), e)
            })
        },
        None,
    ),
    (
        "brant_bitmap_merge",
        |e| {
            // SAFETY: nothing is passed, but a place for an error.
            Answer::Code(unsafe { brant_bitmap_merge(null_mut(), null(), null_mut(), e) })
        },
        None,
    ),
    (
        "brant_bitmap_next_run",
        |_| {
            // SAFETY: nothing is passed, but a place for an error.
            Answer::Code(unsafe { brant_bitmap_next_run(null(), 1, 1, null_mut(), null_mut()) })
        },
        Some("-22"),
    ),
    (
        "brant_error_code",
        |_| {
            // SAFETY: nothing is passed, but a place for an error.
            Answer::Code(unsafe { brant_error_code(null()) })
        },
        Some("-22"),
    ),
    (
        "brant_error_message",
        |_| {
            // SAFETY: nothing is passed, but a place for an error.
            Answer::Text(unsafe { brant_error_message(null()) })
        },
        Some("\"\""),
    ),
    (
        "brant_error_free",
        |_| {
            // SAFETY: nothing is passed.
            unsafe { brant_error_free(null_mut()) };
            Answer::Nothing
        },
        Some("nothing"),
    ),
    (
        "brant_error_name",
        |_| {
            // SAFETY: nothing is passed, but a place for an error.
            Answer::Text(brant_error_name(-1))
        },
        Some("\"unknown error\""),
    ),
    (
        "brant_guest_new",
        |e| {
            // SAFETY: nothing is passed, but a place for an error.
            Answer::Code(unsafe { brant_guest_new(null(), null_mut(), null_mut(), e) })
        },
        None,
    ),
    (
        "brant_guest_free",
        |_| {
            // SAFETY: nothing is passed.
            unsafe { brant_guest_free(null_mut()) };
            Answer::Nothing
        },
        Some("nothing"),
    ),
    (
        "brant_guest_add_block",
        |e| {
            // SAFETY: nothing is passed, but a place for an error.
            Answer::Code(unsafe { brant_guest_add_block(null_mut(), null(), null_mut(), e) })
        },
        None,
    ),
    (
        "brant_guest_find_block",
        |e| {
            // SAFETY: nothing is passed, but a place for an error.
            Answer::Code(unsafe { brant_guest_find_block(null(), null(), null_mut(), e) })
        },
        None,
    ),
    (
        "brant_guest_remove_block",
        |e| {
            // SAFETY: nothing is passed, but a place for an error.
            Answer::Code(unsafe { brant_guest_remove_block(null_mut(), 0, e) })
        },
        None,
    ),
    (
        "brant_guest_add_slot",
        |e| {
            // SAFETY: nothing is passed, but a place for an error.
            Answer::Code(unsafe { brant_guest_add_slot(null_mut(), null(), e) })
        },
        None,
    ),
    (
        "brant_guest_remove_slot",
        |e| {
            // SAFETY: nothing is passed, but a place for an error.
            Answer::Code(unsafe { brant_guest_remove_slot(null_mut(), 1, 1, e) })
        },
        None,
    ),
    (
        "brant_guest_must_tell_host",
        |e| {
            // SAFETY: nothing is passed, but a place for an error.
            Answer::Code(unsafe { brant_guest_must_tell_host(null_mut(), 1, e) })
        },
        None,
    ),
    (
        "brant_guest_mark_poisoned",
        |e| {
            // SAFETY: nothing is passed, but a place for an error.
            Answer::Code(unsafe { brant_guest_mark_poisoned(null_mut(), 0, 0, 1, e) })
        },
        None,
    ),
    (
        "brant_guest_clear_poisoned",
        |e| {
            // SAFETY: nothing is passed, but a place for an error.
            Answer::Code(unsafe { brant_guest_clear_poisoned(null_mut(), 0, 0, 1, e) })
        },
        None,
    ),
    (
        "brant_guest_mark_ballooned",
        |_| {
            // SAFETY: nothing is passed.
            unsafe { brant_guest_mark_ballooned(null(), 1, 1) };
            Answer::Nothing
        },
        Some("nothing"),
    ),
    (
        "brant_guest_clear_ballooned",
        |_| {
            // SAFETY: nothing is passed.
            unsafe { brant_guest_clear_ballooned(null(), 1, 1) };
            Answer::Nothing
        },
        Some("nothing"),
    ),
    (
        "brant_guest_count_ballooned",
        |e| {
            // SAFETY: nothing is passed, but a place for an error.
            Answer::Code(unsafe { brant_guest_count_ballooned(null(), 1, 1, null_mut(), e) })
        },
        None,
    ),
    (
        "brant_guest_get_state",
        |e| {
            // SAFETY: nothing is passed, but a place for an error.
            Answer::Code(unsafe { brant_guest_get_state(null(), null_mut(), e) })
        },
        None,
    ),
    (
        "brant_guest_runs_here",
        |e| {
            // SAFETY: nothing is passed, but a place for an error.
            Answer::Code(unsafe { brant_guest_runs_here(null_mut(), e) })
        },
        None,
    ),
    (
        "brant_guest_reclaim",
        |e| {
            // SAFETY: nothing is passed, but a place for an error.
            Answer::Code(unsafe { brant_guest_reclaim(null_mut(), e) })
        },
        None,
    ),
    (
        "brant_guest_give_up",
        |e| {
            // SAFETY: nothing is passed, but a place for an error.
            Answer::Code(unsafe { brant_guest_give_up(null_mut(), e) })
        },
        None,
    ),
    (
        "brant_blocker_new",
        |e| {
            // SAFETY: nothing is passed, but a place for an error.
            Answer::Code(unsafe { brant_blocker_new(null_mut(), null(), null_mut(), e) })
        },
        None,
    ),
    (
        "brant_blocker_free",
        |_| {
            // SAFETY: nothing is passed.
            unsafe { brant_blocker_free(null_mut()) };
            Answer::Nothing
        },
        Some("nothing"),
    ),
    (
        "brant_incoming_new",
        |e| {
            // SAFETY: nothing is passed, but a place for an error.
            Answer::Code(unsafe { brant_incoming_new(null_mut(), null(), null_mut(), e) })
        },
        None,
    ),
    (
        "brant_incoming_free",
        |_| {
            // SAFETY: nothing is passed, but a place for an error.
            Answer::Code(unsafe { brant_incoming_free(null_mut()) })
        },
        Some("-22"),
    ),
    (
        "brant_incoming_get_endpoint",
        |e| {
            // SAFETY: nothing is passed, but a place for an error.
            Answer::Code(unsafe {
                brant_incoming_get_endpoint(null(), null_mut(), 1, null_mut(), e)
            })
        },
        None,
    ),
    (
        "brant_incoming_listen",
        |e| {
            // SAFETY: nothing is passed, but a place for an error.
            Answer::Code(unsafe { brant_incoming_listen(null_mut(), null(), e) })
        },
        None,
    ),
    (
        "brant_incoming_start_fd",
        |e| {
            // SAFETY: nothing is passed, but a place for an error.
            Answer::Code(unsafe { brant_incoming_start_fd(null_mut(), -1, e) })
        },
        None,
    ),
    (
        "brant_incoming_cancel",
        |e| {
            // SAFETY: nothing is passed, but a place for an error.
            Answer::Code(unsafe { brant_incoming_cancel(null_mut(), e) })
        },
        None,
    ),
    (
        "brant_incoming_wait",
        |e| {
            // SAFETY: nothing is passed, but a place for an error.
            Answer::Code(unsafe { brant_incoming_wait(null_mut(), 1, e) })
        },
        None,
    ),
    (
        "brant_incoming_get_stats",
        |e| {
            // SAFETY: nothing is passed, but a place for an error.
            Answer::Code(unsafe { brant_incoming_get_stats(null(), null_mut(), e) })
        },
        None,
    ),
    (
        "brant_incoming_get_stats_json",
        |e| {
            // SAFETY: nothing is passed, but a place for an error.
            Answer::Code(unsafe {
                brant_incoming_get_stats_json(null(), null_mut(), 1, null_mut(), e)
            })
        },
        None,
    ),
    (
        "brant_incoming_event_fd",
        |_| {
            // SAFETY: nothing is passed, but a place for an error.
            Answer::Code(unsafe { brant_incoming_event_fd(null()) })
        },
        Some("-22"),
    ),
    (
        "brant_reason_set",
        |_| {
            // SAFETY: nothing is passed.
            unsafe { brant_reason_set(null_mut(), null()) };
            Answer::Nothing
        },
        Some("nothing"),
    ),
    (
        "brant_saver_put",
        |e| {
            // SAFETY: nothing is passed, but a place for an error.
            Answer::Code(unsafe { brant_saver_put(null_mut(), null(), 1, 1, null(), 1, e) })
        },
        None,
    ),
    (
        "brant_outgoing_new",
        |e| {
            // SAFETY: nothing is passed, but a place for an error.
            Answer::Code(unsafe { brant_outgoing_new(null_mut(), null(), null_mut(), e) })
        },
        None,
    ),
    (
        "brant_outgoing_free",
        |_| {
            // SAFETY: nothing is passed, but a place for an error.
            Answer::Code(unsafe { brant_outgoing_free(null_mut()) })
        },
        Some("-22"),
    ),
    (
        "brant_outgoing_start",
        |e| {
            // SAFETY: nothing is passed, but a place for an error.
            Answer::Code(unsafe { brant_outgoing_start(null_mut(), null(), e) })
        },
        None,
    ),
    (
        "brant_outgoing_start_fd",
        |e| {
            // SAFETY: nothing is passed, but a place for an error.
            Answer::Code(unsafe { brant_outgoing_start_fd(null_mut(), -1, e) })
        },
        None,
    ),
    (
        "brant_outgoing_cancel",
        |e| {
            // SAFETY: nothing is passed, but a place for an error.
            Answer::Code(unsafe { brant_outgoing_cancel(null_mut(), e) })
        },
        None,
    ),
    (
        "brant_outgoing_wait",
        |e| {
            // SAFETY: nothing is passed, but a place for an error.
            Answer::Code(unsafe { brant_outgoing_wait(null_mut(), 1, e) })
        },
        None,
    ),
    (
        "brant_outgoing_resolve",
        |e| {
            // SAFETY: nothing is passed, but a place for an error.
            Answer::Code(unsafe { brant_outgoing_resolve(null_mut(), 1, e) })
        },
        None,
    ),
    (
        "brant_outgoing_get_stats",
        |e| {
            // SAFETY: nothing is passed, but a place for an error.
            Answer::Code(unsafe { brant_outgoing_get_stats(null(), null_mut(), e) })
        },
        None,
    ),
    (
        "brant_outgoing_get_stats_json",
        |e| {
            // SAFETY: nothing is passed, but a place for an error.
            Answer::Code(unsafe {
                brant_outgoing_get_stats_json(null(), null_mut(), 1, null_mut(), e)
            })
        },
        None,
    ),
    (
        "brant_outgoing_event_fd",
        |_| {
            // SAFETY: nothing is passed, but a place for an error.
            Answer::Code(unsafe { brant_outgoing_event_fd(null()) })
        },
        Some("-22"),
    ),
    (
        "brant_rate_new",
        |e| {
            // SAFETY: nothing is passed, but a place for an error.
            Answer::Code(unsafe { brant_rate_new(null_mut(), null(), null_mut(), e) })
        },
        None,
    ),
    (
        "brant_rate_free",
        |_| {
            // SAFETY: nothing is passed.
            unsafe { brant_rate_free(null_mut()) };
            Answer::Nothing
        },
        Some("nothing"),
    ),
    (
        "brant_rate_measure",
        |e| {
            // SAFETY: nothing is passed, but a place for an error.
            Answer::Code(unsafe { brant_rate_measure(null_mut(), null_mut(), e) })
        },
        None,
    ),
    (
        "brant_rate_finish",
        |e| {
            // SAFETY: nothing is passed, but a place for an error.
            Answer::Code(unsafe { brant_rate_finish(null(), e) })
        },
        None,
    ),
    (
        "brant_rate_get_vcpus",
        |e| {
            // SAFETY: nothing is passed, but a place for an error.
            Answer::Code(unsafe { brant_rate_get_vcpus(null(), null_mut(), 1, null_mut(), e) })
        },
        None,
    ),
    (
        "brant_rate_progress",
        |_| {
            // SAFETY: nothing is passed, but a place for an error.
            Answer::Number(unsafe { brant_rate_progress(null()) })
        },
        Some("0"),
    ),
    (
        "brant_rate_cancel",
        |e| {
            // SAFETY: nothing is passed, but a place for an error.
            Answer::Code(unsafe { brant_rate_cancel(null(), e) })
        },
        None,
    ),
    (
        "brant_image_save_new",
        |e| {
            // SAFETY: nothing is passed, but a place for an error.
            Answer::Code(unsafe { brant_image_save_new(null_mut(), null(), null_mut(), e) })
        },
        None,
    ),
    (
        "brant_image_save_free",
        |_| {
            // SAFETY: nothing is passed, but a place for an error.
            Answer::Code(unsafe { brant_image_save_free(null_mut()) })
        },
        Some("-22"),
    ),
    (
        "brant_image_save_start",
        |e| {
            // SAFETY: nothing is passed, but a place for an error.
            Answer::Code(unsafe { brant_image_save_start(null_mut(), null(), e) })
        },
        None,
    ),
    (
        "brant_image_save_cancel",
        |e| {
            // SAFETY: nothing is passed, but a place for an error.
            Answer::Code(unsafe { brant_image_save_cancel(null_mut(), e) })
        },
        None,
    ),
    (
        "brant_image_save_wait",
        |e| {
            // SAFETY: nothing is passed, but a place for an error.
            Answer::Code(unsafe { brant_image_save_wait(null_mut(), 1, e) })
        },
        None,
    ),
    (
        "brant_image_save_get_stats",
        |e| {
            // SAFETY: nothing is passed, but a place for an error.
            Answer::Code(unsafe { brant_image_save_get_stats(null(), null_mut(), e) })
        },
        None,
    ),
    (
        "brant_image_save_event_fd",
        |_| {
            // SAFETY: nothing is passed, but a place for an error.
            Answer::Code(unsafe { brant_image_save_event_fd(null()) })
        },
        Some("-22"),
    ),
    (
        "brant_image_restore_new",
        |e| {
            // SAFETY: nothing is passed, but a place for an error.
            Answer::Code(unsafe { brant_image_restore_new(null_mut(), null(), null_mut(), e) })
        },
        None,
    ),
    (
        "brant_image_restore_free",
        |_| {
            // SAFETY: nothing is passed, but a place for an error.
            Answer::Code(unsafe { brant_image_restore_free(null_mut()) })
        },
        Some("-22"),
    ),
    (
        "brant_image_restore_start",
        |e| {
            // SAFETY: nothing is passed, but a place for an error.
            Answer::Code(unsafe { brant_image_restore_start(null_mut(), null(), e) })
        },
        None,
    ),
    (
        "brant_image_restore_cancel",
        |e| {
            // SAFETY: nothing is passed, but a place for an error.
            Answer::Code(unsafe { brant_image_restore_cancel(null_mut(), e) })
        },
        None,
    ),
    (
        "brant_image_restore_wait",
        |e| {
            // SAFETY: nothing is passed, but a place for an error.
            Answer::Code(unsafe { brant_image_restore_wait(null_mut(), 1, e) })
        },
        None,
    ),
    (
        "brant_image_restore_get_stats",
        |e| {
            // SAFETY: nothing is passed, but a place for an error.
            Answer::Code(unsafe { brant_image_restore_get_stats(null(), null_mut(), e) })
        },
        None,
    ),
    (
        "brant_image_restore_event_fd",
        |_| {
            // SAFETY: nothing is passed, but a place for an error.
            Answer::Code(unsafe { brant_image_restore_event_fd(null()) })
        },
        Some("-22"),
    ),
    (
        "brant_kvm_enable_ring",
        |e| {
            // SAFETY: nothing is passed, but a place for an error.
            Answer::Code(unsafe { brant_kvm_enable_ring(-1, 1, null_mut(), e) })
        },
        None,
    ),
    (
        "brant_kvm_measure",
        |e| {
            // SAFETY: nothing is passed, but a place for an error.
            Answer::Code(unsafe {
                brant_kvm_measure(-1, null(), null_mut(), null_mut(), 0, null_mut(), e)
            })
        },
        None,
    ),
    (
        "brant_tracker_add_vcpu",
        |e| {
            // SAFETY: nothing is passed, but a place for an error.
            Answer::Code(unsafe { brant_tracker_add_vcpu(null_mut(), 1, -1, e) })
        },
        None,
    ),
    (
        "brant_tracker_ring_full",
        |e| {
            // SAFETY: nothing is passed, but a place for an error.
            Answer::Code(unsafe { brant_tracker_ring_full(null_mut(), 1, e) })
        },
        None,
    ),
    (
        "brant_tracker_vcpu_dirty",
        |e| {
            // SAFETY: nothing is passed, but a place for an error.
            Answer::Code(unsafe { brant_tracker_vcpu_dirty(null(), 1, null_mut(), e) })
        },
        None,
    ),
    (
        "brant_tracker_get_kvm",
        |e| {
            // SAFETY: nothing is passed, but a place for an error.
            Answer::Code(unsafe {
                brant_tracker_get_kvm(null(), null_mut(), null_mut(), 1, null_mut(), e)
            })
        },
        None,
    ),
    (
        "brant_tracker_new",
        |e| {
            // SAFETY: nothing is passed, but a place for an error.
            Answer::Code(unsafe { brant_tracker_new(null_mut(), null(), null_mut(), e) })
        },
        None,
    ),
    (
        "brant_tracker_free",
        |_| {
            // SAFETY: nothing is passed.
            unsafe { brant_tracker_free(null_mut()) };
            Answer::Nothing
        },
        Some("nothing"),
    ),
    (
        "brant_tracker_add_kvm",
        |e| {
            // SAFETY: nothing is passed, but a place for an error.
            Answer::Code(unsafe { brant_tracker_add_kvm(null_mut(), null(), e) })
        },
        None,
    ),
    (
        "brant_tracker_mark",
        |_| {
            // SAFETY: nothing is passed.
            unsafe { brant_tracker_mark(null(), 1, 1) };
            Answer::Nothing
        },
        Some("nothing"),
    ),
    (
        "brant_tracker_mark_block",
        |_| {
            // SAFETY: nothing is passed.
            unsafe { brant_tracker_mark_block(null(), 1, 1, 1) };
            Answer::Nothing
        },
        Some("nothing"),
    ),
    (
        "brant_tracker_start",
        |e| {
            // SAFETY: nothing is passed, but a place for an error.
            Answer::Code(unsafe { brant_tracker_start(null_mut(), 1, e) })
        },
        None,
    ),
    (
        "brant_tracker_stop",
        |e| {
            // SAFETY: nothing is passed, but a place for an error.
            Answer::Code(unsafe { brant_tracker_stop(null_mut(), e) })
        },
        None,
    ),
    (
        "brant_tracker_sync",
        |e| {
            // SAFETY: nothing is passed, but a place for an error.
            Answer::Code(unsafe { brant_tracker_sync(null_mut(), 1, null_mut(), e) })
        },
        None,
    ),
    (
        "brant_tracker_take",
        |e| {
            // SAFETY: nothing is passed, but a place for an error.
            Answer::Code(unsafe { brant_tracker_take(null_mut(), null_mut(), 1, null_mut(), e) })
        },
        None,
    ),
    (
        "brant_tracker_put_back",
        |e| {
            // SAFETY: nothing is passed, but a place for an error.
            Answer::Code(unsafe { brant_tracker_put_back(null_mut(), 1, 1, 1, e) })
        },
        None,
    ),
    (
        "brant_consumer_new",
        |e| {
            // SAFETY: nothing is passed, but a place for an error.
            Answer::Code(unsafe { brant_consumer_new(null_mut(), 1, null_mut(), e) })
        },
        None,
    ),
    (
        "brant_consumer_free",
        |_| {
            // SAFETY: nothing is passed.
            unsafe { brant_consumer_free(null_mut()) };
            Answer::Nothing
        },
        Some("nothing"),
    ),
    (
        "brant_consumer_stop",
        |e| {
            // SAFETY: nothing is passed, but a place for an error.
            Answer::Code(unsafe { brant_consumer_stop(null_mut(), e) })
        },
        None,
    ),
    (
        "brant_consumer_sync",
        |e| {
            // SAFETY: nothing is passed, but a place for an error.
            Answer::Code(unsafe { brant_consumer_sync(null_mut(), 1, null_mut(), e) })
        },
        None,
    ),
    (
        "brant_consumer_take",
        |e| {
            // SAFETY: nothing is passed, but a place for an error.
            Answer::Code(unsafe { brant_consumer_take(null_mut(), null_mut(), 1, null_mut(), e) })
        },
        None,
    ),
    (
        "brant_consumer_put_back",
        |e| {
            // SAFETY: nothing is passed, but a place for an error.
            Answer::Code(unsafe { brant_consumer_put_back(null_mut(), 1, 1, 1, e) })
        },
        None,
    ),
    (
        "brant_consumer_get_stats",
        |e| {
            // SAFETY: nothing is passed, but a place for an error.
            Answer::Code(unsafe { brant_consumer_get_stats(null(), null_mut(), e) })
        },
        None,
    ),
    (
        "brant_tracker_begin_hints",
        |e| {
            // SAFETY: nothing is passed, but a place for an error.
            Answer::Code(unsafe { brant_tracker_begin_hints(null(), null_mut(), e) })
        },
        None,
    ),
    (
        "brant_tracker_hint_free",
        |e| {
            // SAFETY: nothing is passed, but a place for an error.
            Answer::Code(unsafe { brant_tracker_hint_free(null(), 1, 1, 1, e) })
        },
        None,
    ),
    (
        "brant_tracker_end_hints",
        |_| {
            // SAFETY: nothing is passed.
            unsafe { brant_tracker_end_hints(null(), 1) };
            Answer::Nothing
        },
        Some("nothing"),
    ),
    (
        "brant_tracker_get_stats",
        |e| {
            // SAFETY: nothing is passed, but a place for an error.
            Answer::Code(unsafe { brant_tracker_get_stats(null(), null_mut(), e) })
        },
        None,
    ),
    (
        "brant_tracker_mark_bitmap",
        |_| {
            // SAFETY: nothing is passed.
            unsafe { brant_tracker_mark_bitmap(null(), 1, null(), 1) };
            Answer::Nothing
        },
        Some("nothing"),
    ),
    (
        "brant_tracker_add_vhost",
        |e| {
            // SAFETY: nothing is passed, but a place for an error.
            Answer::Code(unsafe { brant_tracker_add_vhost(null_mut(), null(), e) })
        },
        None,
    ),
    (
        "brant_tracker_add_vfio_device",
        |e| {
            // SAFETY: nothing is passed, but a place for an error.
            Answer::Code(unsafe { brant_tracker_add_vfio_device(null_mut(), null(), e) })
        },
        None,
    ),
    (
        "brant_tracker_add_vfio_container",
        |e| {
            // SAFETY: nothing is passed, but a place for an error.
            Answer::Code(unsafe { brant_tracker_add_vfio_container(null_mut(), null(), e) })
        },
        None,
    ),
    (
        "brant_tracker_add_iommufd",
        |e| {
            // SAFETY: nothing is passed, but a place for an error.
            Answer::Code(unsafe { brant_tracker_add_iommufd(null_mut(), null(), e) })
        },
        None,
    ),
    (
        "brant_tracker_add_userfault",
        |e| {
            // SAFETY: nothing is passed, but a place for an error.
            Answer::Code(unsafe { brant_tracker_add_userfault(null_mut(), e) })
        },
        None,
    ),
    (
        "brant_version",
        |_| {
            // SAFETY: nothing is passed, but a place for an error.
            Answer::Text(brant_version())
        },
        Some("\"\""),
    ),
    (
        "brant_has_feature",
        |_| {
            // SAFETY: nothing is passed, but a place for an error.
            Answer::Code(unsafe { brant_has_feature(null()) })
        },
        Some("0"),
    ),
];

#[test]
fn a_panic_below_any_export_comes_back_as_an_error() {
    let declared: BTreeSet<&str> = HEADER
        .split(|c: char| !c.is_alphanumeric() && c != '_' && c != '(')
        .filter_map(|word| word.split_once('('))
        .map(|(name, _)| name)
        .filter(|name| name.starts_with("brant_"))
        .collect();
    let tried: BTreeSet<&str> = EXPORTS.iter().map(|(name, ..)| *name).collect();
    assert_eq!(
        declared, tried,
        "the header's functions, and those tried here"
    );
    for (name, call, answer) in EXPORTS {
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
                Some(answer) => assert_eq!(&found, answer, "{name} {place}"),
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
