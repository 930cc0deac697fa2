"""The header as ctypes sees it. Written by scripts/declared.py; do not edit: make header."""

from __future__ import annotations

from ctypes import (
    CFUNCTYPE,
    POINTER,
    Structure,
    c_char_p,
    c_int32,
    c_size_t,
    c_uint32,
    c_uint64,
    c_void_p,
)
from typing import Any, Dict, List, Tuple

#: The header's constants, under the header's names.
CONSTANTS: Dict[str, int] = {
    "BRANT_E_INVALID": -1,
    "BRANT_E_STATE": -2,
    "BRANT_E_BUSY": -3,
    "BRANT_E_NOT_FOUND": -4,
    "BRANT_E_EXISTS": -5,
    "BRANT_E_NO_MEMORY": -6,
    "BRANT_E_UNSUPPORTED": -7,
    "BRANT_E_KERNEL": -8,
    "BRANT_E_IO": -9,
    "BRANT_E_PEER_GONE": -10,
    "BRANT_E_TIMEOUT": -11,
    "BRANT_E_CANCELLED": -12,
    "BRANT_E_PROTOCOL": -13,
    "BRANT_E_LAYOUT": -14,
    "BRANT_E_VERSION": -15,
    "BRANT_E_REFUSED": -16,
    "BRANT_E_VMM": -17,
    "BRANT_E_NOT_CONVERGED": -18,
    "BRANT_E_BLOCKED": -19,
    "BRANT_E_UNANSWERED": -20,
    "BRANT_E_CALLBACK": -21,
    "BRANT_E_INTERNAL": -22,
    "BRANT_E_PENDING": -23,
    "BRANT_E_MEMORY": -24,
    "BRANT_E_IMAGE": -25,
    "BRANT_RAM_ROM": 1,
    "BRANT_RAM_ZEROED": 2,
    "BRANT_RAM_FILE": 4,
    "BRANT_NO_SLOT": 4294967295,
    "BRANT_GUEST_UNKNOWN": 0,
    "BRANT_GUEST_HERE": 1,
    "BRANT_GUEST_STANDS": 2,
    "BRANT_GUEST_LEAVING": 3,
    "BRANT_GUEST_PAUSED": 4,
    "BRANT_GUEST_HANDING_OVER": 5,
    "BRANT_GUEST_HANDED_OVER": 6,
    "BRANT_GUEST_UNANSWERED": 7,
    "BRANT_GUEST_GIVEN_UP": 8,
    "BRANT_GUEST_ARRIVING": 9,
    "BRANT_GUEST_EMPTY": 10,
    "BRANT_GUEST_SAVING": 11,
    "BRANT_GUEST_SAVE_PAUSED": 12,
    "BRANT_GUEST_RESTORING": 13,
    "BRANT_GUEST_INCOMPLETE": 14,
    "BRANT_EVENT_STATE": 1,
    "BRANT_EVENT_PASS": 2,
    "BRANT_EVENT_WARNING": 3,
    "BRANT_EVENT_COMPLETED": 4,
    "BRANT_EVENT_FAILED": 5,
    "BRANT_EVENT_UNANSWERED": 6,
    "BRANT_EVENT_MISMATCH": 7,
    "BRANT_EVENT_DOWNTIME": 8,
    "BRANT_EVENT_STALLED": 9,
    "BRANT_EVENT_THROTTLE": 10,
    "BRANT_EVENT_INTERRUPTED": 11,
    "BRANT_EVENT_RECOVERED": 12,
    "BRANT_ROLE_MIGRATION": 1,
    "BRANT_ROLE_CHANNEL": 2,
    "BRANT_ROLE_PREFAULT": 4,
    "BRANT_ROLE_REAPER": 5,
    "BRANT_ROLE_FAULT": 6,
    "BRANT_ROLE_SNAPSHOT": 7,
    "BRANT_ROLE_IMAGE": 9,
    "BRANT_ROLE_DIGEST": 10,
    "BRANT_ROLE_WATCH": 11,
    "BRANT_ROLE_RECORD": 12,
    "BRANT_ALL_VCPUS": 4294967295,
    "BRANT_GATE_INSTALL_HANDLER": 1,
    "BRANT_HELD_BEFORE_START": 1,
    "BRANT_HELD_BY_USER": 2,
    "BRANT_HELD_BY_MIGRATION": 4,
    "BRANT_HELD_SHUT_DOWN": 8,
    "BRANT_LEFT_UNKNOWN": 18446744073709551615,
    "BRANT_VHOST_USER_SAVE": 0,
    "BRANT_VHOST_USER_LOAD": 1,
    "BRANT_CLEAR_CHUNKED": 0,
    "BRANT_CLEAR_AT_SYNC": 1,
    "BRANT_START_ALL": 0,
    "BRANT_START_CLEAN": 1,
    "BRANT_SYNC_RUNNING": 0,
    "BRANT_SYNC_STOPPED": 1,
    "BRANT_KVM_AUTO": 0,
    "BRANT_KVM_GET_AND_CLEAR": 1,
    "BRANT_KVM_MANUAL_PROTECT": 2,
    "BRANT_KVM_INITIALLY_SET": 3,
    "BRANT_KVM_RING": 4,
    "BRANT_SWITCHED_BY_BRANT": 0,
    "BRANT_SWITCHED_BY_VMM": 1,
    "BRANT_NO_BLOCK": 4294967295,
    "BRANT_RESOLVE_RESUME": 1,
    "BRANT_RESOLVE_DESTROY": 2,
    "BRANT_STATS_JSON_SIZE": 8192,
    "BRANT_LINE_SIZE": 256,
    "BRANT_SLOWING_OFF": 0,
    "BRANT_SLOWING_ALL": 1,
    "BRANT_SLOWING_WRITERS": 2,
    "BRANT_DEADLINE_CANCEL": 0,
    "BRANT_DEADLINE_CARRY_ON": 1,
    "BRANT_DEADLINE_PAUSE": 2,
    "BRANT_DEADLINE_POSTCOPY": 3,
    "BRANT_NO_LIMIT": 18446744073709551615,
    "BRANT_HAND_OVER_OFF": 0,
    "BRANT_HAND_OVER_POSSIBLE": 1,
    "BRANT_HAND_OVER_ONLY": 2,
    "BRANT_POSTCOPY_OFF": 0,
    "BRANT_POSTCOPY_ALLOWED": 1,
    "BRANT_OVERRUN_FAIL": 0,
    "BRANT_OVERRUN_CARRY_ON": 1,
    "BRANT_COMPRESSION_OFF": 0,
    "BRANT_COMPRESSION_ADAPTIVE": 1,
    "BRANT_COMPRESSION_ALWAYS": 2,
    "BRANT_ZERO_COPY_OFF": 0,
    "BRANT_ZERO_COPY_ON": 1,
    "BRANT_CHECKSUMS_DEFAULT": 0,
    "BRANT_CHECKSUMS_ON": 1,
    "BRANT_CHECKSUMS_OFF": 2,
    "BRANT_VERIFY_OFF": 0,
    "BRANT_VERIFY_ON": 1,
    "BRANT_PREFAULT_ON": 0,
    "BRANT_PREFAULT_OFF": 1,
    "BRANT_BALLOONED_SKIP": 0,
    "BRANT_BALLOONED_SEND": 1,
    "BRANT_SOURCE_IDLE": 0,
    "BRANT_SOURCE_CONNECTING": 1,
    "BRANT_SOURCE_NEGOTIATING": 2,
    "BRANT_SOURCE_COPYING": 3,
    "BRANT_SOURCE_PAUSING": 4,
    "BRANT_SOURCE_SAVING": 5,
    "BRANT_SOURCE_LAST_SYNC": 6,
    "BRANT_SOURCE_SENDING_LAST": 7,
    "BRANT_SOURCE_AWAITING_READY": 8,
    "BRANT_SOURCE_RELEASING": 9,
    "BRANT_SOURCE_COMMITTING": 10,
    "BRANT_SOURCE_HANDING_OVER": 11,
    "BRANT_SOURCE_AWAITING_RUNNING": 12,
    "BRANT_SOURCE_RESUMING": 13,
    "BRANT_SOURCE_COMPLETED": 14,
    "BRANT_SOURCE_FAILED": 15,
    "BRANT_SOURCE_RESUME_FAILED": 16,
    "BRANT_SOURCE_UNANSWERED": 17,
    "BRANT_SOURCE_TAKEN_BACK": 18,
    "BRANT_SOURCE_GIVEN_UP": 19,
    "BRANT_SOURCE_IN_DOUBT": 20,
    "BRANT_SOURCE_VERIFYING": 21,
    "BRANT_SOURCE_ABORTING_PAUSE": 22,
    "BRANT_SOURCE_SERVING": 23,
    "BRANT_SOURCE_INTERRUPTED": 24,
    "BRANT_SOURCE_RECOVERING": 25,
    "BRANT_DESTINATION_IDLE": 32,
    "BRANT_DESTINATION_LISTENING": 33,
    "BRANT_DESTINATION_NEGOTIATING": 34,
    "BRANT_DESTINATION_RECEIVING": 35,
    "BRANT_DESTINATION_LOADING": 36,
    "BRANT_DESTINATION_READY": 37,
    "BRANT_DESTINATION_AWAITING_HANDOVER": 38,
    "BRANT_DESTINATION_COMMITTING": 39,
    "BRANT_DESTINATION_STARTING": 40,
    "BRANT_DESTINATION_RUNNING": 41,
    "BRANT_DESTINATION_FAILED": 42,
    "BRANT_DESTINATION_START_FAILED": 43,
    "BRANT_DESTINATION_COMPLETING": 44,
    "BRANT_DESTINATION_INTERRUPTED": 45,
    "BRANT_DESTINATION_INCOMPLETE": 46,
    "BRANT_UNKNOWN": 18446744073709551615,
    "BRANT_STALL_NONE": 0,
    "BRANT_STALL_LINK": 1,
    "BRANT_STALL_DESTINATION": 2,
    "BRANT_STALL_THROTTLED": 3,
    "BRANT_STALL_DIRTYING": 4,
    "BRANT_ZERO_COPY_UNSUPPORTED": 2,
    "BRANT_ZERO_COPY_COPIED": 3,
    "BRANT_ZERO_COPY_LIMIT": 4,
    "BRANT_ZERO_COPY_ENCODED": 5,
    "BRANT_LANE_CLOSED": 0,
    "BRANT_LANE_IDLE": 1,
    "BRANT_LANE_BUSY": 2,
    "BRANT_RECORD_VERSION": 1,
    "BRANT_RATE_BY_LOG": 0,
    "BRANT_RATE_BY_SAMPLING": 1,
    "BRANT_IMAGE_DIRECT": 0,
    "BRANT_IMAGE_CACHED": 1,
    "BRANT_IMAGE_IDLE": 0,
    "BRANT_IMAGE_PREPARING": 1,
    "BRANT_IMAGE_COPYING": 2,
    "BRANT_IMAGE_PAUSED": 3,
    "BRANT_IMAGE_FINISHING": 4,
    "BRANT_IMAGE_FILLING": 5,
    "BRANT_IMAGE_LOADING": 6,
    "BRANT_IMAGE_STARTING": 7,
    "BRANT_IMAGE_COMPLETED": 8,
    "BRANT_IMAGE_FAILED": 9,
    "BRANT_IMAGE_RESUME": 0,
    "BRANT_IMAGE_STAY_PAUSED": 1,
    "BRANT_IMAGE_ALREADY_PAUSED": 2,
    "BRANT_IMAGE_INSTANT_END": 0,
    "BRANT_IMAGE_INSTANT_START": 1,
    "BRANT_BITMAP_BITS_MAX": 1099511627776,
}


