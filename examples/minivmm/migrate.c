/*
 * Everything that a VMM needs for live migration, in one file: the description of its memory, a dozen operations, and
 * the calls that start a migration and watch it. This is the file to copy from. report.c decides how figures are
 * shown.
 */
#define _GNU_SOURCE
#include "migrate.h"

#include "device.h"
#include "recover.h"
#include "report.h"
#include "state.h"

#include <brant.h>

#include <inttypes.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define MACHINE_VERSION 4u

_Static_assert(sizeof(((struct mg_result *)0)->json) >= BRANT_STATS_JSON_SIZE, "room for all figures");

/* What both sides must know of the machine besides its memory, as it is sent. */
struct task {
	uint32_t vcpus, kvm, workload, reserved;
	uint32_t device_mib, device_rate;
	double rate;
};

struct migration {
	struct mg_options options;
	struct mg_hooks hooks;
	struct mv_machine *machine;
	struct device *device; /* NULL: none */
	brant_guest *guest;
	brant_tracker *tracker;
	brant_outgoing *outgoing;
	brant_incoming *incoming;
	/* With --log measured: the costs of KVM's logs here. `size` is 0 if they are unknown. */
	brant_kvm_costs costs;
	char tracked_by[100];
	/* What the machine's owner asked of it. It also holds at the destination. */
	struct task task;
	/* The log sees every write, including the VMM's own. */
	bool no_marks;
	/* Where the other side is found again when the connections are lost; "": nowhere. */
	char endpoint[256];
	struct recovery recovery;
	char error[512];
};

static int fail(struct migration *g, const char *what, brant_error *e)
{
	snprintf(g->error, sizeof(g->error), "%s: %s", what, e ? brant_error_message(e) : "failed");
	brant_error_free(e);
	return -1;
}

/* Ends a function of a migration `g` when a call of brant's fails. The call passes `&e` to get the reason. */
#define MUST(what, call)                            \
	do {                                        \
		brant_error *e;                     \
		if (call)                           \
			return fail(g, what, e);    \
	} while (0)

const char *mg_error(struct migration *g)
{
	return g->error;
}

/* ---- the VMM's own writes ---- */

/* Called on vCPU and device threads, after the write. Never waits, and costs almost nothing while there is no
 * migration. */
static void mark(void *opaque, uint64_t gpa, uint64_t len)
{
	struct migration *g = opaque;

	if (!g->no_marks)
		brant_tracker_mark(g->tracker, gpa, len);
}

/* ---- dirty rings: three places where a VMM has to do something for them (and mg_attach) ---- */

/* Called before there is a vCPU or a slot: once rings are enabled, no bitmap works any more. */
static int enable_ring(void *opaque, int vm_fd)
{
	struct migration *g = opaque;

	if (g->options.log_mode == MG_LOG_MEASURED) {
		g->costs.size = sizeof(g->costs);
		/* No workload is given: the guest may write all the time. */
		if (brant_kvm_measure(-1, NULL, &g->costs, NULL, 0, NULL, NULL))
			g->costs.size = 0; /* No time on a busy machine: as with --log auto. */
		else
			g->options.ring = g->costs.recommended == BRANT_KVM_RING;
	}
	if (g->options.ring)
		MUST("dirty rings", brant_kvm_enable_ring(vm_fd, 0, NULL, &e));
	return 0;
}

/* Called on the vCPU's thread, which then enters the guest again. */
static int ring_full(void *opaque, unsigned vcpu)
{
	struct migration *g = opaque;

	return brant_tracker_ring_full(g->tracker, vcpu, NULL);
}

struct mv_hooks mg_machine_hooks(struct migration *g)
{
	struct mv_hooks hooks = {.opaque = g, .mark = mark, .vm_created = enable_ring, .dirty_ring_full = ring_full};

	return hooks;
}

/* ---- describing the guest ---- */

