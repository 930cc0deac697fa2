/*
 * New connections for a guest whose memory was on its way when the old ones were lost (docs/postcopy.md).
 */
#ifndef MINIVMM_RECOVER_H
#define MINIVMM_RECOVER_H

#include <brant.h>

#include <stdbool.h>
#include <stdint.h>

struct recovery {
	uint64_t limit_ms; /* how long new connections are tried */
	bool give_up;      /* the user does not want to wait any longer */
	uint64_t since_ms, next_ms, recoveries;
};

/* Called now and then while a migration goes on. Nothing happens unless it is interrupted. Then new connections are
 * tried at `endpoint`; when the time is over or there is no endpoint (NULL), the memory that has not arrived is given up. */
void recover_outgoing(struct recovery *r, brant_outgoing *out, const char *endpoint);
void recover_incoming(struct recovery *r, brant_incoming *in, const char *endpoint);

/* Whether a migration's connections are lost, and not yet made anew. */
bool is_interrupted(uint32_t state);

#endif
