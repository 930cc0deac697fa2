"""Builds a wheel with the shared library in it, and outside of the tree.

The library is the file that BRANT_LIBRARY names; else the repository around this directory builds it
(`make lib`). A package that is built elsewhere, from a source distribution, has none: it is then
looked for as its page says. pyproject.toml says what else is built. setuptools would leave `build`
and `brant.egg-info` beside the package, so they go to a temporary directory.
"""

import atexit
import os
import shutil
import subprocess
import sys
import tempfile

from setuptools import Distribution, setup
from setuptools.command.build_py import build_py

try:
    from setuptools.command.bdist_wheel import bdist_wheel
except ImportError:  # before setuptools 70
    from wheel.bdist_wheel import bdist_wheel

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))


def library():
    """The path of the library that is shipped; None outside of the repository."""
    told = os.environ.get("BRANT_LIBRARY")
    if told:
        if not os.path.isfile(told):
            sys.exit("BRANT_LIBRARY is %s, where there is no file" % told)
        return told
    if not os.path.exists(os.path.join(ROOT, "include", "brant.h")):
        return None
    # The package's tools are no business of make's: it installs nothing.
    ended = subprocess.run(["make", "-s", "-C", ROOT, "lib", "BRANT_NO_INSTALL=1"])
    built = os.path.join(ROOT, "target", "c", "libbrant.so")
    if ended.returncode or not os.path.exists(built):
        sys.exit("libbrant.so could not be built (make lib in %s); or name one in BRANT_LIBRARY" % ROOT)
    return built


class Build(build_py):
    """Copies the library beside the modules."""

    def run(self):
        super().run()
        if FOUND is not None:
            place = os.path.join(self.build_lib, "brant", "libbrant.so")
            os.makedirs(os.path.dirname(place), exist_ok=True)
            shutil.copyfile(os.path.realpath(FOUND), place)
            os.chmod(place, 0o755)


class Wheel(bdist_wheel):
    """A wheel for any Python 3 of this kind of machine: the library is of no Python."""

    def get_tag(self):
        python, abi, platform = super().get_tag()
        return "py3", "none", platform if FOUND is not None else "any"


class WithLibrary(Distribution):
    """Not the same on every machine, if the library is in it."""

    def has_ext_modules(self):
        return FOUND is not None


wanted = {"bdist_wheel", "build", "build_py", "install"}
FOUND = library() if wanted & set(sys.argv) else None
scratch = tempfile.mkdtemp(prefix="brant-build-")
atexit.register(shutil.rmtree, scratch, ignore_errors=True)

setup(
    distclass=WithLibrary,
    cmdclass={"build_py": Build, "bdist_wheel": Wheel},
    options={"build": {"build_base": scratch}, "egg_info": {"egg_base": scratch}},
)