static int describe_memory(struct migration *g)
{
	unsigned nregions, nslots;
	const struct mv_region *regions = mv_regions(g->machine, &nregions);
	const struct mv_slot *slots = mv_slots(g->machine, &nslots);
	bool kvm = mv_vm_fd(g->machine) >= 0;
	uint32_t ids[MV_MAX_REGIONS]; /* the blocks' numbers, by region */

	for (unsigned i = 0; i < nregions; i++) {
		brant_ram_block block = {
			.size = sizeof(block),
			.name = regions[i].name,
			.host = regions[i].host,
			.length = regions[i].bytes,
			.fd = regions[i].fd,
			.flags = regions[i].fd < 0 ? 0 : BRANT_RAM_FILE,
		};
		MUST("memory block", brant_guest_add_block(g->guest, &block, &ids[i], &e));
	}
	for (unsigned i = 0; i < nslots; i++) {
		brant_slot slot = {
			.size = sizeof(slot),
			.block = ids[slots[i].region],
			.offset = slots[i].offset,
			.length = slots[i].bytes,
			.guest_address = slots[i].gpa,
			.slot = kvm ? slots[i].id : BRANT_NO_SLOT,
			.kvm_flags = slots[i].flags,
		};
		MUST("memory slot", brant_guest_add_slot(g->guest, &slot, &e));
	}
	return 0;
}

/* KVM knows what its guest writes. For a guest in plain memory of this process, userfaultfd finds the writes if the
 * kernel has it (Linux 6.7). Otherwise the guest's writers mark their writes, as device models do. */
static int add_log(struct migration *g)
{
	brant_error *e;

	if (mv_vm_fd(g->machine) >= 0) {
		brant_kvm_log kvm = {
			.size = sizeof(kvm),
			.vm_fd = mv_vm_fd(g->machine),
			.mode = g->options.log_mode == MG_LOG_MEASURED ? BRANT_KVM_AUTO : g->options.log_mode,
			.costs = g->costs.size ? &g->costs : NULL,
		};

		MUST("KVM dirty log", brant_tracker_add_kvm(g->tracker, &kvm, &e));
		for (unsigned i = 0; g->options.ring && i < mv_vcpu_count(g->machine); i++)
			MUST("dirty ring", brant_tracker_add_vcpu(g->tracker, i, mv_vcpu_fd(g->machine, i), &e));
		return 0;
	}
	snprintf(g->tracked_by, sizeof(g->tracked_by), "its writers' own marks");
	if (g->options.log_mode == MG_LOG_MARKS)
		return 0;
	switch (brant_tracker_add_userfault(g->tracker, &e)) {
	case 0:
		snprintf(g->tracked_by, sizeof(g->tracked_by), "userfaultfd");
		g->no_marks = true;
		return 0;
	case BRANT_E_UNSUPPORTED:
		brant_error_free(e);
		return 0;
	default:
		return fail(g, "userfaultfd", e);
	}
}

const char *mg_tracked_by(struct migration *g)
{
	/* With --log auto the engine chooses. */
	if (mv_vm_fd(g->machine) >= 0)
		report_log(g->tracker, g->tracked_by, sizeof(g->tracked_by));
	return g->tracked_by;
}

/* Makes the device with a large state, if the guest has one. It stands still. */
static int make_device(struct migration *g)
{
	if (!g->task.device_mib || g->device)
		return 0;
	g->device = device_new(g->task.device_mib, g->task.device_rate);
	if (!g->device)
		return fail(g, "a device: out of memory", NULL);
	MUST("a device", device_add(g->device, g->guest, &e));
	return 0;
}

int mg_attach(struct migration *g, struct mv_machine *m)
{
	brant_tracker_config config = {
		.size = sizeof(config),
		.clearing = g->options.clear_at_sync ? BRANT_CLEAR_AT_SYNC : BRANT_CLEAR_CHUNKED,
		.chunk_shift = g->options.chunk_shift,
	};

	g->machine = m;
	g->task = (struct task){
		.vcpus = mv_vcpu_count(m),
		.kvm = mv_vm_fd(m) >= 0,
		.workload = g->options.workload,
		.rate = g->options.rate,
		.device_mib = g->options.device_mib,
		.device_rate = g->options.device_rate,
	};
	MUST("gate", brant_guest_use_gate(g->guest, mv_gate(m), &e));
	if (describe_memory(g))
		return -1;
	MUST("tracker", brant_tracker_new(g->guest, &config, &g->tracker, &e));
	if (make_device(g) || (g->device && device_start(g->device)))
		return -1;
	return add_log(g);
}

/* ---- the callbacks, on brant's thread ---- */

