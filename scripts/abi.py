"""What the header declares, what the version map lists and what a library
exports: read here, compared by scripts/test, appended by scripts/map.
"""

import os
import re
import subprocess

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
HEADER = os.path.join(ROOT, "include", "brant.h")
MAP = os.path.join(ROOT, "src", "capi", "brant.map")


def read(path):
    with open(path, encoding="utf-8") as file:
        return file.read()


def crate_version():
    """The version in Cargo.toml, as text."""
    return re.search(r'^version = "([^"]+)"', read(os.path.join(ROOT, "Cargo.toml")), re.M)[1]


def without_comments(text):
    return re.sub(r"//[^\n]*", " ", re.sub(r"/\*.*?\*/", " ", text, flags=re.S))


def header_functions(path=HEADER):
    """The functions that the header declares, in its order.

    Inside braces there are only struct members; a name directly before "(" at
    the top level, outside a preprocessor line, is a function.
    """
    text = re.sub(r"^[ \t]*#[^\n]*", " ", without_comments(read(path)), flags=re.M)
    text = text.replace('extern "C" {', " ")
    while re.search(r"\{[^{}]*\}", text):
        text = re.sub(r"\{[^{}]*\}", " ", text)
    return re.findall(r"\b(brant_[A-Za-z0-9_]+)\s*\(", text)


def header_macros(path=HEADER):
    """The constants that the header defines, in its order."""
    return re.findall(r"^#define (BRANT_[A-Z0-9_]+) \S", read(path), re.M)


def map_nodes(path=MAP):
    """The version map as a list of (node, [symbols], parent or None)."""
    nodes = []
    text = without_comments(re.sub(r"^\s*#[^\n]*", " ", read(path), flags=re.M))
    for node, body, parent in re.findall(r"([\w.]+)\s*\{(.*?)\}\s*([\w.]*)\s*;", text, re.S):
        body = re.sub(r"\blocal:\s*\*;", " ", body).replace("global:", " ")
        nodes.append((node, [s.strip() for s in body.split(";") if s.strip()], parent or None))
    return nodes


def exported(library):
    """What a shared library defines for others: {symbol: version or None}."""
    out = subprocess.run(["nm", "-D", "--defined-only", "--with-symbol-versions", library],
                         check=True, stdout=subprocess.PIPE, text=True).stdout
    symbols = {}
    for line in out.splitlines():
        kind, name = line.split()[-2:]
        if kind == "A":  # the version nodes themselves
            continue
        symbol, _, version = name.partition("@")
        symbols[symbol] = version.lstrip("@") or None
    return symbols


def dynamic(library, tag):
    """The values of `tag` (SONAME, NEEDED) in a library's dynamic section."""
    out = subprocess.run(["readelf", "-dW", library], check=True,
                         stdout=subprocess.PIPE, text=True).stdout
    return re.findall(r"\(%s\).*\[(.*?)\]" % tag, out)
