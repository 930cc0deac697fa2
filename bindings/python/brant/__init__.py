"""Dirty-memory tracking, on libbrant.

Two levels, each usable alone:

* :class:`Bitmap`: a bitmap whose walks and merges cost as much as there are set bits;
* :class:`Guest` and :class:`Tracker`: which pages of memory were written, found by userfaultfd, by
  KVM or by marks. Each written page is handed out once, and to each :class:`Consumer` apart.

A page is 4096 bytes (:data:`PAGE_SIZE`) everywhere. A failed call raises :class:`BrantError`, with
the library's code and message. Objects that hold a handle of the library's are context managers
with ``close()``. A second ``close()`` does nothing; any other use of a closed object is a
``ValueError``. All objects may be used from any thread.

Nothing is compiled: this is ctypes over the shared library. It is looked for where the environment
variable ``BRANT_LIBRARY`` says, else in the repository that has this file (``target/c``), else by
the system's loader.
"""

from ._native import PAGE_SIZE, BrantError, has_feature, library_path, version
from .bits import Bitmap
from .measure import KvmCost, KvmCosts, measure_kvm
from .taken import Run, Taken
from .tracker import Consumer, ConsumerStats, Guest, Sync, Tracker, TrackerStats

__all__ = [
    "PAGE_SIZE",
    "Bitmap",
    "BrantError",
    "Consumer",
    "ConsumerStats",
    "Guest",
    "KvmCost",
    "KvmCosts",
    "Run",
    "Sync",
    "Taken",
    "Tracker",
    "TrackerStats",
    "has_feature",
    "library_path",
    "measure_kvm",
    "version",
]
