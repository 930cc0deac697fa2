/*
 * The program: parses options, makes a machine, and
 *
 *   minivmm demo     starts a guest, migrates it live into a second process, checks that nothing was lost
 *   minivmm send     the same from here to a `minivmm receive` somewhere else, without the checks across processes
 *   minivmm receive  waits for a guest and runs it
 *
 * The demo's two processes share a piece of memory, the ledger, in which each puts a digest of every guest page and the
 * guest's counters. Nothing of the guest goes that way.
 */
#define _GNU_SOURCE
#include "digest.h"
#include "machine.h"
#include "migrate.h"

#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum transport { TCP, UNIX, FD };

struct options {
	struct mv_config machine;
	struct mg_options migration;
	enum transport transport;
	bool json;
	double after; /* seconds that the guest runs before it migrates */
	const char *endpoint;
	/* How a demo's second process is told of the first. */
	int ledger_fd, socket_fd;
};

/* What the two processes of a demo tell each other. */
struct side {
	uint64_t digest_us, writes, loops;
	long long pages; /* digested; 0 = not yet, -1 = failed */
};
struct ledger {
	char endpoint[256]; /* of the destination, once it listens */
	struct side source, destination;
	uint64_t writes_after; /* the guest's counter at the destination when it was looked at again */
	uint64_t bad_pages, device_errors;
	int continued;
	char why[256];
	uint64_t pages; /* in each of the two arrays that follow: source's and destination's digests */
	uint64_t digests[];
};

struct program {
	const struct options *o;
	struct mv_machine *machine;
	struct migration *migration;
	struct ledger *ledger;
	bool terminal;
	double shown;
};

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static void sleep_for(double seconds)
{
	struct timespec t = {.tv_sec = (time_t)seconds, .tv_nsec = (long)((seconds - (double)(time_t)seconds) * 1e9)};

	while (nanosleep(&t, &t) && errno == EINTR)
		;
}

/* ---- options ---- */

static const char usage[] =
	"usage: minivmm demo|send|receive [options]\n"
	"  demo                     migrate a running guest into a second process and check it\n"
	"  send --to ENDPOINT       run a guest here and migrate it to a waiting `minivmm receive`\n"
	"  receive --listen ENDPOINT  wait for a guest and run it (same machine options as the source's)\n"
	"machine:\n"
	"  --kind auto|kvm|process  what the guest is; auto: KVM if it can be had (default)\n"
	"  --memory SIZE            guest memory, 16M and up (1G)\n"
	"  --vcpus N                1 to 64 (1)\n"
	"  --workload NAME          sweep, random, hot, mixed, idle (sweep)\n"
	"  --rate PAGES             page writes a second of the whole guest; 0: flat out (20000)\n"
	"  --fill PERCENT           of memory filled with incompressible bytes before the start (50)\n"
	"  --memfd                  shared memory instead of private memory\n"
	"  --seed N\n"
	"migration:\n"
	"  --transport tcp|unix|fd  of a demo (tcp)\n"
	"  --downtime MS            limit (300)\n"
	"  --bandwidth BYTES        a second, at most, while the guest runs (no cap)\n"
	"  --timeout SECONDS        of the whole migration\n"
	"  --log MODE               auto; with KVM: get-and-clear, manual, initially-set; without: marks (auto)\n"
	"  --ring                   dirty rings, one a vCPU, instead of a bitmap; with --log auto\n"
	"  --chunk-shift N          log2 of the pages cleared at once, 6 to 31 (18)\n"
	"  --clear-at-sync          clear whole slots at each sync instead\n"
	"  --after SECONDS          how long the guest runs before it migrates (1)\n"
	"  --json                   the engine's figures as JSON, before the last line\n"
	"SIZE and BYTES take k, M, G (binary).\n";

static bool number(const char *text, uint64_t *out)
{
	char *end;
	unsigned shift = 0;

	errno = 0;
	*out = strtoull(text, &end, 0);
	if (*end == 'k' || *end == 'K')
		shift = 10;
	else if (*end == 'M')
		shift = 20;
	else if (*end == 'G')
		shift = 30;
	if (shift)
		end++;
	if (errno || end == text || *end || *text == '-' || *out > UINT64_MAX >> shift)
		return false;
	*out <<= shift;
	return true;
}

