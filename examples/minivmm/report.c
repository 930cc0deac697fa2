/*
 * brant's numbers in the words of this program's user: a word for each state, figures in seconds and bytes, the name
 * of the log. Nothing here starts or changes anything; a VMM that shows less needs none of it.
 */
#include "report.h"

#include <inttypes.h>
#include <stdio.h>

/* How a migration's state is shown, and where the guest is if the migration ends in it. States without a row are
 * parts of the switchover. */
static const struct view {
	const char *stage; /* "": nothing is shown */
	enum { SWITCHES, BEGINS, COPIES, DONE, ENDED } kind;
	enum mg_where where;
} views[] = {
	[BRANT_SOURCE_IDLE] = {"connecting", BEGINS, MG_RUNS_HERE},
	[BRANT_SOURCE_CONNECTING] = {"connecting", BEGINS, MG_RUNS_HERE},
	[BRANT_SOURCE_NEGOTIATING] = {"agreeing", BEGINS, MG_RUNS_HERE},
	[BRANT_SOURCE_COPYING] = {"copying", COPIES, MG_RUNS_HERE},
	[BRANT_SOURCE_VERIFYING] = {"verifying", SWITCHES, MG_RUNS_THERE},
	[BRANT_SOURCE_SERVING] = {"memory follows", SWITCHES, MG_RUNS_THERE},
	[BRANT_SOURCE_INTERRUPTED] = {"interrupted", SWITCHES, MG_RUNS_THERE},
	[BRANT_SOURCE_RECOVERING] = {"interrupted", SWITCHES, MG_RUNS_THERE},
	[BRANT_SOURCE_COMPLETED] = {"done", DONE, MG_RUNS_THERE},
	[BRANT_SOURCE_ABORTING_PAUSE] = {"copying", COPIES, MG_RUNS_HERE},
	[BRANT_SOURCE_RESUMING] = {"failed", ENDED, MG_RUNS_HERE},
	[BRANT_SOURCE_FAILED] = {"failed", ENDED, MG_RUNS_HERE},
	[BRANT_SOURCE_RESUME_FAILED] = {"failed", ENDED, MG_STANDS_HERE},
	[BRANT_SOURCE_UNANSWERED] = {"unanswered", ENDED, MG_MAYBE_THERE},
	[BRANT_SOURCE_TAKEN_BACK] = {"unanswered", ENDED, MG_RUNS_HERE},
	[BRANT_SOURCE_GIVEN_UP] = {"unanswered", ENDED, MG_MAYBE_THERE},
	[BRANT_DESTINATION_IDLE] = {"", BEGINS, MG_NEVER_HERE},
	[BRANT_DESTINATION_LISTENING] = {"", BEGINS, MG_NEVER_HERE},
	[BRANT_DESTINATION_NEGOTIATING] = {"agreeing", BEGINS, MG_NEVER_HERE},
	[BRANT_DESTINATION_RECEIVING] = {"receiving", SWITCHES, MG_NEVER_HERE},
	[BRANT_DESTINATION_COMPLETING] = {"memory follows", SWITCHES, MG_RUNS_HERE},
	[BRANT_DESTINATION_INTERRUPTED] = {"interrupted", SWITCHES, MG_RUNS_HERE},
	[BRANT_DESTINATION_INCOMPLETE] = {"incomplete", ENDED, MG_LACKS_MEMORY},
	[BRANT_DESTINATION_RUNNING] = {"done", DONE, MG_RUNS_HERE},
	[BRANT_DESTINATION_FAILED] = {"failed", ENDED, MG_NEVER_HERE},
	[BRANT_DESTINATION_START_FAILED] = {"failed", ENDED, MG_STANDS_HERE},
};

/* The destination's states are numbered from BRANT_DESTINATION_IDLE on. */
static bool is_incoming(uint32_t state)
{
	return state >= BRANT_DESTINATION_IDLE;
}

static struct view view_of(uint32_t state)
{
	if (state < sizeof(views) / sizeof(views[0]) && views[state].stage)
		return views[state];
	return (struct view){"switchover", SWITCHES, is_incoming(state) ? MG_NEVER_HERE : MG_RUNS_HERE};
}

static double known(uint64_t value, double unit)
{
	return value == BRANT_UNKNOWN ? -1 : (double)value * unit;
}

/* Seconds until the end by the forecast; -1 when it is unknown, or when there will be none. */
static double left(const brant_stats *s, const brant_forecast *f)
{
	const double end = f && f->converges ? (double)f->time_us * 1e-6 : -1, now = (double)s->elapsed_ns * 1e-9;

	return end < 0 ? -1 : end > now ? end - now : 0;
}

struct mg_progress report_progress(const brant_stats *s, const brant_forecast *f, bool last)
{
	const struct view v = view_of(s->state);

