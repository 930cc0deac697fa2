"""What is in an image: read from its file, without a guest.

::

    found = brant.image.describe("/var/lib/guest.3")
    print(found.kind, found.memory_bytes, [device.name for device in found.states])
"""

from __future__ import annotations

import ctypes
import json
import os
from ctypes import byref
from dataclasses import dataclass, fields
from typing import Any, Dict, List, Optional, Type, TypeVar, Union

from . import _native as native

_Part = TypeVar("_Part")


@dataclass(frozen=True)
class Block:
    """A block in an image. Sizes are bytes, pages 4096 bytes. A count is None where the block's table
    of checksums is damaged."""

    #: Its name.
    name: str
    #: Its length.
    bytes: int
    #: The host's pages behind the block when it was saved.
    page_size: int
    #: Whether the guest cannot write it.
    rom: bool
    #: Where its first page is in the file.
    offset: int
    #: Pages whose contents are in this file.
    data_pages: Optional[int]
    #: Pages that are zero, which are holes of the file.
    zero_pages: Optional[int]
    #: Pages that are as in the image before.
    unchanged_pages: Optional[int]


@dataclass(frozen=True)
class State:
    """A piece of the VMM's state in an image."""

    #: "early": early configuration. "device": a device's own stream. "state": a blob of ``save``.
    kind: str
    #: Its name.
    name: str
    #: Tells those of one name apart.
    instance: int
    #: The VMM's version of its layout.
    version: int
    #: How much it is.
    bytes: int


@dataclass(frozen=True)
class Parent:
    """An image before the one that is described."""

    #: Its file's name, in the same directory.
    file: str
    #: Whether that file is there and is this image.
    found: bool
    #: Its random number, in hexadecimal.
    id: str
    #: Its header's checksum, in hexadecimal.
    checksum: str
    #: How long its file is.
    file_bytes: int


@dataclass(frozen=True)
class Description:
    """What is in an image (the header's ``brant_image_describe``). Sizes are bytes."""

    #: "full": all of the guest's memory. "changes": what changed since the image before.
    kind: str
    #: The version of its format.
    format: int
    #: Whether the file and all images before it are there and belong together. Pages and state are not
    #: read.
    complete: bool
    #: Why it is not complete.
    problem: Optional[str]
    #: The random number that tells it from all other images, in hexadecimal.
    id: str
    #: The checksum of its header, in hexadecimal, which covers all other checksums.
    checksum: str
    #: How long the file is.
    file_bytes: int
    #: What the file takes on its disk.
    disk_bytes: int
    #: Whether a VMM that trusts the image can map it (``RestoreParams(trusted=True)``).
    mappable: bool
    #: The guest's memory.
    memory_bytes: int
    #: The VMM's state.
    state_bytes: int
    #: The guest's blocks, in the order of the file.
    blocks: List[Block]
    #: The VMM's state and its devices', in the order in which they were saved.
    states: List[State]
    #: The images before it, the newest first.
    parents: List[Parent]


def _part(kind: Type[_Part], found: Dict[str, Any]) -> _Part:
    """The fields that this package knows. A later library may have more."""
    known = {field.name for field in fields(kind)}  # type: ignore[arg-type]
    return kind(**{name: value for name, value in found.items() if name in known})


def text(path: Union[str, "os.PathLike[str]"]) -> str:
    """The library's JSON about an image."""
    needed = ctypes.c_size_t(1 << 16)
    name = native.text(os.fspath(path), "path")
    while True:
        capacity = needed.value
        room = ctypes.create_string_buffer(capacity)
        native.call(native.lib.brant_image_describe, name, room, capacity, byref(needed))
        if needed.value <= capacity:
            return room.value.decode()


def describe(path: Union[str, "os.PathLike[str]"]) -> Description:
    """Describes the image at ``path``. Its header, index and tables of checksums are checked, its pages
    and state are not. A :class:`BrantError` says why a file is no image, is not whole or is damaged. An
    image whose parents are missing is described: see ``complete``."""
    found = json.loads(text(path))
    for name, kind in (("blocks", Block), ("states", State), ("parents", Parent)):
        found[name] = [_part(kind, one) for one in found[name]]
    return _part(Description, found)


def _size(count: int) -> str:
    """A number of bytes for a person."""
    value, unit = float(count), "bytes"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if value < 1024:
            break
        value, unit = value / 1024, larger
    return "%d bytes" % count if unit == "bytes" else "%.1f %s" % (value, unit)


def lines(found: Description, name: str) -> List[str]:
    """A description as text."""
    since = " since %s" % found.parents[0].file if found.parents else ""
    whole = "complete" if found.complete else "NOT COMPLETE: %s" % found.problem
    said = [
        "%s: %s%s, %s" % (name, found.kind, since, whole),
        "  format %d, checksum %s, number %s" % (found.format, found.checksum, found.id),
        "  file %s, on disk %s; memory %s, state %s"
        % tuple(
            map(_size, (found.file_bytes, found.disk_bytes, found.memory_bytes, found.state_bytes))
        ),
    ]
    for block in found.blocks:
        counts = ((block.data_pages, "data"), (block.zero_pages, "zero"),
                  (block.unchanged_pages, "unchanged"))
        pages = ", ".join("%d %s" % (count, what) for count, what in counts if count)
        said.append(
            "  block   %-24s %10s in pages of %d%s: %s pages"
            % (block.name, _size(block.bytes), block.page_size, ", rom" * block.rom, pages or "unknown")
        )
    for state in found.states:
        said.append(
            "  %-7s %-24s %10s, instance %d, version %d"
            % (state.kind, state.name, _size(state.bytes), state.instance, state.version)
        )
    for parent in found.parents:
        there = "" if parent.found else ", MISSING"
        said.append("  before  %-24s checksum %s%s" % (parent.file, parent.checksum, there))
    return said
