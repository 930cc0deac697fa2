"""The crate's pages, as rustdoc has made them for users: each public type stands in an example that
cargo test runs. A part of the leg `lint`.
"""

import glob
import html
import os
import re

from runner import ROOT

PLACE = os.path.join(os.environ.get("CARGO_TARGET_DIR") or os.path.join(ROOT, "target"), "doc", "brant")
KINDS = "struct", "enum", "trait", "union"
# Types that stand in no example. The first three need hardware or a back end; the others wait for
# one. The list only gets shorter.
BARE = {
    "device::vfio::Abilities", "device::vhost_user::VhostUserDevice", "dirty::kvm::log::KvmLog",
    "migrate::steering::forecast::Outlook",
}


def types():
    """The pages of all public types, from the crate's list of items."""
    with open(os.path.join(PLACE, "all.html"), encoding="utf-8") as file:
        return sorted(set(re.findall(r'href="((?:[\w/]+/)?(?:%s)\.\w+\.html)"' % "|".join(KINDS), file.read())))


def name_of(page):
    return re.sub(r"\w+\.(\w+)\.html$", r"\1", page).replace("/", "::")


def words():
    """All words of all examples that run."""
    found = set()
    for page in glob.glob(os.path.join(PLACE, "**", "*.html"), recursive=True):
        with open(page, encoding="utf-8") as file:
            for code in re.findall(r'<pre class="rust rust-example-rendered">(.*?)</pre>', file.read(), re.S):
                found |= set(re.findall(r"\w+", html.unescape(re.sub("<[^>]+>", "", code))))
    return found


def without_example():
    """Public types that no example names, and the number of public types."""
    names, known = [name_of(page) for page in types()], words()
    return [name for name in names if name.split("::")[-1] not in known], len(names)


def check(tally):
    lost, number = without_example()
    wrong = ["no example names " + name for name in sorted(set(lost) - BARE)]
    wrong += ["an example names %s: take it off the list" % name for name in sorted(BARE - set(lost))]
    tally.check(number > 50 and not wrong, "%d of %d public Rust types stand in an example that runs"
                % (number - len(lost), number), "\n".join(wrong))


if __name__ == "__main__":
    print("\n".join(without_example()[0]))
