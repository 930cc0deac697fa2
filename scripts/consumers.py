"""Who uses what `make install` has installed: CMake projects, C++ programs, readers of the manual
pages, Debian's package manager. Parts of the leg `install` of scripts/test.
"""

import glob
import gzip
import html.parser
import os
import re
import shutil

import abi
import packages
from runner import ROOT, built, have, run, tail

VERSION = abi.crate_version()
MAJOR = VERSION.split(".")[0]
SONAME = "libbrant.so." + MAJOR

# A C++ program: handles by a smart pointer, an exception beside a library that catches panics.
CPP = '''#include <brant.h>
#include <cstdio>
#include <memory>
#include <stdexcept>
struct Free { void operator()(brant_bitmap *b) const { brant_bitmap_free(b); } };
static std::unique_ptr<brant_bitmap, Free> bitmap(uint64_t bits)
{
    brant_bitmap *made = nullptr;
    brant_error *error = nullptr;
    if (int32_t code = brant_bitmap_new(bits, &made, &error)) {
        std::string why = std::string(brant_error_name(code)) + ": " + brant_error_message(error);
        brant_error_free(error);
        throw std::runtime_error(why);
    }
    return std::unique_ptr<brant_bitmap, Free>(made);
}
int main()
{
    auto b = bitmap(4096);
    if (brant_bitmap_set(b.get(), 7, 5, nullptr, nullptr))
        return 1;
    brant_params params = BRANT_INIT(brant_params);
    try {
        bitmap(UINT64_MAX);
    } catch (const std::runtime_error &e) {
        std::printf("%d bits, %d, caught %s\\n", int(brant_bitmap_count(b.get())), int(params.size == sizeof params), e.what());
        return 0;
    }
    return 1;
}
'''
CPP_SAYS = r"5 bits, 1, caught \S.*"

PROJECT = '''cmake_minimum_required(VERSION 3.13)
project(consumer C CXX)
find_package(brant %s REQUIRED)
add_executable(shared all.c)
target_link_libraries(shared PRIVATE brant::brant)
add_executable(static all.c)
target_link_libraries(static PRIVATE brant::brant-static)
add_executable(cpp main.cpp)
target_compile_features(cpp PRIVATE cxx_std_17)
target_link_libraries(cpp PRIVATE brant::brant)
add_executable(cpp_static main.cpp)
target_compile_features(cpp_static PRIVATE cxx_std_17)
target_link_libraries(cpp_static PRIVATE brant::brant-static)
'''


def write(path, text):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)


def of_reference():
    """The files of the reference pages, below the prefix."""
    names = [name for name, _ in abi.header_structs()] + abi.header_functions()
    # The handles, which are declared and never defined.
    names += [h for h in re.findall(r"^typedef struct \w+ (brant_\w+);", abi.read(abi.HEADER), re.M)]
    return (["share/man/man3/%s.3" % name for name in [*names, "brant"]]
            + ["share/doc/brant/html/%s.html" % name for name in [*names, "index"]])


def cpp(tally, work, env):
    """A C++ program by pkg-config, against the shared library."""
    compiler = "g++" if have("g++") else "c++"
    what = "a C++ program with the installed shared library"
    if not have(compiler):
        tally.skip(what, "there is no C++ compiler here")
        return
    write(os.path.join(work, "main.cpp"), CPP)
    ended = run("%s -std=c++17 -Wall -Wextra -Werror main.cpp $(pkg-config --cflags --libs brant) -o cpp && ./cpp"
                % compiler, cwd=work, merge=True, **env)
    tally.check(ended.good and re.fullmatch(CPP_SAYS, ended.out.strip()), what, ended.text)


