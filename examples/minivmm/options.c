/* Reading the command line: a table of the options, then which of them go together. */
#define _GNU_SOURCE
#include "options.h"

#include <arpa/inet.h>
#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/un.h>

static const char usage[] =
	"usage: minivmm demo|send|receive|save|restore [options]\n"
	"  demo                       migrate a running guest into a second process and check it\n"
	"  send --to ENDPOINT         run a guest here and migrate it to a waiting `minivmm receive`\n"
	"  receive --listen ENDPOINT  wait for a guest and run it\n"
	"  save --to FILE             run a guest here and save it to a file while it runs; --live: as it is at the\n"
	"                             start of the save\n"
	"  restore --from FILE        run a guest from such a file\n"
	"  ENDPOINT is tcp:ADDRESS:PORT or unix:/PATH.\n"
	"Ctrl-C while a guest is sent or saved cancels that: the guest runs on. A second one ends it.\n"
	"SIGUSR1 while a guest is sent: it is paused now, and switched over.\n"
	"machine (all; the same for send and receive, and for save and restore):\n"
	"  --kind auto|kvm|process  what the guest is; auto: KVM if it can be had (auto)\n"
	"  --memory SIZE            guest memory, 16M to 64T in whole pages (1G)\n"
	"  --vcpus N                1 to 64 (1)\n"
	"  --memfd                  shared memory instead of private memory\n"
	"what the guest does (demo, send, save):\n"
	"  --workload NAME          sweep, random, hot, mixed, idle (sweep)\n"
	"  --rate PAGES             page writes a second of the whole guest, at most, to 1000M; 0: flat out (20000)\n"
	"  --fill PERCENT           of memory filled with incompressible bytes before the start, 0 to 100 (50)\n"
	"  --seed N                 of the fill and of random workloads (1)\n"
	"  --after SECONDS          how long the guest runs before it migrates, 0 to 86400 (1)\n"
	"migration (demo, send; --downtime and the logs: save too):\n"
	"  --transport tcp|unix|fd  between a demo's two processes (tcp)\n"
	"  --downtime MS            the limit, 1 to 3600000 (300)\n"
	"  --bandwidth BYTES        a second, at most, while the guest runs, 64k to 1T (no cap)\n"
	"  --policy NAME            a guest that dirties too much: none, auto-converge (all vCPUs are slowed), dirty-limit\n"
	"                           (those that dirty; with --ring) (none)\n"
	"  --throttle PERCENT       the most by which a vCPU is slowed, 1 to 99 (99)\n"
	"  --ceiling MS             up to which the downtime limit rises, to 3600000 (it does not)\n"
	"  --deadline SECONDS       of the whole migration, 1 to 2592000 (none)\n"
	"  --on-deadline NAME       cancel, carry-on, or pause: the guest is paused in time to finish by then (cancel)\n"
	"  --timeout SECONDS        of the whole migration, 1 to 2592000 (3600)\n"
	"  --hand-over              memory goes to a receiver on this host by its descriptor, without a copy; with --memfd,\n"
	"                           and a unix endpoint, or a demo's transport unix or fd\n"
	"  --verify                 send: compare the memory there with the memory here afterwards; a demo always does\n"
	"  --postcopy               send: the guest goes ahead of its memory, which follows it\n"
	"  --recover SECONDS        send, receive: when the connections are lost meanwhile, new ones are tried for so long,\n"
	"                           0 to 86400 (60)\n"
	"  --log MODE               auto; with KVM: get-and-clear, manual, initially-set, or measured, which tries\n"
	"                           them and rings for 0.2 s and takes the cheapest; without: marks (auto)\n"
	"  --ring                   dirty rings, one a vCPU, instead of KVM's bitmap\n"
	"  --chunk-shift N          log2 of the pages cleared at once in KVM's bitmap, 6 to 31 (18)\n"
	"  --clear-at-sync          clear whole slots at each sync instead\n"
	"  --device SIZE            a device with so much state of its own, 1M to 4G in whole megabytes, which is\n"
	"                           sent while the guest runs (none)\n"
	"  --device-rate SIZE       how much of it the device rewrites in a second, 0 to 1G (1M)\n"
	"restore:\n"
	"  --lazy                   the guest runs at once, and its memory comes from the file when it is touched\n"
	"any:\n"
	"  --json                   the engine's figures as JSON, before the last line\n"
	"  --version, --help\n"
	"SIZE, BYTES and numbers take k, M, G, T (binary).\n";

