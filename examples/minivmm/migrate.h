/*
 * What migration looks like to the rest of the VMM: give it a machine, tell it where to. Everything that touches brant
 * is behind this, in migrate.c and report.c; nothing here names it.
 */
#ifndef MINIVMM_MIGRATE_H
#define MINIVMM_MIGRATE_H

#include "machine.h"

#define MG_LOG_MARKS 4u
#define MG_LOG_MEASURED 5u

struct mg_options {
	uint64_t downtime_ms, bandwidth, timeout_ms; /* 0: the engine's defaults */
	/* 0 the best there is. Of a KVM guest: 1 get-and-clear, 2 manual protect, 3 initially set, MG_LOG_MEASURED what
	 * costs least on this machine, rings included. Of a process: MG_LOG_MARKS, so that only what is marked is found. */
	unsigned log_mode;
	unsigned chunk_shift;                        /* 0: the default */
	bool clear_at_sync;
	bool ring; /* KVM's dirty rings instead of a bitmap; KVM guests only */
	/* What the guest does; a destination is told by the source. */
	enum gv_workload workload;
	double rate;
};

/* How far a migration is. A figure that nobody can know yet is below 0. */
struct mg_progress {
	bool incoming;     /* the destination's view: of rates, only what comes in is known there */
	bool last;         /* it is over */
	const char *stage; /* in a word */
	unsigned pass;     /* over memory, from 1; 0: no pass is going on */
	double percent;
	double bytes_per_second, dirtied_per_second; /* over the connection; by the guest */
	double seconds_left, downtime;               /* until the switchover; if it came now, seconds */
};

/* What the VMM does at the turning points, besides pausing and running its machine. NULL = nothing. */
struct mg_hooks {
	void *opaque;
	/* Source: the guest stands still, all of its memory has arrived at the other side. */
	void (*frozen)(void *opaque);
	/* Destination: all memory and state is here, the guest has not run yet. */
	void (*arrived)(void *opaque);
	/* Now and then while it goes on, on the thread that waits for it. */
	void (*progress)(void *opaque, const struct mg_progress *progress);
	/* Something worth telling. Any thread. */
	void (*warning)(void *opaque, const char *message);
	/* Readable when somebody wants the migration to end (-1: nobody ever does), and what reads that: whether to cancel. */
	int interrupt_fd;
	bool (*interrupted)(void *opaque);
};

/* Where the guest is when a migration is over. */
enum mg_where {
	MG_RUNS_HERE,
	MG_RUNS_THERE,
	MG_STANDS_HERE, /* paused: it could not be resumed, or could not be run */
	MG_NEVER_HERE,  /* destination: the source has it still */
	MG_MAYBE_THERE, /* handed over and not answered: it may run there, and must not run here */
};

struct mg_result {
	enum mg_where where;
	bool cancelled;
	double seconds, downtime_ms, limit_ms;
	uint64_t data_pages, zero_pages, hole_pages, wire_bytes;
	unsigned passes;
	char json[4096];
};

struct migration;

/* Before mv_machine_new: the machine's hooks come from here. After it: mg_attach, before mv_start. */
struct migration *mg_new(const struct mg_options *options, const struct mg_hooks *hooks);
struct mv_hooks mg_machine_hooks(struct migration *g);
int mg_attach(struct migration *g, struct mv_machine *m);
void mg_free(struct migration *g);
/* Why the last call failed. */
const char *mg_error(struct migration *g);

/* The engine's version, as a line. */
const char *mg_version(void);

/* How the guest's writes are found, once it is attached: "KVM's dirty log (manual protect)" and the like. */
const char *mg_tracked_by(struct migration *g);

/* Before the guest runs: whether the options can be had. */
int mg_prepare_send(struct migration *g);
/* Migrates the running machine to an endpoint ("tcp:127.0.0.1:4444", "unix:/path"), or over a connected socket if
 * `endpoint` is NULL. 0: the guest runs there and never again here. -1: see result->where. */
int mg_send(struct migration *g, const char *endpoint, int fd, struct mg_result *result);

/* Takes a machine in: listens at an endpoint, and writes what was bound to `bound`, or reads from a connected socket if
 * `endpoint` is NULL. mg_receive_wait returns 0 when the guest runs here; -1: see result->where. */
int mg_receive(struct migration *g, const char *endpoint, int fd, char *bound, size_t bound_len);
int mg_receive_wait(struct migration *g, struct mg_result *result);
struct mg_image_result {
	bool cancelled;
	bool stands; /* the guest is here and could not be started */
	double seconds, downtime_ms; /* downtime: below 0 where there was none */
	uint64_t data_pages, zero_pages, file_bytes;
	unsigned passes;
};

/* Saves the running machine to a file. 0: it is there, and the guest runs on. -1: there is none, and it runs on too, or
 * stands. */
int mg_save(struct migration *g, const char *path, struct mg_image_result *result);
/* Fills a machine from such a file. 0: the guest runs here. */
int mg_restore(struct migration *g, const char *path, struct mg_image_result *result);

/* What the guest does that has come: the source's word. */
enum gv_workload mg_workload(struct migration *g);

#endif
