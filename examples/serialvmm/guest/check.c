/*
 * A program of the Linux guest's: writes all pages of 16 MiB round by round, and checks before each write that the page
 * is as the round before left it. A lost page, and one from another time, is a line that begins with WRONG.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#define PAGES 4096u
#define WORDS 512u
/* Words of a page that are written. */
#define STEP 64u

static uint64_t value(uint64_t round, uint64_t page, uint64_t word)
{
	return round ? (round << 32 | page << 12 | word) * 0x9e3779b97f4a7c15u : 0;
}

int main(void)
{
	uint64_t(*memory)[WORDS] = calloc(PAGES, sizeof(*memory));

	setvbuf(stdout, NULL, _IOLBF, 0);
	if (!memory)
		return puts("WRONG: no memory"), 1;
	for (uint64_t round = 1;; round++) {
		for (uint64_t page = 0; page < PAGES; page++) {
			for (uint64_t word = 0; word < WORDS; word += STEP) {
				if (memory[page][word] != value(round - 1, page, word))
					printf("WRONG: round %llu, page %llu, word %llu\n", (unsigned long long)round,
					       (unsigned long long)page, (unsigned long long)word);
				memory[page][word] = value(round, page, word);
			}
			if (page % 32 == 31)
				usleep(5000);
		}
		printf("checked %llu\n", (unsigned long long)round);
	}
}
