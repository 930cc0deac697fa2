"""The dirty rate, by log and by sampling, and the forecast that is made of it."""

import mmap
import threading
import time

import brant
import pytest

from conftest import add_userfault

PAGE = brant.PAGE_SIZE
PAGES = 2048


@pytest.fixture
def busy():
    """2048 pages, of which a thread writes the first 256 all the time."""
    memory = mmap.mmap(-1, PAGES * PAGE)
    for page in range(PAGES):
        memory[page * PAGE] = 1
    stop = threading.Event()

    def write():
        number = 0
        while not stop.is_set():
            number += 1
            for page in range(256):
                memory[page * PAGE : page * PAGE + 8] = number.to_bytes(8, "little")
            time.sleep(0.001)

    thread = threading.Thread(target=write)
    thread.start()
    with brant.Guest() as guest, brant.Tracker(guest) as tracker:
        guest.add_block("ram", memory)
        yield tracker
    stop.set()
    thread.join()


def test_by_sampling_no_log_is_needed(busy):
    with brant.Rate(busy, brant.RateParams(period_ms=200, way="sampling", samples_per_gib=262144)) as rate:
        found = rate.measure()
        # All pages are read: no estimate.
        assert found.sampled_pages == PAGES and 0 < found.changed_pages <= 256
        assert found.rewritten_pages is None
        assert 0.2 <= found.period_ns / 1e9 < 5
        assert rate.vcpus() == []
        forecast = rate.forecast(bandwidth=1 << 30)
        assert forecast.passes >= 1 and forecast.bytes >= PAGES * PAGE
        slow = rate.forecast(1 << 20, params=brant.Params(downtime_limit_ms=10))
        assert not slow.converges and slow.limit_us > 10_000
        raised = brant.Policy(downtime_ceiling_ms=10_000)
        assert rate.forecast(1 << 20, policy=raised).converges
    with pytest.raises(ValueError, match="this measurement is closed"):
        rate.measure()


def test_by_log_every_written_page_counts(busy):
    add_userfault(busy)
    busy.start()
    with brant.Rate(busy, brant.RateParams(period_ms=200)) as rate:
        found = rate.measure()
        assert 0 < found.written_pages <= PAGES and found.sampled_pages is None
        assert 0 < found.rewritten_pages <= 256 and found.warnings is False


def test_a_measurement_is_ended_by_another_thread(busy):
    with brant.Rate(busy, brant.RateParams(period_ms=60_000, way="sampling")) as rate:
        for end, expected in ((rate.finish, None), (rate.cancel, brant.CancelledError)):
            found = []

            def measure(found=found):
                try:
                    found.append(rate.measure())
                except brant.BrantError as why:
                    found.append(why)

            thread = threading.Thread(target=measure)
            thread.start()
            while rate.progress == 0 and thread.is_alive():
                time.sleep(0.001)
            end()
            thread.join(20)
            kind = expected or brant.DirtyRate
            assert isinstance(found[0], kind)


def test_wrong_parameters_are_refused(busy):
    with pytest.raises(ValueError, match="way is one of 'log', 'sampling'"):
        brant.Rate(busy, brant.RateParams(way="ring"))
    with pytest.raises(brant.BrantError, match="10 to 60000 ms"):
        brant.Rate(busy, brant.RateParams(period_ms=3))
    with brant.Rate(busy) as rate:
        with pytest.raises(brant.BrantError):
            rate.forecast(1 << 30)


def test_the_region_of_the_command_line_changes_every_page_in_each_sweep():
    """Otherwise samples of its contents see one sweep and no other."""
    from brant.workload import Region

    with Region(1 << 20, hot=1.0, rate=50000) as region:
        pages = len(region.order)

        def after(writes):
            region.resume()
            until = time.monotonic() + 30
            while region.written < writes and time.monotonic() < until:
                time.sleep(0.001)
            region.pause()
            return region.written, bytes(region.memory)

        wrote, before = after(pages)
        _, now = after(wrote + pages)
        for at in range(0, len(now), PAGE):
            assert before[at : at + PAGE] != now[at : at + PAGE], at // PAGE
