"""Connected sockets that are given to the library, which owns them from then on."""

from __future__ import annotations

import ctypes
import socket
from typing import Any, List, Sequence, Union

#: A socket, or the descriptor of one.
Socket = Union[socket.socket, int]


def given(sockets: Sequence[Socket]) -> Any:
    """The descriptors as C's array. A :class:`socket.socket` is detached: it is closed for Python.

    What is wrong with the list itself is found before any is detached."""
    if not 1 <= len(sockets) <= 64:
        raise ValueError("1 to 64 sockets are expected, not %d" % len(sockets))
    numbers: List[int] = []
    for one in sockets:
        number = one.fileno() if isinstance(one, socket.socket) else one
        if not isinstance(number, int) or isinstance(number, bool):
            raise TypeError("a socket or a descriptor is expected, not %s" % type(one).__name__)
        if number < 0:
            raise ValueError("%r is closed" % (one,))
        if number in numbers:
            raise ValueError("descriptor %d is in the list twice" % number)
        numbers.append(number)
    for one in sockets:
        if isinstance(one, socket.socket):
            one.detach()
    return (ctypes.c_int32 * len(numbers))(*numbers)