static int choice(const char *text, const char *const *names)
{
	for (int i = 0; names[i]; i++)
		if (strcmp(text, names[i]) == 0)
			return i;
	return -1;
}

enum { KIND = 256, MEMORY, VCPUS, WORKLOAD, RATE, FILL, MEMFD, SEED, TRANSPORT, DOWNTIME, BANDWIDTH, TIMEOUT, LOG,
       CHUNK_SHIFT, CLEAR_AT_SYNC, RING, AFTER, JSON, TO, LEDGER, SOCKET };

static const struct option long_options[] = {
	{"kind", 1, NULL, KIND}, {"memory", 1, NULL, MEMORY}, {"vcpus", 1, NULL, VCPUS},
	{"workload", 1, NULL, WORKLOAD}, {"rate", 1, NULL, RATE}, {"fill", 1, NULL, FILL},
	{"memfd", 0, NULL, MEMFD}, {"seed", 1, NULL, SEED}, {"transport", 1, NULL, TRANSPORT},
	{"downtime", 1, NULL, DOWNTIME}, {"bandwidth", 1, NULL, BANDWIDTH}, {"timeout", 1, NULL, TIMEOUT},
	{"log", 1, NULL, LOG}, {"chunk-shift", 1, NULL, CHUNK_SHIFT}, {"clear-at-sync", 0, NULL, CLEAR_AT_SYNC},
	{"ring", 0, NULL, RING},
	{"after", 1, NULL, AFTER}, {"json", 0, NULL, JSON}, {"to", 1, NULL, TO}, {"listen", 1, NULL, TO},
	/* Of a demo's second process only. */
	{"ledger-fd", 1, NULL, LEDGER}, {"socket-fd", 1, NULL, SOCKET},
	{"help", 0, NULL, 'h'}, {0},
};

static int parse(int argc, char **argv, struct options *o)
{
	static const char *const kinds[] = {"kvm", "process", "auto", NULL};
	static const char *const workloads[] = {"idle", "sweep", "random", "hot", "mixed", NULL};
	static const enum gv_workload workload_of[] = {GV_IDLE, GV_SWEEP, GV_RANDOM, GV_HOT, GV_MIXED};
	static const char *const transports[] = {"tcp", "unix", "fd", NULL};
	static const char *const logs[] = {"auto", "get-and-clear", "manual", "initially-set", "marks", NULL};
	int kind = 2, c, which;
	char why[200];

	*o = (struct options){
		.machine = {.memory_bytes = 1u << 30, .vcpus = 1, .workload = GV_SWEEP, .rate = 20000, .fill_percent = 50,
			    .seed = 1},
		.after = 1,
		.ledger_fd = -1,
		.socket_fd = -1,
	};
	while ((c = getopt_long(argc, argv, "h", long_options, NULL)) != -1) {
		uint64_t n = 0;
		bool ok = true;

		switch (c) {
		case KIND: ok = (kind = choice(optarg, kinds)) >= 0; break;
		case MEMORY: ok = number(optarg, &o->machine.memory_bytes) && o->machine.memory_bytes % MV_PAGE == 0; break;
		case VCPUS: ok = number(optarg, &n) && n >= 1 && n <= 64; o->machine.vcpus = (unsigned)n; break;
		case WORKLOAD:
			ok = (which = choice(optarg, workloads)) >= 0;
			if (ok)
				o->machine.workload = workload_of[which];
			break;
		case RATE: ok = number(optarg, &n); o->machine.rate = (double)n; break;
		case FILL: ok = number(optarg, &n) && n <= 100; o->machine.fill_percent = (unsigned)n; break;
		case MEMFD: o->machine.memfd = true; break;
		case SEED: ok = number(optarg, &o->machine.seed); break;
		case TRANSPORT:
			ok = (which = choice(optarg, transports)) >= 0;
			o->transport = (enum transport)which;
			break;
		case DOWNTIME: ok = number(optarg, &o->migration.downtime_ms) && o->migration.downtime_ms > 0; break;
		case BANDWIDTH: ok = number(optarg, &o->migration.bandwidth); break;
		case TIMEOUT: ok = number(optarg, &n) && n > 0 && n < UINT64_MAX / 1000; o->migration.timeout_ms = n * 1000; break;
		case LOG:
			ok = (which = choice(optarg, logs)) >= 0;
			o->migration.log_mode = (unsigned)which;
			break;
		case CHUNK_SHIFT: ok = number(optarg, &n) && n > 0 && n < 1000; o->migration.chunk_shift = (unsigned)n; break;
		case CLEAR_AT_SYNC: o->migration.clear_at_sync = true; break;
		case RING: o->migration.ring = true; break;
		case AFTER: ok = number(optarg, &n) && n < 1000000; o->after = (double)n; break;
		case JSON: o->json = true; break;
		case TO: o->endpoint = optarg; break;
		case LEDGER: ok = number(optarg, &n); o->ledger_fd = (int)n; break;
		case SOCKET: ok = number(optarg, &n); o->socket_fd = (int)n; break;
		case 'h': fputs(usage, stdout); exit(0);
		default: fputs(usage, stderr); return -1;
		}
		if (!ok) {
			for (which = 0; long_options[which].val != c; which++)
				;
			fprintf(stderr, "minivmm: --%s: not a value that it takes: %s (minivmm --help has them)\n",
				long_options[which].name, optarg);
			return -1;
		}
	}
	if (optind < argc) {
		fprintf(stderr, "minivmm: what is %s?\n%s", argv[optind], usage);
		return -1;
	}
	if (kind == 2) {
		kind = mv_kvm_available(why, sizeof(why)) ? MV_PROCESS : MV_KVM;
		if (kind == MV_PROCESS && o->ledger_fd < 0)
			printf("no KVM here (%s): the guest is plain process memory\n", why);
	}
	o->machine.kind = (enum mv_kind)kind;
	return 0;
}