def cmake(tally, work, prefix, all_c, says):
    """find_package(brant): both targets, C and C++; versions; a prefix that was moved."""
    what = "CMake"
    if not (have("c++") or have("g++")):
        tally.skip(what, "there is no C++ compiler here")
        return
    try:
        command = packages.cmake()
    except packages.Cannot as why:
        tally.skip(what, str(why))
        return
    source = os.path.join(work, "cmake")
    # What is found must not depend on where the files were made for.
    moved = os.path.join(work, "moved")
    shutil.copytree(prefix, moved, symlinks=True)
    write(os.path.join(source, "all.c"), all_c)
    write(os.path.join(source, "main.cpp"), CPP)

    def configured(project, build):
        write(os.path.join(source, "CMakeLists.txt"), project)
        return run([*command, "-S", source, "-B", build, "-DCMAKE_PREFIX_PATH=" + moved], 120, merge=True)

    build = os.path.join(work, "cmake-build")
    ended = configured(PROJECT % ".".join(VERSION.split(".")[:2]), build)
    if ended.good:
        ended = run([*command, "--build", build, "--parallel"], 300, merge=True)
    tally.check(ended.good, "CMake: find_package(brant) in a prefix that was moved", tail(ended.text))
    if ended.good:
        for program, expected, shared in (("shared", re.escape(says), True), ("static", re.escape(says), False),
                                          ("cpp", CPP_SAYS, True), ("cpp_static", CPP_SAYS, False)):
            path = os.path.join(build, program)
            ended = run([path], 60, merge=True)
            tally.check(ended.good and re.fullmatch(expected, ended.out.strip())
                        and (SONAME in abi.dynamic(path, "NEEDED")) == shared,
                        "CMake: the program `%s` finds its library" % program, ended.text)
    wrong = []
    for version, fits in (("", True), (VERSION + " EXACT", True), (MAJOR, True), ("%s...%d" % (VERSION, int(MAJOR) + 1), True),
                          ("%d.0" % (int(MAJOR) + 1), False), ("%s.9999" % MAJOR, False), ("9999 EXACT", False)):
        # Without a language CMake looks for no compiler.
        ended = configured("cmake_minimum_required(VERSION 3.19)\nproject(consumer NONE)\n"
                           "find_package(brant %s REQUIRED)\n" % version, os.path.join(work, "cmake-version"))
        shutil.rmtree(os.path.join(work, "cmake-version"), ignore_errors=True)
        if ended.good != fits or not fits and "version: %s" % VERSION not in ended.text:
            wrong.append("find_package(brant %s):\n%s" % (version, tail(ended.text, 12)))
    tally.check(not wrong, "CMake: versions of the same soname that are not newer fit", "\n".join(wrong))


class Links(html.parser.HTMLParser):
    """Where a page leads, and the anchors that it has; complains of tags that do not match."""

    def __init__(self):
        super().__init__()
        self.links, self.anchors, self.open, self.wrong = [], set(), [], []

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if "href" in attrs:
            self.links.append(attrs["href"])
        if "id" in attrs:
            self.anchors.add(attrs["id"])
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.wrong.append("</%s>" % tag)


def reference(tally, prefix):
    """The reference pages: a manual page and an HTML page for each name, clean, found by man."""
    pages = sorted(glob.glob(os.path.join(prefix, "share", "man", "man3", "*.3")))
    if have("groff"):
        ended = run(["groff", "-z", "-ww", "-man", "-Tutf8", *pages], 120, merge=True)
        tally.check(ended.good and not ended.out and pages, "groff has no warning for %d manual pages" % len(pages),
                    tail(ended.text, 20))
    else:
        tally.skip("the manual pages' source", "there is no groff here")
    lost = []
    for name in abi.header_functions():
        text = abi.read(os.path.join(prefix, "share", "man", "man3", name + ".3"))
        if not re.search(r"^\.SH NAME\n%s \\- \S" % name, text, re.M) or "%s(" % name not in text \
                or ".SH STABILITY" not in text:
            lost.append(name)
    tally.check(not lost, "the manual page of each function has its name, prototype and stability", "\n".join(lost))
    if have("man"):
        ended = run(["man", "brant_outgoing_start"], 60, merge=True, MANPATH=os.path.join(prefix, "share", "man"),
                    MANPAGER="cat", MANWIDTH="100", LC_ALL="C.UTF-8")
        tally.check(ended.good and "int32_t brant_outgoing_start(struct brant_outgoing *outgoing," in ended.out,
                    "man brant_outgoing_start, with the prefix in MANPATH", ended.text)
    else:
        tally.skip("man brant_outgoing_start", "there is no man here")
    place = os.path.join(prefix, "share", "doc", "brant", "html")
    found = {}
    for path in glob.glob(os.path.join(place, "*.html")):
        found[os.path.basename(path)] = page = Links()
        page.feed(abi.read(path))
        page.close()
    lost = ["%s: %s" % (name, what) for name, page in found.items() for what in page.wrong]
    for name, page in found.items():
        for link in page.links:
            there, _, anchor = link.partition("#")
            if (there or name) not in found or anchor and anchor not in found[there or name].anchors:
                lost.append("%s: %s" % (name, link))
    tally.check(found and not lost, "the tags and links of %d HTML pages" % len(found), "\n".join(lost[:20]))


