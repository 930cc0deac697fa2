"""Live migration and dirty-memory tracking, on libbrant.

Three levels, each usable alone:

* :class:`Bitmap`: a bitmap whose walks and merges cost as much as there are set bits;
* :class:`Guest` and :class:`Tracker`: which pages of memory were written, found by userfaultfd, by
  KVM or by marks. Each written page is handed out once, and to each :class:`Consumer` apart.
  :class:`Rate` measures how fast they are written;
* :class:`Outgoing` and :class:`Incoming`: a guest moves to another process or host while it runs;
  :class:`ImageSave` and :class:`ImageRestore`: to a file and back; :func:`brant.image.describe`
  says what is in such a file.

A page is 4096 bytes (:data:`PAGE_SIZE`) everywhere. A failed call raises :class:`BrantError`, with
the library's code and message. Objects that hold a handle of the library's are context managers
with ``close()``. A second ``close()`` does nothing; any other use of a closed object is a
``ValueError``. All objects may be used from any thread.

Nothing is compiled: this is ctypes over the shared library. It is looked for where the environment
variable ``BRANT_LIBRARY`` says, else beside this file (in an installed package), else in the
repository that has this file (``target/c``), else by the system's loader.
"""

from . import image
from ._native import (
    PAGE_SIZE,
    BrantError,
    CancelledError,
    UnansweredError,
    has_feature,
    library_path,
    version,
)
from .bits import Bitmap
from .figures import (
    NO_LIMIT,
    Blocked,
    DirtyRate,
    Forecast,
    ImageStats,
    KvmInfo,
    LaneStats,
    MergeParams,
    MissingRun,
    Params,
    Policy,
    RateParams,
    RestoreParams,
    SaveParams,
    Stats,
)
from .guest import Guest
from .images import ImageChain, ImageMerge, ImageRestore, ImageSave, merge_images
from .measure import KvmCost, KvmCosts, measure_kvm
from .migration import Incoming, Outgoing
from .operations import Blob, Event, Saver
from .progress import follow
from .rate import Rate
from .record import Recorder
from .rings import Rings, enable_kvm_ring
from .taken import Run, Taken
from .tracker import Consumer, ConsumerStats, Sync, Tracker, TrackerStats

__all__ = [
    "NO_LIMIT",
    "PAGE_SIZE",
    "Bitmap",
    "Blob",
    "Blocked",
    "BrantError",
    "CancelledError",
    "Consumer",
    "ConsumerStats",
    "DirtyRate",
    "Event",
    "Forecast",
    "Guest",
    "ImageChain",
    "ImageMerge",
    "ImageRestore",
    "ImageSave",
    "ImageStats",
    "Incoming",
    "KvmCost",
    "KvmCosts",
    "KvmInfo",
    "LaneStats",
    "MergeParams",
    "MissingRun",
    "Outgoing",
    "Params",
    "Policy",
    "Rate",
    "RateParams",
    "Recorder",
    "RestoreParams",
    "Rings",
    "Run",
    "SaveParams",
    "Saver",
    "Stats",
    "Sync",
    "Taken",
    "Tracker",
    "TrackerStats",
    "UnansweredError",
    "enable_kvm_ring",
    "follow",
    "has_feature",
    "image",
    "library_path",
    "measure_kvm",
    "merge_images",
    "version",
]
