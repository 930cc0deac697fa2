"""Debian's packages, unpacked into target/stock instead of being installed: QEMU, a kernel, busybox,
CMake, libabigail.

scripts/test-stock-kvm boots them, scripts/bench-peers runs QEMU beside brant, and scripts/test looks
at the installed library with the tools. A package is downloaded and unpacked once; nothing of the
machine changes.
"""

import glob
import os
import re
import shutil
import sys
import tempfile

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from runner import ROOT, have, run, say  # noqa: E402

CACHE = os.path.join(ROOT, "target", "stock")


class Cannot(Exception):
    """What is needed cannot be had here; the text says why."""


def apt(*arguments, cwd=ROOT):
    return run(list(arguments), 600, cwd=cwd, LC_ALL="C", DEBIAN_FRONTEND="noninteractive")


def missing_packages(name):
    """The package and what of its needs is not installed here."""
    said = apt("apt-get", "install", "--simulate", "--no-install-recommends", name)
    return re.findall(r"^Inst (\S+)", said.out, re.M) if said.good else []


def unpacked(name, packages, into):
    """Downloads the packages that `packages()` names and unpacks them. It is asked again
    after apt has read its lists anew, which only root may do."""
    say("  note    unpacking %s into %s, once" % (name, os.path.relpath(into, ROOT)))
    os.makedirs(CACHE, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE, prefix="new-") as work:
        for lists in ("as they are", "new"):
            if lists == "new":
                if os.getuid() != 0:
                    break
                apt("apt-get", "-qq", "update")
            chosen = packages()
            if not chosen:
                why = "apt knows no package for " + name
                continue
            # apt's own user cannot write here.
            ended = apt("apt-get", "-qq", "-o", "APT::Sandbox::User=root", "download", *chosen,
                        cwd=work)
            if ended.good:
                break
            why = (ended.err.strip().splitlines() or ["apt-get download failed"])[-1]
        if not glob.glob(os.path.join(work, "*.deb")) or not ended.good:
            raise Cannot(why + ("" if os.getuid() == 0 else " (root could read apt's lists anew)"))
        root = os.path.join(work, "root")
        for package in glob.glob(os.path.join(work, "*.deb")):
            ended = apt("dpkg-deb", "-x", package, root)
            if not ended.good:
                raise Cannot("cannot unpack: " + ended.text)
        # Whole or not at all.
        os.rename(root, into)


def installed_or_unpacked(name, packages, into):
    """Has what packages hold in the directory `into`, if it is not there yet."""
    if os.path.isdir(into):
        return
    if not (have("apt-get") and have("apt-cache") and have("dpkg-deb")):
        raise Cannot("%s is taken from Debian's packages, and there is no apt here" % name)
    unpacked(name, packages, into)


def libraries_in(into):
    """LD_LIBRARY_PATH for what was unpacked. Not in the environment, where it would be every child's."""
    found = {os.path.dirname(path) for path in glob.glob(os.path.join(into, "**", "*.so.*"), recursive=True)}
    return "LD_LIBRARY_PATH=" + ":".join(sorted(found))


def tool(program, package):
    """The command of a program: the one that is installed, or else the unpacked package's."""
    installed = shutil.which(program)
    if installed:
        return [installed]
    into = os.path.join(CACHE, package)
    installed_or_unpacked(program, lambda: missing_packages(package), into)
    return ["env", libraries_in(into), os.path.join(into, "usr/bin", program)]


def cmake():
    """CMake's command. It finds its modules from its own place."""
    return tool("cmake", "cmake")


def qemu():
    """QEMU's command: the one that is installed, or else the unpacked one."""
    if os.uname().machine != "x86_64":
        raise Cannot("this is no x86-64 machine")
    installed = shutil.which("qemu-system-x86_64")
    if installed:
        return [installed]
    into = os.path.join(CACHE, "qemu")
    installed_or_unpacked("QEMU", lambda: missing_packages("qemu-system-x86"), into)
    command = ["env", libraries_in(into), os.path.join(into, "usr/bin/qemu-system-x86_64")]
    for data in ("qemu", "seabios"):
        command += ["-L", os.path.join(into, "usr/share", data)]
    return command