/* ---- the machine and its migration ---- */

/* Digests every page into this side's half of the ledger, apart from everything else's time. */
static void digest(struct program *p, struct side *side, uint64_t *digests)
{
	struct mv_counters c;
	double begun = now();

	mv_counters(p->machine, -1, &c);
	side->writes = c.writes;
	side->loops = c.loops;
	side->pages = mv_digest_pages(p->machine, digests);
	side->digest_us = (uint64_t)((now() - begun) * 1e6);
}

static void frozen(void *opaque)
{
	struct program *p = opaque;

	if (p->ledger)
		digest(p, &p->ledger->source, p->ledger->digests);
}

static void arrived(void *opaque)
{
	struct program *p = opaque;

	if (p->ledger)
		digest(p, &p->ledger->destination, p->ledger->digests + p->ledger->pages);
}

/* On a terminal one line that is renewed, otherwise a line now and then. */
static void progress(void *opaque, const char *line, bool last)
{
	struct program *p = opaque;
	double t = now();

	if (p->terminal) {
		printf("\r\033[K%s%s", line, last ? "\n" : "");
	} else if (last || t - p->shown >= 0.5) {
		printf("%s\n", line);
		p->shown = t;
	}
	fflush(stdout);
}

static void warning(void *opaque, const char *message)
{
	struct program *p = opaque;

	printf("%swarning: %s\n", p->terminal ? "\r\033[K" : "", message);
}

static int machine_new(struct program *p, const struct options *o, bool incoming)
{
	struct mg_hooks hooks = {
		.opaque = p, .frozen = frozen, .arrived = arrived, .progress = progress, .warning = warning};
	struct mv_config config = o->machine;
	char err[256];

	p->o = o;
	p->terminal = isatty(STDOUT_FILENO);
	p->migration = mg_new(&o->migration, &hooks);
	if (!p->migration) {
		fprintf(stderr, "minivmm: cannot begin\n");
		return -1;
	}
	config.incoming = incoming;
	config.hooks = mg_machine_hooks(p->migration);
	p->machine = mv_machine_new(&config, err, sizeof(err));
	if (!p->machine) {
		fprintf(stderr, "minivmm: %s\n", err);
		return -1;
	}
	if (mg_attach(p->migration, p->machine)) {
		fprintf(stderr, "minivmm: %s\n", mg_error(p->migration));
		return -1;
	}
	return 0;
}

