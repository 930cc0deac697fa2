//! Calls on both sides of a migration, and in their callbacks.

use super::{Answer, Export};
use crate::capi::incoming::*;
use crate::capi::missing::*;
use crate::capi::ops::*;
use crate::capi::outgoing::*;
use crate::capi::policy::*;
use crate::capi::postcopy::*;
use crate::capi::record::*;
use std::ptr::{null, null_mut};

pub const CALLS: &[Export] = &[
    (
        "brant_outgoing_record",
        |e| {
            // SAFETY: every pointer is null, except that for the error.
            Answer::Code(unsafe { brant_outgoing_record(null_mut(), -1, 0, null(), e) })
        },
        None,
    ),
    (
        "brant_outgoing_end_record",
        |e| {
            // SAFETY: every pointer is null, except that for the error.
            Answer::Code(unsafe { brant_outgoing_end_record(null_mut(), null_mut(), e) })
        },
        None,
    ),
    (
        "brant_incoming_record",
        |e| {
            // SAFETY: every pointer is null, except that for the error.
            Answer::Code(unsafe { brant_incoming_record(null_mut(), -1, 0, null(), e) })
        },
        None,
    ),
    (
        "brant_incoming_end_record",
        |e| {
            // SAFETY: every pointer is null, except that for the error.
            Answer::Code(unsafe { brant_incoming_end_record(null_mut(), null_mut(), e) })
        },
        None,
    ),
    (
        "brant_outgoing_get_line",
        |e| {
            // SAFETY: every pointer is null, except that for the error.
            Answer::Code(unsafe { brant_outgoing_get_line(null(), null_mut(), 1, e) })
        },
        None,
    ),
    (
        "brant_incoming_get_line",
        |e| {
            // SAFETY: every pointer is null, except that for the error.
            Answer::Code(unsafe { brant_incoming_get_line(null(), null_mut(), 1, e) })
        },
        None,
    ),
    (
        "brant_incoming_get_missing",
        |e| {
            // SAFETY: every pointer is null, except that for the error.
            Answer::Code(unsafe {
                brant_incoming_get_missing(null(), null_mut(), 1, null_mut(), e)
            })
        },
        None,
    ),
    (
        "brant_incoming_get_blocked",
        |e| {
            // SAFETY: every pointer is null, except that for the error.
            Answer::Code(unsafe {
                brant_incoming_get_blocked(null(), null_mut(), 1, null_mut(), e)
            })
        },
        None,
    ),
    (
        "brant_incoming_give_up",
        |e| {
            // SAFETY: every pointer is null, except that for the error.
            Answer::Code(unsafe { brant_incoming_give_up(null_mut(), e) })
        },
        None,
    ),
    (
        "brant_incoming_recover",
        |e| {
            // SAFETY: every pointer is null, except that for the error.
            Answer::Code(unsafe { brant_incoming_recover(null_mut(), null(), e) })
        },
        None,
    ),
    (
        "brant_incoming_recover_fds",
        |e| {
            // SAFETY: every pointer is null, except that for the error.
            Answer::Code(unsafe { brant_incoming_recover_fds(null_mut(), null(), 1, e) })
        },
        None,
    ),
    (
        "brant_incoming_add_uffd",
        |e| {
            // SAFETY: every pointer is null, except that for the error.
            Answer::Code(unsafe { brant_incoming_add_uffd(null_mut(), -1, null(), 1, e) })
        },
        None,
    ),
    (
        "brant_incoming_new",
        |e| {
            // SAFETY: every pointer is null, except that for the error.
            Answer::Code(unsafe { brant_incoming_new(null_mut(), null(), null_mut(), e) })
        },
        None,
    ),
    (
        "brant_incoming_free",
        |_| {
            // SAFETY: every pointer is null, except that for the error.
            Answer::Code(unsafe { brant_incoming_free(null_mut()) })
        },
        Some("-22"),
    ),
    (
        "brant_incoming_get_endpoint",
        |e| {
            // SAFETY: every pointer is null, except that for the error.
            Answer::Code(unsafe {
                brant_incoming_get_endpoint(null(), null_mut(), 1, null_mut(), e)
            })
        },
        None,
    ),
    (
        "brant_incoming_listen",
        |e| {
            // SAFETY: every pointer is null, except that for the error.
            Answer::Code(unsafe { brant_incoming_listen(null_mut(), null(), e) })
        },
        None,
    ),
    (
        "brant_incoming_start_fd",
        |e| {
            // SAFETY: every pointer is null, except that for the error.
            Answer::Code(unsafe { brant_incoming_start_fd(null_mut(), -1, e) })
        },
        None,
    ),
    (
        "brant_incoming_lane_stats",
        |e| {
            // SAFETY: every pointer is null, except that for the error.
            Answer::Code(unsafe { brant_incoming_lane_stats(null(), 0, null_mut(), e) })
        },
        None,
    ),
    (
        "brant_incoming_start_fds",
        |e| {
            // SAFETY: every pointer is null, except that for the error.
            Answer::Code(unsafe { brant_incoming_start_fds(null_mut(), null(), 1, e) })
        },
        None,
    ),
    (
        "brant_incoming_cancel",
        |e| {
            // SAFETY: every pointer is null, except that for the error.
            Answer::Code(unsafe { brant_incoming_cancel(null_mut(), e) })
        },
        None,
    ),
    (
        "brant_incoming_wait",
        |e| {
            // SAFETY: every pointer is null, except that for the error.
            Answer::Code(unsafe { brant_incoming_wait(null_mut(), 1, e) })
        },
        None,
    ),
    (
        "brant_incoming_get_stats",
        |e| {
            // SAFETY: every pointer is null, except that for the error.
            Answer::Code(unsafe { brant_incoming_get_stats(null(), null_mut(), e) })
        },
        None,
    ),
    (
        "brant_incoming_get_stats_json",
        |e| {
            // SAFETY: every pointer is null, except that for the error.
            Answer::Code(unsafe {
                brant_incoming_get_stats_json(null(), null_mut(), 1, null_mut(), e)
            })
        },
        None,
    ),
    (
        "brant_incoming_event_fd",
        |_| {
            // SAFETY: every pointer is null, except that for the error.
            Answer::Code(unsafe { brant_incoming_event_fd(null()) })
        },
        Some("-22"),
    ),
    (
        "brant_reason_set",
        |_| {
            // SAFETY: every pointer is null.
            unsafe { brant_reason_set(null_mut(), null()) };
            Answer::Nothing
        },
        Some("nothing"),
    ),
    (
        "brant_saver_put",
        |e| {
            // SAFETY: every pointer is null, except that for the error.
            Answer::Code(unsafe { brant_saver_put(null_mut(), null(), 1, 1, null(), 1, e) })
        },
        None,
    ),
    (
        "brant_outgoing_new",
        |e| {
            // SAFETY: every pointer is null, except that for the error.
            Answer::Code(unsafe { brant_outgoing_new(null_mut(), null(), null_mut(), e) })
        },
        None,
    ),
    (
        "brant_outgoing_free",
        |_| {
            // SAFETY: every pointer is null, except that for the error.
            Answer::Code(unsafe { brant_outgoing_free(null_mut()) })
        },
        Some("-22"),
    ),
    (
        "brant_outgoing_start",
        |e| {
            // SAFETY: every pointer is null, except that for the error.
            Answer::Code(unsafe { brant_outgoing_start(null_mut(), null(), e) })
        },
        None,
    ),
    (
        "brant_outgoing_start_fd",
        |e| {
            // SAFETY: every pointer is null, except that for the error.
            Answer::Code(unsafe { brant_outgoing_start_fd(null_mut(), -1, e) })
        },
        None,
    ),
    (
        "brant_outgoing_start_fds",
        |e| {
            // SAFETY: nothing is passed, but a place for an error.
            Answer::Code(unsafe { brant_outgoing_start_fds(null_mut(), null(), 1, e) })
        },
        None,
    ),
    (
        "brant_outgoing_set_max_bandwidth",
        |e| {
            // SAFETY: nothing is passed, but a place for an error.
            Answer::Code(unsafe { brant_outgoing_set_max_bandwidth(null_mut(), 0, e) })
        },
        None,
    ),
    (
        "brant_outgoing_set_policy",
        |e| {
            // SAFETY: nothing is passed, but a place for an error.
            Answer::Code(unsafe { brant_outgoing_set_policy(null_mut(), null(), e) })
        },
        None,
    ),
    (
        "brant_outgoing_set_downtime_limit",
        |e| {
            // SAFETY: nothing is passed, but a place for an error.
            Answer::Code(unsafe { brant_outgoing_set_downtime_limit(null_mut(), 0, e) })
        },
        None,
    ),
    (
        "brant_outgoing_switch_over",
        |e| {
            // SAFETY: nothing is passed, but a place for an error.
            Answer::Code(unsafe { brant_outgoing_switch_over(null_mut(), e) })
        },
        None,
    ),
    (
        "brant_outgoing_start_postcopy",
        |e| {
            // SAFETY: nothing is passed, but a place for an error.
            Answer::Code(unsafe { brant_outgoing_start_postcopy(null_mut(), e) })
        },
        None,
    ),
    (
        "brant_outgoing_recover",
        |e| {
            // SAFETY: every pointer is null, except that for the error.
            Answer::Code(unsafe { brant_outgoing_recover(null_mut(), null(), e) })
        },
        None,
    ),
    (
        "brant_outgoing_recover_fds",
        |e| {
            // SAFETY: nothing is passed, but a place for an error.
            Answer::Code(unsafe { brant_outgoing_recover_fds(null_mut(), null(), 1, e) })
        },
        None,
    ),
    (
        "brant_outgoing_lane_stats",
        |e| {
            // SAFETY: nothing is passed, but a place for an error.
            Answer::Code(unsafe { brant_outgoing_lane_stats(null(), 0, null_mut(), e) })
        },
        None,
    ),
    (
        "brant_outgoing_cancel",
        |e| {
            // SAFETY: every pointer is null, except that for the error.
            Answer::Code(unsafe { brant_outgoing_cancel(null_mut(), e) })
        },
        None,
    ),
    (
        "brant_outgoing_wait",
        |e| {
            // SAFETY: every pointer is null, except that for the error.
            Answer::Code(unsafe { brant_outgoing_wait(null_mut(), 1, e) })
        },
        None,
    ),
    (
        "brant_outgoing_resolve",
        |e| {
            // SAFETY: every pointer is null, except that for the error.
            Answer::Code(unsafe { brant_outgoing_resolve(null_mut(), 1, e) })
        },
        None,
    ),
    (
        "brant_outgoing_get_stats",
        |e| {
            // SAFETY: every pointer is null, except that for the error.
            Answer::Code(unsafe { brant_outgoing_get_stats(null(), null_mut(), e) })
        },
        None,
    ),
    (
        "brant_outgoing_get_forecast",
        |e| {
            // SAFETY: every pointer is null, except that for the error.
            Answer::Code(unsafe { brant_outgoing_get_forecast(null(), null_mut(), e) })
        },
        None,
    ),
    (
        "brant_outgoing_get_stats_json",
        |e| {
            // SAFETY: every pointer is null, except that for the error.
            Answer::Code(unsafe {
                brant_outgoing_get_stats_json(null(), null_mut(), 1, null_mut(), e)
            })
        },
        None,
    ),
    (
        "brant_outgoing_event_fd",
        |_| {
            // SAFETY: every pointer is null, except that for the error.
            Answer::Code(unsafe { brant_outgoing_event_fd(null()) })
        },
        Some("-22"),
    ),
];
