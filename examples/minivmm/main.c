/*
 * The program: makes a machine and
 *
 *   minivmm demo     starts a guest, migrates it live into a second process, checks that nothing was lost (demo.c)
 *   minivmm send     starts a guest and migrates it to a `minivmm receive` somewhere else
 *   minivmm receive  waits for a guest and runs it
 *   minivmm save     starts a guest and saves it to a file while it runs
 *   minivmm restore  runs a guest from such a file
 */
#define _GNU_SOURCE
#include "interrupt.h"
#include "program.h"
#include "screen.h"

#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

/* ---- the machine and its migration ---- */

static void frozen(void *opaque)
{
	struct program *p = opaque;

	if (p->ledger)
		demo_frozen(p);
}

static void arrived(void *opaque)
{
	struct program *p = opaque;

	if (p->ledger)
		demo_arrived(p);
}

static void progress(void *opaque, const struct mg_progress *progress)
{
	struct program *p = opaque;

	/* A demo's second process prints nothing: the first one shows its progress. */
	if (p->o->ledger_fd < 0)
		screen_progress(progress);
}

static void warning(void *opaque, const char *message)
{
	(void)opaque;
	screen_say("warning: %s", message);
}

static void downtime(void *opaque, const char *message)
{
	const struct program *p = opaque;

	screen_say(p->ledger ? "%s (the demo's digests are a part of it, and are taken off below)" : "%s", message);
}

void program_tell_downtime(const struct mg_result *result)
{
	char text[512];
	size_t n = 0;

	for (int i = 0; i < MG_PARTS; i++)
		n += (size_t)snprintf(text + n, sizeof(text) - n, "%s%s %.1f (%.1f)", i ? ", " : "", result->parts[i].name,
				      result->parts[i].took_ms, result->parts[i].promised_ms);
	if (result->promised_ms < 0)
		screen_say("the guest stood still for %.1f ms; nothing was promised", result->downtime_ms);
	else
		screen_say("the guest stood still for %.1f ms; promised were %.1f ms", result->downtime_ms, result->promised_ms);
	screen_say("each part in ms (promised): %s", text);
}

/* The first Ctrl-C cancels. Another one, before the cancel has taken effect, ends the program. */
static bool interrupted(void *opaque)
{
	struct program *p = opaque;
	int signal = interrupt_wait(0);

	if (!signal)
		return false;
	if (p->ended_by) {
		screen_done();
		screen_complain("ended, and the guest with it");
		_exit(128 + signal);
	}
	p->ended_by = signal;
	return true;
}

static bool switch_over(void *opaque)
{
	(void)opaque;
	return interrupt_switch_over();
}

int program_new(struct program *p, bool incoming)
{
	const struct options *o = p->o;
	struct mg_hooks hooks = {
		.opaque = p, .frozen = frozen, .arrived = arrived, .progress = progress, .warning = warning,
		.downtime = downtime,
		/* A terminal's Ctrl-C reaches both processes of a demo. The first one decides. */
		.interrupt_fd = o->ledger_fd < 0 ? interrupt_fd() : -1, .interrupted = interrupted,
		.switch_over = switch_over};
	struct mg_options options = o->migration;
	struct mv_config config = o->machine;
	char err[256];

	options.workload = o->machine.workload;
	options.rate = o->machine.rate;
	p->migration = mg_new(&options, &hooks);
	if (!p->migration) {
		screen_complain("out of memory");
		return -1;
	}
	config.incoming = incoming;
	config.hooks = mg_machine_hooks(p->migration);
	p->machine = mv_machine_new(&config, err, sizeof(err));
	if (!p->machine) {
		screen_complain("%s", err);
		return -1;
	}
	if (mg_attach(p->migration, p->machine) || (!incoming && mg_prepare_send(p->migration))) {
		screen_complain("%s", mg_error(p->migration));
		return -1;
	}
	return 0;
}

void program_free(struct program *p)
{
	mv_destroy(p->machine);
	mg_free(p->migration);
}

