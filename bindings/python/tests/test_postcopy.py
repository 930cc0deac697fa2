"""A guest that runs at the destination before its memory is there, and a link that is lost then."""

import socket
import threading
import time

import brant
import pytest

from test_migration import Side as Small

PAGE = brant.PAGE_SIZE
BYTES = 16 << 20


class Side(Small):
    """A guest whose memory takes seconds on the link."""

    bytes = BYTES


class Link:
    """Carries bytes between two unix sockets, at no more than a rate, until it is cut."""

    def __init__(self, rate=None):
        self.ends = socket.socketpair(), socket.socketpair()
        self.source, self.destination = self.ends[0][0], self.ends[1][1]
        self.rate = rate
        self.inner = self.ends[0][1], self.ends[1][0]
        self.threads = [
            threading.Thread(target=self._carry, args=way) for way in (self.inner, self.inner[::-1])
        ]
        for thread in self.threads:
            thread.start()

    def _carry(self, one, other):
        try:
            while True:
                data = one.recv(1 << 14)
                if not data:
                    break
                other.sendall(data)
                if self.rate and one is self.inner[0]:
                    time.sleep(len(data) / self.rate)
        except OSError:
            pass
        self.cut()

    def cut(self):
        for one in self.inner:
            try:
                one.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    def close(self):
        self.cut()
        for thread in self.threads:
            thread.join()
        for one in self.inner:
            one.close()


@pytest.fixture
def two():
    """A source with contents, and a destination, over a channel of 4 MB/s and an urgent one."""
    here, there = Side(), Side()
    for page in range(BYTES // PAGE):
        here.memory[page * PAGE : page * PAGE + 8] = (page + 1).to_bytes(8, "little")
        here.memory[page * PAGE + 9 : (page + 1) * PAGE] = b"\5" * (PAGE - 9)
    links = [Link(rate=4e6), Link()]
    tracker = brant.Tracker(here.guest)
    params = brant.Params(postcopy="allowed")
    outgoing, incoming = brant.Outgoing(tracker, params), brant.Incoming(there.guest)
    incoming.start([link.destination for link in links])
    outgoing.start([link.source for link in links])
    yield here, there, outgoing, incoming, links
    for link in links:
        link.close()
    for one in (outgoing, incoming, tracker, here.guest, there.guest):
        one.close()


def switched(there, outgoing):
    """Asks for the switch, and returns when the guest runs at the destination."""
    wait_for(lambda: outgoing.stats().data_pages > 0 or outgoing.over)
    try:
        outgoing.start_postcopy()
        wait_for(lambda: "run" in there.vmm.calls or outgoing.over)
        if outgoing.over:
            outgoing.wait()
    except brant.BrantError as why:
        if why.name != "not supported":
            raise
        pytest.skip(why.message)


def wait_for(what):
    ends = time.monotonic() + 30
    while not what():
        assert time.monotonic() < ends
        time.sleep(0.002)


def test_a_touched_page_comes_before_its_turn_and_the_rest_follows(two):
    here, there, outgoing, incoming, links = two
    switched(there, outgoing)
    missing = incoming.missing()
    assert missing and there.guest.state == "incomplete"
    last = missing[-1].first_page + missing[-1].pages - 1
    # Operations run meanwhile: the read does not hold the interpreter.
    assert there.guest.read("ram", last * PAGE, 8) == (last + 1).to_bytes(8, "little")
    links[0].rate = None
    assert outgoing.wait(30_000) and incoming.wait(30_000)
    assert there.memory[:] == here.memory[:]
    stats = incoming.stats()
    assert stats.faults >= 1 and stats.urgent_pages >= 1 and stats.missing_pages == 0
    assert any(one.thread == threading.get_native_id() for one in incoming.blocked())
    assert incoming.missing() == [] and there.guest.state == "here"


def test_a_lost_link_is_recovered_over_new_sockets(two):
    here, there, outgoing, incoming, links = two
    switched(there, outgoing)
    for link in links:
        link.cut()
    wait_for(lambda: outgoing.stats().state == incoming.stats().state == "interrupted")
    assert outgoing.wait(0) is False and there.guest.state == "incomplete"
    new = [Link(), Link()]
    links.extend(new)
    incoming.recover([link.destination for link in new])
    outgoing.recover([link.source for link in new])
    assert outgoing.wait(30_000) and incoming.wait(30_000)
    assert there.memory[:] == here.memory[:]
    assert outgoing.stats().recoveries == incoming.stats().recoveries == 1


def test_a_source_that_is_gone_for_good_is_given_up(two):
    here, there, outgoing, incoming, links = two
    switched(there, outgoing)
    for link in links:
        link.cut()
    wait_for(lambda: outgoing.stats().state == incoming.stats().state == "interrupted")
    missing = sum(run.pages for run in incoming.missing())
    outgoing.resolve(runs_here=False)
    with pytest.raises(brant.UnansweredError):
        outgoing.wait()
    incoming.give_up()
    stats = incoming.stats()
    assert (stats.state, stats.lost_pages) == ("incomplete", missing)
    with pytest.raises(brant.BrantError):
        incoming.wait()


def test_part_of_a_block_is_read_and_written_inside_its_bounds():
    side = Side()
    side.guest.write("ram", 5, b"abc")
    assert side.guest.read("ram", 4, 5) == b"\0abc\0" and side.guest.read("ram", BYTES, 0) == b""
    for wrong in ((BYTES, 1), (0, BYTES + 1), (-1, 1)):
        with pytest.raises(ValueError):
            side.guest.read("ram", *wrong)
    with pytest.raises(ValueError, match="beyond its end"):
        side.guest.write("ram", BYTES - 1, b"xx")
