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
 *               or to a file and back: brant_image_save, brant_image_restore, brant_image_chain
 *   tracking    which pages of a guest were written, and how fast: brant_guest, brant_tracker,
 *               brant_consumer, brant_rate
 *   bitmaps     dirty bits are set, merged and walked: brant_bitmap
 *
 * Rules that hold everywhere:
 *
 *   Errors      A function that can fail returns 0 or a negative BRANT_E_* code. A code never
 *               changes its meaning. The last parameter of the function, an optional
 *               brant_error **, gets a sentence that says what went wrong.
 *   Ownership   The caller owns each handle and frees it; NULL may be freed. Strings and structures
 *               are copied during the call. Guest memory stays the VMM's. Descriptors stay the
 *               VMM's too: brant duplicates those that it keeps, and the VMM may close its own when
 *               the call has returned. There is one exception: brant_outgoing_start_fd,
 *               brant_outgoing_start_fds, brant_incoming_start_fd and brant_incoming_start_fds
 *               own the sockets that they are given, and close them when they fail.
 *   _free       A _free returns nothing, with four exceptions: brant_outgoing_free,
 *               brant_incoming_free, brant_image_save_free and brant_image_restore_free return 0
 *               or BRANT_E_CALLBACK. A migration, a save or a restore cannot be freed inside one of
 *               its own callbacks: there they return BRANT_E_CALLBACK and free nothing.
 *   Sizes       A structure that begins with `size` is initialised by BRANT_INIT(type). A field
 *               that is left 0 has its default. A structure of an older header is shorter, and is
 *               accepted. A structure of a newer header is accepted if its additional bytes are 0.
 *   Stability   A function or type is stable, unless its comment says "Experimental:" and what may
 *               change, or it is newer than the last release. Stable: a program that was compiled
 *               with this header runs with every later library of the same soname. docs/abi.md has
 *               the promise, and the list.
 *   Threads     Each handle says which threads may use it. Callbacks come on brant's threads,
 *               except where a callback says otherwise.
 *   Units       Lengths and offsets are bytes, pages have 4 KiB. Times that the VMM gives are
 *               milliseconds (_ms); times that brant measured are nanoseconds (_ns).
 *
 * A whole source and a whole destination follow. The guest is a thread that counts, in its memory
 * and in one device, and goes on counting at the destination. Both programs run as they are:
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
 *             printf("the guest runs at the destination from %llu on\n",
 *                    (unsigned long long)vmm.count);
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
 * Whether the linked library has a feature: 1 if it does, 0 if not or if it does not know the
 * name. Any thread. NULL gives 0.
 *
 * Every library has every function, whatever it was built with. When a feature is missing, a call
 * that asks for it is BRANT_E_UNSUPPORTED, and the message names the feature. A build may lack
 * "compression" (contents of pages compressed by zstd) and "probes" (static probes for tracers, which
 * no call asks for: docs/tracing.md). All other features are in every build of
 * this version; programs ask for them because an older library does not know their names.
 *
 * The answer is about the library, and not about the machine: a kernel or a processor may lack what
 * a feature needs. The call that needs it then says so, by BRANT_E_UNSUPPORTED or as its comment
 * says.
 *
 * - The three levels: "bitmap", "tracker", "migration".
 * - Logs: "kvm-log" (KVM's dirty bitmaps), "kvm-ring" (its dirty rings), "reported" (the VMM's own
 *   marks), "userfault" (userfaultfd's write protection), "vhost", "vfio", "iommufd" (logs of
 *   devices).
 * - Transports: "tcp", "unix", "fd".
 * - Fields of `brant_params`: "channels" (several connections), "delta" (deltas of pages that are
 *   sent again), "zero-copy", "checksums", "compression", "prefault", "verify".
 * - "balloon" (ballooned pages are not sent), "hints" (free-page hints), "image" (a guest in a
 *   file), "policies" (a guest is slowed, a limit rises, a deadline counts), "forecasts",
 *   "vcpu-limits" (dirty limits of single vCPUs, in rings), "devices" (device state that is sent
 *   while the guest runs), "postcopy" (a guest that runs at the destination before all of its
 *   memory is there), "hand-over" (memory that changes hands by descriptor on one host),
 *   "lazy-restore" (a restored guest that runs before all of its memory is there), "instant-save"
 *   (an image of a running guest as it was at the start of the save), "image-chain" (images of what
 *   changed since the image before), "kvm-state" (the state of KVM's vCPUs and VMs).
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
/** Another object has this name or this place already. */
#define BRANT_E_EXISTS (-5)
/** Memory could not be allocated. */
#define BRANT_E_NO_MEMORY (-6)
/** The kernel, the machine or the peer cannot do this. */
#define BRANT_E_UNSUPPORTED (-7)
/** A system call failed, and the arguments of the caller are not the reason. */
#define BRANT_E_KERNEL (-8)
/** The connection could not be made, or failed. */
#define BRANT_E_IO (-9)
/** The peer closed the connection. */
#define BRANT_E_PEER_GONE (-10)
/** A time limit passed. */
#define BRANT_E_TIMEOUT (-11)
/**
 * The operation was cancelled, here or by the peer. When the peer cancelled it, the message names
 * the peer.
 */
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
 * The remaining pages did not get few enough in time: the guest writes too fast, or the link or
 * its cap is too slow.
 */
#define BRANT_E_NOT_CONVERGED (-18)
/** The guest can be neither migrated nor saved, for a reason that the VMM gave. */
#define BRANT_E_BLOCKED (-19)
/**
 * The guest was handed over, and the destination did not say that the guest runs: it said nothing,
 * or said that it failed. The guest stands paused at the source until the VMM resolves the
 * migration.
 */
#define BRANT_E_UNANSWERED (-20)
/** The function was called inside a callback of the same object, where it would wait for itself. */
#define BRANT_E_CALLBACK (-21)
/** A defect in brant itself, caught at the boundary. */
#define BRANT_E_INTERNAL (-22)
/** Not over yet: the time of the wait ended first. Nothing ever fails with this code. */
#define BRANT_E_PENDING (-23)
/**
 * Guest memory could not be read or written: poisoned, without permission, cut off the end of
 * its file, or without room to be allocated. The message names the block and the offset.
 */
#define BRANT_E_MEMORY (-24)
/**
 * The file is not a whole image of a guest: it is torn, short, or something else. The message
 * names the file, the place in it, what was expected there and what was found.
 */
#define BRANT_E_IMAGE (-25)

/**
 * The detail of an error. A function that can fail returns 0 or one of the `BRANT_E_*` codes. Its
 * last parameter is a `brant_error **`, which may be NULL. Otherwise the function sets `*error`,
 * whatever it held before: to NULL on success, to a new error on failure. The caller owns the new
 * error. brant sets no errno and keeps no last error, and it writes nothing to stdout or stderr.
 *
 * Threads: any, several at once. `brant_error_free` is the last call on an error, and ends the
 * life of its message.
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
 * Make one guest for each virtual machine, with the VMM's operations (the next section). Add its
 * blocks of memory, then the slots in which the guest sees them. This section also has the calls
 * about the guest itself: who has it, what its balloon holds, which pages are lost, and why it
 * cannot move.
 * ============================================================================================= */

/**
 * A guest: its blocks of memory, their places at guest physical addresses and in KVM memory slots,
 * and its blockers. Make one for each virtual machine.
 *
 * The object also knows who has the virtual machine (`brant_guest_get_state`), across all
 * migrations and for as long as the object lives. A guest that was handed over is not handed over
 * again. A guest that runs here is not overwritten. One migration of a guest goes on at a time.
 * When the guest state forbids a migration, its start is BRANT_E_STATE; when another migration has
 * to end first, its start is BRANT_E_BUSY. So keep one object for each virtual machine, and use it
 * for every migration of that machine: brant knows nothing of another object for the same machine.
 *
 * Threads: any, several at once; changes wait for one another. `brant_guest_free` is the last
 * call: all others on it have returned before it begins. Trackers and migrations made from it keep
 * what they need, and may be used and freed later.
 */
typedef struct brant_guest brant_guest;

/**
 * In `brant_ram_block.flags`: the guest cannot write the block. A migration sends the block once,
 * and again only the pages of it that the VMM marks.
 */
#define BRANT_RAM_ROM 1
/**
 * In `brant_ram_block.flags`, at a destination: the block is known to read as zero, so brant need
 * not look. Without this flag brant assumes nothing of the block's contents. The flag counts until
 * a page with contents arrives for the block, all pages have arrived, a migration from here
 * starts, or brant_guest_runs_here, brant_guest_reclaim or brant_guest_give_up is called for a
 * guest that was here. So when an incoming migration breaks before that, the next one may use the
 * same block, as it was added.
 */
#define BRANT_RAM_ZEROED 2
/**
 * In `brant_ram_block.flags`: the block is a mapping, shared as a rule, of the file or memfd that
 * `fd` names. Without this flag the block is private memory, or shared memory whose file brant
 * does not know, and `fd` is 0 or -1.
 */
#define BRANT_RAM_FILE 4

/**
 * A RAM block: guest memory that is contiguous in this process.
 *
 * The VMM may register the memory with a userfaultfd of its own that fills pages when they are
 * touched (for a guest that is being restored from an image, say), before or after the block is
 * added. A migration then touches all of this memory, waits for each page, and sends the contents
 * that the page gets. Register the memory before a migration from here starts, or mark the memory
 * that is registered later (`brant_tracker_mark`): the contents of its pages change by the
 * registration, and no log sees that.
 *
 * Memory that brant cannot read or write gives BRANT_E_MEMORY and no signal: brant asks the kernel
 * before its own code accesses a page. A page that breaks between the question and the access (a
 * file is truncated at that moment, say) still ends the process with SIGBUS or SIGSEGV.
 */
typedef struct brant_ram_block {
    /** sizeof(brant_ram_block). */
    size_t size;
    /**
     * 1 to 255 bytes of UTF-8 without control characters, unique in the guest. The destination's
     * block has the same name.
     */
    const char *name;
    /**
     * Address of the first byte, page-aligned. The memory stays the VMM's, which keeps it mapped
     * until `brant_guest_remove_block` has returned.
     */
    void *host;
    /** Bytes; a multiple of `page_size`. */
    uint64_t length;
    /**
     * Size of the host pages that back the block, bytes: a power of two from 4096 to 1 GiB; 0
     * means 4096.
     */
    uint64_t page_size;
    /**
     * With BRANT_RAM_FILE: the descriptor of the file or memfd that the block is mapped from. By
     * it brant sees holes of the file. When the block is mapped from another file or offset, or is
     * private memory without a file, adding it is BRANT_E_INVALID. So is the descriptor of
     * something that cannot be mapped (a pipe, a socket, a terminal, /dev/null), and one that is
     * open for writing only. To compare, brant maps a page of the descriptor's file and looks at
     * both mappings in /proc/self/maps. brant believes a descriptor of a file without comparing it
     * when /proc/self/maps cannot be read, and when the block consists of several mappings. Any
     * number from 0 up is a descriptor; -1, the result of a failed dup, is BRANT_E_INVALID. brant
     * keeps a descriptor of its own. The file position of the VMM's descriptor stays where it is,
     * unless /proc is missing. Without BRANT_RAM_FILE: 0 or -1.
     */
    int32_t fd;
    /** BRANT_RAM_*. */
    uint32_t flags;
    /** Where in the file the block begins, bytes. */
    uint64_t fd_offset;
} brant_ram_block;

/** In `brant_slot.slot`: the part of the block has guest addresses, but is no KVM memory slot. */
#define BRANT_NO_SLOT 4294967295

/** Part of a block as it appears to the guest. */
typedef struct brant_slot {
    /** sizeof(brant_slot). */
    size_t size;
    /** The block's number. */
    uint32_t block;
    /**
     * KVM's slot number, with the address space in the upper 16 bits; BRANT_NO_SLOT if this is no
     * KVM slot.
     */
    uint32_t slot;
    /** Where in the block the slot begins, bytes, page-aligned. */
    uint64_t offset;
    /**
     * Bytes, page-aligned. For a KVM slot this is exactly KVM's size: KVM writes a bitmap of its
     * own size into the room that brant made for this length.
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
 * Makes a guest without memory. `ops` are the VMM's operations, for all objects that are made from
 * this guest: its migrations in both directions and its trackers. The table is copied. With NULL
 * the guest can be tracked and not migrated. A call that needs an operation says so. brant passes
 * `opaque` to each operation, until the guest and all objects that were made from it are freed.
 * BRANT_E_UNSUPPORTED where the host's pages are not 4 KiB.
 */
int32_t brant_guest_new(const struct brant_ops *ops,
                        void *opaque,
                        struct brant_guest **guest,
                        struct brant_error **error);

/**
 * Frees a guest; NULL is fine. The guest state is lost by this. Blockers of the guest may be freed
 * afterwards.
 */
void brant_guest_free(struct brant_guest *guest);

/**
 * Adds a block, one of at most 4096. `*id` (may be NULL) gets its number. Every other call and
 * every taken run names the block by this number. No other block of the guest ever gets the same
 * number, even after this block was removed. The name of a block is for the other side of a
 * migration: the two sides match blocks by name. While the guest is tracked, all pages of the new
 * block count as dirty.
 *
 * While the guest migrates, add the block first at the destination, then at the source, and while
 * the source is in BRANT_SOURCE_COPYING. Before BRANT_SOURCE_COPYING the two sides compare their
 * blocks, and a block that only one side has is BRANT_E_LAYOUT. A block that is added at the
 * source after `pause` was called may come too late to be sent: then the migration fails with
 * BRANT_E_STATE before the hand-over.
 *
 * While the guest is saved to an image, blocks may be added and removed at any time. The image has
 * the blocks that the guest had when the last page was written, each with all of its pages. A
 * restore needs the same blocks: add them before the restore, or in `early_load`.
 */
int32_t brant_guest_add_block(struct brant_guest *guest,
                              const struct brant_ram_block *block,
                              uint32_t *id,
                              struct brant_error **error);

/**
 * Adds a block, and all of it as one slot: `brant_guest_add_block` and `brant_guest_add_slot` in one
 * call. `guest_address` is where the guest sees the first byte, `slot` KVM's number of the slot (with no
 * KVM_MEM_* flags), or BRANT_NO_SLOT. `*id` (may be NULL) gets the block's number. When the slot cannot
 * be added, the block is not there either.
 */
int32_t brant_guest_add_ram(struct brant_guest *guest,
                            const struct brant_ram_block *block,
                            uint64_t guest_address,
                            uint32_t slot,
                            uint32_t *id,
                            struct brant_error **error);

/**
 * Finds the number of the block with this name and puts it into `*id`. Example: an `early_load`
 * gets a name from the source and needs the number. BRANT_E_NOT_FOUND if no block has the name.
 */
int32_t brant_guest_find_block(const struct brant_guest *guest,
                               const char *name,
                               uint32_t *id,
                               struct brant_error **error);

/**
 * Removes a block and its slots; BRANT_E_NOT_FOUND if the block is gone already. In this order:
 *
 * 1. Make sure that nothing writes to the block any more: the vCPUs are stopped, or the guest no
 *    longer uses the block. Marks of the block may still come; they are ignored.
 * 2. Call this function. It reads the logs of the slots and switches their logging off, so the
 *    slots must still be in KVM (see brant_guest_remove_slot). It returns when brant no longer
 *    touches the memory: within milliseconds, however slow the peer of a migration is. (Pages that
 *    are being sent to the peer are sent from a copy.) With BRANT_ZERO_COPY_ON it may take longer:
 *    the call waits until the kernel has sent the pages of the block that are on their way, for at
 *    most the I/O timeout of a peer that takes nothing. A cancel of the migration from another
 *    thread ends that wait.
 * 3. Delete the slots from KVM, and unmap the memory.
 *
 * BRANT_E_BUSY while runs of the block that `brant_tracker_take` or `brant_consumer_take` handed
 * out are in use. Such runs are in use until the same consumer takes again, is stopped or is
 * freed; the message names the consumer. The call then returns at once and has changed nothing.
 * Call it again when the use has ended.
 *
 * While the guest migrates, remove the block first at the source, then, when that call has
 * returned, at the destination. This may happen at any moment from BRANT_SOURCE_COPYING on, also
 * while the guest is paused. The destination ignores pages of the block that still arrive.
 * Example: the VMM removes the block in its operation `save`, says so in the state, and removes
 * the block at the destination in `load`. A block that only the source removes is fine too: it
 * stays at the destination. Before BRANT_SOURCE_COPYING the two sides compare their blocks: a
 * block that is gone at the source and still there at the destination ends the migration with
 * BRANT_E_LAYOUT. A block that is gone only at the destination ends the migration with
 * BRANT_E_LAYOUT at any time before the destination is ready, and the guest stays at the source.
 * When the destination is ready its guest is complete. From then on, a block that is removed only
 * at the destination is missing when the guest runs.
 */
int32_t brant_guest_remove_block(struct brant_guest *guest,
                                 uint32_t block,
                                 struct brant_error **error);

/**
 * Adds a slot: part of a block at a guest address. A KVM slot has to exist in KVM already, with
 * the size and place given here. So add a slot to KVM first and then to brant; remove it from
 * brant first (brant_guest_remove_slot) and then from KVM. When the VMM replaces a KVM slot by one
 * of another size and does not tell brant first, brant cannot read its log: all its pages count as
 * dirty at each sync, with a warning. While the guest is tracked, brant switches the new slot's
 * logging on (or has the VMM do it), and all its pages count as dirty. A block may have any number
 * of slots, at any page. Marks by guest address reach the slot when this call has returned.
 */
int32_t brant_guest_add_slot(struct brant_guest *guest,
                             const struct brant_slot *slot,
                             struct brant_error **error);

/**
 * Removes the slot with this number (or BRANT_NO_SLOT) at this guest address. The block stays.
 * To delete a slot, or to move, resize or replace it:
 *
 * 1. Stop the vCPUs, or know that the guest does not use the slot. No thread may be between a
 *    write to the slot and its mark by guest address: after step 2 such a mark finds no memory.
 * 2. Call this function while KVM's slot is as it was described. brant reads the slot's log, and
 *    switches its logging off by setting the slot once more as it was.
 * 3. Delete or move the slot in KVM (KVM_SET_USER_MEMORY_REGION), and make the slot that takes its
 *    place.
 * 4. Describe the new slot with brant_guest_add_slot: all its pages count as dirty.
 * 5. Let the vCPUs run.
 *
 * Another order is worse. When the slot was deleted in KVM first, its log is lost, and all its
 * pages count as dirty. When the slot was moved in KVM first, step 2 sets it back to its old
 * place.
 */
int32_t brant_guest_remove_slot(struct brant_guest *guest,
                                uint32_t slot,
                                uint64_t guest_address,
                                struct brant_error **error);

/**
 * In `brant_guest_get_state`: brant knows nothing of the guest yet. The VMM runs it, or waits for
 * a guest to arrive.
 */
#define BRANT_GUEST_UNKNOWN 0
/**
 * In `brant_guest_get_state`: the guest runs here. A migration from here was tried, a migration to
 * here has arrived, or `brant_guest_runs_here` said so.
 */
#define BRANT_GUEST_HERE 1
/**
 * In `brant_guest_get_state`: the guest is here and stands still. `resume` or `run` failed, or a
 * save or restore left the guest paused (BRANT_IMAGE_STAY_PAUSED). No `kick` is called in this
 * state, so the VMM calls `brant_guest_runs_here` before the vCPUs run again. A guest that its VMM
 * pauses by itself is not in this state: brant knows nothing of that pause.
 */
#define BRANT_GUEST_STANDS 2
/** In `brant_guest_get_state`: an outgoing migration is in progress, and the guest runs here. */
#define BRANT_GUEST_LEAVING 3
/** In `brant_guest_get_state`: an outgoing migration has paused the guest, which is here. */
#define BRANT_GUEST_PAUSED 4
/** In `brant_guest_get_state`: the guest is being handed over, and stands still here. */
#define BRANT_GUEST_HANDING_OVER 5
/**
 * In `brant_guest_get_state`: the guest was handed over and runs at another place. Its memory is
 * still here, and `brant_guest_reclaim` may take the guest back.
 */
#define BRANT_GUEST_HANDED_OVER 6
/**
 * In `brant_guest_get_state`: the guest was handed over without an answer, and the VMM decides by
 * `brant_outgoing_resolve`.
 */
#define BRANT_GUEST_UNANSWERED 7
/**
 * In `brant_guest_get_state`: the guest was given up here: BRANT_RESOLVE_DESTROY,
 * `brant_guest_give_up`, or an incoming migration that failed after it had begun to overwrite a
 * guest that was handed over. A guest that was overwritten so cannot be reclaimed.
 */
#define BRANT_GUEST_GIVEN_UP 8
/** In `brant_guest_get_state`: an incoming migration is in progress. */
#define BRANT_GUEST_ARRIVING 9
/**
 * In `brant_guest_get_state`: an incoming migration failed or was cancelled. No guest is here,
 * unless the VMM has made one since.
 */
#define BRANT_GUEST_EMPTY 10
/** In `brant_guest_get_state`: a save to an image is in progress, and the guest runs here. */
#define BRANT_GUEST_SAVING 11
/** In `brant_guest_get_state`: a save to an image has paused the guest. */
#define BRANT_GUEST_SAVE_PAUSED 12
/** In `brant_guest_get_state`: a restore from an image is in progress. */
#define BRANT_GUEST_RESTORING 13
/**
 * In `brant_guest_get_state`: the guest is here and may run, and some of its memory has not
 * arrived. A thread that touches such a page waits until the page is here. Until the guest's memory
 * is whole, migrations, saves, restores, trackers, measurements of the dirty rate, and changes of
 * blocks and of the balloon are refused with BRANT_E_BUSY.
 */
#define BRANT_GUEST_INCOMPLETE 14

/**
 * Puts the guest state, which says who has the guest, into `*state`: BRANT_GUEST_*. Any thread,
 * also inside callbacks.
 */
int32_t brant_guest_get_state(const struct brant_guest *guest,
                              uint32_t *state,
                              struct brant_error **error);

/**
 * Tells brant that the guest runs here. Only the VMM knows that when it has started a guest that
 * did not arrive by a migration. The call is optional; a good moment is before the vCPUs run for
 * the first time. From then on an incoming migration is refused. The call itself is refused when
 * the guest must not run here: BRANT_E_STATE when the guest was handed over or given up, or its
 * migration is unanswered; BRANT_E_BUSY when a migration, a save or a restore has paused the guest
 * or fills its memory, and will call `resume` or `run`.
 */
int32_t brant_guest_runs_here(struct brant_guest *guest,
                              struct brant_error **error);

/**
 * Takes back a guest that was handed over or given up. By this call the VMM asserts that no other
 * copy of the guest runs or ever will (the destination's host has died, or the destination's VMM
 * has ended the guest). The guest then counts as running here; make the call before the vCPUs run.
 * The guest goes on from where it was paused, and everything that it did at the other place is
 * lost. `resume` is not called.
 *
 * That holds for an interrupted postcopy too, once it was resolved or freed: its guest ran at the
 * destination, and the call asserts that it has ended there. The guest then goes on from the switch.
 *
 * BRANT_E_STATE when an incoming migration that failed has overwritten the guest's memory, when
 * memory was handed over by descriptor (brant_params.hand_over) and the destination has not said
 * that it never ran the guest, and while an unanswered migration has to be resolved. What a process
 * wrote to memory that was handed over by descriptor is in the memory here too: no guest is left
 * that could go on here, whether that process is alive or not. When the VMM frees an unanswered migration and
 * does not resolve it, the guest counts as handed over and can be reclaimed. BRANT_E_BUSY while a
 * migration is in progress.
 */
int32_t brant_guest_reclaim(struct brant_guest *guest,
                            struct brant_error **error);

/**
 * Tells brant that nobody needs the guest that is here: it has ended, it arrived and could not be
 * started, it was handed over, or the VMM waits for another guest. The guest state is
 * BRANT_GUEST_GIVEN_UP from then on. Another guest may arrive in its memory, no guest leaves from
 * here, and no vCPU is kicked. `brant_guest_reclaim` undoes this call. BRANT_E_BUSY while a
 * migration is in progress, BRANT_E_STATE while an unanswered migration has to be resolved.
 */
int32_t brant_guest_give_up(struct brant_guest *guest,
                            struct brant_error **error);

/**
 * Tells brant whether the guest announces each ballooned page that it is about to use again.
 * `must` is 1 if VIRTIO_BALLOON_F_MUST_TELL_HOST was negotiated, else 0. Call this when the
 * balloon's driver is set up, and again after each reset of the device.
 *
 * - Before the first call, and after a call with 0, no page counts as ballooned, and
 *   `brant_guest_mark_ballooned` and `brant_guest_clear_ballooned` do nothing.
 * - At each call, pages that counted as ballooned stop being ballooned and count as written in
 *   every tracker: after a reset of the device nobody knows whether they are still in the balloon.
 * - At a destination make the call in `load` at the latest, with the value that the source's guest
 *   negotiated. There a call with 1 keeps the ballooned pages, because the source has named them.
 *   Without a call they stop counting as ballooned when the guest runs.
 * - An image names no ballooned pages. After a restore they read as zero and count as in use,
 *   until the VMM marks those that its device still has: call this with 1 and mark them, in
 *   `load`.
 */
int32_t brant_guest_must_tell_host(struct brant_guest *guest,
                                   uint32_t must,
                                   struct brant_error **error);

/**
 * Tells brant that the guest's balloon has taken `length` bytes at a guest physical address
 * (inflate): their pages are ballooned. Only whole pages of 4 KiB count; a larger host page
 * (`brant_ram_block.page_size`) is ballooned when all of it is. A migration neither reads nor
 * sends a ballooned page. At the destination the page reads as zero and costs no memory.
 *
 * - Any thread, whether a migration runs or not. The call takes a lock that is held for
 *   microseconds, and never waits for a migration.
 * - The VMM discards the memory (MADV_DONTNEED) before the call or after it. The VMM does not mark
 *   the discarded memory as written.
 * - Not for pages of VIRTIO_BALLOON_F_REPORTING, which the guest uses again without a word, nor
 *   for a guest that relies on what ballooned pages hold (VIRTIO_BALLOON_F_PAGE_POISON with a
 *   value other than 0).
 * - NULL and addresses without memory are ignored.
 */
void brant_guest_mark_ballooned(const struct brant_guest *guest,
                                uint64_t guest_address,
                                uint64_t length);

/**
 * Tells brant that the guest takes `length` bytes at a guest physical address out of its balloon
 * (deflate) and will use them again. Call this before the VMM tells the guest that it may, which
 * is before the VMM puts the deflate request into the used ring. Every page with a byte in the
 * range stops being ballooned and counts as written, in every tracker of the guest. Threads and
 * ignored arguments as for `brant_guest_mark_ballooned`.
 */
void brant_guest_clear_ballooned(const struct brant_guest *guest,
                                 uint64_t guest_address,
                                 uint64_t length);

/**
 * Returns when the contents of `length` bytes at a guest physical address may be discarded. Call it
 * before guest memory is discarded (MADV_DONTNEED, a hole punched into the file),
 * whatever the reason: a balloon, free page reporting, virtio-mem.
 *
 * While a save with BRANT_IMAGE_INSTANT_START is in progress, the call waits until the image has the
 * memory: milliseconds as a rule, and as long as the disk is behind. At all other times it costs a
 * lock. Memory that is discarded without this call while such a save needs it fails the save
 * (BRANT_E_STATE), and the guest runs on. A hole that is punched through a descriptor is not
 * noticed: the image then holds zeros there.
 *
 * Any thread that does not stand still for `pause`. Every page with a byte in the range counts;
 * addresses without memory are ignored. BRANT_E_CALLBACK inside an operation of that save.
 */
int32_t brant_guest_before_discard(struct brant_guest *guest,
                                   uint64_t guest_address,
                                   uint64_t length,
                                   struct brant_error **error);

/**
 * Counts the ballooned pages with a byte in a range of guest physical addresses, and puts the
 * count into `*ballooned`. At a destination these are the pages that the source named as
 * ballooned.
 */
int32_t brant_guest_count_ballooned(const struct brant_guest *guest,
                                    uint64_t guest_address,
                                    uint64_t length,
                                    uint64_t *ballooned,
                                    struct brant_error **error);

/**
 * Declares that the contents of `length` bytes at `offset` of a block are lost: the hardware
 * failed, and the kernel said so with SIGBUS (BUS_MCEERR_AO, BUS_MCEERR_AR; `si_addr_lsb` gives
 * the length). Without the declaration a migration that comes to such a page fails with
 * BRANT_E_MEMORY, and the guest runs on. With the declaration the migration goes on: the page is
 * neither read nor sent, however often it is found dirty, and counts in `poisoned_pages`. At the
 * destination the page reads as zero. If the page was sent before its contents were lost, and was
 * not written since, it has the contents that were sent. brant does not tell the destination's VMM
 * of poisoned pages: when the destination's VMM should raise a machine check in its guest, put the
 * list of pages into the device state (`save`).
 *
 * Every page with a byte in the range counts. When larger host pages back the block, each of those
 * pages counts whole. Any thread, whether a migration runs or not, but no signal handler: the call
 * takes a lock and may allocate. BRANT_E_NOT_FOUND if there is no such block, BRANT_E_INVALID if
 * the range is empty or reaches past the end of the block. When an incoming migration brings
 * contents for the page, the declaration ends. When it brings a delta for the page
 * (`brant_params.delta_cache_bytes`), there is nothing that the delta could change, and the
 * migration fails with BRANT_E_MEMORY.
 */
int32_t brant_guest_mark_poisoned(struct brant_guest *guest,
                                  uint32_t block,
                                  uint64_t offset,
                                  uint64_t length,
                                  struct brant_error **error);

/**
 * Declares that poisoned pages have contents again: the VMM has mapped other memory in their
 * place, or resets the guest. Make the call after that. The pages count as written in every
 * tracker of the guest. Pages of the range that were not declared poisoned stay as they are.
 * Threads and errors as for `brant_guest_mark_poisoned`.
 */
int32_t brant_guest_clear_poisoned(struct brant_guest *guest,
                                   uint32_t block,
                                   uint64_t offset,
                                   uint64_t length,
                                   struct brant_error **error);

/**
 * A reason why a guest can be neither migrated nor saved, until `brant_blocker_free` takes it back.
 *
 * Threads: any. `brant_blocker_free` is the last call, also after the guest was freed, and also
 * while a migration or a save starts: that one is refused or is not.
 */
typedef struct brant_blocker brant_blocker;

/**
 * Says that the guest can be neither migrated nor saved, and why, until the blocker is taken back.
 * A migration or save that is started meanwhile is refused with BRANT_E_BLOCKED and the reason. One
 * that is running fails with it unless the guest is paused already. `blocker` may be NULL: then the reason
 * stays as long as the guest does.
 */
int32_t brant_blocker_new(struct brant_guest *guest,
                          const char *reason,
                          struct brant_blocker **blocker,
                          struct brant_error **error);

/** Takes a blocker's reason back and frees the blocker; NULL is fine. */
void brant_blocker_free(struct brant_blocker *blocker);

/* =============================================================================================
 * Operations: what brant asks of the VMM
 *
 * A source needs `pause` and `resume`, a destination needs `run`. `load` takes what `save` puts,
 * and `early_load` takes what `early_save` puts.
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
 * One blob of device state or early configuration, as `load` and `early_load` get it. Valid during
 * the callback only.
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
 * A warning, not an error. Examples: a parameter was clamped; a log failed, so all its pages count
 * as dirty.
 */
#define BRANT_EVENT_WARNING 3
/** The migration is over and has succeeded. */
#define BRANT_EVENT_COMPLETED 4
/** The migration is over: it failed or was cancelled. On a source the guest runs on. */
#define BRANT_EVENT_FAILED 5
/**
 * The guest was handed over without an answer: it stays paused until `brant_outgoing_resolve`. Also the
 * last event of an interrupted postcopy that the VMM gave up; its guest never runs here again.
 */
#define BRANT_EVENT_UNANSWERED 6
/**
 * Source: pages at the destination differ from those here (`brant_params.verify`). The message names
 * the block, the first such page and their number; there is one event for each block. The guest
 * runs at the destination, and the migration succeeds all the same.
 */
#define BRANT_EVENT_MISMATCH 7
/**
 * Source: about the time in which the guest stands still. The message says which: a pause was aborted
 * (`brant_params.downtime_slack_ms`), after how long and why; the downtime was longer than its limit,
 * and which parts took longer than promised; the limit rises (`brant_policy.downtime_ceiling_ms`);
 * or the guest is paused however long that takes, and why.
 */
#define BRANT_EVENT_DOWNTIME 8
/**
 * Source: the migration has stalled, also without a policy. Either for `brant_policy.stall_ms` no pass
 * left less than every pass before it: told at the end of a pass, when such a stall begins and when
 * its cause changes. Or nothing has moved for so long in the middle of a pass: told then, once until
 * something moves again, and `brant_outgoing_event_fd` becomes readable. The message says for how long
 * and why; `brant_stats.stall` is the cause. With `brant_params.zero_copy`, do not remove a block inside
 * this event: the removal would wait for the link.
 */
#define BRANT_EVENT_STALLED 9
/**
 * Source: the guest is slowed by another percentage than before, or other vCPUs are, or none
 * (`brant_policy.slowing`).
 */
#define BRANT_EVENT_THROTTLE 10
/**
 * Postcopy: the connections were lost after the guest was handed over, and pages of its memory are not
 * at the destination. The guest runs there until it needs one of them, and waits for it. Both sides keep
 * what they have until their VMMs recover or resolve the migration. The message says why, and how many
 * pages are missing. The state is BRANT_SOURCE_INTERRUPTED or BRANT_DESTINATION_INTERRUPTED, and waiting
 * for the end of the migration goes on. It comes also when a recovery has failed, and then says so.
 */
#define BRANT_EVENT_INTERRUPTED 11
/**
 * Postcopy: an interrupted migration goes on over new connections. The message says how many pages are
 * missing. The state is BRANT_SOURCE_SERVING or BRANT_DESTINATION_COMPLETING. Also at a destination in
 * BRANT_DESTINATION_RUNNING: a source that recovered late knows by now that nothing is missing.
 */
#define BRANT_EVENT_RECOVERED 12

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
 * A thread that sends, or receives, on one of several channels. A migration has one for each
 * channel but channel 0, which is the migration thread's. It calls no operation but `thread_start`.
 */
#define BRANT_ROLE_CHANNEL 2
/**
 * A thread that has the host back a destination's memory just before contents arrive for it
 * (MADV_POPULATE_WRITE). An incoming migration has at most one for each channel, and only for
 * memory that is not backed already. The thread calls no operation but `thread_start`.
 */
#define BRANT_ROLE_PREFAULT 4
/**
 * A thread that harvests dirty rings before they fill, while a tracker in mode ring tracks.
 * Besides the KVM_RESET_DIRTY_RINGS ioctl it calls futex and getrusage. It calls no operation but
 * `thread_start`.
 */
#define BRANT_ROLE_REAPER 5
/**
 * A thread that serves page faults of a guest whose memory has not arrived whole
 * (BRANT_GUEST_INCOMPLETE). Such a guest has one. The thread calls no operation but `thread_start`,
 * and must never touch the guest's memory: a page that it waits for would never come. While it does
 * not run, threads that touch absent pages wait, vCPUs among them.
 */
#define BRANT_ROLE_FAULT 6
/** A thread that saves a guest to an image, or restores one from it, and calls the operations. */
#define BRANT_ROLE_SNAPSHOT 7
/**
 * A thread that writes pages to an image, or reads them from it. It calls no operation but
 * `thread_start`.
 */
#define BRANT_ROLE_IMAGE 9
/**
 * A thread that computes checksums of a destination's memory for a source that verifies the
 * migration (`brant_params.verify`), while the guest stands still. An incoming migration has one
 * for each channel but one. It calls no operation but `thread_start`.
 */
#define BRANT_ROLE_DIGEST 10
/**
 * A thread of a migration whose guest has devices (`brant_guest_add_device`): at the total timeout or
 * the switchover timeout it asks a device in a call to return (`brant_device.cancel`).
 */
#define BRANT_ROLE_WATCH 11
/**
 * A thread that writes the recording of a migration (`brant_outgoing_record`). It calls no operation but
 * `thread_start`.
 */
#define BRANT_ROLE_RECORD 12

/**
 * The VMM's operations. An operation that the VMM does not have is NULL. Operations belong to a
 * guest: `brant_guest_new` copies the table, and takes the `opaque` that each operation gets.
 *
 * A migration calls its operations one at a time on its own thread, unless an operation says
 * otherwise below. In the same way a save calls the operations of a source, and a restore those of
 * a destination, each on its own thread. All signals are masked on that thread, except in the
 * operations that may make threads. `early_load`, `load`, `loaded`, `run` and `resume` have the
 * signal mask of the thread that started the migration. So a vCPU thread that is made in one of
 * them can be kicked by a signal, and a signal handler of the VMM's may run on brant's thread
 * meanwhile. A thread that is made in any other operation inherits a mask of all signals: the new
 * thread has to clear the mask (pthread_sigmask) first. An operation returns 0, or any other value
 * for a failure; then it may set the reason. Inside an operation, waiting for or freeing the
 * migration that calls it is BRANT_E_CALLBACK, and cancelling that migration only asks for its
 * end. Every other call is allowed.
 *
 * The own thread of a migration, a save or a restore has a stack of 8 MiB, every other thread of
 * brant's has 2 MiB. The thread-local variables of the process take their part of the stack.
 *
 * A guest's memory depends on two contracts:
 * - Paused means: every vCPU is out of KVM_RUN with pending I/O retired, no thread stands between
 *   a write to guest memory and its mark, and no device writes guest memory. To retire I/O after
 *   an I/O or MMIO exit, set immediate_exit and enter KVM_RUN again until it fails with EINTR: one
 *   retirement can be followed by another exit. A KVM_RUN that fails with EINTR leaves the
 *   exit_reason of the exit before, so look at the return value of KVM_RUN first.
 * - Write first, then mark: a sync can collect a mark that was made too early before the write
 *   lands. Then the write is lost.
 *
 * A vCPU thread that ends while the guest migrates, because the guest has shut down, counts as
 * paused in `pause` and as outside of KVM_RUN in `kick`; keep its vCPU descriptor open until the
 * migration is over. Unless the guest is to start again at the destination, cancel the migration.
 *
 * brant_outgoing_cancel, brant_incoming_cancel, the waits and the frees wait for the migration's
 * thread, which may be inside an operation. So do not call them while you hold a lock that an
 * operation takes.
 */
typedef struct brant_ops {
    /** sizeof(brant_ops). */
    size_t size;
    /**
     * Source, required: stop the guest; return when the guest is paused in the sense above. From
     * before this call until `resume` has returned 0, brant calls no `kick` for any tracker of the
     * guest. Kicks that began earlier have ended before this call. A guest that its user has
     * paused already is fine: return 0, and remember for `resume` that the user wants it paused.
     */
    int32_t (*pause)(void *opaque, struct brant_reason *reason);
    /**
     * Source, required: let the guest run on, because a migration that had paused it did not
     * happen. Also called when `pause` failed, and by a save once the last page is written. Takes
     * back what `release` let go. brant does not know whether the guest stood still before
     * `pause`: leave a guest paused that its user has paused, before the migration or since, and
     * return 0. When `brant_outgoing_resolve` decides that the guest runs on, this is called on
     * the thread of that call. When this fails, the guest counts as standing still here
     * (BRANT_GUEST_STANDS).
     */
    int32_t (*resume)(void *opaque, struct brant_reason *reason);
    /**
     * Source, guest paused: put all device and vCPU state into `saver`. May write guest memory:
     * the last harvest comes after `save`. When a pause is aborted (`brant_params.downtime_slack_ms`),
     * `resume` follows, and the next pause calls `save` again. So `save` must leave every device able
     * to run on.
     */
    int32_t (*save)(void *opaque, struct brant_saver *saver, struct brant_reason *reason);
    /**
     * Destination: all memory is here; take one blob of device state. Called once for each blob,
     * in the order of saving. May write guest memory, except blocks that came by descriptor
     * (`map_block`): no page arrives after this call. When a tracker of this guest is started here (a backup's, from before the guest went away), mark
     * the writes of `load`. A failure refuses the switchover, and the guest runs on at the source.
     */
    int32_t (*load)(void *opaque,
                    const struct brant_state_blob *blob,
                    struct brant_reason *reason);
    /** Destination: every blob was loaded; the last chance to refuse. */
    int32_t (*loaded)(void *opaque, struct brant_reason *reason);
    /**
     * Source, guest running, before memory is sent: put the configuration that the destination
     * needs in order to build its guest into `saver`.
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
     * Source, guest paused, destination ready: let go of everything that only one side may hold,
     * disk locks for example. The hand-over comes next, or `resume`.
     */
    int32_t (*release)(void *opaque, struct brant_reason *reason);
    /**
     * Destination, required: the guest is yours, let it run. Start the guest at once, without long
     * work before. A guest that its user had paused at the source may stay paused here, if the
     * source's `save` said so: return 0. When this is called the hand-over was in time. One second
     * after the hand-over's limit the source's VMM assumes that `run` was called here, or never
     * will be. When this fails, the guest has to be stopped.
     */
    int32_t (*run)(void *opaque, struct brant_reason *reason);
    /**
     * Switch dirty logging on for `count` KVM memory slots, with BRANT_SWITCHED_BY_VMM. Called on
     * the thread that starts tracking or adds a slot, under brant's own locks. So inside `log_on`
     * and `log_off` call no function of brant's but marks, and take no lock that another thread
     * holds around a brant_guest_* or brant_tracker_* call.
     */
    int32_t (*log_on)(void *opaque,
                      const uint32_t *slots,
                      size_t count,
                      struct brant_reason *reason);
    /**
     * Switch dirty logging off again. Called on the thread that stops tracking or removes a
     * slot.
     */
    int32_t (*log_off)(void *opaque,
                       const uint32_t *slots,
                       size_t count,
                       struct brant_reason *reason);
    /** Something happened. Must not block for long. */
    void (*event)(void *opaque, const struct brant_event *event);
    /**
     * A new thread of brant's calls this first: the place for affinity and seccomp. `role` is
     * BRANT_ROLE_*.
     */
    void (*thread_start)(void *opaque, uint32_t role);
    /**
     * Make every vCPU leave KVM_RUN once and go on; return when each vCPU has left, or was
     * outside. Called with dirty rings (`brant_tracker_add_kvm`), before each sync of a running
     * guest. A processor with page-modification logging hands over its entries only at an exit. So
     * without a kick such a sync misses some pages, which a later sync finds. Called on the thread
     * that syncs, under brant's own locks: the rules of `log_on` count. Also do not wait for a
     * thread that is inside a call of brant's; waiting for `brant_tracker_ring_full` and for marks
     * is fine.
     *
     * A kick may pause the guest and resume it, because brant calls `kick` only when the guest
     * runs here by all that brant knows (BRANT_GUEST_UNKNOWN, _HERE, _LEAVING and _SAVING). A
     * guest that its user has paused must stay paused after a kick. brant never calls it between
     * `pause` and `resume`, after a hand-over, or where a guest arrives or should have arrived.
     * The call of `pause` waits for kicks that have begun.
     */
    int32_t (*kick)(void *opaque, struct brant_reason *reason);
    /**
     * Source, guest running: slow one vCPU, or all of them when `vcpu` is BRANT_ALL_VCPUS. From then
     * on the vCPU sleeps for `percent` of its time, 0 to 99, in slices of a few milliseconds. The
     * percentage replaces the one before; a call for all vCPUs replaces those of each. 0 lets the
     * vCPU run freely. Must not wait for a vCPU. `vcpu` is the VMM's number of the vCPU.
     *
     * Called when the policy slows the guest (`brant_policy.slowing`). Once the guest was slowed, a
     * call with 0 for all vCPUs follows before `pause`, and at every end of the migration. It may
     * come while a vCPU sleeps, so `pause` must end such a sleep. When this fails, an event says so,
     * and the migration goes on without slowing the guest.
     */
    int32_t (*throttle)(void *opaque,
                        uint32_t vcpu,
                        uint32_t percent,
                        struct brant_reason *reason);
    /**
     * Destination, after `early_load` and before the layouts are compared: map `length` bytes of the
     * file `fd` from `offset` on, with MAP_SHARED, and put the address into `address`. Called once for
     * each block that comes by descriptor from a source on the same host (`brant_params.hand_over`).
     * `fd` is brant's: duplicate it to keep it. After the call the block `name` is in the guest's map,
     * without a slot: find its number by its name (`brant_guest_find_block`). When the VMM has added a
     * block of that name before, map the file over its memory (MAP_FIXED) and return the same
     * address: the new block then has a new number, and the old one's slots.
     *
     * Nothing may write this memory before `run`: not this operation, not `load`, not `loaded`, no
     * device, no other process. It is the memory of the guest that runs at the source, which keeps the
     * guest when the migration fails. What must write waits for `run`. KVM writes the guest's clock
     * page when the MSR of its wall clock is set: set that MSR in `run`. Do not map with MAP_POPULATE,
     * which would fill the file's holes. `brant_params.verify` at the source finds such writes.
     */
    int32_t (*map_block)(void *opaque,
                         const char *name,
                         int32_t fd,
                         uint64_t length,
                         uint64_t offset,
                         void **address,
                         struct brant_reason *reason);
} brant_ops;

/** As the vCPU of `brant_ops.throttle`: all vCPUs. */
#define BRANT_ALL_VCPUS 4294967295

/**
 * Sets the reason why a callback fails, in UTF-8. The migration's error shows the reason, with
 * U+FFFD in place of bytes that are not UTF-8. NULL is ignored.
 */
void brant_reason_set(struct brant_reason *reason,
                      const char *message);

/**
 * Puts one blob of state: `name` of 1 to 128 bytes, `instance` for several of that name, the VMM's
 * own `version` of the format, and `length` bytes at `data`, which are copied. A blob has at most
 * about 1 GiB; there are at most 65536 blobs. A blob that is refused would be missing at the
 * destination. So `save` then counts as failed, whatever it returns, and the refusal is the reason
 * unless `save` sets another.
 */
int32_t brant_saver_put(struct brant_saver *saver,
                        const char *name,
                        uint32_t instance,
                        uint32_t version,
                        const void *data,
                        size_t length,
                        struct brant_error **error);

/**
 * brant_reason_set with a format: the text of at most 511 bytes that snprintf makes of the arguments behind
 * `reason`. A statement. It needs <stdio.h>.
 *
 *     BRANT_REASON_SETF(reason, "vCPU %u: %s", vcpu, strerror(errno));
 */
#define BRANT_REASON_SETF(reason, ...)                            \
    do {                                                          \
        char brant_text_[512];                                    \
        snprintf(brant_text_, sizeof brant_text_, __VA_ARGS__);   \
        brant_reason_set((reason), brant_text_);                  \
    } while (0)

/**
 * Adds `length` bytes at `data` as state of a device, with no callback: brant saves and loads them. At
 * the source they are put after `save` has returned, in the order of the calls of this function. At the
 * destination they arrive in the same order, after what the source's `save` put and before `loaded`: so
 * `save` may fill them from the kernel, and `loaded` may give them to it.
 *
 * Both sides know a state by `name` (1 to 128 bytes, no control characters) and `instance`. `version` is
 * the VMM's own number of the layout. The destination refuses the switchover, and the guest runs on at
 * the source, when version or length differ, and when one of the destination's states did not come; the
 * message names the state and both values. A state that only the source has goes to the destination's
 * `load`. A destination that refuses may have loaded some states before.
 *
 * The bytes stay the VMM's. brant reads them when the guest is paused, and writes them when a guest
 * arrives that does not run yet; nobody else writes them meanwhile. Bytes that cannot be read or written
 * then raise no signal: `save` or `load` fails, the message names the state and the byte, and the guest
 * runs on at the source. Memory that is unmapped or protected by another thread in the same moment is
 * not noticed.
 *
 * 1 byte to 1 GiB each and 4096 states a guest. Add them before the migration starts, also in
 * `early_load`. BRANT_E_EXISTS for a name and instance that is there. BRANT_E_INVALID for 0 bytes, bytes
 * that reach past the end of the address space, and bytes that cannot be read now. Any thread.
 */
int32_t brant_guest_add_state(struct brant_guest *guest,
                              const char *name,
                              uint32_t instance,
                              uint32_t version,
                              void *data,
                              size_t length,
                              struct brant_error **error);

/**
 * Removes a state. When this returns, brant does not access its bytes any more. BRANT_E_NOT_FOUND when
 * there is none of that name and instance. Any thread.
 */
int32_t brant_guest_remove_state(struct brant_guest *guest,
                                 const char *name,
                                 uint32_t instance,
                                 struct brant_error **error);

/* ---------------------------------------------------------------------------------------------
 * The gate: a pause that is ready made
 *
 * For a VMM that has none of its own. The thread of a vCPU, whole:
 *
 *     brant_gate_add_vcpu(gate, number, vcpu_fd, &vcpu, NULL);
 *     while (brant_gate_vcpu_run(vcpu, NULL) == 0)
 *         if (handle_exit(run) < 0)
 *             break;
 *     brant_gate_vcpu_free(vcpu);
 *
 * docs/gate.md says what the gate takes care of, and how it lives with the VMM's own signals.
 * --------------------------------------------------------------------------------------------- */

/**
 * A gate for the threads of one guest: a pause shuts it, and then vCPUs and device threads stand still
 * in the sense of `brant_ops`. It is optional: a VMM that has a pause of its own needs none. brant
 * makes no thread for it.
 *
 * A thread that writes guest memory otherwise calls `brant_gate_device_enter` before it takes its next
 * request, and `brant_gate_device_leave` after the mark of its last write. `brant_guest_use_gate` lets
 * migrations pause, resume, run and kick by the gate; the VMM's own pauses are `brant_gate_pause` and
 * `brant_gate_resume`. All of them may hold the guest at the same time: it runs when nobody does.
 *
 * A new gate is shut, because its guest has not started. Threads may be made before: they wait.
 * `brant_gate_start` opens it for a guest that begins here, and `run` of a migration for a guest that
 * arrives.
 *
 * The signal: threads in KVM_RUN are taken out by one signal to that thread, `brant_gate_config.signal`.
 * The VMM may use the same signal for its own kicks. The signal needs a handler, which may do nothing;
 * the VMM installs it, or asks for it by BRANT_GATE_INSTALL_HANDLER. A thread of another gate, or of a
 * library, is never sent the signal. Without a handler no signal is sent, and the call says so.
 *
 * Threads: any, several at once, except where a function says otherwise. Free the vCPUs and devices
 * first, then the gate; a guest that uses the gate keeps what it needs. `brant_gate_free` is the last
 * call on it.
 */
typedef struct brant_gate brant_gate;

/**
 * A vCPU at a gate.
 *
 * Threads: the one that called `brant_gate_add_vcpu`. `brant_gate_vcpu_free` is the last call on it, on
 * any thread.
 */
typedef struct brant_gate_vcpu brant_gate_vcpu;

/**
 * A device at a gate: anything whose threads write guest memory.
 *
 * Threads: any number. `brant_gate_device_free` is the last call on it, when no thread is inside.
 */
typedef struct brant_gate_device brant_gate_device;

/**
 * In `brant_gate_config.flags`: install a handler for the signal that does nothing, if the signal has
 * its default action. A handler of the VMM's is left alone. The handler stays when the gate is freed.
 */
#define BRANT_GATE_INSTALL_HANDLER 1

/** How a gate is made. */
typedef struct brant_gate_config {
    /** sizeof(brant_gate_config). */
    size_t size;
    /**
     * How long `pause` and `kick` of a migration wait for threads, milliseconds. 0 means 5000;
     * BRANT_NO_LIMIT.
     */
    uint64_t wait_ms;
    /** The signal that takes a thread out of KVM_RUN; 0 means SIGRTMIN + 4. */
    int32_t signal;
    /** BRANT_GATE_*. */
    uint32_t flags;
} brant_gate_config;

/** In the answer of `brant_gate_get_holds`: the guest has not been started here. */
#define BRANT_HELD_BEFORE_START 1
/** In the answer of `brant_gate_get_holds`: by one `brant_gate_pause` or several. */
#define BRANT_HELD_BY_USER 2
/**
 * In the answer of `brant_gate_get_holds`: by `pause` of a migration or a save. After a hand-over this
 * stays.
 */
#define BRANT_HELD_BY_MIGRATION 4
/** In the answer of `brant_gate_get_holds`: the guest has shut down. */
#define BRANT_HELD_SHUT_DOWN 8

/**
 * Makes a gate that is shut. `config` may be NULL: then the VMM installs a handler for SIGRTMIN + 4.
 * BRANT_E_INVALID for a signal that cannot be used (SIGKILL, SIGSTOP, the faults, the C library's),
 * BRANT_E_STATE when a handler is to be installed and the signal is ignored.
 */
int32_t brant_gate_new(const struct brant_gate_config *config,
                       struct brant_gate **gate,
                       struct brant_error **error);

/**
 * Frees a gate; NULL is fine. Its vCPUs and devices are freed before. A guest that uses it goes on
 * using it.
 */
void brant_gate_free(struct brant_gate *gate);

/**
 * Lets a guest's operations `pause`, `resume`, `run` and `kick` be carried out by the gate. Then the
 * table of operations needs none of them. When the table has one, both are called: the table's `pause`
 * after the gate's, with all vCPUs and devices standing; the table's `resume`, `run` and `kick` before
 * the gate's, with all of them standing still for the first two. When the table's fails, the gate stays
 * as it is. `resume` does not fail by the gate, and leaves a guest paused that its user has paused.
 *
 * From then on the gate also knows who has the guest: `brant_gate_start` and `brant_gate_resume` refuse
 * what must not run here. One gate a guest and one guest a gate: a second one is BRANT_E_EXISTS. Call it
 * before the first migration, save or restore of the guest is made.
 */
int32_t brant_guest_use_gate(struct brant_guest *guest,
                             struct brant_gate *gate,
                             struct brant_error **error);

/**
 * Opens the gate for a guest that begins here, or that was reclaimed (`brant_guest_reclaim`). A pause of
 * the user's stays. With a guest (`brant_guest_use_gate`) this says brant_guest_runs_here too, whose
 * errors it has. BRANT_E_CANCELLED when the guest has shut down.
 */
int32_t brant_gate_start(struct brant_gate *gate,
                         struct brant_error **error);

/**
 * Pauses the guest for a user of the VMM's, and returns when every vCPU is out of KVM_RUN with nothing pending and
 * every device thread is outside. First the vCPUs are waited for, then the devices, because a vCPU in
 * the middle of an exit may need one. A guest that is paused already is fine.
 *
 * Pauses are counted: each that returned 0 is taken back by one `brant_gate_resume`. So a snapshot of the VMM's that
 * pauses and resumes does not wake a guest that its operator has paused. After an error there is nothing to take back.
 *
 * BRANT_E_TIMEOUT after `timeout_ms` (BRANT_NO_LIMIT: never): the message names the vCPUs or devices
 * that did not come, and the guest runs on as if nothing had been asked. BRANT_E_CALLBACK on a vCPU's
 * thread and inside a device, which would have to stand still for it. BRANT_E_CANCELLED when the guest
 * has shut down, also meanwhile; BRANT_E_STATE when a resume has taken this pause back meanwhile, or when the signal has
 * no handler any more.
 */
int32_t brant_gate_pause(struct brant_gate *gate,
                         uint64_t timeout_ms,
                         struct brant_error **error);

/**
 * Takes one `brant_gate_pause` back. A guest that another user, a migration or a save has paused stays paused until
 * that lets it go. A guest that no user has paused is fine. BRANT_E_STATE when the guest was handed over or given
 * up: the pause is taken back, so that it does not hold a guest that comes back, and the guest does not run
 * here. BRANT_E_CANCELLED when it has shut down.
 */
int32_t brant_gate_resume(struct brant_gate *gate,
                          struct brant_error **error);

/**
 * Says that the guest has shut down, on any thread. All functions that wait at this gate return
 * BRANT_E_CANCELLED, vCPUs are taken out of KVM_RUN, and a migration whose `pause` waits or comes later
 * fails by that. A migration that has paused the guest already goes on: let `save` fail if the guest
 * must not arrive. Does not wait for the threads: join them. There is no way back; a guest that starts
 * again needs a new gate.
 */
int32_t brant_gate_shut_down(struct brant_gate *gate,
                             struct brant_error **error);

/** Puts into `*holds` who holds the guest still: 0, or a sum of BRANT_HELD_*. */
int32_t brant_gate_get_holds(const struct brant_gate *gate,
                             uint32_t *holds,
                             struct brant_error **error);

/**
 * Makes the thread of vCPU `vcpu` come by the VMM's code soon, for a request of the VMM's (an interrupt
 * to inject): set the request first. `brant_gate_vcpu_run` returns with KVM_EXIT_INTR,
 * `brant_gate_vcpu_idle` returns. Never waits; any thread, also in a callback. BRANT_E_NOT_FOUND for a
 * number that is not at the gate.
 */
int32_t brant_gate_kick_vcpu(struct brant_gate *gate,
                             uint32_t vcpu,
                             struct brant_error **error);

/**
 * Adds a vCPU, on its own thread, before it runs; also while the guest is paused. `number` is the VMM's
 * own, unique at the gate. `vcpu_fd` is what KVM_CREATE_VCPU returned; brant keeps a duplicate and maps
 * the first page of its kvm_run. -1 for a vCPU of something else than KVM's, and for no
 * `brant_gate_vcpu_run`. The gate's signal is unblocked on this thread.
 *
 * BRANT_E_EXISTS for a number that is in use, BRANT_E_STATE when the signal has no handler or is
 * ignored, BRANT_E_INVALID for a descriptor of no vCPU, BRANT_E_CANCELLED when the guest has shut down.
 */
int32_t brant_gate_add_vcpu(struct brant_gate *gate,
                            uint32_t number,
                            int32_t vcpu_fd,
                            struct brant_gate_vcpu **vcpu,
                            struct brant_error **error);

/**
 * Removes a vCPU; NULL is fine. No pause waits for it any more, wherever it was: call it when its
 * thread has left KVM_RUN for good. Any thread, once.
 */
void brant_gate_vcpu_free(struct brant_gate_vcpu *vcpu);

/**
 * Calls KVM_RUN once, when the guest may run, and returns 0 when kvm_run has an exit to handle. Waits
 * while the guest is paused. After a signal, and when there is nothing to handle, `exit_reason` is
 * KVM_EXIT_INTR (a stale reason never stands there): look for requests of the VMM's own, and call this
 * again. Handle the exit before the next call: the next KVM_RUN completes it, also during a pause.
 *
 * BRANT_E_CANCELLED when the guest has shut down: end the thread. BRANT_E_STATE on another thread, and
 * for a vCPU without a descriptor. BRANT_E_KERNEL (or a code that fits the errno better) when KVM_RUN
 * fails with something else than EINTR and EAGAIN.
 */
int32_t brant_gate_vcpu_run(struct brant_gate_vcpu *vcpu,
                            struct brant_error **error);

/**
 * For a VMM that calls KVM_RUN itself, in place of `brant_gate_vcpu_run`: returns 0 when KVM_RUN may be
 * called; call it at once. Waits while the guest is paused and this vCPU owes no retirement of an exit.
 * BRANT_E_CANCELLED when the guest has shut down.
 */
int32_t brant_gate_vcpu_enter(struct brant_gate_vcpu *vcpu,
                              struct brant_error **error);

/**
 * After KVM_RUN that followed `brant_gate_vcpu_enter`, before anything else. `interrupted` is not 0 when
 * KVM_RUN failed with EINTR, and only then: an EINTR says that nothing is pending any more, so the vCPU
 * may stand still, and this call waits while the guest is paused. There is no exit to handle after an
 * EINTR, whatever `exit_reason` says. After EAGAIN `interrupted` is 0, and there is none either.
 * BRANT_E_CANCELLED when the guest has shut down.
 */
int32_t brant_gate_vcpu_left(struct brant_gate_vcpu *vcpu,
                             int32_t interrupted,
                             struct brant_error **error);

/**
 * Waits, for a vCPU with nothing to do (KVM_EXIT_HLT without an interrupt controller in the kernel),
 * until `brant_gate_kick_vcpu`, a pause, or `timeout_ms` (BRANT_NO_LIMIT: no end); 0 in each case. The
 * next call is `brant_gate_vcpu_run`. BRANT_E_CANCELLED when the guest has shut down.
 */
int32_t brant_gate_vcpu_idle(struct brant_gate_vcpu *vcpu,
                             uint64_t timeout_ms,
                             struct brant_error **error);

/**
 * Adds a device under a `name` of 1 to 128 bytes without control characters, unique at the gate. A
 * pause that waits in vain names it.
 */
int32_t brant_gate_add_device(struct brant_gate *gate,
                              const char *name,
                              struct brant_gate_device **device,
                              struct brant_error **error);

/** Removes a device; NULL is fine. No thread is inside. */
void brant_gate_device_free(struct brant_gate_device *device);

/**
 * The calling thread comes in: until it has left, no pause returns. Waits while the devices have to
 * stand still, at most `timeout_ms` (BRANT_NO_LIMIT; 0 for a thread that must not wait). A thread that
 * is inside of any device of the gate comes in without waiting; it leaves as often as it came. Costs an
 * atomic addition while nobody pauses. BRANT_E_PENDING when the time is up, BRANT_E_CANCELLED when the
 * guest has shut down.
 */
int32_t brant_gate_device_enter(struct brant_gate_device *device,
                                uint64_t timeout_ms,
                                struct brant_error **error);

/**
 * The calling thread leaves, after the mark of its last write. BRANT_E_STATE when it is not inside.
 */
int32_t brant_gate_device_leave(struct brant_gate_device *device,
                                struct brant_error **error);

/* ---------------------------------------------------------------------------------------------
 * The state of KVM's vCPUs and VMs
 *
 * For `save` and `load`: with these functions a VMM needs no code of its own for what KVM knows of a
 * guest. In `save`, brant_kvm_vcpu_save of each vCPU, then brant_kvm_vm_save. In `load`, by the blob's
 * name: "kvm-vcpu" goes to brant_kvm_vcpu_load, "kvm-vm" to brant_kvm_vm_load. In `early_save` and
 * `early_load`, brant_kvm_compat_save and brant_kvm_compat_check. docs/kvm-state.md has an example, what is
 * saved, the order with its reasons, and what the VMM still does itself. x86-64 only.
 * --------------------------------------------------------------------------------------------- */

/**
 * Puts the state of one vCPU into `saver`: a blob with the name "kvm-vcpu" and the instance `vcpu`, the
 * VMM's number of it. To be called in `save` (`brant_ops`) for each vCPU: registers of all kinds, extended
 * state, MSRs, events, local APIC, nested state, TSC, and CPUID for comparison. docs/kvm-state.md says
 * what is saved, in which order, and what the VMM still does itself. x86-64 only.
 *
 * `kvm_fd` is /dev/kvm, or -1: then brant opens /dev/kvm for the call. `vm_fd` and `vcpu_fd` are what
 * KVM_CREATE_VM and KVM_CREATE_VCPU returned. All three stay the VMM's. No vCPU of the VM runs, and pending
 * I/O is retired (`brant_ops`). The vCPU can run on afterwards.
 *
 * BRANT_E_INVALID for a descriptor that is closed, of another kind, of another process's VM, or of a vCPU that shows
 * to be another VM's (no in-kernel local APIC where the VM has in-kernel interrupt controllers); the message names the
 * argument, and says what was expected and found. When this fails, `save` counts as failed, as with
 * brant_saver_put. Threads: that of `save`.
 */
int32_t brant_kvm_vcpu_save(int32_t kvm_fd,
                            int32_t vm_fd,
                            int32_t vcpu_fd,
                            uint32_t vcpu,
                            struct brant_saver *saver,
                            struct brant_error **error);

/**
 * Loads a blob of brant_kvm_vcpu_save into a vCPU. To be called in `load` (`brant_ops`) for the vCPU
 * with the number `blob->instance`. The vCPU has to be the one of the same number for KVM too: KVM_CREATE_VCPU was
 * given the same number at both sides, on x86-64 that of the APIC. The blob has it, and brant compares it where
 * both kernels tell it (Linux 5.14). brant_kvm_vcpu_load_renumbered is for a VMM with other numbers here. Before, the VMM has set its CPUID (KVM_SET_CPUID2) to that of the
 * source; brant compares both and changes nothing. If the source has in-kernel interrupt controllers,
 * the VMM has made them here (KVM_CREATE_IRQCHIP). The vCPU does not run. The guest's TSC goes on by the time that has passed since `save`
 * by the two hosts' clocks (CLOCK_REALTIME), at most 60 seconds. At its next entry the guest hears that it
 * was stopped (KVM_KVMCLOCK_CTRL).
 *
 * All that can be checked is checked before the first register is written. BRANT_E_UNSUPPORTED: this
 * kernel or this vCPU cannot take the state, and the message names CPUID bits, MSR, size or capability.
 * BRANT_E_VERSION: the blob's format is of another version. BRANT_E_INVALID: a damaged blob (it has a checksum), one of
 * another name, instance or vCPU, or a descriptor as with brant_kvm_vcpu_save. After BRANT_E_KERNEL the vCPU may have a part of the state and must
 * not run. Descriptors as with brant_kvm_vcpu_save. Any thread, one call at a time for a vCPU.
 */
int32_t brant_kvm_vcpu_load(int32_t kvm_fd,
                            int32_t vm_fd,
                            int32_t vcpu_fd,
                            const struct brant_state_blob *blob,
                            struct brant_error **error);

/**
 * As brant_kvm_vcpu_load, for a VMM that gives its vCPUs other numbers than the source did: the blob is of the
 * vCPU for which the source gave `number` to KVM_CREATE_VCPU, whatever the number of `vcpu_fd` is. The state of
 * any other vCPU is BRANT_E_INVALID. The guest finds the APIC's number of the source in its local APIC, so its
 * CPUID has to say that one too. When the in-kernel local APIC is in x2APIC mode, KVM itself refuses any number
 * but the vCPU's own. Threads and errors as with brant_kvm_vcpu_load.
 */
int32_t brant_kvm_vcpu_load_renumbered(int32_t kvm_fd,
                                       int32_t vm_fd,
                                       int32_t vcpu_fd,
                                       uint32_t number,
                                       const struct brant_state_blob *blob,
                                       struct brant_error **error);

/**
 * Tells the guest of a vCPU, at its next entry, that it stood still (KVM_KVMCLOCK_CTRL), so that its
 * watchdogs do not take the pause for a hang. Call it in `resume` for each vCPU before it runs;
 * brant_kvm_vcpu_load does it too. Nothing happens for a guest without KVM's clock. BRANT_E_INVALID if
 * `vcpu_fd` is not what KVM_CREATE_VCPU returned; the message says what it is. Any thread; waits while the vCPU runs.
 */
int32_t brant_kvm_vcpu_stood_still(int32_t vcpu_fd,
                                   struct brant_error **error);

/**
 * Puts what belongs to the VM and to no vCPU into `saver`, a blob with the name "kvm-vm": the in-kernel
 * interrupt controllers and PIT, if there are any, and KVM's clock. To be called in `save` (`brant_ops`)
 * after all vCPUs. Descriptors, threads and errors as with brant_kvm_vcpu_save.
 */
int32_t brant_kvm_vm_save(int32_t kvm_fd,
                          int32_t vm_fd,
                          struct brant_saver *saver,
                          struct brant_error **error);

/**
 * Loads a blob of brant_kvm_vm_save. To be called in `load` (`brant_ops`): the blob comes after those of
 * all vCPUs if it was saved so. The VMM has made interrupt controllers and PIT as at the source.
 * Afterwards devices assert again the lines that they hold up. KVM's clock goes on by the time that has
 * passed, as the TSC does. Descriptors, threads and errors as with brant_kvm_vcpu_load.
 */
int32_t brant_kvm_vm_load(int32_t kvm_fd,
                          int32_t vm_fd,
                          const struct brant_state_blob *blob,
                          struct brant_error **error);

/**
 * Puts what brant_kvm_compat_check needs into `saver`, a blob with the name "kvm-compat". To be called in
 * `early_save` (`brant_ops`): it makes no call on a vCPU, so the guest runs on. `cpuid` is the `struct kvm_cpuid2` that
 * the VMM gave to KVM_SET_CPUID2 for any one vCPU, with at most 256 entries; read during the call.
 * Descriptors, threads and errors as with brant_kvm_vcpu_save.
 */
int32_t brant_kvm_compat_save(int32_t kvm_fd,
                              int32_t vm_fd,
                              const void *cpuid,
                              struct brant_saver *saver,
                              struct brant_error **error);

/**
 * Whether this VM will be able to take the state of the guest that comes: CPUID, MSRs, size of the
 * extended state, capabilities, frequency of the TSC, in-kernel controllers. To be called in `early_load`
 * (`brant_ops`): a refusal ends the migration before memory is sent, and the source's error has the reason
 * if the operation sets it. `cpuid` is the `struct kvm_cpuid2` that the VMM sets here for the same vCPU,
 * compared in full; or NULL: then every feature of the guest has to be one that KVM supports here.
 * BRANT_E_UNSUPPORTED: the message names what is missing. Descriptors and other errors as with
 * brant_kvm_vcpu_load. Any thread.
 */
int32_t brant_kvm_compat_check(int32_t kvm_fd,
                               int32_t vm_fd,
                               const void *cpuid,
                               const struct brant_state_blob *blob,
                               struct brant_error **error);

/* ---------------------------------------------------------------------------------------------
 * Devices whose state is streamed
 *
 * State that is too large for `save`: a part of it is sent while the guest runs, and the rest after
 * the pause over all connections. docs/devices.md has an example.
 * --------------------------------------------------------------------------------------------- */

/** In `brant_device_left.stopped`: the device does not know. */
#define BRANT_LEFT_UNKNOWN UINT64_MAX

/**
 * How much state a device has left to give, filled by `left`. All fields but `size` are 0 before the
 * call.
 */
typedef struct brant_device_left {
    /** sizeof(brant_device_left) in brant's version; the callback may leave it. */
    size_t size;
    /**
     * Bytes that the destination has to load before the guest is paused, and that `read_running`
     * has not given yet. They are a part of `running`. The guest is not paused before this is 0
     * and the destination has loaded all that was given until then. There may be such bytes again
     * later, and after an aborted pause: they are waited for in the same way.
     */
    uint64_t initial;
    /** Bytes that `read_running` would give now. */
    uint64_t running;
    /**
     * Bytes that only `read_stopped` gives, if the device stopped now, without those of `running`;
     * BRANT_LEFT_UNKNOWN counts as 0.
     */
    uint64_t stopped;
} brant_device_left;

/**
 * A device whose state a migration streams: a part of it while the guest runs, and the rest in
 * pieces after the pause, over all connections. Small state belongs into `save`.
 *
 * The state is the sequence of the bytes that `read_running` and then `read_stopped` give. Whatever
 * `read_running` has not given, `read_stopped` gives: a device may be stopped at any time, and a
 * save to an image never calls `read_running`.
 *
 * Order at the source: `begin` of every device before the first page; `left` and `read_running`
 * while the guest runs; the VMM's `pause`; `quiesce` of every device; `stop` of every device; a sync
 * of all dirty logs; the VMM's `save`; the last sync; `read_stopped` of one device after the other.
 * When the pause is aborted or the migration fails: `wake` of every device that was quiesced,
 * `resume` of each, the VMM's `resume`. `end` comes last, whatever the outcome. Rounds of
 * `read_running` go on after an aborted pause.
 *
 * Order at the destination: `load_running` while memory arrives. When all of memory is here:
 * `load_stopped` of one device after the other, in the order in which the source added them; the
 * VMM's `load` of all blobs; `loaded` of every device; the VMM's `loaded`. After the hand-over:
 * `wake` of every device, `run` of each, the VMM's `run`. When the migration fails before that:
 * `reset` of every device.
 *
 * Each callback that returns int32_t returns 0, or anything else for a failure whose reason it may
 * set (brant_reason_set). It gets `opaque` first.
 *
 * Threads: at the source one call at a time, on the migration's thread; `wake` and `resume` after
 * brant_outgoing_resolve on its caller's. At the destination `load_running` and `load_stopped` run
 * on any thread of the migration, one at a time for one device, those of different devices at the
 * same time. `cancel` runs on any thread, at any time. In all others all signals are masked. They
 * may block, and delay the migration by that. A callback must add and remove no blocks, and wait for
 * no object that called it.
 */
typedef struct brant_device {
    /** sizeof(brant_device). */
    size_t size;
    /**
     * 1 to 128 bytes of UTF-8 without control characters; copied. Name and `instance` together name
     * the device at both sides.
     */
    const char *name;
    /** Passed to each callback. */
    void *opaque;
    /** Tells devices of one name apart. */
    uint32_t instance;
    /**
     * The version of the format of the state, by the device's own numbering. A destination with
     * another version refuses the migration before the first page.
     */
    uint32_t version;
    /** Source: a migration begins. NULL: nothing to do. */
    int32_t (*begin)(void*, struct brant_reason*);
    /**
     * Source: fills how much is left. Called before each round of reads, and after a pause. NULL:
     * the device has no running part, and does not know the size of the stopped one.
     */
    int32_t (*left)(void*, struct brant_device_left*, struct brant_reason*);
    /**
     * Source, guest running: puts at most `length` bytes into `buffer` and their number into
     * `*read`, which is 0 before; 0 when there is nothing now. NULL: the device has no running
     * part.
     */
    int32_t (*read_running)(void*, void*, size_t, size_t*, struct brant_reason*);
    /**
     * Source, after `pause`: begin nothing that reaches another device, but still answer others. A
     * device may write guest memory until its `stop` has returned. NULL: nothing to do.
     */
    int32_t (*quiesce)(void*, struct brant_reason*);
    /**
     * Source, all devices quiesced: stop, and write no guest memory from the return on. Required at
     * a source.
     */
    int32_t (*stop)(void*, struct brant_reason*);
    /**
     * Source, stopped: as `read_running`; 0 bytes are the end of the state. Required at a source.
     */
    int32_t (*read_stopped)(void*, void*, size_t, size_t*, struct brant_reason*);
    /**
     * Source before `resume`, destination before `run`: answer other devices, and begin nothing
     * yet. NULL: nothing to do.
     */
    int32_t (*wake)(void*, struct brant_reason*);
    /**
     * Source: run on, after an aborted pause or a failure. Once after each `quiesce` or `stop`,
     * whether or not that succeeded, unless the guest went away. Required at a source.
     */
    int32_t (*resume)(void*, struct brant_reason*);
    /**
     * Source: the migration is over, whatever its outcome. Once after each `begin`. After an
     * unanswered hand-over `wake` and `resume` may still follow. NULL: nothing to do.
     */
    void (*end)(void*);
    /**
     * Destination: takes the next bytes of the running part, in the source's order and divided in
     * any way. Must not write guest memory, and must not depend on another device. Required at a
     * destination when the source's device has a running part.
     */
    int32_t (*load_running)(void*, const void*, size_t, struct brant_reason*);
    /**
     * Destination: takes the next bytes of the stopped part. All of memory is here. Required at a
     * destination.
     */
    int32_t (*load_stopped)(void*, const void*, size_t, struct brant_reason*);
    /**
     * Destination: all state of all devices is here. A failure is the last chance to refuse the
     * guest. NULL: nothing to do.
     */
    int32_t (*loaded)(void*, struct brant_reason*);
    /**
     * Destination: the guest is this side's; run. Required at a destination. When `wake` or `run` of
     * one device fails, no further device and no VMM's `run` is called, and brant calls no `reset`:
     * stop the devices that run by then before the source takes the guest back
     * (BRANT_RESOLVE_RESUME).
     */
    int32_t (*run)(void*, struct brant_reason*);
    /**
     * Destination: the migration failed. Drop what was loaded, so that another can begin. NULL:
     * nothing to do.
     */
    void (*reset)(void*);
    /**
     * Either side: the migration, save or restore was cancelled, or a timeout of the migration has
     * passed during a callback of a device. A callback of this device that is in progress should
     * return soon, with any failure: the cancel waits for it, and the timeout holds no sooner. Called
     * once, on the thread that cancels or on one of brant's (BRANT_ROLE_WATCH), at the same time as any
     * other callback; must not block, and must call nothing of the migration.
     * Comes between `begin` and `end`, or before `run` or `reset`, and never after the hand-over.
     * NULL: nothing to do.
     */
    void (*cancel)(void*);
} brant_device;

/**
 * Adds a device whose state migrations of this guest stream, behind all that were added before. At
 * most 256. The structure is copied; callbacks and `opaque` stay valid until
 * brant_guest_remove_device has returned, or guest and all objects made from it are freed.
 *
 * Both sides have the same devices. A destination that lacks one, has one more, or has another
 * version of one refuses the migration by name before the first page (BRANT_E_LAYOUT); one whose
 * brant does not know devices, by the feature "device-streams" (BRANT_E_VERSION). At a destination,
 * add devices before the migration or in `early_load`.
 *
 * The same device serves as source and destination. So `stop`, `read_stopped` and `resume` are set,
 * or `load_stopped` and `run`, or all five. BRANT_E_INVALID when neither set is complete, for a bad
 * name, for a second device of the same name and instance, and for one too many. BRANT_E_BUSY while a
 * migration, a save or a restore uses the guest's devices.
 *
 * Threads: any.
 */
int32_t brant_guest_add_device(struct brant_guest *guest,
                               const struct brant_device *device,
                               struct brant_error **error);

/**
 * Removes the device of this name and instance. Its callbacks are not called from the return on.
 * BRANT_E_NOT_FOUND when there is none; BRANT_E_BUSY as for brant_guest_add_device. Threads: any.
 */
int32_t brant_guest_remove_device(struct brant_guest *guest,
                                  const char *name,
                                  uint32_t instance,
                                  struct brant_error **error);

/**
 * A device that is passed through with VFIO.
 *
 * Experimental: tested against a model of the kernel's side only, because no such hardware was
 * available. What real devices need may change it.
 */
typedef struct brant_vfio_device {
    /** sizeof(brant_vfio_device). */
    size_t size;
    /**
     * 1 to 128 bytes of UTF-8 without control characters; copied. Name and `instance` together
     * name the device at both sides.
     */
    const char *name;
    /** Tells devices of one name apart. */
    uint32_t instance;
    /** The descriptor of the device. brant keeps a duplicate. */
    int32_t fd;
    /**
     * How long the stopped device may give no byte of its state, or take none, before the
     * migration fails; milliseconds, 1 to 3600000. 0: 10000.
     */
    uint32_t silence_ms;
    /** 0. */
    uint32_t reserved;
    /** The most bytes of state that the stopped device may give. 0: 2^40. */
    uint64_t state_max;
    /** Passed to `was_reset`, until the device is removed or the guest freed. */
    void *opaque;
    /**
     * Source: the device has failed in a migration, and was reset so that it runs again. Its state
     * is lost, as after a reset of the function: restore what the VMM keeps of it (configuration
     * space, interrupts), and let the guest's driver set it up anew. `why` is a sentence, valid
     * during the call. When the guest was paused, runs before `resume`, on the thread that resumes the
     * guest. When the migration fails while the guest runs, runs at the migration's end on its thread,
     * while the guest runs. Must call nothing of brant's. NULL: the VMM need not know.
     */
    void (*was_reset)(void *opaque, const char *why);
} brant_vfio_device;

/**
 * Adds a VFIO device whose state migrations of this guest stream, by the kernel's migration protocol
 * (VFIO_DEVICE_FEATURE_MIGRATION; Linux 5.18). Otherwise as brant_guest_add_device, which see:
 * brant_guest_remove_device takes it away.
 *
 * brant changes the device's migration state, and nobody else does while a migration or a save of
 * the guest runs. At the source the device is RUNNING when a migration begins (or STOP, when its
 * guest is paused); it is left RUNNING after a failure, and in STOP after the guest has gone. At the
 * destination it is RUNNING and fresh, and RUNNING with its state when `run` of the VMM is called.
 * Where the driver can, state is sent while the device runs (VFIO_MIGRATION_PRE_COPY; Linux 6.2), and
 * all devices stop their DMA to each other before one of them stops (VFIO_MIGRATION_P2P). The size
 * that the driver states (VFIO_DEVICE_FEATURE_MIG_DATA_SIZE) counts in the downtime.
 *
 * The pages that the device writes are another matter: add its log, too
 * (brant_tracker_add_vfio_device, brant_tracker_add_vfio_container or brant_tracker_add_iommufd).
 *
 * A device that cannot migrate is added all the same, and blocks: until it is removed, a migration
 * or a save is refused with BRANT_E_BLOCKED, the device's name and the kernel's answer.
 * BRANT_E_UNSUPPORTED when `fd` is no VFIO device. Threads: any. Not tried on hardware: tested
 * against a model of the interface in the kernel's header.
 *
 * Experimental: tested against a model of the kernel's side only, because no such hardware was
 * available. What real devices need may change it.
 */
int32_t brant_guest_add_vfio_device(struct brant_guest *guest,
                                    const struct brant_vfio_device *device,
                                    struct brant_error **error);

/** The direction of a transfer: the back end gives its state. */
#define BRANT_VHOST_USER_SAVE 0
/** The direction of a transfer: the back end takes its state. */
#define BRANT_VHOST_USER_LOAD 1

/**
 * A vhost-user back end that keeps a state of its own, such as the open files of a file system. The
 * two callbacks send the vhost-user messages for it and wait for the replies. The connection is the
 * VMM's, whose other threads use it too, so brant does not write to it by itself. A VMM without
 * code for the messages calls brant_vhost_user_set_device_state_fd and
 * brant_vhost_user_check_device_state in them, with its own lock on the connection held.
 *
 * The callbacks run on threads of the migration with all signals masked: at the source after
 * `pause`, at the destination before `loaded`. All rings of the back end have stopped then
 * (GET_VRING_BASE was answered): `pause` stops them, and `run` or `resume` starts them. Each
 * callback returns 0, or any other value for a failure; then it may set the reason.
 *
 * Experimental: tested with a back end of this project's only. What other back ends need may
 * change it.
 */
typedef struct brant_vhost_user_device {
    /** sizeof(brant_vhost_user_device). */
    size_t size;
    /**
     * 1 to 128 bytes of UTF-8 without control characters; copied. Name and `instance` together
     * name the device at both sides.
     */
    const char *name;
    /** Passed to the callbacks, until the device is removed or the guest freed. */
    void *opaque;
    /** Tells devices of one name apart. */
    uint32_t instance;
    /**
     * How long the back end may give no byte of its state, or take none, before the migration
     * fails; milliseconds, 1 to 3600000. 0: 10000.
     */
    uint32_t silence_ms;
    /**
     * The version of the format of the state, by the back end's own numbering. A destination with
     * another version refuses the migration before the first page.
     */
    uint32_t version;
    /** 0. */
    uint32_t reserved;
    /**
     * How many bytes of state to expect; they count in the downtime that a pause is planned with. 0:
     * unknown, and from the second pause on as many as at the pause before.
     */
    uint64_t expected_bytes;
    /**
     * Required. Send SET_DEVICE_STATE_FD with `direction` (BRANT_VHOST_USER_SAVE,
     * BRANT_VHOST_USER_LOAD; the protocol has the same numbers), phase 0 (stopped) and `fd`. When the
     * back end gives a descriptor instead, put it into `*given`, which is -1 before: it is brant's
     * then. `fd` stays brant's, which closes it after the call: sending it duplicates it.
     */
    int32_t (*set_device_state_fd)(void *opaque,
                                   uint32_t direction,
                                   int32_t fd,
                                   int32_t *given,
                                   struct brant_reason *reason);
    /** Required. Send CHECK_DEVICE_STATE; succeed if the back end replies 0. */
    int32_t (*check_device_state)(void *opaque, struct brant_reason *reason);
    /**
     * NULL, or: the migration was cancelled, or a timeout of it has passed, and the other two
     * callbacks should return soon with any error. Called on the thread that cancels or on one of
     * brant's, possibly while one of the other two runs; must not block and must call nothing of
     * brant's. Not needed by a VMM whose callbacks wait nowhere but in
     * brant_vhost_user_set_device_state_fd and brant_vhost_user_check_device_state, on the thread that
     * brant calls them on: these return BRANT_E_CANCELLED then.
     */
    void (*cancel)(void *opaque);
} brant_vhost_user_device;

/**
 * Adds a vhost-user back end whose internal state migrations of this guest stream after the pause
 * (VHOST_USER_PROTOCOL_F_DEVICE_STATE, bit 19 of the protocol features, which back end and VMM have
 * negotiated). Otherwise as brant_guest_add_device, which see: brant_guest_remove_device takes it
 * away. State of rings and features that the VMM keeps goes through `save`, as always; and the
 * pages that the back end writes are another matter, see brant_tracker_add_vhost.
 *
 * At the source the pipe is read to its end, and the back end is asked whether that was all. At the
 * destination the pipe is written and closed, and the back end is asked whether it understood. A
 * "no", a refusal or silence fails the migration by the device's name, and the guest runs on at the
 * source. Threads: any.
 *
 * Experimental: tested with a back end of this project's only. What other back ends need may
 * change it.
 */
int32_t brant_guest_add_vhost_user_device(struct brant_guest *guest,
                                          const struct brant_vhost_user_device *device,
                                          struct brant_error **error);

/**
 * Sends SET_DEVICE_STATE_FD on a vhost-user connection and waits for the reply, at most `timeout_ms`
 * milliseconds. `direction` and `fd` are those that `set_device_state_fd` of brant_vhost_user_device
 * got, and `given` is where it puts a descriptor; -1 is put there when the back end gave none, and
 * nothing after an error.
 *
 * `connection` is a connected unix socket, lent for the call: no other thread sends on it or reads
 * from it meanwhile, and no reply is outstanding. After BRANT_E_IO, _PEER_GONE, _PROTOCOL, _TIMEOUT or
 * _CANCELLED the connection is of no more use. BRANT_E_REFUSED: the back end refused.
 * BRANT_E_CANCELLED: called in a callback of brant_vhost_user_device, and the migration was cancelled or
 * has run out of time. Threads: any.
 *
 * Experimental: tested with a back end of this project's only. What other back ends need may
 * change it.
 */
int32_t brant_vhost_user_set_device_state_fd(int32_t connection,
                                             uint32_t direction,
                                             int32_t fd,
                                             uint32_t timeout_ms,
                                             int32_t *given,
                                             struct brant_error **error);

/**
 * Sends CHECK_DEVICE_STATE on a vhost-user connection and waits for the reply, at most `timeout_ms`
 * milliseconds. Connection and errors as for brant_vhost_user_set_device_state_fd; BRANT_E_REFUSED:
 * the back end says that the transfer of its state failed. Threads: any.
 *
 * Experimental: tested with a back end of this project's only. What other back ends need may
 * change it.
 */
int32_t brant_vhost_user_check_device_state(int32_t connection,
                                            uint32_t timeout_ms,
                                            struct brant_error **error);

/* =============================================================================================
 * The tracker: which pages were written
 *
 * Make a tracker, add logs (below), start it; then sync and take as often as you like; stop it. The
 * VMM marks its own writes. A migration starts, syncs, takes and stops by itself.
 * ============================================================================================= */

/**
 * Tracks which pages of a guest are written. A sync merges the pages that all logs find into
 * pending. A take hands pending pages out after it has restored their protection.
 *
 * Each consumer of the tracker has pending pages of its own. Consumers are the VMM itself
 * (`brant_tracker_start`, `_sync`, `_take`, `_put_back`, `_stop`), each consumer that the VMM
 * makes with `brant_consumer_new`, a migration, and a measurement of the dirty rate. A sync by any
 * consumer adds the pages that it found to the pending pages of every consumer. A take removes
 * pages from the pending pages of the taker alone. So a migration may run on a tracker that is in
 * use. However the migration ends, every other consumer still has all its pending pages and all
 * pages that were written since.
 *
 * Threads: any, several at once. Marks (`brant_tracker_mark*`) never wait. Every other function,
 * except `brant_tracker_ring_full`, waits for a sync or take that is in progress.
 * `brant_tracker_free` is the last call: all others on it, those of vCPU threads too, have
 * returned before it begins. The tracker's consumers, measurements and migrations may be freed
 * later.
 */
typedef struct brant_tracker brant_tracker;

/** In `brant_tracker_config.clearing`: chunk by chunk, each before its first page is handed out. */
#define BRANT_CLEAR_CHUNKED 0
/** In `brant_tracker_config.clearing`: a whole slot at each sync. */
#define BRANT_CLEAR_AT_SYNC 1

/** How a tracker works. A field that is 0 has its default. */
typedef struct brant_tracker_config {
    /** sizeof(brant_tracker_config). */
    size_t size;
    /**
     * BRANT_CLEAR_*: how brant restores protection after a harvest, in the modes in which KVM
     * leaves that to brant.
     */
    uint32_t clearing;
    /**
     * log2 of the pages in a chunk, 6 to 31; 0 means 18, 1 GiB. A value out of range is clamped,
     * and the next migration gives a BRANT_EVENT_WARNING.
     */
    uint32_t chunk_shift;
} brant_tracker_config;

/**
 * Makes a tracker of a guest. The VMM tells the tracker of its own writes by marks; add KVM's log
 * next. `config` may be NULL for the defaults. Free the tracker with `brant_tracker_free`.
 */
int32_t brant_tracker_new(struct brant_guest *guest,
                          const struct brant_tracker_config *config,
                          struct brant_tracker **tracker,
                          struct brant_error **error);

/**
 * Frees a tracker; NULL is fine. Tracking stops. While a migration or another consumer uses the
 * tracker, tracking stops when the last of them ends.
 */
void brant_tracker_free(struct brant_tracker *tracker);

/**
 * Every page is pending at the start: for a consumer that copies all pages first and then the
 * pages that change.
 */
#define BRANT_START_ALL 0
/** No page is pending at the start: only what is written from now on is found. */
#define BRANT_START_CLEAN 1

/**
 * Starts tracking for the VMM, with BRANT_START_ALL or BRANT_START_CLEAN. Pages that were pending
 * for the VMM before are forgotten. A migration starts tracking by itself and does not need this
 * call.
 */
int32_t brant_tracker_start(struct brant_tracker *tracker,
                            uint32_t with,
                            struct brant_error **error);

/**
 * Stops tracking for the VMM, after a last harvest. Pages that are pending for the VMM stay so and
 * can be taken.
 */
int32_t brant_tracker_stop(struct brant_tracker *tracker,
                           struct brant_error **error);

/** The guest may be running. */
#define BRANT_SYNC_RUNNING 0
/**
 * The guest is paused and its vCPU state is saved: the harvest is exact, and a log that fails is
 * an error. (With BRANT_SYNC_RUNNING all pages of such a log count as dirty.)
 */
#define BRANT_SYNC_STOPPED 1

/** What a sync found and what it cost. */
typedef struct brant_sync {
    /** sizeof(brant_sync). */
    size_t size;
    /**
     * Pages that became pending for the consumer that asked. A page that was pending for that
     * consumer already does not count again. The pages of each log below are counted in the same
     * way.
     */
    uint64_t found_pages;
    /**
     * Pages that the logs found written, whether they were pending or not. Each log counts a page
     * once for each sync that finds it; two logs that find the same page count it twice. Pages
     * that count as dirty because a log failed are not among them.
     */
    uint64_t written_pages;
    /**
     * Pages whose protection was in place since the last sync, so that a write to them could be
     * found. A page that an earlier sync found is not among them before its protection is
     * restored: in the manual-protect modes of KVM's log, before somebody takes it. The guest's
     * dirty rate is written_pages divided by observed_pages, times the guest's memory.
     */
    uint64_t observed_pages;
    /** Pages that are pending now for the consumer that asked. */
    uint64_t pending_pages;
    /** Nanoseconds that the whole sync took. */
    uint64_t time_ns;
    /** Nanoseconds for KVM's logs, bitmaps and rings, kernel and merging. */
    uint64_t kvm_ns;
    /** Pages found by KVM's logs. */
    uint64_t kvm_pages;
    /** Nanoseconds for the VMM's own marks. */
    uint64_t reported_ns;
    /** Pages found by the VMM's own marks and by nothing else before. */
    uint64_t reported_pages;
    /**
     * Logs that failed, so that all their pages count as dirty, and logs that will deliver some
     * pages only later.
     */
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
 * Harvests all logs into pending, for the VMM and for every other consumer. `when` is
 * BRANT_SYNC_RUNNING or BRANT_SYNC_STOPPED. `report`, which gets the figures of the VMM as a
 * consumer, may be NULL.
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
 * the last call ended. At most `capacity` runs are put into `runs`, and their number into
 * `*count`. The call restores the protection of a run's pages before it hands the run out, so a
 * later sync finds later writes: read the pages after the call has returned. 0 runs mean that the
 * walk has come to its end, and that the next call begins at the first block.
 *
 * The runs are in use until the next take, until `brant_tracker_stop` or until
 * `brant_tracker_free`. While runs are in use, the removal of their blocks is BRANT_E_BUSY. A take
 * that hands out 0 runs ends the use as well. A take with a capacity of 0 ends the use too; it
 * takes nothing and leaves the walk where it is, and `runs` may then be NULL.
 *
 * Example: a backup writes the last run that it took to its file, and has nothing else to take for
 * an hour. The backup calls this function with a capacity of 0. Before that call the block of the
 * run cannot be removed.
 */
int32_t brant_tracker_take(struct brant_tracker *tracker,
                           struct brant_run *runs,
                           size_t capacity,
                           size_t *count,
                           struct brant_error **error);

/**
 * Makes taken pages pending for the VMM again, when they were not delivered. Works after
 * `brant_tracker_stop` too. Pages of a block that is gone are ignored. This call does not end the
 * use of runs (see `brant_tracker_take`).
 */
int32_t brant_tracker_put_back(struct brant_tracker *tracker,
                               uint32_t block,
                               uint64_t first_page,
                               uint64_t pages,
                               struct brant_error **error);

/**
 * Marks `length` bytes at a guest physical address as written by the VMM. Call it after the write.
 * Any thread; the call is lock-free and never waits, and costs nearly nothing while nobody tracks.
 * Addresses without memory are counted (`stray_marks`) and otherwise ignored. NULL is ignored.
 */
void brant_tracker_mark(const struct brant_tracker *tracker,
                        uint64_t guest_address,
                        uint64_t length);

/**
 * `brant_tracker_mark` for a bitmap of pages: bit i of `words` (bit i % 64 of word i / 64) is the
 * page of 4 KiB at `guest_address` + 4096 i, for `pages` bits. It is for the log of a device that
 * the VMM has read itself: the dirty bitmap of VFIO_IOMMU_UNMAP_DMA, or a vhost log of the VMM's
 * own. Each set bit without memory counts in `stray_marks`. NULL is ignored.
 */
void brant_tracker_mark_bitmap(const struct brant_tracker *tracker,
                               uint64_t guest_address,
                               const uint64_t *words,
                               uint64_t pages);

/** `brant_tracker_mark` for `length` bytes at an offset in a block. */
void brant_tracker_mark_block(const struct brant_tracker *tracker,
                              uint32_t block,
                              uint64_t offset,
                              uint64_t length);

/**
 * `brant_tracker_mark` for `length` bytes at an address of this process, as device code has them (a
 * buffer, the parts of an iovec). Marks every block that has some of these bytes, and so each guest
 * address that shows them. Bytes that are in no block are ignored, and counted as one stray mark. A
 * block that was mapped a second time is known by the address that it was added with.
 */
void brant_tracker_mark_host(const struct brant_tracker *tracker,
                             const void *host,
                             uint64_t length);

/**
 * Running totals. The totals of pages found, pending and put back are those of the VMM as a
 * consumer (see brant_tracker), since `brant_tracker_start`. The other totals are of all consumers
 * together, since the first of them started.
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
     * Marks at addresses without memory, bits of vhost logs included, since the tracker was
     * made.
     */
    uint64_t stray_marks;
    /**
     * Bytes of bitmaps and rings that brant holds for the guest's memory, in all its logs; the
     * kernel's own bitmaps are not included.
     */
    uint64_t heap_bytes;
    /** The chunk shift in use; 0 when chunks are off. */
    uint32_t chunk_shift;
    /** Whether tracking is on, for any consumer: 1 or 0. */
    uint32_t started;
    /**
     * Ballooned pages that a consumer named instead of reading; a page that is named again counts
     * again.
     */
    uint64_t ballooned_pages;
    /** Ballooned pages that a log found written: they are no longer ballooned. */
    uint64_t ballooned_written_pages;
    /** Pages that free-page hints took out of pending. */
    uint64_t hinted_pages;
    /** Free-page hints that came after their round was over, and so did nothing. */
    uint64_t stale_hints;
} brant_tracker_stats;

/** Fills in the tracker's totals. */
int32_t brant_tracker_get_stats(const struct brant_tracker *tracker,
                                struct brant_tracker_stats *stats,
                                struct brant_error **error);

/* ---------------------------------------------------------------------------------------------
 * The tracker's logs: KVM
 *
 * Measure which log suits the guest (brant_kvm_measure) before you enable rings: on a VM with rings
 * no bitmap works.
 * --------------------------------------------------------------------------------------------- */

/**
 * brant chooses. When the VM's rings are enabled, it takes the ring (no bitmap works then). Else
 * it takes the bitmaps that `brant_kvm_log.costs` recommends. Without `costs` it takes the first
 * of initially set, manual protect and get-and-clear that the kernel has. `brant_tracker_get_kvm`
 * says which log brant chose, and why. This mode measures nothing: call `brant_kvm_measure` before
 * you enable rings to learn which log suits the guest.
 */
#define BRANT_KVM_AUTO 0
/** KVM_GET_DIRTY_LOG reads and clears. */
#define BRANT_KVM_GET_AND_CLEAR 1
/** KVM_CLEAR_DIRTY_LOG clears; the start of tracking protects all pages. */
#define BRANT_KVM_MANUAL_PROTECT 2
/**
 * KVM_CLEAR_DIRTY_LOG clears; the start of tracking protects no page, and every page counts as
 * dirty once.
 */
#define BRANT_KVM_INITIALLY_SET 3
/**
 * Each vCPU's dirty ring, for a VM whose rings were enabled (`brant_kvm_enable_ring`). Call
 * `brant_tracker_add_vcpu` for each vCPU, and `brant_tracker_ring_full` at each exit with a full
 * ring.
 */
#define BRANT_KVM_RING 4

/** brant switches logging by KVM_SET_USER_MEMORY_REGION, with the slot as it was described. */
#define BRANT_SWITCHED_BY_BRANT 0
/** The VMM switches logging, in the guest's operations `log_on` and `log_off`. */
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
     * In mode ring: bytes of each vCPU's ring, as `brant_kvm_enable_ring` returned them; a vCPU
     * whose ring has another size is refused. 0: the size that the kernel names.
     */
    uint64_t ring_bytes;
    /**
     * The costs that `brant_kvm_measure` filled in, from which BRANT_KVM_AUTO chooses; or NULL.
     * Read during the call.
     */
    const struct brant_kvm_costs *costs;
} brant_kvm_log;

/**
 * Which of KVM's dirty logs was chosen, and the totals of its rings. All fields but the first six
 * are about rings, and 0 in other modes.
 */
typedef struct brant_kvm_info {
    /** sizeof(brant_kvm_info). */
    size_t size;
    /** BRANT_KVM_*; BRANT_KVM_AUTO only as long as no KVM log was added. */
    uint32_t mode;
    /** 1 if a bitmap is read besides the rings, for writes that no vCPU makes. */
    uint32_t with_bitmap;
    /** vCPUs added. */
    uint64_t vcpus;
    /** Bytes of each vCPU's ring; 16 an entry. */
    uint64_t ring_bytes;
    /** Bytes of the bitmaps that hold the rings' pages between syncs. */
    uint64_t heap_bytes;
    /** Rounds over all rings, each with one KVM_RESET_DIRTY_RINGS at most. */
    uint64_t rounds;
    /** Entries harvested. A page that is written, harvested and written again counts twice. */
    uint64_t harvested;
    /** Calls of `brant_tracker_ring_full`. */
    uint64_t full_exits;
    /** Times that a ring overran: the kernel pushed onto a full one. */
    uint64_t overruns;
    /**
     * Pushes that were lost in overruns, as far as brant knows. No page is lost: see
     * `recoveries`.
     */
    uint64_t lost_pushes;
    /**
     * Times that all slots were protected again and every page counted as dirty, after a loss of
     * pushes.
     */
    uint64_t recoveries;
    /**
     * Resets that were interrupted, or may have been: the process was stopped, traced or frozen.
     */
    uint64_t interrupted;
    /**
     * Pages that may have lost their protection in an interrupted reset; every sync reports
     * them.
     */
    uint64_t doubtful_pages;
    /** Entries that named no page of the guest. */
    uint64_t stray_entries;
    /** vCPUs that have a dirty limit now. */
    uint64_t limited_vcpus;
    /**
     * Calls of `brant_tracker_ring_full` that waited a slice because the vCPU was over its dirty
     * limit.
     */
    uint64_t limit_waits;
} brant_kvm_info;

/**
 * Adds KVM's dirty bitmaps or rings to the logs of the tracker, before tracking starts. With
 * BRANT_SWITCHED_BY_VMM brant calls the guest's operations `log_on` and `log_off`, which are then
 * required. With rings it calls `kick` and `thread_start`, if the guest has them. A virtual
 * machine has one dirty log, and only one tracker may harvest it at a time: each of two trackers
 * would miss the pages that the other harvests. BRANT_E_INVALID if `vm_fd` is of no VM of this
 * process.
 */
int32_t brant_tracker_add_kvm(struct brant_tracker *tracker,
                              const struct brant_kvm_log *kvm,
                              struct brant_error **error);

/**
 * Says which of KVM's logs the tracker uses, and why. The reason is copied to `buffer`, cut to
 * `capacity` bytes and NUL-terminated. `*needed` (may be NULL) gets the bytes that the whole
 * reason takes. `buffer` NULL and `capacity` 0 give no text. Before `brant_tracker_add_kvm` the
 * mode is BRANT_KVM_AUTO. Any thread.
 */
int32_t brant_tracker_get_kvm(const struct brant_tracker *tracker,
                              struct brant_kvm_info *info,
                              char *buffer,
                              size_t capacity,
                              size_t *needed,
                              struct brant_error **error);

/**
 * Enables KVM's dirty rings on a virtual machine that has no vCPU and no memory slot yet: `bytes`
 * for each vCPU, a power of two from 4096 to 1 MiB (65536 entries of 16 bytes), or 0 for the
 * default of 256 KiB. `*bytes_in_use` (may be NULL) gets the size. When the kernel has a backup
 * bitmap, for writes that no vCPU makes, it is enabled too. `vm_fd` is the descriptor that
 * KVM_CREATE_VM returned; brant keeps no duplicate of it. Afterwards no bitmap works on this VM,
 * so call `brant_kvm_measure` first to learn whether rings suit the guest. BRANT_E_UNSUPPORTED if
 * this kernel has no rings, BRANT_E_STATE if the VM's rings are enabled already, BRANT_E_INVALID
 * if `vm_fd` is of no VM of this process.
 */
int32_t brant_kvm_enable_ring(int32_t vm_fd,
                              uint64_t bytes,
                              uint64_t *bytes_in_use,
                              struct brant_error **error);

/**
 * Adds a vCPU to a tracker in mode ring, under any number that is not in use. Add each vCPU before
 * tracking starts; add a vCPU that is made later before it first runs. `vcpu_fd` is the descriptor
 * that KVM_CREATE_VCPU returned; brant maps the vCPU's ring and keeps no descriptor. A vCPU that
 * was not added is not tracked. BRANT_E_INVALID for a descriptor without a dirty ring.
 */
int32_t brant_tracker_add_vcpu(struct brant_tracker *tracker,
                               uint32_t vcpu,
                               int32_t vcpu_fd,
                               struct brant_error **error);

/**
 * Removes a vCPU that was added, after a last harvest of its ring. The vCPU has left KVM_RUN for
 * good, or is about to be unplugged. If it runs again, what it writes is lost until it is added
 * once more. The call ends a wait of that vCPU's thread in `brant_tracker_ring_full`. Any thread.
 * BRANT_E_NOT_FOUND for a vCPU that was not added.
 */
int32_t brant_tracker_remove_vcpu(struct brant_tracker *tracker,
                                  uint32_t vcpu,
                                  struct brant_error **error);

/**
 * Limits how many pages a second a vCPU may write, while the tracker is started; 0 lifts the limit.
 * A vCPU over its limit waits in `brant_tracker_ring_full`; a vCPU that only reads is never slowed.
 * The limit ends when tracking stops. A migration whose policy has `slowing` BRANT_SLOWING_WRITERS
 * replaces the limits of all vCPUs, and lifts all of them at its end.
 *
 * The ring's size is the granularity: each sync of the running guest empties every ring, so between
 * two syncs a vCPU gets through with one ring more than its limit. For low limits enable small
 * rings. A migration whose policy limits vCPUs syncs at the ends of passes alone. Any thread. BRANT_E_NOT_FOUND for a vCPU that was not added, BRANT_E_STATE while nothing is
 * tracked.
 */
int32_t brant_tracker_limit_vcpu(struct brant_tracker *tracker,
                                 uint32_t vcpu,
                                 uint64_t pages_per_second,
                                 struct brant_error **error);

/**
 * Tells brant that a vCPU left KVM_RUN with KVM_EXIT_DIRTY_RING_FULL. Call it on that vCPU's
 * thread, once for each such exit, also while nothing is tracked. It returns when the ring has
 * room; then enter KVM_RUN again. The call waits for one round over all rings, which a thread of
 * brant's makes. It waits for no sync, and for no thread that pauses the guest meanwhile. An error
 * means that the kernel refuses to reset the ring.
 *
 * A vCPU over its dirty limit (BRANT_SLOWING_WRITERS, `brant_tracker_limit_vcpu`) waits in this
 * call, for 5 ms at most: brant does not know when the VMM wants to pause the guest by itself. Then
 * the call returns 0 although the ring is still full. KVM_RUN comes out again at once, and the next
 * call waits the next slice. So look for requests of the VMM's own between the two. The wait ends
 * early with any signal to the thread, also a blocked one; always before the operations `pause` and
 * `kick`; and when the limit goes: at the end of the migration, when tracking stops, or when the
 * vCPU is removed. A call for a removed vCPU is BRANT_E_NOT_FOUND. `immediate_exit` of the vCPU's
 * kvm_run is looked at when the wait begins: to end one that has begun, set it and send a signal.
 */
int32_t brant_tracker_ring_full(struct brant_tracker *tracker,
                                uint32_t vcpu,
                                struct brant_error **error);

/**
 * Counts the pages that a vCPU has dirtied since it was added, and puts the count into `*pages`. A
 * page that the vCPU dirties again after a harvest counts again. A page that several vCPUs dirty
 * counts for each of them. Any thread.
 */
int32_t brant_tracker_vcpu_dirty(const struct brant_tracker *tracker,
                                 uint32_t vcpu,
                                 uint64_t *pages,
                                 struct brant_error **error);

/**
 * The guest that will be tracked, as far as the VMM knows it. A field that is 0 is unknown.
 *
 * Experimental: how the cost of a log is measured may change, and with it what is measured.
 */
typedef struct brant_kvm_workload {
    /** sizeof(brant_kvm_workload). */
    size_t size;
    /**
     * Bytes of the guest's memory. 0: unknown, and the cost of a sync of clean memory does not
     * count.
     */
    uint64_t memory_bytes;
    /**
     * Distinct pages of 4 KiB that the guest writes in a tenth of a second, times ten.
     * (brant_rate_measure with a period of 100 ms measures this on a similar guest.) 0: unknown,
     * and the worst case counts, a guest that writes as fast as it can.
     */
    uint64_t dirty_pages_per_second;
    /** Milliseconds that the measurement takes at most, 20 to 10000; 0: 200. */
    uint64_t limit_ms;
} brant_kvm_workload;

/**
 * What one of KVM's logs costs, in nanoseconds of the processor that runs the guest or syncs.
 *
 * Experimental: how the cost of a log is measured may change, and with it what is measured.
 */
typedef struct brant_kvm_cost {
    /**
     * 1 if this log was measured. 0 if the kernel has no such log or the time ran out; then all
     * other fields are 0.
     */
    uint64_t measured;
    /** The guest's first write to a clean page. */
    uint64_t first_write_ns;
    /**
     * A write of a guest that writes its whole memory four times between two syncs: the mean of
     * first and later writes. With a ring each is a first write, because pages that the ring gave
     * are protected again when a quarter of the ring is in use.
     */
    uint64_t busy_write_ns;
    /** The cost of a sync for each dirty page: finding the page and protecting it again. */
    uint64_t sync_page_ns;
    /** The cost of a sync for each GiB of the guest that has no dirty page. */
    uint64_t sync_gib_ns;
} brant_kvm_cost;

/**
 * The result of `brant_kvm_measure`. Give it unchanged to `brant_kvm_log.costs`.
 *
 * Experimental: how the cost of a log is measured may change, and with it what is measured.
 */
typedef struct brant_kvm_costs {
    /** sizeof(brant_kvm_costs). */
    size_t size;
    /** The log that costs this guest least, BRANT_KVM_*; never BRANT_KVM_AUTO. */
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
 * works, so later there is no choice. Rings suit a huge guest that writes little; a guest that
 * writes the same memory again and again faults more often with rings.
 *
 * Example: measure; enable rings if `costs.recommended` is BRANT_KVM_RING; make the VM's slots and
 * vCPUs; later add KVM's log with BRANT_KVM_AUTO and `brant_kvm_log.costs`.
 *
 * The call runs a guest of brant's own in two temporary virtual machines with 4 MiB of memory
 * each, on the calling thread alone. It takes at most 0.2 s (or `workload->limit_ms`), plus about
 * the time that KVM needs to end a virtual machine. It does not touch the VMM's own virtual
 * machines. Whatever the call returns, it leaves nothing behind. Any thread.
 *
 * `kvm_fd` is a descriptor of /dev/kvm; brant keeps no duplicate of it. With -1 brant opens
 * /dev/kvm for the time of the call. `workload` may be NULL when the VMM knows nothing of the
 * guest. `costs` is filled in, with zeros when the call fails. The reason of the recommendation is
 * copied to `buffer` as `brant_tracker_get_kvm` does; `buffer` NULL and `capacity` 0 give no text,
 * and `needed` may be NULL.
 *
 * BRANT_E_NO_MEMORY when 1 GiB of address space cannot be reserved (it is not touched);
 * BRANT_E_UNSUPPORTED on any machine but x86-64, or when KVM does not run the guest;
 * BRANT_E_TIMEOUT when not one log was measured in time; BRANT_E_INVALID for a limit out of range,
 * or a descriptor that is not one of /dev/kvm; BRANT_E_KERNEL when KVM refuses a call.
 *
 * Experimental: how the cost of a log is measured may change, and with it what is measured.
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
 * `log[page / 8] |= 1 << page % 8`. A back end sets the bit with an atomic `or`, after its write.
 * This structure is valid during the callback only. The memory and the descriptor that it names
 * exist until all back ends use another log or have stopped logging.
 */
typedef struct brant_vhost_memory {
    /** sizeof(brant_vhost_memory) as brant knows it. */
    size_t size;
    /**
     * The address of the log in this process, which VHOST_SET_LOG_BASE of the kernel's vhost
     * takes.
     */
    void *address;
    /**
     * Bytes; a multiple of 4096. The `mmap_size` of vhost-user's SET_LOG_BASE, whose
     * `mmap_offset` is 0.
     */
    uint64_t length;
    /**
     * A memfd of that length, sealed against shrinking and growing, for vhost-user's SET_LOG_BASE.
     * The descriptor stays brant's: duplicate it to keep it longer than the callback. Sending it
     * over a socket duplicates it.
     */
    int32_t fd;
    /** 0. */
    uint32_t reserved;
} brant_vhost_memory;

/**
 * Back ends of vhost and vhost-user that share one log. All back ends of a guest share one as a
 * rule: a sync reads each log once, however many back ends set bits in it.
 *
 * A back end may come or go while logging is on, and brant need not be told. One that comes: give
 * it the log of the last `log_on`, of which keep a duplicate descriptor, before it writes. One
 * that goes: stop its rings, and leave it out of later operations. The next sync finds the bits
 * that it has set.
 *
 * brant calls the operations on the thread that starts or stops tracking or changes the guest's
 * memory, under brant's own locks. So inside them call no function of brant's but marks and
 * `brant_reason_set`, and take no lock that another thread holds around a brant_guest_* or
 * brant_tracker_* call. An operation returns 0, or any other value for a failure; then it may set
 * the reason.
 */
typedef struct brant_vhost_log {
    /** sizeof(brant_vhost_log). */
    size_t size;
    /** Given to the operations, until the tracker is freed and no migration uses it any more. */
    void *opaque;
    /**
     * The log reaches at least to this guest address (exclusive), which is at most 2^48. 0: it
     * reaches to the end of the highest slot, which is enough when used rings are in guest memory.
     */
    uint64_t reach;
    /**
     * Required. Have every back end log to this memory from now on; return when each back end
     * does. For the kernel's vhost: VHOST_SET_LOG_BASE, VHOST_SET_FEATURES with VHOST_F_LOG_ALL,
     * VHOST_SET_VRING_ADDR with VHOST_VRING_F_LOG. For vhost-user: SET_LOG_BASE and its reply,
     * then SET_FEATURES, and SET_VRING_ADDR, acknowledged.
     *
     * Called when tracking starts, and again with a longer log when a new slot lies beyond the end
     * of the log. At such a later call only the log base changes, and the old log is gone when the
     * call has returned. So add the slot to brant first, and tell back ends of the new memory
     * after that. When the first call fails, tracking does not start, and `log_off` follows. When
     * a later call fails, the slot is refused, and back ends may go on in either log.
     */
    int32_t (*log_on)(void *opaque,
                      const struct brant_vhost_memory *log,
                      struct brant_reason *reason);
    /**
     * Required. Have every back end stop logging (the features again without VHOST_F_LOG_ALL);
     * return when no back end writes to a log any more. Also called when a first `log_on` failed.
     * When this fails, the log stays mapped until the next start uses it again; without a next
     * start it stays mapped for ever.
     */
    int32_t (*log_off)(void *opaque, struct brant_reason *reason);
} brant_vhost_log;

/**
 * Adds a log that vhost and vhost-user back ends write to; before tracking starts. brant makes the
 * log's memory when tracking starts, and gives it to the back ends by `log_on`. One log for all
 * devices is usual; several may be added. Bits beyond the guest's memory are counted
 * (`stray_marks`) and otherwise ignored. For these devices *paused* means that all rings have
 * stopped: GET_VRING_BASE was answered for each ring, and no write is in flight.
 */
int32_t brant_tracker_add_vhost(struct brant_tracker *tracker,
                                const struct brant_vhost_log *vhost,
                                struct brant_error **error);

/** In `brant_dma_range.block`: `address` is a guest physical address. */
#define BRANT_NO_BLOCK 4294967295

/**
 * The guest memory that a device sees at a range of I/O virtual addresses: one mapping for DMA,
 * page-aligned.
 */
typedef struct brant_dma_range {
    /** The first I/O virtual address. */
    uint64_t iova;
    /** Bytes; not 0. */
    uint64_t length;
    /** Where the memory begins: an offset in `block`, bytes, or a guest physical address. */
    uint64_t address;
    /** The block's number, or BRANT_NO_BLOCK. */
    uint32_t block;
    /** 0. */
    uint32_t reserved;
} brant_dma_range;

/**
 * The log of a VFIO device, or of a VFIO container with a type 1 IOMMU.
 *
 * Experimental: tested against a model of the kernel's side only, because no such hardware was
 * available. What real devices need may change it.
 */
typedef struct brant_vfio_log {
    /** sizeof(brant_vfio_log). */
    size_t size;
    /** The descriptor of the device or the container. brant keeps a duplicate. */
    int32_t fd;
    /** 0. */
    uint32_t reserved;
    /**
     * For a device: the page size in which it should track, bytes, a power of two from 4096 to 1
     * GiB; its driver may choose another. 0 means 4096. For a container: 0.
     */
    uint64_t page_size;
    /**
     * The ranges that the device may write, without overlaps; copied. NULL: each writable slot of
     * the guest is one mapping, whose I/O virtual address is the slot's guest address.
     */
    const struct brant_dma_range *ranges;
    /** How many; at most 65536. */
    size_t range_count;
} brant_vfio_log;

/**
 * A hardware page table of iommufd.
 *
 * Experimental: tested against a model of the kernel's side only, because no such hardware was
 * available. What real devices need may change it.
 */
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
 * When the guest gets memory that the log was not started for, the log is started anew, and all
 * pages that it covers count as dirty. Before you unmap DMA memory, or remove a slot whose memory
 * other slots still show, stop the device's DMA to that memory. The log is read when the slot is
 * removed. Not tried on hardware yet: tested against the interface in the kernel's header.
 *
 * Experimental: tested against a model of the kernel's side only, because no such hardware was
 * available. What real devices need may change it.
 */
int32_t brant_tracker_add_vfio_device(struct brant_tracker *tracker,
                                      const struct brant_vfio_log *vfio,
                                      struct brant_error **error);

/**
 * Adds the dirty log of a VFIO container whose type 1 IOMMU is set (VFIO_IOMMU_DIRTY_PAGES; Linux
 * 5.8); before tracking starts. BRANT_E_UNSUPPORTED if it has none.
 *
 * Each range has to consist of whole mappings: the kernel refuses to report part of a mapping, and
 * then all pages count as dirty. When a device does not tell the kernel which pages it pins, the
 * kernel reports every mapped page each time. The log of a mapping is lost with the mapping. So
 * unmap memory that stays the guest's with VFIO_DMA_UNMAP_FLAG_GET_DIRTY_BITMAP, and give the
 * bitmap to `brant_tracker_mark_bitmap`. Not tried on hardware yet: see
 * `brant_tracker_add_vfio_device`.
 *
 * Experimental: tested against a model of the kernel's side only, because no such hardware was
 * available. What real devices need may change it.
 */
int32_t brant_tracker_add_vfio_container(struct brant_tracker *tracker,
                                         const struct brant_vfio_log *vfio,
                                         struct brant_error **error);

/**
 * Adds the dirty log of an iommufd page table (IOMMU_HWPT_SET_DIRTY_TRACKING and
 * IOMMU_HWPT_GET_DIRTY_BITMAP; Linux 6.7); before tracking starts. BRANT_E_UNSUPPORTED if it
 * has none.
 *
 * All of each range has to be mapped while it is tracked. So map a new slot for DMA before you add
 * the slot to brant, and unmap a slot after you have removed it from brant. A range with an
 * unmapped part counts as dirty at each sync. Not tried on hardware yet: see
 * `brant_tracker_add_vfio_device`.
 *
 * Experimental: tested against a model of the kernel's side only, because no such hardware was
 * available. What real devices need may change it.
 */
int32_t brant_tracker_add_iommufd(struct brant_tracker *tracker,
                                  const struct brant_iommufd_log *iommufd,
                                  struct brant_error **error);

/**
 * Adds userfaultfd's write protection to the logs of the tracker, before tracking starts. It
 * watches all memory of the guest's blocks, except those with BRANT_RAM_ROM. So any memory of this
 * process can be a guest, without KVM: private and shared memory, files and transparent huge
 * pages. A huge page of hugetlbfs counts whole. Tracking starts in the process that calls
 * `brant_tracker_start`; between this call and that one the process may fork. In a child that is
 * made later each harvest fails, and the parent's tracking goes on.
 *
 * It finds writes through the block's own mapping: by any thread, by the kernel for a thread
 * (`read`), by a KVM guest, or by `process_vm_writev`. It misses other writes, which the VMM has
 * to mark: writes to shared memory through another mapping, by `pwrite` or by another process;
 * holes punched into shared memory; writes to pinned pages (DMA, O_DIRECT reads, io_uring's
 * registered buffers).
 *
 * Memory can be registered with one userfaultfd only. When another userfaultfd has a block, the
 * start of tracking is BRANT_E_EXISTS and names the block. This call and the start are
 * BRANT_E_UNSUPPORTED when the kernel has no asynchronous write protection (Linux 6.7 has it), or
 * when no userfaultfd can be made. No privilege is needed: it is enough that the system call is
 * allowed, or that this process can open /dev/userfaultfd. A process that is not dumpable (setuid
 * without exec) cannot read its own /proc/self/pagemap: BRANT_E_KERNEL.
 *
 * The first write to each page after a harvest costs a fault (about 2 microseconds); a harvest
 * walks the page tables of the memory that the guest has touched (about a millisecond a GiB).
 * Private memory that nobody has touched costs next to nothing. Shared memory gets page tables
 * when tracking starts, 2 MiB a GiB. A transparent huge page is mapped in small pages once it is
 * written. A new transparent huge page counts as written whole.
 */
int32_t brant_tracker_add_userfault(struct brant_tracker *tracker,
                                    struct brant_error **error);

/* =============================================================================================
 * Consumers: other users of a tracker, each with its own pending pages
 * ============================================================================================= */

/**
 * One more consumer of a tracker, beside the VMM itself: an incremental backup, a chain of
 * snapshots, a monitor. It has its own pending pages: all pages that were written since it was
 * made and that it has not taken. Neither another consumer nor a migration takes these pages from
 * it.
 *
 * Example: a backup has copied memory and keeps a consumer. 100 pages are written and synced; a
 * migration of the guest begins, syncs, sends, and fails. The backup takes the 100 pages, and the
 * pages that the guest has written meanwhile.
 *
 * From when it is made until it is freed a consumer costs memory for its pending pages: one bit
 * for each page of the guest. Parts of the bitmap without a set bit are never touched.
 *
 * Threads: any, several at once. A call waits for a sync or take that is in progress on any
 * consumer of the tracker. `brant_consumer_free` is the last call: all others on it have returned
 * before it begins. The tracker may be freed before the consumer. A child made by `fork` has a
 * copy of the consumer: calls of the child end no use of runs in the parent.
 */
typedef struct brant_consumer brant_consumer;

/** A consumer's running totals since it was made. */
typedef struct brant_consumer_stats {
    /** sizeof(brant_consumer_stats). */
    size_t size;
    /** Pages pending now. */
    uint64_t pending_pages;
    /** Syncs since the consumer was made, by any consumer of the tracker. */
    uint64_t syncs;
    /** Pages that became pending for the consumer by these syncs. */
    uint64_t found_pages;
    /** Pages put back. */
    uint64_t put_back_pages;
    /**
     * Whether syncs still add pages to the consumer's pending: 1, or 0 after
     * `brant_consumer_stop`.
     */
    uint64_t started;
    /**
     * The number of the consumer, for as long as the tracker lives. The VMM itself is 1.
     * Migrations and measurements of the dirty rate get numbers too. Messages name a consumer by
     * its number.
     */
    uint64_t number;
} brant_consumer_stats;

/**
 * Makes a consumer of a tracker, and starts it at once. With BRANT_START_ALL every page of the
 * guest is pending for the consumer, with BRANT_START_CLEAN none. From then on every write is
 * found for it. The logs are switched on if nobody tracks yet, and off when the last consumer
 * ends. A start with BRANT_START_CLEAN beside other consumers harvests the logs for the others,
 * and restores the protection of the others' pending pages, one chunk after the other. Free the
 * consumer with `brant_consumer_free`.
 */
int32_t brant_consumer_new(struct brant_tracker *tracker,
                           uint32_t with,
                           struct brant_consumer **consumer,
                           struct brant_error **error);

/** Frees a consumer and its pending pages; NULL is fine. Other consumers keep theirs. */
void brant_consumer_free(struct brant_consumer *consumer);

/**
 * Stops the consumer, after a last harvest: later writes are not found for it. Its pending pages
 * stay so and can be taken. The logs are switched off if nobody else tracks. A stopped consumer
 * cannot be started again: make another.
 */
int32_t brant_consumer_stop(struct brant_consumer *consumer,
                            struct brant_error **error);

/** `brant_tracker_sync`, reported for this consumer. */
int32_t brant_consumer_sync(struct brant_consumer *consumer,
                            uint32_t when,
                            struct brant_sync *report,
                            struct brant_error **error);

/**
 * `brant_tracker_take` of this consumer's pending pages. The runs are in use until its next take,
 * until `brant_consumer_stop` or until `brant_consumer_free`.
 */
int32_t brant_consumer_take(struct brant_consumer *consumer,
                            struct brant_run *runs,
                            size_t capacity,
                            size_t *count,
                            struct brant_error **error);

/** `brant_tracker_put_back` into this consumer's pending pages. */
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
 * Begins a round of free-page hints (VIRTIO_BALLOON_F_FREE_PAGE_HINT), and puts its number into
 * `*round`. After this call give the guest a new command id. The call restores the protection of
 * all pages whose protection is not restored yet, by one kernel call for each chunk with dirty
 * pages. The migration would otherwise make the same kernel calls later. The round ends with the
 * next sync (a migration syncs at the end of each pass: BRANT_EVENT_PASS), with a change of the
 * map, and when the next round begins. Any thread; may wait for a sync. BRANT_E_STATE while
 * nothing is tracked. For a moment after the start of a migration nothing is tracked yet: try
 * again.
 */
int32_t brant_tracker_begin_hints(const struct brant_tracker *tracker,
                                  uint64_t *round,
                                  struct brant_error **error);

/**
 * Tells brant that the guest hinted `length` bytes at a guest physical address as free, in answer
 * to the command id that belongs to `round`. The whole pages in the range that are pending are not
 * sent this once, and read as zero at the destination. The guest may write to these pages later
 * without a word: such a write is found, and the page is sent. BRANT_E_STATE if the round is over:
 * the hint does nothing, and is counted (`stale_hints`). Any thread; may wait for a sync.
 */
int32_t brant_tracker_hint_free(const struct brant_tracker *tracker,
                                uint64_t round,
                                uint64_t guest_address,
                                uint64_t length,
                                struct brant_error **error);

/**
 * Ends a round: hints of the round that come later do nothing. A round that is over already is
 * fine, and so is NULL for `tracker`. Any thread.
 */
void brant_tracker_end_hints(const struct brant_tracker *tracker,
                             uint64_t round);

/* =============================================================================================
 * Outgoing: a migration from here, the source
 *
 * Make it of a tracker, start it, wait for it, free it. brant_outgoing_wait says who has the guest
 * afterwards.
 * ============================================================================================= */

/**
 * A migration from here to another process or host. One object is one migration; make a new object
 * for another migration, which starts from all pages. The start succeeds only when the guest is
 * here and no other migration of the guest is in progress, in either direction and through any
 * tracker. Else the start is BRANT_E_STATE (the guest was handed over, was given up or is
 * unanswered) or BRANT_E_BUSY.
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
 * have `pause` and `resume`: else BRANT_E_INVALID. `parameters` may be NULL for the defaults.
 * Nothing happens before the migration is started.
 */
int32_t brant_outgoing_new(struct brant_tracker *tracker,
                           const struct brant_params *parameters,
                           struct brant_outgoing **outgoing,
                           struct brant_error **error);

/**
 * Cancels a migration that is in progress, waits for its end, and frees it; NULL is fine. After
 * the hand-over the call does not cancel: it waits for the answer, for at most the hand-over
 * timeout and one second, and ends a comparison of memory (BRANT_SOURCE_VERIFYING). When the migration
 * is unanswered and not resolved, the guest then counts as handed over (`brant_guest_reclaim`). An
 * interrupted postcopy is given up: when the destination has said that the guest runs there, as by
 * brant_outgoing_resolve with BRANT_RESOLVE_DESTROY, otherwise as an unanswered migration. A postcopy
 * whose pages are on their way (BRANT_SOURCE_SERVING) is waited for. Returns 0, or BRANT_E_CALLBACK inside one of the
 * migration's own callbacks, where nothing is freed.
 *
 * This is the last call on the migration. When other threads wait for it, call
 * brant_outgoing_cancel, join those threads, then free.
 */
int32_t brant_outgoing_free(struct brant_outgoing *outgoing);

/**
 * Starts the migration to "tcp:ADDRESS:PORT" (a numeric IPv4 address, an IPv6 address in brackets,
 * or localhost) or "unix:/PATH", and returns at once. brant makes a connection for each of the
 * `channels` of the parameters, and with `postcopy` one more. `brant_outgoing_wait`, the events and the
 * figures tell how it goes and how it ends.
 */
int32_t brant_outgoing_start(struct brant_outgoing *outgoing,
                             const char *endpoint,
                             struct brant_error **error);

/**
 * Starts the migration over a connected stream socket (TCP, unix, vsock), which is its one channel.
 * From this call on brant owns the socket and its blocking mode. When the call fails, brant closes
 * the socket, also on a migration that was started before (BRANT_E_STATE).
 *
 * BRANT_E_INVALID for any other descriptor (the message says what the descriptor is), and when
 * `channels` of the parameters is more than 1 or `postcopy` is on. Nothing has begun then, and the same migration can be
 * started again.
 */
int32_t brant_outgoing_start_fd(struct brant_outgoing *outgoing,
                                int32_t fd,
                                struct brant_error **error);

/**
 * Starts the migration over connected stream sockets, one for each channel: `fds` has `count` of
 * them, channel 0 first, and `count` is `channels` of the parameters; with `postcopy` there is one more
 * socket, the last one. From this call on brant owns
 * the sockets and their blocking mode. When the call fails, brant closes all of them, also on a
 * migration that was started before (BRANT_E_STATE). The sockets stay the VMM's only when the list
 * itself is wrong: `fds` is NULL, `count` is 0 or above 64, or a number is in the list twice.
 *
 * BRANT_E_INVALID for a wrong list, for another number of sockets (the message says how many are
 * expected), for any other descriptor, for one socket under two numbers (dup), and for both ends of
 * one TCP connection. The message names the socket, for example `fds[2] (descriptor 17)`. Nothing
 * has begun then, and the same migration can be started again. Both ends of one unix pair are not
 * noticed here: such a migration fails when the connect timeout has run out. When a channel fails
 * later, the error names it, for example "channel 2 (descriptor 17)".
 */
int32_t brant_outgoing_start_fds(struct brant_outgoing *outgoing,
                                 const int32_t *fds,
                                 size_t count,
                                 struct brant_error **error);

/**
 * Changes the cap on the bandwidth (`brant_params.max_bandwidth`) of a migration, started or not:
 * at once, for all channels together. 0 is no cap. BRANT_E_INVALID for a cap out of range, which
 * changes nothing. From the pause on, and after the end, the call returns 0 and has no effect: the
 * switchover has a cap of its own (`brant_params.switchover_max_bandwidth`). Any thread, also
 * inside callbacks.
 */
int32_t brant_outgoing_set_max_bandwidth(struct brant_outgoing *outgoing,
                                         uint64_t bytes_per_second,
                                         struct brant_error **error);

/**
 * Ends the migration at any moment before the hand-over, and returns when the guest runs on:
 * within 100 ms, unless a callback or a kernel call is in progress. Inside one of the migration's
 * own callbacks the call only asks for the end. On a migration that has ended the call does
 * nothing. After the hand-over it is BRANT_E_STATE, with one exception: while memory is compared
 * (BRANT_SOURCE_VERIFYING) the call ends the comparison. The migration has succeeded then, and
 * brant_outgoing_wait returns 0; pages that were not compared count in `unverified_pages`.
 */
int32_t brant_outgoing_cancel(struct brant_outgoing *outgoing,
                              struct brant_error **error);

/**
 * Waits until the migration is over, for at most `timeout_ms` milliseconds (BRANT_NO_LIMIT: for
 * ever; 0: not at all). Returns 0 if the guest runs at the destination, BRANT_E_PENDING if the
 * migration is still in progress, else the code that says why it failed. After a failure other
 * than BRANT_E_UNANSWERED the guest runs on here as if nothing had been. (If `resume` itself
 * failed, the guest stands paused: BRANT_SOURCE_RESUME_FAILED.)
 *
 * After BRANT_E_UNANSWERED the guest is paused and the VMM has to resolve the migration: ask the
 * destination's VMM whether its `run` was called. By then `run` was called or never will be. This
 * holds also when the destination said that it ended (the hand-over came too late, `run` failed,
 * the migration was cancelled): brant does not take a guest back by itself once the guest was
 * handed over, and the message holds the destination's words. A migration that was handed over
 * ends with 0 or BRANT_E_UNANSWERED and nothing else. The last event and the figures agree.
 *
 * An interrupted postcopy (BRANT_SOURCE_INTERRUPTED) is in progress: the wait goes on until the session
 * is recovered and ends, or is given up. A session that was given up with brant_outgoing_resolve is
 * BRANT_E_UNANSWERED in the state BRANT_SOURCE_GIVEN_UP, because every other code says that the guest
 * runs on here. It is resolved, and the message says that the guest runs at the destination and how
 * many pages did not go.
 */
int32_t brant_outgoing_wait(struct brant_outgoing *outgoing,
                            uint64_t timeout_ms,
                            struct brant_error **error);

/** The VMM knows that the destination does not run the guest: the guest runs on here. */
#define BRANT_RESOLVE_RESUME 1
/**
 * The VMM knows that the destination runs the guest, or nobody shall run it: the guest never runs
 * here again.
 */
#define BRANT_RESOLVE_DESTROY 2

/**
 * Resolves an unanswered migration, once: the VMM decides who has the guest. With
 * BRANT_RESOLVE_RESUME `resume` is called on this thread; if `resume` fails, the migration can be
 * resolved again. When the migration is not unanswered: BRANT_E_STATE. Until the migration is
 * resolved, no migration, save or restore of the guest can start. Decide by what the destination's
 * VMM says of its brant_incoming:
 *
 * - its `run` was called, or BRANT_DESTINATION_RUNNING: BRANT_RESOLVE_DESTROY;
 * - BRANT_DESTINATION_FAILED or _START_FAILED, `brant_incoming_cancel` returned 0, or the
 *   destination's process is gone and cannot have a running guest: BRANT_RESOLVE_RESUME.
 *
 * BRANT_RESOLVE_RESUME is BRANT_E_STATE when memory was handed over by descriptor, unless the
 * destination has said that it never ran the guest: both sides have that memory in common.
 *
 * An interrupted postcopy (BRANT_SOURCE_INTERRUPTED) is given up by BRANT_RESOLVE_DESTROY, for good: the
 * pages that did not go are lost to the guest. When the destination has said that the guest runs there,
 * BRANT_RESOLVE_RESUME is BRANT_E_STATE, because the memory here is that of the switch. When it has not,
 * the call works as for an unanswered migration.
 */
int32_t brant_outgoing_resolve(struct brant_outgoing *outgoing,
                               uint32_t resolution,
                               struct brant_error **error);

struct brant_stats;

/**
 * Fills in the latest figures; brant_stats says when they stand still. Any thread, also inside
 * callbacks.
 */
int32_t brant_outgoing_get_stats(const struct brant_outgoing *outgoing,
                                 struct brant_stats *stats,
                                 struct brant_error **error);

struct brant_lane_stats;

/**
 * Fills in the latest figures of one channel, counted from 0 (brant_lane_stats says when they stand
 * still); all zero before there is a connection. BRANT_E_INVALID for a channel that the parameters
 * do not have. Any thread, also inside callbacks.
 */
int32_t brant_outgoing_lane_stats(const struct brant_outgoing *outgoing,
                                  uint32_t channel,
                                  struct brant_lane_stats *stats,
                                  struct brant_error **error);

struct brant_forecast;

/**
 * Fills in the forecast of this moment; it is fresh also while the link stalls. BRANT_E_PENDING until
 * the bandwidth is measured or stated and the first pass has begun. The forecast counts with brant's
 * own decider, the limits and the policy in use. From the pause on it stays as it was; of a
 * completed migration it has the true figures. While there is none, the fields are 0. The call takes
 * this thread some microseconds, or some milliseconds when the migration does not converge. Any
 * thread, also inside callbacks.
 *
 * Experimental: what is forecast, and from which figures, may change.
 */
int32_t brant_outgoing_get_forecast(const struct brant_outgoing *outgoing,
                                    struct brant_forecast *forecast,
                                    struct brant_error **error);

/**
 * Room for every text of `brant_outgoing_get_stats_json` and `brant_incoming_get_stats_json` of the
 * library with this header, the NUL included. A later library may have more figures: `needed` tells.
 */
#define BRANT_STATS_JSON_SIZE 8192

/**
 * Room for every text of `brant_outgoing_get_line` and `brant_incoming_get_line`, the NUL included.
 */
#define BRANT_LINE_SIZE 256

/**
 * The figures of brant_stats as one JSON object, by the same names. An unknown figure is null, and
 * "state" is the name of the state. "forecast" is an object with the fields of brant_forecast, or
 * null as long as there is none. The text in `buffer` is NUL-terminated and cut to `capacity`
 * bytes, of which BRANT_STATS_JSON_SIZE are enough; `*needed` (may be NULL) gets the bytes that the
 * whole text takes.
 */
int32_t brant_outgoing_get_stats_json(const struct brant_outgoing *outgoing,
                                      char *buffer,
                                      size_t capacity,
                                      size_t *needed,
                                      struct brant_error **error);

/**
 * The figures as one line for a person, such as "copying, pass 3, 87.1 %, 1.2 GB/s, guest writes 310
 * MB/s, 2.1 GB to send, downtime would be 120 ms of 300 ms, about 12 s left", or "completed, 100.0 %,
 * 988 kB in 90 s, downtime 45 ms of 300 ms allowed". What is unknown is left out. The words may change
 * in any version; figures for programs are in `brant_outgoing_get_stats`. The text in `buffer` is
 * NUL-terminated and cut to `capacity` bytes; BRANT_LINE_SIZE is always enough.
 */
int32_t brant_outgoing_get_line(const struct brant_outgoing *outgoing,
                                char *buffer,
                                size_t capacity,
                                struct brant_error **error);

/**
 * An eventfd that becomes readable when the figures have changed, for poll; reading it resets it.
 * The descriptor stays the migration's: do not close it. A negative code if `outgoing` is NULL.
 */
int32_t brant_outgoing_event_fd(const struct brant_outgoing *outgoing);

/**
 * What is done about a migration that does not converge by itself. A field that is 0 has its
 * default. A structure of zeros is the policy of a migration that was given none: nothing is done,
 * and the migration runs until it fits its limit or its total timeout is over.
 */
typedef struct brant_policy {
    /** sizeof(brant_policy). */
    size_t size;
    /**
     * The ceiling up to which the downtime limit rises, milliseconds: from
     * `brant_params.downtime_limit_ms` to 3600000; 0: the limit does not rise. The limit becomes
     * half as long again after each pass that leaves more than 0.97 of what it sent, after each aborted
     * pause, and when what no pass makes smaller exceeds the limit. The rest is taken as soon as it fits.
     * Once the limit has risen, no pause is aborted that stays below the ceiling: the limit rises to what
     * the pause takes.
     */
    uint64_t downtime_ceiling_ms;
    /**
     * The time for the whole migration, milliseconds from its start: 1 to 2592000000, and at most
     * `brant_params.total_timeout_ms`; 0: no deadline. `on_deadline` says what happens then. The
     * total timeout ends the migration with an error, whatever the policy says, and a deadline later
     * than it is BRANT_E_INVALID.
     */
    uint64_t deadline_ms;
    /**
     * A migration without a new lowest rest for so long has stalled, and so has one in which nothing
     * moves for so long in the middle of a pass. Milliseconds: 1 to 86400000; default 10000. See
     * BRANT_EVENT_STALLED.
     */
    uint64_t stall_ms;
    /**
     * The time between two syncs in the middle of a pass, milliseconds: 100 to 3600000; default
     * 2000. Only a policy that slows the guest syncs there. While dirty rings keep the limits of vCPUs,
     * the vCPUs' counts are read there instead, because a sync would empty full rings.
     */
    uint64_t sync_ms;
    /** BRANT_SLOWING_*: how a guest is slowed that dirties too much. */
    uint32_t slowing;
    /**
     * The most by which a vCPU is slowed, 1 to 99 percent of its time; default 99. Has no effect on
     * limits that dirty rings keep.
     */
    uint32_t throttle_max;
    /** BRANT_DEADLINE_*: what happens at the deadline. */
    uint32_t on_deadline;
    /** 0. */
    uint32_t reserved;
} brant_policy;

/** In `brant_policy.slowing`, the default: the guest is not slowed. */
#define BRANT_SLOWING_OFF 0
/**
 * In `brant_policy.slowing`: all vCPUs are slowed by the same percentage (auto-converge). The first
 * percentage is computed from the guest's dirty rate and the link's bandwidth. It rises when passes
 * do not halve the rest, and falls when the guest dirties less. Needs the operation `throttle`.
 */
#define BRANT_SLOWING_ALL 1
/**
 * In `brant_policy.slowing`: only vCPUs that dirty are slowed, by a limit on the pages that each may
 * write. Needs a log that tells vCPUs apart: KVM's dirty rings. The rings keep the limits
 * themselves, in `brant_tracker_ring_full`, so the operation `throttle` is not needed. Each sync
 * empties the rings, so a pass leaves a whole ring of each writing vCPU: where
 * `ring_bytes` / 16 pages of 4 KiB for each writer take longer than the downtime limit, the
 * migration does not converge. Example: 100 MB/s and 300 ms leave room for 7,300 pages, one ring of
 * 64 KiB. Enable rings of such a size (`docs/steering.md` has the formula).
 */
#define BRANT_SLOWING_WRITERS 2

/**
 * In `brant_policy.on_deadline`, the default: the migration fails with BRANT_E_NOT_CONVERGED, and
 * the guest runs on.
 */
#define BRANT_DEADLINE_CANCEL 0
/**
 * In `brant_policy.on_deadline`: the migration goes on until it converges or its total timeout is
 * over. An event says that the deadline has passed.
 */
#define BRANT_DEADLINE_CARRY_ON 1
/**
 * In `brant_policy.on_deadline`: the guest is paused so early that everything is sent by the
 * deadline, however long it stands still. Such a pause is not aborted. A migration that has stalled
 * is paused at the next rest that is about as small as the smallest of the last passes, and does not
 * wait for the deadline. No downtime limit is too short for this policy: see BRANT_OVERRUN_CARRY_ON.
 */
#define BRANT_DEADLINE_PAUSE 2
/**
 * In `brant_policy.on_deadline`: the guest is sent ahead of its memory at the deadline (postcopy). A
 * migration that has stalled, or whose downtime limit cannot be kept, does not wait for the deadline.
 * When the guest would stand still for longer than the limit even so, the migration fails with
 * BRANT_E_NOT_CONVERGED and the figure, and the guest runs on. Needs BRANT_POSTCOPY_ALLOWED.
 */
#define BRANT_DEADLINE_POSTCOPY 3

/**
 * Sets the policy of a migration: before its start, the policy to begin with; while it runs, the
 * policy from the next batch of pages on. While the link takes nothing, no batch ends: then only
 * `deadline_ms` with BRANT_DEADLINE_CANCEL and `stall_ms` count, within a fifth of a second. The new
 * policy counts as if it had been in force from the start; its deadline, too, is counted from the
 * start of the migration. BRANT_E_INVALID for a field
 * out of range (the message has the range), and for a policy that needs `throttle` where the VMM has
 * none. BRANT_E_UNSUPPORTED for BRANT_SLOWING_WRITERS where no log tells vCPUs apart. Before the
 * start, only the ranges are checked here, and the rest at the start. After an error the policy is as
 * it was. From the pause on, and after the end, the call has no effect. Any thread, also inside
 * callbacks.
 */
int32_t brant_outgoing_set_policy(struct brant_outgoing *outgoing,
                                  const struct brant_policy *policy,
                                  struct brant_error **error);

/**
 * Changes the downtime limit (`brant_params.downtime_limit_ms`) of a migration, started or not: 1 to
 * 3600000 milliseconds, and at most the policy's ceiling. Counts from the next batch of pages on, and
 * for a pause in progress: a limit that is raised in time keeps that pause from being aborted.
 * BRANT_E_INVALID for a limit out of range; the limit then stays as it was. After the end the call
 * has no effect. Any thread, also inside callbacks.
 */
int32_t brant_outgoing_set_downtime_limit(struct brant_outgoing *outgoing,
                                          uint64_t downtime_limit_ms,
                                          struct brant_error **error);

/**
 * Switches over as soon as possible, however long the guest stands still: the pass ends with a sync,
 * the guest is paused, and neither the downtime limit nor its slack aborts that pause. A
 * BRANT_EVENT_DOWNTIME says how long the guest is expected to stand still. Returns at once; the rest
 * goes as after any other decision to switch over. A migration that has not started, or has sent
 * nothing yet, first sends as much as shows the link's bandwidth, so that the promise about the
 * downtime is one. Called again, it does nothing. From the pause on, and after the end: BRANT_E_STATE.
 * Any thread, also inside callbacks.
 */
int32_t brant_outgoing_switch_over(struct brant_outgoing *outgoing,
                                   struct brant_error **error);

/**
 * Switches to postcopy as soon as possible: the guest is paused, and runs at the destination before the
 * pages that it lacks there have come. Any moment from the start to the pause will do. The pass in
 * progress ends with a sync. When the guest would stand still for longer than the downtime limit, the
 * switch does not come, the migration goes on as before, and a BRANT_EVENT_DOWNTIME has the figure: the
 * description of the missing pages, their discarding at the destination, and the device state all count.
 * Returns at once.
 *
 * BRANT_E_UNSUPPORTED when `postcopy` of the parameters is BRANT_POSTCOPY_OFF. Before the start, after a
 * start that failed, from the pause on, and after the end: BRANT_E_STATE. Any thread, also inside callbacks.
 */
int32_t brant_outgoing_start_postcopy(struct brant_outgoing *outgoing,
                                      struct brant_error **error);

/**
 * Continues a migration in BRANT_SOURCE_INTERRUPTED over new connections to `endpoint`, as many as at
 * the start. Returns at once, in BRANT_SOURCE_RECOVERING. The destination's VMM has to take the new
 * connections (brant_incoming_recover), and may do so later than this call: while they cannot be made,
 * or are lost before both sides have agreed, another try follows ten times a second, as long as the
 * connect timeout allows (`brant_params.connect_timeout_ms`, from this call on). How it ended:
 *
 * - recovered: BRANT_SOURCE_SERVING, and BRANT_EVENT_RECOVERED;
 * - not: BRANT_SOURCE_INTERRUPTED as before, and another BRANT_EVENT_INTERRUPTED that says why. This may
 *   be called again, any number of times.
 *
 * The descriptor of brant_outgoing_event_fd becomes readable with each of these changes.
 * brant_outgoing_resolve ends the tries. In the moment in which both sides have agreed and the state is not
 * yet BRANT_SOURCE_SERVING it comes too late: it returns BRANT_E_STATE when the migration is over.
 *
 * BRANT_E_STATE when the migration is not interrupted, or was resolved; BRANT_E_BUSY while a recovery is
 * in progress. Any thread, also inside callbacks.
 */
int32_t brant_outgoing_recover(struct brant_outgoing *outgoing,
                               const char *endpoint,
                               struct brant_error **error);

/**
 * As brant_outgoing_recover, over connected stream sockets: one for each channel, channel 0 first, and
 * one more behind them. What brant_outgoing_start_fds says of the list and of its ownership holds here.
 */
int32_t brant_outgoing_recover_fds(struct brant_outgoing *outgoing,
                                   const int32_t *fds,
                                   size_t count,
                                   struct brant_error **error);

/* =============================================================================================
 * Incoming: a migration to here, the destination
 *
 * Make it of a guest with the source's blocks, listen, wait, free it.
 * ============================================================================================= */

/**
 * A migration from somewhere else to here, into a guest whose blocks match the source's by name,
 * length and page size. The guest runs only after the source has handed it over in time: the
 * source says how long a hand-over counts. After a later hand-over no guest runs here
 * (BRANT_DESTINATION_FAILED).
 *
 * The start succeeds only when no guest runs in that memory and no other migration, save or
 * restore of the guest is in progress: else it is BRANT_E_STATE or BRANT_E_BUSY. A guest that was
 * handed over from here, or given up, is overwritten by the one that arrives.
 *
 * Who may connect is the VMM's decision (by the address, or the permissions of a socket's
 * directory): a listener takes the first connection on which a source speaks, which does not prove
 * who the source is. When that is not enough, hand in connected sockets: brant_incoming_start_fd for
 * one channel, brant_incoming_start_fds for several.
 *
 * Threads: any, several at once. `brant_incoming_cancel` may be called by any number of threads,
 * also while others wait, whose waits it ends. `brant_incoming_free` is the last call: all others
 * on it have returned before it begins. Inside a callback of the same migration, waiting and
 * freeing are BRANT_E_CALLBACK, and cancelling only asks.
 */
typedef struct brant_incoming brant_incoming;

/**
 * Makes a migration into `guest`, whose operations must have `run`: else BRANT_E_INVALID. The
 * operations need `load` too if the source saves device state, and `early_load` if the source
 * saves early configuration. `parameters` may be NULL for the defaults.
 */
int32_t brant_incoming_new(struct brant_guest *guest,
                           const struct brant_params *parameters,
                           struct brant_incoming **incoming,
                           struct brant_error **error);

/**
 * Cancels a migration that is going on, waits for its end, and frees it; NULL is fine. A guest
 * that runs here runs on. Returns 0, or BRANT_E_CALLBACK inside one of the migration's own
 * callbacks, where nothing is freed. This is the last call on the migration, like
 * brant_outgoing_free.
 *
 * Postcopy: while missing pages arrive, the call waits for all of them. An interrupted migration
 * gives them up, as brant_incoming_give_up: an access of one raises SIGBUS, so install a handler
 * first.
 */
int32_t brant_incoming_free(struct brant_incoming *incoming);

/**
 * Listens on "tcp:ADDRESS:PORT" or "unix:/PATH", as for `brant_outgoing_start`, and returns at
 * once. Port 0 is any free one; `brant_incoming_get_endpoint` tells which. Waits for a source
 * without a limit.
 *
 * A connection from a stranger neither ends nor delays the migration. brant reads several
 * connections together. The first connection on which all of a source's first record arrives is
 * the migration's. When that source has several channels, its other connections are found by what
 * they say first, in any order, among those of strangers; they have the connect timeout, which
 * begins with the first one. All other connections are closed. brant also closes a connection on
 * which anything else arrives, a connection that is silent for the connect timeout, and the oldest
 * of more than 128 that do not belong to the source. When the process has no descriptor left for a
 * connection, the connection waits until there is one, and a BRANT_EVENT_WARNING says so.
 *
 * brant frees the port, or removes the socket's file, when the source has all its connections. To
 * listen again after a migration that failed, free this brant_incoming, make another one of the same guest, and
 * listen at the endpoint of `brant_incoming_get_endpoint`, which is free at once.
 */
int32_t brant_incoming_listen(struct brant_incoming *incoming,
                              const char *endpoint,
                              struct brant_error **error);

/**
 * The endpoint that the migration listens at, as text for the source's `brant_outgoing_start`:
 * with the real port when port 0 was given, and the address that an interface's name or a host's
 * name stood for. The text is copied to `buffer`, cut to `capacity` bytes and NUL-terminated.
 * `*needed` (may be NULL) gets the bytes that the whole text takes, with its NUL. `buffer` may be
 * NULL when `capacity` is 0.
 *
 * The endpoint stays the same from the return of `brant_incoming_listen` until
 * `brant_incoming_free`. It stays so when there is a source and when the migration is over,
 * although brant no longer listens there. BRANT_E_STATE before `brant_incoming_listen`, and for a
 * migration over a descriptor. Any thread, also inside callbacks.
 */
int32_t brant_incoming_get_endpoint(const struct brant_incoming *incoming,
                                    char *buffer,
                                    size_t capacity,
                                    size_t *needed,
                                    struct brant_error **error);

/**
 * Starts the migration over a connected stream socket (TCP, unix, vsock), from a source with one
 * channel. From this call on brant owns the socket and its blocking mode. When the call fails, brant
 * closes the socket, also on a migration that was started before (BRANT_E_STATE). BRANT_E_INVALID
 * for any other descriptor; the message says what the descriptor is. Nothing has begun then, and the
 * same migration can be started again.
 */
int32_t brant_incoming_start_fd(struct brant_incoming *incoming,
                                int32_t fd,
                                struct brant_error **error);

/**
 * Starts the migration over connected stream sockets, one for each channel of the source: `fds` has
 * `count` of them, in any order: the first record on each one says which channel it is. The limit for
 * these records is the connect timeout. When it has run out, brant tells the source and waits up to
 * one second for it to read the reason, so the migration ends that much later. `count` is the number
 * of the source's channels, and may be less than `channels` of the parameters. (At the source the
 * two are equal.) With a source that allows postcopy it is one more. A source with another number of channels is refused.
 *
 * From this call on brant owns the sockets and their blocking mode. When the call fails, brant closes
 * all of them, also on a migration that was started before (BRANT_E_STATE). The sockets stay the
 * VMM's only when the list itself is wrong: `fds` is NULL, `count` is 0 or above 64, or a number is
 * in the list twice. BRANT_E_INVALID for a wrong list, for more sockets than `channels` of the
 * parameters and one, for any other descriptor, for one socket under two numbers (dup), and for both ends of
 * one TCP connection. The message names the socket, for example `fds[2] (descriptor 17)`. Nothing
 * has begun then, and the same migration can be started again. Both ends of one unix pair are not
 * noticed here: such a migration fails when the connect timeout has run out. A later error names the
 * sockets on which nothing came, or something else than the source's first record. From then on
 * errors name the channel, for example "channel 2 (descriptor 17)".
 */
int32_t brant_incoming_start_fds(struct brant_incoming *incoming,
                                 const int32_t *fds,
                                 size_t count,
                                 struct brant_error **error);

/**
 * Ends the migration before the hand-over is received. 0 proves that the guest never runs here,
 * now or later: the source of an unanswered migration may take the guest back. The call returns
 * within 100 ms, unless a callback is in progress. Inside one of the migration's own callbacks the
 * call only asks for the end. After the hand-over was received it is BRANT_E_STATE. A cancelled
 * migration leaves the memory of half a guest: the next guest has to come in whole, through a new
 * brant_incoming.
 */
int32_t brant_incoming_cancel(struct brant_incoming *incoming,
                              struct brant_error **error);

/**
 * Waits until the guest runs here, for at most `timeout_ms` milliseconds (BRANT_NO_LIMIT: for
 * ever; 0: not at all). Returns 0 if the guest runs here, BRANT_E_PENDING if the migration is
 * still in progress, else the code that says why it failed.
 *
 * Postcopy: the wait is over when all pages are here. Until then it is BRANT_E_PENDING, although the
 * guest runs, also in BRANT_DESTINATION_INTERRUPTED. In BRANT_DESTINATION_INCOMPLETE, where the guest
 * runs without pages that were given up, the code is that of the loss of the connections, as a rule
 * BRANT_E_PEER_GONE.
 */
int32_t brant_incoming_wait(struct brant_incoming *incoming,
                            uint64_t timeout_ms,
                            struct brant_error **error);

/**
 * Fills in the latest figures; brant_stats says when they stand still. Any thread, also inside
 * callbacks.
 */
int32_t brant_incoming_get_stats(const struct brant_incoming *incoming,
                                 struct brant_stats *stats,
                                 struct brant_error **error);

/**
 * Fills in the latest figures of one channel, counted from 0; all zero before the source has it.
 * BRANT_E_INVALID for a channel that `channels` of the parameters does not allow. Any thread, also
 * inside callbacks.
 */
int32_t brant_incoming_lane_stats(const struct brant_incoming *incoming,
                                  uint32_t channel,
                                  struct brant_lane_stats *stats,
                                  struct brant_error **error);

/** As `brant_outgoing_get_stats_json`. */
int32_t brant_incoming_get_stats_json(const struct brant_incoming *incoming,
                                      char *buffer,
                                      size_t capacity,
                                      size_t *needed,
                                      struct brant_error **error);

/** As `brant_outgoing_get_line`. */
int32_t brant_incoming_get_line(const struct brant_incoming *incoming,
                                char *buffer,
                                size_t capacity,
                                struct brant_error **error);

/** As `brant_outgoing_event_fd`. */
int32_t brant_incoming_event_fd(const struct brant_incoming *incoming);

/** Some pages of a block that have not arrived. Pages are 4 KiB. */
typedef struct brant_missing_run {
    /** The block, by the number that `brant_guest_add_block` gave. */
    uint32_t block;
    /** 0. */
    uint32_t reserved;
    /** The first page, counted from the beginning of the block. */
    uint64_t first_page;
    /** How many pages. */
    uint64_t pages;
} brant_missing_run;

/** How long a thread has waited for pages that had not arrived. */
typedef struct brant_blocked {
    /**
     * The thread's number in the kernel (gettid), by which the VMM knows its vCPU threads. 0: all
     * threads beyond the first 1024, and those of other processes.
     */
    uint32_t thread;
    /** 0. */
    uint32_t reserved;
    /** The thread's page faults on memory that was not here. */
    uint64_t faults;
    /** How long it waited, a wait in progress included; nanoseconds. */
    uint64_t blocked_ns;
} brant_blocked;

/** Where another process has some of a block: a region of its memory. */
typedef struct brant_uffd_region {
    /** The address in the other process. */
    uint64_t address;
    /** Bytes. With `address` and `offset` a multiple of the block's page size. */
    uint64_t length;
    /** The block, by the number that `brant_guest_add_block` gave. */
    uint32_t block;
    /** 0. */
    uint32_t reserved;
    /** Where in the block the region begins, in bytes. */
    uint64_t offset;
} brant_uffd_region;

/**
 * The pages that have not arrived, of a guest that runs here since a switch to postcopy: up to
 * `capacity` runs, ascending within each block, into `runs`. `*needed` (may be NULL) gets the number
 * of all runs. None when nothing is missing, and before the guest was handed over. `runs` may be NULL
 * when `capacity` is 0. While pages arrive, a run may have some that have just come; in
 * BRANT_DESTINATION_INTERRUPTED the answer stands still. Takes about a read of a bit for each page of
 * the guest. Any thread, also inside callbacks.
 */
int32_t brant_incoming_get_missing(const struct brant_incoming *incoming,
                                   struct brant_missing_run *runs,
                                   size_t capacity,
                                   size_t *needed,
                                   struct brant_error **error);

/**
 * How long each thread has waited for pages since the switch to postcopy: up to `capacity` threads,
 * ascending by number, into `threads`. `*needed` (may be NULL) gets the number of all of them.
 * `threads` may be NULL when `capacity` is 0. A wait counts from the moment at which brant reads of
 * it. After the migration the figures stay. Any thread, also inside callbacks.
 */
int32_t brant_incoming_get_blocked(const struct brant_incoming *incoming,
                                   struct brant_blocked *threads,
                                   size_t capacity,
                                   size_t *needed,
                                   struct brant_error **error);

/**
 * Gives up the pages that are missing, in BRANT_DESTINATION_INTERRUPTED: the source is known to be
 * gone for good, and the guest is to go on with what it has. The migration ends with
 * BRANT_DESTINATION_INCOMPLETE, and the call returns when that state is reached. From then on an
 * access of a missing page ends as one of memory that the hardware has lost:
 *
 * - in a thread: SIGBUS (SIGSEGV before Linux 6.6);
 * - in a system call: EFAULT;
 * - in KVM_RUN: SIGBUS for the vCPU's thread, with KVM_RUN interrupted at each further entry, or EFAULT.
 *   KVM inside a virtual machine returns KVM_EXIT_MMIO at an address of RAM too, and KVM_EXIT_SHUTDOWN
 *   where the page held the guest's page tables. A VMM treats each as lost memory, and an MMIO there
 *   not as an access of a device.
 *
 * Threads that wait for such a page are woken that way, so install a handler first. The pages count
 * as declared lost (brant_guest_mark_poisoned): a later migration of the guest does not read them.
 * `brant_incoming_get_missing` before this call says which pages these are. Any thread that holds no
 * lock which the operations `event` and `thread_start` need. Inside one of
 * the migration's own callbacks the call only asks, and returns at once. BRANT_E_STATE in any other
 * state.
 */
int32_t brant_incoming_give_up(struct brant_incoming *incoming,
                               struct brant_error **error);

/**
 * Recovers a migration in BRANT_DESTINATION_INTERRUPTED: listens for new connections of the source on
 * "tcp:ADDRESS:PORT" or "unix:/PATH", as brant_incoming_listen, and returns at once.
 * `brant_incoming_get_endpoint` tells the port that was found for port 0. The source's VMM calls
 * brant_outgoing_recover. All of the source's connections have to come within the connect timeout,
 * which begins with this call. The destination then says which pages it lacks, and asks again for
 * those that somebody waits for. The guest runs on meanwhile. A recovery that fails leaves
 * BRANT_DESTINATION_INTERRUPTED, and can be repeated. A connection of an older recovery is refused.
 *
 * A source that has lost the last acknowledgements does not know that all of the guest is here
 * (BRANT_DESTINATION_RUNNING behind a switch to postcopy), and is interrupted. Then the call tells it, on a
 * thread of brant's: the source completes. The state here stays, and BRANT_EVENT_RECOVERED or
 * BRANT_EVENT_WARNING says what became of it. That is possible until brant_incoming_free, any number of
 * times; BRANT_E_BUSY while one such call is at work, which is so for a moment after its event.
 *
 * BRANT_E_STATE in any other state. Any thread, also inside callbacks.
 */
int32_t brant_incoming_recover(struct brant_incoming *incoming,
                               const char *endpoint,
                               struct brant_error **error);

/**
 * As brant_incoming_recover, over connected stream sockets: `fds` has `count` of them, one for each
 * channel of the source and one for its urgent connection, in any order. Who owns the sockets is as in
 * brant_incoming_start_fds.
 */
int32_t brant_incoming_recover_fds(struct brant_incoming *incoming,
                                   const int32_t *fds,
                                   size_t count,
                                   struct brant_error **error);

/**
 * Serves page faults of another process, such as a vhost-user back end, which shares memory of the
 * guest and touches pages that have not arrived. That process makes a userfaultfd, calls UFFDIO_API
 * on it, registers its mappings of the guest's memory for missing faults, and sends the descriptor to
 * the VMM (VHOST_USER_POSTCOPY_ADVISE and _LISTEN). brant keeps a duplicate of `fd`. `regions` has
 * `count` parts: what is where in that process. Each lies inside a block of shared memory.
 *
 * Call it after the start of the migration and before the end of `early_load`, and before the other
 * process touches memory of the guest. At the switch to postcopy, old contents of missing pages are
 * then punched out of the files of shared memory, so that the other process does not find them: 4
 * microseconds a page. A call behind a switch at which no such descriptor was known is BRANT_E_STATE.
 * Faults are served until the migration is freed. So have the other process unregister its mappings
 * (VHOST_USER_POSTCOPY_END) when the migration has ended, and free the migration then.
 *
 * BRANT_E_INVALID for a region that is not inside a block of shared memory, or overlaps another.
 * Any thread, also inside callbacks.
 */
int32_t brant_incoming_add_uffd(struct brant_incoming *incoming,
                                int32_t fd,
                                const struct brant_uffd_region *regions,
                                size_t count,
                                struct brant_error **error);

/* =============================================================================================
 * Parameters of a migration
 * ============================================================================================= */

/** As the value of a time limit: no limit. */
#define BRANT_NO_LIMIT 18446744073709551615ull

/**
 * Parameters of a migration. A field that is 0 has its default. A value out of range is
 * BRANT_E_INVALID, with the range in the message. A field that says "Source" has no effect at a
 * destination, and one that says "Destination" has none at a source; its value has to be in range
 * there too.
 */
typedef struct brant_params {
    /** sizeof(brant_params). */
    size_t size;
    /**
     * The longest that the guest shall stand still, milliseconds, 1 to 3600000; default 300. It is a
     * ceiling and not a target. The guest is paused only when the whole downtime is expected to fit:
     * the remaining pages, the device state, two round trips, and the operations of both VMMs as far
     * as `expected_pause_us` and its neighbours state them. When it fits, passes go on as long as
     * the last pass made the rest smaller. So a guest that writes little stands still for much less.
     * When the parts without the pages exceed the limit, no pass helps. `overrun` then decides.
     */
    uint64_t downtime_limit_ms;
    /**
     * Bytes a second that sending may use while the guest runs, all channels together, 64 KiB/s to
     * 1 TiB/s; default no cap. In no second does brant give the kernel more than 2 % above the cap
     * to send, headers included. Example: a cap of 100 MB/s is 102 MB in any second at most.
     * `brant_outgoing_set_max_bandwidth` changes it. The switchover is not capped by it. brant does
     * not take the cap for the speed of the link: now and then it measures how long a batch takes
     * to arrive.
     */
    uint64_t max_bandwidth;
    /**
     * Bytes a second that the link will carry at the switchover, if you know that better than a
     * measurement can (behind a cap, on a link that others will use then). Same range; default:
     * the measured bandwidth. The expected downtime counts with this value, or else with the
     * measured bandwidth; where `switchover_max_bandwidth` is less than that, with
     * `switchover_max_bandwidth`. This value is an estimate: it holds nothing back.
     */
    uint64_t switchover_bandwidth;
    /**
     * Source: how far the downtime may exceed its limit before a pause is aborted, milliseconds, at
     * most 3600000; default 0. When the guest stands still, the downtime is expected once more:
     * after `pause`, and after `save`. If it would exceed the limit by more than this, `resume` is
     * called and passes go on. (Once the limit has risen, what counts is the policy's
     * `downtime_ceiling_ms`.) That happens at most three times; then `overrun` decides. Each
     * aborted pause is in `brant_stats.aborted_pause_ns`.
     */
    uint64_t downtime_slack_ms;
    /**
     * Source: how long `pause` will take at this side, microseconds, at most 3600000000; 0 when
     * unknown. This and the next five fields count in the expected downtime. A part that is unknown
     * counts as zero, so the guest may stand still for longer than the limit by that part.
     */
    uint64_t expected_pause_us;
    /** Source: how long `save` will take at this side, as `expected_pause_us`. */
    uint64_t expected_save_us;
    /**
     * Source: how long `load` and `loaded` will take at the destination, for all blobs together, as
     * `expected_pause_us`.
     */
    uint64_t expected_load_us;
    /** Source: how long `release` will take at this side, as `expected_pause_us`. */
    uint64_t expected_release_us;
    /** Source: how long `run` will take at the destination, as `expected_pause_us`. */
    uint64_t expected_run_us;
    /** Source: how many bytes of device state `save` will put, at most 1 TiB; 0 when unknown. */
    uint64_t expected_state_bytes;
    /**
     * The longest that a migration may take, milliseconds, 1 to 30 days; BRANT_NO_LIMIT. At the
     * source it counts from the start to the switchover, default one hour. At the destination it
     * counts from the source's first record to the hand-over, default one day: waiting for a
     * connection does not count. Every wait ends with the earliest of all limits that apply to it.
     */
    uint64_t total_timeout_ms;
    /**
     * The limit for connecting, and once more for agreeing on versions, configuration and layout;
     * milliseconds, 1 to 3600000; default 10000. At the source the second limit includes the
     * destination's `early_load`. A listener gives each connection the same time for its first
     * record.
     */
    uint64_t connect_timeout_ms;
    /**
     * The limit for a peer that moves no byte. One record has this time and the time that its
     * bytes take at 64 KiB/s. Milliseconds, 1 to 3600000; default 30000. Between two records a
     * destination waits for the switchover timeout if that is longer: the source's VMM may be
     * saving.
     */
    uint64_t io_timeout_ms;
    /**
     * The limit from the call of `pause` to the hand-over: when it runs out, the source takes the
     * guest back. At the destination it is the limit from ready to the hand-over, unless the
     * source's hand-over timeout is shorter. Milliseconds, 1 to 3600000; default 30000.
     */
    uint64_t switchover_timeout_ms;
    /**
     * Source: how long a hand-over counts once the destination is ready; milliseconds, 1 to
     * 3600000; default 30000. The source tells the destination. `release` is called in this time.
     * When the time has run out, the source sends no hand-over and keeps the guest. A hand-over
     * that is still under way then starts no guest at the destination. One second later the
     * destination has begun `run` or never will. Only then is a migration that was handed over
     * unanswered. Example: with the default, a guest whose destination dies at the hand-over
     * stands still for 31 seconds before BRANT_E_UNANSWERED.
     */
    uint64_t handover_timeout_ms;
    /**
     * Destination: the most bytes of early configuration, and of device state, that brant takes; 4
     * KiB to 1 TiB; default 256 MiB.
     */
    uint64_t max_state_bytes;
    /**
     * Destination: the most bytes of devices' state (brant_guest_add_device) that wait in memory
     * because something before them has not come; 1 MiB to 1 TiB; default 256 MiB. Beyond it
     * connections wait. Each connection has a mebibyte more in hand.
     */
    uint64_t max_device_buffer;
    /**
     * Source: the most memory for copies of sent pages, over all connections together; 1 MiB to 1
     * TiB; default 0, none. With such a cache, a page that is sent again goes as what has changed
     * in it, where that is less than the page. A destination that does not know deltas is refused
     * (BRANT_E_VERSION). The memory is taken as pages come back. It is freed when the migration
     * ends.
     */
    uint64_t delta_cache_bytes;
    /**
     * Source: bytes a second that sending may use from the pause on, 64 KiB/s to 1 TiB/s; default
     * no cap. With a cap the guest stands still for longer. The expected downtime counts with the
     * cap (see `switchover_bandwidth`), so the guest is paused when less is left to send.
     */
    uint64_t switchover_max_bandwidth;
    /**
     * Source: connections to the destination, 1 to 64; default 1. Destination: the most connections
     * that it takes of a source, 1 to 64; default 64. A source that wants more is refused.
     */
    uint32_t channels;
    /** Source: BRANT_COMPRESSION_*: whether contents of pages are compressed. */
    uint32_t compression;
    /**
     * Source: the level of zstd, 1 to 19; default 1. A higher level compresses more and takes
     * longer.
     */
    int32_t compression_level;
    /** BRANT_CHECKSUMS_*: whether contents of pages travel with a checksum. */
    uint32_t page_checksums;
    /**
     * Source: BRANT_VERIFY_*: whether the destination's memory is compared with the memory here at
     * the end.
     */
    uint32_t verify;
    /** BRANT_ZERO_COPY_OFF or BRANT_ZERO_COPY_ON. Source only. */
    uint32_t zero_copy;
    /**
     * Destination: BRANT_PREFAULT_*: whether memory is backed just before contents arrive for it.
     */
    uint32_t prefault;
    /** BRANT_BALLOONED_*: whether ballooned pages are sent. */
    uint32_t ballooned;
    /** Source: BRANT_OVERRUN_*: what becomes of a migration whose downtime limit cannot be kept. */
    uint32_t overrun;
    /**
     * Source: BRANT_HAND_OVER_*: whether a destination on the same host gets memory by descriptors,
     * without a copy.
     */
    uint32_t hand_over;
    /**
     * Source: BRANT_POSTCOPY_*: whether the guest may run at the destination before all of its memory
     * is there.
     */
    uint32_t postcopy;
    /** 0. */
    uint32_t reserved;
} brant_params;

/** In `brant_params.hand_over`, the default: all blocks are copied. */
#define BRANT_HAND_OVER_OFF 0
/**
 * In `brant_params.hand_over`: over a unix socket, a block goes to the destination by the descriptor
 * of its file, where that is possible. Nothing of it is copied: both processes map the same pages, and
 * the guest stands still equally long whatever its size. Possible for a block that was described with
 * the descriptor of its file, is mapped from it with MAP_SHARED, and whose file is a memfd (of huge
 * pages too) that is sealed with F_SEAL_SHRINK or can be (MFD_ALLOW_SEALING). The destination's table
 * of operations needs `map_block`. All other blocks are copied. See `docs/hand-over.md`.
 */
#define BRANT_HAND_OVER_POSSIBLE 1
/**
 * In `brant_params.hand_over`: every block goes by descriptor. When one has to be copied, the
 * migration fails with BRANT_E_UNSUPPORTED, and the message names the block and the reason. A
 * destination that takes no descriptors is refused (BRANT_E_VERSION).
 */
#define BRANT_HAND_OVER_ONLY 2

/**
 * In `brant_params.postcopy`, the default: the guest runs at the destination when all of its memory is
 * there.
 */
#define BRANT_POSTCOPY_OFF 0
/**
 * In `brant_params.postcopy`: brant_outgoing_start_postcopy and BRANT_DEADLINE_POSTCOPY may send the
 * guest ahead of its memory. There is one connection more than `channels`, for pages that the guest
 * waits for: with brant_outgoing_start_fds it is the last one. A destination that cannot serve the
 * faults of its guest refuses the source before the first page, and says which block and why. Not
 * together with BRANT_VERIFY_ON.
 */
#define BRANT_POSTCOPY_ALLOWED 1

/**
 * In `brant_params.overrun`, the default: a migration whose downtime limit cannot be kept fails with
 * BRANT_E_NOT_CONVERGED, and the guest runs on. The message names the part that alone exceeds the
 * limit. Example: with a round trip of 100 ms and a limit of 50 ms the migration ends before the
 * first page is sent.
 */
#define BRANT_OVERRUN_FAIL 0
/**
 * In `brant_params.overrun`: when the parts without the pages exceed the limit, the limit counts for
 * the pages alone, and the guest stands still for longer. A fourth pause is not aborted, whatever the
 * guest has written.
 */
#define BRANT_OVERRUN_CARRY_ON 1

/**
 * In `brant_params.compression`, the default: pages are sent as they are. A destination takes
 * compressed pages all the same.
 */
#define BRANT_COMPRESSION_OFF 0
/**
 * In `brant_params.compression`: contents are compressed (zstd) where that makes the migration
 * faster. Each connection measures what it carries with and without compression. Runs that do not
 * become smaller by an eighth are sent as they are. A destination that cannot decompress gets plain
 * pages.
 */
#define BRANT_COMPRESSION_ADAPTIVE 1
/**
 * In `brant_params.compression`: contents are always compressed, but for runs that do not become
 * smaller by an eighth. For links where bytes cost more than time. A destination that cannot
 * decompress is refused (BRANT_E_VERSION). A library without the feature "compression" refuses this
 * value and BRANT_COMPRESSION_ADAPTIVE (BRANT_E_UNSUPPORTED).
 */
#define BRANT_COMPRESSION_ALWAYS 2

/** In `brant_params.zero_copy`, the default: the kernel copies pages when they are sent. */
#define BRANT_ZERO_COPY_OFF 0
/**
 * In `brant_params.zero_copy`: pages go from guest memory to the network device without a copy
 * (MSG_ZEROCOPY), over TCP and vsock. It pays for links of 10 Gbit/s and more. The process needs
 * memory that it may lock (RLIMIT_MEMLOCK, net.core.optmem_max): a send that the kernel refuses
 * for want of it is copied. Pages that travel with a checksum, compressed or as a delta are copied
 * too (`brant_stats.encoded_pages`): with BRANT_CHECKSUMS_ON nothing goes without a copy. Where the
 * kernel copies all the same, as it does on loopback, brant goes back to copies after 32 sends in a
 * row, which are about 30 MB. All channels between the same two addresses find that out together.
 * `brant_stats.zero_copy` tells. The removal of a block waits until the kernel has sent the pages
 * of it that are on their way. When the destination takes nothing for the I/O timeout, the
 * migration fails, and the removal returns. A cancel from another thread ends that wait within 100
 * ms.
 */
#define BRANT_ZERO_COPY_ON 1

/** In `brant_params.page_checksums`, the default. Source: off. Destination: as the source wants. */
#define BRANT_CHECKSUMS_DEFAULT 0
/**
 * In `brant_params.page_checksums`: contents of pages travel with a checksum (CRC-32). The
 * destination compares it before they reach guest memory. Damaged contents fail the migration with
 * BRANT_E_PROTOCOL, and the message names the block and the pages. The source copies pages to
 * compute the checksum, because the guest writes meanwhile. A peer that has checksums off, or does
 * not know them, is refused (BRANT_E_VERSION). Device state and control records always have
 * checksums.
 */
#define BRANT_CHECKSUMS_ON 1
/**
 * In `brant_params.page_checksums`: no checksums of contents. A destination refuses a source that
 * has them on.
 */
#define BRANT_CHECKSUMS_OFF 2

/** In `brant_params.verify`, the default: memory is not compared. */
#define BRANT_VERIFY_OFF 0
/**
 * In `brant_params.verify`: when all pages have arrived and before `load` is called, the destination
 * computes a checksum of each page (CRC-32). When the guest runs there, the source compares the
 * checksums with its own memory, in which nothing may be written from `release` to the end of the
 * migration. It leaves out what was sent without being read (ballooned, hinted and poisoned pages),
 * and what `load` writes comes later. Pages that differ are an event (BRANT_EVENT_MISMATCH), and
 * `brant_stats` counts them. They are no failure, and neither is a connection that breaks meanwhile:
 * the guest runs at the destination by then. An aid for testing. The guest stands still longer by the
 * time that the destination takes to read its memory (`digest_ns`), which `downtime_limit_ms` and
 * `expected_downtime_ns` do not count; `switchover_timeout_ms` has to leave room for it. At the
 * source the migration is over, and `brant_outgoing_wait` returns, only when all is compared or
 * `brant_outgoing_cancel` has ended the comparison. A destination that does not know this is refused (BRANT_E_VERSION).
 */
#define BRANT_VERIFY_ON 1

/**
 * In `brant_params.prefault`, the default. The host backs memory just before contents arrive for
 * it, at most 2 MiB or one huge page ahead, and a thread of brant's (BRANT_ROLE_PREFAULT) helps.
 * Memory that is backed already, and memory that a userfaultfd watches, is left alone. Nothing is
 * backed for pages that arrive as zero. When the host cannot back a page, an event says why, no
 * more memory is backed ahead, and the read into that page fails the migration if it cannot be
 * backed then either.
 */
#define BRANT_PREFAULT_ON 0
/** In `brant_params.prefault`: the kernel backs a page when its contents are copied to it. */
#define BRANT_PREFAULT_OFF 1

/**
 * In `brant_params.ballooned`, the default. The source neither reads nor sends ballooned pages;
 * the destination discards their memory. No page is ballooned unless the guest must tell first
 * (`brant_guest_must_tell_host`).
 */
#define BRANT_BALLOONED_SKIP 0
/**
 * In `brant_params.ballooned`: ballooned pages are sent like any other. A destination sets this if
 * it must keep the memory of ballooned pages, because devices assigned to the guest have pinned
 * it. At a source that sets this, free-page hints do nothing.
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
/**
 * Source: the guest runs at the destination, and the memory there is compared with the memory here
 * (`brant_params.verify`).
 */
#define BRANT_SOURCE_VERIFYING 21
/**
 * Source: a pause is aborted because the downtime would exceed its limit: the VMM resumes the guest.
 * BRANT_SOURCE_COPYING follows.
 */
#define BRANT_SOURCE_ABORTING_PAUSE 22
/**
 * Source, postcopy: the guest runs at the destination, and the rest of its memory is being sent.
 */
#define BRANT_SOURCE_SERVING 23
/**
 * Source, postcopy: the connections were lost after the hand-over. The rest of the guest's memory is kept
 * here until brant_outgoing_recover or brant_outgoing_resolve.
 */
#define BRANT_SOURCE_INTERRUPTED 24
/**
 * Source, postcopy: the VMM has called brant_outgoing_recover, and the new connections are made.
 * BRANT_SOURCE_SERVING follows, or BRANT_SOURCE_INTERRUPTED after the connect timeout.
 */
#define BRANT_SOURCE_RECOVERING 25
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
/** Destination, postcopy: the guest runs here, and pages of its memory still arrive. */
#define BRANT_DESTINATION_COMPLETING 44
/**
 * Destination, postcopy: the guest runs here, and the connections were lost before all of its memory
 * came. Whoever needs a missing page waits for it. The VMM decides (`brant_incoming_recover`,
 * `brant_incoming_give_up`).
 */
#define BRANT_DESTINATION_INTERRUPTED 45
/** Destination, postcopy: the guest runs here, and the VMM has given up pages of its memory. */
#define BRANT_DESTINATION_INCOMPLETE 46

/** As the value of a time or a rate: not known yet. */
#define BRANT_UNKNOWN 18446744073709551615ull

/**
 * In `brant_stats.stall`: the migration makes progress, or has not been without it for long enough.
 */
#define BRANT_STALL_NONE 0
/** In `brant_stats.stall`: the link carries less than half of what it did, or stands still. */
#define BRANT_STALL_LINK 1
/** In `brant_stats.stall`: the destination takes the time to acknowledge pages. */
#define BRANT_STALL_DESTINATION 2
/**
 * In `brant_stats.stall`: the guest cannot be slowed further, and dirties as much as the link
 * carries.
 */
#define BRANT_STALL_THROTTLED 3
/** In `brant_stats.stall`: the guest dirties as much as the link carries. */
#define BRANT_STALL_DIRTYING 4

/**
 * The figures of a migration, at either side. Times are nanoseconds, sizes bytes, pages 4 KiB.
 * Some figures tell the present and may fall: `total_bytes`, `remaining_bytes`,
 * `unacknowledged_pages`, `unacknowledged_bytes`, `throughput`, `bandwidth`,
 * `switchover_bandwidth`, `round_trip_ns`, `dirty_pages_per_second`, `time_left_ns`,
 * `expected_downtime_ns`, `sync_ns`, `downtime_limit_ns`, `throttle`, `limited_vcpus`, `stall`,
 * `device_left_bytes`, `missing_pages`, `fault_waiting`, `fault_p50_ns` and `fault_p99_ns`. All others only grow, until a pause is aborted: the figures of that pause
 * and its promise are 0 then. (`state` is a name and not a figure:
 * it goes from BRANT_SOURCE_IN_DOUBT to what follows, from
 * BRANT_SOURCE_ABORTING_PAUSE back to BRANT_SOURCE_COPYING, between BRANT_SOURCE_SERVING,
 * BRANT_SOURCE_INTERRUPTED and BRANT_SOURCE_RECOVERING in any direction, and back to BRANT_SOURCE_UNANSWERED where
 * `brant_outgoing_resolve` cannot resume the guest.)
 *
 * `state`, `error` and `elapsed_ns` are those of the moment. The migration's thread brings all other
 * figures up to date, about every 50 ms while it sends or receives. While that thread waits (for
 * room in a connection, for its peer, or for an operation of the VMM's), `throughput` falls to 0
 * within a second, and the others stay as they were.
 */
typedef struct brant_stats {
    /** sizeof(brant_stats). */
    size_t size;
    /** The migration's state: BRANT_SOURCE_* or BRANT_DESTINATION_*. */
    uint32_t state;
    /** The pass over memory, from 1; 0 before the first. */
    uint32_t pass;
    /** BRANT_E_*, why it failed; 0 if it has not failed. */
    int32_t error;
    /**
     * How far the migration is, in hundredths of a percent, 0 to 10000. Source: pages sent so far,
     * divided by the sum of those, the remaining pages and the pages that later passes will send
     * by the forecast. Destination: pages received so far, divided by the sum of those and the
     * remaining pages. Never falls. 10000 when the guest runs at the destination, and not before; with
     * postcopy at the source from the switch on, at the destination when all pages are there, and
     * `missing_pages` tells the rest. After a failure or a cancel it keeps its last value, at most 9999. `state` and `error` tell that the migration is over.
     */
    uint32_t progress;
    /** The guest's memory. */
    uint64_t total_bytes;
    /**
     * Of these, what both processes have in common because it was handed over by descriptor
     * (`brant_params.hand_over`): nothing of it is sent.
     */
    uint64_t shared_bytes;
    /**
     * Source: bytes that are pending now; `total_bytes` before the first pass. Destination:
     * `total_bytes` less the pages received so far. 0 when the migration has completed; after a
     * failure or a cancel it keeps its last value.
     */
    uint64_t remaining_bytes;
    /**
     * Bytes that went over all connections, headers included. At the source, bytes count when the
     * records that they belong to have been sent: the figure stands still while a batch of pages
     * (at most 2 MiB) is being sent, and then grows by all of it.
     */
    uint64_t wire_bytes;
    /** Pages sent (received) with their contents; a page sent twice counts twice. */
    uint64_t data_pages;
    /**
     * Pages sent (received) as zero, without contents: holes, ballooned and free pages included.
     */
    uint64_t zero_pages;
    /** Of the zero pages, those that were never touched and so never read. Source only. */
    uint64_t hole_pages;
    /** Pages sent that the destination has not acknowledged. Source only. */
    uint64_t unacknowledged_pages;
    /**
     * Bytes of pages sent that the destination has not acknowledged: they are in buffers on the way.
     * Source only.
     */
    uint64_t unacknowledged_bytes;
    /**
     * Of the data pages, those that went (came) compressed: `compressed_pages` times 4096 bytes
     * became `compressed_bytes`.
     */
    uint64_t compressed_pages;
    /** What the compressed pages became, in bytes. */
    uint64_t compressed_bytes;
    /** Since the start. */
    uint64_t elapsed_ns;
    /** Bytes a second over the last second or so, everything included. */
    uint64_t throughput;
    /**
     * Bytes a second that the link carries, as measured by what the destination acknowledged;
     * BRANT_UNKNOWN until enough was sent to measure it. `brant_params.switchover_bandwidth` and `switchover_max_bandwidth` do
     * not change it.
     */
    uint64_t bandwidth;
    /**
     * Bytes a second that `expected_downtime_ns` counts with: `brant_params.switchover_bandwidth`, or
     * else `bandwidth`; at most `brant_params.switchover_max_bandwidth`. BRANT_UNKNOWN until one is
     * known. Source only.
     */
    uint64_t switchover_bandwidth;
    /**
     * The time from a message to the destination's answer when nothing else is on its way.
     * BRANT_UNKNOWN until it is measured, at the end of the first pass. Source only.
     */
    uint64_t round_trip_ns;
    /**
     * Pages a second that the guest wrote, as found by syncs that came when all pages of the sync
     * before had been sent. A page that was written many times between two syncs counts once.
     * BRANT_UNKNOWN before the first such sync, so during the whole first pass.
     */
    uint64_t dirty_pages_per_second;
    /**
     * The time until the remaining pages fit the downtime limit, at these rates. BRANT_UNKNOWN
     * while one of the rates is unknown, when the link is not clearly faster than the guest, and
     * after a failure.
     */
    uint64_t time_left_ns;
    /**
     * The downtime if the switchover came now: everything from the call of `pause` to the
     * destination's word that the guest runs. The VMMs' operations and the size of the device state
     * count as `brant_params` states them (`expected_pause_us` and so on), and as zero when nothing
     * was stated or measured. BRANT_UNKNOWN before the first pass, and until a bandwidth is
     * measured, `brant_params.switchover_bandwidth` states one, or a pass has ended.
     */
    uint64_t expected_downtime_ns;
    /**
     * `expected_downtime_ns` as it was when the guest was about to be paused, to compare with
     * `downtime_ns`. 0 before. It does not change afterwards. BRANT_UNKNOWN where the guest was switched
     * to postcopy before anything was measured. Its parts follow; the part that was measured stands in
     * brackets.
     */
    uint64_t promised_downtime_ns;
    /** Of the promise: the VMM's `pause` (`pause_ns`). */
    uint64_t promised_pause_ns;
    /** Of the promise: the harvests of all logs (`last_sync_ns`). */
    uint64_t promised_sync_ns;
    /** Of the promise: the VMM's `save` (`save_ns`). */
    uint64_t promised_save_ns;
    /** Of the promise: sending the last pages (`memory_ns`). */
    uint64_t promised_memory_ns;
    /** Of the promise: sending the device state (`state_sent_ns`). */
    uint64_t promised_state_ns;
    /** Of the promise: the destination's `load` (`load_ns`). */
    uint64_t promised_load_ns;
    /** Of the promise: the waits for the destination's answers (`round_trips_ns`). */
    uint64_t promised_round_trips_ns;
    /** Of the promise: the VMM's `release` (`release_ns`). */
    uint64_t promised_release_ns;
    /** Of the promise: the destination's `run` (`run_ns`). */
    uint64_t promised_run_ns;
    /**
     * How long the guest stood still: from the call of `pause` to the destination's word that the
     * guest runs, or else to the return of `resume`. 0 before. When the guest still stands
     * (unanswered, or not resumed), the time ends when that was known.
     */
    uint64_t downtime_ns;
    /** Of the downtime: the VMM's `pause`. */
    uint64_t pause_ns;
    /** Of the downtime: the VMM's `save`. */
    uint64_t save_ns;
    /** Of the downtime: the harvests of all logs. */
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
    /**
     * Destination: computing checksums of its memory, before `load` (told to the source); 0 unless the
     * migration is verified (`brant_params.verify`). No promise counts with it.
     */
    uint64_t digest_ns;
    /** Destination: the VMM's `run` (told to the source). */
    uint64_t run_ns;
    /**
     * Of the downtime: how long the last pages were on the link. The time from the first of them to
     * the destination's READY, less `load_ns`, `digest_ns` and a round trip, is divided between pages
     * and device state by their bytes. Source only.
     */
    uint64_t memory_ns;
    /** Of the downtime: how long the device state was on the link. Source only. */
    uint64_t state_sent_ns;
    /**
     * Of the downtime: the two round trips that the answers READY and RUNNING took. Source only.
     */
    uint64_t round_trips_ns;
    /**
     * How much longer than the downtime limit the guest stood still, after a migration that
     * completed; 0 when the limit was kept. A BRANT_EVENT_DOWNTIME says which parts took longer than
     * promised. Source only.
     */
    uint64_t overrun_ns;
    /**
     * Pauses that were aborted because the downtime would have exceeded its limit. The guest ran on
     * after each. At most 3. Source only.
     */
    uint64_t aborted_pauses;
    /** How long the guest stood still in each of these pauses, the first one first. Source only. */
    uint64_t aborted_pause_ns[3];
    /**
     * The downtime limit in use: `brant_params.downtime_limit_ms`, as it was changed since, and as far
     * as the policy has raised it. Source only.
     */
    uint64_t downtime_limit_ns;
    /** The percentage of their time that the policy takes from all vCPUs now. Source only. */
    uint64_t throttle;
    /** How many vCPUs the policy slows by a limit of their own now. Source only. */
    uint64_t limited_vcpus;
    /**
     * BRANT_STALL_*: why the migration makes no progress now. When nothing moves for
     * `brant_policy.stall_ms` in the middle of a pass, this is BRANT_STALL_LINK or
     * BRANT_STALL_DESTINATION until something moves again. Source only.
     */
    uint64_t stall;
    /** Pages sent while the guest was paused. */
    uint64_t last_pages;
    /** Bytes of device state in blobs. */
    uint64_t state_bytes;
    /**
     * Bytes of devices' state (brant_guest_add_device) that were sent (loaded) while the guest ran.
     */
    uint64_t device_running_bytes;
    /** Bytes of devices' state that were sent (loaded) after the pause. */
    uint64_t device_stopped_bytes;
    /** Bytes of devices' state that are not sent, as the devices last said. Source only. */
    uint64_t device_left_bytes;
    /** How long callbacks have read (loaded) devices' state. */
    uint64_t device_time_ns;
    /** Of the downtime: reading devices' state after the pause, and sending it. Source only. */
    uint64_t device_stopped_ns;
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
     * Of the zero pages, the ballooned ones: the source names them, and neither reads nor sends
     * them. A page that is named again counts again.
     */
    uint64_t ballooned_pages;
    /** Pages that were pending and that free-page hints spared. Source only. */
    uint64_t hinted_pages;
    /**
     * Of the zero pages, those whose contents the VMM has declared lost
     * (brant_guest_mark_poisoned), which are neither read nor sent. A page that is named again
     * counts again. Source only.
     */
    uint64_t poisoned_pages;
    /**
     * Of the data pages, those that were sent again as what had changed in them
     * (`brant_params.delta_cache_bytes`). Source only.
     */
    uint64_t delta_pages;
    /** Bytes that these pages would have taken more if they had been sent whole. Source only. */
    uint64_t delta_saved_bytes;
    /**
     * Pages that were sent again, and whole because the cache did not hold their last version. A
     * page enters the cache when it is sent for the second time, because most pages are sent only
     * once. So the second sending of a page is always a miss. Source only.
     */
    uint64_t delta_missed_pages;
    /** Pages that were sent again, and whole because too much had changed in them. Source only. */
    uint64_t delta_overflowed_pages;
    /**
     * For how long one channel had more pages than it could send while another had none: what
     * several channels lose because each 2 MiB of memory belong to one of them. Divided by
     * `elapsed_ns` it is a share of the migration. Source only; 0 with one channel.
     */
    uint64_t uneven_ns;
    /**
     * Pages that the host was asked to back just before their contents arrived
     * (`brant_params.prefault`). Destination only.
     */
    uint64_t prefaulted_pages;
    /** How often the host could not back pages ahead of their contents. Destination only. */
    uint64_t prefault_failures;
    /**
     * Bytes of pages that the kernel sent from guest memory without a copy
     * (`brant_params.zero_copy`). Source only.
     */
    uint64_t zero_copied_bytes;
    /**
     * Bytes of pages that were to go without a copy and that the kernel copied after all. Source
     * only.
     */
    uint64_t copied_anyway_bytes;
    /**
     * Sends that the kernel refused to make without a copy for want of memory that may be locked
     * (RLIMIT_MEMLOCK, net.core.optmem_max), and that were copied. Source only.
     */
    uint64_t zero_copy_refused;
    /** Whether pages go without a copy now, and why not: BRANT_ZERO_COPY_*. Source only. */
    uint64_t zero_copy;
    /**
     * Pages whose contents at the destination were compared with those here
     * (`brant_params.verify`). Source only.
     */
    uint64_t verified_pages;
    /**
     * Pages that were not compared, because they were sent without being read: ballooned, hinted and
     * poisoned ones, those of a block that was removed meanwhile, and the rest when the comparison
     * ended early. Source only.
     */
    uint64_t unverified_pages;
    /**
     * Of the verified pages, those that differed, and pages of memory that was handed over by
     * descriptor and was written before `run`. Source only.
     */
    uint64_t mismatched_pages;
    /** The block of the first page that differed; BRANT_UNKNOWN when none did. Source only. */
    uint64_t first_mismatch_block;
    /**
     * The first page that differed, counted from the beginning of that block; BRANT_UNKNOWN when none
     * did. Source only.
     */
    uint64_t first_mismatch_page;
    /**
     * For how long the pages were compared, after the downtime. The destination's part of the work is
     * `digest_ns`. Source only.
     */
    uint64_t verify_ns;
    /**
     * Of the data pages, those that brant copied itself: to send them with a checksum, compressed or
     * as a delta, or to keep them for later deltas. None of these can go without a copy. Source
     * only.
     */
    uint64_t encoded_pages;
    /**
     * Postcopy: pages that have not arrived since the switch; at the source, that were not acknowledged.
     * 0 when the switch was dropped or failed. Tells the present.
     */
    uint64_t missing_pages;
    /**
     * Postcopy: pages that arrived because somebody at the destination waited for them; at the source,
     * those that were acknowledged on the urgent connection.
     */
    uint64_t urgent_pages;
    /**
     * Postcopy: pages that arrived after the switch before anybody waited for them; at the source, those
     * that were acknowledged on all other connections.
     */
    uint64_t bulk_pages;
    /**
     * Postcopy: page faults of the guest on memory that was not here. A fault that the kernel tells of
     * twice counts twice. Destination only.
     */
    uint64_t faults;
    /** Postcopy: threads that wait for a page now. Tells the present. Destination only. */
    uint64_t fault_waiting;
    /**
     * Postcopy: half of the waits for a page were no longer, to an eighth. May fall. Destination only.
     */
    uint64_t fault_p50_ns;
    /**
     * Postcopy: 99 of 100 waits for a page were no longer, to an eighth. May fall. Destination only.
     */
    uint64_t fault_p99_ns;
    /** Postcopy: the longest wait for a page that has ended. Destination only. */
    uint64_t fault_max_ns;
    /**
     * Postcopy: how long threads have waited for pages, the sum over all threads
     * (`brant_incoming_get_blocked` has each). Destination only.
     */
    uint64_t fault_blocked_ns;
    /**
     * Postcopy: faults on pages that were not missing, which were answered here. Destination only.
     */
    uint64_t local_faults;
    /** Postcopy: pages that were given up (`brant_incoming_give_up`). Destination only. */
    uint64_t lost_pages;
    /**
     * Postcopy: requests of the destination for pages that its guest waited for. A request may name
     * several runs of pages. Source only.
     */
    uint64_t requests;
    /** Postcopy: pages in these requests. Some of them were on their way already. Source only. */
    uint64_t requested_pages;
    /**
     * Postcopy: how often the migration went on over new connections. At the source a recovery counts
     * once a page has arrived over them, or the session is complete; at the destination once both
     * sides have agreed on them.
     */
    uint64_t recoveries;
} brant_stats;

/**
 * In `brant_stats.zero_copy`, beside BRANT_ZERO_COPY_OFF (it was not asked for) and
 * BRANT_ZERO_COPY_ON: the kernel cannot on this kind of connection.
 */
#define BRANT_ZERO_COPY_UNSUPPORTED 2
/**
 * In `brant_stats.zero_copy`: the kernel copied each time all the same, so pages are copied at
 * once.
 */
#define BRANT_ZERO_COPY_COPIED 3
/** In `brant_stats.zero_copy`: not one send's memory may be locked. */
#define BRANT_ZERO_COPY_LIMIT 4
/**
 * In `brant_stats.zero_copy`: nothing can go without a copy, and so far nothing has, because pages
 * travel with a checksum, compressed or as deltas (`encoded_pages`). With checksums that stays so.
 * With compression, the first pages that are not worth compressing turn this into
 * BRANT_ZERO_COPY_ON.
 */
#define BRANT_ZERO_COPY_ENCODED 5

/** A channel: there is no connection yet, or the migration is over. */
#define BRANT_LANE_CLOSED 0
/** A channel: everything that was given to it is done and acknowledged. */
#define BRANT_LANE_IDLE 1
/** A channel: it has something to do, or waits for its peer. */
#define BRANT_LANE_BUSY 2

/**
 * The figures of one channel of a migration, and of the thread that sends or receives on it. Times
 * are nanoseconds, sizes bytes, pages 4 KiB. `state`, `unacknowledged_pages`, `queued_pages` and
 * `silence_ns` tell the present and may fall; all others only grow.
 *
 * At the source the migration's thread brings the figures of all channels up to date. While that
 * thread waits for room in a connection, the figures stay as they were before the wait. Example: the
 * destination's process is stopped. A channel is BRANT_LANE_BUSY, and its `silence_ns` and
 * `send_wait_ns` do not grow until the wait ends. At the destination the thread of each channel brings
 * the figures of that channel up to date after each record.
 */
typedef struct brant_lane_stats {
    /** sizeof(brant_lane_stats). */
    size_t size;
    /** BRANT_LANE_*. */
    uint32_t state;
    /** 0. */
    uint32_t reserved;
    /** Bytes that went over the connection, headers included. */
    uint64_t wire_bytes;
    /** Pages sent (received) with their contents. */
    uint64_t data_pages;
    /** Pages sent (received) as zero, without contents. */
    uint64_t zero_pages;
    /** Pages sent that the destination has not acknowledged. Source only. */
    uint64_t unacknowledged_pages;
    /** Pages that wait for the channel. Source only; 0 when there is one channel. */
    uint64_t queued_pages;
    /**
     * For how long the other channels waited because as many pages waited for this one as may wait.
     * Source only; 0 on channel 0.
     */
    uint64_t queue_wait_ns;
    /** For how long the connection had no room. Source only. */
    uint64_t send_wait_ns;
    /**
     * For how long the channel had nothing to do. Source: 0 on channel 0. Destination: for how long
     * it waited for bytes.
     */
    uint64_t idle_ns;
    /**
     * For how long the destination has had something to acknowledge and has acknowledged nothing;
     * 0 when it has nothing. Source only.
     */
    uint64_t silence_ns;
} brant_lane_stats;

/**
 * A forecast of a migration: whether it will converge and what it will take. It assumes that guest
 * and link go on as they were seen last. Example: 64 GiB over 10 Gb/s take 55 s. Meanwhile the guest
 * writes 6 GiB of them again, so a second pass takes 5 s and a third one less. The forecast walks
 * through these passes beforehand.
 *
 * When the migration will not converge, `limit_us`, `bandwidth` and `throttle` say what would make
 * it converge: the smallest of each, the two others being as they are. They are 0 when no value of
 * this one alone is enough, and when the migration converges as it is.
 *
 * Experimental: what is forecast, and from which figures, may change.
 */
typedef struct brant_forecast {
    /** sizeof(brant_forecast). */
    size_t size;
    /** 1 when the migration ends with a switchover, else 0. */
    uint32_t converges;
    /** Passes over memory in all, from the first. */
    uint32_t passes;
    /** Microseconds from the migration's start to its end. */
    uint64_t time_us;
    /** Bytes sent in all. What is to come counts as compressed as what was sent. */
    uint64_t bytes;
    /**
     * Microseconds that the guest will stand still. When the migration does not converge: what they
     * would be after so many passes.
     */
    uint64_t downtime_us;
    /** The lowest downtime limit with which the migration converges, microseconds. */
    uint64_t limit_us;
    /** The lowest bandwidth with which the migration converges, bytes a second. */
    uint64_t bandwidth;
    /**
     * The lowest throttle of all vCPUs with which the migration converges, in percent of the time
     * that they run now.
     */
    uint32_t throttle;
    /**
     * 1 as long as no sync has shown what the guest writes: it then counts as writing nothing, so
     * passes, time, bytes and downtime are the least that they can be, and `converges` is a guess.
     * Without a policy that slows the guest, that is the whole first pass. Else 0.
     */
    uint32_t guessed;
} brant_forecast;

/**
 * The version of the lines of `brant_outgoing_record`, which their first line has. A line that means
 * something else gets another version; new fields and kinds of lines do not.
 */
#define BRANT_RECORD_VERSION 1

/** What became of a recording. */
typedef struct brant_recorded {
    /** sizeof(brant_recorded). */
    size_t size;
    /** Lines that were written. */
    uint64_t lines;
    /** Their bytes. */
    uint64_t bytes;
    /** Lines that were dropped, because the descriptor took nothing for too long. */
    uint64_t dropped;
} brant_recorded;

/**
 * Records the migration as JSON lines on `fd`: a file, a pipe, a socket, whatever is open for writing.
 * `python -m brant plot` and `timeline` show such a file. Call it before the start or at any time after
 * it; what happened before is not in the lines, but for the figures. One recording at a time:
 * BRANT_E_EXISTS.
 *
 * `fd` stays the VMM's: brant duplicates it, and the VMM may close its own when the call has returned. The
 * duplicate is closed when the recording ends, so that a reader of a pipe finds the end; its blocking mode
 * is not changed. `interval_ms` is the time between two looks at the figures, 10 to 3600000, or 0 for 50;
 * figures that have not changed are not written again. `what` is a text of at most 1024 bytes for the
 * first line, or NULL. BRANT_E_INVALID for a descriptor that is not open for writing, an interval out of
 * range and a longer text.
 *
 * A thread of brant's (BRANT_ROLE_RECORD) writes. It never holds up the migration: while nobody reads a
 * pipe, up to 256 KiB of lines wait, and further ones are dropped and counted. A descriptor that fails, for
 * example a pipe whose reader is gone, ends the recording and nothing else; SIGPIPE is not raised in any
 * thread of the VMM's. The recording ends with the migration, by `brant_outgoing_end_record`, or with
 * `brant_outgoing_free`. A terminal, and a pipe that others write to as well, can hold up brant's thread,
 * and with it these two calls: give the recording a pipe of its own.
 *
 * Each line is one object. `time_ns` counts from the call, and `kind` says what it is:
 *
 * - "begin", the first line: `version` (BRANT_RECORD_VERSION), `library`, `what`, `interval_ns`;
 * - "stats": the figures of `brant_outgoing_get_stats_json`, among them `state`, `throughput`,
 *   `dirty_pages_per_second`, `remaining_bytes`, `throttle`, `expected_downtime_ns`, and each part of the
 *   downtime, promised and measured; `lanes`, a list of the channels' figures by the names of
 *   brant_lane_stats; and `dropped`, how many lines were dropped so far;
 * - "event": `event`, the kind in lower case as in BRANT_EVENT_*, and `message`;
 * - "end", the last line of a migration that is over: `error`, 0 or a BRANT_E_* code, `message`, `dropped`.
 *
 * A reader ignores fields and kinds that it does not know. Any thread, also inside callbacks.
 *
 * Experimental: fields may be added.
 */
int32_t brant_outgoing_record(struct brant_outgoing *outgoing,
                              int32_t fd,
                              uint64_t interval_ms,
                              const char *what,
                              struct brant_error **error);

/**
 * Ends the recording when all that happened is written, and closes the duplicate of its descriptor. While
 * nobody reads a pipe, the call waits a second for it, and then drops the rest. `recorded` (may be NULL)
 * gets what became of the recording, also when it failed. Returns 0 for a recording that has ended with its
 * migration or by this call, else why it ended before: BRANT_E_IO when nobody reads any more, or the code
 * of a write that failed. BRANT_E_STATE when nothing is recorded, BRANT_E_CALLBACK inside one of the
 * migration's own callbacks. Any thread; one call ends one recording.
 *
 * Experimental: as `brant_outgoing_record`.
 */
int32_t brant_outgoing_end_record(struct brant_outgoing *outgoing,
                                  struct brant_recorded *recorded,
                                  struct brant_error **error);

/**
 * As `brant_outgoing_record`, with the figures of the destination.
 *
 * Experimental: as `brant_outgoing_record`.
 */
int32_t brant_incoming_record(struct brant_incoming *incoming,
                              int32_t fd,
                              uint64_t interval_ms,
                              const char *what,
                              struct brant_error **error);

/**
 * As `brant_outgoing_end_record`.
 *
 * Experimental: as `brant_outgoing_record`.
 */
int32_t brant_incoming_end_record(struct brant_incoming *incoming,
                                  struct brant_recorded *recorded,
                                  struct brant_error **error);

/* =============================================================================================
 * Rate: how fast a guest dirties its memory, without a migration
 * ============================================================================================= */

/**
 * Measures the dirty rate of a tracker's guest; any number of times, one at a time.
 *
 * Threads: any, several at once. `brant_rate_cancel` and `brant_rate_finish` end a measurement
 * that another thread makes. `brant_rate_free` is the last call: all others on it have returned
 * before it begins. The tracker may be freed before the measurement.
 */
typedef struct brant_rate brant_rate;

/**
 * By all logs of the tracker: every page that is written is counted. The guest pays a write fault
 * for each written page, twice in the period. Other consumers of the tracker lose no page by it.
 */
#define BRANT_RATE_BY_LOG 0
/**
 * By the contents of some pages, read at the begin and the end of the period: an estimate, at no
 * cost to the guest. Works with a tracker that has no log. A page that is written with the
 * contents that it already has is not seen.
 */
#define BRANT_RATE_BY_SAMPLING 1

/** What a measurement measures. A field that is 0 has its default. */
typedef struct brant_rate_params {
    /** sizeof(brant_rate_params). */
    size_t size;
    /**
     * The period of the measurement, milliseconds, 10 to 60000; default 1000. The rate depends on
     * the period: see brant_dirty_rate.
     */
    uint64_t period_ms;
    /** BRANT_RATE_BY_*. */
    uint32_t way;
    /**
     * By sampling: how many pages of each GiB are read, 1 to 262144; default 512. At most 16 GiB
     * are read, twice.
     */
    uint32_t samples_per_gib;
} brant_rate_params;

/**
 * A dirty rate: distinct pages of 4 KiB that were written in the period, divided by its seconds. A
 * page that is written many times counts once. So a short period gives about the speed at which
 * the guest writes, and a long period tends to the number of different pages that it writes.
 */
typedef struct brant_dirty_rate {
    /** sizeof(brant_dirty_rate). */
    size_t size;
    /** Distinct pages written in the period, divided by its seconds. */
    uint64_t pages_per_second;
    /**
     * pages_per_second in bytes: what a migration would have to send if it sent each page
     * whole.
     */
    uint64_t bytes_per_second;
    /**
     * How far pages_per_second may be off, up or down. By sampling: half of the interval that
     * holds the true figure in 95 of 100 measurements. By log: the uncertainty of when the
     * period began and ended for each page.
     */
    uint64_t error_pages_per_second;
    /** Distinct pages written in the period: counted, or estimated. */
    uint64_t written_pages;
    /** Nanoseconds: how long the period really was. */
    uint64_t period_ns;
    /**
     * By log: of written_pages, those written in both halves of the period. If these are few, the
     * guest goes on to new pages, and a longer period would find more. If these are nearly all,
     * the guest writes to the same pages again and again, and written_pages is how many they are.
     * BRANT_UNKNOWN by sampling.
     */
    uint64_t rewritten_pages;
    /** By sampling: pages that were read. BRANT_UNKNOWN by log. */
    uint64_t sampled_pages;
    /** By sampling: of those, pages that had changed. BRANT_UNKNOWN by log. */
    uint64_t changed_pages;
    /**
     * By log: 1 when a log failed, so that all its pages were counted, or when a log will deliver
     * some pages only later; else 0.
     */
    uint64_t warnings;
} brant_dirty_rate;

/**
 * Makes a measurement of the guest that `tracker` tracks. `parameters` may be NULL for the
 * defaults. Nothing is measured before `brant_rate_measure`. Free it with `brant_rate_free`.
 */
int32_t brant_rate_new(struct brant_tracker *tracker,
                       const struct brant_rate_params *parameters,
                       struct brant_rate **rate,
                       struct brant_error **error);

/**
 * Frees a measurement; NULL is fine. When another thread measures with it, call brant_rate_cancel,
 * join that thread, then free.
 */
void brant_rate_free(struct brant_rate *rate);

/**
 * Measures, and returns when the period is over (`brant_rate_finish` ends it early). The calling
 * thread waits, and the guest runs on. BRANT_E_CANCELLED after `brant_rate_cancel`; BRANT_E_BUSY
 * while another thread measures with `rate`, and for a guest in BRANT_GUEST_INCOMPLETE. By log the measurement is one more consumer of the
 * tracker (see brant_consumer), also beside a migration. Its start restores the protection of all
 * of the guest's memory, and its three syncs end rounds of free-page hints.
 */
int32_t brant_rate_measure(struct brant_rate *rate,
                           struct brant_dirty_rate *found,
                           struct brant_error **error);

/**
 * Ends the period of the measurement that is in progress: `brant_rate_measure` returns the figures
 * until now. The call does not wait for that. Without a measurement in progress it does nothing.
 */
int32_t brant_rate_finish(const struct brant_rate *rate,
                          struct brant_error **error);

/**
 * Pages a second that each vCPU wrote in the last measurement, where a log can tell vCPUs apart,
 * as KVM's rings do; At most `capacity` rates are put into `rates`, in the order of the numbers
 * that the vCPUs were added with. `*count` gets how many vCPUs are known, 0 when no log can tell
 * them apart. A page that two vCPUs wrote counts for both. A page that is written again after the
 * rings were emptied (when one is a quarter full, and at half of the period) counts again.
 */
int32_t brant_rate_get_vcpus(const struct brant_rate *rate,
                             uint64_t *rates,
                             size_t capacity,
                             size_t *count,
                             struct brant_error **error);

/**
 * Forecasts a migration of the guest by the last measurement, before there is a migration: over a
 * link that carries `bandwidth` bytes a second (not 0), with `parameters` (NULL: the defaults),
 * of which the downtime limit, the caps, the expected times and the total timeout count, and with
 * `policy` (NULL: none; see `brant_outgoing_set_policy`). All of the
 * guest's memory counts as contents that are not compressed. BRANT_E_STATE before the first
 * measurement.
 *
 * A measurement cannot tell what the guest writes in more time than its period. By log the two
 * halves of the period show how the written pages become more with time, and the forecast assumes
 * that they go on like that. So a period about as long as memory takes over the link gives the best
 * forecast. Once the migration runs, ask `brant_outgoing_get_forecast`.
 *
 * Experimental: what is forecast, and from which figures, may change.
 */
int32_t brant_rate_forecast(const struct brant_rate *rate,
                            const struct brant_params *parameters,
                            const struct brant_policy *policy,
                            uint64_t bandwidth,
                            struct brant_forecast *forecast,
                            struct brant_error **error);

/**
 * How far the measurement in progress is, in hundredths of a percent. 0 until the period has
 * begun. From 1 on, writes of the guest are seen. 9900 when the period is over, 10000 when the
 * measurement has succeeded. NULL: 0.
 */
uint64_t brant_rate_progress(const struct brant_rate *rate);

/**
 * Ends the measurement that is in progress, and any later one, with BRANT_E_CANCELLED. The call
 * does not wait for the end.
 */
int32_t brant_rate_cancel(const struct brant_rate *rate,
                          struct brant_error **error);

/* =============================================================================================
 * Images: a guest in a file
 * ============================================================================================= */

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

/** Not started. */
#define BRANT_IMAGE_IDLE 0
/** Save: making the file. Restore: opening it, comparing memory layouts. */
#define BRANT_IMAGE_PREPARING 1
/** Save: writing memory while the guest runs. Merge: writing memory. */
#define BRANT_IMAGE_COPYING 2
/** Save: the guest is paused; its state is saved and the last pages are written. */
#define BRANT_IMAGE_PAUSED 3
/** Save and merge: the last page is written; the file is made whole and gets its name. */
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
    /** BRANT_E_*, why it failed; 0 if it has not failed. */
    int32_t error;
    /**
     * How far it is, in hundredths of a percent, 0 to 10000. Never falls; 10000 once it has
     * completed, and not before.
     */
    uint32_t progress;
    /** The guest's memory. */
    uint64_t total_bytes;
    /**
     * Bytes of the guest's memory that remain to be written or read. May grow while a guest that
     * is saved runs.
     */
    uint64_t remaining_bytes;
    /** Pages with contents; a page that is written again counts again. */
    uint64_t data_pages;
    /**
     * Pages that are zero, ballooned ones included; they take no room in the file. A page that is
     * named again counts again.
     */
    uint64_t zero_pages;
    /** Save, of the zero pages: ballooned ones. */
    uint64_t ballooned_pages;
    /** Save, of the zero pages: those whose contents the VMM has declared lost. */
    uint64_t poisoned_pages;
    /** Bytes of early configuration and device state. */
    uint64_t state_bytes;
    /** The length of the file; zero pages take no room on the disk. 0 until the length is known. */
    uint64_t file_bytes;
    /** Since the start. */
    uint64_t elapsed_ns;
    /**
     * Save: how long the guest stood still, from the call of `pause` to the return of `resume`;
     * BRANT_UNKNOWN before, and when brant did not call both.
     */
    uint64_t downtime_ns;
    /** Restore with `lazy`: pages that a thread waited for. All others were here before. */
    uint64_t urgent_pages;
    /**
     * Restore with `lazy`: pages that are damaged in the image, or could not be read, and that the
     * guest runs without.
     */
    uint64_t lost_pages;
    /**
     * Restore with `lazy`: page faults, those on pages that were here included. Save with
     * BRANT_IMAGE_INSTANT_START: how often a thread waited because it touched a page that the image
     * did not have yet.
     */
    uint64_t faults;
    /**
     * Restore with `lazy`: half of the waits for a page were no longer, to an eighth. 0 without a
     * wait.
     */
    uint64_t fault_p50_ns;
    /** Restore with `lazy`: 99 of 100 waits for a page were no longer, to an eighth. */
    uint64_t fault_p99_ns;
    /** Restore with `lazy`: the longest wait for a page. */
    uint64_t fault_max_ns;
    /**
     * Save with BRANT_IMAGE_INSTANT_START: how long protecting memory took, which is part of
     * `downtime_ns`; BRANT_UNKNOWN before that, and in other saves.
     */
    uint64_t protecting_ns;
    /**
     * Save with BRANT_IMAGE_INSTANT_START, of the data pages: those that were copied because the
     * guest wrote them first, or the pages before them.
     */
    uint64_t copied_pages;
    /**
     * Save with BRANT_IMAGE_INSTANT_START, of the faults: those that waited for a buffer or the disk,
     * because there was no room for a copy.
     */
    uint64_t held_faults;
} brant_image_stats;

/**
 * A save of a guest to a file: its memory as it is at one moment, and the blobs of `early_save`
 * and `save`. The guest runs while most pages are written, and stands still for the last pages.
 * One object is one save. Migrations, saves and restores of one guest exclude each other:
 * BRANT_E_BUSY.
 *
 * The file gets its name when it is whole and on its device. Until then an older file of that name
 * stays. A save that fails or is cancelled leaves no file, and the guest runs on. A process that
 * is killed during a save leaves a file named `.brant-image-` and 16 hexadecimal digits, which
 * nobody reads.
 *
 * Threads: any, several at once. `brant_image_save_cancel` may be called by any number of threads,
 * also while others wait, whose waits it ends. `brant_image_save_free` is the last call: all
 * others on it have returned before it begins. Inside a callback of the same save, waiting and
 * freeing are BRANT_E_CALLBACK, and cancelling only asks.
 */
typedef struct brant_image_save brant_image_save;

/** In `brant_image_save_params.guest`: the guest runs, is paused for the last pages and resumed. */
#define BRANT_IMAGE_RESUME 0
/**
 * In `brant_image_save_params.guest`: the guest runs, is paused for the last pages and stays so.
 * After a failure or a cancel it is resumed. After a success the guest's state is
 * BRANT_GUEST_STANDS: call `brant_guest_runs_here` before the vCPUs run again.
 */
#define BRANT_IMAGE_STAY_PAUSED 1
/**
 * In `brant_image_save_params.guest`: the guest is paused when the save is started and stays so.
 * Neither `pause` nor `resume` is called. Afterwards the guest's state is what it was before,
 * BRANT_GUEST_UNKNOWN or BRANT_GUEST_HERE, and the VMM starts the guest without a word to brant.
 * `kick` may be called from the end of the save on, and must leave a guest standing that the VMM
 * has paused. A guest that was BRANT_GUEST_STANDS or BRANT_GUEST_EMPTY before is
 * BRANT_GUEST_STANDS: call `brant_guest_runs_here` before the vCPUs run again.
 */
#define BRANT_IMAGE_ALREADY_PAUSED 2

/**
 * In `brant_image_save_params.instant`, the default: the image holds the guest as it is at the end
 * of the save. Memory is written while the guest runs, what the guest writes meanwhile is written
 * again, and the guest is paused for the last pages.
 */
#define BRANT_IMAGE_INSTANT_END 0
/**
 * In `brant_image_save_params.instant`: the image holds the guest as it is at the start of the save.
 * The guest is paused while its state is saved and its memory is protected from writes
 * (userfaultfd; Linux 5.19, and 5.7 for private memory), and runs on at once. A page that it writes
 * before the image has it is copied first. With BRANT_IMAGE_RESUME only.
 *
 * Such a save sees writes through the block's own mapping: by vCPUs, by threads of this process,
 * and by the kernel for either. It fails before the pause with BRANT_E_UNSUPPORTED for a tracker
 * with a vhost, VFIO or iommufd log and for a guest with a VFIO or vhost-user device, and with
 * BRANT_E_EXISTS where another userfaultfd watches some of the memory. It is the VMM's duty that
 * nothing else writes guest memory through another mapping or past page tables until the save is
 * over: no other process, no DMA, no O_DIRECT or io_uring read into guest memory. Before guest
 * memory is discarded, call `brant_guest_before_discard`.
 *
 * While such a save is in progress no block is removed (BRANT_E_BUSY). A block that is added after
 * the pause is not in the image.
 */
#define BRANT_IMAGE_INSTANT_START 1

struct brant_image_chain;

/**
 * How a guest is saved. A field that is 0 has its default. A value out of range is
 * BRANT_E_INVALID, with the range in the message.
 */
typedef struct brant_image_save_params {
    /** sizeof(brant_image_save_params). */
    size_t size;
    /**
     * Passes go on until the remaining pages can be written in half of this time; milliseconds, 1
     * to 3600000; default 300. When the guest writes as fast as the disk, it is paused all the
     * same.
     */
    uint64_t downtime_limit_ms;
    /**
     * After so many passes the guest is paused, however many pages remain; 1 to 1000; default
     * 30.
     */
    uint32_t max_passes;
    /** Threads that write; 1 to 64; default 2. */
    uint32_t writers;
    /** BRANT_IMAGE_RESUME, BRANT_IMAGE_STAY_PAUSED or BRANT_IMAGE_ALREADY_PAUSED. */
    uint32_t guest;
    /** BRANT_IMAGE_DIRECT or BRANT_IMAGE_CACHED. */
    uint32_t cache;
    /**
     * Bytes of pages a second that are written while the guest runs, by all threads together; 64
     * KiB/s to 1 TiB/s; default no cap. When the save has paused the guest, the rest is not capped.
     * With BRANT_IMAGE_ALREADY_PAUSED and BRANT_IMAGE_INSTANT_START the cap holds to the end.
     */
    uint64_t max_bandwidth;
    /**
     * With BRANT_IMAGE_INSTANT_START: bytes of memory for copies of pages that the guest writes
     * before the image has them; 1 MiB to 1 TiB; default 64 MiB. At the limit, threads of the guest
     * wait until their pages are read. Each writer has buffers of 4 MiB besides.
     */
    uint64_t max_copy_bytes;
    /** BRANT_IMAGE_INSTANT_END or BRANT_IMAGE_INSTANT_START. */
    uint32_t instant;
    /** 0. */
    uint32_t reserved;
    /**
     * The chain of which the image becomes the next, or NULL: the image holds all of memory. The
     * chain is of the same tracker, else BRANT_E_INVALID. It may be freed while the save is there.
     */
    struct brant_image_chain *chain;
} brant_image_save_params;

/**
 * Makes a save of the guest that `tracker` was made from. The operations of that guest must have
 * `pause` and `resume`, except with BRANT_IMAGE_ALREADY_PAUSED: else BRANT_E_INVALID. `parameters`
 * may be NULL for the defaults. Nothing happens before the start.
 */
int32_t brant_image_save_new(struct brant_tracker *tracker,
                             const struct brant_image_save_params *parameters,
                             struct brant_image_save **save,
                             struct brant_error **error);

/**
 * Cancels a save that is in progress, waits for its end, and frees it; NULL is fine. Returns 0, or
 * BRANT_E_CALLBACK inside one of the save's own callbacks, where nothing is freed.
 */
int32_t brant_image_save_free(struct brant_image_save *save);

/**
 * Starts the save to `path` and returns at once. A regular file at `path` is replaced when the
 * image is whole; anything else at `path` is refused. The image needs room beside the file that it
 * replaces. Only its owner may read and write the image, because it holds all contents of the
 * guest's memory. BRANT_E_BUSY, BRANT_E_STATE or BRANT_E_BLOCKED when the guest cannot be saved
 * now. BRANT_E_INVALID for an empty path.
 */
int32_t brant_image_save_start(struct brant_image_save *save,
                               const char *path,
                               struct brant_error **error);

/**
 * Ends the save and returns when the guest runs on and the file is gone: within 100 ms, unless a
 * callback or a kernel call is in progress; a callback of a device is asked to return
 * (`brant_device.cancel`). Inside one of its own callbacks the call only asks for
 * the end. A save that has ended stays as it is.
 */
int32_t brant_image_save_cancel(struct brant_image_save *save,
                                struct brant_error **error);

/**
 * Waits until the save is over, for at most `timeout_ms` milliseconds (BRANT_NO_LIMIT: for ever;
 * 0: not at all). Returns 0 if the image is whole, has its name and is on its device,
 * BRANT_E_PENDING if the save is still in progress, else the code that says why it failed. After a
 * failure there is no image, and the guest runs on. (If `resume` itself failed, the guest stands
 * still: BRANT_GUEST_STANDS.) A directory that does not exist is BRANT_E_NOT_FOUND. A disk without
 * room is BRANT_E_KERNEL, with the system's words and the place in the file. One failure leaves
 * the image whole and with its name, in place of the older file: the sync of its directory. The
 * error says so; a crash of the host may undo the rename.
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
 * The descriptor stays the save's: do not close it. A negative code if `save` is NULL.
 */
int32_t brant_image_save_event_fd(const struct brant_image_save *save);

/**
 * A restore of a guest from a file that a save made, into a guest whose blocks match by name,
 * length and page size; `early_load` may add blocks. One object is one restore. A file that is
 * damaged, cut off or something else is BRANT_E_IMAGE, with the place in the file, what was
 * expected and what was found. A page with a wrong checksum never reaches guest memory. After a
 * failure no guest is here.
 *
 * Threads: any, several at once. `brant_image_restore_cancel` may be called by any number of
 * threads, also while others wait, whose waits it ends. `brant_image_restore_free` is the last
 * call: all others on it have returned before it begins. Inside a callback of the same restore,
 * waiting and freeing are BRANT_E_CALLBACK, and cancelling only asks.
 */
typedef struct brant_image_restore brant_image_restore;

/**
 * How a guest is restored. A field that is 0 has its default. A value out of range is
 * BRANT_E_INVALID, with the range in the message.
 */
typedef struct brant_image_restore_params {
    /** sizeof(brant_image_restore_params). */
    size_t size;
    /**
     * The most bytes of early configuration and device state that brant takes; 4 KiB to 1 TiB;
     * default 256 MiB.
     */
    uint64_t max_state_bytes;
    /** Threads that read; 1 to 64; default 4. */
    uint32_t readers;
    /** BRANT_IMAGE_DIRECT or BRANT_IMAGE_CACHED. */
    uint32_t cache;
    /**
     * BRANT_IMAGE_RESUME: `run` is called at the end. BRANT_IMAGE_STAY_PAUSED: `run` is not
     * called, and the VMM starts the guest itself, after `brant_guest_runs_here`.
     */
    uint32_t guest;
    /**
     * 0: the guest starts when all of its memory is here. 1: the guest starts at once
     * (BRANT_GUEST_INCOMPLETE), and a thread that touches a page of it waits until the page is here.
     * In the background brant reads ahead through the file. The restore is over when all pages are
     * here; `brant_image_restore_finish` brings them in faster. Needs a userfaultfd that is told of
     * the kernel's own accesses (CAP_SYS_PTRACE, vm.unprivileged_userfaultfd=1, or access to
     * /dev/userfaultfd) and memory that it can watch, which no other userfaultfd watches:
     * BRANT_E_UNSUPPORTED or BRANT_E_EXISTS names the block and the reason, before the first page is
     * touched. `load` and `run` may touch the guest's memory; `thread_start` must not.
     *
     * A page that is damaged in the file, or cannot be read, never becomes wrong memory. When it is
     * found before `run`, the restore fails and no guest is here. When the guest may be running, an
     * access of the page raises SIGBUS, as of memory that the hardware has lost (a vCPU's: in the
     * thread that called KVM_RUN), a BRANT_EVENT_WARNING says so, and the restore fails with
     * BRANT_E_IMAGE, or the code of the failed read, when all other pages are here. The guest's state
     * is then BRANT_GUEST_HERE, and those pages count as declared lost.
     */
    uint32_t lazy;
    /**
     * 1: the VMM trusts the image: nobody cuts it or writes to it as long as this guest exists. The
     * image's file is mapped privately (MAP_PRIVATE, MAP_FIXED) in place of the blocks' memory, and the
     * guest starts at once. The kernel reads a page when it is touched, and nobody checks it: a damaged
     * page is wrong memory, and the access of a page that was cut off raises SIGBUS. Advice that the VMM
     * gave for the memory (madvise, mlock, mbind) ends, and pages that a device had pinned are not the
     * guest's any more. Refused by name before anything is touched: BRANT_E_UNSUPPORTED for blocks of
     * shared memory, of a file or of huge pages, for an image that holds what changed
     * (`brant_image_merge` makes a full one), and for one of older software; BRANT_E_EXISTS for memory
     * that a userfaultfd watches; BRANT_E_INVALID with `lazy`. `data_pages` and `zero_pages` stay 0.
     */
    uint32_t trusted;
    /** 0. */
    uint32_t reserved;
} brant_image_restore_params;

/**
 * Makes a restore into `guest`, whose operations must have `run`: else BRANT_E_INVALID. The
 * operations need `load` too if the image holds device state, and `early_load` if it holds early
 * configuration. `parameters` may be NULL for the defaults. Nothing happens before the start.
 */
int32_t brant_image_restore_new(struct brant_guest *guest,
                                const struct brant_image_restore_params *parameters,
                                struct brant_image_restore **restore,
                                struct brant_error **error);

/**
 * Cancels a restore that is in progress, waits for its end, and frees it; NULL is fine. A guest
 * that runs here runs on: when it was started before its memory was here, the call first brings in
 * the rest, as `brant_image_restore_finish` does. Returns 0, or BRANT_E_CALLBACK inside one of the restore's own
 * callbacks, where nothing is freed.
 */
int32_t brant_image_restore_free(struct brant_image_restore *restore);

/**
 * Starts the restore from the image at `path`, and returns at once. BRANT_E_BUSY or BRANT_E_STATE
 * when another migration, save or restore of the guest is in progress, or when a guest is here.
 * BRANT_E_INVALID for an empty path.
 */
int32_t brant_image_restore_start(struct brant_image_restore *restore,
                                  const char *path,
                                  struct brant_error **error);

/**
 * Ends the restore and returns when its threads have ended: within 100 ms, unless a callback or a
 * kernel call is in progress; a callback of a device is asked to return (`brant_device.cancel`). Inside one of its own callbacks the call only asks for the end. A
 * restore that has ended stays as it is; brant_image_restore_wait says whether the guest runs.
 *
 * When the guest was started before its memory was here (`brant_image_restore_params.lazy`), the
 * pages that are not here are given up, and an access of one ends as after brant_incoming_give_up:
 * SIGBUS in a thread, EFAULT in a system call, in KVM_RUN EFAULT or KVM_EXIT_MMIO at an address of
 * RAM. So cancel such a restore only when nobody needs the guest.
 */
int32_t brant_image_restore_cancel(struct brant_image_restore *restore,
                                   struct brant_error **error);

/**
 * Waits until the restore is over, for at most `timeout_ms` milliseconds (BRANT_NO_LIMIT: for
 * ever; 0: not at all). Returns 0 if the guest runs here (or stands still, with
 * BRANT_IMAGE_STAY_PAUSED), BRANT_E_PENDING if the restore is still in progress, else the code
 * that says why it failed: BRANT_E_NOT_FOUND when there is no file, BRANT_E_IMAGE,
 * BRANT_E_VERSION, BRANT_E_LAYOUT and others. After a
 * failure no guest is here, unless `run` itself failed: BRANT_GUEST_STANDS.
 *
 * With `brant_image_restore_params.lazy` the restore is in progress, and the call BRANT_E_PENDING,
 * until all pages are here, although the guest runs by then. When a page is lost after `run` was
 * called, the restore fails and the guest stays: the guest state is BRANT_GUEST_HERE.
 */
int32_t brant_image_restore_wait(struct brant_image_restore *restore,
                                 uint64_t timeout_ms,
                                 struct brant_error **error);

/**
 * Brings in the rest of a guest that was started before its memory was here
 * (`brant_image_restore_params.lazy`), with all of the restore's readers, and waits as
 * brant_image_restore_wait does. Without this call the rest comes in by one reader, which leaves
 * processor and disk to the pages that the guest waits for. For another restore, and before the
 * guest was started, the call only waits; the hurry then begins with the guest.
 */
int32_t brant_image_restore_finish(struct brant_image_restore *restore,
                                   uint64_t timeout_ms,
                                   struct brant_error **error);

/** Fills in the figures as they are now. Any thread, also inside callbacks. */
int32_t brant_image_restore_get_stats(const struct brant_image_restore *restore,
                                      struct brant_image_stats *stats,
                                      struct brant_error **error);

/**
 * An eventfd that becomes readable when the restore enters another state, for poll; reading it
 * resets it. The descriptor stays the restore's: do not close it. A negative code if `restore` is
 * NULL.
 */
int32_t brant_image_restore_event_fd(const struct brant_image_restore *restore);

/**
 * A chain of images of one guest. The first save with it (`brant_image_save_params.chain`) holds all
 * of the guest's memory, each later one what changed since the one before. All images of a chain lie
 * in one directory. A restore takes the path of any of them, and finds those before by the names that
 * they had when they were made. `brant_image_merge` makes one full image of an image and those before
 * it. A chain has at most 64 images.
 *
 * Each image names the one before by its checksum. Restores, merges and the next save fail with
 * BRANT_E_NOT_FOUND or BRANT_E_IMAGE when an image is missing, changed or another one; the message has
 * the image that was expected and the one that was found. The next save fails with BRANT_E_INVALID
 * for a path of an image of the chain, and with BRANT_E_STATE when a restore or a migration has filled
 * the guest's memory since the last image: make a new chain then. A save that fails loses nothing: the
 * next image holds what changed since the last whole one.
 *
 * The chain is a consumer of the tracker: from the first image on the dirty logs are on, until the
 * chain is freed and no save with it is there. Memory that the VMM discards by itself, and not because
 * the guest gave it to its balloon, must be marked as written, as for a migration.
 *
 * Threads: any, several at once. `brant_image_chain_free` is the last call: all others with the
 * chain, `brant_image_save_new` included, have returned before it begins. The tracker may be freed
 * before.
 */
typedef struct brant_image_chain brant_image_chain;

/**
 * Makes a chain of images of the guest that `tracker` was made from. It has no image yet, and nothing
 * is tracked for it. Free it with `brant_image_chain_free`.
 */
int32_t brant_image_chain_new(struct brant_tracker *tracker,
                              struct brant_image_chain **chain,
                              struct brant_error **error);

/**
 * Frees a chain; NULL is fine. Its images stay and can be restored. No image can be added to them any
 * more; a save with the chain that was made before still can.
 */
void brant_image_chain_free(struct brant_image_chain *chain);

/**
 * A merge of an image and those before it into one full image, as `brant_image_merge` makes it, on a
 * thread of its own. One object is one merge. No guest is needed, and no callback is called: the thread
 * (`brant-snapshot`) has all signals masked.
 *
 * The new file gets its name when it is whole and on its device. Until then an older file of that name
 * stays. A merge that fails or is cancelled leaves no file.
 *
 * Threads: any, several at once. `brant_image_merging_cancel` may be called by any number of threads, also
 * while others wait, whose waits it ends. `brant_image_merging_free` is the last call: all others on it
 * have returned before it begins.
 */
typedef struct brant_image_merging brant_image_merging;

/**
 * How images are merged. A field that is 0 has its default. A value out of range is BRANT_E_INVALID, with
 * the range in the message.
 */
typedef struct brant_image_merge_params {
    /** sizeof(brant_image_merge_params). */
    size_t size;
    /** BRANT_IMAGE_DIRECT or BRANT_IMAGE_CACHED. */
    uint32_t cache;
    /** 0. */
    uint32_t reserved;
} brant_image_merge_params;

/** Makes a merge. `parameters` may be NULL for the defaults. Nothing happens before the start. */
int32_t brant_image_merging_new(const struct brant_image_merge_params *parameters,
                                struct brant_image_merging **merging,
                                struct brant_error **error);

/** Cancels a merge that is in progress, waits for its end, and frees it; NULL is fine. */
void brant_image_merging_free(struct brant_image_merging *merging);

/**
 * Starts to make one full image, which gets the name `to`, of the image at the path `image` and those
 * before it, and returns at once. What is found out about the files is an error of
 * `brant_image_merging_wait`, with the codes of `brant_image_merge`. BRANT_E_STATE for a merge that was
 * started before; BRANT_E_CANCELLED after `brant_image_merging_cancel`; BRANT_E_INVALID for an empty path.
 */
int32_t brant_image_merging_start(struct brant_image_merging *merging,
                                  const char *image,
                                  const char *to,
                                  struct brant_error **error);

/**
 * Ends the merge and returns when its file is gone: within 100 ms, unless a kernel call is in progress. A
 * merge that has ended stays as it is.
 */
int32_t brant_image_merging_cancel(struct brant_image_merging *merging,
                                   struct brant_error **error);

/**
 * Waits until the merge is over, for at most `timeout_ms` milliseconds (BRANT_NO_LIMIT: for ever; 0: not
 * at all). Returns 0 if the new image is whole, has its name and is on its device, BRANT_E_PENDING if the
 * merge is still in progress, else the code that says why it failed: those of `brant_image_merge`, and
 * BRANT_E_CANCELLED.
 */
int32_t brant_image_merging_wait(struct brant_image_merging *merging,
                                 uint64_t timeout_ms,
                                 struct brant_error **error);

/**
 * Fills in the figures as they are now: `state` is BRANT_IMAGE_IDLE, _PREPARING, _COPYING (pages are
 * written), _FINISHING, _COMPLETED or _FAILED; `progress`, the sizes, `data_pages`, `zero_pages` and
 * `elapsed_ns` are those of the merge. All other figures are 0, and times that are unknown are
 * BRANT_UNKNOWN. Any thread.
 */
int32_t brant_image_merging_get_stats(const struct brant_image_merging *merging,
                                      struct brant_image_stats *stats,
                                      struct brant_error **error);

/**
 * An eventfd that becomes readable when the figures have changed, for poll; reading it resets it. The
 * descriptor stays the merge's: do not close it. A negative code if `merging` is NULL.
 */
int32_t brant_image_merging_event_fd(const struct brant_image_merging *merging);

/**
 * Makes one full image, which gets the name `to`, of the image at the path `image` and those before it:
 * the guest at the moment of that image. Needs no guest, and returns when the new image is whole and on
 * its device: all pages are read, checked and written in this call, which nothing can end
 * (`brant_image_merging` can be watched and cancelled). Any thread. `to` may be `image` itself, whose file
 * is replaced; images that hold what changed since are of no use then.
 *
 * BRANT_E_NOT_FOUND, BRANT_E_IMAGE or BRANT_E_VERSION, with the image's path, when an image is not
 * there, is damaged, or is not the one that belongs there; BRANT_E_INVALID when `to` is an image before
 * `image`; BRANT_E_KERNEL for a full disk. There is no new file then.
 */
int32_t brant_image_merge(const char *image,
                          const char *to,
                          struct brant_error **error);

/**
 * Describes the image at `path` as one JSON object, without a guest. Header, index and the file's tables
 * of checksums are read and checked; pages and state are not. The text in `buffer` is NUL-terminated and
 * cut to `capacity` bytes; `*needed` (may be NULL) gets the bytes that the whole text takes, with its NUL. 64 KiB are
 * enough for an image of some hundred blocks and states. Any thread.
 *
 * Sizes are bytes, pages 4 KiB; what is unknown is null. A reader ignores fields that it does not know.
 *
 * - `kind`: "full", or "changes" for an image that holds what changed since the image before; `format`: the
 *   version of the format; `id` and `checksum`: the image's random number and the checksum of its header,
 *   which covers all other checksums, in hexadecimal;
 * - `complete`: whether the file and all images before it are there and belong together; `problem`: why
 *   not, or null; `mappable`: whether a VMM that trusts the image can map it
 *   (`brant_image_restore_params.trusted`);
 * - `file_bytes`; `disk_bytes`: what the file takes on its disk; `memory_bytes`: the guest's memory;
 *   `state_bytes`: the VMM's state;
 * - `blocks`: of each `name`, `bytes`, `page_size`, `rom`, `offset` (in the file), `data_pages` (in the
 *   file), `zero_pages` (holes of the file), `unchanged_pages` (as in the image before);
 * - `states`: of each `kind` ("early", "device" or "state"), `name`, `instance`, `version`, `bytes`;
 * - `parents`: the images before it, the newest first, each with `file` (its name in the same directory),
 *   `found`, `id`, `checksum`, `file_bytes`.
 *
 * BRANT_E_NOT_FOUND when there is no file, BRANT_E_IMAGE for one that is no image, is not whole or is
 * damaged in its header or index, BRANT_E_VERSION for one of a format that this library does not read.
 *
 * Experimental: fields may be added.
 */
int32_t brant_image_describe(const char *path,
                             char *buffer,
                             size_t capacity,
                             size_t *needed,
                             struct brant_error **error);

/* =============================================================================================
 * Bitmaps: dirty bits by themselves
 * ============================================================================================= */

/**
 * A bitmap with a summary level: the cost of walking and merging follows the set bits, not the
 * length. Bit i is bit i % 64 of 64-bit word i / 64, as in KVM's logs.
 *
 * Threads: any, one at a time. `brant_bitmap_free` is the last call on it.
 */
typedef struct brant_bitmap brant_bitmap;

/** The most bits of one bitmap: 2^40. */
#define BRANT_BITMAP_BITS_MAX 1099511627776

/**
 * Makes a bitmap of `bits` bits, 0 to BRANT_BITMAP_BITS_MAX, all clear. Memory is taken as bits
 * are set. Free the bitmap with `brant_bitmap_free`.
 */
int32_t brant_bitmap_new(uint64_t bits,
                         struct brant_bitmap **bitmap,
                         struct brant_error **error);

/** Frees a bitmap; NULL is fine. */
void brant_bitmap_free(struct brant_bitmap *bitmap);

/** How many bits are set. The bitmap keeps this count, so the call costs nothing. 0 for NULL. */
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
 * Sets in `bitmap`, from bit `at` on, the bits that are set in the first `count` bits of `words`
 * (of which (count + 63) / 64 words are read). `at` need not be a multiple of 64. `*changed` (may
 * be NULL) gets how many bits were newly set; the call merges and counts in one pass.
 */
int32_t brant_bitmap_merge_words(struct brant_bitmap *bitmap,
                                 uint64_t at,
                                 const uint64_t *words,
                                 uint64_t count,
                                 uint64_t *changed,
                                 struct brant_error **error);

/**
 * Sets in `bitmap` the bits that are set in `from`, another bitmap of the same length. The cost
 * follows the bits that are set in `from`. `*changed` (may be NULL) gets how many were newly set.
 */
int32_t brant_bitmap_merge(struct brant_bitmap *bitmap,
                           const struct brant_bitmap *from,
                           uint64_t *changed,
                           struct brant_error **error);

/**
 * Finds the first run of set bits at or after `from`. `*first` gets its first bit, and `*count`
 * its length, cut to `longest` (1 or more). Returns 1 if there is a run, 0 if not, or a negative
 * code.
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
