/*
 * The interface between machine.c and its two backends, kvm.c and process.c. No other file includes this.
 */
#ifndef MINIVMM_INTERNAL_H
#define MINIVMM_INTERNAL_H

#include <pthread.h>
#include <stdatomic.h>
#include <time.h>

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
	/* Runs the guest on the vCPU's thread until m->stop, with I/O retired. Returns -1 if the vCPU is dead (mvi_fail was
	 * called). */
	int (*run)(struct mv_vcpu *v);
	/* Makes a vCPU come out that is in the guest or just about to enter it. m->lock is held. */
	void (*kick)(struct mv_vcpu *v);
	/* Undoes what kick did, before the vCPU goes on. m->lock is held. */
	void (*unkick)(struct mv_vcpu *v);
};

extern const struct mv_backend mvi_kvm_backend, mvi_process_backend;

enum mv_want { MV_WANT_PAUSED, MV_WANT_RUNNING, MV_WANT_EXIT };

struct mv_vcpu {
	struct mv_machine *m;
	unsigned index;
	pthread_t thread;
	bool thread_made;
	bool loaded; /* has a state to run from */

	/* These two under m->lock. */
	bool parked;  /* out of the guest, waiting for mv_resume */
	bool outside; /* parked, or waiting in mvi_next_burst: not in KVM_RUN */
	uint64_t kicks_asked, kicks_seen;
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

	pthread_mutex_t lock;
	pthread_cond_t vcpu_cond; /* vCPU threads wait: resume, pace, nudge */
	pthread_cond_t ctl_cond;  /* the controlling thread waits: parked, progress */
	bool locks_made, started;
	enum mv_want want;
	atomic_bool stop; /* want != RUNNING; read without the lock */
	atomic_bool dead; /* a vCPU thread failed */
	unsigned watchers; /* controlling threads that want to hear of every burst */
	uint64_t nudge;    /* raised to make waiting vCPUs look at their mailboxes */
	uint64_t pace;     /* raised when the rate changes */
	double rate;
};

/* Keeps the text for mv_error. Returns -1. */
int mvi_error(struct mv_machine *m, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* mvi_error for a vCPU thread that cannot go on. */
int mvi_dead(struct mv_vcpu *v, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
int mvi_kick_signal(const struct mv_machine *m);

uint64_t mvi_record_gpa(const struct mv_machine *m, unsigned vcpu);

/* The guest asks what to do next. Waits out pace and throttle, then returns how many pages to write (0: look at the
 * mailbox). Returns promptly when the machine has to stop. */
uint32_t mvi_next_burst(struct mv_vcpu *v);
/* Called after a kick that was no pause. */
void mvi_kick_seen(struct mv_vcpu *v);

static inline bool mvi_stopping(struct mv_machine *m)
{
	return atomic_load_explicit(&m->stop, memory_order_acquire);
}

static inline uint64_t mvi_mailbox_gpa(unsigned vcpu)
{
	return GV_VCPU_GPA + (uint64_t)vcpu * GV_VCPU_PAGES * GV_PAGE;
}

static inline struct gv_mailbox *mvi_mailbox(struct mv_machine *m, unsigned vcpu)
{
	return mv_host(m, mvi_mailbox_gpa(vcpu), GV_PAGE);
}

#endif
