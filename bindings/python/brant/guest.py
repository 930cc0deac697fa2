"""The memory of a guest: its blocks, where they appear to it, and who has the guest."""

from __future__ import annotations

import ctypes
import threading
from contextlib import contextmanager
from ctypes import byref, c_uint32, c_uint64
from types import TracebackType
from typing import Any, Callable, Dict, Iterator, List, Optional, Protocol, Tuple, Type, Union
from weakref import ReferenceType, ref

from . import _declared as declared
from . import _native as native
from . import operations as ops
from ._declared import CONSTANTS
from ._engine import EngineHandle
from ._native import PAGE_SIZE, constant
from .operations import Blob, Event, Operations, Saver

_STATES = {
    value: name[len("BRANT_GUEST_") :].lower().replace("_", "-")
    for name, value in CONSTANTS.items()
    if name.startswith("BRANT_GUEST_")
}


class _Taker(Protocol):
    """A user that takes pages: a tracker or a consumer."""

    def _uses(self, block: int) -> bool: ...


class _Block:
    """A block's number and its buffer. As long as this exists, the buffer's owner cannot unmap it.
    """

    def __init__(self, name: str, number: int, view: memoryview) -> None:
        self.name, self.number, self.view = name, number, view


class _Blocks:
    """The blocks of a guest, which the guest and each of its trackers keep: a tracker accesses
    memory as long as it lives."""

    def __init__(self, operations: Optional[Operations] = None) -> None:
        #: Called by the library as long as anything of the guest's lives.
        self.operations = operations
        self.by_name: Dict[str, _Block] = {}
        self.by_number: Dict[int, _Block] = {}
        #: The users that take pages of the blocks.
        self.takers: "Tuple[ReferenceType[_Taker], ...]" = ()

    def taken_by(self, taker: _Taker) -> None:
        """Remembers a user that takes pages."""
        living = tuple(taker for taker in self.takers if taker() is not None)
        self.takers = (*living, ref(taker))

    def check_unused(self, name: str) -> None:
        """Refuses the removal of a block with runs that were taken and not delivered."""
        block = self.by_name.get(name)
        if block is None:
            return
        for taker in self.takers:
            takes = taker()
            if takes is not None and takes._uses(block.number):
                raise native.BrantError(
                    constant("E_BUSY"),
                    "block %r is not removed: runs of its pages from %r are in use until they are "
                    "delivered or put back, or the iteration that gave them goes on or ends"
                    % (name, takes),
                )

    def add(self, block: _Block) -> None:
        self.by_name[block.name] = block
        self.by_number[block.number] = block

    def remove(self, name: str) -> None:
        block = self.by_name.pop(name, None)
        if block is not None:
            del self.by_number[block.number]

    def adopt(self, guest: Any) -> None:
        """Keeps the blocks that the operation ``map_block`` has mapped."""
        mapped = {} if self.operations is None else self.operations.mapped
        while mapped:
            name, view = mapped.popitem()
            self.add(_Block(name, _block_number(guest, native.text(name, "name")), view))

    def number(self, block: Union[str, int]) -> int:
        if isinstance(block, str):
            if block not in self.by_name:
                raise KeyError("there is no block named %r" % block)
            return self.by_name[block].number
        return native.number(block, "block", 32)


class _Closes:
    """An object that is closed at the end of a with-block."""

    _handle: native.Handle

    @property
    def _blocks(self) -> _Blocks:
        kept = self._handle.keep
        return _Blocks() if kept is None else kept

    def close(self) -> None:
        """Frees it. Again is fine."""
        self._handle.close()

    @property
    def closed(self) -> bool:
        """Whether it was closed."""
        return self._handle.closed

    def __reduce__(self) -> Tuple[Any, ...]:
        raise TypeError("a %s is not copied or pickled" % type(self).__name__)

    def __exit__(
        self,
        kind: Optional[Type[BaseException]],
        error: Optional[BaseException],
        trace: Optional[TracebackType],
    ) -> None:
        self.close()


