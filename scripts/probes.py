"""The static probes of the library against docs/tracing.md: a part of the leg `symbols`."""

import os
import re

import abi
from runner import ROOT, run

PAGE = os.path.join("docs", "tracing.md")


def of_library(library):
    """{name: number of arguments}, and whether each place of a probe agrees, by the ELF notes."""
    notes = run(["readelf", "--notes", "--wide", library], 60).out
    found, wrong = {}, []
    for provider, name, arguments in re.findall(
            r"Provider: (\S*)\n\s+Name: (\S*)\n\s+Location: [^\n]*\n\s+Arguments: ?([^\n]*)", notes):
        number = len(re.findall(r"-?\d+@", arguments))
        if provider != "brant":
            # The C library's own, in a program that is linked statically.
            continue
        if found.setdefault(name, number) != number:
            wrong.append("%s has %d and %d arguments" % (name, found[name], number))
    return found, wrong


def of_page():
    """{name: number of arguments}, and what is wrong with a line of bpftrace."""
    found, wrong = {}, []
    for name, arguments, line in re.findall(r"^\| `(\w+)` \| ([^|]+) \| [^|]+ \| `(.+)` \|$",
                                            abi.read(os.path.join(ROOT, PAGE)), re.M):
        found[name] = number = len(arguments.split(","))
        if "bpftrace -e '" not in line or "usdt:LIB:brant:%s " % name not in line or line.count("'") != 2:
            wrong.append("%s: %s" % (name, line))
        for clause in re.findall(r"usdt:LIB:brant:(\w+)[^{]*\{(.*?)\}", line):
            if clause[0] == name and any(int(a) >= number for a in re.findall(r"\barg(\d)", clause[1])):
                wrong.append("%s has %d arguments: %s" % (name, number, line))
    return found, wrong


def check(tally, library):
    there, wrong = of_library(library)
    page, lines = of_page()
    differ = ["%s: %s arguments in the library, %s on the page" % (name, there.get(name), page.get(name))
              for name in sorted(set(there) | set(page)) if there.get(name) != page.get(name)]
    tally.check(there and not wrong and not differ,
                "the library's %d probes are those of %s, with as many arguments" % (len(there), PAGE),
                "\n".join(wrong + differ))
    tally.check(page and not lines, "%s has a line of bpftrace for each" % PAGE, "\n".join(lines))
    ended = run(["readelf", "-SW", library], 60).out
    tally.check(re.search(r"\.note\.stapsdt +NOTE", ended) and re.search(r"\.stapsdt\.base +PROGBITS +\w+ \w+ \w+ \w+ +\w*A", ended),
                "they survive linking and stripping, with their base", ended)