def deb(tally, work):
    """The Debian packages: what is in them, installed into an empty root and removed again."""
    what = "Debian packages"
    lost = [tool for tool in ("dpkg", "dpkg-deb", "dpkg-shlibdeps", "dpkg-architecture") if not have(tool)]
    if lost:
        tally.skip(what, "there is no %s here" % ", ".join(lost))
        return
    if not built(tally, "deb", "DEB_FLAGS=-Zgzip -z1"):
        return
    library, development = (glob.glob(os.path.join(ROOT, "target", "deb", pattern)) for pattern in
                            ("libbrant%s_*.deb" % MAJOR, "libbrant-dev_*.deb"))
    if not tally.check(len(library) == 1 and len(development) == 1, "make deb makes two packages",
                       "%s %s" % (library, development)):
        return
    root = os.path.join(work, "root")
    for place in ("var/lib/dpkg/info", "var/lib/dpkg/updates", "var/lib/dpkg/triggers", "etc"):
        os.makedirs(os.path.join(root, place))
    write(os.path.join(root, "var", "lib", "dpkg", "status"), "")

    def dpkg(*arguments):
        # The C library is the machine's, and not in the empty root.
        return run(["dpkg", "--root=" + root, "--force-depends", "--force-not-root", "--force-script-chrootless",
                    "--log=/dev/null", *arguments], 120, merge=True, LC_ALL="C")

    def there():
        return sorted(os.path.relpath(os.path.join(d, f), root) for d, _, names in os.walk(root) for f in names
                      if not os.path.relpath(d, root).startswith(("var", "etc")))

    ended = dpkg("-i", library[0], development[0])
    files = there()
    lib = re.search(r"^(usr/lib/\S+)/libbrant.a$", "\n".join(files), re.M)
    if not tally.check(ended.good and lib, "dpkg installs both into an empty root",
                       ended.text + "\n".join(files[:20])):
        return
    lib = lib[1]
    pages = [os.path.basename(page) for page in of_reference() if page.endswith(".3")]
    expected = {"%s/%s" % (lib, name) for name in (SONAME, "libbrant.so." + VERSION, "libbrant.so", "libbrant.a",
                                                   "pkgconfig/brant.pc", "cmake/brant/brantConfig.cmake",
                                                   "cmake/brant/brantConfigVersion.cmake")}
    expected |= {"usr/include/brant.h"} | {"usr/share/man/man3/%s.gz" % page for page in pages}
    expected |= {"usr/share/doc/libbrant-dev/html/" + os.path.basename(page)
                 for page in of_reference() if page.endswith(".html")}
    expected |= {"usr/share/doc/%s/%s" % (name, file) for name in ("libbrant" + MAJOR, "libbrant-dev")
                 for file in ("copyright", "changelog.gz")}
    wrong = expected ^ set(files)
    tally.check(not wrong, "their files are what they ought to be", "\n".join(sorted(wrong)))
    said = run(["dpkg-query", "--admindir=" + os.path.join(root, "var/lib/dpkg"), "-L", "libbrant" + MAJOR], 60, merge=True)
    owned = {line.lstrip("/") for line in said.out.split() if "/lib/" in line and "libbrant" in line}
    tally.check(owned == {"%s/%s" % (lib, SONAME), "%s/libbrant.so.%s" % (lib, VERSION)},
                "libbrant%s has the library alone, so that two versions of it can be installed" % MAJOR, "\n".join(owned))
    fields = run(["dpkg-deb", "--field", library[0]], 60).out + run(["dpkg-deb", "--field", development[0]], 60).out
    tally.check(re.search(r"^Depends: .*libc6 \(>= [\d.]+\)", fields, re.M)
                and "Depends: libbrant%s (= %s)" % (MAJOR, VERSION) in fields,
                "they depend on the C library and on each other, with versions", fields)
    sums = run("md5sum --quiet -c %s/var/lib/dpkg/info/libbrant*.md5sums" % root, 60, cwd=root, merge=True)
    owners = run(["dpkg-deb", "--contents", development[0]], 60).out.splitlines()
    tally.check(sums.good and not [line for line in owners if "root/root" not in line or re.match(r"-..x|.....w|........w", line)
                                   and not line.startswith("l")],
                "their checksums are right, all is root's, nothing is executable", sums.text)
    symbols = abi.read(glob.glob(os.path.join(root, "var/lib/dpkg/info/libbrant%s*.symbols" % MAJOR))[0])
    lost = [name for name in abi.header_functions() if " %s@BRANT_" % name not in symbols]
    with gzip.open(os.path.join(root, "usr/share/man/man3/brant.3.gz"), "rt", encoding="utf-8") as file:
        tally.check(not lost and file.read().startswith(".TH brant 3"),
                    "the library's package names all symbols; manual pages are packed", "\n".join(lost))
    ended = dpkg("--purge", "libbrant-dev", "libbrant" + MAJOR)
    tally.check(ended.good and not there(), "dpkg removes them, and no file is left", ended.text + "\n".join(there()[:20]))
