"""A guest in a file: saved (:class:`ImageSave`, :class:`ImageChain`) and restored
(:class:`ImageRestore`); images of a chain merged (:class:`ImageMerge`)."""

from __future__ import annotations

import os
from ctypes import byref
from typing import Optional, Tuple, Union

from . import _declared as declared
from . import _native as native
from ._convert import figures, structure
from ._job import Job
from .figures import ImageStats, MergeParams, RestoreParams, SaveParams
from .guest import Guest, _Closes, handle_of
from .tracker import Tracker

#: The name of a file.
Path = Union[str, "os.PathLike[str]"]


class _OfImages(Job):
    def stats(self) -> ImageStats:
        """The figures as they are now."""
        now = native.sized(declared.brant_image_stats)
        self._call("get_stats", byref(now))
        return figures(ImageStats, now)


class _Image(_OfImages):
    def start(self, path: Path) -> None:
        """Starts it, and returns at once. ``path`` is the image's file."""
        self._call("start", native.text(os.fspath(path), "path"))


class ImageChain(_Closes):
    """Images of one guest: the first save with it holds all of memory, each later one what changed
    since the one before.

    ::

        with brant.ImageChain(tracker) as chain:
            for number in range(5):
                with brant.ImageSave(tracker, chain=chain) as save:
                    save.start("/var/lib/guest.%d" % number)
                    save.wait()
        brant.merge_images("/var/lib/guest.4", "/var/lib/guest.whole")

    All images lie in one directory, and :class:`ImageRestore` takes the path of any of them. The
    dirty logs are on from the first image until the chain is closed.
    """

    def __init__(self, tracker: Tracker) -> None:
        if not isinstance(tracker, Tracker):
            raise TypeError("a chain is of a Tracker's guest, not of %s" % type(tracker).__name__)
        with tracker._handle.use() as of:
            value = native.made(native.lib.brant_image_chain_new, of)
        free = native.lib.brant_image_chain_free
        self._handle = handle_of(self, "chain", value, free, tracker._blocks, joins=False)

    def __enter__(self) -> "ImageChain":
        with self._handle.use():
            return self

    def __repr__(self) -> str:
        return "<brant.ImageChain%s>" % (", closed" if self.closed else "")


def merge_images(image: Path, to: Path) -> None:
    """Makes one full image, ``to``, of an image of a chain and those before it: the guest at the moment
    of ``image``. Needs no guest; returns when the new file is whole. :class:`ImageMerge` can be watched
    and cancelled."""
    native.call(native.lib.brant_image_merge, *_names(image, to))


def _names(image: Path, to: Path) -> Tuple[bytes, bytes]:
    return native.text(os.fspath(image), "image"), native.text(os.fspath(to), "to")


class ImageMerge(_OfImages):
    """What :func:`merge_images` does, as something that is watched, waited for and cancelled.

    ::

        with brant.ImageMerge() as merge:
            merge.start("/var/lib/guest.4", "/var/lib/guest.whole")
            brant.follow(merge)                # a progress bar

    The new file has its name when it is whole. A merge that fails or is cancelled leaves no file.
    """

    _what = "brant_image_merging_"
    _name = "merge"

    def __init__(self, params: Optional[MergeParams] = None) -> None:
        given = structure(declared.brant_image_merge_params, params, MergeParams, "params")
        new = native.lib.brant_image_merging_new
        value = native.made(new, None if given is None else byref(given))
        free = native.lib.brant_image_merging_free
        self._handle = native.Handle(self, self._name, value, free)

    def start(self, image: Path, to: Path) -> None:
        """Starts to merge ``image``, and those before it, into one that gets the name ``to``; returns
        at once. What is found out about the files is an error of :meth:`wait`."""
        self._call("start", *_names(image, to))

    def __enter__(self) -> "ImageMerge":
        with self._handle.use():
            return self


class ImageSave(_Image):
    """A save of a tracker's guest to a file, while the guest runs.

    ::

        with brant.ImageSave(tracker, brant.SaveParams(instant="start")) as save:
            save.start("/var/lib/guest.image")
            save.wait()

    The file holds the guest as it is at the end of the save, or with ``instant="start"`` as it was
    at the start (write protection by userfaultfd). The file has its name when it is whole. A save
    that fails or is cancelled leaves no file, and the guest runs on. The operations ``pause`` and
    ``resume`` are needed, except with ``guest="already-paused"``. With a ``chain``, an
    :class:`ImageChain` of the same tracker, the image is the chain's next.
    """

    _what = "brant_image_save_"
    _name = "save"

    def __init__(
        self,
        tracker: Tracker,
        params: Optional[SaveParams] = None,
        chain: Optional[ImageChain] = None,
    ) -> None:
        if not isinstance(tracker, Tracker):
            raise TypeError("a Tracker's guest is saved, not %s" % type(tracker).__name__)
        given = structure(declared.brant_image_save_params, params, SaveParams, "params")
        if chain is None:
            self._make(tracker._blocks, tracker._handle, given)
            return
        if not isinstance(chain, ImageChain):
            raise TypeError("chain is an ImageChain, not %s" % type(chain).__name__)
        if given is None:
            given = native.sized(declared.brant_image_save_params)
        with chain._handle.use() as value:
            given.chain = value
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
