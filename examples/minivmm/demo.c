/*
 * The demo: a guest migrates into a second process of this program while it runs. The two processes share a piece of
 * memory, the ledger. Each writes a digest of every guest page and the guest's counters into it. No part of the guest
 * goes that way. The engine compares the memory of both sides too (its verify mode); the ledger shows that it is right.
 */
#define _GNU_SOURCE
#include "digest.h"
#include "interrupt.h"
#include "program.h"
#include "screen.h"

#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

/* What each process tells the other one. */
struct side {
	uint64_t digest_us, writes;
	long long pages; /* digested; 0 = not yet, -1 = failed */
};
struct ledger {
	atomic_int listening;
	char endpoint[256]; /* of the destination, once it listens */
	struct side source, destination;
	double verify_ms;      /* for which the guest stood still so that the engine could compare */
	uint64_t writes_after; /* the guest's counter at the destination when it was looked at again */
	int continued;
	char why[512];
	uint64_t pages; /* in each of the two arrays that follow: source's and destination's digests */
	uint64_t digests[];
};

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

/* Digests every page into one side's half of the ledger, outside of all timed work. */
static void digest(struct program *p, struct side *side, uint64_t *digests)
{
	struct mv_counters c;
	double begun = now();

	mv_counters(p->machine, -1, &c);
	side->writes = c.writes;
	side->pages = mv_digest_pages(p->machine, digests);
	side->digest_us = (uint64_t)((now() - begun) * 1e6);
}

void demo_frozen(struct program *p)
{
	digest(p, &p->ledger->source, p->ledger->digests);
}

void demo_arrived(struct program *p)
{
	digest(p, &p->ledger->destination, p->ledger->digests + p->ledger->pages);
}

/* ---- the second process ---- */

static int receive(struct program *p)
{
	const struct options *o = p->o;
	struct ledger *l = p->ledger;
	struct mg_result result;
	uint64_t bad = 0, errors = 0;

	if (program_new(p, true))
		return 1;
	if (mg_receive(p->migration, o->socket_fd >= 0 ? NULL : o->endpoint, o->socket_fd, l->endpoint,
		       sizeof(l->endpoint))) {
		snprintf(l->why, sizeof(l->why), "%s", mg_error(p->migration));
		return 1;
	}
	atomic_store(&l->listening, 1);
	if (mg_receive_wait(p->migration, &result)) {
		snprintf(l->why, sizeof(l->why), "%s", mg_error(p->migration));
		return 1;
	}
	l->verify_ms = result.verify_ms;
	l->continued = !program_check(p, l->destination.writes, &l->writes_after, &bad, &errors, l->why, sizeof(l->why));
	return !l->continued;
}

int demo_receiver(const struct options *o)
{
	struct program p = {.o = o};
	off_t len = lseek(o->ledger_fd, 0, SEEK_END);
	int status;

	p.ledger = mmap(NULL, (size_t)len, PROT_READ | PROT_WRITE, MAP_SHARED, o->ledger_fd, 0);
	if (p.ledger == MAP_FAILED) {
		perror("minivmm: the ledger");
		return 1;
	}
	status = receive(&p);
	program_free(&p);
	return status;
}

/* Starts this program again, with the same machine and the place of the ledger. */
static pid_t start_receiver(const struct options *o, int ledger_fd, int socket_fd, const char *listen)
{
	char memory[32], vcpus[16], ledger[16], socket[16];
	const char *args[20];
	int n = 0;
	pid_t child, parent = getpid();

	snprintf(memory, sizeof(memory), "%" PRIu64, o->machine.memory_bytes);
	snprintf(vcpus, sizeof(vcpus), "%u", o->machine.vcpus);
	snprintf(ledger, sizeof(ledger), "%d", ledger_fd);
	snprintf(socket, sizeof(socket), "%d", socket_fd);
	args[n++] = "minivmm";
	args[n++] = "receive";
	args[n++] = "--kind";
	args[n++] = o->machine.kind == MV_KVM ? "kvm" : "process";
	args[n++] = "--memory";
	args[n++] = memory;
	args[n++] = "--vcpus";
	args[n++] = vcpus;
	if (o->machine.memfd)
		args[n++] = "--memfd";
	args[n++] = "--ledger-fd";
	args[n++] = ledger;
	args[n++] = socket_fd >= 0 ? "--socket-fd" : "--listen";
	args[n++] = socket_fd >= 0 ? socket : listen;
	args[n] = NULL;
	child = fork();
	if (child == 0) {
		/* The receiver does not outlive a demo that is killed, or that was killed before this line. */
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		if (getppid() != parent)
			_exit(127);
		execv("/proc/self/exe", (char **)args);
		_exit(127);
	}
	return child;
}

/* ---- the first process ---- */

/* Waits until the receiver listens. Returns -1 if it is gone, or if the user wants an end. */
static int await_receiver(struct program *p, pid_t *child)
{
	for (int i = 0; i < 3000; i++) {
		int status;

		if (atomic_load(&p->ledger->listening))
			return 0;
		if (waitpid(*child, &status, WNOHANG) == *child) {
			*child = -1;
			break;
		}
		if ((p->ended_by = interrupt_wait(0.01)))
			return -1;
	}
	screen_complain("the second process did not start listening. %s", p->ledger->why);
	return -1;
}

