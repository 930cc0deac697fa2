/*
 * A program of the Linux guest's: writes its disk block by block, round by round, and reads each block before, past the
 * guest's page cache. A write that got lost, came twice or was torn is a line that begins with WRONG.
 * c-tests/linux.c reads the file afterwards, and knows what is in a sector from here.
 */
#define _GNU_SOURCE
#include "disk.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	int disk = open(argc > 1 ? argv[1] : "/dev/vda", O_RDWR | O_DIRECT);
	uint64_t(*block)[DISK_WORDS] = aligned_alloc(4096, DISK_BLOCK);

	setvbuf(stdout, NULL, _IOLBF, 0);
	if (disk < 0 || !block)
		return puts("WRONG: no disk"), 1;
	for (uint64_t round = 1;; round++) {
		for (uint64_t at = 0; at < DISK_SECTORS; at += DISK_BLOCK / DISK_SECTOR) {
			if (pread(disk, block, DISK_BLOCK, at * DISK_SECTOR) != DISK_BLOCK)
				printf("WRONG: round %llu, sector %llu cannot be read\n", (unsigned long long)round,
				       (unsigned long long)at);
			for (uint64_t i = 0; i < DISK_BLOCK / DISK_SECTOR; i++)
				for (uint64_t word = 0; word < DISK_WORDS; word++) {
					if (block[i][word] != disk_value(round - 1, at + i, word))
						printf("WRONG: round %llu, sector %llu, word %llu\n",
						       (unsigned long long)round, (unsigned long long)(at + i),
						       (unsigned long long)word);
					block[i][word] = disk_value(round, at + i, word);
				}
			if (pwrite(disk, block, DISK_BLOCK, at * DISK_SECTOR) != DISK_BLOCK)
				printf("WRONG: round %llu, sector %llu cannot be written\n", (unsigned long long)round,
				       (unsigned long long)at);
			usleep(2000);
		}
		printf("disk %llu\n", (unsigned long long)round);
	}
}
