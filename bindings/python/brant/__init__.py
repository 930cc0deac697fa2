"""Dirty-memory tracking, on libbrant.

Two levels, each usable alone:

* :class:`Bitmap`: a bitmap that is walked and merged at the cost of what is set;
* :class:`Guest` and :class:`Tracker`: which pages of memory were written, found by
  userfaultfd, by KVM or by marks, and handed out once, to each :class:`Consumer` apart.

A page is 4096 bytes (:data:`PAGE_SIZE`) everywhere. A failed call raises
:class:`BrantError`, with the library's code and its sentence. Objects that hold something
of the library's are context managers with ``close()``; closing twice is fine, and any
other use of a closed one is a ``ValueError``. They may be used from any thread.

Nothing is compiled: this is ctypes over the shared library, which is looked for where the
environment's ``BRANT_LIBRARY`` says, else in the repository that this file is part of
(``target/c``), else by the system's loader.
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