const char *program_machine(struct program *p)
{
	static char text[100];
	unsigned vcpus = mv_vcpu_count(p->machine);

	snprintf(text, sizeof(text), "a %s guest of %" PRIu64 " MiB with %u vCPU%s",
		 mv_vm_fd(p->machine) >= 0 ? "KVM" : "plain-memory", mv_memory_bytes(p->machine) >> 20, vcpus,
		 vcpus == 1 ? "" : "s");
	return text;
}

/* Page writes a second since the last call; below 0 at the first. */
static double measure(struct program *p)
{
	struct mv_counters c;
	double t = now(), rate = -1;

	mv_counters(p->machine, -1, &c);
	if (p->seen_at > 0 && t > p->seen_at)
		rate = (double)(c.writes - p->seen_writes) / (t - p->seen_at);
	p->seen_at = t;
	p->seen_writes = c.writes;
	return rate;
}

int program_start(struct program *p)
{
	double rate;

	if (mv_start(p->machine)) {
		screen_complain("%s", mv_error(p->machine));
		return -1;
	}
	measure(p);
	p->ended_by = interrupt_wait(p->o->after);
	if (p->ended_by) {
		screen_complain("ended before the migration began");
		return -1;
	}
	rate = measure(p);
	if (p->o->after > 0)
		screen_say("the guest runs: %.0f page writes a second", rate);
	return 0;
}

int program_check(struct program *p, uint64_t writes_before, uint64_t *writes, uint64_t *bad, uint64_t *errors, char *why,
		  size_t why_len)
{
	struct mv_counters c;

	why[0] = 0;
	if (mg_workload(p->migration) != GV_IDLE && mv_wait_writes(p->machine, 1000, 30000)) {
		snprintf(why, why_len, "the guest writes no more: %s", mv_error(p->machine));
		return -1;
	}
	if (mv_self_check(p->machine, 120000, bad)) {
		snprintf(why, why_len, "the guest does not answer: %s", mv_error(p->machine));
		return -1;
	}
	mv_counters(p->machine, -1, &c);
	*writes = c.writes;
	*errors = c.device_errors;
	if (*bad || *errors || c.writes < writes_before || mv_failed(p->machine)) {
		snprintf(why, why_len, "%" PRIu64 " bad pages, %" PRIu64 " lost device writes, %" PRIu64 " writes counted after %" PRIu64
			 " before. %s", *bad, *errors, c.writes, writes_before, mv_error(p->machine));
		return -1;
	}
	return 0;
}

/* Checks a guest that runs here, and prints the result. */
static int say_it_runs(struct program *p, const char *how, uint64_t writes_before)
{
	uint64_t writes = 0, bad = 0, errors = 0;
	char why[256];

	if (program_check(p, writes_before, &writes, &bad, &errors, why, sizeof(why))) {
		screen_complain("%s", why);
		return -1;
	}
	screen_say("the guest %s here: %" PRIu64 " page writes counted, all of its pages are as it left them", how, writes);
	return 0;
}

/* On a terminal the guest runs until the user ends it. */
static void run_on(struct program *p)
{
	if (!screen_is_terminal())
		return;
	screen_say("Ctrl-C ends the guest");
	measure(p);
	while (!mv_failed(p->machine) && !interrupt_wait(1)) {
		double rate = measure(p);

		screen_status("%" PRIu64 " page writes, %.0f a second", p->seen_writes, rate);
	}
	screen_done();
	if (mv_failed(p->machine))
		screen_complain("%s", mv_error(p->machine));
}

/* Whether this side's user cancelled. A cancel by the peer is a failure like any other here. */
static bool cancelled_here(struct program *p, const struct mg_result *result)
{
	return result->cancelled && p->ended_by;
}

/* ---- send ---- */

