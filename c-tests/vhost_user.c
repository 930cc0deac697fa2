/*
 * A guest whose disks are other processes. Two back ends that speak vhost-user (memory table, log
 * in shared memory, features, stop of a ring) write guest memory through its descriptors, and mark
 * their writes in brant's log. The guest migrates while they write, and all of it arrives.
 *
 * The guest has only memfds, and only the back ends write to them, so a missed write of theirs is a
 * page that differs. Back ends that do not log show that this is noticed. Needs no KVM.
 */
#include "vhost/guest.h"

/* Takes all that is pending, and copies it. */
static void copy_taken(brant_tracker *tracker, struct guest *copy)
{
    size_t count;

    do {
        brant_run runs[64];

        must(brant_tracker_take(tracker, runs, 64, &count, &e));
        for (size_t i = 0; i < count; i++)
            memcpy(copy->host[runs[i].block] + runs[i].first_page * PAGE, runs[i].host,
                   runs[i].pages * PAGE);
    } while (count);
}

/* Rounds of syncs while they write, with a copy that follows; then they stop. */
static void tracker_follows(void)
{
    struct guest g, copy;
    struct vmm v = { .guest = &g };
    brant_tracker *tracker;
    brant_tracker_stats stats = { .size = sizeof stats };
    brant_sync sync = { .size = sizeof sync };
    uint64_t vhost = 0, others = 0;

    guest_make(&g, 2, NULL, NULL);
    guest_make(&copy, 2, NULL, NULL);
    tracker = track(&g, &v);
    tell_memory(&g);
    must(brant_tracker_start(tracker, BRANT_START_ALL, &e));
    rings(true);
    for (int round = 0; round < 50; round++) {
        if (round == 49)
            rings(false);
        must(brant_tracker_sync(tracker, BRANT_SYNC_RUNNING, &sync, &e));
        vhost += sync.vhost_pages;
        others += sync.kvm_pages + sync.reported_pages + sync.vfio_pages;
        copy_taken(tracker, &copy);
        if (round < 49)
            writes_wait(20);
    }
    ok(vhost > 1000 && others == 0, "syncs find what back ends write, and count it as theirs");
    equal(differ(&g, &copy), 0, "a copy that follows them misses nothing");
    must(brant_tracker_get_stats(tracker, &stats, &e));
    equal(stats.stray_marks, 0, "no bit was outside of memory");
    must(brant_tracker_stop(tracker, &e));
    ok(v.logs_on == 1 && v.logs_off == 1, "logging was switched on once, and off once");
    brant_tracker_free(tracker);
    guest_free(&g);
    guest_free(&copy);
}

/* Two back ends share one log. One of them is removed while the other goes on, and later another
 * one is added in its place. */
static void one_of_two_is_removed(void)
{
    enum { REMOVED = 20, ADDED = 40, ROUNDS = 60 };
    struct guest g, copy;
    struct vmm v = { .guest = &g };
    brant_tracker *tracker;
    bool ended = false;

    guest_make(&g, 2, NULL, NULL);
    guest_make(&copy, 2, NULL, NULL);
    tracker = track(&g, &v);
    tell_memory(&g);
    must(brant_tracker_start(tracker, BRANT_START_ALL, &e));
    rings(true);
    for (int round = 0; round < ROUNDS; round++) {
        if (round == REMOVED) {
            /* Its ring stops, and it ends. What it marked since the last sync is in the log. */
            writes_wait(20);
            ended = set_ring(&disks[1], GET_VRING_BASE, 0) == 0 && disk_end(&disks[1]) == 0;
        }
        if (round == ADDED) {
            disk_start(&disks[1], 1);
            tell_memory_to(&g, 1);
            if (give_log(&v, 1) || set_ring(&disks[1], SET_VRING_ENABLE, 1))
                bail("the new back end does not log");
        }
        if (round == ROUNDS - 1)
            rings(false);
        must(brant_tracker_sync(tracker, BRANT_SYNC_RUNNING, NULL, &e));
        copy_taken(tracker, &copy);
        if (round < ROUNDS - 1)
            writes_wait(20);
    }
    ok(ended, "a back end that shares the log is removed while the other writes");
    equal(differ(&g, &copy), 0, "a copy misses nothing of it, of the other, and of one that came");
    must(brant_tracker_stop(tracker, &e));
    ok(v.logs_on == 1 && v.logs_off == 1, "brant need not be told of it");
    brant_tracker_free(tracker);
    guest_free(&g);
    guest_free(&copy);
}

/* A bitmap that the VMM has fetched itself, from a DMA mapping that it removes or from another log.
 */
