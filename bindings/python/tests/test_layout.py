"""Python's declarations are those of the header, field by field, as the compiler sees them."""

import ctypes
import dataclasses
import os
import re

import abi
import declared as written
import pytest

import brant
from brant import _declared as declared

EXPECTED_TYPES = {
    "void": None,
    "int32_t": ctypes.c_int32,
    "uint32_t": ctypes.c_uint32,
    "uint64_t": ctypes.c_uint64,
    "size_t": ctypes.c_size_t,
    "char *": ctypes.c_char_p,
    "void *": ctypes.c_void_p,
    "int32_t *": ctypes.POINTER(ctypes.c_int32),
    "uint32_t *": ctypes.POINTER(ctypes.c_uint32),
    "uint64_t *": ctypes.POINTER(ctypes.c_uint64),
    "size_t *": ctypes.POINTER(ctypes.c_size_t),
}


@pytest.fixture(scope="module")
def header(tmp_path_factory):
    """The header's ABI, a line each, as the compiler sees it."""
    return abi.measured(os.environ.get("CC") or "cc", str(tmp_path_factory.mktemp("abi")))


def of_structure(structure):
    """The lines that the header must have for a structure of Python's."""
    name = structure.__name__
    lines = ["size %s %d" % (name, ctypes.sizeof(structure))]
    for field, _ in structure._fields_:
        at = getattr(structure, field)
        lines.append("field %s.%s %d %d" % (name, field, at.offset, at.size))
    return lines


def differences(structure, lines):
    """How a structure differs from the header's, both ways."""
    name = structure.__name__
    theirs = [l for l in lines if re.match(r"(size %s|field %s\.\w+) " % (name, name), l)]
    ours = of_structure(structure)
    return sorted(set(theirs) ^ set(ours))


@pytest.mark.parametrize("structure", declared.STRUCTURES, ids=lambda s: s.__name__)
def test_a_structure_is_the_header_s_field_by_field(structure, header):
    assert differences(structure, header) == []


@pytest.mark.parametrize("structure", declared.STRUCTURES, ids=lambda s: s.__name__)
def test_any_drift_of_a_structure_is_noticed(structure, header):
    """Each line of the header removed, or changed in its name, offset or size; and one field more.
    """
    name = structure.__name__
    for i, line in enumerate(header):
        if not re.match(r"(size %s|field %s\.\w+) " % (name, name), line):
            continue
        words = line.split()
        changed = [[]]
        changed += [words[:k] + [str(int(words[k]) + 8)] + words[k + 1 :] for k in range(2, len(words))]
        changed += [[words[0], words[1] + "_renamed"] + words[2:]]
        for other in changed:
            planted = header[:i] + ([" ".join(other)] if other else []) + header[i + 1 :]
            assert differences(structure, planted), "unnoticed: %s for %s" % (other, line)
    assert differences(structure, header + ["field %s.more 8 8" % name])


SEEN = {
    brant.Sync: declared.brant_sync,
    brant.TrackerStats: declared.brant_tracker_stats,
    brant.ConsumerStats: declared.brant_consumer_stats,
}


@pytest.mark.parametrize("seen", SEEN, ids=lambda c: c.__name__)
def test_what_users_see_of_a_structure_is_all_of_it(seen):
    structure = SEEN[seen]
    shown = {f.name for f in dataclasses.fields(seen)}
    assert shown == {name for name, _ in structure._fields_} - {"size"}


def test_every_structure_that_is_passed_is_declared_and_checked():
    passed = {
        kind._type_
        for _, taken in declared.PROTOTYPES.values()
        for kind in taken
        if isinstance(getattr(kind, "_type_", None), type)
        and issubclass(kind._type_, ctypes.Structure)
    }
    assert passed <= set(declared.STRUCTURES)


def test_constants_are_the_header_s(header):
    values = dict(l.split()[1:] for l in header if l.startswith("value "))
    # The compiler's program prints them as signed numbers.
    theirs = {name: int(value) % 2**64 for name, value in values.items()}
    ours = {name: value % 2**64 for name, value in declared.CONSTANTS.items()}
    assert ours == theirs


def test_everything_that_the_header_has_is_declared(header):
    assert set(declared.PROTOTYPES) == set(abi.header_functions())
    structures = {l.split()[1] for l in header if l.startswith("size ")}
    assert {s.__name__ for s in declared.STRUCTURES} == structures


def test_the_declarations_are_those_that_the_header_makes():
    assert written.stale() == [], "make header writes them anew"


def kind_of(text):
    """The ctypes type for a C type of the header's."""
    plain = re.sub(r"\b(const|struct) ", "", text.strip())
    if plain in EXPECTED_TYPES:
        return EXPECTED_TYPES[plain]
    handle = re.fullmatch(r"(brant_\w+) (\*{1,2})", plain)
    assert handle, "a type without a rule: %s" % text
    if handle[2] == "**":
        return ctypes.POINTER(ctypes.c_void_p)
    structures = {s.__name__: s for s in declared.STRUCTURES}
    if handle[1] in structures:
        return ctypes.POINTER(structures[handle[1]])
    return ctypes.c_void_p


@pytest.mark.parametrize("name", declared.PROTOTYPES)
def test_a_function_takes_and_returns_what_the_header_says(name):
    prototype = abi.header_prototypes()[name]
    returned, inside = re.fullmatch(r"(.*?)\s*%s ?\((.*)\)" % name, prototype).groups()
    parameters = [p for p in inside.split(",") if p.strip() != "void"]
    taken = [kind_of(re.fullmatch(r"\s*(.*?[\s*])\w+", p)[1]) for p in parameters]
    assert declared.PROTOTYPES[name] == (kind_of(returned), taken)
