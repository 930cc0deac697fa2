/*
 * The command line: the options of each command, their ranges, and which of them go together. All of it is checked
 * before there is a guest.
 */
#ifndef MINIVMM_OPTIONS_H
#define MINIVMM_OPTIONS_H

#include "machine.h"
#include "migrate.h"

enum verb { DEMO = 1, SEND = 2, RECEIVE = 4, SAVE = 8, RESTORE = 16 };
enum transport { TCP, UNIX, FD };

struct options {
	enum verb verb;
	struct mv_config machine;
	struct mg_options migration;
	enum transport transport;
	bool json;
	double after; /* seconds that the guest runs before it migrates */
	const char *endpoint; /* of send and receive */
	const char *path;     /* of save and restore */
	/* By these a demo's second process finds the first; -1 in any other process. */
	int ledger_fd, socket_fd;
};

extern const char *const options_workloads[]; /* by enum gv_workload */

/* Reads the command line. Returns 0, or the exit status (0 after --help and --version, with *done true). */
int options_parse(int argc, char **argv, struct options *o, bool *done);

#endif