def handle_of(
    owner: object,
    what: str,
    value: int,
    free: Callable[[int], Any],
    keep: _Blocks,
    *,
    joins: bool,
) -> native.Handle:
    """The handle of something of a guest's: it waits for threads only if these may call Python."""
    if keep.operations is None:
        return native.Handle(owner, what, value, free, keep=keep)
    return EngineHandle(owner, what, value, free, keep, keep.operations, joins=joins)


class Guest(_Closes):
    """Memory: blocks, and the guest addresses at which they appear; and the operations by which a
    migration, a save or a restore stops, saves, loads and starts what uses the memory.

    A guest need not be a virtual machine. Any memory of this process that is whole pages can be a
    block: an ``mmap.mmap``, or an object over one, for example a numpy array made by
    ``numpy.frombuffer``. The guest keeps its buffers alive, and so does each tracker, so that none
    is unmapped while it is accessed.

    The operations are the methods of an object (``Guest(vmm)``), or callables
    (``Guest(pause=stop, resume=go)``), or both. A guest without them can be tracked and not
    migrated. A source needs ``pause`` and ``resume``, a destination needs ``run``. brant calls them
    one at a time on a thread of its own, except where the header (``brant_ops``) says otherwise. An
    exception in an operation makes it fail, and is the reason in the migration's error.

    - ``pause()``: stop the guest; return when nothing writes its memory any more.
    - ``resume()``: let the guest run on here, because the migration did not happen.
    - ``save(saver)``: put device state by :meth:`Saver.put`. ``load(blob)`` takes each
      :class:`Blob` at the destination, and ``loaded()`` follows the last one.
    - ``early_save(saver)``, ``early_load(blob)``: configuration, before memory is sent.
    - ``release()``: let go of what only one side may hold. ``run()``: the guest is yours; start it.
    - ``event(event)``: an :class:`Event` happened. ``thread_start(role)``: a new thread of brant's.
    - ``kick()``: make all vCPUs leave KVM_RUN once. ``throttle(vcpu, percent)``: slow a vCPU, or all
      of them when ``vcpu`` is None, by 0 to 99 percent of its time.
    - ``log_on(slots)``, ``log_off(slots)``: switch KVM's logging of these slots.
    - ``map_block(name, fd, length, offset)``: map that part of a file that a source on this host
      hands over, with MAP_SHARED, and return the mapping (an ``mmap.mmap``). ``fd`` stays brant's.

    Inside an operation, no migration, save or restore of the same guest is waited for or closed
    (:class:`BrantError` named "inside a callback").
    """

    def __init__(
        self,
        operations: object = None,
        *,
        pause: Optional[Callable[[], Any]] = None,
        resume: Optional[Callable[[], Any]] = None,
        save: Optional[Callable[[Saver], Any]] = None,
        load: Optional[Callable[[Blob], Any]] = None,
        loaded: Optional[Callable[[], Any]] = None,
        early_save: Optional[Callable[[Saver], Any]] = None,
        early_load: Optional[Callable[[Blob], Any]] = None,
        release: Optional[Callable[[], Any]] = None,
        run: Optional[Callable[[], Any]] = None,
        log_on: Optional[Callable[[List[int]], Any]] = None,
        log_off: Optional[Callable[[List[int]], Any]] = None,
        event: Optional[Callable[[Event], Any]] = None,
        thread_start: Optional[Callable[[str], Any]] = None,
        kick: Optional[Callable[[], Any]] = None,
        throttle: Optional[Callable[[Optional[int], int], Any]] = None,
        map_block: Optional[Callable[[str, int, int, int], Any]] = None,
    ) -> None:
        table = ops.of(
            operations,
            {
                "pause": pause,
                "resume": resume,
                "save": save,
                "load": load,
                "loaded": loaded,
                "early_save": early_save,
                "early_load": early_load,
                "release": release,
                "run": run,
                "log_on": log_on,
                "log_off": log_off,
                "event": event,
                "thread_start": thread_start,
                "kick": kick,
                "throttle": throttle,
                "map_block": map_block,
            },
        )
        value = native.made(native.lib.brant_guest_new, ops.pointer(table), None)
        self._handle = handle_of(
            self, "guest", value, native.lib.brant_guest_free, _Blocks(table), joins=False
        )
        # The kept objects follow the library's state, whichever threads add and remove.
        self._changing = threading.RLock()

    def __enter__(self) -> "Guest":
        with self._handle.use():
            return self

    def close(self) -> None:
        """Frees the guest, and drops its buffers when it has no tracker any more. A second call
        does nothing."""
        self._handle.close()

    def add_block(
        self,
        name: str,
        memory: Any,
        *,
        fd: Optional[int] = None,
        fd_offset: int = 0,
        page_size: int = PAGE_SIZE,
        rom: bool = False,
        zeroed: bool = False,
    ) -> int:
        """Adds a block, and returns its number.

        ``name`` is 1 to 255 bytes, unique in the guest. ``memory`` is any writable, contiguous
        object with the buffer protocol that begins at a page and has whole pages of ``page_size``
        bytes, the page size of its backing memory. If it is a shared mapping, ``fd`` is the
        descriptor of the file or memfd, from ``fd_offset`` bytes on; it stays the caller's.
        ``rom``: the memory is never written. ``zeroed``, at a destination: the memory is known to
        read as zero, so that nothing has to look. While the guest is tracked, every page of a new block
        counts as written.
        """
        view = memoryview(memory)
        if view.readonly:
            raise TypeError("block %r: the memory is read-only to Python" % name)
        try:
            view = view.cast("B")
        except TypeError as why:
            raise TypeError(
                "block %r: the memory is not one run of plain items (%s); of a numpy array, "
                "pass array.view('uint8')" % (name, why)
            ) from None
        if view.nbytes == 0:
            raise ValueError("block %r: the memory is empty" % name)
        described = native.sized(
            declared.brant_ram_block,
            name=native.text(name, "name"),
            host=ops.address_of(view),
            length=view.nbytes,
            page_size=native.number(page_size, "page_size"),
            fd=-1,
            flags=(constant("RAM_ROM") if rom else 0) | (constant("RAM_ZEROED") if zeroed else 0),
            fd_offset=native.number(fd_offset, "fd_offset"),
        )
        number = c_uint32()
        # Before it is used, so that a guest that another thread closes meanwhile keeps nothing.
        blocks = self._blocks
        with self._changing, self._handle.use() as guest:
            if fd is not None:
                described.fd = fd
                described.flags |= constant("RAM_FILE")
            native.call(native.lib.brant_guest_add_block, guest, byref(described), byref(number))
            blocks.add(_Block(name, number.value, view))
        return number.value

    def remove_block(self, name: str) -> None:
        """Removes a block and its slots. Its buffer is free when this has returned and no
        :class:`Run` of it is left.

        :class:`BrantError` with the name "busy", without any change, while runs of the block are in
        use:

        - a :class:`Taken` has some, and was neither delivered nor put back;
        - an iteration over :meth:`Tracker.take` has come to one, and has neither gone on to the
          next block nor been closed. (It takes runs in batches: a few that it has passed already
          may count until it comes to its next batch.)

        The same holds for a :class:`Consumer`. A migration's pages never refuse a removal.
        """
        blocks = self._blocks
        with self._changing, self._handle.use() as guest:
            blocks.check_unused(name)
            number = _block_number(guest, native.text(name, "name"))
            native.call(native.lib.brant_guest_remove_block, guest, number)
            blocks.remove(name)

    def add_slot(
        self,
        block: str,
        guest_address: int,
        *,
        offset: int = 0,
        length: Optional[int] = None,
        slot: Optional[int] = None,
        kvm_flags: int = 0,
    ) -> None:
        """Makes ``length`` bytes of a block from ``offset`` on (to its end, if None) appear at a
        guest physical address. All three are whole pages. If it is a memory slot of KVM's, ``slot``
        is its number and ``kvm_flags`` are the flags with which it was set.
        """
        if length is None and block in self._blocks.by_name:
            length = max(0, self._blocks.by_name[block].view.nbytes - offset)
        name = native.text(block, "block")
        described = native.sized(
            declared.brant_slot,
            offset=native.number(offset, "offset"),
            length=native.number(length or 0, "length"),
            guest_address=native.number(guest_address, "guest_address"),
            slot=constant("NO_SLOT") if slot is None else native.number(slot, "slot", 32),
            kvm_flags=native.number(kvm_flags, "kvm_flags", 32),
        )
        with self._handle.use() as guest:
            described.block = _block_number(guest, name)
            native.call(native.lib.brant_guest_add_slot, guest, byref(described))

    def remove_slot(self, guest_address: int, *, slot: Optional[int] = None) -> None:
        """Removes the slot at a guest address, with that number if it is KVM's. Call this before
        you delete or move the slot in KVM."""
        number = constant("NO_SLOT") if slot is None else native.number(slot, "slot", 32)
        address = native.number(guest_address, "guest_address")
        with self._handle.use() as guest:
            native.call(native.lib.brant_guest_remove_slot, guest, number, address)

    def memory(self, block: str) -> memoryview:
        """The memory of a block, without a copy: writable, of unsigned bytes. As long as it exists,
        the buffer that the block was made of cannot be unmapped."""
        blocks = self._blocks
        with self._changing, self._handle.use() as guest:
            blocks.adopt(guest)
            if block not in blocks.by_name:
                raise KeyError("there is no block named %r" % block)
            return blocks.by_name[block].view

    def array(self, block: str, dtype: Any = "uint8") -> Any:
        """The memory of a block as a numpy array of one dimension, without a copy. ``dtype`` is
        numpy's. ImportError without numpy."""
        try:
            import numpy
        except ImportError:
            raise ImportError(
                "Guest.array needs numpy, which is not here: pip install numpy (or use "
                "Guest.memory, which needs nothing)"
            ) from None
        return numpy.frombuffer(self.memory(block), dtype=dtype)

    def read(self, block: str, offset: int, length: int) -> bytes:
        """A copy of ``length`` bytes of a block. Other threads of Python run meanwhile, which matters
        while the guest is incomplete (postcopy, a lazy restore): an access by :meth:`memory` or
        :meth:`array` that waits for a page stops the whole interpreter, and the operations that have
        to run before the page comes. This one does not."""
        view = self._part(block, offset, length)
        room = ctypes.create_string_buffer(max(1, length))
        if length:
            ctypes.memmove(room, ops.address_of(view), length)
        return room.raw[:length]

    def write(self, block: str, offset: int, data: Any) -> None:
        """Copies ``data`` into a block, as :meth:`read` does. Mark it afterwards where no log sees
        it (:meth:`Tracker.mark_block`)."""
        content = bytes(data)
        view = self._part(block, offset, len(content))
        if content:
            ctypes.memmove(ops.address_of(view), content, len(content))

    def _part(self, block: str, offset: int, length: int) -> memoryview:
        whole = self.memory(block)
        offset, length = native.number(offset, "offset"), native.number(length, "length")
        if offset + length > whole.nbytes:
            raise ValueError(
                "block %r has %d bytes, and %d from %d on are beyond its end"
                % (block, whole.nbytes, length, offset)
            )
        return whole[offset : offset + length]

    @property
    def state(self) -> str:
        """Who has the guest: "unknown", "here", "stands", "leaving", "paused", "handing-over",
        "handed-over", "unanswered", "given-up", "arriving", "empty", "saving", "save-paused",
        "restoring" or "incomplete" (the header's BRANT_GUEST_*)."""
        state = c_uint32()
        with self._handle.use() as guest:
            native.call(native.lib.brant_guest_get_state, guest, byref(state))
        return _STATES.get(state.value, str(state.value))

    def runs_here(self) -> None:
        """Says that the guest runs here. From then on no incoming migration overwrites it."""
        self._simple("brant_guest_runs_here")

    def reclaim(self) -> None:
        """Takes back a guest that was handed over. By this call you assert that no other copy of it
        runs or ever will."""
        self._simple("brant_guest_reclaim")

    def give_up(self) -> None:
        """Says that nobody needs the guest that is here: another may arrive in its memory."""
        self._simple("brant_guest_give_up")

    def _simple(self, name: str, *arguments: Any) -> None:
        with self._handle.use() as guest:
            native.call(getattr(native.lib, name), guest, *arguments)

    @contextmanager
    def blocked(self, reason: str) -> Iterator[None]:
        """In the with-block the guest can be neither migrated nor saved, and ``reason`` says why."""
        text = native.text(reason, "reason")
        with self._handle.use() as guest:
            blocker = native.made(native.lib.brant_blocker_new, guest, text)
        try:
            yield
        finally:
            native.lib.brant_blocker_free(blocker)

    def must_tell_host(self, must: bool) -> None:
        """Says whether the guest announces each ballooned page that it is about to use again
        (VIRTIO_BALLOON_F_MUST_TELL_HOST). Before this, no page counts as ballooned."""
        self._simple("brant_guest_must_tell_host", 1 if must else 0)

    def mark_ballooned(self, guest_address: int, length: int) -> None:
        """The guest has given these bytes to its balloon: they are neither read nor sent."""
        address, length = native.number(guest_address, "address"), native.number(length, "length")
        with self._handle.use() as guest:
            native.lib.brant_guest_mark_ballooned(guest, address, length)

    def clear_ballooned(self, guest_address: int, length: int) -> None:
        """The guest takes these bytes out of its balloon. Call it before the guest is told that it
        may."""
        address, length = native.number(guest_address, "address"), native.number(length, "length")
        with self._handle.use() as guest:
            native.lib.brant_guest_clear_ballooned(guest, address, length)

    def count_ballooned(self, guest_address: int, length: int) -> int:
        """How many pages of a range are ballooned."""
        count = c_uint64()
        address, length = native.number(guest_address, "address"), native.number(length, "length")
        self._simple("brant_guest_count_ballooned", address, length, byref(count))
        return count.value

    def before_discard(self, guest_address: int, length: int) -> None:
        """Returns when the contents of these bytes may be discarded (``madvise``): while a save with
        ``instant="start"`` needs them it waits. Not on a thread that ``pause`` waits for."""
        address, length = native.number(guest_address, "address"), native.number(length, "length")
        self._simple("brant_guest_before_discard", address, length)

    def mark_poisoned(self, block: str, offset: int, length: int) -> None:
        """The contents of these bytes are lost, by a failure of the hardware: they are neither read
        nor sent, and the destination reads zeros."""
        self._poison("brant_guest_mark_poisoned", block, offset, length)

    def clear_poisoned(self, block: str, offset: int, length: int) -> None:
        """Poisoned pages have contents again."""
        self._poison("brant_guest_clear_poisoned", block, offset, length)

    def _poison(self, name: str, block: str, offset: int, length: int) -> None:
        offset, length = native.number(offset, "offset"), native.number(length, "length")
        with self._handle.use() as guest:
            number = _block_number(guest, native.text(block, "block"))
            native.call(getattr(native.lib, name), guest, number, offset, length)

    def __repr__(self) -> str:
        if self.closed:
            return "<brant.Guest, closed>"
        return "<brant.Guest with blocks %s>" % ", ".join(map(repr, self._blocks.by_name))


def _block_number(guest: Any, name: bytes) -> int:
    """The library's number of the block with this name."""
    number = c_uint32()
    native.call(native.lib.brant_guest_find_block, guest, name, byref(number))
    return number.value
