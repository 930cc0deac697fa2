"""Migrations: a guest moves from here (:class:`Outgoing`), or to here (:class:`Incoming`)."""

from __future__ import annotations

import ctypes
import json
import socket
from ctypes import byref
from typing import Any, Dict, List, Optional, Sequence, Tuple, Union

from . import _declared as declared
from . import _native as native
from ._convert import figures, structure
from ._job import Job
from ._native import BrantError, constant
from ._sockets import Socket, given
from .figures import Blocked, Forecast, LaneStats, MissingRun, Params, Policy, Stats
from .guest import Guest
from .tracker import Tracker

#: Where a migration goes: an endpoint, a connected socket, or one socket for each channel.
Peer = Union[str, Socket, Sequence[Socket]]


class _Migration(Job):
    #: The channels that the parameters allow.
    channels: int

    def _over(self, name: str, peer: Peer) -> None:
        """Calls a function with an endpoint, or its sister with sockets."""
        if isinstance(peer, str):
            self._call(name, native.text(peer, "endpoint"))
            return
        several = [peer] if isinstance(peer, (int, socket.socket)) else list(peer)
        with self._handle.use():  # A closed migration takes no sockets.
            fds = given(several)
            sister = {"start": "start_fds", "recover": "recover_fds"}[name]
            self._call(sister, fds, len(fds))

    def stats(self) -> Stats:
        """The figures as they are now. Works until :meth:`close`, also when it is over."""
        now = native.sized(declared.brant_stats)
        self._call("get_stats", byref(now))
        return figures(Stats, now)

    def lane_stats(self, channel: int = 0) -> LaneStats:
        """The figures of one channel, counted from 0."""
        now = native.sized(declared.brant_lane_stats)
        self._call("lane_stats", native.number(channel, "channel", 32), byref(now))
        return figures(LaneStats, now)

    def json(self) -> Dict[str, Any]:
        """The figures as the library's JSON says them: None is unknown, "forecast" is an object or
        None, and "state" is a name with spaces, as in messages."""
        found: Dict[str, Any] = json.loads(self._text("get_stats_json"))
        return found


class Outgoing(_Migration):
    """A migration of a tracker's guest from here to another process or host.

    ::

        with brant.Outgoing(tracker, brant.Params(downtime_limit_ms=100)) as outgoing:
            outgoing.start("unix:/run/guest.socket")
            outgoing.wait()                    # the guest runs there; or an exception says why not

    One object is one migration. After a failure other than :class:`UnansweredError` the guest runs
    on here as if nothing had been. Leaving the with-block cancels a migration that is in progress.
    """

    _what = "brant_outgoing_"
    _name = "outgoing migration"

    def __init__(self, tracker: Tracker, params: Optional[Params] = None) -> None:
        if not isinstance(tracker, Tracker):
            raise TypeError("a Tracker's guest is migrated, not %s" % type(tracker).__name__)
        given = structure(declared.brant_params, params, Params, "params")
        self._make(tracker._blocks, tracker._handle, given)
        self.channels = (0 if params is None else params.channels) or 1

    def __enter__(self) -> "Outgoing":
        with self._handle.use():
            return self

    def close(self) -> None:
        """Cancels a migration that is in progress, waits for its end, and frees it. Again is fine.
        After the hand-over it waits for the answer. A postcopy that is interrupted is given up: the
        pages that are missing at the destination are lost. Not inside an operation of its guest."""
        super().close()

    def start(self, to: Peer) -> None:
        """Starts the migration, and returns at once. ``to`` is "tcp:ADDRESS:PORT" or
        "unix:/PATH"; or a connected stream socket; or a list of them, one for each channel, channel
        0 first, and with postcopy one more. Sockets and descriptors are the library's from then on,
        which closes them: a ``socket.socket`` is detached, a number must not be used any more."""
        self._over("start", to)

    def set_max_bandwidth(self, bytes_per_second: int) -> None:
        """Changes the cap on the bandwidth, started or not; 0 is no cap."""
        self._call("set_max_bandwidth", native.number(bytes_per_second, "bytes_per_second"))

    def set_downtime_limit(self, milliseconds: int) -> None:
        """Changes the downtime limit, started or not: 1 to 3600000 milliseconds."""
        self._call("set_downtime_limit", native.number(milliseconds, "milliseconds"))

    def set_policy(self, policy: Policy) -> None:
        """Sets what is done when the migration does not converge, before the start or while it
        runs. It counts as if it had been in force from the start."""
        self._call(
            "set_policy", byref(structure(declared.brant_policy, policy, Policy, "policy"))
        )

    def switch_over(self) -> None:
        """Switches over as soon as possible, however long the guest stands still."""
        self._call("switch_over")

    def start_postcopy(self) -> None:
        """Lets the guest run at the destination as soon as possible, before all of its memory is
        there. ``Params(postcopy="allowed")`` is needed. Returns at once."""
        self._call("start_postcopy")

    def recover(self, to: Peer) -> None:
        """Continues an interrupted postcopy (``stats().state == "interrupted"``) over new
        connections; ``to`` as for :meth:`start`. Returns at once, and can be repeated. The state is
        "recovering", and then "serving" or again "interrupted"; an event says which and why."""
        self._over("recover", to)

    def resolve(self, *, runs_here: bool) -> None:
        """Decides who has the guest of an unanswered migration. ``runs_here``: the destination does
        not run it, and ``resume`` is called on this thread. Otherwise it never runs here again. An
        interrupted postcopy is given up by ``runs_here=False``."""
        chosen = constant("RESOLVE_RESUME" if runs_here else "RESOLVE_DESTROY")
        self._call("resolve", chosen)

    def forecast(self) -> Optional[Forecast]:
        """Whether the migration will converge, and what it will take; None until the bandwidth is
        known and the first pass has begun."""
        found = native.sized(declared.brant_forecast)
        try:
            self._call("get_forecast", byref(found))
        except BrantError as why:
            if why.code != constant("E_PENDING"):
                raise
            return None
        return figures(Forecast, found)


