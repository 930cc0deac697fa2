"""A guest in a file: saved at the end or at an instant, restored whole or while it runs."""

import io
import mmap
import os
import threading

import brant
import pytest

from test_migration import Side

PAGE = brant.PAGE_SIZE
BYTES = 4 << 20


@pytest.fixture
def source():
    side = Side()
    for page in range(0, BYTES // PAGE, 3):
        side.memory[page * PAGE : page * PAGE + 8] = page.to_bytes(8, "little")
    with side.guest, brant.Tracker(side.guest) as side.tracker:
        yield side


def saved(source, path, **params):
    with brant.ImageSave(source.tracker, brant.SaveParams(**params)) as save:
        try:
            save.start(path)
            assert save.wait()
        except brant.BrantError as why:
            if why.name != "not supported":
                raise
            pytest.skip(why.message)
        return save.stats()


def restored(path, **params):
    side = Side()
    with brant.ImageRestore(side.guest, brant.RestoreParams(**params)) as restore:
        try:
            restore.start(path)
            assert restore.finish()
        except brant.BrantError as why:
            if why.name != "not supported":
                raise
            pytest.skip(why.message)
        return side, restore.stats()


@pytest.mark.parametrize("instant", ["end", "start"])
@pytest.mark.parametrize("lazy", [False, True])
def test_what_was_saved_comes_back(source, tmp_path, instant, lazy):
    image = tmp_path / "image"
    before = source.memory[:]
    stats = saved(source, image, instant=instant)
    assert (stats.state, stats.progress) == ("completed", 10000)
    assert (stats.protecting_ns is None) == (instant == "end")
    assert [c for c in source.vmm.calls if " " not in c] == ["pause", "save", "resume"]
    assert source.guest.state == "here"
    assert image.stat().st_size == stats.file_bytes
    source.memory[0:4] = b"more"
    side, found = restored(image, lazy=lazy)
    assert side.memory[:] == before
    assert [b.name for b in side.vmm.loaded_blobs] == ["counter", "nothing"]
    assert [c for c in side.vmm.calls if " " not in c] == ["load", "load", "run"]
    assert found.state == "completed"


def test_an_instant_save_has_the_memory_of_its_start_while_it_is_written(source, tmp_path):
    """A thread adds one to two far words at a time, under a lock that `pause` takes."""
    lock, stop = threading.Lock(), threading.Event()
    source.vmm.instead.update(pause=lock.acquire, resume=lock.release)
    last = BYTES - PAGE

    def write():
        number = 0
        while not stop.is_set():
            with lock:
                number += 1
                for at in (0, last):
                    source.memory[at : at + 8] = number.to_bytes(8, "little")

    thread = threading.Thread(target=write)
    thread.start()
    try:
        for _ in range(3):
            saved(source, tmp_path / "image", instant="start", writers=1)
            side, _ = restored(tmp_path / "image")
            assert side.memory[0:8] == side.memory[last : last + 8] != bytes(8)
    finally:
        stop.set()
        thread.join()


def test_a_damaged_or_missing_image_is_an_error_with_its_place(source, tmp_path):
    image = tmp_path / "image"
    saved(source, image)
    with open(image, "r+b") as file:
        file.seek(image.stat().st_size // 2)
        file.write(b"\xff" * 8192)
    for path, name in ((image, -25), (tmp_path / "none", -4)):
        side = Side()
        with brant.ImageRestore(side.guest) as restore:
            with pytest.raises(brant.BrantError) as failed:
                restore.start(path)
                restore.wait()
            assert failed.value.code == name
        assert "run" not in side.vmm.calls


def test_a_cancelled_save_leaves_no_file_and_the_guest_running(source, tmp_path):
    with brant.ImageSave(source.tracker, brant.SaveParams(max_bandwidth=1 << 16)) as save:
        save.start(tmp_path / "image")
        assert save.wait(20) is False
        assert "ImageSave: " in repr(save)
        save.cancel()
        with pytest.raises(brant.CancelledError):
            save.wait()
    assert os.listdir(tmp_path) == [] and source.guest.state == "here"
    with pytest.raises(ValueError, match="this save is closed"):
        save.wait()


def test_a_guest_that_stays_paused(source, tmp_path):
    saved(source, tmp_path / "image", guest="stay-paused")
    assert source.guest.state == "stands" and source.vmm.calls.count("resume") == 0
    source.guest.runs_here()
    assert source.guest.state == "here"
    with pytest.raises(TypeError):
        brant.ImageSave(source.guest)
    with pytest.raises(TypeError):
        brant.ImageRestore(source.tracker)
    with pytest.raises(ValueError, match="instant is one of"):
        brant.ImageSave(source.tracker, brant.SaveParams(instant="now"))


def test_memory_may_be_any_mapping(tmp_path):
    guest = brant.Guest(pause=lambda: None, resume=lambda: None)
    memory = mmap.mmap(-1, 16 * PAGE)
    memory[5 * PAGE] = 7
    guest.add_block("small", memory)
    with brant.Tracker(guest) as tracker, brant.ImageSave(tracker) as save:
        save.start(str(tmp_path / "image"))
        save.wait()
        assert save.stats().data_pages == 1


def test_each_image_of_a_chain_is_the_guest_at_its_moment(source, tmp_path):
    images = [tmp_path / str(number) for number in range(3)]
    moments = []
    with brant.ImageChain(source.tracker) as chain:
        for number, image in enumerate(images):
            source.memory[number * PAGE : number * PAGE + 4] = b"%04d" % number
            source.tracker.mark_block("ram", number * PAGE, 4)
            moments.append(source.memory[:])
            with brant.ImageSave(source.tracker, chain=chain) as save:
                save.start(image)
                assert save.wait()
                assert number == 0 or save.stats().data_pages == 1
    for image, moment in zip(images, moments):
        assert restored(image)[0].memory[:] == moment
    whole = tmp_path / "whole"
    brant.merge_images(images[2], whole)
    images[0].unlink()
    with pytest.raises(brant.BrantError, match="holds what changed"):
        restored(images[2])
    assert restored(whole)[0].memory[:] == moments[2]


@pytest.fixture
def chained(source, tmp_path):
    """Three images of a chain, and the guest's memory at the last."""
    images = [tmp_path / ("image.%d" % number) for number in range(3)]
    with brant.ImageChain(source.tracker) as chain:
        for number, image in enumerate(images):
            source.memory[number * PAGE : number * PAGE + 4] = b"%04d" % number
            source.tracker.mark_block("ram", number * PAGE, 4)
            with brant.ImageSave(source.tracker, chain=chain) as save:
                save.start(image)
                assert save.wait()
    return images, source.memory[:]


def test_a_merge_is_watched_and_makes_one_full_image(chained, tmp_path):
    images, moment = chained
    whole = tmp_path / "whole"
    with brant.ImageMerge(brant.MergeParams(cache="cached")) as merge:
        assert merge.stats().state == "idle"
        merge.start(images[2], whole)
        out = io.StringIO()
        brant.follow(merge, file=out)
        now = merge.stats()
        assert (now.state, now.progress, now.total_bytes) == ("completed", 10000, BYTES)
        with pytest.raises(brant.BrantError, match="started before"):
            merge.start(images[2], whole)
    with pytest.raises(ValueError, match="this merge is closed"):
        merge.wait()
    assert restored(whole)[0].memory[:] == moment


def test_a_merge_that_is_cancelled_or_fails_leaves_no_file(chained, tmp_path):
    images, _ = chained
    whole = tmp_path / "whole"
    with brant.ImageMerge() as merge:
        merge.cancel()
        with pytest.raises(brant.CancelledError):
            merge.start(images[2], whole)
    images[0].unlink()
    with brant.ImageMerge() as merge:
        merge.start(images[2], whole)
        with pytest.raises(brant.BrantError, match="holds what changed") as failed:
            merge.wait()
        assert failed.value.name == "not found"
    assert not whole.exists()
    with pytest.raises(TypeError):
        brant.ImageMerge(brant.SaveParams())


def test_an_image_is_described_without_a_guest(chained):
    images, _ = chained
    full, last = (brant.image.describe(image) for image in (images[0], str(images[2])))
    assert (full.kind, full.format, full.complete, full.parents) == ("full", 1, True, [])
    assert full.memory_bytes == BYTES and full.file_bytes == images[0].stat().st_size
    (block,) = full.blocks
    assert (block.name, block.bytes, block.page_size) == ("ram", BYTES, PAGE)
    assert block.data_pages + block.zero_pages == BYTES // PAGE and block.unchanged_pages == 0
    assert [(state.kind, state.name) for state in full.states] == [
        ("state", "counter"), ("state", "nothing"),
    ]
    assert full.state_bytes == sum(state.bytes for state in full.states)
    assert (last.kind, last.complete, last.problem) == ("changes", True, None)
    assert last.blocks[0].data_pages == 1
    assert [(p.file, p.found) for p in last.parents] == [("image.1", True), ("image.0", True)]
    assert last.parents[1].checksum == full.checksum and last.parents[1].id == full.id
    images[1].unlink()
    torn = brant.image.describe(images[2])
    assert not torn.complete and "image.1" in torn.problem
    assert [p.found for p in torn.parents] == [False]
    for path, name in ((images[1], "not found"), ("/dev/null", "image")):
        with pytest.raises(brant.BrantError) as failed:
            brant.image.describe(path)
        assert name in failed.value.name


def test_a_chain_is_of_a_tracker_and_for_its_saves_only(source):
    with pytest.raises(TypeError):
        brant.ImageChain(source.guest)
    with pytest.raises(TypeError):
        brant.ImageSave(source.tracker, chain=source.tracker)
    other = Side()
    with brant.Tracker(other.guest) as tracker, brant.ImageChain(tracker) as chain:
        with pytest.raises(brant.BrantError, match="another tracker"):
            brant.ImageSave(source.tracker, chain=chain)
    with pytest.raises(ValueError):
        brant.ImageSave(tracker, chain=chain)