class brant_ram_block(Structure):
    _fields_ = [
        ("size", c_size_t),
        ("name", c_char_p),
        ("host", c_void_p),
        ("length", c_uint64),
        ("page_size", c_uint64),
        ("fd", c_int32),
        ("flags", c_uint32),
        ("fd_offset", c_uint64),
    ]


class brant_slot(Structure):
    _fields_ = [
        ("size", c_size_t),
        ("block", c_uint32),
        ("slot", c_uint32),
        ("offset", c_uint64),
        ("length", c_uint64),
        ("guest_address", c_uint64),
        ("kvm_flags", c_uint32),
        ("reserved", c_uint32),
    ]


class brant_state_blob(Structure):
    _fields_ = [
        ("size", c_size_t),
        ("name", c_char_p),
        ("data", c_void_p),
        ("length", c_uint64),
        ("instance", c_uint32),
        ("version", c_uint32),
    ]


class brant_event(Structure):
    _fields_ = [
        ("size", c_size_t),
        ("message", c_char_p),
        ("kind", c_uint32),
        ("reserved", c_uint32),
    ]


class brant_ops(Structure):
    _fields_ = [
        ("size", c_size_t),
        ("pause", CFUNCTYPE(c_int32, c_void_p, c_void_p)),
        ("resume", CFUNCTYPE(c_int32, c_void_p, c_void_p)),
        ("save", CFUNCTYPE(c_int32, c_void_p, c_void_p, c_void_p)),
        ("load", CFUNCTYPE(c_int32, c_void_p, POINTER(brant_state_blob), c_void_p)),
        ("loaded", CFUNCTYPE(c_int32, c_void_p, c_void_p)),
        ("early_save", CFUNCTYPE(c_int32, c_void_p, c_void_p, c_void_p)),
        ("early_load", CFUNCTYPE(c_int32, c_void_p, POINTER(brant_state_blob), c_void_p)),
        ("release", CFUNCTYPE(c_int32, c_void_p, c_void_p)),
        ("run", CFUNCTYPE(c_int32, c_void_p, c_void_p)),
        ("log_on", CFUNCTYPE(c_int32, c_void_p, POINTER(c_uint32), c_size_t, c_void_p)),
        ("log_off", CFUNCTYPE(c_int32, c_void_p, POINTER(c_uint32), c_size_t, c_void_p)),
        ("event", CFUNCTYPE(None, c_void_p, POINTER(brant_event))),
        ("thread_start", CFUNCTYPE(None, c_void_p, c_uint32)),
        ("kick", CFUNCTYPE(c_int32, c_void_p, c_void_p)),
        ("throttle", CFUNCTYPE(c_int32, c_void_p, c_uint32, c_uint32, c_void_p)),
        (
            "map_block",
            CFUNCTYPE(c_int32, c_void_p, c_char_p, c_int32, c_uint64, c_uint64, POINTER(c_void_p), c_void_p),
        ),
    ]


class brant_gate_config(Structure):
    _fields_ = [
        ("size", c_size_t),
        ("wait_ms", c_uint64),
        ("signal", c_int32),
        ("flags", c_uint32),
    ]


class brant_device_left(Structure):
    _fields_ = [
        ("size", c_size_t),
        ("initial", c_uint64),
        ("running", c_uint64),
        ("stopped", c_uint64),
    ]


class brant_device(Structure):
    _fields_ = [
        ("size", c_size_t),
        ("name", c_char_p),
        ("opaque", c_void_p),
        ("instance", c_uint32),
        ("version", c_uint32),
        ("begin", CFUNCTYPE(c_int32, c_void_p, c_void_p)),
        ("left", CFUNCTYPE(c_int32, c_void_p, POINTER(brant_device_left), c_void_p)),
        (
            "read_running",
            CFUNCTYPE(c_int32, c_void_p, c_void_p, c_size_t, POINTER(c_size_t), c_void_p),
        ),
        ("quiesce", CFUNCTYPE(c_int32, c_void_p, c_void_p)),
        ("stop", CFUNCTYPE(c_int32, c_void_p, c_void_p)),
        (
            "read_stopped",
            CFUNCTYPE(c_int32, c_void_p, c_void_p, c_size_t, POINTER(c_size_t), c_void_p),
        ),
        ("wake", CFUNCTYPE(c_int32, c_void_p, c_void_p)),
        ("resume", CFUNCTYPE(c_int32, c_void_p, c_void_p)),
        ("end", CFUNCTYPE(None, c_void_p)),
        ("load_running", CFUNCTYPE(c_int32, c_void_p, c_void_p, c_size_t, c_void_p)),
        ("load_stopped", CFUNCTYPE(c_int32, c_void_p, c_void_p, c_size_t, c_void_p)),
        ("loaded", CFUNCTYPE(c_int32, c_void_p, c_void_p)),
        ("run", CFUNCTYPE(c_int32, c_void_p, c_void_p)),
        ("reset", CFUNCTYPE(None, c_void_p)),
        ("cancel", CFUNCTYPE(None, c_void_p)),
    ]


