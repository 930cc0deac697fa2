"""The examples do what the page about the package shows."""

import os
import re
import subprocess
import sys

import pytest

from conftest import PACKAGE


def example(name, *arguments):
    """The lines that an example prints; skipped where this machine has not what it needs."""
    ended = subprocess.run(
        [sys.executable, os.path.join(PACKAGE, "examples", name), *arguments],
        env=dict(os.environ, PYTHONPATH=PACKAGE),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
    )
    for missing in ("asynchronous write protection", "no userfaultfd", "needs /dev/kvm", "no dirty ring"):
        if missing in ended.stderr:
            pytest.skip(ended.stderr.strip().splitlines()[-1])
    assert (ended.returncode, ended.stderr) == (0, "")
    return ended.stdout.splitlines()


@pytest.fixture(scope="module")
def page():
    with open(os.path.join(PACKAGE, "README.md"), encoding="utf-8") as file:
        return file.read()


def quoted(page, name):
    """An example's program and its output as the page shows them."""
    found = re.search(
        r"```python\n((?:(?!```).)*)```\s*```sh\n\$ [^\n]*/%s\n(.*?)```" % name, page, re.S
    )
    assert found, "the page does not show %s" % name
    return found[1], found[2].splitlines()


@pytest.mark.parametrize("name", ["track.py", "move.py"])
def test_the_page_shows_an_example_and_what_it_prints(page, name):
    program, output = quoted(page, name)
    with open(os.path.join(PACKAGE, "examples", name), encoding="utf-8") as file:
        assert program == file.read()
    assert example(name) == output


def test_a_kvm_guest_counts_on_in_another_process():
    here, there = example("kvm_guest.py")
    assert re.fullmatch(r"here: paused at \d+ for good", here)
    assert there == "there: counts on, and its pages are whole"


def test_a_kvm_guest_with_a_dirty_ring_counts_on_too():
    log, here, there = example("kvm_guest.py", "--ring")
    assert log == "here: the vCPU's ring gave some pages"
    assert there == "there: counts on, and its pages are whole"


def test_two_policies_are_compared_on_one_guest(tmp_path):
    lines = example("compare_policies.py", str(tmp_path))
    assert len(lines) == 3
    for line, name in zip(lines, ("slowed", "paused after 2 s")):
        assert re.match(r"%s: completed: .* MiB sent in .* s, \d+ passes, downtime" % name, line)
    if lines[2].startswith("not drawn: "):
        assert "pip install matplotlib" in lines[2]
    else:
        page = (tmp_path / "policies.html").read_text()
        assert "<svg" in page and "paused after 2 s" in page
