/*
 * One 64-bit digest a page, to compare the memory of two machines page by page. For guests that stand still.
 */
#ifndef MINIVMM_DIGEST_H
#define MINIVMM_DIGEST_H

#include "machine.h"

/* Of 4096 bytes. Not cryptographic: it finds mistakes, not forgeries. */
uint64_t mv_digest_page(const void *page);

/* Digests of all pages of all regions, in guest address order, into out[mv_memory_bytes(m) / 4096]. Pages that were
 * never touched count as zeros and are not touched by this. Returns the number of pages, or -1. */
long long mv_digest_pages(struct mv_machine *m, uint64_t *out);

#endif