class brant_vfio_device(Structure):
    _fields_ = [
        ("size", c_size_t),
        ("name", c_char_p),
        ("instance", c_uint32),
        ("fd", c_int32),
        ("silence_ms", c_uint32),
        ("reserved", c_uint32),
        ("state_max", c_uint64),
        ("opaque", c_void_p),
        ("was_reset", CFUNCTYPE(None, c_void_p, c_char_p)),
    ]


class brant_vhost_user_device(Structure):
    _fields_ = [
        ("size", c_size_t),
        ("name", c_char_p),
        ("opaque", c_void_p),
        ("instance", c_uint32),
        ("silence_ms", c_uint32),
        ("version", c_uint32),
        ("reserved", c_uint32),
        ("expected_bytes", c_uint64),
        (
            "set_device_state_fd",
            CFUNCTYPE(c_int32, c_void_p, c_uint32, c_int32, POINTER(c_int32), c_void_p),
        ),
        ("check_device_state", CFUNCTYPE(c_int32, c_void_p, c_void_p)),
        ("cancel", CFUNCTYPE(None, c_void_p)),
    ]


class brant_tracker_config(Structure):
    _fields_ = [
        ("size", c_size_t),
        ("clearing", c_uint32),
        ("chunk_shift", c_uint32),
    ]


class brant_sync(Structure):
    _fields_ = [
        ("size", c_size_t),
        ("found_pages", c_uint64),
        ("written_pages", c_uint64),
        ("observed_pages", c_uint64),
        ("pending_pages", c_uint64),
        ("time_ns", c_uint64),
        ("kvm_ns", c_uint64),
        ("kvm_pages", c_uint64),
        ("reported_ns", c_uint64),
        ("reported_pages", c_uint64),
        ("warnings", c_uint64),
        ("vhost_ns", c_uint64),
        ("vhost_pages", c_uint64),
        ("vfio_ns", c_uint64),
        ("vfio_pages", c_uint64),
        ("userfault_ns", c_uint64),
        ("userfault_pages", c_uint64),
    ]


class brant_run(Structure):
    _fields_ = [
        ("host", c_void_p),
        ("first_page", c_uint64),
        ("pages", c_uint64),
        ("block", c_uint32),
        ("reserved", c_uint32),
    ]


class brant_tracker_stats(Structure):
    _fields_ = [
        ("size", c_size_t),
        ("pending_pages", c_uint64),
        ("syncs", c_uint64),
        ("found_pages", c_uint64),
        ("clear_calls", c_uint64),
        ("cleared_pages", c_uint64),
        ("longest_clear_ns", c_uint64),
        ("put_back_pages", c_uint64),
        ("stray_marks", c_uint64),
        ("heap_bytes", c_uint64),
        ("chunk_shift", c_uint32),
        ("started", c_uint32),
        ("ballooned_pages", c_uint64),
        ("ballooned_written_pages", c_uint64),
        ("hinted_pages", c_uint64),
        ("stale_hints", c_uint64),
    ]


class brant_kvm_info(Structure):
    _fields_ = [
        ("size", c_size_t),
        ("mode", c_uint32),
        ("with_bitmap", c_uint32),
        ("vcpus", c_uint64),
        ("ring_bytes", c_uint64),
        ("heap_bytes", c_uint64),
        ("rounds", c_uint64),
        ("harvested", c_uint64),
        ("full_exits", c_uint64),
        ("overruns", c_uint64),
        ("lost_pushes", c_uint64),
        ("recoveries", c_uint64),
        ("interrupted", c_uint64),
        ("doubtful_pages", c_uint64),
        ("stray_entries", c_uint64),
        ("limited_vcpus", c_uint64),
        ("limit_waits", c_uint64),
    ]


class brant_kvm_workload(Structure):
    _fields_ = [
        ("size", c_size_t),
        ("memory_bytes", c_uint64),
        ("dirty_pages_per_second", c_uint64),
        ("limit_ms", c_uint64),
    ]


class brant_kvm_cost(Structure):
    _fields_ = [
        ("measured", c_uint64),
        ("first_write_ns", c_uint64),
        ("busy_write_ns", c_uint64),
        ("sync_page_ns", c_uint64),
        ("sync_gib_ns", c_uint64),
    ]


class brant_kvm_costs(Structure):
    _fields_ = [
        ("size", c_size_t),
        ("recommended", c_uint64),
        ("memory_bytes", c_uint64),
        ("dirty_pages_per_second", c_uint64),
        ("untracked_write_ns", c_uint64),
        ("get_and_clear", brant_kvm_cost),
        ("manual_protect", brant_kvm_cost),
        ("initially_set", brant_kvm_cost),
        ("ring", brant_kvm_cost),
    ]


class brant_kvm_log(Structure):
    _fields_ = [
        ("size", c_size_t),
        ("vm_fd", c_int32),
        ("mode", c_uint32),
        ("switched_by", c_uint32),
        ("reserved", c_uint32),
        ("ring_bytes", c_uint64),
        ("costs", POINTER(brant_kvm_costs)),
    ]


class brant_vhost_memory(Structure):
    _fields_ = [
        ("size", c_size_t),
        ("address", c_void_p),
        ("length", c_uint64),
        ("fd", c_int32),
        ("reserved", c_uint32),
    ]


class brant_vhost_log(Structure):
    _fields_ = [
        ("size", c_size_t),
        ("opaque", c_void_p),
        ("reach", c_uint64),
        ("log_on", CFUNCTYPE(c_int32, c_void_p, POINTER(brant_vhost_memory), c_void_p)),
        ("log_off", CFUNCTYPE(c_int32, c_void_p, c_void_p)),
    ]


class brant_dma_range(Structure):
    _fields_ = [
        ("iova", c_uint64),
        ("length", c_uint64),
        ("address", c_uint64),
        ("block", c_uint32),
        ("reserved", c_uint32),
    ]


class brant_vfio_log(Structure):
    _fields_ = [
        ("size", c_size_t),
        ("fd", c_int32),
        ("reserved", c_uint32),
        ("page_size", c_uint64),
        ("ranges", POINTER(brant_dma_range)),
        ("range_count", c_size_t),
    ]


class brant_iommufd_log(Structure):
    _fields_ = [
        ("size", c_size_t),
        ("fd", c_int32),
        ("hwpt_id", c_uint32),
        ("ranges", POINTER(brant_dma_range)),
        ("range_count", c_size_t),
    ]


class brant_consumer_stats(Structure):
    _fields_ = [
        ("size", c_size_t),
        ("pending_pages", c_uint64),
        ("syncs", c_uint64),
        ("found_pages", c_uint64),
        ("put_back_pages", c_uint64),
        ("started", c_uint64),
        ("number", c_uint64),
    ]


class brant_policy(Structure):
    _fields_ = [
        ("size", c_size_t),
        ("downtime_ceiling_ms", c_uint64),
        ("deadline_ms", c_uint64),
        ("stall_ms", c_uint64),
        ("sync_ms", c_uint64),
        ("slowing", c_uint32),
        ("throttle_max", c_uint32),
        ("on_deadline", c_uint32),
        ("reserved", c_uint32),
    ]


class brant_missing_run(Structure):
    _fields_ = [
        ("block", c_uint32),
        ("reserved", c_uint32),
        ("first_page", c_uint64),
        ("pages", c_uint64),
    ]


class brant_blocked(Structure):
    _fields_ = [
        ("thread", c_uint32),
        ("reserved", c_uint32),
        ("faults", c_uint64),
        ("blocked_ns", c_uint64),
    ]


class brant_uffd_region(Structure):
    _fields_ = [
        ("address", c_uint64),
        ("length", c_uint64),
        ("block", c_uint32),
        ("reserved", c_uint32),
        ("offset", c_uint64),
    ]


