/*
 * All that a VMM needs in order to have live migration, in one file: describing its memory, ten callbacks, and the
 * calls that start a migration and watch it. This is the file to copy from.
 */
#define _GNU_SOURCE
#include "migrate.h"

#include <brant.h>

#include <inttypes.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define STATE_VERSION 1u
#define MACHINE_VERSION 2u

/* What both sides must know of the machine besides its memory, as it travels. */
struct task {
	uint32_t vcpus, kvm, workload, reserved;
	double rate;
};

struct migration {
	struct mg_options options;
	struct mg_hooks hooks;
	struct mv_machine *machine;
	brant_guest *guest;
	brant_tracker *tracker;
	brant_outgoing *outgoing;
	brant_incoming *incoming;
	/* With --log measured: what each of KVM's logs costs here; `size` is 0 where that is not known. */
	brant_kvm_costs costs;
	char tracked_by[100];
	/* What the machine's owner asked of it: it holds at the destination too. */
	struct task task;
	/* The log sees all that is written, the VMM's own writes too. */
	bool no_marks;
	char error[512];
};

static int fail(struct migration *g, const char *what, brant_error *e)
{
	snprintf(g->error, sizeof(g->error), "%s: %s", what, e ? brant_error_message(e) : "failed");
	brant_error_free(e);
	return -1;
}

const char *mg_error(struct migration *g)
{
	return g->error;
}

/* ---- the VMM's own writes ---- */

/* On vCPU and device threads, after the write. Never waits; nearly free while nobody migrates. */
static void mark(void *opaque, uint64_t gpa, uint64_t len)
{
	struct migration *g = opaque;

	if (!g->no_marks)
		brant_tracker_mark(g->tracker, gpa, len);
}

/* ---- dirty rings: three places where a VMM has to do something for them (and mg_attach, op_kick) ---- */

/* Before there is a vCPU or a slot: once rings are enabled, no bitmap works any more. */
static int enable_ring(void *opaque, int vm_fd)
{
	struct migration *g = opaque;
	brant_error *e;

	if (g->options.log_mode == MG_LOG_MEASURED) {
		g->costs.size = sizeof(g->costs);
		/* Nothing is said of the guest: it may write all the time. */
		if (brant_kvm_measure(-1, NULL, &g->costs, NULL, 0, NULL, NULL))
			g->costs.size = 0; /* No time on a busy machine: as with --log auto. */
		else
			g->options.ring = g->costs.recommended == BRANT_KVM_RING;
	}
	if (g->options.ring && brant_kvm_enable_ring(vm_fd, 0, NULL, &e))
		return fail(g, "dirty rings", e);
	return 0;
}

/* On the vCPU's thread, which then enters the guest again. */
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
	brant_error *e;

	for (unsigned i = 0; i < nregions; i++) {
		brant_ram_block block = {
			.size = sizeof(block),
			.name = regions[i].name,
			.host = regions[i].host,
			.length = regions[i].bytes,
			.fd = regions[i].fd,
			.flags = regions[i].fd < 0 ? 0 : BRANT_RAM_FILE,
		};
		if (brant_guest_add_block(g->guest, &block, &ids[i], &e))
			return fail(g, "memory block", e);
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
		if (brant_guest_add_slot(g->guest, &slot, &e))
			return fail(g, "memory slot", e);
	}
	return 0;
}

static const brant_ops ops;

/* Which of KVM's logs it is: by --log auto the engine picks. */
static void name_log(struct migration *g)
{
	static const char *const names[] = {
		[BRANT_KVM_AUTO] = "KVM's dirty log",
		[BRANT_KVM_GET_AND_CLEAR] = "KVM's dirty log (get and clear)",
		[BRANT_KVM_MANUAL_PROTECT] = "KVM's dirty log (manual protect)",
		[BRANT_KVM_INITIALLY_SET] = "KVM's dirty log (manual protect, initially set)",
	};
	brant_kvm_info info = {.size = sizeof(info)};

	if (brant_tracker_get_kvm(g->tracker, &info, NULL, 0, NULL, NULL))
		info.mode = BRANT_KVM_AUTO;
	if (info.mode == BRANT_KVM_RING)
		snprintf(g->tracked_by, sizeof(g->tracked_by), "KVM's dirty rings (%" PRIu64 ", each of %" PRIu64 " entries)",
			 info.vcpus, info.ring_bytes / 16);
	else
		snprintf(g->tracked_by, sizeof(g->tracked_by), "%s",
			 info.mode < sizeof(names) / sizeof(names[0]) ? names[info.mode] : names[0]);
}

