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

struct migration {
	struct mg_options options;
	struct mg_hooks hooks;
	struct mv_machine *machine;
	brant_guest *guest;
	brant_tracker *tracker;
	brant_incoming *incoming;
	const char *tracked_by;
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

/* Before there is a vCPU or a slot. */
static int enable_ring(void *opaque, int vm_fd)
{
	struct migration *g = opaque;
	brant_error *e;

	if (g->options.ring && brant_kvm_enable_ring(dup(vm_fd), 0, NULL, &e))
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
	brant_error *e;

	for (unsigned i = 0; i < nregions; i++) {
		brant_ram_block block = {
			.size = sizeof(block),
			.name = regions[i].name,
			.host = regions[i].host,
			.length = regions[i].bytes,
			/* Descriptors handed in are brant's: a duplicate. */
			.fd = regions[i].fd < 0 ? -1 : dup(regions[i].fd),
			.flags = regions[i].fd < 0 ? 0 : BRANT_RAM_FILE,
		};
		if (brant_guest_add_block(g->guest, &block, NULL, &e))
			return fail(g, "memory block", e);
	}
	for (unsigned i = 0; i < nslots; i++) {
		brant_slot slot = {
			.size = sizeof(slot),
			.block = regions[slots[i].region].name,
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

/* KVM knows what its guest writes. For one that is plain memory of this process userfaultfd does, where the kernel has it
 * (Linux 6.7); elsewhere its writers mark what they write, as device models do. */
static int add_log(struct migration *g)
{
	brant_error *e;

	if (mv_vm_fd(g->machine) >= 0) {
		brant_kvm kvm = {.size = sizeof(kvm), .vm_fd = dup(mv_vm_fd(g->machine)), .mode = g->options.log_mode};

		g->tracked_by = g->options.ring ? "KVM's dirty rings" : "KVM's dirty log";
		if (g->options.log_mode == MG_LOG_MARKS) {
			close(kvm.vm_fd);
			snprintf(g->error, sizeof(g->error), "a KVM guest marks only what the VMM writes for it");
			return -1;
		}
		if (brant_tracker_add_kvm(g->tracker, &kvm, &ops, g, &e))
			return fail(g, "KVM dirty log", e);
		for (unsigned i = 0; g->options.ring && i < mv_vcpu_count(g->machine); i++)
			if (brant_tracker_add_vcpu(g->tracker, i, dup(mv_vcpu_fd(g->machine, i)), &e))
				return fail(g, "dirty ring", e);
		return 0;
	}
	g->tracked_by = "its writers' own marks";
	if (g->options.log_mode == MG_LOG_MARKS)
		return 0;
	switch (brant_tracker_add_userfault(g->tracker, &e)) {
	case 0:
		g->tracked_by = "userfaultfd";
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
	return g->tracked_by;
}

struct migration *mg_new(const struct mg_options *options, const struct mg_hooks *hooks)
{
	struct migration *g = calloc(1, sizeof(*g));

	if (!g)
		return NULL;
	g->options = *options;
	g->hooks = *hooks;
	if (brant_guest_new(&g->guest, NULL)) {
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

static int32_t op_load(void *opaque, const brant_state *state, brant_reason *reason)
{
	struct migration *g = opaque;

	if (strcmp(state->name, "vcpu") != 0 || state->version != STATE_VERSION ||
	    state->instance >= mv_vcpu_count(g->machine)) {
		char text[200];

		snprintf(text, sizeof(text), "state `%s` %" PRIu32 " version %" PRIu32 " is not known here", state->name,
			 state->instance, state->version);
		brant_reason_set(reason, text);
		return -1;
	}
	return mv_load_vcpu(g->machine, state->instance, state->data, state->length) ? why(g, reason) : 0;
}

/* What must be the same at both sides, besides memory: refused early if it is not. */
static int32_t op_early_save(void *opaque, brant_saver *saver, brant_reason *reason)
{
	struct migration *g = opaque;
	uint32_t machine[2] = {mv_vcpu_count(g->machine), mv_vm_fd(g->machine) >= 0};

	(void)reason;
	return brant_saver_put(saver, "machine", 0, STATE_VERSION, machine, sizeof(machine), NULL);
}

static int32_t op_early_load(void *opaque, const brant_state *state, brant_reason *reason)
{
	struct migration *g = opaque;
	uint32_t machine[2] = {0, 0};
	bool kvm = mv_vm_fd(g->machine) >= 0;

	if (strcmp(state->name, "machine") == 0 && state->length == sizeof(machine))
		memcpy(machine, state->data, sizeof(machine));
	if (machine[0] != mv_vcpu_count(g->machine) || machine[1] != kvm) {
		char text[150];

		snprintf(text, sizeof(text), "the source is a %s guest of %" PRIu32 " vCPUs, the destination a %s guest of %u",
			 machine[1] ? "KVM" : "plain-memory", machine[0], kvm ? "KVM" : "plain-memory",
			 mv_vcpu_count(g->machine));
		brant_reason_set(reason, text);
		return -1;
	}
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

static int32_t op_run(void *opaque, brant_reason *reason)
{
	struct migration *g = opaque;

	if (g->hooks.arrived)
		g->hooks.arrived(g->hooks.opaque);
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
	.run = op_run,
	.event = op_event,
	.kick = op_kick,
};

/* ---- the source ---- */

/* "12.3 MB/s" and its like. */
static void amount(char *out, size_t len, double bytes, const char *unit)
{
	static const char *const prefixes[] = {"", "k", "M", "G", "T"};
	unsigned i = 0;

	for (; bytes >= 1000 && i < 4; i++)
		bytes /= 1000;
	snprintf(out, len, "%.*f %s%s", bytes < 10 && i ? 1 : 0, bytes, prefixes[i], unit);
}

static void show(struct migration *g, const brant_stats *s, bool last)
{
	char rate[32], dirty[32] = "?", left[32] = "?", downtime[32] = "?", line[256];

	if (!g->hooks.progress)
		return;
	amount(rate, sizeof(rate), (double)s->throughput, "B/s");
	if (s->dirty_pages_per_second != BRANT_UNKNOWN)
		amount(dirty, sizeof(dirty), (double)s->dirty_pages_per_second * 4096, "B/s");
	if (s->time_left_us != BRANT_UNKNOWN)
		snprintf(left, sizeof(left), "%.1f s", (double)s->time_left_us / 1e6);
	if (s->expected_downtime_us != BRANT_UNKNOWN)
		snprintf(downtime, sizeof(downtime), "%.0f ms", (double)s->expected_downtime_us / 1e3);
	snprintf(line, sizeof(line), "%6.2f %%  pass %u  sending %s  dirtied %s  left %s  expected downtime %s",
		 s->progress / 100.0, s->pass, rate, dirty, left, downtime);
	g->hooks.progress(g->hooks.opaque, line, last);
}

/* Shows how it goes until it is over. */
static void watch(struct migration *g, brant_outgoing *out)
{
	struct pollfd look = {.fd = brant_outgoing_event_fd(out), .events = POLLIN};
	brant_stats s = {.size = sizeof(s)};
	uint64_t count;

	while (brant_outgoing_wait(out, 0, NULL) == BRANT_E_PENDING) {
		poll(&look, 1, 500);
		if (read(look.fd, &count, sizeof(count)) > 0 && !brant_outgoing_get_stats(out, &s, NULL))
			show(g, &s, false);
	}
	if (!brant_outgoing_get_stats(out, &s, NULL))
		show(g, &s, true);
}

int mg_send(struct migration *g, const char *endpoint, int fd, struct mg_result *result)
{
	brant_params params = {
		.size = sizeof(params),
		.downtime_limit_ms = g->options.downtime_ms,
		.max_bandwidth = g->options.bandwidth,
		.total_timeout_ms = g->options.timeout_ms,
	};
	brant_stats s = {.size = sizeof(s)};
	brant_outgoing *out;
	brant_error *e;
	int32_t code;

	if (brant_outgoing_new(g->guest, g->tracker, &ops, g, &params, &out, &e))
		return fail(g, "migration", e);
	code = endpoint ? brant_outgoing_start(out, endpoint, &e) : brant_outgoing_start_fd(out, fd, &e);
	if (code == 0) {
		watch(g, out);
		code = brant_outgoing_wait(out, BRANT_NO_LIMIT, &e);
	}
	/* Handed over without an answer, only the VMM can know whether the guest runs at the other side. This one cannot
	 * ask, so it is on the safe side: one guest too few is better than one too many. */
	if (code == BRANT_E_UNANSWERED)
		brant_outgoing_resolve(out, BRANT_RESOLVE_DESTROY, NULL);
	brant_outgoing_get_stats(out, &s, NULL);
	*result = (struct mg_result){
		.seconds = (double)s.elapsed_us / 1e6,
		.downtime_ms = (double)s.downtime_us / 1e3,
		.promised_ms = (double)s.promised_downtime_us / 1e3,
		.data_pages = s.data_pages,
		.zero_pages = s.zero_pages,
		.hole_pages = s.hole_pages,
		.wire_bytes = s.wire_bytes,
		.syncs = s.syncs,
		.passes = s.pass,
	};
	brant_outgoing_stats_json(out, result->json, sizeof(result->json), NULL, NULL);
	brant_outgoing_free(out);
	return code ? fail(g, "migration", e) : 0;
}

/* ---- the destination ---- */

static int incoming_new(struct migration *g)
{
	brant_error *e;

	if (brant_incoming_new(g->guest, &ops, g, NULL, &g->incoming, &e))
		return fail(g, "incoming migration", e);
	return 0;
}

int mg_receive_listen(struct migration *g, const char *endpoint, char *bound, size_t bound_len)
{
	brant_error *e;

	if (incoming_new(g))
		return -1;
	if (brant_incoming_listen(g->incoming, endpoint, bound, bound_len, NULL, &e))
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

int mg_receive_wait(struct migration *g)
{
	brant_error *e;

	if (brant_incoming_wait(g->incoming, BRANT_NO_LIMIT, &e))
		return fail(g, "incoming migration", e);
	return 0;
}