class brant_params(Structure):
    _fields_ = [
        ("size", c_size_t),
        ("downtime_limit_ms", c_uint64),
        ("max_bandwidth", c_uint64),
        ("switchover_bandwidth", c_uint64),
        ("downtime_slack_ms", c_uint64),
        ("expected_pause_us", c_uint64),
        ("expected_save_us", c_uint64),
        ("expected_load_us", c_uint64),
        ("expected_release_us", c_uint64),
        ("expected_run_us", c_uint64),
        ("expected_state_bytes", c_uint64),
        ("total_timeout_ms", c_uint64),
        ("connect_timeout_ms", c_uint64),
        ("io_timeout_ms", c_uint64),
        ("switchover_timeout_ms", c_uint64),
        ("handover_timeout_ms", c_uint64),
        ("max_state_bytes", c_uint64),
        ("max_device_buffer", c_uint64),
        ("delta_cache_bytes", c_uint64),
        ("switchover_max_bandwidth", c_uint64),
        ("channels", c_uint32),
        ("compression", c_uint32),
        ("compression_level", c_int32),
        ("page_checksums", c_uint32),
        ("verify", c_uint32),
        ("zero_copy", c_uint32),
        ("prefault", c_uint32),
        ("ballooned", c_uint32),
        ("overrun", c_uint32),
        ("hand_over", c_uint32),
        ("postcopy", c_uint32),
        ("reserved", c_uint32),
    ]


class brant_stats(Structure):
    _fields_ = [
        ("size", c_size_t),
        ("state", c_uint32),
        ("pass", c_uint32),
        ("error", c_int32),
        ("progress", c_uint32),
        ("total_bytes", c_uint64),
        ("shared_bytes", c_uint64),
        ("remaining_bytes", c_uint64),
        ("wire_bytes", c_uint64),
        ("data_pages", c_uint64),
        ("zero_pages", c_uint64),
        ("hole_pages", c_uint64),
        ("unacknowledged_pages", c_uint64),
        ("unacknowledged_bytes", c_uint64),
        ("compressed_pages", c_uint64),
        ("compressed_bytes", c_uint64),
        ("elapsed_ns", c_uint64),
        ("throughput", c_uint64),
        ("bandwidth", c_uint64),
        ("switchover_bandwidth", c_uint64),
        ("round_trip_ns", c_uint64),
        ("dirty_pages_per_second", c_uint64),
        ("time_left_ns", c_uint64),
        ("expected_downtime_ns", c_uint64),
        ("promised_downtime_ns", c_uint64),
        ("promised_pause_ns", c_uint64),
        ("promised_sync_ns", c_uint64),
        ("promised_save_ns", c_uint64),
        ("promised_memory_ns", c_uint64),
        ("promised_state_ns", c_uint64),
        ("promised_load_ns", c_uint64),
        ("promised_round_trips_ns", c_uint64),
        ("promised_release_ns", c_uint64),
        ("promised_run_ns", c_uint64),
        ("downtime_ns", c_uint64),
        ("pause_ns", c_uint64),
        ("save_ns", c_uint64),
        ("last_sync_ns", c_uint64),
        ("last_send_ns", c_uint64),
        ("ready_ns", c_uint64),
        ("release_ns", c_uint64),
        ("handover_ns", c_uint64),
        ("load_ns", c_uint64),
        ("digest_ns", c_uint64),
        ("run_ns", c_uint64),
        ("memory_ns", c_uint64),
        ("state_sent_ns", c_uint64),
        ("round_trips_ns", c_uint64),
        ("overrun_ns", c_uint64),
        ("aborted_pauses", c_uint64),
        ("aborted_pause_ns", c_uint64 * 3),
        ("downtime_limit_ns", c_uint64),
        ("throttle", c_uint64),
        ("limited_vcpus", c_uint64),
        ("stall", c_uint64),
        ("last_pages", c_uint64),
        ("state_bytes", c_uint64),
        ("device_running_bytes", c_uint64),
        ("device_stopped_bytes", c_uint64),
        ("device_left_bytes", c_uint64),
        ("device_time_ns", c_uint64),
        ("device_stopped_ns", c_uint64),
        ("syncs", c_uint64),
        ("sync_ns", c_uint64),
        ("found_pages", c_uint64),
        ("clear_calls", c_uint64),
        ("longest_clear_ns", c_uint64),
        ("put_back_pages", c_uint64),
        ("ballooned_pages", c_uint64),
        ("hinted_pages", c_uint64),
        ("poisoned_pages", c_uint64),
        ("delta_pages", c_uint64),
        ("delta_saved_bytes", c_uint64),
        ("delta_missed_pages", c_uint64),
        ("delta_overflowed_pages", c_uint64),
        ("uneven_ns", c_uint64),
        ("prefaulted_pages", c_uint64),
        ("prefault_failures", c_uint64),
        ("zero_copied_bytes", c_uint64),
        ("copied_anyway_bytes", c_uint64),
        ("zero_copy_refused", c_uint64),
        ("zero_copy", c_uint64),
        ("verified_pages", c_uint64),
        ("unverified_pages", c_uint64),
        ("mismatched_pages", c_uint64),
        ("first_mismatch_block", c_uint64),
        ("first_mismatch_page", c_uint64),
        ("verify_ns", c_uint64),
        ("encoded_pages", c_uint64),
        ("missing_pages", c_uint64),
        ("urgent_pages", c_uint64),
        ("bulk_pages", c_uint64),
        ("faults", c_uint64),
        ("fault_waiting", c_uint64),
        ("fault_p50_ns", c_uint64),
        ("fault_p99_ns", c_uint64),
        ("fault_max_ns", c_uint64),
        ("fault_blocked_ns", c_uint64),
        ("local_faults", c_uint64),
        ("lost_pages", c_uint64),
        ("requests", c_uint64),
        ("requested_pages", c_uint64),
        ("recoveries", c_uint64),
    ]


class brant_lane_stats(Structure):
    _fields_ = [
        ("size", c_size_t),
        ("state", c_uint32),
        ("reserved", c_uint32),
        ("wire_bytes", c_uint64),
        ("data_pages", c_uint64),
        ("zero_pages", c_uint64),
        ("unacknowledged_pages", c_uint64),
        ("queued_pages", c_uint64),
        ("queue_wait_ns", c_uint64),
        ("send_wait_ns", c_uint64),
        ("idle_ns", c_uint64),
        ("silence_ns", c_uint64),
    ]


class brant_forecast(Structure):
    _fields_ = [
        ("size", c_size_t),
        ("converges", c_uint32),
        ("passes", c_uint32),
        ("time_us", c_uint64),
        ("bytes", c_uint64),
        ("downtime_us", c_uint64),
        ("limit_us", c_uint64),
        ("bandwidth", c_uint64),
        ("throttle", c_uint32),
        ("guessed", c_uint32),
    ]


class brant_recorded(Structure):
    _fields_ = [
        ("size", c_size_t),
        ("lines", c_uint64),
        ("bytes", c_uint64),
        ("dropped", c_uint64),
    ]


class brant_rate_params(Structure):
    _fields_ = [
        ("size", c_size_t),
        ("period_ms", c_uint64),
        ("way", c_uint32),
        ("samples_per_gib", c_uint32),
    ]


class brant_dirty_rate(Structure):
    _fields_ = [
        ("size", c_size_t),
        ("pages_per_second", c_uint64),
        ("bytes_per_second", c_uint64),
        ("error_pages_per_second", c_uint64),
        ("written_pages", c_uint64),
        ("period_ns", c_uint64),
        ("rewritten_pages", c_uint64),
        ("sampled_pages", c_uint64),
        ("changed_pages", c_uint64),
        ("warnings", c_uint64),
    ]


class brant_image_stats(Structure):
    _fields_ = [
        ("size", c_size_t),
        ("state", c_uint32),
        ("pass", c_uint32),
        ("error", c_int32),
        ("progress", c_uint32),
        ("total_bytes", c_uint64),
        ("remaining_bytes", c_uint64),
        ("data_pages", c_uint64),
        ("zero_pages", c_uint64),
        ("ballooned_pages", c_uint64),
        ("poisoned_pages", c_uint64),
        ("state_bytes", c_uint64),
        ("file_bytes", c_uint64),
        ("elapsed_ns", c_uint64),
        ("downtime_ns", c_uint64),
        ("urgent_pages", c_uint64),
        ("lost_pages", c_uint64),
        ("faults", c_uint64),
        ("fault_p50_ns", c_uint64),
        ("fault_p99_ns", c_uint64),
        ("fault_max_ns", c_uint64),
        ("protecting_ns", c_uint64),
        ("copied_pages", c_uint64),
        ("held_faults", c_uint64),
    ]