/* KVM knows what its guest writes. For one that is plain memory of this process userfaultfd does, where the kernel has it
 * (Linux 6.7); elsewhere its writers mark what they write, as device models do. */
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

		if (brant_tracker_add_kvm(g->tracker, &kvm, &e))
			return fail(g, "KVM dirty log", e);
		for (unsigned i = 0; g->options.ring && i < mv_vcpu_count(g->machine); i++)
			if (brant_tracker_add_vcpu(g->tracker, i, mv_vcpu_fd(g->machine, i), &e))
				return fail(g, "dirty ring", e);
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
	if (mv_vm_fd(g->machine) >= 0)
		name_log(g);
	return g->tracked_by;
}

const char *mg_version(void)
{
	static char text[100];

	snprintf(text, sizeof(text), "minivmm, with brant %s (built with the header of %d.%d.%d)\n", brant_version(),
		 BRANT_VERSION_MAJOR, BRANT_VERSION_MINOR, BRANT_VERSION_PATCH);
	return text;
}

struct migration *mg_new(const struct mg_options *options, const struct mg_hooks *hooks)
{
	struct migration *g = calloc(1, sizeof(*g));

	if (!g)
		return NULL;
	g->options = *options;
	g->hooks = *hooks;
	if (brant_guest_new(&ops, g, &g->guest, NULL)) {
		free(g);
		return NULL;
	}
	return g;
}

int mg_attach(struct migration *g, struct mv_machine *m)
{
	brant_tracker_config config = {
		.size = sizeof(config),
		.clearing = g->options.clear_at_sync ? BRANT_CLEAR_AT_SYNC : BRANT_CLEAR_CHUNKED,
		.chunk_shift = g->options.chunk_shift,
	};
	brant_error *e;

	g->machine = m;
	g->task = (struct task){
		.vcpus = mv_vcpu_count(m),
		.kvm = mv_vm_fd(m) >= 0,
		.workload = g->options.workload,
		.rate = g->options.rate,
	};
	if (describe_memory(g))
		return -1;
	if (brant_tracker_new(g->guest, &config, &g->tracker, &e))
		return fail(g, "tracker", e);
	return add_log(g);
}

/* After the machine is destroyed: its threads mark until then. */
void mg_free(struct migration *g)
{
	if (!g)
		return;
	brant_incoming_free(g->incoming);
	brant_outgoing_free(g->outgoing);
	brant_tracker_free(g->tracker);
	brant_guest_free(g->guest);
	free(g);
}

/* ---- the callbacks, on brant's thread ---- */

static int why(struct migration *g, brant_reason *reason)
{
	brant_reason_set(reason, mv_error(g->machine));
	return -1;
}

static int32_t op_pause(void *opaque, brant_reason *reason)
{
	struct migration *g = opaque;

	return mv_pause(g->machine) ? why(g, reason) : 0;
}

static int32_t op_resume(void *opaque, brant_reason *reason)
{
	struct migration *g = opaque;

	return mv_resume(g->machine) ? why(g, reason) : 0;
}

static int32_t op_save(void *opaque, brant_saver *saver, brant_reason *reason)
{
	struct migration *g = opaque;
	static __thread uint8_t state[MV_VCPU_STATE_MAX];

	for (unsigned i = 0; i < mv_vcpu_count(g->machine); i++) {
		long len = mv_save_vcpu(g->machine, i, state, sizeof(state));

		if (len < 0)
			return why(g, reason);
		if (brant_saver_put(saver, "vcpu", i, STATE_VERSION, state, (size_t)len, NULL))
			return -1;
	}
	return 0;
}

