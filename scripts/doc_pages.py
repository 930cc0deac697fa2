"""The pages for people, as a part of the leg `lint`: links lead somewhere, examples in C compile, the
table of contents is whole, and tables that list what the header has leave nothing out.

scripts/site makes a site of the same pages.
"""

import glob
import os
import re
import sys
import tempfile

import abi
from runner import ROOT, run

DOCS = os.path.join(ROOT, "docs")
# What the examples of a page take as given: tests/pages/gate.h is for docs/gate.md.
GIVEN = os.path.join(ROOT, "tests", "pages")
# Of a page's examples each begins one of these at the start of a line, or is statements.
FILE_SCOPE = re.compile(r"^(#include|static |typedef |extern |struct \w+ \{|int main\()", re.M)


def without_code(text):
    return re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)


def anchors(text):
    """The names by which a page's headings are linked to, as forges make them."""
    found = set()
    for heading in re.findall(r"^#+ +(.+?) *$", without_code(text), re.M):
        heading = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).replace("`", "").lower()
        found.add(re.sub(r"[^\w\- ]", "", heading).replace(" ", "-"))
    return found


def links_of(text):
    """Where a page's links lead, those to other places of the net left out."""
    return [t for t in re.findall(r"\]\(([^)\s]+)\)", without_code(text)) if not re.match(r"[a-z]+:", t)]


def links(tally):
    listed = run(["git", "ls-files", "-z", "*.md"])
    names = listed.out.split("\0")[:-1] if listed.good else []
    if not names:
        tally.skip("links between the pages", "this is no clone: git does not list the files")
        return
    lost = []
    for name in names:
        path = os.path.join(ROOT, name)
        for target in links_of(abi.read(path)):
            where, _, anchor = target.partition("#")
            there = os.path.normpath(os.path.join(os.path.dirname(path), where)) if where else path
            if not os.path.exists(there):
                lost.append("%s: %s" % (name, target))
            elif anchor and anchor not in anchors(abi.read(there)):
                lost.append("%s: %s has no such heading" % (name, target))
    tally.check(not lost, "every link of %d pages leads somewhere" % len(names), "\n".join(lost))


def contents(tally):
    """Each page of docs/ stands once in the site's contents and in the index."""
    pages = sorted(set(os.listdir(DOCS)) - {"SUMMARY.md"})
    pages = [name for name in pages if name.endswith(".md")]
    summary = [t for t in links_of(abi.read(os.path.join(DOCS, "SUMMARY.md"))) if "/" not in t]
    lost = ["docs/SUMMARY.md has %s %d times" % (name, summary.count(name))
            for name in pages if summary.count(name) != 1]
    index = {t.partition("#")[0] for t in links_of(abi.read(os.path.join(DOCS, "README.md")))}
    lost += ["docs/README.md does not name %s" % name for name in pages if name not in index | {"README.md"}]
    tally.check(not lost, "each of %d pages of docs/ stands in its contents and in its index" % len(pages),
                "\n".join(lost))


def examples(text):
    """The C blocks of a page, each with its line number."""
    return [(text[:found.start(1)].count("\n") + 1, found[1])
            for found in re.finditer(r"^```c\n(.*?)^```$", text, re.M | re.S)]


def translation_unit(page, blocks):
    """A page's examples as one C file, in their order, with the page's own line numbers. Statements get a
    function each."""
    given = os.path.join(GIVEN, page[:-3] + ".h")
    parts = ["#include <brant.h>", "#include <linux/kvm.h>", "#include <stdio.h>", "#include <string.h>"]
    if os.path.exists(given):
        parts.append('#include "%s"' % given)
    for number, (line, code) in enumerate(blocks):
        place = '#line %d "docs/%s"' % (line, page)
        if FILE_SCOPE.search(code):
            parts += [place, code]
        else:
            parts += ["void example_%d(void)\n{" % number, place, code, "}"]
    return "\n".join(parts) + "\n"


def compiled(tally):
    """Every C example of docs/ compiles. README.md's program and the header's are compiled and run by
    other legs."""
    compiler = os.environ.get("CC") or "cc"
    number, wrong = 0, []
    with tempfile.TemporaryDirectory() as work:
        for path in sorted(glob.glob(os.path.join(DOCS, "*.md"))):
            page = os.path.basename(path)
            blocks = examples(abi.read(path))
            if not blocks:
                continue
            number += len(blocks)
            source = os.path.join(work, "page.c")
            with open(source, "w", encoding="utf-8") as file:
                file.write(translation_unit(page, blocks))
            ended = run([compiler, "-fsyntax-only", "-std=gnu11", "-Wall", "-Wextra", "-Werror", "-Wno-unused",
                         "-Wno-missing-field-initializers", "-I", os.path.dirname(abi.HEADER), source], merge=True)
            if not ended.good:
                wrong.append(ended.text)
    tally.check(number > 10 and not wrong, "%d examples in C of docs/ compile" % number, "\n".join(wrong))


