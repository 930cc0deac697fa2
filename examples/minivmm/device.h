/*
 * A device with a large state of its own that changes while the guest runs, such as the tables of a network card. Its
 * state does not fit into a blob of `save`: the engine streams it.
 */
#ifndef MINIVMM_DEVICE_H
#define MINIVMM_DEVICE_H

#include <brant.h>

#include <stdbool.h>
#include <stdint.h>

struct device;

/* A device of `mib` mebibytes that rewrites `rate` mebibytes of them a second while it runs. It stands still. NULL: no
 * memory. */
struct device *device_new(uint32_t mib, uint32_t rate);
void device_free(struct device *d);
int device_start(struct device *d);

/* Adds it to a guest. It must outlive the guest. */
int32_t device_add(struct device *d, brant_guest *guest, brant_error **error);

#endif
