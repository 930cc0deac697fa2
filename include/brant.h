/*
 * brant.h: an embeddable live-migration engine for virtual machine monitors.
 *
 * SPDX-License-Identifier: Apache-2.0 OR MIT
 *
 * Generated from src/capi and header/brant.h.in; do not edit: make header
 *
 * Three levels, each usable alone:
 *
 *   migration   a running guest moves to another process or host: brant_outgoing, brant_incoming;
 *               or to a file and back: brant_image_save, brant_image_restore
 *   tracking    which pages of a guest were written, and how fast: brant_guest, brant_tracker,
 *               brant_consumer, brant_rate
 *   bitmaps     dirty bits are set, merged and walked: brant_bitmap
 *
 * Rules that hold everywhere:
 *
 *   Errors      A function that can fail returns 0 or a negative BRANT_E_* code, whose meaning never
 *               changes. The sentence that goes with it is in the last parameter, the optional
 *               brant_error **.
 *   Ownership   Handles are the caller's, who frees them; NULL is fine. Strings and structures are
 *               copied during the call. Guest memory stays the VMM's. So do descriptors: brant
 *               duplicates what it keeps, and the VMM may close its own when the call has returned.
 *               The exception: brant_outgoing_start_fd and brant_incoming_start_fd own the socket
 *               that they are given, whatever they return.
 *   _free       A _free returns nothing, with four exceptions. Inside a callback of a migration, a
 *               save or a restore that same object cannot be freed: brant_outgoing_free,
 *               brant_incoming_free, brant_image_save_free and brant_image_restore_free return
 *               BRANT_E_CALLBACK there and free nothing. Elsewhere they return 0.
 *   Sizes       A structure that begins with `size` is initialised by BRANT_INIT(type). A field that
 *               is left 0 has its default. The structure of an older header is shorter, and is
 *               accepted; one of a newer header is accepted if what is new in it is 0.
 *   Threads     Each handle says which threads may use it. Callbacks come on brant's threads, unless
 *               they say otherwise.
 *   Units       Lengths and offsets are bytes, pages have 4 KiB. Times that the VMM gives are
 *               milliseconds (_ms); times that brant measured are nanoseconds (_ns).
 *
 * A whole source and a whole destination follow. The guest is a thread that counts, in its memory
 * and in one device, and goes on counting at the destination. Both run as they stand here:
 *
 *   $ cc source.c -o source $(pkg-config --cflags --libs brant)
 *   $ cc destination.c -o destination $(pkg-config --cflags --libs brant)
 *   $ ./destination unix:/tmp/guest.socket &
 *   $ ./source unix:/tmp/guest.socket
 *
 * ---- source.c --------------------------------------------------------------------------------
 *
 *     // The guest is a thread that counts: in its memory, page after page, and in one device.
 *     #include <brant.h>
 *     #include <pthread.h>
 *     #include <stdio.h>
 *     #include <stdlib.h>
 *     #include <sys/mman.h>
 *     #include <unistd.h>
 *
 *     enum { PAGE = 4096, BYTES = 16 << 20, COUNTED = 256 };
 *     enum { PAUSED, RUNS, ENDED };
 *
 *     struct vmm {
 *         uint64_t *memory;
 *         uint64_t count;                             // the state of the device
 *         int guest;                                  // PAUSED, RUNS, ENDED
 *         pthread_mutex_t lock;
 *         brant_tracker *tracker;
 *     };
 *
 *     static struct vmm vmm;
 *     static brant_error *error;
 *
 *     static void expect_success(int32_t code)
 *     {
 *         if (code == 0)
 *             return;
 *         fprintf(stderr, "%s: %s\n", brant_error_name(code), brant_error_message(error));
 *         exit(1);
 *     }
 *
 *     static void count_on(struct vmm *v)
 *     {
 *         uint64_t page = v->count++ % COUNTED;
 *
 *         v->memory[page * PAGE / 8] = v->count;
 *         brant_tracker_mark(v->tracker, page * PAGE, 8);     // after the write
 *     }
 *
 *     static void *guest_thread(void *opaque)
 *     {
 *         struct vmm *v = (struct vmm *)opaque;
 *
 *         for (int last = RUNS; last != ENDED; usleep(10)) {
 *             pthread_mutex_lock(&v->lock);
 *             last = v->guest;
 *             if (last == RUNS)
 *                 count_on(v);
 *             pthread_mutex_unlock(&v->lock);
 *         }
 *         return NULL;
 *     }
 *
 *     static int32_t make_guest(void *opaque, int state)
 *     {
 *         struct vmm *v = (struct vmm *)opaque;
 *
 *         pthread_mutex_lock(&v->lock);               // no guest is between a write and its mark
 *         v->guest = state;
 *         pthread_mutex_unlock(&v->lock);
 *         return 0;
 *     }
 *
 *     static int32_t pause_guest(void *opaque, brant_reason *reason)
 *     {
 *         (void)reason;
 *         return make_guest(opaque, PAUSED);
 *     }
 *
 *     static int32_t resume_guest(void *opaque, brant_reason *reason)
 *     {
 *         (void)reason;
 *         return make_guest(opaque, RUNS);
 *     }
 *
 *     static int32_t save(void *opaque, brant_saver *saver, brant_reason *reason)
 *     {
 *         struct vmm *v = (struct vmm *)opaque;
 *
 *         (void)reason;
 *         return brant_saver_put(saver, "counter", 0, 1, &v->count, sizeof v->count, NULL);
 *     }
 *
 *     int main(int argc, char **argv)
 *     {
 *         if (argc != 2)
 *             return 2;
 *         vmm.memory = (uint64_t *)mmap(NULL, BYTES, PROT_READ | PROT_WRITE,
 *                                       MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
 *         pthread_mutex_init(&vmm.lock, NULL);
 *
 *         // What the guest is: operations, a block of memory, and its guest address, 0.
 *         brant_guest *guest;
 *         brant_ops ops = BRANT_INIT(brant_ops);
 *         ops.pause = pause_guest;
 *         ops.resume = resume_guest;
 *         ops.save = save;
 *         expect_success(brant_guest_new(&ops, &vmm, &guest, &error));
 *         brant_ram_block block = BRANT_INIT(brant_ram_block);
 *         block.name = "ram";
 *         block.host = vmm.memory;
 *         block.length = BYTES;
 *         brant_slot slot = BRANT_INIT(brant_slot);
 *         slot.length = BYTES;
 *         slot.slot = BRANT_NO_SLOT;
 *         expect_success(brant_guest_add_block(guest, &block, &slot.block, &error));
 *         expect_success(brant_guest_add_slot(guest, &slot, &error));
 *
 *         // Who tells of its writes: the marks. KVM's log would be added here.
 *         expect_success(brant_tracker_new(guest, NULL, &vmm.tracker, &error));
 *         for (int i = 0; i < 1000; i++)              // the guest has a past
 *             count_on(&vmm);
 *         pthread_t thread;
 *         vmm.guest = RUNS;
 *         pthread_create(&thread, NULL, guest_thread, &vmm);
 *
 *         brant_outgoing *outgoing;
 *         brant_params params = BRANT_INIT(brant_params);
 *         params.downtime_limit_ms = 100;
 *         expect_success(brant_outgoing_new(vmm.tracker, &params, &outgoing, &error));
 *         expect_success(brant_outgoing_start(outgoing, argv[1], &error));
 *
 *         int32_t code;
 *         while ((code = brant_outgoing_wait(outgoing, 50, NULL)) == BRANT_E_PENDING) {
 *             brant_stats stats = BRANT_INIT(brant_stats);
 *             expect_success(brant_outgoing_get_stats(outgoing, &stats, &error));
 *             printf("%u.%02u %%\n", stats.progress / 100, stats.progress % 100);
 *         }
 *         int here = code != 0;                       // unless the migration completed
 *         if (here) {
 *             brant_outgoing_wait(outgoing, 0, &error);       // the same code, and its sentence
 *             printf("%s: %s\n", brant_error_name(code), brant_error_message(error));
 *             brant_error_free(error);
 *         }
 *         if (code == BRANT_E_UNANSWERED) {
 *             // The guest is paused. The destination's VMM knows whether `run` was called there.
 *             printf("does the guest run at the destination (y or n)? ");
 *             here = getchar() != 'y';
 *             expect_success(brant_outgoing_resolve(
 *                 outgoing, here ? BRANT_RESOLVE_RESUME : BRANT_RESOLVE_DESTROY, &error));
 *         }
 *         if (here)
 *             printf("the guest runs on here\n");
 *         else
 *             printf("the guest runs at the destination from %llu on\n", (unsigned long long)vmm.count);
 *
 *         brant_outgoing_free(outgoing);
 *         make_guest(&vmm, ENDED);                    // the end of the example, whatever it was
 *         pthread_join(thread, NULL);
 *         brant_tracker_free(vmm.tracker);
 *         brant_guest_free(guest);
 *         munmap(vmm.memory, BYTES);
 *         return here;
 *     }
 *
 * ---- destination.c ---------------------------------------------------------------------------
 *
 *     #include <brant.h>
 *     #include <pthread.h>
 *     #include <stdio.h>
 *     #include <stdlib.h>
 *     #include <string.h>
 *     #include <sys/mman.h>
 *
 *     enum { PAGE = 4096, BYTES = 16 << 20, COUNTED = 256 };
 *
 *     struct vmm {
 *         uint64_t *memory;
 *         uint64_t count;
 *         pthread_t thread;
 *     };
 *
 *     static struct vmm vmm;
 *     static brant_error *error;
 *
 *     static void expect_success(int32_t code)
 *     {
 *         if (code == 0)
 *             return;
 *         fprintf(stderr, "%s: %s\n", brant_error_name(code), brant_error_message(error));
 *         exit(1);
 *     }
 *
 *     static void *guest_thread(void *opaque)
 *     {
 *         struct vmm *v = (struct vmm *)opaque;
 *         uint64_t first = v->count, wrong = 0;
 *
 *         for (int i = 0; i < COUNTED; i++) {         // one round over what it wrote at the source
 *             uint64_t *number = &v->memory[v->count % COUNTED * PAGE / 8];
 *             v->count++;
 *             wrong += *number != (v->count <= COUNTED ? 0 : v->count - COUNTED);
 *             *number = v->count;
 *         }
 *         printf("the guest runs here from %llu on, with %llu wrong pages\n",
 *                (unsigned long long)first, (unsigned long long)wrong);
 *         return NULL;
 *     }
 *
 *     static int32_t load(void *opaque, const brant_state_blob *blob, brant_reason *reason)
 *     {
 *         struct vmm *v = (struct vmm *)opaque;
 *
 *         if (strcmp(blob->name, "counter") || blob->version != 1 || blob->length != 8) {
 *             brant_reason_set(reason, "expected a counter, version 1, of 8 bytes");
 *             return -1;                              // the guest runs on at the source
 *         }
 *         memcpy(&v->count, blob->data, 8);
 *         return 0;
 *     }
 *
 *     static int32_t run(void *opaque, brant_reason *reason)
 *     {
 *         (void)reason;
 *         return pthread_create(&vmm.thread, NULL, guest_thread, opaque);
 *     }
 *
 *     int main(int argc, char **argv)
 *     {
 *         if (argc != 2)
 *             return 2;
 *         vmm.memory = (uint64_t *)mmap(NULL, BYTES, PROT_READ | PROT_WRITE,
 *                                       MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
 *
 *         brant_guest *guest;
 *         brant_ops ops = BRANT_INIT(brant_ops);
 *         ops.load = load;
 *         ops.run = run;
 *         expect_success(brant_guest_new(&ops, &vmm, &guest, &error));
 *         brant_ram_block block = BRANT_INIT(brant_ram_block);
 *         block.name = "ram";                         // as at the source, and as long
 *         block.host = vmm.memory;
 *         block.length = BYTES;
 *         expect_success(brant_guest_add_block(guest, &block, NULL, &error));
 *
 *         brant_incoming *incoming;
 *         expect_success(brant_incoming_new(guest, NULL, &incoming, &error));
 *         expect_success(brant_incoming_listen(incoming, argv[1], &error));
 *         fprintf(stderr, "waiting for a source\n");
 *         int32_t code = brant_incoming_wait(incoming, BRANT_NO_LIMIT, &error);
 *         if (code == 0) {
 *             pthread_join(vmm.thread, NULL);
 *         } else {
 *             // The guest does not run here and never will; the source's VMM has it.
 *             fprintf(stderr, "%s: %s\n", brant_error_name(code), brant_error_message(error));
 *             brant_error_free(error);
 *         }
 *
 *         brant_incoming_free(incoming);
 *         brant_guest_free(guest);
 *         munmap(vmm.memory, BYTES);
 *         return code != 0;
 *     }
 */

#ifndef BRANT_H
#define BRANT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/**
 * Initialises a structure that begins with its size: the size is set, all other fields are 0.
 *
 *     brant_params params = BRANT_INIT(brant_params);
 *     params.downtime_limit_ms = 100;
 *
 * In C it is an initialiser, also of static variables; in C++ it is a value.
 */
#ifdef __cplusplus
namespace brant {
template <typename T> inline T init()
{
    T made = T();
    made.size = sizeof(T);
    return made;
}
}  // namespace brant
#define BRANT_INIT(type) (::brant::init<type>())
#else
#define BRANT_INIT(type) { .size = sizeof(type) }
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* =============================================================================================
 * Version and features
 * ============================================================================================= */

/** Version of this header. */
#define BRANT_VERSION_MAJOR 0
/** Version of this header. */
#define BRANT_VERSION_MINOR 1
/** Version of this header. */
#define BRANT_VERSION_PATCH 0

/** The version of the library that is linked, as "0.1.0". Static; any thread. */
const char *brant_version(void);

/**
 * Whether the library that is linked can do something: 1 if so, 0 if not or if the name is not
 * known. Names: "bitmap", "tracker", "migration" (the three levels), "kvm-log" (KVM's dirty
 * bitmaps), "kvm-ring" (its dirty rings), "reported" (the VMM's own marks), "userfault"
 * (userfaultfd's write protection; whether the kernel has it, `brant_tracker_add_userfault` says),
 * "vhost", "vfio", "iommufd" (what devices log), "balloon" (ballooned pages are not sent), "hints"
 * (free-page hints), "image" (a guest in a file), "tcp", "unix", "fd" (transports). Any thread; NULL is no feature.
 */
int32_t brant_has_feature(const char *name);

/* =============================================================================================
 * Errors
 * ============================================================================================= */

/** An argument is outside its stated limits. */
#define BRANT_E_INVALID (-1)
/** The call is not allowed in the state the object is in. */
#define BRANT_E_STATE (-2)
/** The object is in use by something else; try again when that has ended. */
#define BRANT_E_BUSY (-3)
/** No such block, slot, or file. */
#define BRANT_E_NOT_FOUND (-4)
/** Something of that name or in that place is there already. */
#define BRANT_E_EXISTS (-5)
/** Memory could not be had. */
#define BRANT_E_NO_MEMORY (-6)
/** The kernel, the machine or the peer cannot do this. */
#define BRANT_E_UNSUPPORTED (-7)
/** A system call failed for a reason that is not the caller's. */
#define BRANT_E_KERNEL (-8)
/** The connection could not be made, or failed. */
#define BRANT_E_IO (-9)
/** The peer closed the connection. */
#define BRANT_E_PEER_GONE (-10)
/** A time limit passed. */
#define BRANT_E_TIMEOUT (-11)
/** The operation was cancelled, here or by the peer, whom the message then names. */
#define BRANT_E_CANCELLED (-12)
/** The peer sent what the protocol does not allow. */
#define BRANT_E_PROTOCOL (-13)
/** The two sides' memory blocks differ. */
#define BRANT_E_LAYOUT (-14)
/** No protocol version or required feature in common. */
#define BRANT_E_VERSION (-15)
/** The peer refused, and said why. */
#define BRANT_E_REFUSED (-16)
/** A callback of the VMM failed. */
#define BRANT_E_VMM (-17)
/**
 * What remained to be sent did not get small enough in time: the guest writes too fast, or the
 * link or its cap is too slow.
 */
#define BRANT_E_NOT_CONVERGED (-18)
/** Migration is blocked by a reason the VMM gave. */
#define BRANT_E_BLOCKED (-19)
/**
 * Handed over, and the destination did not say that the guest runs: it said nothing, or said that
 * it failed. The guest stands paused at the source until the VMM resolves the migration.
 */