class brant_image_save_params(Structure):
    _fields_ = [
        ("size", c_size_t),
        ("downtime_limit_ms", c_uint64),
        ("max_passes", c_uint32),
        ("writers", c_uint32),
        ("guest", c_uint32),
        ("cache", c_uint32),
        ("max_bandwidth", c_uint64),
        ("max_copy_bytes", c_uint64),
        ("instant", c_uint32),
        ("reserved", c_uint32),
        ("chain", c_void_p),
    ]


class brant_image_restore_params(Structure):
    _fields_ = [
        ("size", c_size_t),
        ("max_state_bytes", c_uint64),
        ("readers", c_uint32),
        ("cache", c_uint32),
        ("guest", c_uint32),
        ("lazy", c_uint32),
        ("trusted", c_uint32),
        ("reserved", c_uint32),
    ]


class brant_image_merge_params(Structure):
    _fields_ = [
        ("size", c_size_t),
        ("cache", c_uint32),
        ("reserved", c_uint32),
    ]


STRUCTURES: Tuple[type, ...] = (
    brant_ram_block,
    brant_slot,
    brant_state_blob,
    brant_event,
    brant_ops,
    brant_gate_config,
    brant_device_left,
    brant_device,
    brant_vfio_device,
    brant_vhost_user_device,
    brant_tracker_config,
    brant_sync,
    brant_run,
    brant_tracker_stats,
    brant_kvm_log,
    brant_kvm_info,
    brant_kvm_workload,
    brant_kvm_cost,
    brant_kvm_costs,
    brant_vhost_memory,
    brant_vhost_log,
    brant_dma_range,
    brant_vfio_log,
    brant_iommufd_log,
    brant_consumer_stats,
    brant_policy,
    brant_missing_run,
    brant_blocked,
    brant_uffd_region,
    brant_params,
    brant_stats,
    brant_lane_stats,
    brant_forecast,
    brant_recorded,
    brant_rate_params,
    brant_dirty_rate,
    brant_image_stats,
    brant_image_save_params,
    brant_image_restore_params,
    brant_image_merge_params,
)