static int32_t op_load(void *opaque, const brant_state_blob *blob, brant_reason *reason)
{
	struct migration *g = opaque;

	if (strcmp(blob->name, "vcpu") != 0 || blob->version != STATE_VERSION ||
	    blob->instance >= mv_vcpu_count(g->machine)) {
		char text[200];

		snprintf(text, sizeof(text), "blob `%s` %" PRIu32 " version %" PRIu32 " is not known here", blob->name,
			 blob->instance, blob->version);
		brant_reason_set(reason, text);
		return -1;
	}
	return mv_load_vcpu(g->machine, blob->instance, blob->data, blob->length) ? why(g, reason) : 0;
}

/* What must be the same at both sides, besides memory: refused early if it is not. */
static int32_t op_early_save(void *opaque, brant_saver *saver, brant_reason *reason)
{
	struct migration *g = opaque;

	(void)reason;
	return brant_saver_put(saver, "machine", 0, MACHINE_VERSION, &g->task, sizeof(g->task), NULL);
}

static int32_t op_early_load(void *opaque, const brant_state_blob *blob, brant_reason *reason)
{
	struct migration *g = opaque;
	struct task come, *here = &g->task;
	char text[150];

	if (strcmp(blob->name, "machine") != 0 || blob->version != MACHINE_VERSION || blob->length != sizeof(come)) {
		brant_reason_set(reason, "the source is no minivmm of this version");
		return -1;
	}
	memcpy(&come, blob->data, sizeof(come));
	if (come.vcpus != here->vcpus || come.kvm != here->kvm) {
		snprintf(text, sizeof(text), "the source is a %s guest of %" PRIu32 " vCPUs, the destination a %s guest of %" PRIu32,
			 come.kvm ? "KVM" : "plain-memory", come.vcpus, here->kvm ? "KVM" : "plain-memory", here->vcpus);
		brant_reason_set(reason, text);
		return -1;
	}
	if (come.workload > GV_MIXED || !(come.rate >= 0)) {
		brant_reason_set(reason, "the source's guest does what this minivmm does not know");
		return -1;
	}
	*here = come;
	return 0;
}

/* The guest is not ours any more once this has returned: a VMM with disks lets go of their locks here. */
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

/* Nothing that takes long: the source counts on it that the guest runs by now, or never will. */
static int32_t op_run(void *opaque, brant_reason *reason)
{
	struct migration *g = opaque;

	mv_set_rate(g->machine, g->task.rate);
	return mv_start(g->machine) ? why(g, reason) : 0;
}

static int32_t op_kick(void *opaque, brant_reason *reason)
{
	struct migration *g = opaque;

	return mv_kick(g->machine) ? why(g, reason) : 0;
}

static void op_event(void *opaque, const brant_event *event)
{
	struct migration *g = opaque;

	if (event->kind == BRANT_EVENT_WARNING && g->hooks.warning)
		g->hooks.warning(g->hooks.opaque, event->message);
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
	.kick = op_kick,
};

/* ---- watching ---- */

static double known(uint64_t value, double unit)
{
	return value == BRANT_UNKNOWN ? -1 : (double)value * unit;
}