/* The result of an operation that fails, with the reason in the machine's own words, ... */
static int why(struct migration *g, brant_reason *reason)
{
	brant_reason_set(reason, mv_error(g->machine));
	return -1;
}

/* ... or ends it in these words. */
#define REFUSE(...)                                     \
	do {                                            \
		BRANT_REASON_SETF(reason, __VA_ARGS__); \
		return -1;                              \
	} while (0)

/* The gate pauses and resumes (docs/gate.md). This is called when all vCPUs stand ... */
static int32_t op_pause(void *opaque, brant_reason *reason)
{
	struct migration *g = opaque;

	return mv_failed(g->machine) ? why(g, reason) : 0;
}

/* ... and this before they run on. */
static int32_t op_resume(void *opaque, brant_reason *reason)
{
	struct migration *g = opaque;

	(void)reason;
	mv_stood_still(g->machine);
	return 0;
}

static int32_t op_save(void *opaque, brant_saver *saver, brant_reason *reason)
{
	struct migration *g = opaque;

	return mv_save(g->machine, saver, reason);
}

static int32_t op_load(void *opaque, const brant_state_blob *blob, brant_reason *reason)
{
	struct migration *g = opaque;

	return mv_load(g->machine, blob, reason);
}

/* What must be equal on both sides besides memory. The destination refuses early if it is not. */
static int32_t op_early_save(void *opaque, brant_saver *saver, brant_reason *reason)
{
	struct migration *g = opaque;

	if (brant_saver_put(saver, "machine", 0, MACHINE_VERSION, &g->task, sizeof(g->task), NULL))
		return -1;
	return mv_early_save(g->machine, saver, reason);
}

static int32_t op_early_load(void *opaque, const brant_state_blob *blob, brant_reason *reason)
{
	struct migration *g = opaque;
	static const char *const kinds[] = {"plain-memory", "KVM"};
	struct task come, *here = &g->task;

	if (mv_is_compat(blob))
		return mv_early_load(g->machine, blob, reason);
	if (strcmp(blob->name, "machine") != 0 || blob->version != MACHINE_VERSION || blob->length != sizeof(come))
		REFUSE("the source is no minivmm of this version");
	memcpy(&come, blob->data, sizeof(come));
	if (come.vcpus != here->vcpus || come.kvm != here->kvm)
		REFUSE("the source is a %s guest of %" PRIu32 " vCPUs, the destination a %s guest of %" PRIu32,
			      kinds[come.kvm != 0], come.vcpus, kinds[here->kvm], here->vcpus);
	if (come.workload > GV_MIXED || !(come.rate >= 0) || come.device_mib > 4096 || come.device_rate > 1024)
		REFUSE("the source's guest does what this minivmm does not know");
	*here = come;
	if (make_device(g))
		REFUSE("%s", g->error);
	return 0;
}

/* When this has returned, the guest no longer belongs to this side. A VMM with disks releases their locks here. */
static int32_t op_release(void *opaque, brant_reason *reason)
{
	struct migration *g = opaque;

	(void)reason;
	if (g->hooks.frozen)
		g->hooks.frozen(g->hooks.opaque);
	return 0;
}

static int32_t op_loaded(void *opaque, brant_reason *reason)
{
	struct migration *g = opaque;

	(void)reason;
	if (g->hooks.arrived)
		g->hooks.arrived(g->hooks.opaque);
	return 0;
}

/* A block comes by descriptor from a process on this host: its file takes the place of the memory that this machine has
 * under that name. The slots, KVM's and brant's, are where they were. Until op_run nothing here writes to it. */
static int32_t op_map_block(void *opaque, const char *name, int32_t fd, uint64_t length, uint64_t offset, void **address,
			    brant_reason *reason)
{
	struct migration *g = opaque;

	*address = mv_replace_memory(g->machine, name, fd, offset, length);
	return *address ? 0 : why(g, reason);
}

/* No long work here: the source relies on it that the guest runs by now, or never will. */
static int32_t op_run(void *opaque, brant_reason *reason)
{
	struct migration *g = opaque;

	mv_set_rate(g->machine, g->task.rate);
	/* They run when the gate opens, which is next. */
	return mv_make_threads(g->machine) ? why(g, reason) : 0;
}

