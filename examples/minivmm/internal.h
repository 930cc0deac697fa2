/*
 * The interface between machine.c and its two backends, kvm.c and process.c. No other file includes this.
 */
#ifndef MINIVMM_INTERNAL_H
#define MINIVMM_INTERNAL_H

#include <pthread.h>
#include <stdatomic.h>
#include <time.h>

#include <brant.h>

#include "machine.h"

struct mv_vcpu;

struct mv_backend {
	/* Makes the VM, its slots and its vCPUs. Called once, from mv_machine_new, when the memory is mapped. */
	int (*create)(struct mv_machine *m);
	void (*destroy)(struct mv_machine *m);
	/* Makes a fresh guest: boot code in memory, and every vCPU at its first instruction. */
	int (*boot)(struct mv_machine *m);
	/* NULL for KVM, whose vCPUs are saved and loaded by brant (state.c). */
	long (*save_vcpu)(struct mv_vcpu *v, void *buf, size_t cap);
	int (*load_vcpu)(struct mv_vcpu *v, const void *buf, size_t len);
	/* Runs the guest on the vCPU's thread until it has shut down (mvi_ended). Stands at the gate during a pause. Returns -1
	 * if the vCPU is dead (mvi_dead was called). */
	int (*run)(struct mv_vcpu *v);
};

extern const struct mv_backend mvi_kvm_backend, mvi_process_backend;

struct mv_vcpu {
	struct mv_machine *m;
	unsigned index;
	pthread_t thread;
	bool thread_made;
	bool loaded; /* has a state to run from */
	brant_gate_vcpu *at; /* its place at the gate; used by its own thread */
	bool ended;          /* the gate has said that the guest has shut down */

	/* These under m->lock. */
	uint64_t nudge_seen;
	uint64_t pace_seen;
	uint64_t due_ns;     /* when the next burst may start */
	uint64_t entered_ns; /* when the last burst started */
	unsigned throttle;   /* percent */
	uint64_t owed_ns;    /* rest that the throttle has still to take */

	/* kvm.c */
	int fd;
	struct kvm_run *run;
	size_t run_bytes;
	/* process.c: the state came with this many writes; checked against the memory at the start */
	uint64_t expected_writes;
	bool check_expected;
};

struct mv_machine {
	struct mv_config config;
	const struct mv_backend *backend;
	char call_error[256], dead_error[256];

	unsigned nregions, nslots;
	struct mv_region regions[MV_MAX_REGIONS];
	void *reserved[MV_MAX_REGIONS]; /* the mapping with its guard pages */
	size_t reserved_bytes[MV_MAX_REGIONS];
	struct mv_slot slots[MV_MAX_REGIONS * MV_MAX_REGION_SLOTS];
	uint64_t bytes; /* of all regions */

	/* The layout of guest memory. */
	uint64_t tables_gpa, ntables_pd, ntables_pdpt; /* boot page tables: 1 PML4, then PDPTs, then PDs */
	uint64_t work_gpa, work_pages;

	unsigned nvcpus;
	struct mv_vcpu *vcpus;
	int kvm_fd, vm_fd;
	struct kvm_cpuid2 *cpuid; /* what every vCPU has; NULL for MV_PROCESS */

	/* Where vCPUs stand still during a pause. `paused` is the controlling thread's. */
	brant_gate *gate;
	bool started, paused;

	pthread_mutex_t lock;
	pthread_cond_t ctl_cond; /* the controlling thread waits for progress */
	bool locks_made;
	atomic_bool dead; /* a vCPU thread failed */
	unsigned watchers; /* controlling threads that want to hear of every burst */
	uint64_t nudge;    /* raised to make vCPUs look at their mailboxes */
	uint64_t pace;     /* raised when the rate changes */
	double rate;
};

/* Keeps the text for mv_error. Returns -1. */
int mvi_error(struct mv_machine *m, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* mvi_error for a vCPU thread that cannot go on. */
int mvi_dead(struct mv_vcpu *v, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
uint64_t mvi_record_gpa(const struct mv_machine *m, unsigned vcpu);

/* The guest asks what to do next: mvi_pace waits out pace and throttle, and returns how many pages to write (0: look at the
 * mailbox). It returns at once when the vCPU is wanted at the gate. mvi_answer is called with that number, where the vCPU
 * may write guest memory. */
uint32_t mvi_pace(struct mv_vcpu *v);
void mvi_answer(struct mv_vcpu *v, uint32_t pages);

static inline uint64_t mvi_mailbox_gpa(unsigned vcpu)
{
	return GV_VCPU_GPA + (uint64_t)vcpu * GV_VCPU_PAGES * GV_PAGE;
}

static inline struct gv_mailbox *mvi_mailbox(struct mv_machine *m, unsigned vcpu)
{
	return mv_host(m, mvi_mailbox_gpa(vcpu), GV_PAGE);
}

#endif
