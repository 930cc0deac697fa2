/*
 * The guest in plain process memory: the same workload (guest/workload.h), run by threads of this process on the
 * machine's memory. It is for machines without /dev/kvm, and for testing an engine without a hypervisor. Without
 * userfaultfd such a guest's stores are seen only if it reports them. So it reports each one through the mark hook,
 * after the store, as a device model would.
 *
 * A vCPU here has no registers to save: all of its state is in its mailbox, and it is only paused between two writes.
 * The saved state has the write count, and the start compares that with the memory that came.
 */
#include <string.h>

#include "internal.h"

struct gv_ctx {
	struct mv_vcpu *v;
};

static inline void *gv_at(struct gv_ctx *ctx, uint64_t gpa)
{
	return mv_host(ctx->v->m, gpa, 8);
}

static inline void gv_wrote(struct gv_ctx *ctx, uint64_t gpa, uint64_t len)
{
	const struct mv_hooks *hooks = &ctx->v->m->config.hooks;

	if (hooks->mark)
		hooks->mark(hooks->opaque, gpa, len);
}

/* Between two questions this guest may stand still, and while it waits out its pace it does not write. */
static inline uint32_t gv_ask(struct gv_ctx *ctx)
{
	struct mv_vcpu *v = ctx->v;
	uint32_t pages = 0;

	v->ended = brant_gate_vcpu_left(v->at, 1, NULL) != 0;
	if (!v->ended)
		pages = mvi_pace(v);
	v->ended = v->ended || brant_gate_vcpu_enter(v->at, NULL) != 0;
	if (v->ended)
		return 0;
	mvi_answer(v, pages);
	return pages;
}

static inline int gv_stop(struct gv_ctx *ctx)
{
	return ctx->v->ended;
}

#include "guest/workload.h"

#define STATE_MAGIC 0x434f52506d76696dull
#define STATE_VERSION 1u

struct process_state {
	uint64_t magic;
	uint64_t version;
	uint64_t writes;
};

static int create(struct mv_machine *m)
{
	(void)m;
	return 0;
}

static void destroy(struct mv_machine *m)
{
	(void)m;
}

static long save_vcpu(struct mv_vcpu *v, void *buf, size_t cap)
{
	struct process_state s = {STATE_MAGIC, STATE_VERSION, gv_get(&mvi_mailbox(v->m, v->index)->writes)};

	if (cap < sizeof s)
		return mvi_error(v->m, "the buffer for the vCPU state is too small");
	memcpy(buf, &s, sizeof s);
	return sizeof s;
}

static int load_vcpu(struct mv_vcpu *v, const void *buf, size_t len)
{
	struct process_state s;

	if (len != sizeof s)
		return mvi_error(v->m, "vCPU %u: the state has %zu bytes, not %zu", v->index, len, sizeof s);
	memcpy(&s, buf, sizeof s);
	if (s.magic != STATE_MAGIC || s.version != STATE_VERSION)
		return mvi_error(v->m, "vCPU %u: this is no process vCPU state of version %u", v->index, STATE_VERSION);
	v->expected_writes = s.writes;
	v->check_expected = true;
	return 0;
}

/* The partition is the one that the VMM laid out, whatever the mailbox says. Nothing in guest memory may lead these
 * threads out of it. (A KVM guest's slots do that for it.) */
static int mailbox_is_sane(struct mv_vcpu *v, const struct gv_mailbox *mb)
{
	uint64_t first_gpa, pages = mv_record(v->m, v->index, &first_gpa, NULL, 0);

	return mb->magic == GV_MAGIC && mb->first_gpa == first_gpa && mb->npages == pages && mb->hot_pages <= pages &&
	       mb->rng != 0 && mb->device_gpa == mvi_mailbox_gpa(v->index) + GV_PAGE &&
	       mb->record_gpa == mvi_record_gpa(v->m, v->index);
}

static int run_vcpu(struct mv_vcpu *v)
{
	struct gv_ctx ctx = {v};
	const struct gv_mailbox *mb = mvi_mailbox(v->m, v->index);

	if (brant_gate_vcpu_enter(v->at, NULL))
		return 0; /* the guest has shut down and never ran */
	if (!mailbox_is_sane(v, mb))
		return mvi_dead(v, "no valid mailbox in guest memory");
	if (v->check_expected && gv_get(&mb->writes) != v->expected_writes)
		return mvi_dead(v, "the state was saved after %llu writes, the memory after %llu",
				(unsigned long long)v->expected_writes, (unsigned long long)gv_get(&mb->writes));
	v->check_expected = false;
	gv_run(&ctx, mvi_mailbox_gpa(v->index));
	return 0;
}

const struct mv_backend mvi_process_backend = {
	.create = create,
	.destroy = destroy,
	.boot = create,
	.save_vcpu = save_vcpu,
	.load_vcpu = load_vcpu,
	.run = run_vcpu,
};
