"""Which pages of some memory were written? userfaultfd finds them; the kernel needs 6.7."""

import mmap

import brant

memory = mmap.mmap(-1, 1 << 20)
with brant.Guest() as guest, brant.Tracker(guest) as tracker:
    guest.add_block("memory", memory)
    tracker.add_userfault()
    tracker.start()
    for page in (3, 4, 5, 200):
        memory[page * brant.PAGE_SIZE] = 1
    print(tracker.sync().found_pages, "pages were written:")
    for run in tracker.take():
        print("  pages %d to %d" % (run.first_page, run.first_page + run.pages - 1))