/* The guest sleeps for a part of its time, between its bursts. A pause ends that sleep. */
static int32_t op_throttle(void *opaque, uint32_t vcpu, uint32_t percent, brant_reason *reason)
{
	struct migration *g = opaque;

	(void)reason;
	mv_set_throttle(g->machine, vcpu == BRANT_ALL_VCPUS ? -1 : (int)vcpu, percent);
	return 0;
}

static void op_event(void *opaque, const brant_event *event)
{
	struct migration *g = opaque;

	bool warns = event->kind == BRANT_EVENT_WARNING || event->kind == BRANT_EVENT_MISMATCH ||
		     event->kind == BRANT_EVENT_STALLED || event->kind == BRANT_EVENT_INTERRUPTED;

	if (warns && g->hooks.warning)
		g->hooks.warning(g->hooks.opaque, event->message);
	if ((event->kind == BRANT_EVENT_DOWNTIME || event->kind == BRANT_EVENT_RECOVERED) && g->hooks.downtime)
		g->hooks.downtime(g->hooks.opaque, event->message);
}

static const brant_ops ops = {
	.size = sizeof(ops),
	.pause = op_pause,
	.resume = op_resume,
	.save = op_save,
	.load = op_load,
	.early_save = op_early_save,
	.early_load = op_early_load,
	.release = op_release,
	.loaded = op_loaded,
	.run = op_run,
	.event = op_event,
	.throttle = op_throttle,
	.map_block = op_map_block,
};

/* ---- its beginning and its end ---- */

struct migration *mg_new(const struct mg_options *options, const struct mg_hooks *hooks)
{
	struct migration *g = calloc(1, sizeof(*g));

	if (!g)
		return NULL;
	g->options = *options;
	g->hooks = *hooks;
	g->recovery.limit_ms = options->recover_ms;
	if (brant_guest_new(&ops, g, &g->guest, NULL)) {
		free(g);
		return NULL;
	}
	return g;
}

/* Called after the machine is destroyed, because its threads mark until then. */
void mg_free(struct migration *g)
{
	if (!g)
		return;
	brant_incoming_free(g->incoming);
	brant_outgoing_free(g->outgoing);
	brant_tracker_free(g->tracker);
	brant_guest_free(g->guest);
	device_free(g->device);
	free(g);
}

/* ---- watching ---- */

/* The two sides have the same calls. Below, `mig_` stands for the calls of this side. */

static int32_t mig_wait(struct migration *g, uint64_t timeout_ms, brant_error **e)
{
	return g->incoming ? brant_incoming_wait(g->incoming, timeout_ms, e) : brant_outgoing_wait(g->outgoing, timeout_ms, e);
}

static int32_t mig_cancel(struct migration *g, brant_error **e)
{
	return g->incoming ? brant_incoming_cancel(g->incoming, e) : brant_outgoing_cancel(g->outgoing, e);
}

static int mig_event_fd(struct migration *g)
{
	return g->incoming ? brant_incoming_event_fd(g->incoming) : brant_outgoing_event_fd(g->outgoing);
}

static brant_stats mig_stats(struct migration *g)
{
	brant_stats s = BRANT_INIT(brant_stats);

	if (g->incoming)
		brant_incoming_get_stats(g->incoming, &s, NULL);
	else
		brant_outgoing_get_stats(g->outgoing, &s, NULL);
	return s;
}

/* The progress, with the time left by the forecast. */
static struct mg_progress mig_progress(struct migration *g, bool last)
{
	brant_forecast f = BRANT_INIT(brant_forecast);
	const brant_stats s = mig_stats(g);
	const bool forecast = g->outgoing && !brant_outgoing_get_forecast(g->outgoing, &f, NULL);

	return report_progress(&s, forecast ? &f : NULL, last);
}

/* Waits for an event of the engine's or the user's, at most half a second. Returns whether the user wants an end. */
static bool look(struct migration *g, int event_fd)
{
	struct pollfd fds[] = {
		{.fd = event_fd, .events = POLLIN},
		{.fd = g->hooks.interrupted ? g->hooks.interrupt_fd : -1, .events = POLLIN},
	};
	uint64_t count;

	poll(fds, 2, 500);
	/* Emptied, so that the next poll waits for a new event. */
	if ((fds[0].revents & POLLIN) && read(event_fd, &count, sizeof(count)) != sizeof(count))
		return false;
	return (fds[1].revents & POLLIN) && g->hooks.interrupted(g->hooks.opaque);
}

