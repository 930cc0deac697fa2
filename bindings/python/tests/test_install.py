"""`pip install` of the package leaves nothing in the tree."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1]


def entries():
    found = set()
    for folder, folders, files in os.walk(PACKAGE):
        folders[:] = [f for f in folders if f != "__pycache__"]
        found.update(os.path.join(folder, name) for name in folders + files)
    return found


def test_an_installation_leaves_nothing_in_the_tree(tmp_path):
    before = entries()
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    command += ["--no-build-isolation", "--disable-pip-version-check", "--target", str(tmp_path)]
    try:
        __import__("wheel")
        __import__("setuptools")
        __import__("pip")
    except ImportError as why:
        pytest.skip("what builds a package is not here: %s" % why)
    subprocess.run([*command, str(PACKAGE)], check=True, timeout=120)
    assert (tmp_path / "brant" / "py.typed").exists()
    assert entries() == before