static void show(struct migration *g, const brant_stats *s, bool last)
{
	struct mg_progress p = {
		.last = last,
		.percent = s->progress / 100.0,
		.bytes_per_second = (double)s->throughput,
		.dirtied_per_second = known(s->dirty_pages_per_second, 4096),
		.seconds_left = known(s->time_left_ns, 1e-9),
		.downtime = known(s->expected_downtime_ns, 1e-9),
	};

	if (!g->hooks.progress)
		return;
	switch (s->state) {
	case BRANT_SOURCE_IDLE:
	case BRANT_SOURCE_CONNECTING: p.stage = "connecting"; p.bytes_per_second = -1; break;
	case BRANT_SOURCE_NEGOTIATING: p.stage = "agreeing"; p.bytes_per_second = -1; break;
	case BRANT_SOURCE_COPYING: p.stage = "copying"; p.pass = s->pass; break;
	case BRANT_SOURCE_COMPLETED: p.stage = "done"; p.seconds_left = 0; p.percent = 100; break;
	case BRANT_SOURCE_RESUMING:
	case BRANT_SOURCE_FAILED:
	case BRANT_SOURCE_RESUME_FAILED: p.stage = "failed"; p.seconds_left = -1; break;
	case BRANT_SOURCE_UNANSWERED:
	case BRANT_SOURCE_TAKEN_BACK:
	case BRANT_SOURCE_GIVEN_UP: p.stage = "unanswered"; p.seconds_left = -1; break;
	case BRANT_DESTINATION_IDLE:
	case BRANT_DESTINATION_LISTENING: return;
	case BRANT_DESTINATION_NEGOTIATING: p.incoming = true; p.stage = "agreeing"; p.bytes_per_second = -1; break;
	case BRANT_DESTINATION_RECEIVING: p.incoming = true; p.stage = "receiving"; break;
	case BRANT_DESTINATION_RUNNING: p.incoming = true; p.stage = "done"; p.percent = 100; break;
	case BRANT_DESTINATION_FAILED:
	case BRANT_DESTINATION_START_FAILED: p.incoming = true; p.stage = "failed"; break;
	default:
		p.incoming = s->state >= BRANT_DESTINATION_IDLE;
		p.stage = "switchover";
		break;
	}
	g->hooks.progress(g->hooks.opaque, &p);
}

/* Waits for what the engine or the user has to say, half a second at most; whether the user wants an end. */
static bool look(struct migration *g, int event_fd)
{
	struct pollfd fds[] = {
		{.fd = event_fd, .events = POLLIN},
		{.fd = g->hooks.interrupted ? g->hooks.interrupt_fd : -1, .events = POLLIN},
	};
	uint64_t count;

	poll(fds, 2, 500);
	/* Emptied, so that the next poll waits for something new. */
	if ((fds[0].revents & POLLIN) && read(event_fd, &count, sizeof(count)) != sizeof(count))
		return false;
	return (fds[1].revents & POLLIN) && g->hooks.interrupted(g->hooks.opaque);
}

static void warn(struct migration *g, brant_error *e)
{
	if (g->hooks.warning)
		g->hooks.warning(g->hooks.opaque, e ? brant_error_message(e) : "it cannot be cancelled");
	brant_error_free(e);
}

/* ---- the source ---- */

/* Parameters that the engine does not take are refused here. */
int mg_prepare_send(struct migration *g)
{
	brant_params params = {
		.size = sizeof(params),
		.downtime_limit_ms = g->options.downtime_ms,
		.max_bandwidth = g->options.bandwidth,
		.total_timeout_ms = g->options.timeout_ms,
	};
	brant_error *e;

	if (brant_outgoing_new(g->tracker, &params, &g->outgoing, &e))
		return fail(g, "migration", e);
	return 0;
}

/* Shows how it goes until it is over. */
static void watch_outgoing(struct migration *g)
{
	brant_outgoing *out = g->outgoing;
	brant_stats s = {.size = sizeof(s)};
	brant_error *e;

	while (brant_outgoing_wait(out, 0, NULL) == BRANT_E_PENDING) {
		if (look(g, brant_outgoing_event_fd(out)) && brant_outgoing_cancel(out, &e))
			warn(g, e);
		if (!brant_outgoing_get_stats(out, &s, NULL) && brant_outgoing_wait(out, 0, NULL) == BRANT_E_PENDING)
			show(g, &s, false);
	}
	if (!brant_outgoing_get_stats(out, &s, NULL))
		show(g, &s, true);
}