#define BRANT_E_UNANSWERED (-20)
/** Called from inside a callback of the same object, where it would wait for itself. */
#define BRANT_E_CALLBACK (-21)
/** A defect in brant itself, caught at the boundary. */
#define BRANT_E_INTERNAL (-22)
/** Not over yet: the wait ended before what was waited for. Never why something failed. */
#define BRANT_E_PENDING (-23)
/**
 * Guest memory could not be read or written: poisoned, without permission, cut off the end of
 * its file, or without room to be allocated. The message names the block and the offset.
 */
#define BRANT_E_MEMORY (-24)
/**
 * A file is no whole image of a guest: torn, short, or something else. The message names the file,
 * the place in it, what was expected there and what was found.
 */
#define BRANT_E_IMAGE (-25)

/**
 * The detail of an error. Functions that can fail return 0 or one of the `BRANT_E_*` codes,
 * and take a `brant_error **` last, which may be NULL. If it is not, it is set: to NULL on
 * success, to a new object on failure, whatever it held before. That object is the caller's. brant
 * sets no errno and keeps no last error, and it writes nothing to stdout or stderr.
 *
 * Threads: any, several at once. `brant_error_free` is the last call on it, and ends its message.
 */
typedef struct brant_error brant_error;

/** The error's code, one of `BRANT_E_*`; 0 for NULL. */
int32_t brant_error_code(const struct brant_error *error);

/**
 * What went wrong, in one sentence: what was expected and what was found. UTF-8; lives as
 * long as the error. "" for NULL.
 */
const char *brant_error_message(const struct brant_error *error);

/** Frees an error; NULL is fine. */
void brant_error_free(struct brant_error *error);

/**
 * A short name for a code, as "timed out"; static. "success" for 0, "unknown error" for a
 * code this library does not know.
 */
const char *brant_error_name(int32_t code);

/* =============================================================================================
 * The guest: its memory and who has it
 *
 * One for each virtual machine: make it with the VMM's operations (the next section), add its blocks
 * of memory, then the slots in which the guest sees them. What is known of the guest is told here
 * too: who has it, what its balloon holds, which pages are lost, why it cannot move.
 * ============================================================================================= */

/**
 * What a guest is to brant: blocks of memory, where they appear at guest physical addresses
 * and in KVM memory slots, and reasons why it cannot move. One for each virtual machine.
 *
 * It also knows who has the virtual machine (`brant_guest_get_state`), whatever uses it and for as
 * long as it lives. A guest that was handed over is not handed over again, one that runs here is
 * not overwritten, and one migration goes on at a time: what a migration must not begin with is
 * BRANT_E_STATE, what it must wait for BRANT_E_BUSY. So keep one object for each virtual machine
 * and use it for every migration of it; brant knows nothing of what another object does.
 *
 * Threads: any, several at once; changes wait for one another. `brant_guest_free` is the last
 * call: all others on it have returned before it begins. Trackers and migrations made from it keep
 * what they need, and may be used and freed later.
 */
typedef struct brant_guest brant_guest;

/**
 * In `brant_ram_block.flags`: the guest cannot write the block. It is sent once, and again
 * only what is marked.
 */
#define BRANT_RAM_ROM 1
/**
 * In `brant_ram_block.flags`, at a destination: the block is known to read as zero, so brant need
 * not look. Without it nothing is assumed of what is there. The flag counts until a page with
 * contents arrives for the block, or all pages have arrived, or a migration from here starts, or
 * brant_guest_runs_here, brant_guest_reclaim or brant_guest_give_up speaks of a guest that was
 * here. So an incoming after one that broke may use the same block, as it was added.
 */
#define BRANT_RAM_ZEROED 2
/**
 * In `brant_ram_block.flags`: the block is a mapping, shared as a rule, of the file or memfd that
 * `fd` names. Without it the block is private memory, or shared memory whose file brant is not
 * told, and `fd` is 0 or -1.
 */
#define BRANT_RAM_FILE 4

/**
 * A RAM block: guest memory that is contiguous in this process.
 *
 * Memory may be registered with a userfaultfd of the VMM's that fills pages when they are touched
 * (a guest that is being restored from an image, say), before or after it is added. A migration
 * then touches all of it, waits for each page, and sends what the page is filled with. Register it
 * before a migration from here starts, or mark what is registered later (`brant_tracker_mark`):
 * what a page holds changes by that, and no log sees it.
 *
 * Memory that cannot be read or written when its turn comes is BRANT_E_MEMORY and no signal: the
 * kernel is asked before brant's own code looks. A page that breaks between that question and the
 * look (a file is truncated at that moment, say) still ends the process with SIGBUS or SIGSEGV.
 */
typedef struct brant_ram_block {
    /** sizeof(brant_ram_block). */
    size_t size;
    /**
     * 1 to 255 bytes of UTF-8 without control characters, unique in the guest; the destination's
     * block has the same.
     */
    const char *name;
    /**
     * Address of the first byte, page-aligned. The memory stays the VMM's, and mapped until
     * `brant_guest_remove_block` has returned.
     */
    void *host;
    /** Bytes; a multiple of `page_size`. */
    uint64_t length;
    /** What backs it, bytes: a power of two from 4096 to 1 GiB; 0 means 4096. */
    uint64_t page_size;
    /**
     * With BRANT_RAM_FILE: the descriptor of the file or memfd that the block is mapped from;
     * makes its holes visible. BRANT_E_INVALID where the block is mapped from another file or
     * offset, or is private memory without a file. That is asked of /proc/self/maps; where that
     * cannot be read, where the block consists of several mappings, and where a file system shows
     * another device there than in fstat (btrfs, some overlays), the descriptor is believed. Any
     * number from 0 up is a descriptor; -1, the result of a failed dup, is BRANT_E_INVALID. brant
     * keeps a descriptor of its own; the file position of this one stays where it is, unless /proc
     * is missing. Without that flag: 0 or -1.
     */
    int32_t fd;
    /** BRANT_RAM_*. */
    uint32_t flags;
    /** Where in the file the block begins, bytes. */
    uint64_t fd_offset;
} brant_ram_block;

/** In `brant_slot.slot`: maps to guest addresses without being a KVM memory slot. */
#define BRANT_NO_SLOT 4294967295

/** Part of a block as it appears to the guest. */
typedef struct brant_slot {
    /** sizeof(brant_slot). */
    size_t size;
    /** The block's number. */
    uint32_t block;
    /** KVM's slot number, the address space in the upper 16 bits; BRANT_NO_SLOT if it is none. */
    uint32_t slot;
    /** Where in the block it begins, bytes, page-aligned. */
    uint64_t offset;
    /**
     * Bytes, page-aligned. Of a KVM slot, exactly its size: KVM writes a bitmap of that size to
     * where brant made room for this one.
     */
    uint64_t length;
    /**
     * Guest physical address of its first byte, page-aligned. The slot ends at 2^52 or below (2^59
     * on RISC-V): no architecture has more addresses.
     */
    uint64_t guest_address;
    /**
     * The KVM_MEM_* flags that the VMM set it with, without KVM_MEM_LOG_DIRTY_PAGES: brant
     * repeats them when it switches logging on and off.
     */
    uint32_t kvm_flags;
    /** 0. */
    uint32_t reserved;
} brant_slot;

struct brant_ops;

/**
 * Makes a guest without memory. `ops` are the VMM's operations, for all that is made from this
 * guest: its migrations in both directions and its trackers. The table is copied. NULL: a guest
 * that is tracked and not migrated. Which operations a call cannot do without, that call says.
 * `opaque` is given to each operation, until the guest and all that was made from it are freed.
 * BRANT_E_UNSUPPORTED where the host's pages are not 4 KiB.
 */
int32_t brant_guest_new(const struct brant_ops *ops,
                        void *opaque,
                        struct brant_guest **guest,
                        struct brant_error **error);

/**
 * Frees a guest; NULL is fine. What is known of who has it is gone then. Blockers of it may be
 * taken back afterwards.
 */
void brant_guest_free(struct brant_guest *guest);

/**
 * Adds a block. `*id` (may be NULL) gets its number, by which every other call names the block,
 * and every run that is taken. No other block of the guest ever has that number, also after this
 * one was removed. Names are for the other side of a migration: they say which block is which
 * there. While the guest is tracked all of the new block counts as dirty. At most 4096.
 *
 * While it migrates: first at the destination, then at the source, and while the source is in
 * BRANT_SOURCE_COPYING. Before that the two sides compare their blocks, and one too many is a
 * BRANT_E_LAYOUT. A block that is added at the source after `pause` was called may come too late
 * to be sent: then the migration fails with BRANT_E_STATE before anything is handed over.
 */
int32_t brant_guest_add_block(struct brant_guest *guest,
                              const struct brant_ram_block *block,
                              uint32_t *id,
                              struct brant_error **error);

/**
 * The number of the block with this name, into `*id`: for whoever has only the name, as an
 * `early_load` that reads what the source wrote. BRANT_E_NOT_FOUND where there is none.
 */
int32_t brant_guest_find_block(const struct brant_guest *guest,
                               const char *name,
                               uint32_t *id,
                               struct brant_error **error);

/**
 * Removes a block and its slots; BRANT_E_NOT_FOUND where it is gone already. In this order:
 *
 * 1. See to it that nothing writes to the block any more: vCPUs stopped, or the guest has
 *    let go of it. Marks of it may still come; they are ignored.
 * 2. Call this. What the slots logged is read and their logging switched off, so they must
 *    still be in KVM (see brant_guest_remove_slot). It returns when brant does not touch the
 *    memory any more: within milliseconds, however slow the peer of a migration is. (Pages
 *    that are on their way to it go on from a copy.)
 * 3. Delete the slots from KVM, and unmap the memory.
 *
 * BRANT_E_BUSY while runs of the block that `brant_tracker_take` or `brant_consumer_take` handed
 * out are in use. Such runs are in use until the same consumer takes again, is stopped or is
 * freed: the message names it. The call waits for nobody and has changed nothing; make it again
 * afterwards.
 *
 * While it migrates: first at the source, then, once that call has returned, at the destination,
 * at any moment from BRANT_SOURCE_COPYING on, also while the guest is paused. What the source
 * still has on its way for the block goes nowhere. Example: the VMM removes it in its operation
 * `save`, says so in the state, and removes it at the destination in `load`. A block that only the
 * source removes is fine too: it stays at the destination. Before BRANT_SOURCE_COPYING the two
 * sides compare their blocks: one that is gone at the source and is still there at the destination
 * ends the migration with BRANT_E_LAYOUT. One that is gone at the destination and not at the
 * source ends it so at any time before the destination is ready, and the guest stays at the
 * source. From then on the destination's guest is complete, and its blocks are its VMM's: one that
 * is removed only there is missing when the guest runs.
 */
int32_t brant_guest_remove_block(struct brant_guest *guest,
                                 uint32_t block,
                                 struct brant_error **error);

/**
 * Adds a slot: part of a block at a guest address. A KVM slot exists in KVM already, with the
 * size and place given here: KVM first, then this call; to take it away, this side first
 * (brant_guest_remove_slot). A KVM slot that was replaced by one of another size before brant
 * heard of it cannot be read: all of it counts as dirty at each sync, with a warning. While the
 * guest is tracked, brant switches the slot's logging on (or has the VMM do it) and all of it
 * counts as dirty. A block may have any number of slots, at any page. Marks by guest address
 * find it once this has returned.
 */
int32_t brant_guest_add_slot(struct brant_guest *guest,
                             const struct brant_slot *slot,
                             struct brant_error **error);

/**
 * Removes the slot with this number (or BRANT_NO_SLOT) at this guest address. The block stays.
 * To delete a slot, or to move, resize or replace it:
 *
 * 1. Stop the vCPUs, or know that the guest does not use the slot. No thread may be between a
 *    write to it and the mark of that by guest address: from here on such a mark finds
 *    nothing.
 * 2. Call this, with KVM's slot as it was described: what it has logged is read, and its
 *    logging switched off by setting it once more as it was.
 * 3. Delete or move it in KVM (KVM_SET_USER_MEMORY_REGION), and make what takes its place.
 * 4. Describe that with brant_guest_add_slot: all of it counts as dirty.
 * 5. Let the vCPUs run.
 *
 * The other way round is worse: of a slot that was deleted before, the log is lost with it,
 * and all its pages count as dirty; one that was moved before is set back to where it was.
 */
int32_t brant_guest_remove_slot(struct brant_guest *guest,
                                uint32_t slot,
                                uint64_t guest_address,
                                struct brant_error **error);

/**
 * In `brant_guest_get_state`: nothing is known. The VMM runs the guest, or waits for one to
 * arrive.
 */
#define BRANT_GUEST_UNKNOWN 0
/**
 * In `brant_guest_get_state`: the guest runs here. A migration from here has been, one to here has
 * arrived, or `brant_guest_runs_here` said so.
 */
#define BRANT_GUEST_HERE 1
/** In `brant_guest_get_state`: the guest is here and stands, for `resume` or `run` failed. */
#define BRANT_GUEST_STANDS 2
/** In `brant_guest_get_state`: an outgoing migration is in progress, and the guest runs here. */
#define BRANT_GUEST_LEAVING 3
/** In `brant_guest_get_state`: an outgoing migration has paused the guest, which is here. */
#define BRANT_GUEST_PAUSED 4
/** In `brant_guest_get_state`: the guest is being handed over; here it stands. */
#define BRANT_GUEST_HANDING_OVER 5
/**
 * In `brant_guest_get_state`: the guest was handed over and runs at another place; its memory is
 * here, and `brant_guest_reclaim` may take it back.
 */
#define BRANT_GUEST_HANDED_OVER 6
/** In `brant_guest_get_state`: handed over without an answer; `brant_outgoing_resolve` decides. */
#define BRANT_GUEST_UNANSWERED 7
/**
 * In `brant_guest_get_state`: the guest was given up here: BRANT_RESOLVE_DESTROY,
 * `brant_guest_give_up`, or an incoming migration that failed after it had begun to write over a
 * guest that was handed over. What that one overwrote cannot be reclaimed.
 */
#define BRANT_GUEST_GIVEN_UP 8
/** In `brant_guest_get_state`: an incoming migration is in progress. */
#define BRANT_GUEST_ARRIVING 9
/**
 * In `brant_guest_get_state`: an incoming migration came to nothing. No guest is here, unless the
 * VMM has made one since.
 */
#define BRANT_GUEST_EMPTY 10
/** In `brant_guest_get_state`: a save to an image is in progress, and the guest runs here. */
#define BRANT_GUEST_SAVING 11
/** In `brant_guest_get_state`: a save to an image has paused the guest. */
#define BRANT_GUEST_SAVE_PAUSED 12
/** In `brant_guest_get_state`: a restore from an image is in progress. */
#define BRANT_GUEST_RESTORING 13

/** Who has the guest, into `*state`: BRANT_GUEST_*. Any thread, also inside callbacks. */
int32_t brant_guest_get_state(const struct brant_guest *guest,
                              uint32_t *state,
                              struct brant_error **error);

/**
 * Says that the guest runs here, where brant cannot know it: the VMM has started one that did not
 * arrive by a migration. Optional; a good place is before the vCPUs run for the first time. From
 * then on an incoming migration is refused. Refused itself where the guest must not run:
 * BRANT_E_STATE where it was handed over, given up, or has to be resolved; BRANT_E_BUSY where a
 * migration has paused it or fills its memory, and will call `resume` or `run`.
 */
int32_t brant_guest_runs_here(struct brant_guest *guest,
                              struct brant_error **error);

/**
 * Takes back a guest that was handed over or given up: the VMM asserts that no other copy of it
 * runs or ever will (the host that it went to has died, or its VMM has ended it). The guest counts
 * as one that runs here; call this before the vCPUs run. It goes on from where it was paused,
 * and what it did at the other place is lost. `resume` is not called.
 *
 * BRANT_E_STATE where an incoming migration that failed has overwritten its memory, and where a
 * hand-over without an answer is to be resolved; once that migration is freed without having been
 * resolved, the guest counts as handed over and can be reclaimed. BRANT_E_BUSY while a migration
 * is in progress.
 */
int32_t brant_guest_reclaim(struct brant_guest *guest,
                            struct brant_error **error);

/**
 * Says that no guest is here that anybody needs: it has ended, it arrived and could not be
 * started, it was handed over, or one is awaited. The state is BRANT_GUEST_GIVEN_UP from then on.
 * Another may arrive in its memory, none leaves, and no vCPU is kicked. `brant_guest_reclaim`
 * takes that back. BRANT_E_BUSY while a migration is in progress, BRANT_E_STATE where one is to be
 * resolved.
 */
int32_t brant_guest_give_up(struct brant_guest *guest,
                            struct brant_error **error);