class Incoming(_Migration):
    """A migration to here, into a guest whose blocks match the source's by name, length and page
    size.

    ::

        with brant.Incoming(guest) as incoming:
            incoming.listen("unix:/run/guest.socket")
            incoming.wait()                    # the guest runs here; or an exception says why not
    """

    _what = "brant_incoming_"
    _name = "incoming migration"

    def __init__(self, guest: Guest, params: Optional[Params] = None) -> None:
        if not isinstance(guest, Guest):
            raise TypeError("a migration goes into a Guest, not into %s" % type(guest).__name__)
        given = structure(declared.brant_params, params, Params, "params")
        self._make(guest._blocks, guest._handle, given)
        self.channels = (0 if params is None else params.channels) or 64

    def __enter__(self) -> "Incoming":
        with self._handle.use():
            return self

    def close(self) -> None:
        """Cancels a migration that is in progress, waits for its end, and frees it. Again is fine.
        A guest that runs here runs on; missing pages of a postcopy are waited for while they arrive.
        Those of an interrupted one are given up: whoever touches one gets SIGBUS, which ends Python.
        Recover first. Not inside an operation of its guest."""
        super().close()

    def listen(self, endpoint: str) -> str:
        """Listens on "tcp:ADDRESS:PORT" (port 0: any free one) or "unix:/PATH", and returns at once
        with the endpoint that a source connects to."""
        self._call("listen", native.text(endpoint, "endpoint"))
        return self.endpoint

    def start(self, sockets: Union[Socket, Sequence[Socket]]) -> None:
        """Starts the migration over a connected stream socket, or over one for each channel of the
        source. Who owns them is as for :meth:`Outgoing.start`."""
        if isinstance(sockets, str):
            raise TypeError("an endpoint is listened on: use listen(%r)" % sockets)
        self._over("start", sockets)

    @property
    def endpoint(self) -> str:
        """The endpoint that it listens, or has listened, at."""
        return self._text("get_endpoint")

    def recover(self, at: Peer) -> None:
        """Listens for new connections of the source of an interrupted postcopy, or takes sockets.
        Returns at once, and can be repeated. Also when the guest is whole here and the source does
        not know it: the source is told."""
        self._over("recover", at)

    def give_up(self) -> None:
        """Gives up the missing pages of an interrupted postcopy, whose source is gone for good. An
        access of one then raises SIGBUS."""
        self._call("give_up")

    def missing(self) -> List[MissingRun]:
        """The pages that have not arrived since the guest was switched to postcopy."""
        return self._several("get_missing", declared.brant_missing_run, MissingRun)

    def blocked(self) -> List[Blocked]:
        """How long each thread has waited for pages since then."""
        return self._several("get_blocked", declared.brant_blocked, Blocked)

    def _several(self, name: str, kind: Any, shown: Any) -> List[Any]:
        needed = ctypes.c_size_t(64)
        while True:
            room = needed.value
            found = (kind * room)()
            self._call(name, found, room, byref(needed))
            if needed.value <= room:
                return [figures(shown, one) for one in found[: needed.value]]

    def add_uffd(self, fd: int, regions: Sequence[Tuple[str, int, int, int]]) -> None:
        """Serves page faults of another process by its userfaultfd, whose descriptor stays yours.
        Each region is a block, an offset in it, an address in the other process, and a length, in
        bytes. Between the start and the end of ``early_load``."""
        blocks = self._blocks
        listed = (declared.brant_uffd_region * len(regions))()
        for at, (block, offset, address, length) in enumerate(regions):
            listed[at].block = blocks.number(block)
            listed[at].offset = native.number(offset, "offset")
            listed[at].address = native.number(address, "address")
            listed[at].length = native.number(length, "length")
        self._call("add_uffd", fd, listed, len(regions))
