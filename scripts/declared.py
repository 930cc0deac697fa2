#!/usr/bin/env python3
"""Writes what Python declares of the header: bindings/python/brant/_declared.py (structures, constants
and functions for ctypes) and bindings/python/brant/figures.py (the dataclasses that users see).

`make header` calls it after the header, and the Python tests call it with --check. Another test
compares every structure and constant with what a C compiler makes of the header.
"""

import os
import re
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import abi  # noqa: E402

PACKAGE = os.path.join(abi.ROOT, "bindings", "python", "brant")

SCALARS = {
    "int32_t": "c_int32",
    "uint32_t": "c_uint32",
    "uint64_t": "c_uint64",
    "size_t": "c_size_t",
}

#: Structures that a user fills, and the dataclass of each. `choices`: fields that are the name of a
#: constant, with the prefix of the constants.
GIVEN = {
    "brant_params": ("Params", {
        "compression": "COMPRESSION", "page_checksums": "CHECKSUMS", "verify": "VERIFY", "zero_copy": "ZERO_COPY:OFF,ON",
        "prefault": "PREFAULT", "ballooned": "BALLOONED", "overrun": "OVERRUN", "hand_over": "HAND_OVER",
        "postcopy": "POSTCOPY"}),
    "brant_policy": ("Policy", {"slowing": "SLOWING", "on_deadline": "DEADLINE"}),
    "brant_rate_params": ("RateParams", {"way": "RATE"}),
    "brant_image_save_params": ("SaveParams", {
        "guest": "IMAGE:RESUME,STAY_PAUSED,ALREADY_PAUSED", "cache": "IMAGE:DIRECT,CACHED",
        "instant": "IMAGE_INSTANT"}),
    "brant_image_merge_params": ("MergeParams", {"cache": "IMAGE:DIRECT,CACHED"}),
    "brant_image_restore_params": ("RestoreParams", {
        "guest": "IMAGE:RESUME,STAY_PAUSED", "cache": "IMAGE:DIRECT,CACHED", "lazy": "bool", "trusted": "bool"}),
}
#: Structures that the library fills.
FILLED = {
    "brant_stats": ("Stats", {"state": "SOURCE|DESTINATION", "stall": "STALL", "zero_copy": "ZERO_COPY"}),
    "brant_lane_stats": ("LaneStats", {"state": "LANE"}),
    "brant_forecast": ("Forecast", {"converges": "bool", "guessed": "bool"}),
    "brant_dirty_rate": ("DirtyRate", {"warnings": "bool"}),
    "brant_image_stats": (
        "ImageStats",
        {"state": "IMAGE:IDLE,PREPARING,COPYING,PAUSED,FINISHING,FILLING,LOADING,STARTING,COMPLETED,FAILED"}),
    "brant_kvm_info": ("KvmInfo", {"mode": "KVM", "with_bitmap": "bool"}),
    "brant_missing_run": ("MissingRun", {}),
    "brant_blocked": ("Blocked", {}),
}
#: Fields whose name is a word of Python's.
PYTHON_NAMES = {"pass": "pass_"}
#: Constants with the prefix of a group that belong to something else.
OTHERS = {"RATE": ("BY_",), "HAND_OVER": ()}


def structures():
    """The header's structures in its order: [(name, doc, [(type, field, count or None, doc)])]."""
    text = re.sub(r"^#ifdef __cplusplus$.*?^#(else|endif)\b", "", abi.read(abi.HEADER), flags=re.M | re.S)
    found = []
    pattern = r"(?:/\*\*((?:(?!\*/).)*?)\*/\s*)?typedef struct \w+ \{(.*?)^\} (\w+);"
    for doc, body, name in re.findall(pattern, text, re.S | re.M):
        fields = []
        for comment, member in re.findall(r"/\*\*(.*?)\*/\s*([^;]*);", body, re.S):
            pointer = re.fullmatch(r"(.*?)\(\*(\w+)\)\((.*)\)", " ".join(member.split()))
            if pointer:
                # Some parameters have no name.
                kinds = [re.fullmatch(r"((?:const |struct )*\w+ ?\**) ?\w*", p.strip())[1]
                         for p in pointer[3].split(",")]
                fields.append((("function", pointer[1], *kinds), pointer[2], None, plain(comment)))
                continue
            kind, field, count = re.fullmatch(r"(.*?[\s*])(\w+)(?:\[(\d+)\])?", " ".join(member.split())).groups()
            fields.append((kind.strip(), field, int(count) if count else None, plain(comment)))
        found.append((name, plain(doc), fields))
    return found


def plain(comment):
    """A comment's text without its stars, a paragraph a line."""
    lines = [re.sub(r"^\s*\* ?", "", line).strip() for line in comment.strip().splitlines()]
    paragraphs = "\n".join(lines).split("\n\n")
    return "\n".join(" ".join(p.split()) for p in paragraphs)


