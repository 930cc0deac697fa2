"""Running a command so that nothing of it is left behind, and counting what it
promised: what scripts/test and scripts/test-stock-kvm share.
"""

import collections
import filecmp
import glob
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
# Longer than anything takes; only there so that nothing hangs for ever.
COMMAND_SECONDS = 1800
C_TEST_SECONDS = 120


class Tally:
    """Counts, and prints one line for each thing counted."""

    def __init__(self):
        self.passed = self.failed = self.skipped = 0

    def ok(self, what, count=1):
        self.passed += count
        say("  ok      " + what)

    def fail(self, what, output="", count=1):
        self.failed += count
        say("  FAILED  " + what)
        for line in output.rstrip().splitlines():
            say("          | " + line)

    def skip(self, what, reason, count=1):
        self.skipped += count
        say("  skipped %s: %s" % (what, reason))

    def check(self, good, what, output=""):
        if good:
            self.ok(what)
        else:
            self.fail(what, output)
        return good


def say(text):
    print(text, flush=True)


class Ended:
    """How a command ended: its status (None: killed at its limit) and texts."""

    def __init__(self, status, out, err, seconds):
        self.status, self.out, self.err, self.seconds = status, out, err, seconds

    @property
    def good(self):
        return self.status == 0

    @property
    def text(self):
        how = ""
        if self.status is None:
            how = "\n(killed after %.0f s)" % self.seconds
        elif self.status < 0:
            try:
                how = "\n(ended by %s)" % signal.Signals(-self.status).name
            except ValueError:
                how = "\n(ended by signal %d)" % -self.status
        elif self.status:
            how = "\n(exit status %d)" % self.status
        return (self.out + self.err).rstrip() + how


def run(command, seconds=COMMAND_SECONDS, cwd=ROOT, merge=False, **environment):
    """Runs a command in a process group of its own, killed at its limit and
    also afterwards, so that nothing it started outlives it. Its output goes to
    files: a pipe would stay open as long as anything that it started."""
    env = dict(os.environ, **environment)
    # An outer make's flags are not for what runs in here.
    for name in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL", "MAKEOVERRIDES"):
        env.pop(name, None)
    began = time.monotonic()
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        try:
            child = subprocess.Popen(command, cwd=cwd, env=env, stdin=subprocess.DEVNULL,
                                     stdout=out, stderr=out if merge else err,
                                     shell=isinstance(command, str), start_new_session=True)
        except OSError as why:
            return Ended(127, "", str(why), 0.0)
        ended = []
        try:
            watch = os.pidfd_open(child.pid)
            ended = select.select([watch], [], [], seconds)[0]
            os.close(watch)
        finally:
            # While the leader is not waited for, nobody else's group can have
            # this number.
            os.killpg(child.pid, signal.SIGKILL)
        try:
            status = child.wait(timeout=10)
        except subprocess.TimeoutExpired:
            status = None
        if not ended:
            status = None
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read().decode("utf-8", "replace"))
    return Ended(status, texts[0], texts[1], time.monotonic() - began)


def have(tool):
    return shutil.which(tool) is not None


def make(*targets, **kw):
    return run(["make", "--no-print-directory", "-j", str(os.cpu_count() or 1), *targets],
               merge=True, **kw)


def built(tally, *targets):
    """Whether make could build `targets`; a failure is counted."""
    ended = make(*targets)
    if not ended.good:
        tally.fail("make %s" % " ".join(targets), tail(ended.text))
    return ended.good


def python_with(*modules):
    """A Python that has `modules`, and None; or None, and why there is none. Where no
    Python here has them all, target/python is made and gets those of scripts/tools.txt."""
    own = os.path.join(ROOT, "target", "python")
    tools = os.path.join(ROOT, "scripts", "tools.txt")
    own_python = os.path.join(own, "bin", "python")
    # A linter's version counts, so only the one of the list will do.
    any_version = set(modules) <= {"pytest", "numpy"}
    others = (sys.executable, "/usr/bin/python3") if any_version else ()
    mark = os.path.join(own, "tools.txt")
    for python in others:
        if os.path.exists(python) and run([python, "-c", "import " + ",".join(modules)], 60).good:
            return python, None
    if not (os.path.exists(mark) and filecmp.cmp(mark, tools, shallow=False)):
        for command in ([sys.executable, "-m", "venv", own],
                        [own_python, "-m", "pip", "-q", "install", "-r", tools]):
            ended = run(command, 600, merge=True)
            if not ended.good:
                return None, "no %s here, and none to be had: %s" % (
                    ", ".join(modules), (ended.out.strip().splitlines() or ["?"])[-1])
        shutil.copyfile(tools, mark)
    return own_python, None


def tail(text, lines=60):
    every = text.splitlines()
    if len(every) <= lines:
        return text
    return "\n".join(["... (%d lines before)" % (len(every) - lines)] + every[-lines:])


CTest = collections.namedtuple("CTest", "name program seconds")


def c_tests():
    """The C test programs: whatever is in c-tests, and the one written from the header.
    `program` is what make builds, from the root; `seconds` its time limit."""
    sources = sorted(glob.glob(os.path.join(ROOT, "c-tests", "*.c")))
    # Its source is written from the header; what there is to read of it is this.
    sources.append(os.path.join(ROOT, "c-tests", "manners.h"))
    tests = []
    for source in sources:
        with open(source, encoding="utf-8") as file:
            said = re.search(r"time limit: (\d+) s\b", file.read())
        name = os.path.basename(source)[:-2]
        tests.append(CTest(name, "target/c/tests/" + name,
                           int(said[1]) if said else C_TEST_SECONDS))
    return tests


def tap(tally, name, ended):
    """Counts the promises of one program; every way not to keep them fails."""
    planned, seen, before = None, 0, tally.failed
    for line in ended.out.splitlines():
        plan = re.match(r"1\.\.(\d+)(?:\s*# SKIP\s*(.*))?$", line)
        promise = re.match(r"(not )?ok (\d+)(?: - (.*?))?(?:\s+# SKIP\s*(.*))?$", line)
        if plan:
            if planned is not None:
                tally.fail("%s: a second plan line" % name)
            planned = int(plan[1])
            if planned == 0 and plan[2] is not None:
                tally.skip(name, plan[2])
            elif planned == 0:
                tally.fail("%s: plans nothing and says no reason" % name)
        elif promise:
            seen += 1
            what = "%s: %s" % (name, promise[3] or "promise %d" % seen)
            if int(promise[2]) != seen:
                tally.fail("%s is numbered %s, not %d" % (what, promise[2], seen))
            elif promise[1]:
                tally.fail(what)
            elif promise[4] is not None:
                tally.skip(what, promise[4])
            else:
                tally.ok(what)
        elif line.startswith("Bail out!"):
            tally.fail("%s: %s" % (name, line))
    if ended.status is None:
        tally.fail("%s: its time ran out after %.0f s" % (name, ended.seconds))
    if planned is None:
        tally.fail("%s: no plan line" % name)
    elif seen < planned:
        # The promises that were never tried are lost, each of them.
        tally.fail("%s: %d of %d promises were not tried" % (name, planned - seen, planned),
                   count=planned - seen)
    elif seen > planned:
        tally.fail("%s: %d promises where %d were planned" % (name, seen, planned))
    if not ended.good and tally.failed == before:
        tally.fail("%s: did not end well" % name)
    if tally.failed > before:
        for line in tail(ended.text).splitlines():
            say("          | " + line)
