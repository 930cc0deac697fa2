//! Calls on guests and blockers.

use super::{Answer, Export};
use crate::capi::balloon::*;
use crate::capi::blocker::*;
use crate::capi::device::*;
use crate::capi::guest::*;
use crate::capi::owner::*;
use crate::capi::state::*;
use crate::capi::vfio_device::*;
use crate::capi::vhost_user::*;
use std::ptr::{null, null_mut};

pub const CALLS: &[Export] = &[
    (
        "brant_guest_add_ram",
        |e| {
            // SAFETY: every pointer is null, except that for the error.
            Answer::Code(unsafe { brant_guest_add_ram(null_mut(), null(), 0, 0, null_mut(), e) })
        },
        None,
    ),
    (
        "brant_guest_add_state",
        |e| {
            // SAFETY: every pointer is null, except that for the error.
            Answer::Code(unsafe {
                brant_guest_add_state(null_mut(), null(), 0, 0, null_mut(), 0, e)
            })
        },
        None,
    ),
    (
        "brant_guest_remove_state",
        |e| {
            // SAFETY: every pointer is null, except that for the error.
            Answer::Code(unsafe { brant_guest_remove_state(null_mut(), null(), 0, e) })
        },
        None,
    ),
    (
        "brant_guest_add_device",
        |e| {
            // SAFETY: every pointer is null, except that for the error.
            Answer::Code(unsafe { brant_guest_add_device(null_mut(), null(), e) })
        },
        None,
    ),
    (
        "brant_guest_remove_device",
        |e| {
            // SAFETY: every pointer is null, except that for the error.
            Answer::Code(unsafe { brant_guest_remove_device(null_mut(), null(), 0, e) })
        },
        None,
    ),
    (
        "brant_guest_add_vfio_device",
        |e| {
            // SAFETY: every pointer is null, except that for the error.
            Answer::Code(unsafe { brant_guest_add_vfio_device(null_mut(), null(), e) })
        },
        None,
    ),
    (
        "brant_guest_add_vhost_user_device",
        |e| {
            // SAFETY: every pointer is null, except that for the error.
            Answer::Code(unsafe { brant_guest_add_vhost_user_device(null_mut(), null(), e) })
        },
        None,
    ),
    (
        "brant_vhost_user_set_device_state_fd",
        |e| {
            // SAFETY: every pointer is null, except that for the error.
            Answer::Code(unsafe {
                brant_vhost_user_set_device_state_fd(-1, 0, -1, 0, null_mut(), e)
            })
        },
        None,
    ),
    (
        "brant_vhost_user_check_device_state",
        |e| {
            // SAFETY: every pointer is null, except that for the error.
            Answer::Code(unsafe { brant_vhost_user_check_device_state(-1, 0, e) })
        },
        None,
    ),
    (
        "brant_guest_new",
        |e| {
            // SAFETY: every pointer is null, except that for the error.
            Answer::Code(unsafe { brant_guest_new(null(), null_mut(), null_mut(), e) })
        },
        None,
    ),
    (
        "brant_guest_free",
        |_| {
            // SAFETY: every pointer is null.
            unsafe { brant_guest_free(null_mut()) };
            Answer::Nothing
        },
        Some("nothing"),
    ),
    (
        "brant_guest_add_block",
        |e| {
            // SAFETY: every pointer is null, except that for the error.
            Answer::Code(unsafe { brant_guest_add_block(null_mut(), null(), null_mut(), e) })
        },
        None,
    ),
    (
        "brant_guest_find_block",
        |e| {
            // SAFETY: every pointer is null, except that for the error.
            Answer::Code(unsafe { brant_guest_find_block(null(), null(), null_mut(), e) })
        },
        None,
    ),
    (
        "brant_guest_remove_block",
        |e| {
            // SAFETY: every pointer is null, except that for the error.
            Answer::Code(unsafe { brant_guest_remove_block(null_mut(), 0, e) })
        },
        None,
    ),
    (
        "brant_guest_add_slot",
        |e| {
            // SAFETY: every pointer is null, except that for the error.
            Answer::Code(unsafe { brant_guest_add_slot(null_mut(), null(), e) })
        },
        None,
    ),
    (
        "brant_guest_remove_slot",
        |e| {
            // SAFETY: every pointer is null, except that for the error.
            Answer::Code(unsafe { brant_guest_remove_slot(null_mut(), 1, 1, e) })
        },
        None,
    ),
    (
        "brant_guest_must_tell_host",
        |e| {
            // SAFETY: every pointer is null, except that for the error.
            Answer::Code(unsafe { brant_guest_must_tell_host(null_mut(), 1, e) })
        },
        None,
    ),
    (
        "brant_guest_mark_poisoned",
        |e| {
            // SAFETY: every pointer is null, except that for the error.
            Answer::Code(unsafe { brant_guest_mark_poisoned(null_mut(), 0, 0, 1, e) })
        },
        None,
    ),
    (
        "brant_guest_clear_poisoned",
        |e| {
            // SAFETY: every pointer is null, except that for the error.
            Answer::Code(unsafe { brant_guest_clear_poisoned(null_mut(), 0, 0, 1, e) })
        },
        None,
    ),
    (
        "brant_guest_before_discard",
        |e| {
            // SAFETY: every pointer is null, except that for the error.
            Answer::Code(unsafe { brant_guest_before_discard(null_mut(), 1, 1, e) })
        },
        None,
    ),
    (
        "brant_guest_mark_ballooned",
        |_| {
            // SAFETY: every pointer is null.
            unsafe { brant_guest_mark_ballooned(null(), 1, 1) };
            Answer::Nothing
        },
        Some("nothing"),
    ),
    (
        "brant_guest_clear_ballooned",
        |_| {
            // SAFETY: every pointer is null.
            unsafe { brant_guest_clear_ballooned(null(), 1, 1) };
            Answer::Nothing
        },
        Some("nothing"),
    ),
    (
        "brant_guest_count_ballooned",
        |e| {
            // SAFETY: every pointer is null, except that for the error.
            Answer::Code(unsafe { brant_guest_count_ballooned(null(), 1, 1, null_mut(), e) })
        },
        None,
    ),
    (
        "brant_guest_get_state",
        |e| {
            // SAFETY: every pointer is null, except that for the error.
            Answer::Code(unsafe { brant_guest_get_state(null(), null_mut(), e) })
        },
        None,
    ),
    (
        "brant_guest_runs_here",
        |e| {
            // SAFETY: every pointer is null, except that for the error.
            Answer::Code(unsafe { brant_guest_runs_here(null_mut(), e) })
        },
        None,
    ),
    (
        "brant_guest_reclaim",
        |e| {
            // SAFETY: every pointer is null, except that for the error.
            Answer::Code(unsafe { brant_guest_reclaim(null_mut(), e) })
        },
        None,
    ),
    (
        "brant_guest_give_up",
        |e| {
            // SAFETY: every pointer is null, except that for the error.
            Answer::Code(unsafe { brant_guest_give_up(null_mut(), e) })
        },
        None,
    ),
    (
        "brant_blocker_new",
        |e| {
            // SAFETY: every pointer is null, except that for the error.
            Answer::Code(unsafe { brant_blocker_new(null_mut(), null(), null_mut(), e) })
        },
        None,
    ),
    (
        "brant_blocker_free",
        |_| {
            // SAFETY: every pointer is null.
            unsafe { brant_blocker_free(null_mut()) };
            Answer::Nothing
        },
        Some("nothing"),
    ),
];
