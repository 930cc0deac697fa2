"""A guest in a file: saved (:class:`ImageSave`) and restored (:class:`ImageRestore`)."""

from __future__ import annotations

import os
from ctypes import byref
from typing import Optional, Union

from . import _declared as declared
from . import _native as native
from ._convert import figures, structure
from ._job import Job
from ._native import BrantError
from .figures import ImageStats, RestoreParams, SaveParams
from .guest import Guest
from .tracker import Tracker

#: The name of a file.
Path = Union[str, "os.PathLike[str]"]


class _Image(Job):
    def start(self, path: Path) -> None:
        """Starts it, and returns at once. ``path`` is the image's file."""
        self._call("start", native.text(os.fspath(path), "path"))

    def stats(self) -> ImageStats:
        """The figures as they are now."""
        now = native.sized(declared.brant_image_stats)
        self._call("get_stats", byref(now))
        return figures(ImageStats, now)

    def _state(self) -> str:
        return self.stats().state

    def __repr__(self) -> str:
        name = "<brant.%s" % type(self).__name__
        if self.closed:
            return name + ", closed>"
        try:
            now = self.stats()
        except (BrantError, ValueError):
            return name + ">"
        return "%s: %s, %.2f %%>" % (name, now.state, now.progress / 100)


class ImageSave(_Image):
    """A save of a tracker's guest to a file, while the guest runs.

    ::

        with brant.ImageSave(tracker, brant.SaveParams(instant="start")) as save:
            save.start("/var/lib/guest.image")
            save.wait()

    The file holds the guest as it is at the end of the save, or with ``instant="start"`` as it was
    at the start (write protection by userfaultfd). The file has its name when it is whole. A save
    that fails or is cancelled leaves no file, and the guest runs on. The operations ``pause`` and
    ``resume`` are needed, except with ``guest="already-paused"``.
    """

    _what = "brant_image_save_"
    _name = "save"

    def __init__(self, tracker: Tracker, params: Optional[SaveParams] = None) -> None:
        if not isinstance(tracker, Tracker):
            raise TypeError("a Tracker's guest is saved, not %s" % type(tracker).__name__)
        given = structure(declared.brant_image_save_params, params, SaveParams, "params")
        self._make(tracker._blocks, tracker._handle, given)

    def __enter__(self) -> "ImageSave":
        with self._handle.use():
            return self


class ImageRestore(_Image):
    """A restore of a guest from a file, into a guest whose blocks match by name, length and page
    size.

    ::

        with brant.ImageRestore(guest, brant.RestoreParams(lazy=True)) as restore:
            restore.start("/var/lib/guest.image")
            restore.finish()                   # the guest runs since before all of it is here

    With ``lazy`` the guest starts at once, and a thread that touches a page waits until the page is
    here. The operation ``run`` is needed.
    """

    _what = "brant_image_restore_"
    _name = "restore"

    def __init__(self, guest: Guest, params: Optional[RestoreParams] = None) -> None:
        if not isinstance(guest, Guest):
            raise TypeError("a Guest is restored, not %s" % type(guest).__name__)
        given = structure(declared.brant_image_restore_params, params, RestoreParams, "params")
        self._make(guest._blocks, guest._handle, given)

    def __enter__(self) -> "ImageRestore":
        with self._handle.use():
            return self

    def finish(self, timeout_ms: Optional[int] = None) -> bool:
        """Brings in the rest of a lazy restore with all readers, and waits as :meth:`wait` does."""
        return self._wait("finish", timeout_ms)