static void bitmap_marked(void)
{
    struct guest g;
    brant_tracker *tracker;
    /* Page 70, pages 126 to 129, and one beyond the given number of pages. */
    uint64_t words[3] = { 0, 3ull << 62 | 1ull << 6, 3 | 1ull << 40 };
    uint64_t first = blocks[1].gpa - 70 * PAGE;
    brant_tracker_stats stats = { .size = sizeof stats };
    brant_run runs[8];
    size_t count;
    bool good;

    guest_make(&g, 2, NULL, NULL);
    must(brant_tracker_new(g.guest, NULL, &tracker, &e));
    brant_tracker_mark_bitmap(tracker, first, words, 168);
    must(brant_tracker_start(tracker, BRANT_START_CLEAN, &e));
    brant_tracker_mark_bitmap(tracker, first, words, 168);
    /* An address without memory, the highest that there is. */
    brant_tracker_mark_bitmap(tracker, 0xfffffffffffff000, words, 192);
    must(brant_tracker_sync(tracker, BRANT_SYNC_RUNNING, NULL, &e));
    must(brant_tracker_take(tracker, runs, 8, &count, &e));
    good = count == 2 && runs[0].block == 1 && runs[0].first_page == 0 && runs[0].pages == 1 &&
           runs[1].block == 1 && runs[1].first_page == 56 && runs[1].pages == 4;
    must(brant_tracker_get_stats(tracker, &stats, &e));
    ok(good && stats.stray_marks > 0, "a bitmap of the VMM's own is marked page by page");
    brant_tracker_free(tracker);
    guest_free(&g);
}

static void plug(struct vmm *v, struct guest *to)
{
    uint64_t before = v->length;

    /* The destination has the block first; the source's back ends are told last. */
    must(guest_plug(to, &e));
    must(guest_plug(v->guest, &e));
    ok(v->length > before && v->logs_on >= 2, "memory further up moves them to a longer log");
    tell_memory(v->guest);
    writes_wait(200);
}

static void plug_refused(struct vmm *v, struct guest *to)
{
    brant_error *e = NULL;
    uint32_t id;
    int32_t code;

    (void)to;
    atomic_store(&disks[1].shared->refuse_log, true);
    code = guest_plug(v->guest, &e);
    ok(code == BRANT_E_VMM && strstr(brant_error_message(e), "does not take the log"),
       "a back end that refuses a longer log refuses the slot, with its reason");
    note("%s", brant_error_message(e));
    brant_error_free(e);
    atomic_store(&disks[1].shared->refuse_log, false);
    /* The destination does not have the block without a slot. */
    must(brant_guest_find_block(v->guest->guest, blocks[2].name, &id, &e));
    must(brant_guest_remove_block(v->guest->guest, id, &e));
    writes_wait(200);
}

int main(void)
{
    struct guest from, to;
    struct vmm v = { .guest = &from };
    brant_tracker *tracker;
    brant_stats stats = { .size = sizeof stats };
    bool ended = true;

    plan(21);
    random_begin();
    for (int i = 0; i < BACK_ENDS; i++)
        disk_start(&disks[i], i);
    tracker_follows();
    one_of_two_is_removed();
    bitmap_marked();

    guest_make(&from, 2, &source_ops, &v);
    for (unsigned i = 0; i < 2; i++)
        for (uint64_t at = 0; at < blocks[i].length; at += 8)
            memcpy(from.host[i] + at, &(uint64_t){ gv_mix(at + i) }, 8);
    tracker = track(&from, &v);
    tell_memory(&from);
    rings(true);

    v.fail_save = true;
    guest_make(&to, 2, &destination_ops, NULL);
    ok(migrate(&v, tracker, &to, NULL, &stats) == BRANT_E_VMM && v.logs_off == 1,
       "a migration that fails switches logging off");
    writes_wait(100);
    guest_free(&to);
    v.fail_save = false;

    guest_make(&to, 2, &destination_ops, NULL);
    equal(migrate(&v, tracker, &to, NULL, &stats), 0, "and another one succeeds");
    equal(differ(&from, &to), 0, "all that the back ends wrote meanwhile arrived");
    ok(stats.last_pages > 0, "some of it was found by the last sync");
    guest_free(&to);
    rings(true);

    for (int i = 0; i < BACK_ENDS; i++)
        atomic_store(&disks[i].shared->mute, true);
    guest_make(&to, 2, &destination_ops, NULL);
    equal(migrate(&v, tracker, &to, NULL, &stats), 0, "back ends that do not log migrate too");
    ok(differ(&from, &to) > 0, "and are found out by what arrived");
    guest_free(&to);
    for (int i = 0; i < BACK_ENDS; i++)
        atomic_store(&disks[i].shared->mute, false);
    rings(true);

    guest_make(&to, 2, &destination_ops, NULL);
    equal(migrate(&v, tracker, &to, plug_refused, &stats), 0, "the migration goes on without it");
    equal(differ(&from, &to), 0, "and nothing that back ends wrote was lost");
    guest_free(&to);
    rings(true);

    munmap(from.host[2], blocks[2].length);
    close(from.fds[2]);
    from.host[2] = NULL;
    guest_make(&to, 2, &destination_ops, NULL);
    equal(migrate(&v, tracker, &to, plug, &stats), 0, "memory plugged in the middle migrates");
    equal(differ(&from, &to), 0, "with all that back ends wrote before, meanwhile and there");
    guest_free(&to);

    brant_tracker_free(tracker);
    guest_free(&from);
    for (int i = 0; i < BACK_ENDS; i++)
        ended &= disk_end(&disks[i]) == 0;
    ok(ended, "the back ends end with their sockets, and none wrote past its log");
    return done();
}