def constants():
    """The header's constants as numbers: {name: value}."""
    found = {}
    for name, text in re.findall(r"^#define (BRANT_[A-Z0-9_]+) (\S+)$", abi.read(abi.HEADER), re.M):
        if name.startswith("BRANT_VERSION_") or name == "BRANT_INIT":
            continue
        text = {"UINT64_MAX": str(2**64 - 1), "UINT32_MAX": str(2**32 - 1)}.get(text, text)
        found[name] = int(re.sub(r"[()uUlL]", "", text), 0)
    return found


def kind_of(text, names):
    """The ctypes type of a C type, as Python text."""
    if isinstance(text, tuple):
        return "CFUNCTYPE(%s)" % ", ".join(kind_of(kind, names) for kind in text[1:])
    text = " ".join(re.sub(r"\b(const|struct)\b", " ", text).replace("*", " *").split()).replace("* *", "**")
    if text in SCALARS:
        return SCALARS[text]
    if text == "char *":
        return "c_char_p"
    if text == "void":
        return "None"
    if text == "void **":
        return "POINTER(c_void_p)"
    if text in names:
        return text
    pointer = re.fullmatch(r"(\w+) (\*+)", text)
    if not pointer:
        sys.exit("declared.py: a type without a rule: " + text)
    to, stars = pointer.groups()
    if to == "void":
        return "c_void_p"
    if stars == "**":
        return "POINTER(c_void_p)"
    if to in SCALARS:
        return "POINTER(%s)" % SCALARS[to]
    return "POINTER(%s)" % to if to in names else "c_void_p"


def group(prefix, values):
    """The names of a group of constants, as a user writes them: {name: value}."""
    found = {}
    for one in prefix.split("|"):
        family, _, only = one.partition(":")
        for name, value in values.items():
            rest = name[len("BRANT_" + family + "_"):]
            if not name.startswith("BRANT_" + family + "_") or only and rest not in only.split(","):
                continue
            if family in OTHERS and not only and not rest.startswith(OTHERS[family] or ""):
                continue
            rest = rest[3:] if rest.startswith("BY_") else rest
            found[rest.lower().replace("_", "-")] = value
    return found


def of_constants(doc, prefix):
    """A field's text, with the names that Python has for the constants."""
    return re.sub(r"`?BRANT_UNKNOWN`?", "None", doc)


def wrapped(text, indent, first=None):
    """Text in lines of at most 100 characters."""
    lines, line = [], (first if first is not None else indent)
    for word in text.split():
        if len(line) + 1 + len(word) > 100 and line.strip():
            lines.append(line.rstrip())
            line = indent
        line += word if not line or line.endswith(("    ", '"""', ": ")) and not line.strip(' "#:') else " " + word
    return [*lines, line.rstrip()]


def declared():
    """The text of _declared.py."""
    values, found = constants(), structures()
    names = {name for name, _, _ in found}
    out = ['"""The header as ctypes sees it. Written by scripts/declared.py; do not edit: make header."""', "",
           "from __future__ import annotations", "",
           "from ctypes import (", "    CFUNCTYPE,", "    POINTER,", "    Structure,", "    c_char_p,", "    c_int32,", "    c_size_t,",
           "    c_uint32,", "    c_uint64,", "    c_void_p,", ")",
           "from typing import Any, Dict, List, Tuple", "",
           "#: The header's constants, under the header's names.", "CONSTANTS: Dict[str, int] = {"]
    out += ['    "%s": %d,' % item for item in values.items()]
    out += ["}", ""]
    # A structure comes behind those that it contains or points to.
    left, done = list(found), set()
    while left:
        for one in left:
            kinds = [kind_of(kind, names) for kind, _, _, _ in one[2]]
            needs = {w for kind in kinds for w in re.findall(r"brant_\w+", kind)}
            if needs - done - {one[0]}:
                continue
            break
        left.remove(one)
        done.add(one[0])
        out += ["", "class %s(Structure):" % one[0], "    _fields_ = ["]
        for kind, field, count, _ in one[2]:
            text = kind_of(kind, names)
            line = '        ("%s", %s%s),' % (field, text, " * %d" % count if count else "")
            if len(line) > 100:
                line = '        (\n            "%s",\n            %s,\n        ),' % (field, text)
            out.append(line)
        out += ["    ]", ""]
    out += ["", "STRUCTURES: Tuple[type, ...] = ("] + ["    %s," % name for name, _, _ in found] + [")", ""]
    out += ["#: The result and the parameters of each function.",
            "PROTOTYPES: Dict[str, Tuple[Any, List[Any]]] = {"]
    for name, prototype in abi.header_prototypes().items():
        returned, inside = re.fullmatch(r"(.*?)\s*%s ?\((.*)\)" % name, prototype).groups()
        taken = []
        for parameter in inside.split(","):
            if parameter.strip() not in ("", "void"):
                taken.append(kind_of(re.fullmatch(r"\s*(.*?[\s*])\w+", parameter)[1], names))
        out.append('    "%s": (' % name)
        out.append("        %s," % kind_of(returned, names))
        if taken:
            out += ["        [", *["            %s," % kind for kind in taken], "        ],"]
        else:
            out.append("        [],")
        out.append("    ),")
    out += ["}", ""]
    return "\n".join(out)


