/*
 * The state of a machine besides its memory, as brant's operations `early_save`, `early_load`, `save` and `load` move it.
 */
#ifndef MINIVMM_STATE_H
#define MINIVMM_STATE_H

#include <brant.h>

#include "machine.h"

/* Source, while the guest runs: what the destination needs to know of a KVM machine before it gets memory. */
int32_t mv_early_save(struct mv_machine *m, brant_saver *saver, brant_reason *reason);
/* Destination: whether this machine will be able to take the state. For blobs that mv_is_compat names. */
int32_t mv_early_load(struct mv_machine *m, const brant_state_blob *blob, brant_reason *reason);
bool mv_is_compat(const brant_state_blob *blob);

/* Tells a KVM guest that it stood still, before it runs on. */
void mv_stood_still(struct mv_machine *m);

/* Puts the state of all vCPUs, and of a KVM machine's VM, into `saver`. */
int32_t mv_save(struct mv_machine *m, brant_saver *saver, brant_reason *reason);
/* Loads one blob of it. */
int32_t mv_load(struct mv_machine *m, const brant_state_blob *blob, brant_reason *reason);

#endif
