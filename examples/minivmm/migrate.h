/*
 * Migration, as the rest of the VMM sees it: give it a machine, and tell it where to. Only migrate.c, report.c,
 * recover.c, state.c and device.c, behind this, use brant; nothing here names it.
 */
#ifndef MINIVMM_MIGRATE_H
#define MINIVMM_MIGRATE_H

#include "machine.h"

#define MG_LOG_MARKS 4u
#define MG_LOG_MEASURED 5u

enum mg_slowing { MG_SLOW_NONE, MG_SLOW_ALL, MG_SLOW_WRITERS };
enum mg_on_deadline { MG_CANCEL, MG_CARRY_ON, MG_PAUSE };

struct mg_options {
	uint64_t downtime_ms, bandwidth, timeout_ms; /* 0: the engine's defaults */
	/* Source: what is done about a guest that dirties too much. */
	enum mg_slowing slowing;
	unsigned throttle_max;                       /* percent; 0: the default */
	uint64_t ceiling_ms, deadline_ms;            /* 0: none */
	enum mg_on_deadline on_deadline;
	uint64_t recover_ms; /* how long new connections are tried when they are lost behind a postcopy */
	bool postcopy; /* source: send the guest ahead of its memory as soon as that keeps the downtime limit */
	bool hand_over; /* source: all memory goes by descriptors to a destination on this host, without a copy */
	bool live;   /* save: the image holds the guest as it is at the start, not at the end */
	bool lazy;   /* restore: the guest runs before its memory is here, which comes when it is touched */
	bool verify; /* source: compare the memory at the destination with the memory here afterwards */
	/* 0 is the best one. For a KVM guest: 1 get-and-clear, 2 manual protect, 3 initially set, MG_LOG_MEASURED the one
	 * that costs least on this machine, rings included. For a process: MG_LOG_MARKS, so that only marked writes are
	 * found. */
	unsigned log_mode;
	unsigned chunk_shift;                        /* 0: the default */
	bool clear_at_sync;
	bool ring; /* KVM's dirty rings instead of a bitmap; KVM guests only */
	/* The guest's workload. The source tells it to the destination. */
	enum gv_workload workload;
	double rate;
	/* A device with a large state of its own: MiB, and MiB a second that it rewrites. The source tells the destination. */
	uint32_t device_mib, device_rate;
};

/* The progress of a migration. A figure that cannot be known yet is below 0. */
struct mg_progress {
	bool incoming;     /* the destination's view: of rates, only what comes in is known there */
	bool last;         /* it is over */
	const char *stage; /* in a word */
	unsigned pass;     /* over memory, from 1; 0: no pass is going on */
	double percent;
	double bytes_per_second, dirtied_per_second; /* over the connection; by the guest */
	double seconds_left, downtime;               /* until the end; if the switchover came now, seconds */
	bool never;                                  /* as things are, it will not end */
	bool at_least;                               /* what the guest writes is unknown: it takes so long or longer */
};

/* What the VMM does at the turning points, besides pausing and running its machine. NULL: nothing. */
struct mg_hooks {
	void *opaque;
	/* Source: the guest stands still, and all of its memory has arrived at the other side. */
	void (*frozen)(void *opaque);
	/* Destination: all memory and state has arrived, and the guest has not run yet. */
	void (*arrived)(void *opaque);
	/* Called now and then during a migration, on the thread that waits for it. */
	void (*progress)(void *opaque, const struct mg_progress *progress);
	/* A warning. Called on any thread. */
	void (*warning)(void *opaque, const char *message);
	/* What became of the time in which the guest stands still, at the source. Example: a pause was aborted, because the guest
	 * wrote too much in it. Or that the connections were made anew. Called on any thread. */
	void (*downtime)(void *opaque, const char *message);
	/* A descriptor that is readable when the user wants an end (-1: never), and the function that reads it and returns
	 * whether to cancel. */
	int interrupt_fd;
	bool (*interrupted)(void *opaque);
	/* Asked after `interrupted`: whether the user wants the guest to be paused and to leave now. */
	bool (*switch_over)(void *opaque);
};