def source_maps(tally):
    """docs/architecture.md and CONTRIBUTING.md name each module and each leg."""
    page = abi.read(os.path.join(DOCS, "architecture.md"))
    modules = [os.path.basename(os.path.dirname(m)) for m in
               sorted(glob.glob(os.path.join(ROOT, "src", "*", "mod.rs")))]
    lost = [m for m in modules if "| `src/%s` |" % m not in page]
    tally.check(not lost, "docs/architecture.md says what each of %d modules is" % len(modules), "\n".join(lost))
    page = abi.read(os.path.join(ROOT, "CONTRIBUTING.md"))
    legs = re.findall(r"^(\w+) ", run([sys.executable, os.path.join("scripts", "test"), "--list"]).out, re.M)
    lost = [name for name in legs if "| `%s` |" % name not in page]
    tally.check(legs and not lost, "CONTRIBUTING.md says what each of %d legs checks" % len(legs), "\n".join(lost))


def header_tables(tally):
    """docs/operations.md has a row for each figure of a migration and each state, and none too many."""
    page = abi.read(os.path.join(DOCS, "operations.md"))
    fields = dict(abi.header_structs())
    wrong = []
    for structure, expected in (("brant_stats", fields["brant_stats"][1:]),
                                ("brant_lane_stats", fields["brant_lane_stats"][1:])):
        begin, end = "<!-- fields: %s -->" % structure, "<!-- end of %s -->" % structure
        part = page.split(begin)[1].split(end)[0] if begin in page and end in page else ""
        named = [name for cell in re.findall(r"^\| ([^|]+) \|", part, re.M) for name in re.findall(r"`(\w+)`", cell)]
        wrong += ["docs/operations.md: %s.%s has %d rows" % (structure, name, named.count(name))
                  for name in expected if name != "reserved" and named.count(name) != 1]
        wrong += ["docs/operations.md: %s has no field %s" % (structure, name) for name in named if name not in expected]
    states = [m for m in abi.header_macros() if re.match(r"BRANT_(SOURCE|DESTINATION|E)_", m)]
    tables = "".join(re.findall(r"^<!-- (?:states|codes) -->$(.*?)^## ", page, re.M | re.S))
    rows = re.findall(r"^\| `(BRANT_\w+)`", tables, re.M)
    wrong += ["docs/operations.md: %s begins %d rows" % (name, rows.count(name)) for name in states if rows.count(name) != 1]
    wrong += ["docs/operations.md: there is no %s" % name for name in rows if name not in states]
    tally.check(not wrong, "docs/operations.md has a row for each figure, state and code of the header",
                "\n".join(wrong))


# What is planned and described, and what belongs to no program in C.
NOT_IN_HEADER = {"BRANT_0", "BRANT_E_UNTRUSTED", "brant_tls", "brant_part", "brant_transport", "brant_x_new", "brant_x_free",
                 "brant_tracker_add_x", "brant_outgoing_start_transports", "brant_incoming_start_transports"}


def names(tally):
    """A function, type or constant that a page or a comment of the header names is in the header."""
    known = set(re.findall(r"\b(?:brant|BRANT)_\w+", abi.without_comments(abi.read(abi.HEADER))))
    # Names in the environment are the scripts', the package's, and the Rust tests'.
    paths = glob.glob(os.path.join(ROOT, "scripts", "*")) + glob.glob(os.path.join(ROOT, "bindings", "python", "brant", "*.py"))
    environment = {name for path in paths if os.path.isfile(path) for name in re.findall(r"\bBRANT_\w+", abi.read(path))}
    environment |= set(re.findall(r"BRANT_\w+", run(["git", "grep", "-hoE", r'var(_os)?\("BRANT_\w+']).out))
    lost = []
    for name in ["include/brant.h", *run(["git", "ls-files", "*.md"]).out.split()]:
        found = set(re.findall(r"\b(?:brant|BRANT)_\w*[a-zA-Z0-9]\b(?!_)", abi.read(os.path.join(ROOT, name))))
        lost += ["%s names %s" % (name, word) for word in sorted(found - known - environment - NOT_IN_HEADER)]
    tally.check(not lost, "each function, type and constant that a page names is in the header", "\n".join(lost))


def check(tally):
    links(tally)
    names(tally)
    contents(tally)
    compiled(tally)
    source_maps(tally)
    header_tables(tally)
