/*
 * The program that runs inside the KVM guest, one copy of the code for all vCPUs, at privilege level 3. It
 * is the workload of workload.h between two port instructions. No libc, no data section (all vCPUs share the image),
 * no floating point. Entered by kvm.c with rdi = guest address of this vCPU's mailbox and rsp on its stack page.
 *
 * Build, in this directory (blob.S finds guest.bin through -Wa,-I):
 *
 *   gcc -std=gnu11 -O2 -Wall -Wextra -Werror -ffreestanding -fno-stack-protector -fcf-protection=none -mno-red-zone \
 *       -mgeneral-regs-only -fno-pic -fno-asynchronous-unwind-tables -fno-tree-loop-distribute-patterns \
 *       -nostdlib -static -Wl,--build-id=none -Wl,-T,guest.ld -o guest.elf guest.c
 *   objcopy -O binary guest.elf guest.bin
 *   gcc -c -Wa,-I,. blob.S -o blob.o
 */
#include <stdint.h>

struct gv_ctx {
	char unused;
};

static inline void *gv_at(struct gv_ctx *ctx, uint64_t gpa)
{
	(void)ctx;
	return (void *)gpa;
}

/* KVM sees the guest's own stores. */
static inline void gv_wrote(struct gv_ctx *ctx, uint64_t gpa, uint64_t len)
{
	(void)ctx;
	(void)gpa;
	(void)len;
}

static inline int gv_stop(struct gv_ctx *ctx)
{
	(void)ctx;
	return 0;
}

static inline uint32_t gv_ask(struct gv_ctx *ctx);

#include "workload.h"

static inline uint32_t gv_ask(struct gv_ctx *ctx)
{
	uint32_t n;

	(void)ctx;
	__asm__ volatile("inl %w1, %0" : "=a"(n) : "Nd"((uint16_t)GV_PORT_BURST) : "memory");
	return n;
}

__attribute__((section(".text.start"), noreturn)) void _start(struct gv_mailbox *mb)
{
	struct gv_ctx ctx = {0};

	if (mb->magic == GV_MAGIC)
		gv_run(&ctx, (uint64_t)mb);
	for (;;)
		__asm__ volatile("outl %0, %w1" : : "a"(1u), "Nd"((uint16_t)GV_PORT_PANIC) : "memory");
}