const char *const options_workloads[] = {
	[GV_IDLE] = "idle", [GV_SWEEP] = "sweep", [GV_RANDOM] = "random", [GV_HOT] = "hot", [GV_MIXED] = "mixed", NULL};

enum { KIND = 256, MEMORY, VCPUS, WORKLOAD, RATE, FILL, MEMFD, SEED, TRANSPORT, DOWNTIME, BANDWIDTH, POLICY, THROTTLE, CEILING,
       DEADLINE, ON_DEADLINE, TIMEOUT, HAND_OVER, VERIFY, POSTCOPY, RECOVER, LOG,
       CHUNK_SHIFT, CLEAR_AT_SYNC, RING, AFTER, DEVICE, DEVICE_RATE, JSON, LIVE, TO, LISTEN, FROM, LAZY, LEDGER, SOCKET, VERSION, HELP, END };

#define ALL (DEMO | SEND | RECEIVE | SAVE | RESTORE)

/* The commands for which an option has an effect, and its value. */
static const struct {
	const char *name;
	unsigned verbs;
	uint64_t least, most; /* both 0: not a number */
	const char *takes;    /* NULL: no value */
} table[] = {
	[KIND - KIND] = {"kind", ALL, 0, 0, "auto, kvm or process"},
	[MEMORY - KIND] = {"memory", ALL, 16u << 20, 1ull << 46, "16M to 64T in whole pages of 4096 bytes"},
	[VCPUS - KIND] = {"vcpus", ALL, 1, 64, "1 to 64"},
	[WORKLOAD - KIND] = {"workload", DEMO | SEND | SAVE, 0, 0, "sweep, random, hot, mixed or idle"},
	[RATE - KIND] = {"rate", DEMO | SEND | SAVE, 0, 1000u << 20, "0 to 1000M page writes a second"},
	[FILL - KIND] = {"fill", DEMO | SEND | SAVE, 0, 100, "0 to 100 percent"},
	[MEMFD - KIND] = {"memfd", ALL, 0, 0, NULL},
	[SEED - KIND] = {"seed", DEMO | SEND | SAVE, 0, UINT64_MAX, "a number of 64 bits"},
	[TRANSPORT - KIND] = {"transport", DEMO, 0, 0, "tcp, unix or fd"},
	[DOWNTIME - KIND] = {"downtime", DEMO | SEND | SAVE, 1, 3600000, "1 to 3600000 milliseconds"},
	[BANDWIDTH - KIND] = {"bandwidth", DEMO | SEND, 64u << 10, 1ull << 40, "64k to 1T bytes a second"},
	[POLICY - KIND] = {"policy", DEMO | SEND, 0, 0, "none, auto-converge or dirty-limit"},
	[THROTTLE - KIND] = {"throttle", DEMO | SEND, 1, 99, "1 to 99 percent"},
	[CEILING - KIND] = {"ceiling", DEMO | SEND, 1, 3600000, "1 to 3600000 milliseconds"},
	[DEADLINE - KIND] = {"deadline", DEMO | SEND, 1, 30 * 86400, "1 to 2592000 seconds"},
	[ON_DEADLINE - KIND] = {"on-deadline", DEMO | SEND, 0, 0, "cancel, carry-on or pause"},
	[TIMEOUT - KIND] = {"timeout", DEMO | SEND, 1, 30 * 86400, "1 to 2592000 seconds"},
	[HAND_OVER - KIND] = {"hand-over", DEMO | SEND, 0, 0, NULL},
	[VERIFY - KIND] = {"verify", SEND, 0, 0, NULL},
	[POSTCOPY - KIND] = {"postcopy", SEND, 0, 0, NULL},
	[RECOVER - KIND] = {"recover", SEND | RECEIVE, 0, 86400, "0 to 86400 seconds"},
	[LOG - KIND] = {"log", DEMO | SEND | SAVE, 0, 0, "auto, get-and-clear, manual, initially-set, measured or marks"},
	[CHUNK_SHIFT - KIND] = {"chunk-shift", DEMO | SEND | SAVE, 6, 31, "6 to 31"},
	[CLEAR_AT_SYNC - KIND] = {"clear-at-sync", DEMO | SEND | SAVE, 0, 0, NULL},
	[RING - KIND] = {"ring", DEMO | SEND | SAVE, 0, 0, NULL},
	[AFTER - KIND] = {"after", DEMO | SEND | SAVE, 0, 86400, "0 to 86400 seconds"},
	[DEVICE - KIND] = {"device", DEMO | SEND, 1u << 20, 4ull << 30, "1M to 4G in whole megabytes"},
	[DEVICE_RATE - KIND] = {"device-rate", DEMO | SEND, 0, 1ull << 30, "0 to 1G bytes a second"},
	[JSON - KIND] = {"json", DEMO | SEND | RECEIVE, 0, 0, NULL},
	[LIVE - KIND] = {"live", SAVE, 0, 0, NULL},
	[TO - KIND] = {"to", SEND | SAVE, 0, 0, "an endpoint, or for save a path"},
	[LISTEN - KIND] = {"listen", RECEIVE, 0, 0, "an endpoint"},
	[FROM - KIND] = {"from", RESTORE, 0, 0, "a path"},
	[LAZY - KIND] = {"lazy", RESTORE, 0, 0, NULL},
	/* Only for a demo's second process. */
	[LEDGER - KIND] = {"ledger-fd", RECEIVE, 0, INT32_MAX, "a descriptor"},
	[SOCKET - KIND] = {"socket-fd", RECEIVE, 0, INT32_MAX, "a descriptor"},
	[VERSION - KIND] = {"version", ALL, 0, 0, NULL},
	[HELP - KIND] = {"help", ALL, 0, 0, NULL},
};
#define NOPTIONS (sizeof(table) / sizeof(table[0]))

