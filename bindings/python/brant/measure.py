"""The costs of KVM's dirty logs on this machine, measured before one is chosen."""

from __future__ import annotations

import ctypes
from ctypes import byref
from dataclasses import dataclass, fields
from typing import Optional

from . import _declared as declared
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
    """The costs of one of KVM's logs, in nanoseconds of processor time."""

    #: The guest's first write to a clean page.
    first_write_ns: int
    #: A write of a guest that writes all of its memory again and again.
    busy_write_ns: int
    #: A sync, for each dirty page.
    sync_page_ns: int
    #: A sync, for each GiB without a dirty page.
    sync_gib_ns: int


@dataclass(frozen=True)
class KvmCosts:
    """The result of :func:`measure_kvm`. A log that was not measured is None."""

    #: The log that costs this guest least: "get-and-clear", "manual-protect", "initially-set" or
    #: "ring".
    recommended: str
    #: The reason, in one sentence.
    reason: str
    #: Nanoseconds of a write of a guest that is not tracked.
    untracked_write_ns: int
    get_and_clear: Optional[KvmCost]
    manual_protect: Optional[KvmCost]
    initially_set: Optional[KvmCost]
    ring: Optional[KvmCost]
    #: The figures as the library filled them, for :meth:`Tracker.add_kvm`.
    filled: bytes


def _cost(cost: declared.brant_kvm_cost) -> Optional[KvmCost]:
    if not cost.measured:
        return None
    return KvmCost(**{field.name: getattr(cost, field.name) for field in fields(KvmCost)})


def measure_kvm(
    *, memory_bytes: int = 0, dirty_pages_per_second: int = 0, limit_ms: int = 0
) -> KvmCosts:
    """Measures the cost of each of KVM's dirty logs here, and recommends one for a guest of
    ``memory_bytes`` that dirties ``dirty_pages_per_second``. 0 means unknown: then the guest is
    taken to write as fast as it can. Call this before dirty rings are enabled, because later there
    is no choice. It opens /dev/kvm, runs a guest of the library's own, and takes at most
    ``limit_ms`` (20 to 10000; 0: 200)."""
    workload = native.sized(
        declared.brant_kvm_workload,
        memory_bytes=native.number(memory_bytes, "memory_bytes"),
        dirty_pages_per_second=native.number(dirty_pages_per_second, "dirty_pages_per_second"),
        limit_ms=native.number(limit_ms, "limit_ms"),
    )
    costs = native.sized(declared.brant_kvm_costs)
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