/* Where the guest is after a migration. */
enum mg_where {
	MG_RUNS_HERE,
	MG_RUNS_THERE,
	MG_STANDS_HERE, /* paused: it could not be resumed, or could not be run */
	MG_NEVER_HERE,  /* destination: the source has it still */
	MG_LACKS_MEMORY, /* destination: the source was lost before all of the memory came. What needs it ends by SIGBUS */
	MG_MAYBE_THERE, /* handed over and not answered: it may run there, and must not run here */
};

/* A part of the downtime: how long it was expected to take when the guest was about to be paused, and how long it took. */
struct mg_part {
	const char *name;
	double promised_ms, took_ms;
};

enum { MG_PARTS = 9 };

struct mg_result {
	enum mg_where where;
	bool cancelled;
	double seconds, downtime_ms, limit_ms;
	uint64_t data_pages, zero_pages, hole_pages, wire_bytes;
	unsigned passes;
	unsigned recoveries; /* how often the migration went on over new connections */
	/* With options.verify. Source: pages compared, left out and different. verify_ms: computing checksums at the
	 * destination, a part of the downtime. */
	uint64_t verified_pages, unverified_pages, mismatched_pages;
	double verify_ms;
	uint64_t shared_pages; /* handed over by descriptors: no copy was made, and there is nothing to compare */
	/* Source: what was promised of downtime_ms (-1: nothing, because nothing was measured), and its parts. */
	double promised_ms;
	struct mg_part parts[MG_PARTS];
	char json[8192];
};

struct migration;

/* Call this before mv_machine_new, because the machine's hooks come from here; and mg_attach after it, before
 * mv_start. */
struct migration *mg_new(const struct mg_options *options, const struct mg_hooks *hooks);
struct mv_hooks mg_machine_hooks(struct migration *g);
int mg_attach(struct migration *g, struct mv_machine *m);
void mg_free(struct migration *g);
/* The reason why the last call failed. */
const char *mg_error(struct migration *g);

/* The engine's version, as a line of text. */
const char *mg_version(void);

/* How the guest's writes are found, once it is attached: for example "KVM's dirty log (manual protect)". */
const char *mg_tracked_by(struct migration *g);

/* Before the guest runs: whether the options are possible. */
int mg_prepare_send(struct migration *g);
/* Migrates the running machine to an endpoint ("tcp:127.0.0.1:4444", "unix:/path"), or over a connected socket if
 * `endpoint` is NULL. 0: the guest runs there, and never again here. -1: see result->where. */
int mg_send(struct migration *g, const char *endpoint, int fd, struct mg_result *result);

/* Receives a machine: listens at an endpoint, and writes the bound one to `bound`; or reads from a connected socket
 * if `endpoint` is NULL. mg_receive_wait returns 0 when the guest runs here; -1: see result->where. */
int mg_receive(struct migration *g, const char *endpoint, int fd, char *bound, size_t bound_len);
int mg_receive_wait(struct migration *g, struct mg_result *result);
struct mg_image_result {
	bool cancelled;
	bool stands; /* the guest is here and could not be started */
	double seconds, downtime_ms; /* downtime: below 0 where there was none */
	uint64_t data_pages, zero_pages, file_bytes;
	unsigned passes;
	/* Restore with options.lazy: pages that the guest waited for, and the time within which 99 of 100 came. */
	uint64_t urgent_pages;
	double fault_p99_us;
};

/* Saves the running machine to a file. 0: the file exists, and the guest runs on. -1: there is no file, and the guest
 * runs on too, or stands still. */
int mg_save(struct migration *g, const char *path, struct mg_image_result *result);
/* Fills a machine from such a file. 0: the guest runs here. */
int mg_restore(struct migration *g, const char *path, struct mg_image_result *result);

/* The workload of a guest that has arrived, as the source told it. */
enum gv_workload mg_workload(struct migration *g);

#endif
