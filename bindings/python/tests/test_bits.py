"""Bitmaps, compared with Python's own sets."""

import array
import random
import threading
import time

import pytest

import brant


def seeded():
    seed = time.time_ns()
    print("seed", seed)
    return random.Random(seed)


def test_setting_and_clearing_is_what_a_set_does():
    chance, model, bits = seeded(), set(), 5000
    with brant.Bitmap(bits) as bitmap:
        for _ in range(500):
            first = chance.randrange(bits)
            count = chance.randrange(min(300, bits - first) + 1)
            those = set(range(first, first + count))
            if chance.random() < 0.5:
                assert bitmap.set(first, count) == len(those - model)
                model |= those
            else:
                assert bitmap.clear(first, count) == len(those & model)
                model -= those
            assert bitmap.count() == len(model)
        assert list(bitmap) == sorted(model)
        assert len(bitmap) == bits
        assert all((bit in bitmap) == (bit in model) for bit in range(bits))


def test_runs_are_the_longest_there_are_or_as_short_as_asked():
    with brant.Bitmap(1000) as bitmap:
        bitmap.set(3, 10)
        bitmap.set(900, 100)
        assert list(bitmap.runs()) == [(3, 10), (900, 100)]
        assert list(bitmap.runs(64)) == [(3, 10), (900, 64), (964, 36)]
        with pytest.raises(ValueError):
            bitmap.runs(0)


def test_merging_counts_what_is_new():
    with brant.Bitmap(1 << 20) as one, brant.Bitmap(1 << 20) as two:
        one.set(5, 10)
        two.set(10, 10)
        assert one.merge(two) == 5
        assert list(one.runs()) == [(5, 15)]
        assert one.merge(one) == 0
        with brant.Bitmap(7) as other, pytest.raises(brant.BrantError) as wrong:
            one.merge(other)
        assert wrong.value.code == -1 and wrong.value.name == "invalid argument"


@pytest.mark.parametrize("kind", ["array", "bytes", "numpy"])
def test_words_are_merged_from_any_buffer(kind):
    words = array.array("Q", [0b1011, 1 << 63])
    if kind == "bytes":
        words = words.tobytes()
    elif kind == "numpy":
        words = pytest.importorskip("numpy").array(words, dtype="uint64")
    with brant.Bitmap(300) as bitmap:
        assert bitmap.merge_words(70, words) == 4
        assert list(bitmap) == [70, 71, 73, 70 + 127]
        assert bitmap.merge_words(70, words, 3) == 0
        assert bitmap.merge_words(0, b"") == 0
        with pytest.raises(ValueError):
            bitmap.merge_words(0, b"1234567")
        with pytest.raises(ValueError):
            bitmap.merge_words(0, words, 129)
        with pytest.raises(brant.BrantError):
            bitmap.merge_words(200, words)


def test_two_merges_that_cross_wait_for_each_other_and_end():
    with brant.Bitmap(1 << 16) as one, brant.Bitmap(1 << 16) as two:
        def cross(a, b):
            for i in range(300):
                a.set(i)
                a.merge(b)

        threads = [threading.Thread(target=cross, args=pair) for pair in ((one, two), (two, one))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
            assert not thread.is_alive()


@pytest.mark.parametrize("wrong", [-1, 1 << 64, 1.5, "3"])
def test_a_number_that_c_would_cut_is_refused(wrong):
    with brant.Bitmap(10) as bitmap, pytest.raises((ValueError, TypeError)):
        bitmap.set(wrong)
    with pytest.raises((ValueError, TypeError)):
        brant.Bitmap(wrong)
    with brant.Bitmap(10) as bitmap:
        assert wrong not in bitmap


def test_a_closed_bitmap_is_closed_twice_and_used_no_more():
    bitmap = brant.Bitmap(10)
    bitmap.close()
    bitmap.close()
    assert "closed" in repr(bitmap)
    for use in (bitmap.count, lambda: bitmap.set(1), lambda: list(bitmap), bitmap.__enter__):
        with pytest.raises(ValueError, match="this bitmap is closed"):
            use()


def test_too_many_bits_say_how_many_there_may_be():
    with pytest.raises(brant.BrantError, match="1099511627776") as wrong:
        brant.Bitmap((1 << 40) + 1)
    assert wrong.value.code == -1