#: The result and the parameters of each function.
PROTOTYPES: Dict[str, Tuple[Any, List[Any]]] = {
    "brant_version": (
        c_char_p,
        [],
    ),
    "brant_has_feature": (
        c_int32,
        [
            c_char_p,
        ],
    ),
    "brant_error_code": (
        c_int32,
        [
            c_void_p,
        ],
    ),
    "brant_error_message": (
        c_char_p,
        [
            c_void_p,
        ],
    ),
    "brant_error_free": (
        None,
        [
            c_void_p,
        ],
    ),
    "brant_error_name": (
        c_char_p,
        [
            c_int32,
        ],
    ),
    "brant_guest_new": (
        c_int32,
        [
            POINTER(brant_ops),
            c_void_p,
            POINTER(c_void_p),
            POINTER(c_void_p),
        ],
    ),
    "brant_guest_free": (
        None,
        [
            c_void_p,
        ],
    ),
    "brant_guest_add_block": (
        c_int32,
        [
            c_void_p,
            POINTER(brant_ram_block),
            POINTER(c_uint32),
            POINTER(c_void_p),
        ],
    ),
    "brant_guest_add_ram": (
        c_int32,
        [
            c_void_p,
            POINTER(brant_ram_block),
            c_uint64,
            c_uint32,
            POINTER(c_uint32),
            POINTER(c_void_p),
        ],
    ),
    "brant_guest_find_block": (
        c_int32,
        [
            c_void_p,
            c_char_p,
            POINTER(c_uint32),
            POINTER(c_void_p),
        ],
    ),
    "brant_guest_remove_block": (
        c_int32,
        [
            c_void_p,
            c_uint32,
            POINTER(c_void_p),
        ],
    ),
    "brant_guest_add_slot": (
        c_int32,
        [
            c_void_p,
            POINTER(brant_slot),
            POINTER(c_void_p),
        ],
    ),
    "brant_guest_remove_slot": (
        c_int32,
        [
            c_void_p,
            c_uint32,
            c_uint64,
            POINTER(c_void_p),
        ],
    ),
    "brant_guest_get_state": (
        c_int32,
        [
            c_void_p,
            POINTER(c_uint32),
            POINTER(c_void_p),
        ],
    ),
    "brant_guest_runs_here": (
        c_int32,
        [
            c_void_p,
            POINTER(c_void_p),
        ],
    ),
    "brant_guest_reclaim": (
        c_int32,
        [
            c_void_p,
            POINTER(c_void_p),
        ],
    ),
    "brant_guest_give_up": (
        c_int32,
        [
            c_void_p,
            POINTER(c_void_p),
        ],
    ),
    "brant_guest_must_tell_host": (
        c_int32,
        [
            c_void_p,
            c_uint32,
            POINTER(c_void_p),
        ],
    ),
    "brant_guest_mark_ballooned": (
        None,
        [
            c_void_p,
            c_uint64,
            c_uint64,
        ],
    ),
    "brant_guest_clear_ballooned": (
        None,
        [
            c_void_p,
            c_uint64,
            c_uint64,
        ],
    ),
    "brant_guest_before_discard": (
        c_int32,
        [
            c_void_p,
            c_uint64,
            c_uint64,
            POINTER(c_void_p),
        ],
    ),
    "brant_guest_count_ballooned": (
        c_int32,
        [
            c_void_p,
            c_uint64,
            c_uint64,
            POINTER(c_uint64),
            POINTER(c_void_p),
        ],
    ),
    "brant_guest_mark_poisoned": (
        c_int32,
        [
            c_void_p,
            c_uint32,
            c_uint64,
            c_uint64,
            POINTER(c_void_p),
        ],
    ),
    "brant_guest_clear_poisoned": (
        c_int32,
        [
            c_void_p,
            c_uint32,
            c_uint64,
            c_uint64,
            POINTER(c_void_p),
        ],
    ),
    "brant_blocker_new": (
        c_int32,
        [
            c_void_p,
            c_char_p,
            POINTER(c_void_p),
            POINTER(c_void_p),
        ],
    ),
    "brant_blocker_free": (
        None,
        [
            c_void_p,
        ],
    ),
    "brant_reason_set": (
        None,
        [
            c_void_p,
            c_char_p,
        ],
    ),
    "brant_saver_put": (
        c_int32,
        [
            c_void_p,
            c_char_p,
            c_uint32,
            c_uint32,
            c_void_p,
            c_size_t,
            POINTER(c_void_p),
        ],
    ),
    "brant_guest_add_state": (
        c_int32,
        [
            c_void_p,
            c_char_p,
            c_uint32,
            c_uint32,
            c_void_p,
            c_size_t,
            POINTER(c_void_p),
        ],
    ),
    "brant_guest_remove_state": (
        c_int32,
        [
            c_void_p,
            c_char_p,
            c_uint32,
            POINTER(c_void_p),
        ],
    ),
    "brant_gate_new": (
        c_int32,
        [
            POINTER(brant_gate_config),
            POINTER(c_void_p),
            POINTER(c_void_p),
        ],
    ),
    "brant_gate_free": (
        None,
        [
            c_void_p,
        ],
    ),
    "brant_guest_use_gate": (
        c_int32,
        [
            c_void_p,
            c_void_p,
            POINTER(c_void_p),
        ],
    ),
    "brant_gate_start": (
        c_int32,
        [
            c_void_p,
            POINTER(c_void_p),
        ],
    ),
    "brant_gate_pause": (
        c_int32,
        [
            c_void_p,
            c_uint64,
            POINTER(c_void_p),
        ],
    ),
    "brant_gate_resume": (
        c_int32,
        [
            c_void_p,
            POINTER(c_void_p),
        ],
    ),
    "brant_gate_shut_down": (
        c_int32,
        [
            c_void_p,
            POINTER(c_void_p),
        ],
    ),
    "brant_gate_get_holds": (
        c_int32,
        [
            c_void_p,
            POINTER(c_uint32),
            POINTER(c_void_p),
        ],
    ),
    "brant_gate_kick_vcpu": (
        c_int32,
        [
            c_void_p,
            c_uint32,
            POINTER(c_void_p),
        ],
    ),
    "brant_gate_add_vcpu": (
        c_int32,
        [
            c_void_p,
            c_uint32,
            c_int32,
            POINTER(c_void_p),
            POINTER(c_void_p),
        ],
    ),
    "brant_gate_vcpu_free": (
        None,
        [
            c_void_p,
        ],
    ),
    "brant_gate_vcpu_run": (
        c_int32,
        [
            c_void_p,
            POINTER(c_void_p),
        ],
    ),
    "brant_gate_vcpu_enter": (
        c_int32,
        [
            c_void_p,
            POINTER(c_void_p),
        ],
    ),
    "brant_gate_vcpu_left": (
        c_int32,
        [
            c_void_p,
            c_int32,
            POINTER(c_void_p),
        ],
    ),
    "brant_gate_vcpu_idle": (
        c_int32,
        [
            c_void_p,
            c_uint64,
            POINTER(c_void_p),
        ],
    ),
    "brant_gate_add_device": (
        c_int32,
        [
            c_void_p,
            c_char_p,
            POINTER(c_void_p),
            POINTER(c_void_p),
        ],
    ),
    "brant_gate_device_free": (
        None,
        [
            c_void_p,
        ],
    ),
    "brant_gate_device_enter": (
        c_int32,
        [
            c_void_p,
            c_uint64,
            POINTER(c_void_p),
        ],
    ),
    "brant_gate_device_leave": (
        c_int32,
        [
            c_void_p,
            POINTER(c_void_p),
        ],
    ),
    "brant_kvm_vcpu_save": (
        c_int32,
        [
            c_int32,
            c_int32,
            c_int32,
            c_uint32,
            c_void_p,
            POINTER(c_void_p),
        ],
    ),
    "brant_kvm_vcpu_load": (
        c_int32,
        [
            c_int32,
            c_int32,
            c_int32,
            POINTER(brant_state_blob),
            POINTER(c_void_p),
        ],
    ),
    "brant_kvm_vcpu_load_renumbered": (
        c_int32,
        [
            c_int32,
            c_int32,
            c_int32,
            c_uint32,
            POINTER(brant_state_blob),
            POINTER(c_void_p),
        ],
    ),
    "brant_kvm_vcpu_stood_still": (
        c_int32,
        [
            c_int32,
            POINTER(c_void_p),
        ],
    ),
    "brant_kvm_vm_save": (
        c_int32,
        [
            c_int32,
            c_int32,
            c_void_p,
            POINTER(c_void_p),
        ],
    ),
    "brant_kvm_vm_load": (
        c_int32,
        [
            c_int32,
            c_int32,
            POINTER(brant_state_blob),
            POINTER(c_void_p),
        ],
    ),
    "brant_kvm_compat_save": (
        c_int32,
        [
            c_int32,
            c_int32,
            c_void_p,
            c_void_p,
            POINTER(c_void_p),
        ],
    ),
    "brant_kvm_compat_check": (
        c_int32,
        [
            c_int32,
            c_int32,
            c_void_p,
            POINTER(brant_state_blob),
            POINTER(c_void_p),
        ],
    ),
    "brant_guest_add_device": (
        c_int32,
        [
            c_void_p,
            POINTER(brant_device),
            POINTER(c_void_p),
        ],
    ),
    "brant_guest_remove_device": (
        c_int32,
        [
            c_void_p,
            c_char_p,
            c_uint32,
            POINTER(c_void_p),
        ],
    ),
    "brant_guest_add_vfio_device": (
        c_int32,
        [
            c_void_p,
            POINTER(brant_vfio_device),
            POINTER(c_void_p),
        ],
    ),
    "brant_guest_add_vhost_user_device": (
        c_int32,
        [
            c_void_p,
            POINTER(brant_vhost_user_device),
            POINTER(c_void_p),
        ],
    ),
    "brant_vhost_user_set_device_state_fd": (
        c_int32,
        [
            c_int32,
            c_uint32,
            c_int32,
            c_uint32,
            POINTER(c_int32),
            POINTER(c_void_p),
        ],
    ),
    "brant_vhost_user_check_device_state": (
        c_int32,
        [
            c_int32,
            c_uint32,
            POINTER(c_void_p),
        ],
    ),
    "brant_tracker_new": (
        c_int32,
        [
            c_void_p,
            POINTER(brant_tracker_config),
            POINTER(c_void_p),
            POINTER(c_void_p),
        ],
    ),
    "brant_tracker_free": (
        None,
        [
            c_void_p,
        ],
    ),
    "brant_tracker_start": (
        c_int32,
        [
            c_void_p,
            c_uint32,
            POINTER(c_void_p),
        ],
    ),
    "brant_tracker_stop": (
        c_int32,
        [
            c_void_p,
            POINTER(c_void_p),
        ],
    ),
    "brant_tracker_sync": (
        c_int32,
        [
            c_void_p,
            c_uint32,
            POINTER(brant_sync),
            POINTER(c_void_p),
        ],
    ),
    "brant_tracker_take": (
        c_int32,
        [
            c_void_p,
            POINTER(brant_run),
            c_size_t,
            POINTER(c_size_t),
            POINTER(c_void_p),
        ],
    ),
    "brant_tracker_put_back": (
        c_int32,
        [
            c_void_p,
            c_uint32,
            c_uint64,
            c_uint64,
            POINTER(c_void_p),
        ],
    ),
    "brant_tracker_mark": (
        None,
        [
            c_void_p,
            c_uint64,
            c_uint64,
        ],
    ),
    "brant_tracker_mark_bitmap": (
        None,
        [
            c_void_p,
            c_uint64,
            POINTER(c_uint64),
            c_uint64,
        ],
    ),
    "brant_tracker_mark_block": (
        None,
        [
            c_void_p,
            c_uint32,
            c_uint64,
            c_uint64,
        ],
    ),
    "brant_tracker_mark_host": (
        None,
        [
            c_void_p,
            c_void_p,
            c_uint64,
        ],
    ),
    "brant_tracker_get_stats": (
        c_int32,
        [
            c_void_p,
            POINTER(brant_tracker_stats),
            POINTER(c_void_p),
        ],
    ),
    "brant_tracker_add_kvm": (
        c_int32,
        [
            c_void_p,
            POINTER(brant_kvm_log),
            POINTER(c_void_p),
        ],
    ),
    "brant_tracker_get_kvm": (
        c_int32,
        [
            c_void_p,
            POINTER(brant_kvm_info),
            c_char_p,
            c_size_t,
            POINTER(c_size_t),
            POINTER(c_void_p),
        ],
    ),
    "brant_kvm_enable_ring": (
        c_int32,
        [
            c_int32,
            c_uint64,
            POINTER(c_uint64),
            POINTER(c_void_p),
        ],
    ),
    "brant_tracker_add_vcpu": (
        c_int32,
        [
            c_void_p,
            c_uint32,
            c_int32,
            POINTER(c_void_p),
        ],
    ),
    "brant_tracker_remove_vcpu": (
        c_int32,
        [
            c_void_p,
            c_uint32,
            POINTER(c_void_p),
        ],
    ),
    "brant_tracker_limit_vcpu": (
        c_int32,
        [
            c_void_p,
            c_uint32,
            c_uint64,
            POINTER(c_void_p),
        ],
    ),
    "brant_tracker_ring_full": (
        c_int32,
        [
            c_void_p,
            c_uint32,
            POINTER(c_void_p),
        ],
    ),
    "brant_tracker_vcpu_dirty": (
        c_int32,
        [
            c_void_p,
            c_uint32,
            POINTER(c_uint64),
            POINTER(c_void_p),
        ],
    ),
    "brant_kvm_measure": (
        c_int32,
        [
            c_int32,
            POINTER(brant_kvm_workload),
            POINTER(brant_kvm_costs),
            c_char_p,
            c_size_t,
            POINTER(c_size_t),
            POINTER(c_void_p),
        ],
    ),
    "brant_tracker_add_vhost": (
        c_int32,
        [
            c_void_p,
            POINTER(brant_vhost_log),
            POINTER(c_void_p),
        ],
    ),
    "brant_tracker_add_vfio_device": (
        c_int32,
        [
            c_void_p,
            POINTER(brant_vfio_log),
            POINTER(c_void_p),
        ],
    ),
    "brant_tracker_add_vfio_container": (
        c_int32,
        [
            c_void_p,
            POINTER(brant_vfio_log),
            POINTER(c_void_p),
        ],
    ),
    "brant_tracker_add_iommufd": (
        c_int32,
        [
            c_void_p,
            POINTER(brant_iommufd_log),
            POINTER(c_void_p),
        ],
    ),
    "brant_tracker_add_userfault": (
        c_int32,
        [
            c_void_p,
            POINTER(c_void_p),
        ],
    ),
    "brant_consumer_new": (
        c_int32,
        [
            c_void_p,
            c_uint32,
            POINTER(c_void_p),
            POINTER(c_void_p),
        ],
    ),
    "brant_consumer_free": (
        None,
        [
            c_void_p,
        ],
    ),
    "brant_consumer_stop": (
        c_int32,
        [
            c_void_p,
            POINTER(c_void_p),
        ],
    ),
    "brant_consumer_sync": (
        c_int32,
        [
            c_void_p,
            c_uint32,
            POINTER(brant_sync),
            POINTER(c_void_p),
        ],
    ),
    "brant_consumer_take": (
        c_int32,
        [
            c_void_p,
            POINTER(brant_run),
            c_size_t,
            POINTER(c_size_t),
            POINTER(c_void_p),
        ],
    ),
    "brant_consumer_put_back": (
        c_int32,
        [
            c_void_p,
            c_uint32,
            c_uint64,
            c_uint64,
            POINTER(c_void_p),
        ],
    ),
    "brant_consumer_get_stats": (
        c_int32,
        [
            c_void_p,
            POINTER(brant_consumer_stats),
            POINTER(c_void_p),
        ],
    ),
    "brant_tracker_begin_hints": (
        c_int32,
        [
            c_void_p,
            POINTER(c_uint64),
            POINTER(c_void_p),
        ],
    ),
    "brant_tracker_hint_free": (
        c_int32,
        [
            c_void_p,
            c_uint64,
            c_uint64,
            c_uint64,
            POINTER(c_void_p),
        ],
    ),
    "brant_tracker_end_hints": (
        None,
        [
            c_void_p,
            c_uint64,
        ],
    ),
    "brant_outgoing_new": (
        c_int32,
        [
            c_void_p,
            POINTER(brant_params),
            POINTER(c_void_p),
            POINTER(c_void_p),
        ],
    ),
    "brant_outgoing_free": (
        c_int32,
        [
            c_void_p,
        ],
    ),
    "brant_outgoing_start": (
        c_int32,
        [
            c_void_p,
            c_char_p,
            POINTER(c_void_p),
        ],
    ),
    "brant_outgoing_start_fd": (
        c_int32,
        [
            c_void_p,
            c_int32,
            POINTER(c_void_p),
        ],
    ),
    "brant_outgoing_start_fds": (
        c_int32,
        [
            c_void_p,
            POINTER(c_int32),
            c_size_t,
            POINTER(c_void_p),
        ],
    ),
    "brant_outgoing_set_max_bandwidth": (
        c_int32,
        [
            c_void_p,
            c_uint64,
            POINTER(c_void_p),
        ],
    ),
    "brant_outgoing_cancel": (
        c_int32,
        [
            c_void_p,
            POINTER(c_void_p),
        ],
    ),
    "brant_outgoing_wait": (
        c_int32,
        [
            c_void_p,
            c_uint64,
            POINTER(c_void_p),
        ],
    ),
    "brant_outgoing_resolve": (
        c_int32,
        [
            c_void_p,
            c_uint32,
            POINTER(c_void_p),
        ],
    ),
    "brant_outgoing_get_stats": (
        c_int32,
        [
            c_void_p,
            POINTER(brant_stats),
            POINTER(c_void_p),
        ],
    ),
    "brant_outgoing_lane_stats": (
        c_int32,
        [
            c_void_p,
            c_uint32,
            POINTER(brant_lane_stats),
            POINTER(c_void_p),
        ],
    ),
    "brant_outgoing_get_forecast": (
        c_int32,
        [
            c_void_p,
            POINTER(brant_forecast),
            POINTER(c_void_p),
        ],
    ),
    "brant_outgoing_get_stats_json": (
        c_int32,
        [
            c_void_p,
            c_char_p,
            c_size_t,
            POINTER(c_size_t),
            POINTER(c_void_p),
        ],
    ),
    "brant_outgoing_get_line": (
        c_int32,
        [
            c_void_p,
            c_char_p,
            c_size_t,
            POINTER(c_void_p),
        ],
    ),
    "brant_outgoing_event_fd": (
        c_int32,
        [
            c_void_p,
        ],
    ),
    "brant_outgoing_set_policy": (
        c_int32,
        [
            c_void_p,
            POINTER(brant_policy),
            POINTER(c_void_p),
        ],
    ),
    "brant_outgoing_set_downtime_limit": (
        c_int32,
        [
            c_void_p,
            c_uint64,
            POINTER(c_void_p),
        ],
    ),
    "brant_outgoing_switch_over": (
        c_int32,
        [
            c_void_p,
            POINTER(c_void_p),
        ],
    ),
    "brant_outgoing_start_postcopy": (
        c_int32,
        [
            c_void_p,
            POINTER(c_void_p),
        ],
    ),
    "brant_outgoing_recover": (
        c_int32,
        [
            c_void_p,
            c_char_p,
            POINTER(c_void_p),
        ],
    ),
    "brant_outgoing_recover_fds": (
        c_int32,
        [
            c_void_p,
            POINTER(c_int32),
            c_size_t,
            POINTER(c_void_p),
        ],
    ),
    "brant_incoming_new": (
        c_int32,
        [
            c_void_p,
            POINTER(brant_params),
            POINTER(c_void_p),
            POINTER(c_void_p),
        ],
    ),
    "brant_incoming_free": (
        c_int32,
        [
            c_void_p,
        ],
    ),
    "brant_incoming_listen": (
        c_int32,
        [
            c_void_p,
            c_char_p,
            POINTER(c_void_p),
        ],
    ),
    "brant_incoming_get_endpoint": (
        c_int32,
        [
            c_void_p,
            c_char_p,
            c_size_t,
            POINTER(c_size_t),
            POINTER(c_void_p),
        ],
    ),
    "brant_incoming_start_fd": (
        c_int32,
        [
            c_void_p,
            c_int32,
            POINTER(c_void_p),
        ],
    ),
    "brant_incoming_start_fds": (
        c_int32,
        [
            c_void_p,
            POINTER(c_int32),
            c_size_t,
            POINTER(c_void_p),
        ],
    ),
    "brant_incoming_cancel": (
        c_int32,
        [
            c_void_p,
            POINTER(c_void_p),
        ],
    ),
    "brant_incoming_wait": (
        c_int32,
        [
            c_void_p,
            c_uint64,
            POINTER(c_void_p),
        ],
    ),
    "brant_incoming_get_stats": (
        c_int32,
        [
            c_void_p,
            POINTER(brant_stats),
            POINTER(c_void_p),
        ],
    ),
    "brant_incoming_lane_stats": (
        c_int32,
        [
            c_void_p,
            c_uint32,
            POINTER(brant_lane_stats),
            POINTER(c_void_p),
        ],
    ),
    "brant_incoming_get_stats_json": (
        c_int32,
        [
            c_void_p,
            c_char_p,
            c_size_t,
            POINTER(c_size_t),
            POINTER(c_void_p),
        ],
    ),
    "brant_incoming_get_line": (
        c_int32,
        [
            c_void_p,
            c_char_p,
            c_size_t,
            POINTER(c_void_p),
        ],
    ),
    "brant_incoming_event_fd": (
        c_int32,
        [
            c_void_p,
        ],
    ),
    "brant_incoming_get_missing": (
        c_int32,
        [
            c_void_p,
            POINTER(brant_missing_run),
            c_size_t,
            POINTER(c_size_t),
            POINTER(c_void_p),
        ],
    ),
    "brant_incoming_get_blocked": (
        c_int32,
        [
            c_void_p,
            POINTER(brant_blocked),
            c_size_t,
            POINTER(c_size_t),
            POINTER(c_void_p),
        ],
    ),
    "brant_incoming_give_up": (
        c_int32,
        [
            c_void_p,
            POINTER(c_void_p),
        ],
    ),
    "brant_incoming_recover": (
        c_int32,
        [
            c_void_p,
            c_char_p,
            POINTER(c_void_p),
        ],
    ),
    "brant_incoming_recover_fds": (
        c_int32,
        [
            c_void_p,
            POINTER(c_int32),
            c_size_t,
            POINTER(c_void_p),
        ],
    ),
    "brant_incoming_add_uffd": (
        c_int32,
        [
            c_void_p,
            c_int32,
            POINTER(brant_uffd_region),
            c_size_t,
            POINTER(c_void_p),
        ],
    ),
    "brant_outgoing_record": (
        c_int32,
        [
            c_void_p,
            c_int32,
            c_uint64,
            c_char_p,
            POINTER(c_void_p),
        ],
    ),
    "brant_outgoing_end_record": (
        c_int32,
        [
            c_void_p,
            POINTER(brant_recorded),
            POINTER(c_void_p),
        ],
    ),
    "brant_incoming_record": (
        c_int32,
        [
            c_void_p,
            c_int32,
            c_uint64,
            c_char_p,
            POINTER(c_void_p),
        ],
    ),
    "brant_incoming_end_record": (
        c_int32,
        [
            c_void_p,
            POINTER(brant_recorded),
            POINTER(c_void_p),
        ],
    ),
    "brant_rate_new": (
        c_int32,
        [
            c_void_p,
            POINTER(brant_rate_params),
            POINTER(c_void_p),
            POINTER(c_void_p),
        ],
    ),
    "brant_rate_free": (
        None,
        [
            c_void_p,
        ],
    ),
    "brant_rate_measure": (
        c_int32,
        [
            c_void_p,
            POINTER(brant_dirty_rate),
            POINTER(c_void_p),
        ],
    ),
    "brant_rate_finish": (
        c_int32,
        [
            c_void_p,
            POINTER(c_void_p),
        ],
    ),
    "brant_rate_get_vcpus": (
        c_int32,
        [
            c_void_p,
            POINTER(c_uint64),
            c_size_t,
            POINTER(c_size_t),
            POINTER(c_void_p),
        ],
    ),
    "brant_rate_forecast": (
        c_int32,
        [
            c_void_p,
            POINTER(brant_params),
            POINTER(brant_policy),
            c_uint64,
            POINTER(brant_forecast),
            POINTER(c_void_p),
        ],
    ),
    "brant_rate_progress": (
        c_uint64,
        [
            c_void_p,
        ],
    ),
    "brant_rate_cancel": (
        c_int32,
        [
            c_void_p,
            POINTER(c_void_p),
        ],
    ),
    "brant_image_save_new": (
        c_int32,
        [
            c_void_p,
            POINTER(brant_image_save_params),
            POINTER(c_void_p),
            POINTER(c_void_p),
        ],
    ),
    "brant_image_save_free": (
        c_int32,
        [
            c_void_p,
        ],
    ),
    "brant_image_save_start": (
        c_int32,
        [
            c_void_p,
            c_char_p,
            POINTER(c_void_p),
        ],
    ),
    "brant_image_save_cancel": (
        c_int32,
        [
            c_void_p,
            POINTER(c_void_p),
        ],
    ),
    "brant_image_save_wait": (
        c_int32,
        [
            c_void_p,
            c_uint64,
            POINTER(c_void_p),
        ],
    ),
    "brant_image_save_get_stats": (
        c_int32,
        [
            c_void_p,
            POINTER(brant_image_stats),
            POINTER(c_void_p),
        ],
    ),
    "brant_image_save_event_fd": (
        c_int32,
        [
            c_void_p,
        ],
    ),
    "brant_image_restore_new": (
        c_int32,
        [
            c_void_p,
            POINTER(brant_image_restore_params),
            POINTER(c_void_p),
            POINTER(c_void_p),
        ],
    ),
    "brant_image_restore_free": (
        c_int32,
        [
            c_void_p,
        ],
    ),
    "brant_image_restore_start": (
        c_int32,
        [
            c_void_p,
            c_char_p,
            POINTER(c_void_p),
        ],
    ),
    "brant_image_restore_cancel": (
        c_int32,
        [
            c_void_p,
            POINTER(c_void_p),
        ],
    ),
    "brant_image_restore_wait": (
        c_int32,
        [
            c_void_p,
            c_uint64,
            POINTER(c_void_p),
        ],
    ),
    "brant_image_restore_finish": (
        c_int32,
        [
            c_void_p,
            c_uint64,
            POINTER(c_void_p),
        ],
    ),
    "brant_image_restore_get_stats": (
        c_int32,
        [
            c_void_p,
            POINTER(brant_image_stats),
            POINTER(c_void_p),
        ],
    ),
    "brant_image_restore_event_fd": (
        c_int32,
        [
            c_void_p,
        ],
    ),
    "brant_image_chain_new": (
        c_int32,
        [
            c_void_p,
            POINTER(c_void_p),
            POINTER(c_void_p),
        ],
    ),
    "brant_image_chain_free": (
        None,
        [
            c_void_p,
        ],
    ),
    "brant_image_merging_new": (
        c_int32,
        [
            POINTER(brant_image_merge_params),
            POINTER(c_void_p),
            POINTER(c_void_p),
        ],
    ),
    "brant_image_merging_free": (
        None,
        [
            c_void_p,
        ],
    ),
    "brant_image_merging_start": (
        c_int32,
        [
            c_void_p,
            c_char_p,
            c_char_p,
            POINTER(c_void_p),
        ],
    ),
    "brant_image_merging_cancel": (
        c_int32,
        [
            c_void_p,
            POINTER(c_void_p),
        ],
    ),
    "brant_image_merging_wait": (
        c_int32,
        [
            c_void_p,
            c_uint64,
            POINTER(c_void_p),
        ],
    ),
    "brant_image_merging_get_stats": (
        c_int32,
        [
            c_void_p,
            POINTER(brant_image_stats),
            POINTER(c_void_p),
        ],
    ),
    "brant_image_merging_event_fd": (
        c_int32,
        [
            c_void_p,
        ],
    ),
    "brant_image_merge": (
        c_int32,
        [
            c_char_p,
            c_char_p,
            POINTER(c_void_p),
        ],
    ),
    "brant_image_describe": (
        c_int32,
        [
            c_char_p,
            c_char_p,
            c_size_t,
            POINTER(c_size_t),
            POINTER(c_void_p),
        ],
    ),
    "brant_bitmap_new": (
        c_int32,
        [
            c_uint64,
            POINTER(c_void_p),
            POINTER(c_void_p),
        ],
    ),
    "brant_bitmap_free": (
        None,
        [
            c_void_p,
        ],
    ),
    "brant_bitmap_count": (
        c_uint64,
        [
            c_void_p,
        ],
    ),
    "brant_bitmap_test": (
        c_int32,
        [
            c_void_p,
            c_uint64,
        ],
    ),
    "brant_bitmap_set": (
        c_int32,
        [
            c_void_p,
            c_uint64,
            c_uint64,
            POINTER(c_uint64),
            POINTER(c_void_p),
        ],
    ),
    "brant_bitmap_clear": (
        c_int32,
        [
            c_void_p,
            c_uint64,
            c_uint64,
            POINTER(c_uint64),
            POINTER(c_void_p),
        ],
    ),
    "brant_bitmap_merge_words": (
        c_int32,
        [
            c_void_p,
            c_uint64,
            POINTER(c_uint64),
            c_uint64,
            POINTER(c_uint64),
            POINTER(c_void_p),
        ],
    ),
    "brant_bitmap_merge": (
        c_int32,
        [
            c_void_p,
            c_void_p,
            POINTER(c_uint64),
            POINTER(c_void_p),
        ],
    ),
    "brant_bitmap_next_run": (
        c_int32,
        [
            c_void_p,
            c_uint64,
            c_uint64,
            POINTER(c_uint64),
            POINTER(c_uint64),
        ],
    ),
}