static enum mg_where where_outgoing(uint32_t state)
{
	switch (state) {
	case BRANT_SOURCE_COMPLETED: return MG_RUNS_THERE;
	case BRANT_SOURCE_RESUME_FAILED: return MG_STANDS_HERE;
	case BRANT_SOURCE_UNANSWERED:
	case BRANT_SOURCE_GIVEN_UP: return MG_MAYBE_THERE;
	default: return MG_RUNS_HERE;
	}
}

int mg_send(struct migration *g, const char *endpoint, int fd, struct mg_result *result)
{
	brant_outgoing *out = g->outgoing;
	brant_stats s = {.size = sizeof(s)};
	brant_error *e;
	int32_t code = endpoint ? brant_outgoing_start(out, endpoint, &e) : brant_outgoing_start_fd(out, fd, &e);

	if (code == 0) {
		watch_outgoing(g);
		code = brant_outgoing_wait(out, BRANT_NO_LIMIT, &e);
	}
	brant_outgoing_get_stats(out, &s, NULL);
	*result = (struct mg_result){
		.where = where_outgoing(s.state),
		.cancelled = code == BRANT_E_CANCELLED,
		.seconds = (double)s.elapsed_ns / 1e9,
		.downtime_ms = (double)s.downtime_ns / 1e6,
		.limit_ms = (double)g->options.downtime_ms,
		.data_pages = s.data_pages,
		.zero_pages = s.zero_pages,
		.hole_pages = s.hole_pages,
		.wire_bytes = s.wire_bytes,
		.passes = s.pass,
	};
	brant_outgoing_get_stats_json(out, result->json, sizeof(result->json), NULL, NULL);
	/* Handed over without an answer, only the VMM can know whether the guest runs at the other side. This one cannot
	 * ask, so it is on the safe side: one guest too few is better than one too many. */
	if (code == BRANT_E_UNANSWERED)
		brant_outgoing_resolve(out, BRANT_RESOLVE_DESTROY, NULL);
	brant_outgoing_free(out);
	g->outgoing = NULL;
	return code ? fail(g, "migration", e) : 0;
}

/* ---- the destination ---- */

static int incoming_new(struct migration *g)
{
	brant_error *e;

	if (brant_incoming_new(g->guest, NULL, &g->incoming, &e))
		return fail(g, "incoming migration", e);
	return 0;
}

int mg_receive_listen(struct migration *g, const char *endpoint, char *bound, size_t bound_len)
{
	brant_error *e;

	if (incoming_new(g))
		return -1;
	if (brant_incoming_listen(g->incoming, endpoint, &e) ||
	    brant_incoming_get_endpoint(g->incoming, bound, bound_len, NULL, &e))
		return fail(g, "incoming migration", e);
	return 0;
}

int mg_receive_fd(struct migration *g, int fd)
{
	brant_error *e;

	if (incoming_new(g))
		return -1;
	if (brant_incoming_start_fd(g->incoming, fd, &e))
		return fail(g, "incoming migration", e);
	return 0;
}

int mg_receive_wait(struct migration *g, struct mg_result *result)
{
	brant_incoming *in = g->incoming;
	brant_stats s = {.size = sizeof(s)};
	brant_error *e;
	int32_t code;

	while (brant_incoming_wait(in, 0, NULL) == BRANT_E_PENDING) {
		if (look(g, brant_incoming_event_fd(in)) && brant_incoming_cancel(in, &e))
			warn(g, e);
		if (!brant_incoming_get_stats(in, &s, NULL) && brant_incoming_wait(in, 0, NULL) == BRANT_E_PENDING)
			show(g, &s, false);
	}
	code = brant_incoming_wait(in, BRANT_NO_LIMIT, &e);
	if (!brant_incoming_get_stats(in, &s, NULL))
		show(g, &s, true);
	*result = (struct mg_result){
		.where = s.state == BRANT_DESTINATION_RUNNING ? MG_RUNS_HERE
			 : s.state == BRANT_DESTINATION_START_FAILED ? MG_STANDS_HERE : MG_NEVER_HERE,
		.cancelled = code == BRANT_E_CANCELLED,
		.seconds = (double)s.elapsed_ns / 1e9,
		.data_pages = s.data_pages,
		.zero_pages = s.zero_pages,
		.wire_bytes = s.wire_bytes,
	};
	brant_incoming_get_stats_json(in, result->json, sizeof(result->json), NULL, NULL);
	return code ? fail(g, "incoming migration", e) : 0;
}

