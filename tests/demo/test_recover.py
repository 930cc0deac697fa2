"""Connections that are lost behind a postcopy are made anew, and the guest goes on with all of its memory."""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Callable, Iterator

import pytest

from conftest import Program, guest, listening

# As much of "memory follows" as a terminal of 80 columns shows.
FOLLOWS = "memory fol"
# The guest's memory follows it for some seconds.
SLOW = ["--after", "0", "--fill", "80", "--postcopy", "--bandwidth", "16M", "--downtime", "3000"]


class Link:
    """Carries connections to a port, until it is cut; and carries new ones afterwards."""

    def __init__(self, where: str) -> None:
        self.to = int(where.rpartition(":")[2])
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.where = "tcp:127.0.0.1:%d" % self.listener.getsockname()[1]
        self.ends: list[socket.socket] = []
        self.lock = threading.Lock()
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self.listener.accept()
            except OSError:  # it was closed
                return
            try:
                far = socket.create_connection(("127.0.0.1", self.to))
            except OSError:  # nobody listens there yet
                near.close()
                continue
            with self.lock:
                self.ends += [near, far]
            for a, b in ((near, far), (far, near)):
                threading.Thread(target=self._carry, args=(a, b), daemon=True).start()

    @staticmethod
    def _carry(a: socket.socket, b: socket.socket) -> None:
        try:
            while data := a.recv(65536):
                b.sendall(data)
            b.shutdown(socket.SHUT_WR)
        except OSError:  # it was cut
            pass

    def cut(self) -> int:
        """How many connections there were."""
        with self.lock:
            ends, self.ends = self.ends, []
        for end in ends:
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:  # the other side was faster
                pass
            end.close()
        return len(ends) // 2

    def close(self) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self.cut()


@pytest.fixture
def link() -> Iterator[Callable[[str], Link]]:
    made: list[Link] = []

    def make(where: str) -> Link:
        made.append(Link(where))
        return made[-1]

    yield make
    for one in made:
        one.close()


def test_a_guest_whose_link_is_cut_behind_a_postcopy_gets_all_of_its_memory(
        minivmm: Callable[..., Program], link: Callable[[str], Link]) -> None:
    receiver, where = listening(minivmm)
    wire = link(where)
    sent = minivmm("send", *guest(), "--to", wire.where, *SLOW)
    for _ in range(2):
        sent.until(FOLLOWS, len(sent.text))
        assert wire.cut() >= 2
        # Both sides see it, and both make new connections.
        sent.until("warning: ", len(sent.text))
    assert sent.end() == 0, sent.text
    recovered = re.compile(r"the connections were lost and made anew, [12] times?")
    assert recovered.search(sent.text), sent.text
    receiver.until("the guest runs here: .* all of its pages are as it left them")
    assert recovered.search(receiver.text), receiver.text


def test_a_receiver_that_is_not_to_wait_gives_up_what_its_dead_source_had(minivmm: Callable[..., Program]) -> None:
    receiver, where = listening(minivmm, "--recover", "0")
    sent = minivmm("send", *guest(), "--to", where, *SLOW)
    sent.until(FOLLOWS)
    receiver.until(FOLLOWS)
    sent.close()
    receiver.until("warning: ")
    assert receiver.end() == 1, receiver.text
    assert "a part of its memory is lost with its source" in receiver.text
