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
	/* The signal that ended it, 0: none. */
	int ended_by;
	/* Guest page writes when it was looked at last, and when that was. */
	uint64_t seen_writes;
	double seen_at;
};

/* The machine and all that is needed to migrate it; said on stderr why not. */
int program_new(struct program *p, bool incoming);
void program_free(struct program *p);
/* "a KVM guest of 1024 MiB with 4 vCPUs". */
const char *program_machine(struct program *p);
/* Starts the guest and lets it run for as long as --after says; -1: it could not, or somebody wants an end. */
int program_start(struct program *p);
/* Migrates the running guest. -1: said on stderr why not. */
int program_migrate(struct program *p, const char *endpoint, int fd, struct mg_result *result);
/* After a failure: says where the guest is, and sees that it runs on where it does. The command's status. */
int program_failed(struct program *p, const struct mg_result *result);
/* Whether the guest goes on here, by its own word: it counts on, and its pages hold what it wrote. */
int program_check(struct program *p, uint64_t writes_before, uint64_t *writes, uint64_t *bad, uint64_t *errors, char *why,
		  size_t why_len);

/* demo.c. */
int demo(const struct options *o);
int demo_receiver(const struct options *o);
/* At the moment that the guest has left, and that it has come. */
void demo_frozen(struct program *p);
void demo_arrived(struct program *p);

#endif