int program_migrate(struct program *p, const char *endpoint, int fd, struct mg_result *result)
{
	const struct options *o = p->o;

	if (mg_send(p->migration, endpoint, fd, result)) {
		if (!cancelled_here(p, result))
			screen_complain("%s", mg_error(p->migration));
		return -1;
	}
	screen_say("%.2f s, %u passes, %" PRIu64 " pages with contents, %" PRIu64 " zero (%" PRIu64 " of them never touched), %.1f MB sent",
		   result->seconds, result->passes, result->data_pages, result->zero_pages, result->hole_pages,
		   (double)result->wire_bytes / 1e6);
	if (result->recoveries)
		screen_say("the connections were lost and made anew, %u time%s", result->recoveries,
			   result->recoveries == 1 ? "" : "s");
	if (o->json)
		screen_say("%s", result->json);
	return 0;
}

int program_failed(struct program *p, const struct mg_result *result)
{
	int status = cancelled_here(p, result) ? 128 + p->ended_by : 1;
	struct mv_counters c;

	if (p->o->json)
		screen_say("%s", result->json);
	switch (result->where) {
	case MG_RUNS_HERE:
		mv_counters(p->machine, -1, &c);
		screen_say("the migration %s: the guest runs on here", cancelled_here(p, result) ? "is cancelled" : "failed");
		/* When the program is told to terminate, nobody waits for a check. */
		if (p->ended_by != SIGTERM && say_it_runs(p, "ran on", c.writes))
			status = 1;
		break;
	case MG_STANDS_HERE:
		screen_say("the migration failed: the guest stands still here, and runs nowhere");
		break;
	case MG_MAYBE_THERE:
		screen_say("the guest was handed over and the destination did not say whether it runs: "
			   "it may run there, and is not resumed here");
		break;
	default:
		break;
	}
	return status;
}

static int send_guest(const struct options *o)
{
	struct program p = {.o = o};
	struct mg_result result = {0};
	char rate[80] = "as many pages as it can";
	int status = 1;

	if (program_new(&p, false)) {
		program_free(&p);
		return 1;
	}
	if (o->machine.workload == GV_IDLE)
		snprintf(rate, sizeof(rate), "nothing");
	else if (o->machine.rate > 0)
		snprintf(rate, sizeof(rate), "up to %.0f pages a second", o->machine.rate);
	screen_say("%s writes %s (%s), found by %s", program_machine(&p), rate, options_workloads[o->machine.workload],
		   mg_tracked_by(p.migration));
	if (program_start(&p)) {
		status = p.ended_by ? 128 + p.ended_by : 1;
	} else if (program_migrate(&p, o->endpoint, -1, &result)) {
		status = program_failed(&p, &result);
		if (result.where == MG_RUNS_HERE && p.ended_by != SIGTERM) {
			run_on(&p);
			screen_say("the guest ends with this program");
		}
	} else {
		program_tell_downtime(&result);
		screen_say("the guest runs at %s, downtime %.1f ms (limit %.0f ms)", o->endpoint, result.downtime_ms,
			   result.limit_ms);
		if (o->migration.verify)
			screen_say("%" PRIu64 " pages compared, %" PRIu64 " of them differ, %" PRIu64 " left out",
				   result.verified_pages, result.mismatched_pages, result.unverified_pages);
		status = result.mismatched_pages ? 1 : 0;
	}
	program_free(&p);
	return status;
}

/* ---- receive ---- */

static int receive(const struct options *o)
{
	struct program p = {.o = o};
	struct mg_result result = {0};
	struct mv_counters before;
	char bound[256];
	int status = 1;

	if (program_new(&p, true))
		goto out;
	if (mg_receive(p.migration, o->endpoint, -1, bound, sizeof(bound))) {
		screen_complain("%s", mg_error(p.migration));
		goto out;
	}
	screen_say("waiting on %s for %s", bound, program_machine(&p));
	if (mg_receive_wait(p.migration, &result)) {
		if (cancelled_here(&p, &result))
			status = 128 + p.ended_by;
		else
			screen_complain("%s", mg_error(p.migration));
		screen_say("%s", result.where == MG_LACKS_MEMORY
			   ? "the guest ran here, and a part of its memory is lost with its source: it ends"
			   : result.where == MG_STANDS_HERE
			   ? "the guest was handed over and could not be started: it stands still here, and runs nowhere"
			   : "the guest never ran here: whoever sends it has it still");
		goto out;
	}
	mv_counters(p.machine, -1, &before);
	if (result.recoveries)
		screen_say("the connections were lost and made anew, %u time%s", result.recoveries,
			   result.recoveries == 1 ? "" : "s");
	if (o->json)
		screen_say("%s", result.json);
	if (say_it_runs(&p, "runs", before.writes))
		goto out;
	status = 0;
	run_on(&p);
	if (mv_failed(p.machine))
		status = 1;
	screen_say("the guest ends with this program");
out:
	program_free(&p);
	return status;
}

