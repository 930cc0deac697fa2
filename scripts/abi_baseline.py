"""The header against its baseline, the header of an earlier brant in src/capi/baseline.

libabigail compares two libraries by their debug information. That of libbrant.so tells of Rust's
types, and not of C's. So a library is made of each header, with functions that do nothing, and
these two are compared. And C tests are compiled with the old header and run with the new library.

`make abi-baseline` makes today's header the baseline. That is done at a release.
"""

import os
import re
import tempfile
from concurrent.futures import ThreadPoolExecutor

import abi
import packages
from runner import ROOT, built, c_tests, make, run, tail, tap

PLACE = os.path.join(ROOT, "src", "capi", "baseline")
HEADER = os.path.join(PLACE, "brant.h")
MAP = os.path.join(PLACE, "brant.map")
# Bits of abidiff's exit status.
FAILED, CHANGED = 1 | 2, 4 | 8
# C tests that take a few seconds. The others: BRANT_BASELINE=all.
QUICK = ("api", "bitmap", "callbacks", "devices", "endpoint", "marks", "owner", "structures")


class Failed(Exception):
    """The comparison could not be made, although all that it needs is here."""


def stub(work, name, header, version_map):
    """A library with the functions of a header, that do nothing, and C's types."""
    source, library = os.path.join(work, name + ".c"), os.path.join(work, name + ".so")
    include = os.path.join(work, name)
    os.makedirs(include, exist_ok=True)
    with open(os.path.join(include, "brant.h"), "w", encoding="utf-8") as file:
        file.write(header)
    with open(source, "w", encoding="utf-8") as file:
        file.write("#include <brant.h>\n")
        prototypes = abi.header_prototypes(os.path.join(include, "brant.h"))
        file.writelines("%s { __builtin_trap(); }\n" % prototype for prototype in prototypes.values())
    made = run([os.environ.get("CC") or "cc", "-shared", "-fPIC", "-g", "-O0", "-I", include, "-o", library,
                "-Wl,--version-script=" + version_map, "-Wl,-soname,libbrant.so.0", source], 120, merge=True)
    if not made.good:
        raise Failed("a library of %s does not compile: %s" % (name, tail(made.text, 10)))
    return library


def suppressions(work):
    """What may change: a structure that begins with its size may grow at its end."""
    sized = [name for name, fields in abi.header_structs() if fields[0] == "size"]
    path = os.path.join(work, "abi.suppr")
    with open(path, "w", encoding="utf-8") as file:
        file.write("[suppress_type]\n  type_kind = struct\n  name_regexp = ^(%s)$\n"
                   "  has_data_member_inserted_at = end\n" % "|".join(sized))
    return path


def differences(command, work, old, new):
    """What abidiff says has changed, or "" for nothing."""
    ended = run([*command, "--no-added-syms", "--suppressions", suppressions(work), old, new], 300, merge=True)
    if ended.status is None or ended.status < 0 or ended.status & FAILED:
        raise Failed("abidiff failed: " + tail(ended.text, 10))
    return ended.out or "it says nothing" if ended.status & CHANGED else ""


def planted(header):
    """Changes of the header by name: (new text, whether programs notice)."""
    slot = re.search(r"typedef struct brant_slot \{.*?\} brant_slot;", header, re.S)[0]
    grown = slot.replace("} brant_slot;", "    uint64_t more;\n} brant_slot;")
    pushed = slot.replace("    size_t size;", "    size_t size;\n    uint64_t more;")
    return {"a structure that begins with its size grows at its end": (header.replace(slot, grown), False),
            "a field that is pushed": (header.replace(slot, pushed), True),
            "another type of a parameter": (header.replace("int32_t brant_has_feature(const char *name);",
                                                           "int32_t brant_has_feature(uint64_t name);"), True),
            "a structure without a size that grows": (re.sub(r"\} brant_run;", "    uint64_t more;\n} brant_run;",
                                                             header), True)}


def compared(tally):
    """abidiff: the header and the version map against their baseline, after planted changes are found."""
    what = "abidiff of the header and its baseline"
    try:
        command = packages.tool("abidiff", "abigail-tools")
    except packages.Cannot as why:
        tally.skip(what, str(why))
        return
    try:
        with tempfile.TemporaryDirectory() as work:
            header = abi.read(abi.HEADER)
            now = stub(work, "now", header, abi.MAP)
            # A reserved field may become a field with a meaning, and another one come at the end: told
            # apart by name, they would be one field that has moved.
            old = stub(work, "baseline", re.sub(r"\breserved\b", "reserved_then", abi.read(HEADER)), MAP)
            wrong = []
            for name, (text, noticed) in planted(header).items():
                if text == header:
                    wrong.append(name + ": was not planted")
                elif bool(differences(command, work, now, stub(work, "planted", text, abi.MAP))) != noticed:
                    wrong.append(name + (": not noticed" if noticed else ": is no change"))
            tally.check(not wrong, "abidiff sees what programs would notice, and nothing else", "\n".join(wrong))
            found = differences(command, work, old, now)
            tally.check(not found, what, tail(found))
    except Failed as why:
        tally.fail(what, str(why))


def names_in(text):
    return set(re.findall(r"\b(?:brant_\w+|BRANT_\w+)\b", abi.without_comments(text)))


def newer(name):
    """The names of today's header that a C test uses and the baseline has not."""
    source = abi.read(os.path.join(ROOT, "c-tests", name + ".c"))
    return names_in(source) & names_in(abi.read(abi.HEADER)) - names_in(abi.read(HEADER))


def programs(tally):
    """C tests that were compiled with the baseline's header keep their promises with this library."""
    everything = os.environ.get("BRANT_BASELINE") == "all"
    tests = [t for t in c_tests() if t.name != "manners" and (everything or t.name in QUICK)]
    lost = set(QUICK) - {t.name for t in tests}
    tally.check(not lost, "the C tests for the baseline are there", ", ".join(sorted(lost)))
    with ThreadPoolExecutor(max(3, os.cpu_count() or 1)) as pool:
        running = {}
        for test in sorted(tests, key=lambda test: -test.seconds):
            what = "%s, compiled with the baseline's header" % test.name
            if newer(test.name):
                tally.skip(what, "it uses " + ", ".join(sorted(newer(test.name))))
                continue
            program = "target/c/baseline/" + test.name
            compiled = make(program)
            if compiled.good:
                running[what] = pool.submit(run, [os.path.join(ROOT, program)], test.seconds, TAP_SECONDS="0")
            else:
                tally.fail(what + ": does not compile", tail(compiled.text))
        for what in sorted(running):
            tap(tally, what, running[what].result())


def leg(tally):
    """programs of an earlier header run with this library: abidiff, C tests compiled with that header"""
    compared(tally)
    if built(tally, "lib"):
        programs(tally)
