"""`pip install` of the package ships the library, and leaves nothing in the tree."""

import glob
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import brant
import pytest

PACKAGE = Path(__file__).resolve().parents[1]


def entries():
    found = set()
    for folder, folders, files in os.walk(PACKAGE):
        folders[:] = [f for f in folders if f != "__pycache__"]
        found.update(os.path.join(folder, name) for name in folders + files)
    return found


def pip(*words, **environment):
    """pip without the network. The tree has its library: no compiler runs in this test."""
    for module in ("setuptools", "wheel", "pip"):
        pytest.importorskip(module)
    quiet = ["--quiet", "--no-deps", "--no-index", "--no-build-isolation", "--disable-pip-version-check"]
    env = {k: v for k, v in os.environ.items() if k not in ("BRANT_LIBRARY", "PYTHONPATH")}
    command = [sys.executable, "-m", "pip", words[0], *quiet, *words[1:], str(PACKAGE)]
    ended = subprocess.run(
        command, timeout=120, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env=dict(env, CARGO="true", **environment),
    )
    assert ended.returncode == 0, ended.stdout


def test_an_installed_package_has_its_library_and_needs_nothing_else(tmp_path):
    before = entries()
    pip("install", "--target", str(tmp_path))
    assert entries() == before
    assert (tmp_path / "brant" / "py.typed").exists()
    env = {k: v for k, v in os.environ.items() if k != "BRANT_LIBRARY"}
    script = "import brant; print(brant.library_path()); print(len(brant.Bitmap(77)))"
    ended = subprocess.run(
        [sys.executable, "-c", script], cwd="/", env=dict(env, PYTHONPATH=str(tmp_path)),
        stdout=subprocess.PIPE, text=True, timeout=60,
    )
    assert ended.stdout.split() == [str(tmp_path / "brant" / "libbrant.so"), "77"]


def test_a_wheel_is_for_this_kind_of_machine_and_any_python_3(tmp_path):
    # A library that is named is shipped as it is.
    named = os.path.realpath(brant.library_path())
    pip("wheel", "--wheel-dir", str(tmp_path), BRANT_LIBRARY=named)
    (wheel,) = glob.glob(str(tmp_path / "*.whl"))
    assert os.path.basename(wheel).startswith("brant-%s-py3-none-linux_" % brant.version())
    with zipfile.ZipFile(wheel) as file:
        with open(named, "rb") as library:
            assert file.read("brant/libbrant.so") == library.read()
        names = file.namelist()
        assert "brant/cli.py" in names and not [n for n in names if "__pycache__" in n]