/* ---- save and restore ---- */

static int save(const struct options *o)
{
	struct program p = {.o = o};
	struct mg_image_result result = {0};
	struct mv_counters before;
	int status = 1;

	if (program_new(&p, false))
		goto out;
	screen_say("%s, its writes found by %s", program_machine(&p), mg_tracked_by(p.migration));
	if (program_start(&p)) {
		status = p.ended_by ? 128 + p.ended_by : 1;
		goto out;
	}
	if (!mg_save(p.migration, o->path, &result)) {
		screen_say("%.2f s, %u passes, %" PRIu64 " pages with contents, %" PRIu64 " zero, a file of %.1f MB",
			   result.seconds, result.passes, result.data_pages, result.zero_pages, (double)result.file_bytes / 1e6);
		screen_say("the guest is in %s, and stood still for %.1f ms (limit %" PRIu64 " ms)", o->path, result.downtime_ms,
			   o->migration.downtime_ms);
		status = 0;
	} else if (result.cancelled && p.ended_by) {
		screen_say("the save is cancelled");
		status = 128 + p.ended_by;
	} else {
		screen_complain("%s", mg_error(p.migration));
	}
	mv_counters(p.machine, -1, &before);
	if (result.stands)
		screen_say("the guest stands still here");
	else if (p.ended_by != SIGTERM && say_it_runs(&p, "ran on", before.writes))
		status = 1;
out:
	program_free(&p);
	return status;
}

static int restore(const struct options *o)
{
	struct program p = {.o = o};
	struct mg_image_result result = {0};
	struct mv_counters before;
	int status = 1;

	if (program_new(&p, true))
		goto out;
	if (mg_restore(p.migration, o->path, &result)) {
		if (result.cancelled && p.ended_by)
			status = 128 + p.ended_by;
		else
			screen_complain("%s", mg_error(p.migration));
		screen_say("%s", result.stands ? "the guest is here and could not be started" : "the guest never ran here");
		goto out;
	}
	screen_say("%.2f s, %" PRIu64 " pages with contents, %" PRIu64 " zero", result.seconds, result.data_pages,
		   result.zero_pages);
	if (o->migration.lazy)
		screen_say("the guest ran meanwhile, and waited for %" PRIu64 " pages, for at most %.0f us in 99 of 100 cases",
			   result.urgent_pages, result.fault_p99_us);
	mv_counters(p.machine, -1, &before);
	if (say_it_runs(&p, "runs", before.writes))
		goto out;
	status = 0;
	run_on(&p);
	if (mv_failed(p.machine))
		status = 1;
	screen_say("the guest ends with this program");
out:
	program_free(&p);
	return status;
}

int main(int argc, char **argv)
{
	struct options o;
	bool done;
	int status = options_parse(argc, argv, &o, &done);

	if (status || done)
		return status;
	screen_init();
	if (interrupt_init()) {
		perror("minivmm: signals");
		return 1;
	}
	if (o.verb == DEMO)
		return demo(&o);
	if (o.verb == SEND)
		return send_guest(&o);
	if (o.verb == SAVE)
		return save(&o);
	if (o.verb == RESTORE)
		return restore(&o);
	return o.ledger_fd >= 0 ? demo_receiver(&o) : receive(&o);
}
