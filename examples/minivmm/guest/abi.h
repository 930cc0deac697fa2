/*
 * The agreement between the guest program and the VMM: the layout of a vCPU's mailbox, the device page, the stamp
 * that a write leaves in a page, and the I/O ports. Included by guest.c (freestanding), machine.c and process.c. The
 * only code here is a few pure functions that both sides must compute alike.
 */
#ifndef MINIVMM_GUEST_ABI_H
#define MINIVMM_GUEST_ABI_H

#include <stdint.h>

#define GV_PAGE 4096u
#define GV_WORDS (GV_PAGE / 8u)

/* Guest physical addresses equal guest virtual ones: the boot page tables map everything one to one. */
#define GV_GDT_GPA 0x1000u     /* GDT, and behind it the TSS */
#define GV_CODE_GPA 0x10000u   /* must equal the address in guest.ld */
#define GV_CODE_MAX 0x10000u   /* bytes reserved for the program */
#define GV_VCPU_GPA 0x20000u   /* per vCPU: mailbox page, device page, stack page */
#define GV_VCPU_PAGES 3u

/* in  eax, GV_PORT_BURST: "what next?". The VMM answers with the number of pages to write before the next question;
 *     0 means "look at your mailbox and ask again". The VMM paces the guest by how long it takes to answer.
 * out GV_PORT_PANIC, eax: the guest found its mailbox unusable. */
#define GV_PORT_BURST 0x500u
#define GV_PORT_PANIC 0x504u

#define GV_MAGIC 0x6d696e69766d6d31ull

enum gv_workload {
	GV_IDLE = 0,   /* writes nothing at all */
	GV_SWEEP = 1,  /* every page in order, again and again */
	GV_RANDOM = 2, /* pages at random */
	GV_HOT = 3,    /* nine writes in ten go to a hot set, the rest anywhere */
	GV_MIXED = 4,  /* as GV_HOT, but the upper half of the partition is never touched */
};

/* One page for each vCPU. Three cache lines: written by the VMM before the first instruction; written
 * only by the guest; written by the VMM at run time. (Each such store is marked, because KVM does not see it.) */
struct gv_mailbox {
	uint64_t magic;
	uint64_t vcpu;
	uint64_t first_gpa;  /* this vCPU's partition of the work area */
	uint64_t npages;
	uint64_t record_gpa; /* uint64_t[npages]: sequence number of the last write to each page; 0 = never */
	uint64_t device_gpa;
	uint64_t hot_pages;
	uint64_t pad0;

	uint64_t writes;        /* pages written = the newest sequence number whose record is in place */
	uint64_t loops;         /* times the partition's page count was written */
	uint64_t rng;
	uint64_t pos;           /* next page of GV_SWEEP */
	uint64_t bursts;        /* answers greater than 0 received */
	uint64_t device_errors; /* answers whose device page did not hold what the VMM had written */
	uint64_t pad1[2];

	uint64_t check_done; /* the last check_request that was carried out */
	uint64_t check_bad;  /* pages that did not hold what their record says */
	uint64_t check_gpa;  /* the first of them */
	uint64_t pad2[5];

	uint64_t workload;      /* enum gv_workload */
	uint64_t check_request; /* raised by one to ask for a check */
	uint64_t pad3[6];
};

/* The VMM writes this page with every answer greater than 0, as a device would by DMA, and the guest compares it. If
 * a migration loses a write of the VMM's, device_errors on the destination counts it. */
struct gv_device {
	uint64_t seq;
	uint64_t stamp; /* gv_mix(seq) */
};

/* Words that the guest and the VMM use at the same time. Plain moves on x86, in release order, so that a reader that
 * sees a record also sees the page's write. */
static inline uint64_t gv_get(const uint64_t *p)
{
	return __atomic_load_n(p, __ATOMIC_ACQUIRE);
}

static inline void gv_put(uint64_t *p, uint64_t v)
{
	__atomic_store_n(p, v, __ATOMIC_RELEASE);
}

/* splitmix64's finaliser. */
static inline uint64_t gv_mix(uint64_t x)
{
	x += 0x9e3779b97f4a7c15ull;
	x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
	x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
	return x ^ (x >> 31);
}

/* The value that a write with sequence number `seq` to the page at `gpa` stores in the page's first word. The last
 * word gets its complement, and another word, which moves from write to write, gets it rotated. */
static inline uint64_t gv_stamp(uint64_t gpa, uint64_t seq)
{
	return gv_mix(seq ^ (gpa << 20) ^ (gpa >> 12));
}

static inline unsigned gv_moving_word(uint64_t stamp)
{
	return 1u + (unsigned)((stamp >> 32) % (GV_WORDS - 2u));
}

static inline uint64_t gv_moving_stamp(uint64_t stamp)
{
	return (stamp << 17) | (stamp >> 47);
}

static inline int gv_page_holds(const uint64_t *word, uint64_t gpa, uint64_t seq)
{
	uint64_t stamp = gv_stamp(gpa, seq);

	return gv_get(&word[0]) == stamp && gv_get(&word[gv_moving_word(stamp)]) == gv_moving_stamp(stamp) &&
	       gv_get(&word[GV_WORDS - 1]) == ~stamp;
}

#endif