static void machine_free(struct program *p)
{
	mv_destroy(p->machine);
	mg_free(p->migration);
}

/* ---- receive ---- */

/* Whether the guest goes on here, by its own word: it counts on, and its pages hold what it wrote. */
static int check_goes_on(struct program *p, uint64_t writes_before, uint64_t *writes, uint64_t *bad, uint64_t *errors,
			 char *why, size_t why_len)
{
	struct mv_counters c;

	why[0] = 0;
	if (p->o->machine.workload != GV_IDLE && mv_wait_writes(p->machine, 1000, 30000)) {
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

static int receive(const struct options *o)
{
	struct program p = {0};
	uint64_t writes = 0, bad = 0, errors = 0;
	struct mv_counters before;
	char bound[256], why[256];
	int failed;

	if (o->ledger_fd >= 0) {
		off_t len = lseek(o->ledger_fd, 0, SEEK_END);

		p.ledger = mmap(NULL, (size_t)len, PROT_READ | PROT_WRITE, MAP_SHARED, o->ledger_fd, 0);
		if (p.ledger == MAP_FAILED) {
			perror("minivmm: the ledger");
			return 1;
		}
	}
	if (machine_new(&p, o, true))
		return 1;
	failed = o->socket_fd >= 0 ? mg_receive_fd(p.migration, o->socket_fd)
				   : mg_receive_listen(p.migration, o->endpoint, bound, sizeof(bound));
	if (!failed && p.ledger) {
		snprintf(p.ledger->endpoint, sizeof(p.ledger->endpoint), "%s", o->socket_fd >= 0 ? "fd" : bound);
		kill(getppid(), SIGCONT);
	} else if (!failed) {
		printf("waiting on %s\n", bound);
		fflush(stdout);
	}
	if (failed || mg_receive_wait(p.migration)) {
		fprintf(stderr, "minivmm: %s\n", mg_error(p.migration));
		if (p.ledger)
			snprintf(p.ledger->why, sizeof(p.ledger->why), "%s", mg_error(p.migration));
		machine_free(&p);
		return 1;
	}
	mv_counters(p.machine, -1, &before);
	failed = check_goes_on(&p, p.ledger ? p.ledger->destination.writes : before.writes, &writes, &bad, &errors, why,
			       sizeof(why));
	if (p.ledger) {
		p.ledger->writes_after = writes;
		p.ledger->bad_pages = bad;
		p.ledger->device_errors = errors;
		p.ledger->continued = !failed;
		snprintf(p.ledger->why, sizeof(p.ledger->why), "%s", why);
	} else if (failed) {
		fprintf(stderr, "minivmm: %s\n", why);
	} else {
		printf("the guest runs here: %" PRIu64 " page writes counted, all of its pages are as it left them\n", writes);
	}
	machine_free(&p);
	return failed ? 1 : 0;
}

/* ---- send and demo ---- */

static int start_guest(struct program *p)
{
	if (mv_start(p->machine)) {
		fprintf(stderr, "minivmm: %s\n", mv_error(p->machine));
		return -1;
	}
	sleep_for(p->o->after);
	return 0;
}

static int migrate(struct program *p, const char *endpoint, int fd, struct mg_result *result)
{
	const struct options *o = p->o;

	if (mg_send(p->migration, endpoint, fd, result)) {
		fprintf(stderr, "minivmm: %s\n", mg_error(p->migration));
		return -1;
	}
	printf("%.2f s, %u passes, %" PRIu64 " pages with contents, %" PRIu64 " zero (%" PRIu64 " of them never touched), %.1f MB sent\n",
	       result->seconds, result->passes, result->data_pages, result->zero_pages, result->hole_pages,
	       (double)result->wire_bytes / 1e6);
	if (o->json)
		printf("%s\n", result->json);
	return 0;
}

static int send_guest(const struct options *o)
{
	struct program p = {0};
	struct mg_result result;
	int failed;

	if (!o->endpoint) {
		fprintf(stderr, "minivmm: where to? --to ENDPOINT\n");
		return 1;
	}
	failed = machine_new(&p, o, false) || start_guest(&p) || migrate(&p, o->endpoint, -1, &result);
	if (!failed)
		printf("migrated, downtime %.1f ms\n", result.downtime_ms);
	machine_free(&p);
	return failed ? 1 : 0;
}

/* The second process: this program, with the same options and where to find the ledger. */
static pid_t start_receiver(int argc, char **argv, int ledger_fd, int socket_fd, const char *listen)
{
	char ledger[16], socket[16];
	char **args = calloc((size_t)argc + 8, sizeof(*args));
	int n = 0;
	pid_t child;

	if (!args)
		return -1;
	snprintf(ledger, sizeof(ledger), "%d", ledger_fd);
	snprintf(socket, sizeof(socket), "%d", socket_fd);
	args[n++] = argv[0];
	args[n++] = "receive";
	for (int i = 2; i < argc; i++)
		args[n++] = argv[i];
	args[n++] = "--ledger-fd";
	args[n++] = ledger;
	args[n++] = socket_fd >= 0 ? "--socket-fd" : "--listen";
	args[n++] = socket_fd >= 0 ? socket : (char *)listen;
	child = fork();
	if (child == 0) {
		/* It does not outlive a demo that is interrupted. */
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		execv("/proc/self/exe", args);
		_exit(127);
	}
	free(args);
	return child;
}

/* Waits until the receiver listens, or is gone. */
static int await_receiver(struct ledger *ledger, pid_t child)
{
	for (int i = 0; i < 3000; i++) {
		int status;

		if (((volatile struct ledger *)ledger)->endpoint[0])
			return 0;
		if (waitpid(child, &status, WNOHANG) == child)
			return -1;
		sleep_for(0.01);
	}
	return -1;
}

static int verify(const struct ledger *l, const struct mg_result *result)
{
	double digesting = (double)(l->source.digest_us + l->destination.digest_us) / 1e3;
	double downtime = result->downtime_ms - digesting;
	uint64_t differ = 0, first = 0;

	if (l->source.pages != (long long)l->pages || l->destination.pages != (long long)l->pages) {
		fprintf(stderr, "FAILED: digests of %lld and %lld pages, expected %" PRIu64 "\n", l->source.pages,
			l->destination.pages, l->pages);
		return -1;
	}
	for (uint64_t i = l->pages; i-- > 0;)
		if (l->digests[i] != l->digests[l->pages + i]) {
			differ++;
			first = i;
		}
	if (differ) {
		fprintf(stderr, "FAILED: %" PRIu64 " of %" PRIu64 " pages differ, the first at guest address %#" PRIx64 "\n", differ,
			l->pages, first * MV_PAGE);
		return -1;
	}
	if (!l->continued || l->source.writes != l->destination.writes) {
		fprintf(stderr, "FAILED: the guest counted %" PRIu64 " writes when it stopped here and %" PRIu64
			" when it started there. %s\n", l->source.writes, l->destination.writes, l->why);
		return -1;
	}
	printf("the guest counted %" PRIu64 " page writes when it stopped here and %" PRIu64 " a little later there\n",
	       l->source.writes, l->writes_after);
	printf("the guest stood still for %.1f ms in all, %.1f ms of it for the digests\n", result->downtime_ms, digesting);
	printf("verified: %" PRIu64 " pages identical, guest continued, downtime %.1f ms\n", l->pages, downtime);
	return 0;
}

/* What can be had without swapping. */
static uint64_t available_memory(void)
{
	FILE *file = fopen("/proc/meminfo", "r");
	char line[128];
	uint64_t kib = UINT64_MAX >> 10;

	while (file && fgets(line, sizeof(line), file))
		if (sscanf(line, "MemAvailable: %" SCNu64, &kib) == 1)
			break;
	if (file)
		fclose(file);
	return kib << 10;
}

static int demo(int argc, char **argv, const struct options *o)
{
	struct program p = {0};
	struct mg_result result;
	size_t len, pages;
	int ledger_fd, sockets[2] = {-1, -1}, status = 1, failed = 1;
	char directory[] = "/tmp/minivmm-XXXXXX", listen[64] = "tcp:127.0.0.1:0";
	char rate[64] = "as fast as it can";
	bool made_directory = false;
	pid_t child = -1;

	if (o->machine.memory_bytes > available_memory() / 2) {
		fprintf(stderr, "minivmm: two guests of %" PRIu64 " MiB do not fit into the %" PRIu64 " MiB of memory that are available\n",
			o->machine.memory_bytes >> 20, available_memory() >> 20);
		return 1;
	}
	pages = (o->machine.memory_bytes ? o->machine.memory_bytes : 64u << 20) / MV_PAGE;
	len = sizeof(struct ledger) + 2 * pages * sizeof(uint64_t);
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
	if (o->transport == FD && socketpair(AF_UNIX, SOCK_STREAM, 0, sockets)) {
		perror("minivmm: socketpair");
		return 1;
	}
	if (o->transport == UNIX) {
		made_directory = mkdtemp(directory) != NULL;
		snprintf(listen, sizeof(listen), "unix:%s/socket", directory);
	}
	child = start_receiver(argc, argv, ledger_fd, sockets[1], listen);
	if (sockets[1] >= 0)
		close(sockets[1]);
	if (machine_new(&p, o, false))
		goto out;
	if (o->machine.rate > 0)
		snprintf(rate, sizeof(rate), "%.0f pages a second", o->machine.rate);
	printf("a %s guest of %" PRIu64 " MiB with %u vCPU%s writes %s, found by %s; process %d moves it to process %d over %s\n",
	       o->machine.kind == MV_KVM ? "KVM" : "plain-memory", o->machine.memory_bytes >> 20, o->machine.vcpus,
	       o->machine.vcpus == 1 ? "" : "s", rate, mg_tracked_by(p.migration), (int)getpid(), (int)child,
	       o->transport == TCP ? "TCP" : o->transport == UNIX ? "a unix socket" : "a socket pair");
	fflush(stdout);
	if (await_receiver(p.ledger, child)) {
		child = -1;
		fprintf(stderr, "minivmm: the second process did not start listening. %s\n", p.ledger->why);
		goto out;
	}
	if (start_guest(&p))
		goto out;
	failed = migrate(&p, o->transport == FD ? NULL : p.ledger->endpoint, sockets[0], &result);
out:
	if (child > 0) {
		if (failed)
			kill(child, SIGTERM);
		if (waitpid(child, &status, 0) != child)
			status = 1;
	}
	if (!failed)
		failed = verify(p.ledger, &result);
	if (!failed && status != 0) {
		fprintf(stderr, "FAILED: the second process ended with status %#x\n", status);
		failed = -1;
	}
	machine_free(&p);
	if (made_directory)
		rmdir(directory);
	return failed ? 1 : 0;
}

int main(int argc, char **argv)
{
	struct options o;
	const char *verb = argc > 1 ? argv[1] : "";

	if (strcmp(verb, "-h") == 0 || strcmp(verb, "--help") == 0 || strcmp(verb, "help") == 0) {
		fputs(usage, stdout);
		return 0;
	}
	if (strcmp(verb, "demo") && strcmp(verb, "send") && strcmp(verb, "receive")) {
		fprintf(stderr, "minivmm: %s%s: demo, send or receive; minivmm --help has more\n",
			*verb ? "no such command: " : "which command", verb);
		return 2;
	}
	/* The verb stands where getopt expects the program's name. */
	if (parse(argc - 1, argv + 1, &o))
		return 2;
	if (strcmp(verb, "demo") == 0)
		return demo(argc, argv, &o);
	if (strcmp(verb, "send") == 0)
		return send_guest(&o);
	if (o.socket_fd < 0 && !o.endpoint) {
		fprintf(stderr, "minivmm: where? --listen ENDPOINT\n");
		return 2;
	}
	return receive(&o);
}
