"""The list in docs/abi.md: each function and type, stable or experimental, by section of the header.

`make abi` writes it, and the leg `header` of scripts/test compares it.
"""

import os

import abi
import doc_comments

PAGE = os.path.join(abi.ROOT, "docs", "abi.md")
BEGIN, END = "<!-- list: written by make abi -->\n", "<!-- end of the list -->\n"


def table():
    """The list, as the header has it now."""
    _, sections, items = doc_comments.parse()
    lines = ["| function or type | since | |", "|---|---|---|"]
    since = {symbol: node.removeprefix("BRANT_") for node, symbols, _ in abi.map_nodes() for symbol in symbols}
    for section in sections:
        for page in doc_comments.pages(items):
            if page.section == section.name:
                what = "experimental: " + page.experimental if page.experimental else "stable"
                lines.append("| `%s` | %s | %s |" % (page.name, since.get(page.name, ""), what))
    return "\n".join(lines) + "\n"


def parts():
    """The page before its list, the list, and the page after it."""
    before, _, rest = abi.read(PAGE).partition(BEGIN)
    found, _, after = rest.partition(END)
    return before + BEGIN, found, END + after


def write():
    before, _, after = parts()
    with open(PAGE, "w", encoding="utf-8") as file:
        file.write(before + table() + after)


def check(tally):
    tally.check(parts()[1] == table(), "docs/abi.md says of each function and type whether it is stable (if not: make abi)")
