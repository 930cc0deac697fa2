"""How fast a guest dirties its memory, measured without a migration; and a forecast of one."""

from __future__ import annotations

import ctypes
import threading
from ctypes import byref
from typing import List, Optional

from . import _declared as declared
from . import _native as native
from ._convert import figures, structure
from .figures import DirtyRate, Forecast, Params, Policy, RateParams
from .guest import _Closes, handle_of
from .tracker import Tracker


class Rate(_Closes):
    """Measures the dirty rate of a tracker's guest, any number of times.

    ::

        with brant.Rate(tracker, brant.RateParams(period_ms=500, way="sampling")) as rate:
            found = rate.measure()
            print(found.pages_per_second, "pages a second, give or take",
                  found.error_pages_per_second)
            print(rate.forecast(bandwidth=125_000_000))    # a migration over 1 Gbit/s

    By "log" every written page is counted, and the guest pays a fault for each. By "sampling" some
    pages are read twice, at no cost to the guest, and no log is needed.
    """

    def __init__(self, tracker: Tracker, params: Optional[RateParams] = None) -> None:
        if not isinstance(tracker, Tracker):
            raise TypeError("a Tracker's guest is measured, not %s" % type(tracker).__name__)
        given = structure(declared.brant_rate_params, params, RateParams, "params")
        with tracker._handle.use() as of:
            value = native.made(
                native.lib.brant_rate_new, of, None if given is None else byref(given)
            )
        free = native.lib.brant_rate_free
        self._handle = handle_of(self, "measurement", value, free, tracker._blocks, joins=False)

    def __enter__(self) -> "Rate":
        with self._handle.use():
            return self

    def measure(self) -> DirtyRate:
        """Measures, and returns when the period is over. Other threads run meanwhile. Ctrl-C ends
        the measurement, and this object can be used no more."""
        found = native.sized(declared.brant_dirty_rate)
        failed: List[BaseException] = []
        over = threading.Event()

        def measure() -> None:
            try:
                self._call("measure", byref(found))
            except BaseException as why:
                failed.append(why)
            finally:
                over.set()

        # A call into the library cannot be interrupted, and waiting for a thread can.
        with self._handle.use():
            thread = threading.Thread(target=measure, name="brant-rate")
            thread.start()
            try:
                over.wait()
            except BaseException:
                self.cancel()
                raise
            finally:
                thread.join()
        if failed:
            raise failed[0]
        return figures(DirtyRate, found)

    def finish(self) -> None:
        """Ends the period of a measurement that another thread makes: it returns the figures until
        now."""
        self._call("finish")

    def cancel(self) -> None:
        """Ends a measurement that another thread makes, and any later one, with
        :class:`CancelledError`."""
        self._call("cancel")

    @property
    def progress(self) -> float:
        """How far a measurement is that another thread makes, 0 to 1."""
        with self._handle.use() as rate:
            return float(native.lib.brant_rate_progress(rate)) / 10000

    def vcpus(self) -> List[int]:
        """Pages a second that each vCPU wrote in the last measurement, in the order of the vCPUs'
        numbers; empty where no log tells vCPUs apart."""
        count = ctypes.c_size_t(64)
        while True:
            room = count.value
            rates = (ctypes.c_uint64 * room)()
            self._call("get_vcpus", rates, room, byref(count))
            if count.value <= room:
                return list(rates[: count.value])

    def forecast(
        self,
        bandwidth: int,
        *,
        params: Optional[Params] = None,
        policy: Optional[Policy] = None,
    ) -> Forecast:
        """What a migration would take by the last measurement, over a link of ``bandwidth`` bytes a
        second."""
        limits = structure(declared.brant_params, params, Params, "params")
        chosen = structure(declared.brant_policy, policy, Policy, "policy")
        found = native.sized(declared.brant_forecast)
        self._call(
            "forecast",
            None if limits is None else byref(limits),
            None if chosen is None else byref(chosen),
            native.number(bandwidth, "bandwidth"),
            byref(found),
        )
        return figures(Forecast, found)

    def _call(self, name: str, *arguments: object) -> None:
        with self._handle.use() as rate:
            native.call(getattr(native.lib, "brant_rate_" + name), rate, *arguments)

    def __repr__(self) -> str:
        return "<brant.Rate%s>" % (", closed" if self.closed else "")