/**
 * Says whether the guest must tell before it uses a ballooned page again: 1 if
 * VIRTIO_BALLOON_F_MUST_TELL_HOST was negotiated, else 0. Say it when the balloon's driver is set
 * up, and again after each reset of the device.
 *
 * - Before it is said, and after 0, no page counts as ballooned and the marks below do nothing.
 * - Each call ends what was known: pages that counted as ballooned count as written in every
 *   tracker, because after a reset nobody knows of them any more.
 * - At a destination say it in `load` at the latest, with what the source's guest had negotiated.
 *   There 1 ends nothing: which pages are ballooned the source has told. Where nothing is said,
 *   they stop counting as ballooned when the guest runs.
 */
int32_t brant_guest_must_tell_host(struct brant_guest *guest,
                                   uint32_t must,
                                   struct brant_error **error);

/**
 * The guest's balloon has taken `length` bytes at a guest physical address (inflate): they are
 * ballooned. Whole pages of 4 KiB count; a host page that is larger (`brant_ram_block.page_size`)
 * is ballooned when all of it is. A migration neither reads nor sends a ballooned page. At the
 * destination it reads as zero and costs no memory.
 *
 * - Any thread, whether a migration runs or not. Takes a lock that is held for microseconds and
 *   never waits for a migration.
 * - The VMM discards the memory (MADV_DONTNEED) before the call or after it. It does not mark the
 *   memory as written for that.
 * - Not for pages of VIRTIO_BALLOON_F_REPORTING, which the guest uses again without a word, nor
 *   for a guest that relies on what ballooned pages hold (VIRTIO_BALLOON_F_PAGE_POISON with a
 *   value other than 0).
 * - NULL and addresses without memory are ignored.
 */
void brant_guest_mark_ballooned(const struct brant_guest *guest,
                                uint64_t guest_address,
                                uint64_t length);

/**
 * The guest takes bytes out of its balloon (deflate) and uses them again. Call it before the guest
 * is told that it may, which is before the deflate request is put into the used ring. Every page
 * with a byte in the range stops being ballooned and counts as written, in every tracker of the
 * guest. Threads and ignored arguments as for `brant_guest_mark_ballooned`.
 */
void brant_guest_clear_ballooned(const struct brant_guest *guest,
                                 uint64_t guest_address,
                                 uint64_t length);

/**
 * How many pages with a byte in a range of guest physical addresses are ballooned, into
 * `*ballooned`. At a destination: what the source said of them.
 */
int32_t brant_guest_count_ballooned(const struct brant_guest *guest,
                                    uint64_t guest_address,
                                    uint64_t length,
                                    uint64_t *ballooned,
                                    struct brant_error **error);

/**
 * The contents of `length` bytes at `offset` of a block are lost: the hardware failed, and the
 * kernel said so with SIGBUS (BUS_MCEERR_AO, BUS_MCEERR_AR; `si_addr_lsb` gives the length).
 * Without this a migration that comes to such a page fails with BRANT_E_MEMORY and the guest runs
 * on. With it the migration goes on: the page is neither read nor sent, however often it is found
 * dirty, and counts in `poisoned_pages`. At the destination it reads as zero; if it had been sent
 * before it was lost, and not written since, it holds what it held. brant tells the destination's
 * VMM nothing of it: where that is to raise a machine check in its guest, put the list into the
 * state (`save`).
 *
 * Every page with a byte in the range counts, and where the block is backed by larger pages, every
 * such page whole. Any thread, whether a migration runs or not, but no signal handler: it takes a
 * lock and may allocate. BRANT_E_NOT_FOUND for a block that is not there, BRANT_E_INVALID for a
 * range that is empty or reaches past its end. Contents that arrive here in an incoming migration
 * take the declaration back.
 */
int32_t brant_guest_mark_poisoned(struct brant_guest *guest,
                                  uint32_t block,
                                  uint64_t offset,
                                  uint64_t length,
                                  struct brant_error **error);

/**
 * Pages that were declared poisoned have contents again: the VMM has mapped other memory in their
 * place, or resets the guest. Call it after that. They count as written in every tracker of the
 * guest. Pages of the range that were not declared stay as they are. Threads and errors as
 * above.
 */
int32_t brant_guest_clear_poisoned(struct brant_guest *guest,
                                   uint32_t block,
                                   uint64_t offset,
                                   uint64_t length,
                                   struct brant_error **error);

/**
 * A reason why a guest cannot move, until it is taken back with `brant_blocker_free`.
 *
 * Threads: any. `brant_blocker_free` is the last call, also after the guest was freed, and also
 * while a migration starts: that one is refused or is not.
 */
typedef struct brant_blocker brant_blocker;

/**
 * Says that the guest cannot move, and why, until the blocker is taken back. A migration that
 * is started meanwhile is refused with BRANT_E_BLOCKED and the reason; one that is running
 * fails with it unless the guest is paused already. `blocker` may be NULL: then the reason
 * stays as long as the guest does.
 */
int32_t brant_blocker_new(struct brant_guest *guest,
                          const char *reason,
                          struct brant_blocker **blocker,
                          struct brant_error **error);

/** Takes a reason back; NULL is fine. */
void brant_blocker_free(struct brant_blocker *blocker);

/* =============================================================================================
 * Operations: what brant asks of the VMM
 *
 * A source needs `pause` and `resume`, a destination `run`. `save` goes with `load`, `early_save` with
 * `early_load`.
 * ============================================================================================= */

/**
 * Where a callback that fails says why: `brant_reason_set`.
 *
 * Threads: the callback's own, and only until it returns. There is nothing to free.
 */
typedef struct brant_reason brant_reason;

/**
 * Where `save` and `early_save` put state: `brant_saver_put`.
 *
 * Threads: the callback's own, and only until it returns. There is nothing to free.
 */
typedef struct brant_saver brant_saver;

/**
 * One blob of state or configuration, as `load` and `early_load` get it. Valid during the callback
 * only.
 */
typedef struct brant_state_blob {
    /** sizeof(brant_state_blob) as brant knows it. */
    size_t size;
    /** What it is the state of. */
    const char *name;
    /** The bytes, as they were saved. */
    const void *data;
    /** How many. */
    uint64_t length;
    /** Which one of several of that name. */
    uint32_t instance;
    /** Version of the format of the data, the VMM's own numbering. */
    uint32_t version;
} brant_state_blob;

/** The migration entered another state; the message names it. */
#define BRANT_EVENT_STATE 1
/** A pass over memory ended and a sync followed. */
#define BRANT_EVENT_PASS 2
/**
 * Worth telling and no error: a clamped parameter, a log that failed and was taken as all dirty.
 */
#define BRANT_EVENT_WARNING 3
/** It is over and succeeded. */
#define BRANT_EVENT_COMPLETED 4
/** It is over and failed or was cancelled. On a source the guest runs on. */
#define BRANT_EVENT_FAILED 5
/** Handed over and never answered: the guest stays paused until `brant_outgoing_resolve`. */
#define BRANT_EVENT_UNANSWERED 6

/** Something that happened. Valid during the callback only. */
typedef struct brant_event {
    /** sizeof(brant_event) as brant knows it. */
    size_t size;
    /** One sentence, UTF-8. */
    const char *message;
    /** BRANT_EVENT_*. */
    uint32_t kind;
    /** 0. */
    uint32_t reserved;
} brant_event;

/** A thread that walks memory, decides, and sends or receives. */
#define BRANT_ROLE_MIGRATION 1
/**
 * A thread that has the host back a destination's memory just before contents arrive for it
 * (MADV_POPULATE_WRITE): at most one an incoming migration, and only where memory is not backed
 * already. It calls no other operation.
 */
#define BRANT_ROLE_PREFAULT 4
/**
 * A thread that harvests dirty rings before they fill, while a tracker in mode ring tracks.
 * Besides the KVM_RESET_DIRTY_RINGS ioctl it calls futex and getrusage. It calls no other
 * operation.
 */
#define BRANT_ROLE_REAPER 5
/** A thread that saves a guest to an image, or restores one from it, and calls the operations. */
#define BRANT_ROLE_SNAPSHOT 7
/** A thread that writes pages to an image, or reads them from it. It calls no other operation. */
#define BRANT_ROLE_IMAGE 9

/**
 * The VMM's operations, NULL where it has none. They belong to a guest: `brant_guest_new` takes
 * the table, copies it, and takes the `opaque` that each operation gets.
 *
 * The operations of a migration are called one at a time on that migration's own thread, unless it
 * says otherwise below; those of a save or a restore in the same way on its own thread, as those
 * of a source and a destination. All signals are masked there, but in the operations that may make
 * threads: `early_load`, `load`, `loaded`, `run` and `resume` have the signal mask of the thread
 * that started the migration, so a vCPU thread that is made in one can be kicked by a signal (and
 * a handler of the VMM's may run on brant's thread meanwhile). A thread made in another operation
 * inherits a mask of all signals: clear it (pthread_sigmask) first thing in that thread. They
 * return 0, or anything else for a failure, whose reason they may set. Inside one, waiting for or
 * freeing the migration that calls it is BRANT_E_CALLBACK; cancelling it only asks; everything
 * else is allowed.
 *
 * A migration's own thread has a stack of 8 MiB, less what the thread-local variables of the
 * process take of it; every other thread of brant's has 2 MiB.
 *
 * Two contracts on which a guest's memory depends:
 * - Paused means: every vCPU is out of KVM_RUN with pending I/O retired, no thread stands between
 *   a write to guest memory and its mark, and no device writes guest memory. To retire I/O after
 *   an I/O or MMIO exit, set immediate_exit and enter KVM_RUN again until it fails with EINTR: one
 *   retirement can be followed by another exit. A KVM_RUN that fails with EINTR leaves the
 *   exit_reason of the exit before, so look at what it returned first.
 * - Write first, then mark: a mark made before its write can be collected before the write
 *   lands, and then nobody hears of the write.
 *
 * A vCPU thread that ends while the guest migrates, because the guest has shut down, counts as
 * paused in `pause` and as outside of KVM_RUN in `kick`; keep its vCPU descriptor open until the
 * migration is over. Unless the guest is to start again at the destination, cancel the migration.
 *
 * brant_outgoing_cancel, brant_incoming_cancel, the waits and the frees wait for the migration's
 * thread, which may be inside an operation: call none of them with a lock held that an operation
 * takes.
 */
typedef struct brant_ops {
    /** sizeof(brant_ops). */
    size_t size;
    /**
     * Source, required: stop the guest; return when it is paused in the sense above. From before
     * this call until `resume` has returned well no `kick` is called, whichever tracker wants one;
     * those that had begun have ended.
     */
    int32_t (*pause)(void *opaque, struct brant_reason *reason);
    /**
     * Source, required: a migration that had paused the guest did not happen; let it run on.
     * Also called when `pause` failed. Takes back what `release` let go. Called on the thread
     * of `brant_outgoing_resolve` when that decides so. Where it fails, the guest counts as
     * standing here (BRANT_GUEST_STANDS).
     */
    int32_t (*resume)(void *opaque, struct brant_reason *reason);
    /**
     * Source, guest paused: put all device and vCPU state into `saver`. May write guest memory:
     * the last harvest comes after it.
     */
    int32_t (*save)(void *opaque, struct brant_saver *saver, struct brant_reason *reason);
    /**
     * Destination: all memory is here; take one blob of state. Once for each, in the order of
     * saving. May write guest memory: nothing arrives after it. Mark what it writes where a
     * tracker of this guest is started here (a backup's, from before the guest went away). A
     * failure refuses the switchover and the guest runs on at the source.
     */
    int32_t (*load)(void *opaque,
                    const struct brant_state_blob *blob,
                    struct brant_reason *reason);
    /** Destination: every blob was loaded; the last chance to refuse. */
    int32_t (*loaded)(void *opaque, struct brant_reason *reason);
    /**
     * Source, guest running, before memory is sent: configuration that the destination needs
     * in order to build itself.
     */
    int32_t (*early_save)(void *opaque,
                          struct brant_saver *saver,
                          struct brant_reason *reason);
    /**
     * Destination, before the layouts are compared: take one blob of configuration. Blocks and
     * slots may be added here.
     */
    int32_t (*early_load)(void *opaque,
                          const struct brant_state_blob *blob,
                          struct brant_reason *reason);
    /**
     * Source, guest paused, destination ready: let go of what only one may hold, disk locks
     * for one. After it comes the hand-over, or `resume`.
     */
    int32_t (*release)(void *opaque, struct brant_reason *reason);
    /**
     * Destination, required: the guest is yours, let it run. Start it without long work before:
     * when this is called the hand-over was in time, and one second after its limit has run out
     * the source's VMM takes it that the guest runs here, or never will. Fail only with the guest
     * stopped.
     */
    int32_t (*run)(void *opaque, struct brant_reason *reason);
    /**
     * Switch dirty logging on for `count` KVM memory slots, where the VMM does that itself
     * (BRANT_SWITCHED_BY_VMM). On whichever thread starts tracking or adds a slot, under brant's
     * own locks: in here and in `log_off` call nothing of brant's but marks, and take no lock
     * that another thread holds around a brant_guest_* or brant_tracker_* call.
     */
    int32_t (*log_on)(void *opaque,
                      const uint32_t *slots,
                      size_t count,
                      struct brant_reason *reason);
    /** Switch it off again. On whichever thread stops tracking or removes a slot. */
    int32_t (*log_off)(void *opaque,
                       const uint32_t *slots,
                       size_t count,
                       struct brant_reason *reason);
    /** Something happened. Must not block for long. */
    void (*event)(void *opaque, const struct brant_event *event);
    /**
     * First thing on each new thread of brant's, on that thread: the place for affinity and
     * seccomp. `role` is BRANT_ROLE_*.
     */
    void (*thread_start)(void *opaque, uint32_t role);
    /**
     * Make every vCPU leave KVM_RUN once and go on; return when each has, or was outside. Used
     * with dirty rings (`brant_tracker_add_kvm`), before each sync of a running guest: a processor
     * with page-modification logging hands over what it holds only at an exit, so without this
     * such a sync misses some pages, which a later one finds. On whichever thread syncs, under
     * brant's own locks: as in `log_on`, and do not wait for a thread that is inside a call of
     * brant's, but `brant_tracker_ring_full` and marks.
     *
     * It may be done by pausing the guest and resuming it: it is called only where the guest runs
     * here by all that brant knows (BRANT_GUEST_UNKNOWN, _HERE and _LEAVING). Never between
     * `pause` and `resume`, never after a hand-over, and never where a guest arrives
     * or should have arrived. `pause` waits for kicks that have begun.
     */
    int32_t (*kick)(void *opaque, struct brant_reason *reason);
} brant_ops;

/**
 * Sets why a callback fails, in UTF-8; shown in the migration's error, with U+FFFD in place of
 * what is not UTF-8. NULL is ignored.
 */
void brant_reason_set(struct brant_reason *reason,
                      const char *message);

/**
 * Puts one blob of state: `name` of 1 to 128 bytes, `instance` for several of that name, the
 * VMM's own `version` of the format, and `length` bytes at `data`, which are copied. At most
 * about 1 GiB each and 65536 blobs. A blob that is refused would be missing at the
 * destination: `save` counts as failed then, whatever it returns, and for this reason unless it
 * sets another.
 */
int32_t brant_saver_put(struct brant_saver *saver,
                        const char *name,
                        uint32_t instance,
                        uint32_t version,
                        const void *data,
                        size_t length,
                        struct brant_error **error);

/* =============================================================================================
 * The tracker: which pages were written
 *
 * Make it, add logs (below), start; then sync and take as often as you like; stop. The VMM marks what
 * it writes itself. A migration starts, syncs, takes and stops by itself.
 * ============================================================================================= */

/**
 * Tracks which pages of a guest are written. It merges what all logs find into what is
 * pending, and hands pending pages out after restoring their protection.
 *
 * What is pending is kept apart for each consumer of the tracker: the VMM itself
 * (`brant_tracker_start`, `_sync`, `_take`, `_put_back`, `_stop`), whoever it makes with
 * `brant_consumer_new`, a migration, a measurement of the dirty rate. A sync, whoever asks for it,
 * adds what it found to what is pending for each of them; a take empties what is pending for
 * the taker. So a migration may run on a tracker that is in use, and whatever becomes of it, the
 * others have all they had and all that was written since.
 *
 * Threads: any, several at once. Marks (`brant_tracker_mark*`) never wait. Every other function,
 * but `brant_tracker_ring_full`, waits for a sync or take that is going on. `brant_tracker_free`
 * is the last call: all others on it, those of vCPU threads too, have returned before it begins.
 * Its consumers, measurements and migrations may be freed later.
 */
