//! Calls on gates.

use super::{Answer, Export};
use crate::capi::gate::*;
use std::ptr::{null, null_mut};

pub const CALLS: &[Export] = &[
    (
        "brant_gate_new",
        |e| {
            // SAFETY: every pointer is null, except that for the error.
            Answer::Code(unsafe { brant_gate_new(null(), null_mut(), e) })
        },
        None,
    ),
    (
        "brant_guest_use_gate",
        |e| {
            // SAFETY: every pointer is null, except that for the error.
            Answer::Code(unsafe { brant_guest_use_gate(null_mut(), null_mut(), e) })
        },
        None,
    ),
    (
        "brant_gate_start",
        |e| {
            // SAFETY: every pointer is null, except that for the error.
            Answer::Code(unsafe { brant_gate_start(null_mut(), e) })
        },
        None,
    ),
    (
        "brant_gate_pause",
        |e| {
            // SAFETY: every pointer is null, except that for the error.
            Answer::Code(unsafe { brant_gate_pause(null_mut(), 0, e) })
        },
        None,
    ),
    (
        "brant_gate_resume",
        |e| {
            // SAFETY: every pointer is null, except that for the error.
            Answer::Code(unsafe { brant_gate_resume(null_mut(), e) })
        },
        None,
    ),
    (
        "brant_gate_shut_down",
        |e| {
            // SAFETY: every pointer is null, except that for the error.
            Answer::Code(unsafe { brant_gate_shut_down(null_mut(), e) })
        },
        None,
    ),
    (
        "brant_gate_get_holds",
        |e| {
            // SAFETY: every pointer is null, except that for the error.
            Answer::Code(unsafe { brant_gate_get_holds(null(), null_mut(), e) })
        },
        None,
    ),
    (
        "brant_gate_kick_vcpu",
        |e| {
            // SAFETY: every pointer is null, except that for the error.
            Answer::Code(unsafe { brant_gate_kick_vcpu(null_mut(), 0, e) })
        },
        None,
    ),
    (
        "brant_gate_add_vcpu",
        |e| {
            // SAFETY: every pointer is null, except that for the error.
            Answer::Code(unsafe { brant_gate_add_vcpu(null_mut(), 0, -1, null_mut(), e) })
        },
        None,
    ),
    (
        "brant_gate_vcpu_run",
        |e| {
            // SAFETY: every pointer is null, except that for the error.
            Answer::Code(unsafe { brant_gate_vcpu_run(null_mut(), e) })
        },
        None,
    ),
    (
        "brant_gate_vcpu_enter",
        |e| {
            // SAFETY: every pointer is null, except that for the error.
            Answer::Code(unsafe { brant_gate_vcpu_enter(null_mut(), e) })
        },
        None,
    ),
    (
        "brant_gate_vcpu_left",
        |e| {
            // SAFETY: every pointer is null, except that for the error.
            Answer::Code(unsafe { brant_gate_vcpu_left(null_mut(), 0, e) })
        },
        None,
    ),
    (
        "brant_gate_vcpu_idle",
        |e| {
            // SAFETY: every pointer is null, except that for the error.
            Answer::Code(unsafe { brant_gate_vcpu_idle(null_mut(), 0, e) })
        },
        None,
    ),
    (
        "brant_gate_add_device",
        |e| {
            // SAFETY: every pointer is null, except that for the error.
            Answer::Code(unsafe { brant_gate_add_device(null_mut(), null(), null_mut(), e) })
        },
        None,
    ),
    (
        "brant_gate_device_enter",
        |e| {
            // SAFETY: every pointer is null, except that for the error.
            Answer::Code(unsafe { brant_gate_device_enter(null_mut(), 0, e) })
        },
        None,
    ),
    (
        "brant_gate_device_leave",
        |e| {
            // SAFETY: every pointer is null, except that for the error.
            Answer::Code(unsafe { brant_gate_device_leave(null_mut(), e) })
        },
        None,
    ),
    (
        "brant_gate_free",
        |_| {
            // SAFETY: every pointer is null.
            unsafe { brant_gate_free(null_mut()) };
            Answer::Nothing
        },
        Some("nothing"),
    ),
    (
        "brant_gate_vcpu_free",
        |_| {
            // SAFETY: every pointer is null.
            unsafe { brant_gate_vcpu_free(null_mut()) };
            Answer::Nothing
        },
        Some("nothing"),
    ),
    (
        "brant_gate_device_free",
        |_| {
            // SAFETY: every pointer is null.
            unsafe { brant_gate_device_free(null_mut()) };
            Answer::Nothing
        },
        Some("nothing"),
    ),
];
