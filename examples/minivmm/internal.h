/*
 * What machine.c shares with its two backends, kvm.c and process.c. Nobody else includes it.
 */
#ifndef MINIVMM_INTERNAL_H
#define MINIVMM_INTERNAL_H

#include <pthread.h>
#include <stdatomic.h>
#include <time.h>

#include "machine.h"

struct mv_vcpu;

struct mv_backend {
	/* VM, slots and vCPUs. Called once, from mv_machine_new, with memory mapped. */
	int (*create)(struct mv_machine *m);
	void (*destroy)(struct mv_machine *m);
	/* A fresh guest: boot code into memory, every vCPU to its first instruction. */
	int (*boot)(struct mv_machine *m);
	long (*save_vcpu)(struct mv_vcpu *v, void *buf, size_t cap);
	int (*load_vcpu)(struct mv_vcpu *v, const void *buf, size_t len);
	/* On the vCPU's thread: run the guest until m->stop, with I/O retired; -1 = dead (mvi_fail was called). */
	int (*run)(struct mv_vcpu *v);
	/* Make a vCPU that is in the guest, or just about to enter it, come out. With m->lock held. */
	void (*kick)(struct mv_vcpu *v);
	/* The vCPU is about to be let go: undo what kick did. With m->lock held. */
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

	/* Under m->lock. */
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

	/* Layout of guest memory. */
	uint64_t tables_gpa, ntables_pd, ntables_pdpt; /* boot page tables: 1 PML4, then PDPTs, then PDs */
	uint64_t work_gpa, work_pages;

	unsigned nvcpus;
	struct mv_vcpu *vcpus;
	int kvm_fd, vm_fd;

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

/* Keeps the text for mv_error and returns -1. */
int mvi_error(struct mv_machine *m, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* The same for a vCPU thread that cannot go on. */
int mvi_dead(struct mv_vcpu *v, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
int mvi_kick_signal(const struct mv_machine *m);

uint64_t mvi_record_gpa(const struct mv_machine *m, unsigned vcpu);

/* The guest asks what next: waits out pace and throttle, then says how many pages to write (0 = look at the mailbox).
 * Returns promptly when the machine is to stop. */
uint32_t mvi_next_burst(struct mv_vcpu *v);
/* After a kick that was no pause. */
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