typedef struct brant_tracker brant_tracker;

/** In `brant_tracker_config.clearing`: chunk by chunk, each before its first page is handed out. */
#define BRANT_CLEAR_CHUNKED 0
/** In `brant_tracker_config.clearing`: a whole slot at each sync. */
#define BRANT_CLEAR_AT_SYNC 1

/** How a tracker works. All zero but the size is what ships. */
typedef struct brant_tracker_config {
    /** sizeof(brant_tracker_config). */
    size_t size;
    /** BRANT_CLEAR_*: how protection is restored after a harvest, where KVM leaves that to us. */
    uint32_t clearing;
    /**
     * log2 of the pages in a chunk, 6 to 31; 0 means 18, 1 GiB. Out of range it is clamped, and
     * the next migration's events have a warning.
     */
    uint32_t chunk_shift;
} brant_tracker_config;

/**
 * Makes a tracker of a guest, which is to be told of the VMM's own writes by marks; add KVM's
 * log next. `config` may be NULL for what ships. Free it with `brant_tracker_free`.
 */
int32_t brant_tracker_new(struct brant_guest *guest,
                          const struct brant_tracker_config *config,
                          struct brant_tracker **tracker,
                          struct brant_error **error);

/**
 * Frees a tracker; NULL is fine. Tracking stops, unless a migration or another consumer is using
 * it: then it stops when the last of them ends.
 */
void brant_tracker_free(struct brant_tracker *tracker);

/** Every page is pending at the start: for whoever copies them all and then what changes. */
#define BRANT_START_ALL 0
/** No page is pending at the start: only what is written from now on is found. */
#define BRANT_START_CLEAN 1

/**
 * Starts tracking for the VMM, with BRANT_START_ALL or BRANT_START_CLEAN; what was pending for it
 * before is forgotten. A migration tracks by itself and needs none of this.
 */
int32_t brant_tracker_start(struct brant_tracker *tracker,
                            uint32_t with,
                            struct brant_error **error);

/**
 * Stops tracking for the VMM, after a last harvest. What is pending for it stays and can be taken.
 */
int32_t brant_tracker_stop(struct brant_tracker *tracker,
                           struct brant_error **error);

/** The guest may be running. */
#define BRANT_SYNC_RUNNING 0
/**
 * The guest is paused and its vCPU state saved: the harvest is exact, and a log that fails is
 * an error instead of "all dirty".
 */
#define BRANT_SYNC_STOPPED 1

/** What a sync found and what it cost. */
typedef struct brant_sync {
    /** sizeof(brant_sync). */
    size_t size;
    /**
     * Pages that became pending for the consumer that asked; one that was pending for it already
     * does not count again. So for the pages of each log below.
     */
    uint64_t found_pages;
    /**
     * Pages that the logs found written, whether they were pending or not. Each log counts a page
     * once for each sync that finds it; two logs that find the same page count it twice. Pages
     * that count as dirty because a log failed are not among them.
     */
    uint64_t written_pages;
    /**
     * Of how many pages a write since the last sync could be found. Not of a page that an earlier
     * sync found and whose protection has not been restored since: in the manual-protect modes of
     * KVM's log, one that nobody has taken. The guest's dirty rate is written_pages over
     * observed_pages, times its memory.
     */
    uint64_t observed_pages;
    /** Pages pending for it now. */
    uint64_t pending_pages;
    /** Nanoseconds, all of it. */
    uint64_t time_ns;
    /** Nanoseconds for KVM's logs, bitmaps and rings, kernel and merging. */
    uint64_t kvm_ns;
    /** Pages found by KVM's logs. */
    uint64_t kvm_pages;
    /** Nanoseconds for the VMM's own marks. */
    uint64_t reported_ns;
    /** Pages found by the VMM's own marks and by nothing else before. */
    uint64_t reported_pages;
    /** Logs that failed, so that all they cover counts as dirty, or that will deliver later. */
    uint64_t warnings;
    /** Nanoseconds for the logs of vhost and vhost-user back ends. */
    uint64_t vhost_ns;
    /** Pages found by them. */
    uint64_t vhost_pages;
    /** Nanoseconds for VFIO's and iommufd's logs. */
    uint64_t vfio_ns;
    /** Pages found by them. */
    uint64_t vfio_pages;
    /** Nanoseconds for userfaultfd's write protection. */
    uint64_t userfault_ns;
    /** Pages found by it. */
    uint64_t userfault_pages;
} brant_sync;

/**
 * Harvests all logs into what is pending, for the VMM and for every other consumer. `when` is
 * BRANT_SYNC_RUNNING or BRANT_SYNC_STOPPED. `report`, of what that was for the VMM, may be NULL.
 */
int32_t brant_tracker_sync(struct brant_tracker *tracker,
                           uint32_t when,
                           struct brant_sync *report,
                           struct brant_error **error);

/** A run of pages that was taken: read them now, or put them back. */
typedef struct brant_run {
    /** Address of the first page in this process. */
    void *host;
    /** First page, in the block. */
    uint64_t first_page;
    /** How many pages of 4 KiB; they do not cross a 2 MiB boundary of the block. */
    uint64_t pages;
    /** The block's number. */
    uint32_t block;
    /** 0. */
    uint32_t reserved;
} brant_run;

/**
 * Takes runs of pages that are pending for the VMM, in the order of blocks and pages, from where
 * the last call ended: at most `capacity` runs into `runs`, their number into `*count`. Before a
 * run is handed out the protection of its pages is restored, so what is written later is found by
 * a later sync: read the pages after this returned. 0 runs: the walk has come to the end, and the
 * next call begins at the beginning.
 *
 * The runs are in use until the next take, until `brant_tracker_stop` or until
 * `brant_tracker_free`: as long as that lasts, the removal of their blocks is BRANT_E_BUSY. A
 * take that hands out 0 runs ends the use as well. So does one with a capacity of 0, which takes
 * nothing and leaves the walk where it is; `runs` may be NULL then.
 *
 * Example: a backup writes the last run that it took to its file, and has nothing else to take for
 * an hour. It calls this with a capacity of 0; until then no block of the run can be removed.
 */
int32_t brant_tracker_take(struct brant_tracker *tracker,
                           struct brant_run *runs,
                           size_t capacity,
                           size_t *count,
                           struct brant_error **error);

/**
 * Makes pages pending for the VMM again that were taken and did not get where they belong. Works
 * after `brant_tracker_stop` too. A block that is gone is passed over. It does not end the use
 * of runs (see `brant_tracker_take`).
 */
int32_t brant_tracker_put_back(struct brant_tracker *tracker,
                               uint32_t block,
                               uint64_t first_page,
                               uint64_t pages,
                               struct brant_error **error);

/**
 * Reports that the VMM wrote `length` bytes at a guest physical address. After the write. Any
 * thread, lock-free, never waits; nearly free while nobody tracks. Addresses without memory
 * are counted (`stray_marks`) and otherwise ignored. NULL is ignored.
 */
void brant_tracker_mark(const struct brant_tracker *tracker,
                        uint64_t guest_address,
                        uint64_t length);

/**
 * The same for a bitmap of pages: bit i of `words` (bit i % 64 of word i / 64) is the page of
 * 4 KiB at `guest_address` + 4096 i, for `pages` bits. What a device logged and the VMM has
 * fetched itself goes in here: VFIO_IOMMU_UNMAP_DMA with a dirty bitmap, a vhost log of the
 * VMM's own. Each bit where no memory is counts in `stray_marks`. NULL is ignored.
 */
void brant_tracker_mark_bitmap(const struct brant_tracker *tracker,
                               uint64_t guest_address,
                               const uint64_t *words,
                               uint64_t pages);

/** The same for `length` bytes at an offset in a block. */
void brant_tracker_mark_block(const struct brant_tracker *tracker,
                              uint32_t block,
                              uint64_t offset,
                              uint64_t length);

/**
 * Running totals. Those of pages found, pending and put back are the VMM's own (see
 * brant_tracker), since `brant_tracker_start`; the others are of all consumers together, since
 * the first of them started.
 */
typedef struct brant_tracker_stats {
    /** sizeof(brant_tracker_stats). */
    size_t size;
    /** Pages pending now for the VMM. */
    uint64_t pending_pages;
    /** Syncs made, whoever asked. */
    uint64_t syncs;
    /** Pages that became pending for the VMM. */
    uint64_t found_pages;
    /** Calls that cleared chunks. */
    uint64_t clear_calls;
    /** Bits they cleared. */
    uint64_t cleared_pages;
    /** Nanoseconds: the longest restoring of one chunk. */
    uint64_t longest_clear_ns;
    /** Pages that the VMM put back. */
    uint64_t put_back_pages;
    /**
     * Marks at addresses where no block is, bits of vhost logs included; since the tracker was
     * made.
     */
    uint64_t stray_marks;
    /**
     * Bytes of bitmaps and rings that brant holds for the guest's memory, those of each log
     * included; the kernel's own are not.
     */
    uint64_t heap_bytes;
    /** The chunk shift in use; 0 when chunks are off. */
    uint32_t chunk_shift;
    /** Whether tracking is on, for any consumer: 1 or 0. */
    uint32_t started;
    /**
     * Ballooned pages that a consumer named instead of reading; one that is named again counts
     * again.
     */
    uint64_t ballooned_pages;
    /** Ballooned pages that were found written all the same: they are ballooned no more. */
    uint64_t ballooned_written_pages;
    /** Pages that free-page hints took out of pending. */
    uint64_t hinted_pages;
    /** Hints that came after their round was over, and did nothing. */
    uint64_t stale_hints;
} brant_tracker_stats;

/** Fills in the tracker's totals. */
int32_t brant_tracker_get_stats(const struct brant_tracker *tracker,
                                struct brant_tracker_stats *stats,
                                struct brant_error **error);

/* ---------------------------------------------------------------------------------------------
 * The tracker's logs: KVM
 *
 * Which log suits is measured before rings are enabled: afterwards no bitmap works.
 * --------------------------------------------------------------------------------------------- */

/**
 * The best that kernel and VM have: the ring if the VM's rings are enabled (no bitmap works then),
 * else the bitmaps that `brant_kvm_log.costs` recommends, or without it initially set, else manual
 * protect, else get-and-clear. `brant_tracker_get_kvm` says which it is, and why. Nothing is
 * measured unasked; what suits the guest is measured before rings are enabled, by
 * `brant_kvm_measure`.
 */
#define BRANT_KVM_AUTO 0
/** KVM_GET_DIRTY_LOG reads and clears. */
#define BRANT_KVM_GET_AND_CLEAR 1
/** KVM_CLEAR_DIRTY_LOG clears; starting protects all pages. */
#define BRANT_KVM_MANUAL_PROTECT 2
/** KVM_CLEAR_DIRTY_LOG clears; starting protects nothing and every page counts as dirty once. */
#define BRANT_KVM_INITIALLY_SET 3
/**
 * Each vCPU's dirty ring, of a VM whose rings were enabled (`brant_kvm_enable_ring`). Tell of each
 * vCPU by `brant_tracker_add_vcpu`, and of each exit with a full ring by
 * `brant_tracker_ring_full`.
 */
#define BRANT_KVM_RING 4

/** brant switches logging by KVM_SET_USER_MEMORY_REGION, with the slot as it was described. */
#define BRANT_SWITCHED_BY_BRANT 0
/** The VMM does, in the `log_on` and `log_off` of the guest's operations. */
#define BRANT_SWITCHED_BY_VMM 1

struct brant_kvm_costs;

/** KVM's dirty bitmaps or rings. */
typedef struct brant_kvm_log {
    /** sizeof(brant_kvm_log). */
    size_t size;
    /** What KVM_CREATE_VM returned. brant keeps a duplicate. */
    int32_t vm_fd;
    /** BRANT_KVM_*. brant enables the capability while it tracks and disables it afterwards. */
    uint32_t mode;
    /** BRANT_SWITCHED_*. */
    uint32_t switched_by;
    /** 0. */
    uint32_t reserved;
    /**
     * In mode ring: bytes of each vCPU's ring, as `brant_kvm_enable_ring` said; a vCPU whose ring
     * has another size is refused. 0: what the kernel says.
     */
    uint64_t ring_bytes;
    /**
     * What `brant_kvm_measure` filled, for BRANT_KVM_AUTO to go by; or NULL. Read during the call.
     */
    const struct brant_kvm_costs *costs;
} brant_kvm_log;

/**
 * What was picked of KVM's dirty logs, and how its rings fare. All but the first six fields are
 * about rings, and 0 in other modes.
 */
typedef struct brant_kvm_info {
    /** sizeof(brant_kvm_info). */
    size_t size;
    /** BRANT_KVM_*; BRANT_KVM_AUTO only as long as no KVM log was added. */
    uint32_t mode;
    /** 1 if a bitmap is read besides the rings, for what no vCPU writes. */
    uint32_t with_bitmap;
    /** vCPUs added. */
    uint64_t vcpus;
    /** Bytes of each vCPU's ring; 16 an entry. */
    uint64_t ring_bytes;
    /** Bytes of bitmaps held for what the rings gave between syncs. */
    uint64_t heap_bytes;
    /** Rounds over all rings, each with one KVM_RESET_DIRTY_RINGS at most. */
    uint64_t rounds;
    /** Entries harvested. A page that is written, harvested and written again counts twice. */
    uint64_t harvested;
    /** Calls of `brant_tracker_ring_full`. */
    uint64_t full_exits;
    /** Times that a ring overran: the kernel pushed onto a full one. */
    uint64_t overruns;
    /** Pushes that were lost in that, as far as they are known. No page is: see `recoveries`. */
    uint64_t lost_pushes;
    /** Times that all slots were protected again and every page counted as dirty, after a loss. */
    uint64_t recoveries;
    /**
     * Resets that were interrupted, or may have been: the process was stopped, traced or frozen.
     */
    uint64_t interrupted;
    /** Pages that may have lost their protection in one of those, reported in every sync. */
    uint64_t doubtful_pages;
    /** Entries that named no page of the guest. */
    uint64_t stray_entries;
} brant_kvm_info;

/**
 * Adds KVM's dirty bitmaps or rings to what the tracker harvests; before tracking starts. Of the
 * guest's operations it uses `log_on` and `log_off` with BRANT_SWITCHED_BY_VMM, both required
 * then, and with rings `kick` and `thread_start` where they are there. A virtual machine has one
 * dirty log: only one tracker may be harvesting it at a time, or each takes what the other misses.
 */
int32_t brant_tracker_add_kvm(struct brant_tracker *tracker,
                              const struct brant_kvm_log *kvm,
                              struct brant_error **error);

/**
 * Says which of KVM's logs the tracker uses, and why: the reason is copied to `buffer`, cut to
 * `capacity` bytes and NUL-terminated; `*needed` (may be NULL) gets the bytes that it takes. NULL
 * and 0 for no text. Before `brant_tracker_add_kvm` the mode is BRANT_KVM_AUTO. Any thread.
 */
int32_t brant_tracker_get_kvm(const struct brant_tracker *tracker,
                              struct brant_kvm_info *info,
                              char *buffer,
                              size_t capacity,
                              size_t *needed,
                              struct brant_error **error);

/**
 * Enables KVM's dirty rings on a virtual machine that has no vCPU and no memory slot yet: `bytes`
 * for each vCPU, a power of two from 4096 to 1 MiB (65536 entries of 16 bytes), or 0 for what
 * brant thinks best, 256 KiB. `*bytes_in_use` (may be NULL) gets the size. Where the kernel offers
 * one, the backup bitmap for writes that no vCPU makes is enabled too. `vm_fd` is what
 * KVM_CREATE_VM returned; brant keeps nothing of it. Afterwards no bitmap works on that VM:
 * `brant_kvm_measure` says before what suits the guest. BRANT_E_UNSUPPORTED without rings in this
 * kernel, BRANT_E_STATE if they are enabled already.
 */
int32_t brant_kvm_enable_ring(int32_t vm_fd,
                              uint64_t bytes,
                              uint64_t *bytes_in_use,
                              struct brant_error **error);

/**
 * Tells a tracker in mode ring of a vCPU, under any number that is not in use: for each vCPU
 * before tracking starts, and for one that is added later before it first runs. `vcpu_fd` is what
 * KVM_CREATE_VCPU returned; brant maps its ring and keeps no descriptor. A vCPU that is not told
 * of is not tracked.
 */
int32_t brant_tracker_add_vcpu(struct brant_tracker *tracker,
                               uint32_t vcpu,
                               int32_t vcpu_fd,
                               struct brant_error **error);

