"""KVM's dirty rings: enabled on a virtual machine, and what a tracker knows of each vCPU's ring.

Enable them before there is a vCPU or a memory slot. Then ``tracker.add_kvm(vm_fd, mode="ring")``,
:meth:`Rings.add_vcpu` for each vCPU, and :meth:`Rings.full` at each exit with a full ring.
"""

from __future__ import annotations

import ctypes
from ctypes import byref, c_uint64
from typing import Tuple

from . import _declared as declared
from . import _native as native
from ._convert import figures
from .figures import KvmInfo


def enable_kvm_ring(vm_fd: int, ring_bytes: int = 0) -> int:
    """Enables dirty rings on a virtual machine without vCPUs and slots: ``ring_bytes`` for each vCPU,
    a power of two from 4096 to 1 MiB; 0: 256 KiB. Returns the bytes in use. Afterwards no bitmap
    works on this machine: :func:`measure_kvm` says before whether rings suit the guest."""
    size = c_uint64()
    native.call(
        native.lib.brant_kvm_enable_ring,
        vm_fd,
        native.number(ring_bytes, "ring_bytes"),
        byref(size),
    )
    return size.value


class Rings:
    """The dirty rings of a tracker's guest: :attr:`Tracker.rings`."""

    def __init__(self, handle: native.Handle) -> None:
        self._handle = handle

    def _call(self, name: str, vcpu: int, *arguments: object) -> None:
        number = native.number(vcpu, "vcpu", 32)
        with self._handle.use() as tracker:
            native.call(getattr(native.lib, "brant_tracker_" + name), tracker, number, *arguments)

    def add_vcpu(self, vcpu: int, vcpu_fd: int) -> None:
        """Adds a vCPU under a number of your own, before it first runs tracked. ``vcpu_fd`` is what
        KVM_CREATE_VCPU returned, and stays yours."""
        self._call("add_vcpu", vcpu, vcpu_fd)

    def remove_vcpu(self, vcpu: int) -> None:
        """Removes a vCPU that has left KVM_RUN for good, after a last harvest of its ring."""
        self._call("remove_vcpu", vcpu)

    def full(self, vcpu: int) -> None:
        """A vCPU left KVM_RUN with KVM_EXIT_DIRTY_RING_FULL. On that vCPU's thread, for each such
        exit; then enter KVM_RUN again. Returns when the ring has room, or after 5 ms over a dirty
        limit: so look for requests of your own between two calls."""
        self._call("ring_full", vcpu)

    def limit(self, vcpu: int, pages_per_second: int) -> None:
        """Limits how many pages a second a vCPU may write, while tracking is on; 0 lifts it."""
        self._call("limit_vcpu", vcpu, native.number(pages_per_second, "pages_per_second"))

    def dirty(self, vcpu: int) -> int:
        """Pages that a vCPU has dirtied since it was added. A page that it dirties again after a
        harvest counts again."""
        pages = c_uint64()
        self._call("vcpu_dirty", vcpu, byref(pages))
        return pages.value

    def info(self) -> Tuple[KvmInfo, str]:
        """Which of KVM's logs the tracker uses, with the totals of its rings; and why that one."""
        found = native.sized(declared.brant_kvm_info)
        reason = ctypes.create_string_buffer(2048)
        with self._handle.use() as tracker:
            native.call(
                native.lib.brant_tracker_get_kvm, tracker, byref(found), reason, len(reason), None
            )
        return figures(KvmInfo, found), reason.value.decode(errors="replace")

    def __repr__(self) -> str:
        return "<brant.Rings%s>" % (", closed" if self._handle.closed else "")
