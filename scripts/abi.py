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


def for_c(path):
    """What the header says to a C compiler, without comments and preprocessor lines."""
    text = without_comments(read(path))
    text = re.sub(r"^#ifdef __cplusplus$.*?^#(else|endif)\b", "", text, flags=re.M | re.S)
    # A line of the preprocessor goes on behind a backslash.
    return re.sub(r"^[ \t]*#(?:[^\n]*\\\n)*[^\n]*", " ", text, flags=re.M)


def header_functions(path=HEADER):
    """The functions that the header declares, in its order.

    Inside braces there are only struct members; a name directly before "(" at
    the top level, outside a preprocessor line, is a function.
    """
    text = for_c(path)
    while re.search(r"\{[^{}]*\}", text):
        text = re.sub(r"\{[^{}]*\}", " ", text)
    return re.findall(r"\b(brant_[A-Za-z0-9_]+)\s*\(", text)


def header_programs(path=HEADER):
    """The programs of the header's opening comment: {file name: text}."""
    comment = read(path).split("*/")[0]
    parts = re.split(r"^ \* -+ (\w+\.c) -+$", comment, flags=re.M)
    found = {}
    for name, lines in zip(parts[1::2], parts[2::2]):
        text = re.sub(r"^ \*(?:     )?", "", lines, flags=re.M).strip() + "\n"
        found[name] = text
    return found


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


RECORD = os.path.join(ROOT, "src", "capi", "brant.abi")


def header_structs(path=HEADER):
    """The structures that the header defines, in its order: [(name, [field])]."""
    text = for_c(path)
    structs = []
    for body, name in re.findall(r"typedef struct \w+ \{(.*?)\} (\w+);", text, re.S):
        fields = []
        # A function pointer's parameters have commas and names of their own.
        for member in body.split(";"):
            pointer = re.match(r"\s*[\w\s*]+\(\*(\w+)\)", member)
            plain = re.search(r"(\w+)\s*(?:\[\d+\])?\s*$", member)
            if pointer or plain:
                fields.append((pointer or plain)[1])
        structs.append((name, fields))
    return structs


def header_prototypes(path=HEADER):
    """The functions that the header declares, as text on one line: {name: prototype}."""
    text = for_c(path)
    while re.search(r"\{[^{}]*\}", text):
        text = re.sub(r"\{[^{}]*\}", " ", text)
    found = {}
    for declaration in text.split(";"):
        line = " ".join(declaration.split())
        name = re.search(r"\b(brant_[A-Za-z0-9_]+) ?\(", line)
        if name and not line.startswith("typedef"):
            found[name[1]] = line
    return found


def measured(compiler, work):
    """The ABI as the compiler sees it, a line each: sizes, offsets, constants, prototypes."""
    source = os.path.join(work, "abi.c")
    program = os.path.join(work, "abi")
    with open(source, "w", encoding="utf-8") as file:
        file.write('#include <stdio.h>\n#include "brant.h"\nint main(void)\n{\n')
        for macro in header_macros():
            if macro.startswith("BRANT_VERSION_"):  # changes with every release
                continue
            file.write('    printf("value %s %%lld\\n", (long long)(%s));\n' % (macro, macro))
        for name, fields in header_structs():
            file.write('    printf("size %s %%zu\\n", sizeof(%s));\n' % (name, name))
            for field in fields:
                file.write('    printf("field %s.%s %%zu %%zu\\n", offsetof(%s, %s), sizeof(((%s *)0)->%s));\n'
                           % (name, field, name, field, name, field))
        file.write("    return 0;\n}\n")
    subprocess.run([compiler, "-I", os.path.dirname(HEADER), "-o", program, source], check=True)
    out = subprocess.run([program], check=True, stdout=subprocess.PIPE, text=True).stdout
    prototypes = header_prototypes()
    return out.splitlines() + ["function " + prototypes[name] for name in header_functions()]


def record_key(line):
    """What a line of the record is about."""
    if line.startswith("function "):
        return re.search(r"\b(brant_\w+) ?\(", line)[0]
    return " ".join(line.split()[:2])


def recorded(path=RECORD):
    """The committed record, without its comments."""
    return [line for line in read(path).splitlines() if line and not line.startswith("#")]


def moved(old, new):
    """Lines of the old record that the new one lacks or has otherwise. A structure may grow at
    its end; nothing else may change."""
    now = {record_key(line): line for line in new}
    wrong = []
    for line in old:
        found = now.get(record_key(line))
        grown = (found and line.startswith("size ")
                 and int(found.split()[-1]) > int(line.split()[-1]))
        if found != line and not grown:
            wrong.append("recorded: %s\n   found: %s" % (line, found or "nothing"))
    return wrong


def padding(lines):
    """Structures with bytes that belong to no field: they would leak and compare unequal."""
    wrong, at, name, size = [], 0, None, 0
    for line in lines + ["size end 0"]:
        words = line.split()
        if words[0] == "size":
            if name and at != size:
                wrong.append("%s has %d bytes after its last field" % (name, size - at))
            name, size, at = words[1], int(words[2]), 0
        elif words[0] == "field":
            if int(words[2]) != at:
                wrong.append("%s: a hole of %d bytes before it" % (words[1], int(words[2]) - at))
            at = int(words[2]) + int(words[3])
    return wrong