static const char *const verbs[] = {"demo", "send", "receive", "save", "restore", NULL};

static const char *verb_name(enum verb verb)
{
	return verbs[__builtin_ctz(verb)];
}

/* Reports an impossible command line. Returns the exit status. */
static int refuse(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
static int refuse(const char *fmt, ...)
{
	va_list args;

	fputs("minivmm: ", stderr);
	va_start(args, fmt);
	vfprintf(stderr, fmt, args);
	va_end(args);
	fputs(" (minivmm --help lists the options)\n", stderr);
	return 2;
}

static bool number(const char *text, uint64_t *out)
{
	static const char units[] = "kMGT";
	const char *unit;
	char *end;
	unsigned shift = 0;

	/* strtoull would accept a sign and leading blanks. */
	if (*text < '0' || *text > '9')
		return false;
	errno = 0;
	*out = strtoull(text, &end, 0);
	if (*end && (unit = strchr(units, *end == 'K' ? 'k' : *end))) {
		shift = 10 * (unsigned)(unit - units + 1);
		end++;
	}
	if (errno || *end || *out > UINT64_MAX >> shift)
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

/* NULL, or what is wrong with an endpoint. */
static const char *endpoint_problem(const char *text, bool listen)
{
	char host[64];
	const char *port;
	unsigned char address[16];
	uint64_t n;
	size_t len;

	if (strncmp(text, "unix:", 5) == 0) {
		if (text[5] != '/')
			return "the path after unix: begins with /";
		if (strlen(text + 5) >= sizeof(((struct sockaddr_un *)0)->sun_path))
			return "the path is longer than a unix socket's can be, 107 bytes";
		return NULL;
	}
	if (strncmp(text, "tcp:", 4) != 0)
		return "tcp:ADDRESS:PORT or unix:/PATH";
	text += 4;
	port = strrchr(text, ':');
	len = port ? (size_t)(port - text) : 0;
	if (len == 0 || len >= sizeof(host))
		return "tcp:ADDRESS:PORT, as tcp:127.0.0.1:4444";
	if (!number(port + 1, &n) || n > 65535 || (n == 0 && !listen))
		return listen ? "the port is 0 to 65535; 0: any that is free" : "the port is 1 to 65535";
	memcpy(host, text, len);
	host[len] = 0;
	if (host[0] == '[' && host[len - 1] == ']') {
		host[len - 1] = 0;
		return inet_pton(AF_INET6, host + 1, address) == 1 ? NULL : "no IPv6 address stands in the brackets";
	}
	if (strcmp(host, "localhost") != 0 && inet_pton(AF_INET, host, address) != 1)
		return "the address is an IPv4 address, an IPv6 address in brackets, or localhost";
	return NULL;
}

/* How much memory can be had without swapping. */
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

/* Refuses options without an effect, and options that exclude each other. */
static int check_together(struct options *o, const bool *given)
{
	struct mg_options *m = &o->migration;
	bool kvm = o->machine.kind == MV_KVM;
	const char *guest = kvm ? "a KVM guest" : "a plain-memory guest";
	uint64_t memory = o->machine.memory_bytes, fits = available_memory() / (o->verb == DEMO ? 2 : 1);

	if (memory > fits)
		return refuse("--memory: %s of %" PRIu64 " MiB: there are %" PRIu64 " MiB of memory available for each",
			      o->verb == DEMO ? "two guests" : "a guest", memory >> 20, fits >> 20);
	if (given[RATE - KIND] && o->machine.workload == GV_IDLE)
		return refuse("--rate does nothing: the workload `idle` writes nothing");
	if (given[THROTTLE - KIND] && m->slowing != MG_SLOW_ALL)
		return refuse("--throttle does nothing without --policy auto-converge");
	if (m->slowing == MG_SLOW_WRITERS && !m->ring)
		return refuse("--policy dirty-limit: only dirty rings tell vCPUs apart (--ring)");
	if (m->ceiling_ms && m->ceiling_ms < m->downtime_ms)
		return refuse("--ceiling: it is below the downtime limit of %" PRIu64 " ms", m->downtime_ms);
	if (m->on_deadline == MG_CARRY_ON && !m->deadline_ms)
		return refuse("--on-deadline carry-on does nothing without --deadline");
	if (given[RING - KIND] && !kvm)
		return refuse("--ring does nothing: %s has no dirty rings", guest);
	if (m->log_mode == MG_LOG_MARKS && kvm)
		return refuse("--log marks: of %s's memory only what the VMM writes is marked", guest);
	if (m->log_mode && m->log_mode != MG_LOG_MARKS && !kvm)
		return refuse("--log: %s has no log of KVM's, only auto and marks", guest);
	if (m->ring && m->log_mode)
		return refuse("--log does nothing: --ring takes the place of KVM's bitmap");
	for (int i = CHUNK_SHIFT; i <= CLEAR_AT_SYNC; i++) {
		if (!given[i - KIND])
			continue;
		if (!kvm || m->ring)
			return refuse("--%s does nothing: %s", table[i - KIND].name, kvm ? "dirty rings are not cleared in chunks"
				      : "a plain-memory guest has no bitmap of KVM's");
		if (m->log_mode == 1)
			return refuse("--%s does nothing: get-and-clear clears as it reads", table[i - KIND].name);
	}
	if (given[RECOVER - KIND] && o->verb == SEND && !m->postcopy)
		return refuse("--recover does nothing without --postcopy: the guest runs on here when the connections are lost");
	if (m->postcopy && m->hand_over)
		return refuse("--postcopy does nothing: with --hand-over all memory is there at once");
	if (m->hand_over && !o->machine.memfd)
		return refuse("--hand-over: private memory has no descriptor (--memfd)");
	if (m->hand_over && (o->verb == SEND ? strncmp(o->endpoint, "unix:", 5) != 0 : o->transport == TCP))
		return refuse("--hand-over: a descriptor travels over a unix socket only (%s)",
			      o->verb == SEND ? "--to unix:/PATH" : "--transport unix or fd");
	if (given[CHUNK_SHIFT - KIND] && m->clear_at_sync)
		return refuse("--chunk-shift does nothing: --clear-at-sync clears whole slots");
	return 0;
}

/* Takes one option. False if the value is not one that it accepts. */
static bool take(struct options *o, int option, uint64_t n, int *kind)
{
	static const char *const kinds[] = {"kvm", "process", "auto", NULL};
	static const char *const transports[] = {"tcp", "unix", "fd", NULL};
	static const char *const logs[] = {"auto", "get-and-clear", "manual", "initially-set", "marks", "measured", NULL};
	static const char *const policies[] = {"none", "auto-converge", "dirty-limit", NULL};
	static const char *const ends[] = {"cancel", "carry-on", "pause", NULL};
	int which = 0;

	switch (option) {
	case KIND: return (*kind = choice(optarg, kinds)) >= 0;
	case MEMORY: o->machine.memory_bytes = n; return n % MV_PAGE == 0;
	case VCPUS: o->machine.vcpus = (unsigned)n; return true;
	case WORKLOAD:
		which = choice(optarg, options_workloads);
		o->machine.workload = (enum gv_workload)which;
		return which >= 0;
	case RATE: o->machine.rate = (double)n; return true;
	case FILL: o->machine.fill_percent = (unsigned)n; return true;
	case MEMFD: o->machine.memfd = true; return true;
	case SEED: o->machine.seed = n; return true;
	case TRANSPORT:
		which = choice(optarg, transports);
		o->transport = (enum transport)which;
		return which >= 0;
	case DOWNTIME: o->migration.downtime_ms = n; return true;
	case BANDWIDTH: o->migration.bandwidth = n; return true;
	case POLICY:
		which = choice(optarg, policies);
		o->migration.slowing = (enum mg_slowing)which;
		return which >= 0;
	case THROTTLE: o->migration.throttle_max = (unsigned)n; return true;
	case CEILING: o->migration.ceiling_ms = n; return true;
	case DEADLINE: o->migration.deadline_ms = n * 1000; return true;
	case ON_DEADLINE:
		which = choice(optarg, ends);
		o->migration.on_deadline = (enum mg_on_deadline)which;
		return which >= 0;
	case TIMEOUT: o->migration.timeout_ms = n * 1000; return true;
	case HAND_OVER: o->migration.hand_over = true; return true;
	case VERIFY: o->migration.verify = true; return true;
	case POSTCOPY: o->migration.postcopy = true; return true;
	case RECOVER: o->migration.recover_ms = n * 1000; return true;
	case LOG:
		which = choice(optarg, logs);
		o->migration.log_mode = (unsigned)which;
		return which >= 0;
	case CHUNK_SHIFT: o->migration.chunk_shift = (unsigned)n; return true;
	case CLEAR_AT_SYNC: o->migration.clear_at_sync = true; return true;
	case RING: o->migration.ring = true; return true;
	case AFTER: o->after = (double)n; return true;
	case DEVICE: o->migration.device_mib = (uint32_t)(n >> 20); return n % (1u << 20) == 0;
	case DEVICE_RATE: o->migration.device_rate = (uint32_t)(n >> 20); return true;
	case JSON: o->json = true; return true;
	case LIVE: o->migration.live = true; return true;
	case TO: case LISTEN:
		*(o->verb == SAVE ? &o->path : &o->endpoint) = optarg;
		return true;
	case FROM: o->path = optarg; return true;
	case LAZY: o->migration.lazy = true; return true;
	case LEDGER: o->ledger_fd = (int)n; return true;
	case SOCKET: o->socket_fd = (int)n; return true;
	default: return true;
	}
}

static int parse_options(int argc, char **argv, struct options *o, bool *done)
{
	struct option long_options[NOPTIONS + 1] = {0};
	bool given[NOPTIONS] = {false};
	const char *problem;
	char why[200] = "";
	int kind = 2, c;

	for (unsigned i = 0; i < NOPTIONS; i++)
		long_options[i] = (struct option){table[i].name, table[i].takes != NULL, NULL, KIND + (int)i};
	opterr = 0;
	while ((c = getopt_long(argc, argv, ":h", long_options, NULL)) != -1) {
		uint64_t n = 0;
		unsigned i = (unsigned)(c - KIND);

		if (c == HELP || c == 'h' || c == VERSION) {
			fputs(c == VERSION ? mg_version() : usage, stdout);
			*done = true;
			return 0;
		}
		if (c == ':')
			return refuse("%s: a value is missing", argv[optind - 1]);
		if (c < KIND || c >= END)
			return refuse("%s: no such option", argv[optind - 1]);
		if (!(table[i].verbs & o->verb))
			return refuse("--%s does nothing for `%s`", table[i].name, verb_name(o->verb));
		if ((table[i].most && (!number(optarg, &n) || n < table[i].least || n > table[i].most)) || !take(o, c, n, &kind))
			return refuse("--%s: %s is not a value that it takes: %s", table[i].name, optarg, table[i].takes);
		given[i] = true;
	}
	if (optind < argc)
		return refuse("%s: only options are taken", argv[optind]);
	if (o->verb == SEND && !o->endpoint)
		return refuse("where to? --to ENDPOINT");
	if (o->verb == RECEIVE && !o->endpoint && o->socket_fd < 0)
		return refuse("where? --listen ENDPOINT");
	if ((o->verb == SAVE || o->verb == RESTORE) && (!o->path || !*o->path))
		return refuse(o->verb == SAVE ? "where to? --to FILE" : "where from? --from FILE");
	if (o->endpoint && (problem = endpoint_problem(o->endpoint, o->verb == RECEIVE)))
		return refuse("--%s: %s: %s", o->verb == SEND ? "to" : "listen", o->endpoint, problem);
	if (kind != MV_PROCESS && mv_kvm_available(why, sizeof(why))) {
		if (kind == MV_KVM)
			return refuse("--kind kvm: %s", why);
		printf("no KVM here (%s): the guest is plain process memory\n", why);
		fflush(stdout);
	}
	o->machine.kind = kind == 2 ? (*why ? MV_PROCESS : MV_KVM) : (enum mv_kind)kind;
	return check_together(o, given);
}

int options_parse(int argc, char **argv, struct options *o, bool *done)
{
	const char *verb = argc > 1 ? argv[1] : "";
	int which = choice(verb, verbs);

	*done = false;
	if (!strcmp(verb, "-h") || !strcmp(verb, "--help") || !strcmp(verb, "help") || !strcmp(verb, "--version")) {
		fputs(strcmp(verb, "--version") ? usage : mg_version(), stdout);
		*done = true;
		return 0;
	}
	if (which < 0)
		return refuse("%s%s: demo, send, receive, save or restore", *verb ? "no such command: " : "which command", verb);
	*o = (struct options){
		.verb = (enum verb)(1 << which),
		.machine = {.memory_bytes = 1u << 30, .vcpus = 1, .workload = GV_SWEEP, .rate = 20000, .fill_percent = 50,
			    .seed = 1},
		.migration = {.downtime_ms = 300, .recover_ms = 60000, .device_rate = 1, .verify = 1 << which == DEMO},
		.after = 1,
		.ledger_fd = -1,
		.socket_fd = -1,
	};
	/* The command stands where getopt expects the program's name. */
	return parse_options(argc - 1, argv + 1, o, done);
}
