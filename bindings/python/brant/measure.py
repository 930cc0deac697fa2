"""What KVM's dirty logs cost on this machine, before one is chosen."""

from __future__ import annotations

import ctypes
from ctypes import byref
from dataclasses import dataclass, fields
from typing import Optional

from . import _native as native
from ._native import constant

_KINDS = {
    constant("KVM_GET_AND_CLEAR"): "get-and-clear",
    constant("KVM_MANUAL_PROTECT"): "manual-protect",
    constant("KVM_INITIALLY_SET"): "initially-set",
    constant("KVM_RING"): "ring",
}


@dataclass(frozen=True)
class KvmCost:
    """What one of KVM's logs costs, in nanoseconds of a processor."""

    #: The guest's first write to a clean page.
    first_write_ns: int
    #: A write of a guest that goes over its memory again and again.
    busy_write_ns: int
    #: A sync, for each dirty page.
    sync_page_ns: int
    #: A sync, for each GiB in which nothing is dirty.
    sync_gib_ns: int


@dataclass(frozen=True)
class KvmCosts:
    """What :func:`measure_kvm` found; a kind that was not measured is None."""

    #: The kind that costs this guest least: "get-and-clear", "manual-protect", "initially-set"
    #: or "ring".
    recommended: str
    #: One sentence.
    reason: str
    #: Nanoseconds of a write of a guest that is not tracked.
    untracked_write_ns: int
    get_and_clear: Optional[KvmCost]
    manual_protect: Optional[KvmCost]
    initially_set: Optional[KvmCost]
    ring: Optional[KvmCost]
    #: The figures as the library filled them, for :meth:`Tracker.add_kvm`.
    filled: bytes


def _cost(cost: native.brant_kvm_cost) -> Optional[KvmCost]:
    if not cost.measured:
        return None
    return KvmCost(**{field.name: getattr(cost, field.name) for field in fields(KvmCost)})


def measure_kvm(
    *, memory_bytes: int = 0, dirty_pages_per_second: int = 0, limit_ms: int = 0
) -> KvmCosts:
    """Measures what each of KVM's dirty logs costs here, and recommends one for a guest of
    ``memory_bytes`` that dirties ``dirty_pages_per_second``; 0 for what is not known (then the
    guest writes as fast as it can). Before dirty rings are enabled: later there is no choice.
    Opens /dev/kvm, tries a guest of the library's own, and takes at most ``limit_ms`` (20 to 10000;
    0: 200)."""
    workload = native.sized(
        native.brant_kvm_workload,
        memory_bytes=native.number(memory_bytes, "memory_bytes"),
        dirty_pages_per_second=native.number(dirty_pages_per_second, "dirty_pages_per_second"),
        limit_ms=native.number(limit_ms, "limit_ms"),
    )
    costs = native.sized(native.brant_kvm_costs)
    reason = ctypes.create_string_buffer(2048)
    native.call(
        native.lib.brant_kvm_measure,
        -1,
        byref(workload),
        byref(costs),
        reason,
        len(reason),
        None,
    )
    return KvmCosts(
        recommended=_KINDS[costs.recommended],
        reason=reason.value.decode(errors="replace"),
        untracked_write_ns=costs.untracked_write_ns,
        get_and_clear=_cost(costs.get_and_clear),
        manual_protect=_cost(costs.manual_protect),
        initially_set=_cost(costs.initially_set),
        ring=_cost(costs.ring),
        filled=bytes(costs),
    )
