/*
 * minivmm: a small VMM around a real guest, made to be migrated. It owns guest memory, vCPU threads, pause and resume:
 * what any VMM has before it can migrate. The state of KVM's vCPUs is saved and loaded by brant (state.c). It knows nothing of migration itself; migrate.c
 * ties it to an engine through the functions and the hooks below.
 *
 * Two kinds of guest behind one interface:
 *   MV_KVM      an x86-64 guest under /dev/kvm (kvm.c)
 *   MV_PROCESS  the same workload as threads of this process, on plain memory, for machines without KVM (process.c)
 *
 * Threads. A machine has one controlling thread at a time: the caller of the functions here. Safe from any thread at
 * any time between mv_start and mv_destroy: mv_kick, mv_set_rate, mv_set_throttle, mv_counters, mv_read, mv_write,
 * mv_host, mv_regions, mv_slots, mv_vm_fd, mv_vcpu_fd. Hooks run on vCPU threads (and `mark` on whichever thread
 * called mv_write) and must not call mv_pause, mv_resume, mv_kick or mv_destroy. vCPUs stand still at a gate of brant's
 * (docs/gate.md): mv_pause is a pause of its user; a migration's own pause goes by the gate too, once the guest uses it.
 *
 * Functions returning int give 0 or a positive count, or -1 with a text in mv_error. Nothing is ever printed.
 *
 * The process must be able to spare one real-time signal (mv_config.kick_signal): the gate installs a handler for it that does
 * nothing, unless there is one.
 */
#ifndef MINIVMM_MACHINE_H
#define MINIVMM_MACHINE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "guest/abi.h"

#define MV_MAX_REGIONS 64
#define MV_MAX_REGION_SLOTS 8
#define MV_MAX_VCPUS 512
#define MV_PAGE 4096u
/* Room for the result of any mv_save_vcpu. */
#define MV_VCPU_STATE_MAX 64u

enum mv_kind { MV_KVM = 0, MV_PROCESS = 1 };

/* One RAM block. Regions follow each other in guest memory without gaps, in the given order. In host memory they lie
 * apart, with unmapped pages on both sides, so that an access beyond the end of a block crashes. */
struct mv_region_config {
	const char *name; /* NULL: "ram", "ram1", "ram2", ... */
	uint64_t bytes;   /* a multiple of 4 KiB */
	/* How the block is divided into KVM memory slots, in order: multiples of 4 KiB. The last may be 0 for the rest.
	 * nslots 0: one slot. */
	unsigned nslots;
	uint64_t slot_bytes[MV_MAX_REGION_SLOTS];
	bool memfd; /* shared memory with an fd; otherwise private and anonymous */
};

/* Functions that the machine calls. They get `opaque`. Any of them may be NULL. */
struct mv_hooks {
	void *opaque;
	/* Guest memory was written by somebody whom the dirty log does not see: the VMM (MV_KVM), or anyone (MV_PROCESS).
	 * Always called after the write. No vCPU is ever paused between a write and its mark. */
	void (*mark)(void *opaque, uint64_t gpa, uint64_t len);
	/* KVM_CREATE_VM is done, and there are no slots and no vCPUs yet. A dirty ring can only be enabled now. Returns 0 or
	 * -1. */
	int (*vm_created)(void *opaque, int vm_fd);
	/* A vCPU came out with KVM_EXIT_DIRTY_RING_FULL, and enters again when this returns. Returns 0, or -1 to fail the
	 * vCPU. */
	int (*dirty_ring_full)(void *opaque, unsigned vcpu);
};

struct mv_config {
	enum mv_kind kind;
	unsigned vcpus;        /* 0 = 1 */
	uint64_t memory_bytes; /* of the default region, if nregions is 0; 0 = 64 MiB */
	unsigned nregions;
	struct mv_region_config regions[MV_MAX_REGIONS];
	bool memfd;      /* the default region is a memfd */
	bool huge_pages; /* allow transparent huge pages (MADV_HUGEPAGE); otherwise they are switched off */

	enum gv_workload workload;
	double rate;           /* page writes per second, all vCPUs together; 0 = flat out */
	unsigned hot_permille; /* size of the hot set of GV_HOT and GV_MIXED; 0 = 50 (5 %) */
	unsigned fill_percent; /* share of the work area filled with incompressible bytes before the start, in scattered
	                        * groups of 16 pages. The rest is never touched by the VMM. */
	uint64_t seed;

	/* The memory and the vCPUs come from another machine with the same vcpus and regions. This machine writes nothing to
	 * the memory, and mv_start needs every vCPU to be loaded first. */
	bool incoming;

	int kick_signal; /* 0 = SIGRTMIN + 4 */
	struct mv_hooks hooks;
};

/* A block as it was made. */
struct mv_region {
	char name[32];
	uint64_t gpa, bytes;
	void *host;
	int fd; /* -1 = private anonymous memory. The block is the whole file, from offset 0. */
};

/* A KVM memory slot as registered (MV_PROCESS: as it would be registered). */
struct mv_slot {
	uint32_t id;     /* as in struct kvm_userspace_memory_region.slot */
	uint32_t flags;  /* at registration: 0, no dirty log */
	unsigned region; /* index into mv_regions */
	uint64_t offset; /* in the region */
	uint64_t bytes, gpa;
	void *host;
};

struct mv_counters {
	uint64_t writes, loops, bursts;
	uint64_t device_errors; /* VMM writes that the guest found missing: must stay 0 */
};

struct mv_verify {
	uint64_t written;   /* pages the guest has written, by its records */
	uint64_t in_flight; /* pages half way through a write; at most one a vCPU is tolerated */
	uint64_t bad;       /* pages (or device pages) that do not hold what they must */
	uint64_t first_bad_gpa;
};