/**
 * Says that a vCPU came out of KVM_RUN with KVM_EXIT_DIRTY_RING_FULL. On that vCPU's thread, once
 * for each such exit, also while nothing is tracked. Returns when there is room: enter KVM_RUN
 * again. It waits for one round over all rings, made on a thread of brant's, and for nothing else:
 * not for a sync, nor for whoever pauses the guest meanwhile. An error means that the kernel
 * refuses to reset the ring.
 */
int32_t brant_tracker_ring_full(struct brant_tracker *tracker,
                                uint32_t vcpu,
                                struct brant_error **error);

/**
 * How many pages a vCPU has dirtied since it was added, into `*pages`. A page that it dirties
 * again after a harvest counts again, and so does one that several vCPUs share. Any thread.
 */
int32_t brant_tracker_vcpu_dirty(const struct brant_tracker *tracker,
                                 uint32_t vcpu,
                                 uint64_t *pages,
                                 struct brant_error **error);

/**
 * The guest that is to be tracked, as far as the VMM knows it. All zero but the size: nothing is
 * known.
 */
typedef struct brant_kvm_workload {
    /** sizeof(brant_kvm_workload). */
    size_t size;
    /** Bytes of its memory; 0: unknown, and what a sync of clean memory costs does not count. */
    uint64_t memory_bytes;
    /**
     * Different pages of 4 KiB that it writes in a tenth of a second, times ten
     * (brant_rate_measure with a period of 100 ms says it of a guest like it). 0: unknown, and the
     * worst case counts: a guest that writes as fast as it can.
     */
    uint64_t dirty_pages_per_second;
    /** Milliseconds that the measurement takes at most, 20 to 10000; 0: 200. */
    uint64_t limit_ms;
} brant_kvm_workload;

/** What one of KVM's logs costs, in nanoseconds of the processor that runs the guest or syncs. */
typedef struct brant_kvm_cost {
    /** 1, or 0 where the kernel has no such log or there was no time; then the others are 0. */
    uint64_t measured;
    /** The guest's first write to a clean page. */
    uint64_t first_write_ns;
    /**
     * A write of a guest that goes over its memory again and again, four times between two syncs:
     * the mean of first writes and later ones. With a ring they are all first ones, because what
     * a ring gave is protected again when a quarter of it is in use.
     */
    uint64_t busy_write_ns;
    /** A sync, for each dirty page: finding it and protecting it again. */
    uint64_t sync_page_ns;
    /** A sync, for each GiB of the guest in which nothing is dirty. */
    uint64_t sync_gib_ns;
} brant_kvm_cost;

/** What `brant_kvm_measure` found. `brant_kvm_log.costs` takes it as it was filled. */
typedef struct brant_kvm_costs {
    /** sizeof(brant_kvm_costs). */
    size_t size;
    /** The kind that costs this guest least, BRANT_KVM_*; never BRANT_KVM_AUTO. */
    uint64_t recommended;
    /** As `brant_kvm_workload` said. */
    uint64_t memory_bytes;
    /** As `brant_kvm_workload` said. */
    uint64_t dirty_pages_per_second;
    /** A write of a guest that is not tracked. */
    uint64_t untracked_write_ns;
    /** BRANT_KVM_GET_AND_CLEAR. */
    struct brant_kvm_cost get_and_clear;
    /** BRANT_KVM_MANUAL_PROTECT. */
    struct brant_kvm_cost manual_protect;
    /** BRANT_KVM_INITIALLY_SET. */
    struct brant_kvm_cost initially_set;
    /** BRANT_KVM_RING. */
    struct brant_kvm_cost ring;
} brant_kvm_costs;

/**
 * Measures what each of KVM's logs costs on this machine, and recommends one. Call it before
 * `brant_kvm_enable_ring` (KVM_ENABLE_CAP of KVM_CAP_DIRTY_LOG_RING): on a VM with rings no bitmap
 * works any more, so later there is nothing to choose. Rings suit a huge guest that writes little;
 * a guest that writes its memory again and again faults more often with them.
 *
 * Example: measure; enable rings if `costs.recommended` is BRANT_KVM_RING; make the VM's slots and
 * vCPUs; later add KVM's log with BRANT_KVM_AUTO and `brant_kvm_log.costs`.
 *
 * A guest of brant's own is tried, in two virtual machines that come and go with 4 MiB of memory
 * each, on the calling thread and no other. It takes 0.2 s at most, or `workload->limit_ms`,
 * and about as long as KVM needs to end a virtual machine on top; the VMM's own virtual machines
 * are not looked at. Nothing of it stays, whatever the call returns. Any thread.
 *
 * `kvm_fd` is a descriptor of /dev/kvm; brant keeps nothing of it. -1: brant opens /dev/kvm for
 * the time of the call. `workload` may be NULL: nothing is known of the guest. `costs` is filled,
 * with zeros when the call fails. The reason of the recommendation is copied to `buffer` as
 * `brant_tracker_get_kvm` does it; NULL and 0 for none, and `needed` may be NULL.
 *
 * BRANT_E_NO_MEMORY where 1 GiB of address space, which is reserved and not touched, is not to be
 * had; BRANT_E_UNSUPPORTED on anything but x86-64, or where KVM does not run the guest;
 * BRANT_E_TIMEOUT when not even one kind was measured in time; BRANT_E_INVALID for a limit out of
 * range or a descriptor of something else; BRANT_E_KERNEL when KVM refuses a call.
 */
int32_t brant_kvm_measure(int32_t kvm_fd,
                          const struct brant_kvm_workload *workload,
                          struct brant_kvm_costs *costs,
                          char *buffer,
                          size_t capacity,
                          size_t *needed,
                          struct brant_error **error);

/* ---------------------------------------------------------------------------------------------
 * The tracker's logs: vhost, VFIO, iommufd, userfaultfd
 * --------------------------------------------------------------------------------------------- */

/**
 * The memory of a vhost log: one bit for each 4 KiB of guest physical memory from address 0 on,
 * `log[page / 8] |= 1 << page % 8`, set by an atomic or after the write. Valid during the
 * callback only; what it names is there until all back ends have been moved to another log or
 * switched off.
 */
typedef struct brant_vhost_memory {
    /** sizeof(brant_vhost_memory) as brant knows it. */
    size_t size;
    /** Where it is mapped in this process: what VHOST_SET_LOG_BASE of the kernel's vhost takes. */
    void *address;
    /**
     * Bytes; a multiple of 4096. The `mmap_size` of vhost-user's SET_LOG_BASE, whose
     * `mmap_offset` is 0.
     */
    uint64_t length;
    /**
     * A memfd of that length, sealed against shrinking and growing: what goes with
     * vhost-user's SET_LOG_BASE. It stays brant's: duplicate it to keep it longer than the
     * callback. Sending it over a socket duplicates it.
     */
    int32_t fd;
    /** 0. */
    uint32_t reserved;
} brant_vhost_memory;

/**
 * Back ends of vhost and vhost-user that share one log.
 *
 * The operations are called on whichever thread starts or stops tracking or changes the
 * guest's memory, under brant's own locks: in there call nothing of brant's but marks and
 * `brant_reason_set`, and take no lock that another thread holds around a brant_guest_* or
 * brant_tracker_* call. They return 0, or anything else for a failure, whose reason they may set.
 */
typedef struct brant_vhost_log {
    /** sizeof(brant_vhost_log). */
    size_t size;
    /** Given to the operations, until the tracker is freed and no migration uses it any more. */
    void *opaque;
    /**
     * The log reaches to this guest address at least (exclusive); at most 2^48. 0: to the end of
     * the highest slot, which is enough where used rings are in guest memory.
     */
    uint64_t reach;
    /**
     * Required. Have every back end log to this memory from now on; return when each does. For
     * the kernel's vhost: VHOST_SET_LOG_BASE, VHOST_SET_FEATURES with VHOST_F_LOG_ALL,
     * VHOST_SET_VRING_ADDR with VHOST_VRING_F_LOG. For vhost-user: SET_LOG_BASE and its reply,
     * then SET_FEATURES, and SET_VRING_ADDR, acknowledged.
     *
     * Called when tracking starts, and again, with a longer log, when a slot is added that the
     * one before does not reach: then the log base is all that changes, and the log before is
     * gone after the return. So add the slot to brant first, and tell back ends of the new
     * memory after that. A failure of the first call refuses the start, and `log_off`
     * follows; a failure of a later one refuses the slot, and back ends may go on in either log.
     */
    int32_t (*log_on)(void *opaque,
                      const struct brant_vhost_memory *log,
                      struct brant_reason *reason);
    /**
     * Required. Have every back end stop logging (the features again without VHOST_F_LOG_ALL);
     * return when none writes to a log any more. Also called after a first `log_on` that failed.
     * A failure leaves the log mapped, used again by the next start; for ever, if there is none.
     */
    int32_t (*log_off)(void *opaque, struct brant_reason *reason);
} brant_vhost_log;

/**
 * Adds a log that vhost and vhost-user back ends write to; before tracking starts. brant makes
 * the memory when tracking starts and brings it to the back ends by `log_on`. One for all
 * devices is the usual; several may be added. Bits beyond the guest's memory are counted
 * (`stray_marks`) and otherwise ignored. Paused means, for these, that all rings have stopped:
 * GET_VRING_BASE answered for each, and no write in flight.
 */
int32_t brant_tracker_add_vhost(struct brant_tracker *tracker,
                                const struct brant_vhost_log *vhost,
                                struct brant_error **error);

/** In `brant_dma_range.block`: `address` is a guest physical address. */
#define BRANT_NO_BLOCK 4294967295

/** What a range of I/O virtual addresses shows to a device. One mapping for DMA, page-aligned. */
typedef struct brant_dma_range {
    /** The first I/O virtual address. */
    uint64_t iova;
    /** Bytes; not 0. */
    uint64_t length;
    /** Where it begins: an offset in `block`, bytes, or a guest physical address. */
    uint64_t address;
    /** The block's number, or BRANT_NO_BLOCK. */
    uint32_t block;
    /** 0. */
    uint32_t reserved;
} brant_dma_range;

/** A VFIO device, or a VFIO container with a type 1 IOMMU, that tells what devices write. */
typedef struct brant_vfio_log {
    /** sizeof(brant_vfio_log). */
    size_t size;
    /** Its descriptor. brant keeps a duplicate. */
    int32_t fd;
    /** 0. */
    uint32_t reserved;
    /**
     * For a device, in which pages it should track, bytes: a power of two from 4096 to 1 GiB; its
     * driver may choose another. 0 means 4096. For a container, 0.
     */
    uint64_t page_size;
    /**
     * What the device may write, without overlaps; copied. NULL: each writable slot of the guest
     * is one mapping, at an I/O virtual address that is its guest address.
     */
    const struct brant_dma_range *ranges;
    /** How many; at most 65536. */
    size_t range_count;
} brant_vfio_log;

/** A hardware page table of iommufd. */
typedef struct brant_iommufd_log {
    /** sizeof(brant_iommufd_log). */
    size_t size;
    /** The iommufd. brant keeps a duplicate. */
    int32_t fd;
    /** The page table, allocated with IOMMU_HWPT_ALLOC_DIRTY_TRACKING. */
    uint32_t hwpt_id;
    /** As in `brant_vfio_log`. */
    const struct brant_dma_range *ranges;
    /** How many; at most 65536. */
    size_t range_count;
} brant_iommufd_log;

/**
 * Adds the log that a VFIO device keeps of its own DMA (VFIO_DEVICE_FEATURE_DMA_LOGGING_START,
 * _REPORT, _STOP; Linux 6.1); before tracking starts. BRANT_E_UNSUPPORTED if it keeps none.
 *
 * When the guest gets memory that the log was not started for, it is started anew and all that
 * it covers counts as dirty. Before DMA memory is unmapped or a slot removed that others still
 * show, stop the device's DMA to it; what it logged is read when the slot is removed. Not tried
 * on hardware yet: tested against the kernel's interface as its header has it.
 */
int32_t brant_tracker_add_vfio_device(struct brant_tracker *tracker,
                                      const struct brant_vfio_log *vfio,
                                      struct brant_error **error);

/**
 * Adds the dirty log of a VFIO container whose type 1 IOMMU is set (VFIO_IOMMU_DIRTY_PAGES; Linux
 * 5.8); before tracking starts. BRANT_E_UNSUPPORTED if it has none.
 *
 * Each range is whole mappings: the kernel refuses to report part of one, and then all counts as
 * dirty. Where a device does not tell what it pins, the kernel reports every mapped page
 * each time. What was written disappears with a mapping: unmap memory that stays the guest's
 * with VFIO_DMA_UNMAP_FLAG_GET_DIRTY_BITMAP and give the bitmap to
 * `brant_tracker_mark_bitmap`. Not tried on hardware yet: see `brant_tracker_add_vfio_device`.
 */
int32_t brant_tracker_add_vfio_container(struct brant_tracker *tracker,
                                         const struct brant_vfio_log *vfio,
                                         struct brant_error **error);

/**
 * Adds the dirty log of an iommufd page table (IOMMU_HWPT_SET_DIRTY_TRACKING and
 * IOMMU_HWPT_GET_DIRTY_BITMAP; Linux 6.7); before tracking starts. BRANT_E_UNSUPPORTED if it
 * has none.
 *
 * All of each range is mapped while it is tracked: map a new slot for DMA before it is added
 * here, and unmap one after it was removed; a range with something unmapped in it counts as
 * dirty at each sync. Not tried on hardware yet: see `brant_tracker_add_vfio_device`.
 */
int32_t brant_tracker_add_iommufd(struct brant_tracker *tracker,
                                  const struct brant_iommufd_log *iommufd,
                                  struct brant_error **error);

/**
 * Adds userfaultfd's write protection to what the tracker harvests; before tracking starts. All
 * memory of the guest's blocks is watched from then on, but that of BRANT_RAM_ROM: any memory of
 * this process can be a guest, with no KVM. Private and shared memory, files, transparent huge
 * pages; of hugetlbfs a huge page counts whole. Tracking starts in the process that calls
 * `brant_tracker_start`; between this call and that one it may fork. In a child made later each
 * harvest fails, and the parent's tracking is left alone.
 *
 * It finds what is written through the block's own mapping, by any thread, by the kernel for one
 * (`read`), by a KVM guest, or by `process_vm_writev`. It misses, and the VMM marks after the
 * write: writes to shared memory through another mapping, by `pwrite` or by another process; holes
 * punched into it; what goes to pinned pages (DMA, O_DIRECT reads, io_uring's registered buffers).
 *
 * Memory can be registered with one userfaultfd only: starting to track what another has is
 * BRANT_E_EXISTS and names the block. Here and at the start, BRANT_E_UNSUPPORTED where the
 * kernel has no asynchronous write protection (Linux 6.7 has) or userfaultfd cannot be had; no
 * privilege is needed, only that the system call is not filtered or /dev/userfaultfd can be
 * opened. A process that is not dumpable (setuid without exec) cannot read its own
 * /proc/self/pagemap: BRANT_E_KERNEL.
 *
 * The first write to each page after a harvest costs a fault (about 2 microseconds); a harvest
 * walks the page tables of what the guest has touched (about a millisecond a GiB). Private memory
 * that nobody has touched costs next to nothing; shared memory gets page tables when tracking
 * starts, 2 MiB a GiB. A transparent huge page is mapped in small pages once it is written, and
 * one that is new counts as written whole.
 */
int32_t brant_tracker_add_userfault(struct brant_tracker *tracker,
                                    struct brant_error **error);

/* =============================================================================================
 * Consumers: others that are told which pages were written
 * ============================================================================================= */

/**
 * One more consumer of a tracker, beside the VMM itself: an incremental backup, a chain of
 * snapshots, a monitor. It has its own pending pages: all that was written since it was made and
 * that it has not taken. Nobody takes them from it, neither another consumer nor a migration.
 *
 * Example: a backup has copied memory and keeps a consumer. 100 pages are written and synced; a
 * migration of the guest begins, syncs, sends, and fails. The backup takes 100 pages and what the
 * guest has written meanwhile.
 *
 * Its pages cost memory from when it is made until it is freed: one bit for each page of the
 * guest, of which what is never set is never touched.
 *
 * Threads: any, several at once. A call waits for a sync or take that is going on, on whichever
 * consumer of the tracker. `brant_consumer_free` is the last call: all others on it have returned
 * before it begins. The tracker may be freed before it. A child made by `fork` has a copy: what
 * the child calls on it ends no use of runs in the parent.
 */
typedef struct brant_consumer brant_consumer;