/* ---- a guest in a file ---- */

static void show_image(struct migration *g, const brant_image_stats *s, bool last)
{
	static const char *const stages[] = {
		[BRANT_IMAGE_IDLE] = "preparing", [BRANT_IMAGE_PREPARING] = "preparing", [BRANT_IMAGE_COPYING] = "copying",
		[BRANT_IMAGE_PAUSED] = "paused", [BRANT_IMAGE_FINISHING] = "finishing", [BRANT_IMAGE_FILLING] = "filling",
		[BRANT_IMAGE_LOADING] = "loading", [BRANT_IMAGE_STARTING] = "starting", [BRANT_IMAGE_COMPLETED] = "done",
		[BRANT_IMAGE_FAILED] = "failed"};
	struct mg_progress p = {
		.last = last, .stage = s->state <= BRANT_IMAGE_FAILED ? stages[s->state] : "", .pass = s->pass,
		.percent = s->progress / 100.0, .dirtied_per_second = -1, .seconds_left = -1, .downtime = -1,
		.bytes_per_second = s->elapsed_ns ? (double)s->data_pages * 4096 / ((double)s->elapsed_ns / 1e9) : -1};

	if (g->hooks.progress)
		g->hooks.progress(g->hooks.opaque, &p);
}

static void image_result(struct migration *g, int32_t code, const brant_image_stats *s, struct mg_image_result *result)
{
	uint32_t state = BRANT_GUEST_UNKNOWN;

	brant_guest_get_state(g->guest, &state, NULL);
	*result = (struct mg_image_result){
		.cancelled = code == BRANT_E_CANCELLED,
		.stands = state == BRANT_GUEST_STANDS,
		.seconds = (double)s->elapsed_ns / 1e9,
		.downtime_ms = known(s->downtime_ns, 1e-6),
		.data_pages = s->data_pages,
		.zero_pages = s->zero_pages,
		.file_bytes = s->file_bytes,
		.passes = s->pass,
	};
}

int mg_save(struct migration *g, const char *path, struct mg_image_result *result)
{
	brant_image_save_params params = {.size = sizeof(params), .downtime_limit_ms = g->options.downtime_ms};
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
		show_image(g, &s, false);
	}
	if (!code)
		code = brant_image_save_wait(save, BRANT_NO_LIMIT, &e);
	brant_image_save_get_stats(save, &s, NULL);
	show_image(g, &s, true);
	image_result(g, code, &s, result);
	brant_image_save_free(save);
	return code ? fail(g, "save", e) : 0;
}

int mg_restore(struct migration *g, const char *path, struct mg_image_result *result)
{
	brant_image_stats s = {.size = sizeof(s)};
	brant_image_restore *restore;
	brant_error *e;
	int32_t code = brant_image_restore_new(g->guest, NULL, &restore, &e);

	if (code)
		return fail(g, "restore", e);
	code = brant_image_restore_start(restore, path, &e);
	while (!code && brant_image_restore_wait(restore, 0, NULL) == BRANT_E_PENDING) {
		if (look(g, brant_image_restore_event_fd(restore)))
			brant_image_restore_cancel(restore, NULL);
		brant_image_restore_get_stats(restore, &s, NULL);
		show_image(g, &s, false);
	}
	if (!code)
		code = brant_image_restore_wait(restore, BRANT_NO_LIMIT, &e);
	brant_image_restore_get_stats(restore, &s, NULL);
	show_image(g, &s, true);
	image_result(g, code, &s, result);
	brant_image_restore_free(restore);
	return code ? fail(g, "restore", e) : 0;
}

enum gv_workload mg_workload(struct migration *g)
{
	return (enum gv_workload)g->task.workload;
}