static void show(struct migration *g, struct mg_progress p)
{
	if (p.stage[0] && g->hooks.progress)
		g->hooks.progress(g->hooks.opaque, &p);
}

/* Shows the progress until the end. Returns the migration's code, and the reason. */
static int32_t watch(struct migration *g, brant_error **why_not)
{
	brant_error *e;

	while (mig_wait(g, 0, NULL) == BRANT_E_PENDING) {
		if (look(g, mig_event_fd(g))) {
			/* Behind the hand-over nothing is cancelled. Then no new connections are made when these are lost. */
			g->recovery.give_up = mig_cancel(g, &e) != 0;
			if (g->recovery.give_up) {
				if (g->hooks.warning)
					g->hooks.warning(g->hooks.opaque, brant_error_message(e));
				brant_error_free(e);
			}
		}
		/* Too late, when the guest is paused already. */
		if (g->outgoing && g->hooks.switch_over && g->hooks.switch_over(g->hooks.opaque))
			brant_outgoing_switch_over(g->outgoing, NULL);
		const char *endpoint = g->endpoint[0] ? g->endpoint : NULL;
		if (g->incoming)
			recover_incoming(&g->recovery, g->incoming, endpoint);
		else
			recover_outgoing(&g->recovery, g->outgoing, endpoint);
		const struct mg_progress p = mig_progress(g, false);
		if (mig_wait(g, 0, NULL) == BRANT_E_PENDING)
			show(g, p);
	}
	show(g, mig_progress(g, true));
	return mig_wait(g, BRANT_NO_LIMIT, why_not);
}

static struct mg_result result_of(struct migration *g, int32_t code)
{
	brant_stats s = mig_stats(g);
	struct mg_result r = report_result(&s);

	r.cancelled = code == BRANT_E_CANCELLED;
	r.limit_ms = (double)g->options.downtime_ms;
	return r;
}

/* ---- the source ---- */

/* Refuses parameters that the engine does not accept. */
int mg_prepare_send(struct migration *g)
{
	brant_params params = {
		.size = sizeof(params),
		.downtime_limit_ms = g->options.downtime_ms,
		.max_bandwidth = g->options.bandwidth,
		.total_timeout_ms = g->options.timeout_ms,
		.hand_over = g->options.hand_over ? BRANT_HAND_OVER_ONLY : BRANT_HAND_OVER_OFF,
		.verify = g->options.verify ? BRANT_VERIFY_ON : BRANT_VERIFY_OFF,
		.postcopy = g->options.postcopy ? BRANT_POSTCOPY_ALLOWED : BRANT_POSTCOPY_OFF,
	};
	brant_policy policy = {
		.size = sizeof(policy),
		.downtime_ceiling_ms = g->options.ceiling_ms,
		.deadline_ms = g->options.deadline_ms,
		.slowing = g->options.slowing,
		.throttle_max = g->options.throttle_max,
		.on_deadline = g->options.on_deadline,
	};

	MUST("migration", brant_outgoing_new(g->tracker, &params, &g->outgoing, &e));
	MUST("policy", brant_outgoing_set_policy(g->outgoing, &policy, &e));
	return 0;
}

int mg_send(struct migration *g, const char *endpoint, int fd, struct mg_result *result)
{
	brant_outgoing *out = g->outgoing;
	brant_error *e;
	int32_t code = endpoint ? brant_outgoing_start(out, endpoint, &e) : brant_outgoing_start_fd(out, fd, &e);

	snprintf(g->endpoint, sizeof(g->endpoint), "%s", endpoint ? endpoint : "");
	/* Too late, when a small guest is paused already. */
	if (code == 0 && g->options.postcopy)
		brant_outgoing_start_postcopy(out, NULL);
	if (code == 0)
		code = watch(g, &e);
	*result = result_of(g, code);
	brant_outgoing_get_stats_json(out, result->json, sizeof(result->json), NULL, NULL);
	/* After a hand-over without an answer, only the VMM can find out whether the guest runs at the other side. This VMM
	 * cannot ask. So it chooses the safe side: one guest too few is better than one too many. */
	if (code == BRANT_E_UNANSWERED)
		brant_outgoing_resolve(out, BRANT_RESOLVE_DESTROY, NULL);
	brant_outgoing_free(out);
	g->outgoing = NULL;
	return code ? fail(g, "migration", e) : 0;
}