def seen(field, kind, count, doc, choice, given):
    """The type and the default of a field of a dataclass."""
    if choice == "bool":
        return "bool", "False"
    if choice:
        return "str", None
    if "char" in kind:
        return "Optional[str]", "None"
    if count:
        return "Tuple[int, ...]", None
    if not given and "BRANT_UNKNOWN" in doc:
        return "Optional[int]", None
    return "int", "0"


def chosen(table, lines):
    """The lines of CHOICES and NAMES, for the structures of a table."""
    out, values = [], constants()
    for shown, choices in table.values():
        named = {field: prefix for field, prefix in choices.items() if prefix != "bool"}
        if named:
            out.append('    "%s": {' % shown)
            for field, prefix in named.items():
                out.append('        "%s": {' % field)
                if table is GIVEN:
                    out += lines(group(prefix, values))
                else:
                    out += lines([pair for one in prefix.split("|") for pair in group(one, values).items()])
                out.append("        },")
            out.append("    },")
    return out


def figures():
    """The text of figures.py."""
    values, found = constants(), {name: (doc, fields) for name, doc, fields in structures()}
    out = ['"""What users give to the library and get from it, as dataclasses.', "",
           "Fields have the names and units of the header's structures: times that a user gives are",
           "milliseconds (``_ms``) or microseconds (``_us``), times that were measured nanoseconds (``_ns``);",
           "sizes are bytes, and a page has 4096. A field that the library does not know yet is None. Of a",
           "structure that a user gives, 0 is the default of each number.", "",
           "Written by scripts/declared.py from include/brant.h; do not edit: make header.", '"""', "",
           "from __future__ import annotations", "", "from dataclasses import dataclass",
           "from typing import Dict, Optional, Tuple, Union", "", "#: As a time limit: none.",
           "NO_LIMIT = %d" % values["BRANT_NO_LIMIT"], "",
           "#: Of what a user gives, each dataclass's fields that are the name of a constant.",
           "CHOICES: Dict[str, Dict[str, Dict[str, int]]] = {"]
    out += chosen(GIVEN, lambda names: ['            "%s": %d,' % item for item in names.items()])
    out += ["}", "", "#: Of what the library fills: the name of each constant.",
            "NAMES: Dict[str, Dict[str, Dict[int, str]]] = {"]
    # Two states have one name where both sides have them (idle): the number tells them apart.
    out += chosen(FILLED, lambda names: ['            %d: "%s",' % (value, name) for name, value in names])
    out += ["}", ""]
    both = [(n, c, g, True) for n, (c, g) in GIVEN.items()] + [(n, c, g, False) for n, (c, g) in FILLED.items()]
    for name, shown, choices, given in both:
        doc, fields = found[name]
        out += ["", "@dataclass(frozen=True)", "class %s:" % shown]
        first = "%s The header's ``%s``." % (doc.split("\n")[0], name)
        text = wrapped(of_constants(first, ""), "    ", '    """')
        for more in doc.split("\n")[1:]:
            text += ["", *wrapped(of_constants(more, ""), "    ")]
        out += [*text[:-1], text[-1] + '"""', ""]
        for kind, field, count, about in fields:
            if field in ("size", "reserved"):
                continue
            choice = choices.get(field)
            shown_as = PYTHON_NAMES.get(field, field)
            if isinstance(kind, tuple) or "*" in kind and "char" not in kind:
                continue
            python, default = seen(field, kind, count, about, choice, given)
            about = of_constants(about, "")
            if choice and choice != "bool":
                names = group(choice, values)
                if given:
                    default = '"%s"' % next(n for n, v in names.items() if v == 0)
                about += " One of: %s." % ", ".join('"%s"' % n for n in names)
            for paragraph in about.split("\n"):
                out += wrapped(paragraph, "    #: ", "    #: ")
            out.append("    %s: %s%s" % (shown_as, python, " = %s" % default if given else ""))
        out.append("")
    out += ["", "#: What is given to the library.",
            "Given = Union[%s]" % ", ".join(shown for _, shown, _, g in both if g), ""]
    return "\n".join(out)


FILES = {os.path.join(PACKAGE, "_declared.py"): declared, os.path.join(PACKAGE, "figures.py"): figures}


def stale():
    """The files that are not what the header makes of them."""
    return [path for path, text in FILES.items() if not os.path.exists(path) or abi.read(path) != text()]


def main():
    old = stale()
    if "--check" in sys.argv[1:]:
        sys.exit("not up to date (make header): " + ", ".join(old) if old else 0)
    for path in old:
        with open(path, "w", encoding="utf-8") as file:
            file.write(FILES[path]())
        print(os.path.relpath(path, abi.ROOT), "written")


if __name__ == "__main__":
    main()