/** A consumer's running totals since it was made. */
typedef struct brant_consumer_stats {
    /** sizeof(brant_consumer_stats). */
    size_t size;
    /** Pages pending now. */
    uint64_t pending_pages;
    /** Syncs that it heard of, whoever asked for them. */
    uint64_t syncs;
    /** Pages that became pending by them. */
    uint64_t found_pages;
    /** Pages put back. */
    uint64_t put_back_pages;
    /** Whether it is told of what is written: 1, or 0 after `brant_consumer_stop`. */
    uint64_t started;
    /**
     * Which of the tracker's consumers it is, for as long as the tracker lives. The VMM itself is
     * 1; a migration and a measurement of the dirty rate count too. Messages name it so.
     */
    uint64_t number;
} brant_consumer_stats;

/**
 * Makes a consumer of a tracker, which starts at once: with BRANT_START_ALL every page of the
 * guest is pending for it, with BRANT_START_CLEAN none, and from then on every write is found for
 * it. The logs are switched on if nobody tracks yet, and off when the last consumer ends. A clean
 * start beside others harvests the logs (for the others) and restores the protection of what they
 * have pending, one chunk after the other. Free it with `brant_consumer_free`.
 */
int32_t brant_consumer_new(struct brant_tracker *tracker,
                           uint32_t with,
                           struct brant_consumer **consumer,
                           struct brant_error **error);

/** Frees a consumer and what is pending for it; NULL is fine. The others notice nothing. */
void brant_consumer_free(struct brant_consumer *consumer);

/**
 * Tells the consumer of no more writes, after a last harvest. What is pending stays and can be
 * taken. The logs are switched off if nobody else tracks. There is no second start: make another.
 */
int32_t brant_consumer_stop(struct brant_consumer *consumer,
                            struct brant_error **error);

/** `brant_tracker_sync`, reported for this consumer. */
int32_t brant_consumer_sync(struct brant_consumer *consumer,
                            uint32_t when,
                            struct brant_sync *report,
                            struct brant_error **error);

/**
 * `brant_tracker_take` of what is pending for this consumer. The runs are in use until its next
 * take, until `brant_consumer_stop` or until `brant_consumer_free`.
 */
int32_t brant_consumer_take(struct brant_consumer *consumer,
                            struct brant_run *runs,
                            size_t capacity,
                            size_t *count,
                            struct brant_error **error);

/** `brant_tracker_put_back` into what is pending for this consumer. */
int32_t brant_consumer_put_back(struct brant_consumer *consumer,
                                uint32_t block,
                                uint64_t first_page,
                                uint64_t pages,
                                struct brant_error **error);

/** Fills in the consumer's totals. */
int32_t brant_consumer_get_stats(const struct brant_consumer *consumer,
                                 struct brant_consumer_stats *stats,
                                 struct brant_error **error);

/* =============================================================================================
 * Hints: pages that are free at one moment
 * ============================================================================================= */

/**
 * Begins a round of free-page hints (VIRTIO_BALLOON_F_FREE_PAGE_HINT) and gives its number in
 * `*round`. Call it, then give the guest a new command id. Restores the protection of all pages
 * that still wait for it: one kernel call for each chunk with dirty pages, all of which the
 * migration would make as well, later. The round is over with the next sync (a migration syncs
 * at the end of each pass: BRANT_EVENT_PASS), with a change of the memory map and with the next
 * round. Any thread; may wait for a sync. BRANT_E_STATE while nothing is tracked, also a moment
 * after a migration was started: try again.
 */
int32_t brant_tracker_begin_hints(const struct brant_tracker *tracker,
                                  uint64_t *round,
                                  struct brant_error **error);

/**
 * The guest hinted, answering the command id that belongs to `round`, that `length` bytes at a
 * guest physical address are free. Whole pages of them that are pending are not sent, this once,
 * and read as zero at the destination; what the guest writes to them later is found and sent. It
 * need not say a word before that. BRANT_E_STATE if the round is over: nothing happens, and the
 * hint is counted (`stale_hints`). Any thread; may wait for a sync.
 */
int32_t brant_tracker_hint_free(const struct brant_tracker *tracker,
                                uint64_t round,
                                uint64_t guest_address,
                                uint64_t length,
                                struct brant_error **error);

/**
 * Ends a round: hints of it that come later do nothing. One that is over already is fine, and
 * so is NULL. Any thread.
 */
void brant_tracker_end_hints(const struct brant_tracker *tracker,
                             uint64_t round);

/* =============================================================================================
 * Outgoing: a migration from here, the source
 *
 * Make it of a tracker, start it, wait for it, free it. Who has the guest then: brant_outgoing_wait.
 * ============================================================================================= */

/**
 * A migration from here to somewhere else. One object, one migration; for another, make a new
 * one: it starts from all pages. It is started only where the guest is here and no other
 * migration of it is in progress, in either direction, through whichever tracker: else the start
 * is BRANT_E_STATE (handed over, given up, to be resolved) or BRANT_E_BUSY.
 *
 * Threads: any, several at once. `brant_outgoing_cancel` may be called by any number of threads,
 * also while others wait, whose waits it ends. `brant_outgoing_free` is the last call: all others
 * on it have returned before it begins. Inside a callback of the same migration, waiting and
 * freeing are BRANT_E_CALLBACK, and cancelling only asks.
 */
typedef struct brant_outgoing brant_outgoing;

struct brant_params;

/**
 * Makes a migration of the guest that `tracker` was made from. The operations of that guest must
 * have `pause` and `resume`: else BRANT_E_INVALID. `parameters` may be NULL for what ships.
 * Nothing happens before it is started.
 */
int32_t brant_outgoing_new(struct brant_tracker *tracker,
                           const struct brant_params *parameters,
                           struct brant_outgoing **outgoing,
                           struct brant_error **error);

/**
 * Cancels a migration that is going on, waits for its end, and frees it; NULL is fine. After
 * the hand-over it waits for the answer instead, for the hand-over timeout and a second at most. A
 * guest that is unanswered and not resolved counts as handed over then (`brant_guest_reclaim`).
 * 0, or BRANT_E_CALLBACK inside one of its own callbacks, where nothing is freed.
 *
 * The last call on the migration. To end waits on other threads first: brant_outgoing_cancel, join
 * those threads, free.
 */
int32_t brant_outgoing_free(struct brant_outgoing *outgoing);

/**
 * Starts it, to "tcp:ADDRESS:PORT" (a numeric IPv4 address, an IPv6 address in brackets, or
 * localhost) or "unix:/PATH", and returns at once; what it comes to is told by
 * `brant_outgoing_wait`, the events and the figures.
 */
int32_t brant_outgoing_start(struct brant_outgoing *outgoing,
                             const char *endpoint,
                             struct brant_error **error);

/**
 * Starts it over a connected stream socket (TCP, unix, vsock), which is brant's from here on,
 * whatever the call returns, its blocking mode too. BRANT_E_INVALID for any other descriptor, with
 * what it is: then nothing has begun.
 */
int32_t brant_outgoing_start_fd(struct brant_outgoing *outgoing,
                                int32_t fd,
                                struct brant_error **error);

/**
 * Ends the migration, wherever it is before the hand-over, and returns when the guest runs on:
 * within 100 ms, unless a callback or a kernel call is in progress. Inside one of its callbacks it
 * only asks for that. One that has ended is left alone. After the hand-over: BRANT_E_STATE.
 */
int32_t brant_outgoing_cancel(struct brant_outgoing *outgoing,
                              struct brant_error **error);

/**
 * Waits until it is over, for at most `timeout_ms` milliseconds (BRANT_NO_LIMIT: for ever; 0: not
 * at all): 0 if the guest runs at the destination, BRANT_E_PENDING if it is still going on, else
 * why it failed: then the guest runs on here, as if nothing had been (or, if `resume` itself
 * failed, stands paused: BRANT_SOURCE_RESUME_FAILED). After BRANT_E_UNANSWERED the guest is paused
 * and the VMM has to resolve it: ask the destination's VMM whether its `run` was called. By then
 * it was, or never will be. That is so too where the destination said that it ended (the hand-over
 * came too late, `run` failed, it was cancelled): brant does not take a guest back by itself once
 * it was handed over, and the message holds the destination's words. A migration that was handed
 * over ends with 0 or BRANT_E_UNANSWERED and nothing else, and the last event and the figures say
 * the same.
 */
int32_t brant_outgoing_wait(struct brant_outgoing *outgoing,
                            uint64_t timeout_ms,
                            struct brant_error **error);

/** The destination does not run the guest (the VMM knows): it runs on here. */
#define BRANT_RESOLVE_RESUME 1
/** The destination runs it (the VMM knows), or nobody shall: it never runs here again. */
#define BRANT_RESOLVE_DESTROY 2

/**
 * The VMM's decision about a guest that was handed over without an answer, once: with
 * BRANT_RESOLVE_RESUME `resume` is called on this thread, and where that fails it can be resolved
 * again. In any other state: BRANT_E_STATE. Until it is resolved nothing else begins with the
 * guest. What the destination says of its brant_incoming decides:
 *
 * - its `run` was called, or BRANT_DESTINATION_RUNNING: BRANT_RESOLVE_DESTROY;
 * - BRANT_DESTINATION_FAILED or _START_FAILED, `brant_incoming_cancel` returned 0, or its process
 *   is gone and cannot have a running guest: BRANT_RESOLVE_RESUME.
 */
int32_t brant_outgoing_resolve(struct brant_outgoing *outgoing,
                               uint32_t resolution,
                               struct brant_error **error);

struct brant_stats;

/** Fills in the figures as they are now. Any thread, also inside callbacks. */
int32_t brant_outgoing_get_stats(const struct brant_outgoing *outgoing,
                                 struct brant_stats *stats,
                                 struct brant_error **error);

/**
 * The same as one JSON object, by the same names, with null for what is unknown and "state" for
 * the name of the state. NUL-terminated and cut to `capacity` bytes; `*needed` (may be NULL)
 * gets how many it takes.
 */
int32_t brant_outgoing_get_stats_json(const struct brant_outgoing *outgoing,
                                      char *buffer,
                                      size_t capacity,
                                      size_t *needed,
                                      struct brant_error **error);

/**
 * An eventfd that becomes readable when the figures have changed, for poll; reading it resets
 * it. It stays the migration's: do not close it. A code if `outgoing` is NULL.
 */
int32_t brant_outgoing_event_fd(const struct brant_outgoing *outgoing);

/* =============================================================================================
 * Incoming: a migration to here, the destination
 *
 * Make it of a guest with the source's blocks, listen, wait, free it.
 * ============================================================================================= */

/**
 * A migration from somewhere else to here, into a guest whose blocks match the source's by
 * name, length and page size. The guest runs only after the source handed it over, and in time:
 * the source says how long a hand-over counts, and a later one runs nothing
 * (BRANT_DESTINATION_FAILED).
 *
 * It is started only where no guest runs in that memory and nothing else is in progress with it:
 * else BRANT_E_STATE or BRANT_E_BUSY. A guest that was handed over from here, or given up, is
 * overwritten by the one that arrives.
 *
 * Who may connect is the VMM's decision (by the address, or the permissions of a socket's
 * directory): a listener takes the first connection on which a source speaks, and that is no
 * proof of who it is. Hand in a connected socket where that is not enough.
 *
 * Threads: any, several at once. `brant_incoming_cancel` may be called by any number of threads,
 * also while others wait, whose waits it ends. `brant_incoming_free` is the last call: all others
 * on it have returned before it begins. Inside a callback of the same migration, waiting and
 * freeing are BRANT_E_CALLBACK, and cancelling only asks.
 */
typedef struct brant_incoming brant_incoming;

/**
 * Makes a migration into `guest`, whose operations must have `run`: else BRANT_E_INVALID. They
 * need `load` too if the source saves state, and `early_load` if it saves configuration.
 * `parameters` may be NULL for what ships.
 */
int32_t brant_incoming_new(struct brant_guest *guest,
                           const struct brant_params *parameters,
                           struct brant_incoming **incoming,
                           struct brant_error **error);

/**
 * Cancels a migration that is going on, waits for its end, and frees it; NULL is fine. A guest
 * that runs here runs on. 0, or BRANT_E_CALLBACK inside one of its own callbacks, where nothing
 * is freed. The last call on the migration, as brant_outgoing_free.
 */
int32_t brant_incoming_free(struct brant_incoming *incoming);

/**
 * Listens on "tcp:ADDRESS:PORT" or "unix:/PATH", as for `brant_outgoing_start`, and returns at
 * once. Port 0 is any free one; `brant_incoming_get_endpoint` tells which. Waits for a source
 * without a limit.
 *
 * Strangers end nothing and delay nothing. Several connections are looked at together; the
 * first one on which all of a source's first record comes is the migration's, and the others are
 * closed. So is a connection on which something else is said, or for as long as the connect
 * timeout nothing, and the oldest when there are more than 128. When the process has no
 * descriptor left for a connection, the connection waits until there is one, and a
 * BRANT_EVENT_WARNING says so.
 *
 * The port, or the socket's file, is let go of when there is a source. To listen again after a
 * migration that failed: free this brant_incoming, make another one of the same guest, and
 * listen at what `brant_incoming_get_endpoint` says, which is free at once.
 */
int32_t brant_incoming_listen(struct brant_incoming *incoming,
                              const char *endpoint,
                              struct brant_error **error);

/**
 * The endpoint that the migration listens at, as text for the source's `brant_outgoing_start`:
 * with the real port where 0 was asked for, and the address that an interface's name or a host's
 * name stood for. Copied to `buffer`, of `capacity` bytes, cut where it is longer, and with a NUL
 * at the end. The bytes that all of it takes, the NUL included, are in `needed`, which may be
 * NULL. `buffer` may be NULL where `capacity` is 0.
 *
 * The same from the return of `brant_incoming_listen` until `brant_incoming_free`, also when
 * there is a source and when the migration is over: then nothing listens there any more.
 * BRANT_E_STATE before, and for a migration over a descriptor. Any thread, also inside callbacks.
 */
int32_t brant_incoming_get_endpoint(const struct brant_incoming *incoming,
                                    char *buffer,
                                    size_t capacity,
                                    size_t *needed,
                                    struct brant_error **error);

/**
 * Starts it over a connected stream socket (TCP, unix, vsock), which is brant's from here on,
 * whatever the call returns. BRANT_E_INVALID for any other descriptor, with what it is: then
 * nothing has begun.
 */
int32_t brant_incoming_start_fd(struct brant_incoming *incoming,
                                int32_t fd,
                                struct brant_error **error);

/**
 * Ends it before the guest is taken over. 0 proves that the guest never runs here, now or later: a
 * source without an answer may take it back. Returns within 100 ms unless a callback is in
 * progress. Inside one of its callbacks it only asks for that. After the hand-over was received:
 * BRANT_E_STATE. The memory is then half of a guest's: what comes in next has to be a whole one,
 * through a new brant_incoming.
 */
int32_t brant_incoming_cancel(struct brant_incoming *incoming,
                              struct brant_error **error);

/**
 * Waits until the guest runs here, for at most `timeout_ms` milliseconds (BRANT_NO_LIMIT: for
 * ever; 0: not at all): 0, BRANT_E_PENDING if it is still going on, else why it failed.
 */
int32_t brant_incoming_wait(struct brant_incoming *incoming,
                            uint64_t timeout_ms,
                            struct brant_error **error);

/** Fills in the figures as they are now. Any thread, also inside callbacks. */
int32_t brant_incoming_get_stats(const struct brant_incoming *incoming,
                                 struct brant_stats *stats,
                                 struct brant_error **error);

/** As `brant_outgoing_get_stats_json`. */
int32_t brant_incoming_get_stats_json(const struct brant_incoming *incoming,
                                      char *buffer,
                                      size_t capacity,
                                      size_t *needed,
                                      struct brant_error **error);

/** As `brant_outgoing_event_fd`. */
int32_t brant_incoming_event_fd(const struct brant_incoming *incoming);

/* =============================================================================================
 * Parameters of a migration
 * ============================================================================================= */

/** In a time limit: none. */
#define BRANT_NO_LIMIT 18446744073709551615ull

/**
 * Parameters of a migration. 0 is the default everywhere; what is out of range is
 * BRANT_E_INVALID with the range in the message.
 */