struct mv_machine;
struct brant_gate;

/* Returns 0, or -1 with the reason in `why` that MV_KVM cannot be used here. */
int mv_kvm_available(char *why, size_t why_len);

/* Returns NULL on failure, with the reason in `err`. The configuration is copied. No thread runs yet. */
struct mv_machine *mv_machine_new(const struct mv_config *config, char *err, size_t err_len);
/* Stops and joins all vCPU threads, closes, unmaps. NULL is fine. */
void mv_destroy(struct mv_machine *m);
/* The first failure of a vCPU thread if there was one, else the reason of the last failed call. "" for none. */
const char *mv_error(struct mv_machine *m);

/* Creates the vCPU threads: they wait at the gate until it is opened. An incoming machine must have been loaded. */
int mv_make_threads(struct mv_machine *m);
/* The same, and opens the gate: they run at once. */
int mv_start(struct mv_machine *m);
/* Where the vCPUs stand still. */
struct brant_gate *mv_gate(struct mv_machine *m);
/* Returns when every vCPU is out of KVM_RUN with its pending I/O retired, and no write lacks its mark. From then on
 * guest memory and vCPU state do not change. Returns -1 if a vCPU thread had died; the others are paused all the
 * same. */
int mv_pause(struct mv_machine *m);
int mv_resume(struct mv_machine *m);
/* Makes every vCPU leave KVM_RUN once and go on. Returns when each has left, or was outside. With page-modification
 * logging in hardware the kernel fills a dirty ring only at such an exit. */
int mv_kick(struct mv_machine *m);
bool mv_failed(struct mv_machine *m);

int mv_kvm_fd(struct mv_machine *m);                /* -1 for MV_PROCESS */
struct kvm_cpuid2;
const struct kvm_cpuid2 *mv_cpuid(struct mv_machine *m); /* what every vCPU has; NULL for MV_PROCESS */
int mv_vm_fd(struct mv_machine *m);                 /* -1 for MV_PROCESS */
int mv_vcpu_fd(struct mv_machine *m, unsigned vcpu); /* -1 for MV_PROCESS */
unsigned mv_vcpu_count(struct mv_machine *m);
const struct mv_region *mv_regions(struct mv_machine *m, unsigned *n);
const struct mv_slot *mv_slots(struct mv_machine *m, unsigned *n);

/* Maps part of a file over the whole region `name`, shared, in place of its memory. An incoming machine only, before it
 * runs. Returns the region's address, or NULL. */
void *mv_replace_memory(struct mv_machine *m, const char *name, int fd, uint64_t offset, uint64_t bytes);

/* MV_PROCESS alone; a KVM machine's state is saved and loaded by state.h. The machine must not be running. Saving
 * returns the number of bytes (at most MV_VCPU_STATE_MAX). */
long mv_save_vcpu(struct mv_machine *m, unsigned vcpu, void *buf, size_t cap);
int mv_load_vcpu(struct mv_machine *m, unsigned vcpu, const void *buf, size_t len);
/* Whether no vCPU runs: 0, or -1 with an error. */
int mv_need_still(struct mv_machine *m, unsigned vcpu);
/* A vCPU of KVM's has got its state, and may run from it. */
void mv_vcpu_loaded(struct mv_machine *m, unsigned vcpu);

/* Page writes per second of the whole guest; 0 = flat out. Takes effect at once. */
void mv_set_rate(struct mv_machine *m, double pages_per_second);
/* Keeps a vCPU (or all: vcpu = -1) off the processor for `percent` (0..99) of the time, between its bursts. */
void mv_set_throttle(struct mv_machine *m, int vcpu, unsigned percent);
/* Changes the workload of a running or paused guest, by a write of the VMM's to the mailboxes, which is marked. */
int mv_set_workload(struct mv_machine *m, enum gv_workload workload);

/* vcpu = -1: the sum over all. The guest counts in its own memory, so the counters go on after a migration. */
void mv_counters(struct mv_machine *m, int vcpu, struct mv_counters *out);
/* Waits until the guest has made at least n more page writes. Returns -1 on a timeout or a dead vCPU. */
int mv_wait_writes(struct mv_machine *m, uint64_t n, unsigned timeout_ms);

/* Lets every vCPU check its own pages against its records. The guest must be running. *bad gets the number of bad
 * pages. */
int mv_self_check(struct mv_machine *m, unsigned timeout_ms, uint64_t *bad);
/* The same check from outside, for a guest that stands still. Returns 0 if all is well, or -1: see *out. */
int mv_verify_host(struct mv_machine *m, struct mv_verify *out);

/* A vCPU's partition and the guest's own record of it. record[i] is the sequence number of the last write to page i,
 * 0 for none. Copies at most `n` entries to `record` (NULL: none), and returns the number of pages. In a guest that
 * is not stopped they change meanwhile. */
uint64_t mv_record(struct mv_machine *m, unsigned vcpu, uint64_t *first_page_gpa, uint64_t *record, uint64_t n);

/* The host address of guest memory, valid for len bytes; NULL if these leave the region. */
void *mv_host(struct mv_machine *m, uint64_t gpa, uint64_t len);
/* Across regions. mv_write marks its write afterwards. Returns -1 beyond guest memory. */
int mv_read(struct mv_machine *m, uint64_t gpa, void *buf, uint64_t len);
int mv_write(struct mv_machine *m, uint64_t gpa, const void *buf, uint64_t len);
uint64_t mv_memory_bytes(struct mv_machine *m);

#endif
