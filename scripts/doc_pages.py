"""The pages for people, as a part of the leg `lint`: links lead somewhere, examples in C compile, and
the lists of modules and legs are whole.
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


def check(tally):
    links(tally)
    compiled(tally)
    source_maps(tally)
