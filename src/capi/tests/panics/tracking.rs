//! Calls on trackers, their logs and consumers.

use super::{Answer, Export};
use crate::capi::consumer::*;
use crate::capi::hints::*;
use crate::capi::kvm::*;
use crate::capi::kvm_state::*;
use crate::capi::measure::*;
use crate::capi::ring::*;
use crate::capi::tracker::*;
use crate::capi::userfault::*;
use crate::capi::vfio::*;
use crate::capi::vhost::*;
use std::ptr::{null, null_mut};

pub const CALLS: &[Export] = &[
    (
        "brant_tracker_mark_host",
        |_| {
            // SAFETY: every pointer is null.
            unsafe { brant_tracker_mark_host(null(), null(), 1) };
            Answer::Nothing
        },
        Some("nothing"),
    ),
    (
        "brant_kvm_enable_ring",
        |e| {
            // SAFETY: every pointer is null, except that for the error.
            Answer::Code(unsafe { brant_kvm_enable_ring(-1, 1, null_mut(), e) })
        },
        None,
    ),
    (
        "brant_kvm_measure",
        |e| {
            // SAFETY: every pointer is null, except that for the error.
            Answer::Code(unsafe {
                brant_kvm_measure(-1, null(), null_mut(), null_mut(), 0, null_mut(), e)
            })
        },
        None,
    ),
    (
        "brant_kvm_vcpu_save",
        |e| {
            // SAFETY: every pointer is null, except that for the error.
            Answer::Code(unsafe { brant_kvm_vcpu_save(-1, -1, -1, 0, null_mut(), e) })
        },
        None,
    ),
    (
        "brant_kvm_vcpu_load",
        |e| {
            // SAFETY: every pointer is null, except that for the error.
            Answer::Code(unsafe { brant_kvm_vcpu_load(-1, -1, -1, null(), e) })
        },
        None,
    ),
    (
        "brant_kvm_vcpu_load_renumbered",
        |e| {
            // SAFETY: every pointer is null, except that for the error.
            Answer::Code(unsafe { brant_kvm_vcpu_load_renumbered(-1, -1, -1, 0, null(), e) })
        },
        None,
    ),
    (
        "brant_kvm_vcpu_stood_still",
        |e| {
            // SAFETY: every pointer is null, except that for the error.
            Answer::Code(unsafe { brant_kvm_vcpu_stood_still(-1, e) })
        },
        None,
    ),
    (
        "brant_kvm_vm_save",
        |e| {
            // SAFETY: every pointer is null, except that for the error.
            Answer::Code(unsafe { brant_kvm_vm_save(-1, -1, null_mut(), e) })
        },
        None,
    ),
    (
        "brant_kvm_vm_load",
        |e| {
            // SAFETY: every pointer is null, except that for the error.
            Answer::Code(unsafe { brant_kvm_vm_load(-1, -1, null(), e) })
        },
        None,
    ),
    (
        "brant_kvm_compat_save",
        |e| {
            // SAFETY: every pointer is null, except that for the error.
            Answer::Code(unsafe { brant_kvm_compat_save(-1, -1, null(), null_mut(), e) })
        },
        None,
    ),
    (
        "brant_kvm_compat_check",
        |e| {
            // SAFETY: every pointer is null, except that for the error.
            Answer::Code(unsafe { brant_kvm_compat_check(-1, -1, null(), null(), e) })
        },
        None,
    ),
    (
        "brant_tracker_add_vcpu",
        |e| {
            // SAFETY: every pointer is null, except that for the error.
            Answer::Code(unsafe { brant_tracker_add_vcpu(null_mut(), 1, -1, e) })
        },
        None,
    ),
    (
        "brant_tracker_remove_vcpu",
        |e| {
            // SAFETY: every pointer is null, except that for the error.
            Answer::Code(unsafe { brant_tracker_remove_vcpu(null_mut(), 1, e) })
        },
        None,
    ),
    (
        "brant_tracker_limit_vcpu",
        |e| {
            // SAFETY: every pointer is null, except that for the error.
            Answer::Code(unsafe { brant_tracker_limit_vcpu(null_mut(), 1, 1, e) })
        },
        None,
    ),
    (
        "brant_tracker_ring_full",
        |e| {
            // SAFETY: every pointer is null, except that for the error.
            Answer::Code(unsafe { brant_tracker_ring_full(null_mut(), 1, e) })
        },
        None,
    ),
    (
        "brant_tracker_vcpu_dirty",
        |e| {
            // SAFETY: every pointer is null, except that for the error.
            Answer::Code(unsafe { brant_tracker_vcpu_dirty(null(), 1, null_mut(), e) })
        },
        None,
    ),
    (
        "brant_tracker_get_kvm",
        |e| {
            // SAFETY: every pointer is null, except that for the error.
            Answer::Code(unsafe {
                brant_tracker_get_kvm(null(), null_mut(), null_mut(), 1, null_mut(), e)
            })
        },
        None,
    ),
    (
        "brant_tracker_new",
        |e| {
            // SAFETY: every pointer is null, except that for the error.
            Answer::Code(unsafe { brant_tracker_new(null_mut(), null(), null_mut(), e) })
        },
        None,
    ),
    (
        "brant_tracker_free",
        |_| {
            // SAFETY: every pointer is null.
            unsafe { brant_tracker_free(null_mut()) };
            Answer::Nothing
        },
        Some("nothing"),
    ),
    (
        "brant_tracker_add_kvm",
        |e| {
            // SAFETY: every pointer is null, except that for the error.
            Answer::Code(unsafe { brant_tracker_add_kvm(null_mut(), null(), e) })
        },
        None,
    ),
    (
        "brant_tracker_mark",
        |_| {
            // SAFETY: every pointer is null.
            unsafe { brant_tracker_mark(null(), 1, 1) };
            Answer::Nothing
        },
        Some("nothing"),
    ),
    (
        "brant_tracker_mark_block",
        |_| {
            // SAFETY: every pointer is null.
            unsafe { brant_tracker_mark_block(null(), 1, 1, 1) };
            Answer::Nothing
        },
        Some("nothing"),
    ),
    (
        "brant_tracker_start",
        |e| {
            // SAFETY: every pointer is null, except that for the error.
            Answer::Code(unsafe { brant_tracker_start(null_mut(), 1, e) })
        },
        None,
    ),
    (
        "brant_tracker_stop",
        |e| {
            // SAFETY: every pointer is null, except that for the error.
            Answer::Code(unsafe { brant_tracker_stop(null_mut(), e) })
        },
        None,
    ),
    (
        "brant_tracker_sync",
        |e| {
            // SAFETY: every pointer is null, except that for the error.
            Answer::Code(unsafe { brant_tracker_sync(null_mut(), 1, null_mut(), e) })
        },
        None,
    ),
    (
        "brant_tracker_take",
        |e| {
            // SAFETY: every pointer is null, except that for the error.
            Answer::Code(unsafe { brant_tracker_take(null_mut(), null_mut(), 1, null_mut(), e) })
        },
        None,
    ),
    (
        "brant_tracker_put_back",
        |e| {
            // SAFETY: every pointer is null, except that for the error.
            Answer::Code(unsafe { brant_tracker_put_back(null_mut(), 1, 1, 1, e) })
        },
        None,
    ),
    (
        "brant_consumer_new",
        |e| {
            // SAFETY: every pointer is null, except that for the error.
            Answer::Code(unsafe { brant_consumer_new(null_mut(), 1, null_mut(), e) })
        },
        None,
    ),
    (
        "brant_consumer_free",
        |_| {
            // SAFETY: every pointer is null.
            unsafe { brant_consumer_free(null_mut()) };
            Answer::Nothing
        },
        Some("nothing"),
    ),
    (
        "brant_consumer_stop",
        |e| {
            // SAFETY: every pointer is null, except that for the error.
            Answer::Code(unsafe { brant_consumer_stop(null_mut(), e) })
        },
        None,
    ),
    (
        "brant_consumer_sync",
        |e| {
            // SAFETY: every pointer is null, except that for the error.
            Answer::Code(unsafe { brant_consumer_sync(null_mut(), 1, null_mut(), e) })
        },
        None,
    ),
    (
        "brant_consumer_take",
        |e| {
            // SAFETY: every pointer is null, except that for the error.
            Answer::Code(unsafe { brant_consumer_take(null_mut(), null_mut(), 1, null_mut(), e) })
        },
        None,
    ),
    (
        "brant_consumer_put_back",
        |e| {
            // SAFETY: every pointer is null, except that for the error.
            Answer::Code(unsafe { brant_consumer_put_back(null_mut(), 1, 1, 1, e) })
        },
        None,
    ),
    (
        "brant_consumer_get_stats",
        |e| {
            // SAFETY: every pointer is null, except that for the error.
            Answer::Code(unsafe { brant_consumer_get_stats(null(), null_mut(), e) })
        },
        None,
    ),
    (
        "brant_tracker_begin_hints",
        |e| {
            // SAFETY: every pointer is null, except that for the error.
            Answer::Code(unsafe { brant_tracker_begin_hints(null(), null_mut(), e) })
        },
        None,
    ),
    (
        "brant_tracker_hint_free",
        |e| {
            // SAFETY: every pointer is null, except that for the error.
            Answer::Code(unsafe { brant_tracker_hint_free(null(), 1, 1, 1, e) })
        },
        None,
    ),
    (
        "brant_tracker_end_hints",
        |_| {
            // SAFETY: every pointer is null.
            unsafe { brant_tracker_end_hints(null(), 1) };
            Answer::Nothing
        },
        Some("nothing"),
    ),
    (
        "brant_tracker_get_stats",
        |e| {
            // SAFETY: every pointer is null, except that for the error.
            Answer::Code(unsafe { brant_tracker_get_stats(null(), null_mut(), e) })
        },
        None,
    ),
    (
        "brant_tracker_mark_bitmap",
        |_| {
            // SAFETY: every pointer is null.
            unsafe { brant_tracker_mark_bitmap(null(), 1, null(), 1) };
            Answer::Nothing
        },
        Some("nothing"),
    ),
    (
        "brant_tracker_add_vhost",
        |e| {
            // SAFETY: every pointer is null, except that for the error.
            Answer::Code(unsafe { brant_tracker_add_vhost(null_mut(), null(), e) })
        },
        None,
    ),
    (
        "brant_tracker_add_vfio_device",
        |e| {
            // SAFETY: every pointer is null, except that for the error.
            Answer::Code(unsafe { brant_tracker_add_vfio_device(null_mut(), null(), e) })
        },
        None,
    ),
    (
        "brant_tracker_add_vfio_container",
        |e| {
            // SAFETY: every pointer is null, except that for the error.
            Answer::Code(unsafe { brant_tracker_add_vfio_container(null_mut(), null(), e) })
        },
        None,
    ),
    (
        "brant_tracker_add_iommufd",
        |e| {
            // SAFETY: every pointer is null, except that for the error.
            Answer::Code(unsafe { brant_tracker_add_iommufd(null_mut(), null(), e) })
        },
        None,
    ),
    (
        "brant_tracker_add_userfault",
        |e| {
            // SAFETY: every pointer is null, except that for the error.
            Answer::Code(unsafe { brant_tracker_add_userfault(null_mut(), e) })
        },
        None,
    ),
];