typedef struct brant_params {
    /** sizeof(brant_params). */
    size_t size;
    /**
     * The longest that the guest shall stand still, milliseconds, 1 to 3600000; default 300.
     * A ceiling for the decision to switch over: not a promise, and not a target. Where the
     * rest fits, passes go on as long as the last one made it smaller, so a guest that writes
     * little stands still for much less.
     */
    uint64_t downtime_limit_ms;
    /**
     * Bytes a second that sending may use while the guest runs, 64 KiB/s to 1 TiB/s; default
     * no cap. The switchover is not capped, and the link is not taken to be as slow as the cap:
     * now and then a batch is timed until it has arrived.
     */
    uint64_t max_bandwidth;
    /**
     * Bytes a second that will be there at the switchover, when you know better than a
     * measurement can (behind a cap, on a link that others will use then); same range; default
     * as measured.
     */
    uint64_t switchover_bandwidth;
    /**
     * The longest that a migration may take, milliseconds, 1 to 30 days; BRANT_NO_LIMIT. At the
     * source from its start to the switchover, default one hour. At the destination from the
     * source's first record to the hand-over, default one day: waiting for somebody to connect
     * does not count. Whatever is waited for ends with the earliest of all limits that apply.
     */
    uint64_t total_timeout_ms;
    /**
     * For connecting, and once more for agreeing on versions, configuration and layout;
     * milliseconds, 1 to 3600000; default 10000. At the source the destination's `early_load` is
     * part of the second. A listener gives each connection as long for its first record.
     */
    uint64_t connect_timeout_ms;
    /**
     * For a peer that moves not one byte; also for one record, which has beyond it the time that
     * its bytes take at 64 KiB/s. Milliseconds, 1 to 3600000; default 30000. Between two
     * records a destination waits for the switchover timeout if that is longer: the source's
     * VMM may be saving.
     */
    uint64_t io_timeout_ms;
    /**
     * From the pause to the hand-over, past which the source takes the guest back, and at the
     * destination from ready to the hand-over, where the source's hand-over timeout is not
     * shorter; milliseconds, 1 to 3600000; default 30000.
     */
    uint64_t switchover_timeout_ms;
    /**
     * Source: how long a hand-over counts once the destination is ready, which is told so;
     * milliseconds, 1 to 3600000; default 30000. `release` comes in this time. When it has run
     * out, the source sends no hand-over and keeps the guest, and the destination runs nothing
     * on one that is under way. One second later the destination has begun `run` or
     * never will, and only then is a migration that was handed over unanswered.
     */
    uint64_t handover_timeout_ms;
    /**
     * Destination: the most bytes of early configuration, and of device state, that it takes;
     * 4 KiB to 1 TiB; default 256 MiB.
     */
    uint64_t max_state_bytes;
    /** Connections; 1. */
    uint32_t channels;
    /** 0. */
    uint32_t reserved;
    /** BRANT_BALLOONED_*: what becomes of ballooned pages. */
    uint32_t ballooned;
    /** 0. */
    uint32_t reserved2;
} brant_params;

/**
 * In `brant_params.ballooned`, the default. The source neither reads nor sends ballooned pages;
 * the destination discards their memory. No page is ballooned unless the guest must tell first
 * (`brant_guest_must_tell_host`).
 */
#define BRANT_BALLOONED_SKIP 0
/**
 * In `brant_params.ballooned`: ballooned pages are sent like any other. A destination wants it so
 * if it must not lose the memory behind them, because devices assigned to the guest have pinned
 * it. At the source free-page hints do nothing then.
 */
#define BRANT_BALLOONED_SEND 1

/* =============================================================================================
 * Statistics of a migration
 * ============================================================================================= */

/** Source: not started. */
#define BRANT_SOURCE_IDLE 0
/** Source: making the connection. */
#define BRANT_SOURCE_CONNECTING 1
/** Source: agreeing on versions, configuration and memory layout. */
#define BRANT_SOURCE_NEGOTIATING 2
/** Source: sending memory while the guest runs. */
#define BRANT_SOURCE_COPYING 3
/** Source: waiting for the VMM to stop the guest. */
#define BRANT_SOURCE_PAUSING 4
/** Source: The VMM saves its state. */
#define BRANT_SOURCE_SAVING 5
/** Source: the last harvest of all logs. */
#define BRANT_SOURCE_LAST_SYNC 6
/** Source: sending the last pages, the end marker and the state. */
#define BRANT_SOURCE_SENDING_LAST 7
/** Source: the destination loads. */
#define BRANT_SOURCE_AWAITING_READY 8
/** Source: The VMM lets go of what only one may hold. */
#define BRANT_SOURCE_RELEASING 9
/** Source: racing a cancel for the gate. */
#define BRANT_SOURCE_COMMITTING 10
/** Source: the hand-over is being sent: too late to cancel. */
#define BRANT_SOURCE_HANDING_OVER 11
/** Source: handed over; the destination has not said yet that it runs. */
#define BRANT_SOURCE_AWAITING_RUNNING 12
/** Source: It failed before the hand-over: the VMM resumes the guest. */
#define BRANT_SOURCE_RESUMING 13
/** Source: the guest runs at the destination. */
#define BRANT_SOURCE_COMPLETED 14
/** Source: It failed; the guest runs here, as if nothing had been. */
#define BRANT_SOURCE_FAILED 15
/** Source: It failed and the VMM could not resume the guest, which stands paused here. */
#define BRANT_SOURCE_RESUME_FAILED 16
/** Source: handed over and never answered: the guest stands paused here until it is resolved. */
#define BRANT_SOURCE_UNANSWERED 17
/** Source: unanswered, and the VMM took the guest back. */
#define BRANT_SOURCE_TAKEN_BACK 18
/** Source: unanswered, and the VMM gave the guest up here. */
#define BRANT_SOURCE_GIVEN_UP 19
/**
 * Source: handed over, and no answer can come any more; waiting until the destination has begun to
 * run the guest or never will.
 */
#define BRANT_SOURCE_IN_DOUBT 20
/** Destination: not started. */
#define BRANT_DESTINATION_IDLE 32
/** Destination: waiting for a connection. */
#define BRANT_DESTINATION_LISTENING 33
/** Destination: agreeing on versions, configuration and memory layout. */
#define BRANT_DESTINATION_NEGOTIATING 34
/** Destination: memory arrives. */
#define BRANT_DESTINATION_RECEIVING 35
/** Destination: all of it is here; the state is being read and loaded. */
#define BRANT_DESTINATION_LOADING 36
/** Destination: telling the source so. */
#define BRANT_DESTINATION_READY 37
/** Destination: waiting for the hand-over. */
#define BRANT_DESTINATION_AWAITING_HANDOVER 38
/** Destination: racing a cancel for the gate. */
#define BRANT_DESTINATION_COMMITTING 39
/** Destination: The VMM starts the guest: too late to cancel. */
#define BRANT_DESTINATION_STARTING 40
/** Destination: the guest runs here. */
#define BRANT_DESTINATION_RUNNING 41
/**
 * Destination: It failed, or the hand-over came too late: the guest never ran here and never will.
 */
#define BRANT_DESTINATION_FAILED 42
/** Destination: the guest was handed over and did not start. */
#define BRANT_DESTINATION_START_FAILED 43

/** In a figure of time or rate: not known yet. */
#define BRANT_UNKNOWN 18446744073709551615ull

/**
 * The figures of a migration, at either side. Times are nanoseconds, sizes bytes, pages 4 KiB.
 * What says how it is now may fall: `total_bytes`, `remaining_bytes`, `unacknowledged_pages`,
 * `throughput`, `bandwidth`, `dirty_pages_per_second`, `time_left_ns`, `expected_downtime_ns`
 * and `sync_ns`. All others only grow. (`state` is a name and not a figure: it goes from
 * BRANT_SOURCE_IN_DOUBT to what follows, and back to BRANT_SOURCE_UNANSWERED where
 * `brant_outgoing_resolve` cannot resume the guest.)
 */
typedef struct brant_stats {
    /** sizeof(brant_stats). */
    size_t size;
    /** The migration's state: BRANT_SOURCE_* or BRANT_DESTINATION_*. */
    uint32_t state;
    /** The pass over memory, from 1; 0 before the first. */
    uint32_t pass;
    /** 0, or why it failed: BRANT_E_*. */
    int32_t error;
    /**
     * How far it is, in hundredths of a percent, 0 to 10000: pages sent (received) so far, of
     * those and what remains. Never falls; 10000 once the guest runs at the destination, and not
     * before. After a failure or a cancel it is what it was, at most 9999: how far the migration
     * had come. That it is over, `state` and `error` tell.
     */
    uint32_t progress;
    /** The guest's memory. */
    uint64_t total_bytes;
    /**
     * Source: pending now. Destination: `total_bytes` less the pages received so far. 0 when it
     * has completed; after a failure or a cancel, what it was.
     */
    uint64_t remaining_bytes;
    /** Bytes that went over the connection, headers included. */
    uint64_t wire_bytes;
    /** Pages sent (received) with their contents; a page sent twice counts twice. */
    uint64_t data_pages;
    /**
     * Pages sent (received) as zero, without contents: holes, ballooned and free pages included.
     */
    uint64_t zero_pages;
    /** Of those, pages that were never touched and so never read. Source only. */
    uint64_t hole_pages;
    /** Pages sent that the destination has not acknowledged. Source only. */
    uint64_t unacknowledged_pages;
    /** Since the start. */
    uint64_t elapsed_ns;
    /** Bytes a second over the last second or so, everything included. */
    uint64_t throughput;
    /** Bytes a second that the link carries, as measured while sending; BRANT_UNKNOWN at first. */
    uint64_t bandwidth;
    /**
     * Pages a second that the guest wrote, as syncs found them when everything before had been
     * sent; a page that was written many times between two syncs counts once. BRANT_UNKNOWN
     * before the first such sync, so all through the first pass.
     */
    uint64_t dirty_pages_per_second;
    /**
     * Until the rest fits the downtime limit, at these rates; BRANT_UNKNOWN while one of them is
     * unknown, when the link is not clearly faster than the guest, and after a failure.
     */
    uint64_t time_left_ns;
    /** The downtime if the switchover came now; BRANT_UNKNOWN at first. */
    uint64_t expected_downtime_ns;
    /** What was expected when the guest was paused, kept to be compared. 0 before. */
    uint64_t promised_downtime_ns;
    /**
     * How long the guest stood still: from the call of `pause` to the destination's word that
     * it runs or, where it did not come to that, to the return of `resume`. 0 before. Of a guest
     * that still stands (unanswered, or not resumed): until that was known.
     */
    uint64_t downtime_ns;
    /** Of the downtime: the VMM's `pause`. */
    uint64_t pause_ns;
    /** Of the downtime: the VMM's `save`. */
    uint64_t save_ns;
    /** Of the downtime: the last harvest of all logs. */
    uint64_t last_sync_ns;
    /** Of the downtime: sending the last pages and the state. */
    uint64_t last_send_ns;
    /** Of the downtime: waiting for the destination to receive and load. */
    uint64_t ready_ns;
    /** Of the downtime: the VMM's `release`. */
    uint64_t release_ns;
    /** Of the downtime: the hand-over and the destination's `run`. */
    uint64_t handover_ns;
    /** Destination: the VMM's `load` (told to the source). */
    uint64_t load_ns;
    /** Destination: the VMM's `run` (told to the source). */
    uint64_t run_ns;
    /** Pages sent while the guest was paused. */
    uint64_t last_pages;
    /** Bytes of device state. */
    uint64_t state_bytes;
    /** Syncs made. */
    uint64_t syncs;
    /** The last sync that was made with the guest running. */
    uint64_t sync_ns;
    /** Pages that syncs found. */
    uint64_t found_pages;
    /** Calls that cleared chunks. */
    uint64_t clear_calls;
    /** The longest restoring of one chunk. */
    uint64_t longest_clear_ns;
    /** Pages put back into the tracker after a failure. */
    uint64_t put_back_pages;
    /**
     * Of the zero pages, the ballooned ones: named by the source, neither read nor sent. One that
     * is named again counts again.
     */
    uint64_t ballooned_pages;
    /** Pages that free-page hints took out of what was to be sent. Source only. */
    uint64_t hinted_pages;
    /**
     * Of the zero pages, those whose contents the VMM has declared lost
     * (brant_guest_mark_poisoned), neither read nor sent; one that is told again counts again.
     * Source only.
     */
    uint64_t poisoned_pages;
} brant_stats;

/* =============================================================================================
 * Rate: how fast a guest dirties its memory, without a migration
 * ============================================================================================= */

/**
 * Measures the dirty rate of a tracker's guest; any number of times, one at a time.
 *
 * Threads: any, several at once. `brant_rate_cancel` and `brant_rate_finish` end a measurement
 * that another thread makes. `brant_rate_free` is the last call: all others on it have returned
 * before it begins. It keeps what it needs of the tracker, which may be freed before it.
 */
typedef struct brant_rate brant_rate;

/**
 * By all logs of the tracker: every page that is written is counted. The guest pays a write
 * fault for each, twice in the period. Whoever else uses the tracker loses nothing by it.
 */
#define BRANT_RATE_BY_LOG 0
/**
 * By the contents of some pages, read at the begin and the end of the period: an estimate, at
 * no cost to the guest. Works with a tracker that has no log. Pages written with what they held
 * already are not seen.
 */
#define BRANT_RATE_BY_SAMPLING 1

/** What is to be measured. All zero but the size is what ships. */
typedef struct brant_rate_params {
    /** sizeof(brant_rate_params). */
    size_t size;
    /**
     * For how long, milliseconds, 10 to 60000; default 1000. The figure depends on it: see
     * brant_dirty_rate.
     */
    uint64_t period_ms;
    /** BRANT_RATE_BY_*. */
    uint32_t way;
    /**
     * By sampling: how many pages of each GiB, 1 to 262144; default 512. 16 GiB are read twice
     * at the most.
     */
    uint32_t samples_per_gib;
} brant_rate_params;

/**
 * A dirty rate: distinct pages of 4 KiB that were written in the period, by the second. A page
 * that is written many times counts once, so over a short period the figure is near the speed
 * at which the guest writes, and over a long one it comes to the size of what it writes to.
 */
typedef struct brant_dirty_rate {
    /** sizeof(brant_dirty_rate). */
    size_t size;
    /** Distinct pages written, by the second. */
    uint64_t pages_per_second;
    /** The same in bytes: what a migration would have to send, were each sent whole. */
    uint64_t bytes_per_second;
    /**
     * How far pages_per_second may be off, up or down. By sampling: half of the interval that
     * holds the true figure in 95 of 100 measurements. By log: the uncertainty of when the
     * period began and ended for each page.
     */
    uint64_t error_pages_per_second;
    /** Distinct pages written in the period: counted, or estimated. */
    uint64_t written_pages;
    /** Nanoseconds: the period as it was. */
    uint64_t period_ns;
    /**
     * By log: of written_pages, those written in both halves of the period. Few: the guest goes
     * on to new pages, and a longer period would find more. Nearly all: it writes to the same
     * pages again and again, and written_pages is how many they are. BRANT_UNKNOWN by sampling.
     */
    uint64_t rewritten_pages;
    /** By sampling: pages that were read. BRANT_UNKNOWN by log. */
    uint64_t sampled_pages;
    /** By sampling: of those, pages that had changed. BRANT_UNKNOWN by log. */
    uint64_t changed_pages;
    /**
     * By log: 1 when a log failed, so that all it covers was counted, or will deliver some of
     * what it holds later; else 0.
     */
    uint64_t warnings;
} brant_dirty_rate;

/**
 * Makes a measurement of the guest that `tracker` tracks. `parameters` may be NULL for what
 * ships. Nothing happens before it is made. Free it with `brant_rate_free`.
 */
int32_t brant_rate_new(struct brant_tracker *tracker,
                       const struct brant_rate_params *parameters,
                       struct brant_rate **rate,
                       struct brant_error **error);

/**
 * Frees it; NULL is fine. While another thread measures with it: brant_rate_cancel, join that
 * thread, free.
 */
void brant_rate_free(struct brant_rate *rate);

/**
 * Measures, and returns when the period is over (`brant_rate_finish` makes it so): a thread of
 * yours waits in here, the guest runs on. BRANT_E_CANCELLED after `brant_rate_cancel`;
 * BRANT_E_BUSY while another thread measures with `rate`. By log it is one more consumer of the
 * tracker (see brant_consumer), also beside a migration: its start restores the protection of all
 * of the guest, and its three syncs end rounds of free-page hints.
 */
int32_t brant_rate_measure(struct brant_rate *rate,
                           struct brant_dirty_rate *found,
                           struct brant_error **error);

/**
 * Ends the period of the measurement that is going on: it returns what it found until now.
 * Does not wait for it. Nothing happens when there is none.
 */
int32_t brant_rate_finish(const struct brant_rate *rate,
                          struct brant_error **error);