/* ---- the destination ---- */

int mg_receive(struct migration *g, const char *endpoint, int fd, char *bound, size_t bound_len)
{
	static const char what[] = "incoming migration";

	MUST(what, brant_incoming_new(g->guest, NULL, &g->incoming, &e));
	if (endpoint) {
		MUST(what, brant_incoming_listen(g->incoming, endpoint, &e));
		MUST(what, brant_incoming_get_endpoint(g->incoming, bound, bound_len, NULL, &e));
		/* With the port that was found. */
		snprintf(g->endpoint, sizeof(g->endpoint), "%s", bound);
	} else {
		MUST(what, brant_incoming_start_fd(g->incoming, fd, &e));
	}
	return 0;
}

int mg_receive_wait(struct migration *g, struct mg_result *result)
{
	brant_error *e;
	int32_t code = watch(g, &e);

	*result = result_of(g, code);
	brant_incoming_get_stats_json(g->incoming, result->json, sizeof(result->json), NULL, NULL);
	return code ? fail(g, "incoming migration", e) : 0;
}

/* ---- a guest in a file ---- */

static void image_result(struct migration *g, int32_t code, const brant_image_stats *s, struct mg_image_result *result)
{
	uint32_t state = BRANT_GUEST_UNKNOWN;

	brant_guest_get_state(g->guest, &state, NULL);
	*result = report_image_result(s);
	result->cancelled = code == BRANT_E_CANCELLED;
	result->stands = state == BRANT_GUEST_STANDS;
}

int mg_save(struct migration *g, const char *path, struct mg_image_result *result)
{
	brant_image_save_params params = {.size = sizeof(params), .downtime_limit_ms = g->options.downtime_ms,
					  .instant = g->options.live ? BRANT_IMAGE_INSTANT_START : BRANT_IMAGE_INSTANT_END};
	brant_image_stats s = {.size = sizeof(s)};
	brant_image_save *save;
	brant_error *e;
	int32_t code = brant_image_save_new(g->tracker, &params, &save, &e);

	if (code)
		return fail(g, "save", e);
	code = brant_image_save_start(save, path, &e);
	while (!code && brant_image_save_wait(save, 0, NULL) == BRANT_E_PENDING) {
		if (look(g, brant_image_save_event_fd(save)))
			brant_image_save_cancel(save, NULL);
		brant_image_save_get_stats(save, &s, NULL);
		show(g, report_image_progress(&s, false));
	}
	if (!code)
		code = brant_image_save_wait(save, BRANT_NO_LIMIT, &e);
	brant_image_save_get_stats(save, &s, NULL);
	show(g, report_image_progress(&s, true));
	image_result(g, code, &s, result);
	brant_image_save_free(save);
	return code ? fail(g, "save", e) : 0;
}

int mg_restore(struct migration *g, const char *path, struct mg_image_result *result)
{
	brant_image_restore_params params = {.size = sizeof(params), .lazy = g->options.lazy};
	brant_image_stats s = {.size = sizeof(s)};
	brant_image_restore *restore;
	brant_error *e;
	int32_t code = brant_image_restore_new(g->guest, &params, &restore, &e);

	if (code)
		return fail(g, "restore", e);
	code = brant_image_restore_start(restore, path, &e);
	while (!code && brant_image_restore_wait(restore, 0, NULL) == BRANT_E_PENDING) {
		if (look(g, brant_image_restore_event_fd(restore)))
			brant_image_restore_cancel(restore, NULL);
		brant_image_restore_get_stats(restore, &s, NULL);
		show(g, report_image_progress(&s, false));
	}
	if (!code)
		code = brant_image_restore_wait(restore, BRANT_NO_LIMIT, &e);
	brant_image_restore_get_stats(restore, &s, NULL);
	show(g, report_image_progress(&s, true));
	image_result(g, code, &s, result);
	result->urgent_pages = s.urgent_pages;
	result->fault_p99_us = (double)s.fault_p99_ns / 1e3;
	brant_image_restore_free(restore);
	return code ? fail(g, "restore", e) : 0;
}

enum gv_workload mg_workload(struct migration *g)
{
	return (enum gv_workload)g->task.workload;
}
