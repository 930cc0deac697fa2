/* What guest/disk.c writes to its disk, for it and for who looks at the file afterwards. */
#ifndef DISK_H
#define DISK_H

#include <stdint.h>

#define DISK_SECTOR 512u
#define DISK_WORDS 64u    /* of a sector */
#define DISK_BLOCK 4096u  /* written at once */
#define DISK_SECTORS 512u

/* The first word of a sector is the round that wrote it, 0 before the first one. */
static inline uint64_t disk_value(uint64_t round, uint64_t sector, uint64_t word)
{
	if (round == 0 || word == 0)
		return round;
	return (round << 32 | sector << 8 | word) * 0x9e3779b97f4a7c15u;
}

#endif
