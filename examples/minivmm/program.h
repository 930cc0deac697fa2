/*
 * What the commands share: a machine with its migration, and what is said of it.
 *
 *   main.c   send and receive
 *   demo.c   demo: both in one, in two processes, with a check across them
 */
#ifndef MINIVMM_PROGRAM_H
#define MINIVMM_PROGRAM_H

#include "machine.h"
#include "migrate.h"
#include "options.h"

struct ledger;

struct program {
	const struct options *o;
	struct mv_machine *machine;
	struct migration *migration;
	struct ledger *ledger; /* of a demo */
	/* The signal that ended the program; 0 for none. */
	int ended_by;
	/* The guest's page writes at the last look, and the time of that look. */
	uint64_t seen_writes;
	double seen_at;
};

/* Makes the machine and everything to migrate it. Prints the reason on stderr if it cannot. */
int program_new(struct program *p, bool incoming);
void program_free(struct program *p);
/* "a KVM guest of 1024 MiB with 4 vCPUs". */
const char *program_machine(struct program *p);

/* Tells how long the guest stood still, and each part of it beside what was promised. */
void program_tell_downtime(const struct mg_result *result);
/* Starts the guest, and lets it run as long as --after says. -1 if it could not start, or if the user wants an end.
 */
int program_start(struct program *p);
/* Migrates the running guest. -1 with the reason on stderr. */
int program_migrate(struct program *p, const char *endpoint, int fd, struct mg_result *result);
/* After a failure: prints where the guest is, and checks a guest that runs on. Returns the command's status. */
int program_failed(struct program *p, const struct mg_result *result);
/* Whether the guest goes on here, by its own word: it counts on, and its pages hold what it wrote. */
int program_check(struct program *p, uint64_t writes_before, uint64_t *writes, uint64_t *bad, uint64_t *errors, char *why,
		  size_t why_len);

/* demo.c. */
int demo(const struct options *o);
int demo_receiver(const struct options *o);
/* Called when the guest has left, and when it has arrived. */
void demo_frozen(struct program *p);
void demo_arrived(struct program *p);

#endif