/**
 * Pages a second that each vCPU wrote in the last measurement, where a log can tell vCPUs apart,
 * as KVM's rings do; in `rates`, at most `capacity` of them, in the order of the numbers that the
 * vCPUs were added with. How many vCPUs are known, 0 when no log can tell, is in `count`. A page
 * that two vCPUs wrote counts for both, and one that is written again after its ring was emptied
 * (when one is a quarter full, and at half of the period) counts again.
 */
int32_t brant_rate_get_vcpus(const struct brant_rate *rate,
                             uint64_t *rates,
                             size_t capacity,
                             size_t *count,
                             struct brant_error **error);

/**
 * How far the measurement is that is going on, in hundredths of a percent. 0 until the period has
 * begun; from 1 on, what the guest writes is seen; 9900 when the period is over, 10000 when the
 * measurement has succeeded. NULL: 0.
 */
uint64_t brant_rate_progress(const struct brant_rate *rate);

/**
 * Ends the measurement that is going on, and any later one, with BRANT_E_CANCELLED. Does not
 * wait for it.
 */
int32_t brant_rate_cancel(const struct brant_rate *rate,
                          struct brant_error **error);

/* =============================================================================================
 * Images: a guest in a file
 * ============================================================================================= */

/**
 * A save of a guest to a file: memory as it is at one moment, and what `early_save` and `save`
 * give. The guest runs while most of it is written and stands still for the last pages. One
 * object, one save. Migrations, saves and restores of one guest exclude each other: BRANT_E_BUSY.
 *
 * The file gets its name when it is whole and on its device; until then what had that name stays.
 * A save that fails or is cancelled leaves no file, and the guest runs on. A process that is
 * killed while it saves leaves a file `.brant-image-` with 16 hexadecimal digits, which nobody
 * reads.
 *
 * Threads: any, several at once. `brant_image_save_cancel` may be called by any number of threads,
 * also while others wait, whose waits it ends. `brant_image_save_free` is the last call: all
 * others on it have returned before it begins. Inside a callback of the same save, waiting and
 * freeing are BRANT_E_CALLBACK, and cancelling only asks.
 */
typedef struct brant_image_save brant_image_save;

/**
 * A restore of a guest from a file that a save made, into a guest whose blocks match by name,
 * length and page size; `early_load` may add them. One object, one restore. What is damaged, cut
 * off or something else is BRANT_E_IMAGE, with the place in the file, what was expected and what
 * was found; no page reaches guest memory whose checksum is wrong. After a failure no guest is
 * here.
 *
 * Threads: any, several at once. `brant_image_restore_cancel` may be called by any number of
 * threads, also while others wait, whose waits it ends. `brant_image_restore_free` is the last
 * call: all others on it have returned before it begins. Inside a callback of the same restore,
 * waiting and freeing are BRANT_E_CALLBACK, and cancelling only asks.
 */
typedef struct brant_image_restore brant_image_restore;

/** In `brant_image_save_params.guest`: the guest runs, is paused for the last pages and resumed. */
#define BRANT_IMAGE_RESUME 0
/**
 * In `brant_image_save_params.guest`: the guest runs, is paused for the last pages and stays so.
 * After a failure or a cancel it is resumed.
 */
#define BRANT_IMAGE_STAY_PAUSED 1
/**
 * In `brant_image_save_params.guest`: the guest is paused when the save is started and stays so.
 * Neither `pause` nor `resume` is called.
 */
#define BRANT_IMAGE_ALREADY_PAUSED 2

/**
 * In `brant_image_save_params.cache` and `brant_image_restore_params.cache`, the default: long
 * reads and writes go past the page cache (O_DIRECT), where the file system lets them.
 */
#define BRANT_IMAGE_DIRECT 0
/**
 * In `brant_image_save_params.cache` and `brant_image_restore_params.cache`: everything goes
 * through the page cache. For an image that is restored soon on the same host.
 */
#define BRANT_IMAGE_CACHED 1

/**
 * How a guest is saved. 0 is the default everywhere; what is out of range is BRANT_E_INVALID with
 * the range in the message.
 */
typedef struct brant_image_save_params {
    /** sizeof(brant_image_save_params). */
    size_t size;
    /**
     * Passes go on until the rest can be written in half of this time; milliseconds, 1 to 3600000;
     * default 300. A guest that writes as fast as the disk is paused all the same.
     */
    uint64_t downtime_limit_ms;
    /** After so many passes the guest is paused, however much is left; 1 to 1000; default 30. */
    uint32_t max_passes;
    /** Threads that write; 1 to 64; default 2. */
    uint32_t writers;
    /** BRANT_IMAGE_RESUME, BRANT_IMAGE_STAY_PAUSED or BRANT_IMAGE_ALREADY_PAUSED. */
    uint32_t guest;
    /** BRANT_IMAGE_DIRECT or BRANT_IMAGE_CACHED. */
    uint32_t cache;
} brant_image_save_params;

/**
 * How a guest is restored. 0 is the default everywhere; what is out of range is BRANT_E_INVALID
 * with the range in the message.
 */
typedef struct brant_image_restore_params {
    /** sizeof(brant_image_restore_params). */
    size_t size;
    /** The most bytes of what a VMM saved that are taken; 4 KiB to 1 TiB; default 256 MiB. */
    uint64_t max_state_bytes;
    /** Threads that read; 1 to 64; default 2. */
    uint32_t readers;
    /** BRANT_IMAGE_DIRECT or BRANT_IMAGE_CACHED. */
    uint32_t cache;
    /**
     * BRANT_IMAGE_RESUME: `run` is called at the end. BRANT_IMAGE_STAY_PAUSED: it is not, and the
     * VMM starts the guest itself, after `brant_guest_runs_here`.
     */
    uint32_t guest;
    /** 0. */
    uint32_t reserved;
} brant_image_restore_params;

/** Not started. */
#define BRANT_IMAGE_IDLE 0
/** Save: making the file. Restore: opening it, comparing memory layouts. */
#define BRANT_IMAGE_PREPARING 1
/** Save: writing memory while the guest runs. */
#define BRANT_IMAGE_COPYING 2
/** Save: the guest is paused; its state is saved and the last pages are written. */
#define BRANT_IMAGE_PAUSED 3
/** Save: the last page is written; the file is made whole and gets its name. */
#define BRANT_IMAGE_FINISHING 4
/** Restore: memory is being read. */
#define BRANT_IMAGE_FILLING 5
/** Restore: the VMM loads its state. */
#define BRANT_IMAGE_LOADING 6
/** Restore: the VMM starts the guest. */
#define BRANT_IMAGE_STARTING 7
/** It is done. */
#define BRANT_IMAGE_COMPLETED 8
/** It failed, or was cancelled. */
#define BRANT_IMAGE_FAILED 9

/** The figures of a save or a restore. Times are nanoseconds, sizes bytes, pages 4 KiB. */
typedef struct brant_image_stats {
    /** sizeof(brant_image_stats). */
    size_t size;
    /** The state: BRANT_IMAGE_*, from _IDLE to _FAILED. */
    uint32_t state;
    /** Save: the pass over memory, from 1; 0 before the first. */
    uint32_t pass;
    /** 0, or why it failed: BRANT_E_*. */
    int32_t error;
    /**
     * How far it is, in hundredths of a percent, 0 to 10000. Never falls; 10000 once it has
     * completed, and not before.
     */
    uint32_t progress;
    /** The guest's memory. */
    uint64_t total_bytes;
    /** Of it, what is still to be written or read. May grow while a guest that is saved runs. */
    uint64_t remaining_bytes;
    /** Pages with contents; one that is written again counts again. */
    uint64_t data_pages;
    /**
     * Pages that are zero, ballooned ones included, which take no room; one that is told again
     * counts again.
     */
    uint64_t zero_pages;
    /** Save, of the zero pages: ballooned ones. */
    uint64_t ballooned_pages;
    /** Save, of the zero pages: those whose contents the VMM has declared lost. */
    uint64_t poisoned_pages;
    /** What the VMM saved, or loads. */
    uint64_t state_bytes;
    /**
     * How long the file is; less of it takes room on the disk, where pages are zero. 0 until that
     * is known.
     */
    uint64_t file_bytes;
    /** Since the start. */
    uint64_t elapsed_ns;
    /**
     * Save: how long the guest stood still, from the call of `pause` to the return of `resume`;
     * BRANT_UNKNOWN before, and where brant did not do both.
     */
    uint64_t downtime_ns;
} brant_image_stats;

/**
 * Makes a save of the guest that `tracker` was made from. The operations of that guest must have
 * `pause` and `resume`, except with BRANT_IMAGE_ALREADY_PAUSED: else BRANT_E_INVALID. `parameters`
 * may be NULL for what ships. Nothing happens before it is started.
 */
int32_t brant_image_save_new(struct brant_tracker *tracker,
                             const struct brant_image_save_params *parameters,
                             struct brant_image_save **save,
                             struct brant_error **error);

/**
 * Cancels a save that is going on, waits for its end, and frees it; NULL is fine. 0, or
 * BRANT_E_CALLBACK inside one of its own callbacks, where nothing is freed.
 */
int32_t brant_image_save_free(struct brant_image_save *save);

/**
 * Starts it and returns at once. The image is to be at `path`: nothing is there, or a regular
 * file, which is replaced when the image is whole. Room for all of it is needed beside what is
 * there. Only its owner may read and write the image: it holds all that the guest's memory holds.
 * BRANT_E_BUSY, BRANT_E_STATE or BRANT_E_BLOCKED where the guest cannot be saved now.
 */
int32_t brant_image_save_start(struct brant_image_save *save,
                               const char *path,
                               struct brant_error **error);

/**
 * Ends the save and returns when the guest runs on and the file is gone: within 100 ms, unless a
 * callback or a kernel call is in progress. Inside one of its callbacks it only asks for that. One
 * that has ended is left alone.
 */
int32_t brant_image_save_cancel(struct brant_image_save *save,
                                struct brant_error **error);

/**
 * Waits until it is over, for at most `timeout_ms` milliseconds (BRANT_NO_LIMIT: for ever; 0: not
 * at all): 0 if the image is whole, has its name and lasts, BRANT_E_PENDING if it is still going
 * on, else why it failed: then there is no image, and the guest runs on (or, if `resume` itself
 * failed, stands: BRANT_GUEST_STANDS). A disk without room is BRANT_E_KERNEL, with the system's
 * words and the place in the file.
 */
int32_t brant_image_save_wait(struct brant_image_save *save,
                              uint64_t timeout_ms,
                              struct brant_error **error);

/** Fills in the figures as they are now. Any thread, also inside callbacks. */
int32_t brant_image_save_get_stats(const struct brant_image_save *save,
                                   struct brant_image_stats *stats,
                                   struct brant_error **error);

/**
 * An eventfd that becomes readable when the figures have changed, for poll; reading it resets it.
 * It stays the save's: do not close it. A code if `save` is NULL.
 */
int32_t brant_image_save_event_fd(const struct brant_image_save *save);

/**
 * Makes a restore into `guest`, whose operations must have `run`: else BRANT_E_INVALID. They need
 * `load` too if the image holds state, and `early_load` if it holds configuration. `parameters`
 * may be NULL for what ships. Nothing happens before it is started.
 */
int32_t brant_image_restore_new(struct brant_guest *guest,
                                const struct brant_image_restore_params *parameters,
                                struct brant_image_restore **restore,
                                struct brant_error **error);

/**
 * Cancels a restore that is going on, waits for its end, and frees it; NULL is fine. A guest that
 * runs here runs on. 0, or BRANT_E_CALLBACK inside one of its own callbacks, where nothing is
 * freed.
 */
int32_t brant_image_restore_free(struct brant_image_restore *restore);

/**
 * Starts it, from the image at `path`, and returns at once. BRANT_E_BUSY or BRANT_E_STATE where
 * something else is going on with the guest, or a guest is here.
 */
int32_t brant_image_restore_start(struct brant_image_restore *restore,
                                  const char *path,
                                  struct brant_error **error);

/**
 * Ends the restore and returns when its threads have ended: within 100 ms, unless a callback or a
 * kernel call is in progress. Inside one of its callbacks it only asks for that. One that has
 * ended is left alone; brant_image_restore_wait says whether the guest runs.
 */
int32_t brant_image_restore_cancel(struct brant_image_restore *restore,
                                   struct brant_error **error);

/**
 * Waits until it is over, for at most `timeout_ms` milliseconds (BRANT_NO_LIMIT: for ever; 0: not
 * at all): 0 if the guest runs here (or stands, with BRANT_IMAGE_STAY_PAUSED), BRANT_E_PENDING if
 * it is still going on, else why it failed: BRANT_E_IMAGE, BRANT_E_VERSION, BRANT_E_LAYOUT and
 * others. Then no guest is here, except where `run` itself failed: BRANT_GUEST_STANDS.
 */
int32_t brant_image_restore_wait(struct brant_image_restore *restore,
                                 uint64_t timeout_ms,
                                 struct brant_error **error);

/** Fills in the figures as they are now. Any thread, also inside callbacks. */
int32_t brant_image_restore_get_stats(const struct brant_image_restore *restore,
                                      struct brant_image_stats *stats,
                                      struct brant_error **error);

/**
 * An eventfd that becomes readable when the restore enters another state, for poll; reading it
 * resets it. It stays the restore's: do not close it. A code if `restore` is NULL.
 */
int32_t brant_image_restore_event_fd(const struct brant_image_restore *restore);

/* =============================================================================================
 * Bitmaps, for whoever works on dirty bits
 * ============================================================================================= */

/**
 * A bitmap with a summary level: walking and merging cost what is set, not what there is.
 * Bit i is bit i % 64 of 64-bit word i / 64, as in KVM's logs.
 *
 * Threads: any, one at a time. `brant_bitmap_free` is the last call on it.
 */
typedef struct brant_bitmap brant_bitmap;

/** The most bits of one bitmap: 2^40. */
#define BRANT_BITMAP_BITS_MAX 1099511627776

/**
 * Makes a bitmap of `bits` bits, 0 to BRANT_BITMAP_BITS_MAX, all clear. Memory is taken as
 * bits are set. Free it with `brant_bitmap_free`.
 */
int32_t brant_bitmap_new(uint64_t bits,
                         struct brant_bitmap **bitmap,
                         struct brant_error **error);

/** Frees a bitmap; NULL is fine. */
void brant_bitmap_free(struct brant_bitmap *bitmap);

/** How many bits are set; kept, so it costs nothing. 0 for NULL. */
uint64_t brant_bitmap_count(const struct brant_bitmap *bitmap);

/** Whether bit `bit` is set: 1 or 0, 0 also past the end and for NULL. */
int32_t brant_bitmap_test(const struct brant_bitmap *bitmap, uint64_t bit);

/** Sets `count` bits from `first`. `*changed` (may be NULL) gets how many were clear before. */
int32_t brant_bitmap_set(struct brant_bitmap *bitmap,
                         uint64_t first,
                         uint64_t count,
                         uint64_t *changed,
                         struct brant_error **error);

/** Clears `count` bits from `first`. `*changed` (may be NULL) gets how many were set before. */
int32_t brant_bitmap_clear(struct brant_bitmap *bitmap,
                           uint64_t first,
                           uint64_t count,
                           uint64_t *changed,
                           struct brant_error **error);

/**
 * Sets in `bitmap`, from bit `at` on, what is set in the first `count` bits of `words` (of
 * which (count + 63) / 64 are read). `at` need not be a multiple of 64. `*changed` (may be
 * NULL) gets how many bits were newly set: one pass does both.
 */
int32_t brant_bitmap_merge_words(struct brant_bitmap *bitmap,
                                 uint64_t at,
                                 const uint64_t *words,
                                 uint64_t count,
                                 uint64_t *changed,
                                 struct brant_error **error);

/**
 * Sets in `bitmap` what is set in `from`; both have the same length and are not the same.
 * Costs what is set in `from`. `*changed` (may be NULL) gets how many were newly set.
 */
int32_t brant_bitmap_merge(struct brant_bitmap *bitmap,
                           const struct brant_bitmap *from,
                           uint64_t *changed,
                           struct brant_error **error);

/**
 * Finds the first run of set bits at or after `from`, and tells its first bit and its length,
 * cut to `longest` (1 or more). Returns 1 if there is one, 0 if not, or a code.
 */
int32_t brant_bitmap_next_run(const struct brant_bitmap *bitmap,
                              uint64_t from,
                              uint64_t longest,
                              uint64_t *first,
                              uint64_t *count);

#ifdef __cplusplus
}  // extern "C"
#endif

#endif  /* BRANT_H */