static int verify(const struct ledger *l, const struct mg_result *result)
{
	double digesting = (double)(l->source.digest_us + l->destination.digest_us) / 1e3;
	double downtime = result->downtime_ms - digesting - l->verify_ms;
	uint64_t differ = 0, first = 0;

	if (l->source.pages != (long long)l->pages || l->destination.pages != (long long)l->pages) {
		screen_complain("FAILED: digests of %lld and %lld pages, expected %" PRIu64, l->source.pages,
				l->destination.pages, l->pages);
		return -1;
	}
	for (uint64_t i = l->pages; i-- > 0;)
		if (l->digests[i] != l->digests[l->pages + i]) {
			differ++;
			first = i;
		}
	if (differ) {
		screen_complain("FAILED: %" PRIu64 " of %" PRIu64 " pages differ, the first at guest address %#" PRIx64, differ,
				l->pages, first * MV_PAGE);
		return -1;
	}
	if (!l->continued || l->source.writes != l->destination.writes) {
		screen_complain("FAILED: the guest counted %" PRIu64 " writes when it stopped here and %" PRIu64
				" when it started there. %s", l->source.writes, l->destination.writes, l->why);
		return -1;
	}
	screen_say("the guest counted %" PRIu64 " page writes when it stopped here and %" PRIu64 " a little later there",
		   l->source.writes, l->writes_after);
	if (result->mismatched_pages || result->verified_pages + result->unverified_pages + result->shared_pages != l->pages) {
		screen_complain("FAILED: the engine compared %" PRIu64 " of %" PRIu64 " pages, and found that %" PRIu64 " differ",
				result->verified_pages, l->pages, result->mismatched_pages);
		return -1;
	}
	screen_say("the engine compared %" PRIu64 " pages too, and left out %" PRIu64 " that it did not read",
		   result->verified_pages, result->unverified_pages);
	if (result->shared_pages)
		screen_say("%" PRIu64 " pages were handed over: they are the same memory in both processes", result->shared_pages);
	program_tell_downtime(result);
	screen_say("%.1f ms of it were for the digests", digesting + l->verify_ms);
	screen_say("verified: %" PRIu64 " pages identical, guest continued, downtime %.1f ms (limit %.0f ms)", l->pages, downtime,
		   result->limit_ms);
	return 0;
}

static void announce(struct program *p, pid_t child)
{
	const struct options *o = p->o;
	char writes[80] = "as many pages as it can";

	if (o->machine.workload == GV_IDLE)
		snprintf(writes, sizeof(writes), "nothing");
	else if (o->machine.rate > 0)
		snprintf(writes, sizeof(writes), "up to %.0f pages a second", o->machine.rate);
	screen_say("%s writes %s (%s), found by %s; process %d moves it to process %d over %s", program_machine(p), writes,
		   options_workloads[o->machine.workload], mg_tracked_by(p->migration), (int)getpid(), (int)child,
		   o->transport == TCP ? "TCP" : o->transport == UNIX ? "a unix socket" : "a socket pair");
}

/* Everything between the first process's guest and its check. Returns the command's status. */
static int run(struct program *p, pid_t *child, int socket_fd)
{
	const struct options *o = p->o;
	struct mg_result result = {0};
	int status;

	if (program_new(p, false))
		return 1;
	announce(p, *child);
	if (await_receiver(p, child) || program_start(p))
		return p->ended_by ? 128 + p->ended_by : 1;
	if (program_migrate(p, o->transport == FD ? NULL : p->ledger->endpoint, socket_fd, &result)) {
		status = program_failed(p, &result);
		kill(*child, SIGKILL);
		return status;
	}
	if (waitpid(*child, &status, 0) != *child)
		status = -1;
	*child = -1;
	if (verify(p->ledger, &result))
		return 1;
	if (status) {
		screen_complain("FAILED: the second process ended with status %#x", status);
		return 1;
	}
	return 0;
}

int demo(const struct options *o)
{
	struct program p = {.o = o};
	uint64_t pages = o->machine.memory_bytes / MV_PAGE;
	size_t len = sizeof(struct ledger) + 2 * pages * sizeof(uint64_t);
	int ledger_fd, sockets[2] = {-1, -1}, status;
	char directory[] = "/tmp/minivmm-XXXXXX", listen[64] = "tcp:127.0.0.1:0";
	pid_t child;

	ledger_fd = memfd_create("ledger", 0);
	if (ledger_fd < 0 || ftruncate(ledger_fd, (off_t)len)) {
		perror("minivmm: the ledger");
		return 1;
	}
	p.ledger = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_SHARED, ledger_fd, 0);
	if (p.ledger == MAP_FAILED) {
		perror("minivmm: the ledger");
		return 1;
	}
	p.ledger->pages = pages;
	if (o->transport == FD && (socketpair(AF_UNIX, SOCK_STREAM, 0, sockets) || fcntl(sockets[0], F_SETFD, FD_CLOEXEC))) {
		perror("minivmm: socketpair");
		return 1;
	}
	if (o->transport == UNIX) {
		if (!mkdtemp(directory)) {
			perror("minivmm: /tmp");
			return 1;
		}
		snprintf(listen, sizeof(listen), "unix:%s/socket", directory);
	}
	child = start_receiver(o, ledger_fd, sockets[1], listen);
	if (sockets[1] >= 0)
		close(sockets[1]);
	if (child < 0) {
		perror("minivmm: fork");
		status = 1;
	} else {
		status = run(&p, &child, sockets[0]);
	}
	if (child > 0) {
		kill(child, SIGKILL);
		waitpid(child, NULL, 0);
	}
	program_free(&p);
	if (o->transport == UNIX) {
		unlink(listen + strlen("unix:"));
		rmdir(directory);
	}
	return status;
}