	return (struct mg_progress){
		.incoming = is_incoming(s->state),
		.last = last,
		.stage = v.stage,
		.pass = v.kind == COPIES ? s->pass : 0,
		.percent = v.kind == DONE ? 100 : s->progress / 100.0,
		.bytes_per_second = v.kind == BEGINS ? -1 : (double)s->throughput,
		.dirtied_per_second = known(s->dirty_pages_per_second, 4096),
		.seconds_left = v.kind == DONE ? 0 : v.kind == ENDED ? -1 : left(s, f),
		.never = v.kind == COPIES && f && !f->converges,
		.at_least = v.kind == COPIES && f && f->converges && f->guessed,
		.downtime = known(s->expected_downtime_ns, 1e-9),
	};
}

static struct mg_part part(const char *name, uint64_t promised_ns, uint64_t took_ns)
{
	return (struct mg_part){name, (double)promised_ns / 1e6, (double)took_ns / 1e6};
}

struct mg_result report_result(const brant_stats *s)
{
	return (struct mg_result){
		.where = view_of(s->state).where,
		.seconds = (double)s->elapsed_ns / 1e9,
		.downtime_ms = (double)s->downtime_ns / 1e6,
		.data_pages = s->data_pages,
		.zero_pages = s->zero_pages,
		.hole_pages = s->hole_pages,
		.wire_bytes = s->wire_bytes,
		.passes = s->pass,
		.recoveries = (unsigned)s->recoveries,
		.verified_pages = s->verified_pages,
		.unverified_pages = s->unverified_pages,
		.mismatched_pages = s->mismatched_pages,
		.shared_pages = s->shared_bytes / MV_PAGE,
		.verify_ms = (double)s->digest_ns / 1e6,
		.promised_ms = known(s->promised_downtime_ns, 1e-6),
		.parts = {
			part("pause", s->promised_pause_ns, s->pause_ns),
			part("sync", s->promised_sync_ns, s->last_sync_ns),
			part("save", s->promised_save_ns, s->save_ns),
			part("memory", s->promised_memory_ns, s->memory_ns),
			part("state", s->promised_state_ns, s->state_sent_ns),
			part("load", s->promised_load_ns, s->load_ns),
			part("round trips", s->promised_round_trips_ns, s->round_trips_ns),
			part("release", s->promised_release_ns, s->release_ns),
			part("run", s->promised_run_ns, s->run_ns),
		},
	};
}

struct mg_progress report_image_progress(const brant_image_stats *s, bool last)
{
	static const char *const stages[] = {
		[BRANT_IMAGE_IDLE] = "preparing",   [BRANT_IMAGE_PREPARING] = "preparing", [BRANT_IMAGE_COPYING] = "copying",
		[BRANT_IMAGE_PAUSED] = "paused",    [BRANT_IMAGE_FINISHING] = "finishing", [BRANT_IMAGE_FILLING] = "filling",
		[BRANT_IMAGE_LOADING] = "loading",  [BRANT_IMAGE_STARTING] = "starting",   [BRANT_IMAGE_COMPLETED] = "done",
		[BRANT_IMAGE_FAILED] = "failed",
	};

	return (struct mg_progress){
		.last = last,
		.stage = s->state <= BRANT_IMAGE_FAILED ? stages[s->state] : "",
		.pass = s->pass,
		.percent = s->progress / 100.0,
		.bytes_per_second = s->elapsed_ns ? (double)s->data_pages * 4096 / ((double)s->elapsed_ns / 1e9) : -1,
		.dirtied_per_second = -1,
		.seconds_left = -1,
		.downtime = -1,
	};
}

struct mg_image_result report_image_result(const brant_image_stats *s)
{
	return (struct mg_image_result){
		.seconds = (double)s->elapsed_ns / 1e9,
		.downtime_ms = known(s->downtime_ns, 1e-6),
		.data_pages = s->data_pages,
		.zero_pages = s->zero_pages,
		.file_bytes = s->file_bytes,
		.passes = s->pass,
	};
}

void report_log(const brant_tracker *tracker, char *text, size_t len)
{
	static const char *const names[] = {
		[BRANT_KVM_AUTO] = "KVM's dirty log",
		[BRANT_KVM_GET_AND_CLEAR] = "KVM's dirty log (get and clear)",
		[BRANT_KVM_MANUAL_PROTECT] = "KVM's dirty log (manual protect)",
		[BRANT_KVM_INITIALLY_SET] = "KVM's dirty log (manual protect, initially set)",
		[BRANT_KVM_RING] = "KVM's dirty rings (%" PRIu64 ", each of %" PRIu64 " entries)",
	};
	brant_kvm_info info = BRANT_INIT(brant_kvm_info);

	brant_tracker_get_kvm(tracker, &info, NULL, 0, NULL, NULL);
	/* A newer library may have a newer log. Only the last name shows the figures. */
	if (info.mode >= sizeof(names) / sizeof(names[0]))
		info.mode = BRANT_KVM_AUTO;
	snprintf(text, len, names[info.mode], info.vcpus, info.ring_bytes / 16);
}

const char *mg_version(void)
{
	static char text[100];

	snprintf(text, sizeof(text), "minivmm, with brant %s (built with the header of %d.%d.%d)\n", brant_version(),
		 BRANT_VERSION_MAJOR, BRANT_VERSION_MINOR, BRANT_VERSION_PATCH);
	return text;
}
