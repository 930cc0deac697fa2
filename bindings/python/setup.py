"""Makes pip build outside of the tree, because setuptools would leave `build` and `brant.egg-info`
beside the package. pyproject.toml says what is built."""

import atexit
import shutil
import tempfile

from setuptools import setup

scratch = tempfile.mkdtemp(prefix="brant-build-")
atexit.register(shutil.rmtree, scratch, ignore_errors=True)

setup(options={"build": {"build_base": scratch}, "egg_info": {"egg_base": scratch}})
