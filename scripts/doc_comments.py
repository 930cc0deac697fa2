"""What include/brant.h says of each function, type and constant: its doc comments, parsed.

scripts/reference makes pages of it, scripts/abi_page.py the list of what is stable. Nothing is
compiled here; abi.py has the declarations as numbers.
"""

import dataclasses
import os
import re
import textwrap

import abi

BASELINE = os.path.join(abi.ROOT, "src", "capi", "baseline", "brant.h")


@dataclasses.dataclass
class Member:
    """A field of a structure."""
    name: str
    declaration: str
    text: str


@dataclasses.dataclass
class Item:
    """A function, type or constant: `kind` is "function", "structure", "handle" or "constant"."""
    kind: str
    name: str
    declaration: str
    text: str
    section: str
    # The last release's header, the baseline of the ABI, does not have it.
    new: bool = False
    members: list = dataclasses.field(default_factory=list)
    # On the page of a function or type: the constants that are explained there.
    constants: list = dataclasses.field(default_factory=list)

    @property
    def experimental(self):
        """What may change in an item that is experimental, or None for a stable one."""
        said = re.search(r"^Experimental: (.+?)(?:\n\n|\Z)", self.text, re.M | re.S)
        if said:
            return " ".join(said[1].split())
        return "new since the last release." if self.new else None

    @property
    def first_sentence(self):
        first = " ".join(self.text.split("\n\n")[0].split())
        end = re.search(r"(?<![.][a-z])[.:](?= |$)", first)
        return (first[:end.start()] if end else first).rstrip(".:")


@dataclasses.dataclass
class Section:
    """A part of the header, with what its heading says."""
    name: str
    text: str


def inside(comment):
    """The text of a comment, without its stars."""
    lines = comment.strip().removeprefix("/**").removeprefix("/*").removesuffix("*/").splitlines()
    lines = [re.sub(r"^\s*\* ?", "", line).rstrip() for line in lines]
    first, rest = lines[0].strip(), lines[1:]
    return "\n".join([first, *rest]).strip()


def members(body):
    """The fields of a structure's body, each with its comment."""
    found = []
    for comment, declaration in re.findall(r"(/\*\*.*?\*/)?\s*([^;{}/]+(?:\([^;]*\))?);", body, re.S):
        # The lines of a function pointer keep their places to each other.
        declaration = textwrap.dedent("    " + declaration.strip())
        name = (re.search(r"\(\*(\w+)\)", declaration) or re.search(r"(\w+)\s*(?:\[\w+\])?$", declaration))[1]
        found.append(Member(name, declaration, inside(comment) if comment else ""))
    return found


# What stands at the start of a line, one after another, in the header's body.
TOKEN = re.compile(
    r"(?P<heading>/\* [=-]{20,}\n(?P<head>.*?)[=-]{20,} \*/)"
    r"|(?P<comment>/\*\*.*?\*/)"
    r"|#define (?P<constant>BRANT_\w+)(?P<value>[( ][^\n]*)"
    r"|#[^\n]*"
    r"|typedef struct (?P<structure>brant_\w+) \{(?P<body>.*?)\n\} \w+;"
    r"|typedef struct (?P<handle>brant_\w+) \w+;"
    r"|(?P<forward>struct brant_\w+;)"
    r"|(?P<function>^[a-z][\w ]*[ *](?P<name>brant_\w+)\([^;]*\);)",
    re.S | re.M)


def parse(path=abi.HEADER, baseline=BASELINE):
    """The header's opening comment, its sections and its items, in its order."""
    old = set(re.findall(r"\b(?:brant|BRANT)_\w+", abi.without_comments(abi.read(baseline))))
    text = abi.read(path)
    opening, _, body = text.partition("#ifndef BRANT_H\n")
    # What C++ sees of BRANT_INIT is its definition, and no interface.
    body = re.sub(r"^#ifdef __cplusplus\nnamespace.*?^#else\n", "", body, flags=re.M | re.S)
    sections, items, comment = [], [], ""
    for token in TOKEN.finditer(body):
        found = token.groupdict()
        if found["heading"]:
            title, _, about = inside("/*" + found["head"] + "*/").partition("\n")
            sections.append(Section(title.strip(), about.strip()))
        elif found["comment"]:
            comment = inside(found["comment"])
            continue
        else:
            section = sections[-1].name if sections else ""
            if found["constant"]:
                # A macro with parameters is spelled without a space.
                items.append(Item("constant", found["constant"], token[0], comment, section))
            elif found["structure"]:
                items.append(Item("structure", found["structure"], token[0], comment, section,
                                  members(found["body"])))
            elif found["handle"]:
                items.append(Item("handle", found["handle"], token[0], comment, section))
            elif found["function"]:
                items.append(Item("function", found["name"], token[0], comment, section))
            for item in items[-1:]:
                item.new = item.name not in old
        comment = ""
    return inside(opening), sections, items


def undocumented(items):
    """The items and fields without a doc comment."""
    lost = [item.name for item in items if not item.text]
    lost += ["%s.%s" % (item.name, member.name) for item in items
             for member in item.members if not member.text]
    return lost


def pages(items):
    """The items that have a page of their own. Each constant stands on the page of the function or
    type that its comment names first, or else on the next one's in the header."""
    pages = [item for item in items if item.kind != "constant"]
    by_name = {page.name: page for page in pages}
    for page in pages:
        page.constants = []
    waiting = []
    for item in items:
        if item.kind != "constant":
            item.constants += waiting
            waiting = []
            continue
        named = re.match(r"(?:In|As the vCPU of) `(brant_\w+)", item.text)
        page = by_name.get(named[1]) if named else None
        if page:
            page.constants.append(item)
        else:
            waiting.append(item)
    return pages
