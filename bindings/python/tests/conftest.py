"""What all tests share: the package from this repository, and memory to track."""

import mmap
import os
import sys

import pytest

HERE = os.path.dirname(os.path.abspath(__file__))
PACKAGE = os.path.dirname(HERE)
ROOT = os.path.dirname(os.path.dirname(PACKAGE))
sys.path.insert(0, PACKAGE)
sys.path.insert(0, os.path.join(ROOT, "scripts"))

import brant  # noqa: E402

PAGE = brant.PAGE_SIZE


@pytest.fixture
def memory():
    """64 pages that are not tracked."""
    return mmap.mmap(-1, 64 * PAGE)


@pytest.fixture
def watched(memory):
    """A guest of those 64 pages and a started tracker with userfaultfd."""
    with brant.Guest() as guest:
        guest.add_block("ram", memory)
        with brant.Tracker(guest) as tracker:
            add_userfault(tracker)
            tracker.start()
            yield guest, tracker, memory


def add_userfault(tracker):
    try:
        tracker.add_userfault()
    except brant.BrantError as why:
        if why.name != "not supported":
            raise
        pytest.skip(why.message)


def taken(tracker):
    """All pending pages, as (block, page); each comes once."""
    pages = [(run.block, page) for run in tracker.take() for page in run]
    assert len(pages) == len(set(pages))
    return set(pages)


def write(memory, *pages):
    for page in pages:
        memory[page * PAGE + page % PAGE] = (memory[page * PAGE + page % PAGE] + 1) % 256
