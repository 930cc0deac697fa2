"""Where the library is looked for, and the message when it is not there."""

import os
import shutil
import subprocess
import sys

import brant
import pytest

from conftest import PACKAGE, ROOT


def python(code, place=PACKAGE, **environment):
    env = {k: v for k, v in os.environ.items() if k != "BRANT_LIBRARY"}
    env.update(environment, PYTHONPATH=place)
    # The directory in which it starts comes before PYTHONPATH.
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd="/",
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
    )


WHERE = "import brant; print(brant.library_path())"


def test_the_library_is_the_one_that_this_repository_built():
    built = os.path.join(ROOT, "target", "c", "libbrant.so")
    assert python(WHERE).stdout.strip() == built
    assert brant.version() == "0.1.0"


def test_brant_library_comes_first(tmp_path):
    mine = shutil.copy(os.path.realpath(brant.library_path()), tmp_path / "mine.so")
    assert python(WHERE, BRANT_LIBRARY=str(mine)).stdout.strip() == str(mine)


def test_a_wrong_brant_library_is_not_passed_over(tmp_path):
    ended = python("import brant", BRANT_LIBRARY=str(tmp_path / "none.so"))
    assert ended.returncode == 1
    last = ended.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: libbrant.so was not found.")
    assert "none.so (BRANT_LIBRARY)" in last and "make lib" in last


def test_a_library_that_is_none_of_brant_s_is_named():
    ended = python("import brant", BRANT_LIBRARY="libc.so.6")
    last = ended.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: libc.so.6 (BRANT_LIBRARY) has no function brant_")


def test_away_from_the_repository_the_system_s_loader_is_asked(tmp_path):
    shutil.copytree(os.path.join(PACKAGE, "brant"), tmp_path / "a" / "b" / "c" / "brant")
    place = str(tmp_path / "a" / "b" / "c")
    ended = python(WHERE, place)
    if ended.returncode == 0:
        pytest.skip("a libbrant.so.0 is installed here: " + ended.stdout.strip())
    last = ended.stderr.strip().splitlines()[-1]
    assert "libbrant.so.0 (the system's loader)" in last
    library = tmp_path / "lib"
    library.mkdir()
    shutil.copy(os.path.realpath(brant.library_path()), library / "libbrant.so.0")
    ended = python(WHERE, place, LD_LIBRARY_PATH=str(library))
    assert ended.stdout.strip() == "libbrant.so.0", ended.stderr


def test_the_library_s_features_are_known():
    assert brant.has_feature("tracker") and brant.has_feature("userfault")
    assert not brant.has_feature("no such thing")


def test_a_program_that_ends_with_everything_open_ends_well():
    ended = python(
        "import brant, mmap\n"
        "m = mmap.mmap(-1, 1 << 20)\n"
        "g = brant.Guest(); g.add_block('ram', m)\n"
        "t = brant.Tracker(g); b = brant.Bitmap(100)\n"
        "t.start(everything=True)\n"
        "walk = t.take(); run = next(walk)\n"
        "print(run.pages)\n"
    )
    assert (ended.returncode, ended.stdout.strip(), ended.stderr) == (0, "256", "")
