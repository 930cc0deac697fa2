"""Has pip build outside of the tree: setuptools would leave `build` and `brant.egg-info` beside
the package. What is built is said in pyproject.toml."""

import atexit
import shutil
import tempfile

from setuptools import setup

scratch = tempfile.mkdtemp(prefix="brant-build-")
atexit.register(shutil.rmtree, scratch, ignore_errors=True)

setup(options={"build": {"build_base": scratch}, "egg_info": {"egg_base": scratch}})
