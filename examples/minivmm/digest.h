/*
 * One 64-bit digest a page, to compare the memory of two machines page by page while their guests stand still.
 */
#ifndef MINIVMM_DIGEST_H
#define MINIVMM_DIGEST_H

#include "machine.h"

/* The digest of 4096 bytes. It is not cryptographic: it finds mistakes, not forgeries. */
uint64_t mv_digest_page(const void *page);

/* Digests of all pages of all regions, in the order of guest addresses, into out[mv_memory_bytes(m) / 4096].
 * Untouched pages count as zeros, and stay untouched. Returns the number of pages, or -1. */
long long mv_digest_pages(struct mv_machine *m, uint64_t *out);

#endif
