/*
 * The KVM backend: VM, memory slots, vCPUs and the run loop; brant saves and loads their state (state.c). x86-64 only,
 * without an in-kernel interrupt controller and without interrupts: the guest computes and asks (guest.c).
 *
 * The guest starts in 64-bit mode at privilege level 3, and never executes an instruction at level 0 or in an earlier
 * mode. KVM_SET_SREGS puts the vCPU there, on page tables that are ready in guest memory. All segment state has the
 * values that the processor itself would have, because VMX checks them at every entry (Intel SDM vol. 3, "Checks on
 * Guest Segment Registers"): accessed code and data segments of level 3, a busy 64-bit TSS in TR, no LDT. The two
 * ports are opened to level 3 in two ways. A processor needs only IOPL 3. A KVM without hardware of its own that runs
 * level 3 natively (KVM-PVM) loses IOPL at the first entry, and uses the TSS's I/O bitmap. QEMU's emulated SVM
 * refuses a bitmap in a busy TSS, and uses IOPL. There is no IDT: any exception is a triple fault, which KVM reports
 * as KVM_EXIT_SHUTDOWN.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "internal.h"

/* <linux/kvm.h> of older systems lacks it. */
#ifndef KVM_EXIT_DIRTY_RING_FULL
#define KVM_EXIT_DIRTY_RING_FULL 31
#endif

#define CPUID_MAX 256

extern const unsigned char mv_guest_image[], mv_guest_image_end[];

/* ---- VM and slots ---------------------------------------------------------------------------------------------- */

static int open_kvm(char *why, size_t why_len)
{
	int fd = open("/dev/kvm", O_RDWR | O_CLOEXEC), version;

	if (fd < 0) {
		snprintf(why, why_len, "cannot open /dev/kvm: %s", strerror(errno));
		return -1;
	}
	version = ioctl(fd, KVM_GET_API_VERSION, 0);
	if (version == KVM_API_VERSION && ioctl(fd, KVM_CHECK_EXTENSION, KVM_CAP_IMMEDIATE_EXIT) > 0)
		return fd;
	snprintf(why, why_len, "/dev/kvm has API version %d (12 is needed) or lacks KVM_CAP_IMMEDIATE_EXIT", version);
	close(fd);
	return -1;
}

int mv_kvm_available(char *why, size_t why_len)
{
	int fd = open_kvm(why, why_len), vm;

	if (fd < 0)
		return -1;
	vm = ioctl(fd, KVM_CREATE_VM, 0);
	if (vm < 0)
		snprintf(why, why_len, "KVM_CREATE_VM: %s", strerror(errno));
	else
		close(vm);
	close(fd);
	return vm < 0 ? -1 : 0;
}

/* Every feature that KVM supports here. A VMM that migrates between different hosts offers their common part instead.
 */
static int set_cpuid(struct mv_vcpu *v, struct kvm_cpuid2 *cpuid)
{
	return ioctl(v->fd, KVM_SET_CPUID2, cpuid) < 0 ? mvi_error(v->m, "KVM_SET_CPUID2: %s", strerror(errno)) : 0;
}

static int create_vcpu(struct mv_vcpu *v, struct kvm_cpuid2 *cpuid)
{
	struct mv_machine *m = v->m;
	int bytes = ioctl(m->kvm_fd, KVM_GET_VCPU_MMAP_SIZE, 0);
	void *run;

	v->fd = ioctl(m->vm_fd, KVM_CREATE_VCPU, (unsigned long)v->index);
	if (v->fd < 0)
		return mvi_error(m, "KVM_CREATE_VCPU %u: %s", v->index, strerror(errno));
	if (bytes < (int)sizeof *v->run)
		return mvi_error(m, "KVM_GET_VCPU_MMAP_SIZE: %d", bytes);
	run = mmap(NULL, (size_t)bytes, PROT_READ | PROT_WRITE, MAP_SHARED, v->fd, 0);
	if (run == MAP_FAILED)
		return mvi_error(m, "cannot map the state of vCPU %u: %s", v->index, strerror(errno));
	v->run = run;
	v->run_bytes = (size_t)bytes;
	return set_cpuid(v, cpuid);
}

static int create(struct mv_machine *m)
{
	const struct mv_hooks *hooks = &m->config.hooks;
	struct kvm_cpuid2 *cpuid;
	int status = 0;

	m->kvm_fd = open_kvm(m->call_error, sizeof m->call_error);
	if (m->kvm_fd < 0)
		return -1;
	m->vm_fd = ioctl(m->kvm_fd, KVM_CREATE_VM, 0);
	if (m->vm_fd < 0)
		return mvi_error(m, "KVM_CREATE_VM: %s", strerror(errno));
	if (hooks->vm_created && hooks->vm_created(hooks->opaque, m->vm_fd) < 0)
		return mvi_error(m, "the vm_created hook refused");
	for (unsigned i = 0; i < m->nslots; i++) {
		const struct mv_slot *s = &m->slots[i];
		struct kvm_userspace_memory_region slot = {
			.slot = s->id,
			.flags = s->flags,
			.guest_phys_addr = s->gpa,
			.memory_size = s->bytes,
			.userspace_addr = (uintptr_t)s->host,
		};

		if (ioctl(m->vm_fd, KVM_SET_USER_MEMORY_REGION, &slot) < 0)
			return mvi_error(m, "KVM_SET_USER_MEMORY_REGION, slot %u of %llu bytes at %#llx: %s", s->id,
					 (unsigned long long)s->bytes, (unsigned long long)s->gpa, strerror(errno));
	}
	cpuid = m->cpuid = calloc(1, sizeof *cpuid + CPUID_MAX * sizeof cpuid->entries[0]);
	if (!cpuid)
		return mvi_error(m, "out of memory");
	cpuid->nent = CPUID_MAX;
	if (ioctl(m->kvm_fd, KVM_GET_SUPPORTED_CPUID, cpuid) < 0)
		status = mvi_error(m, "KVM_GET_SUPPORTED_CPUID: %s", strerror(errno));
	for (unsigned i = 0; i < m->nvcpus && status == 0; i++)
		status = create_vcpu(&m->vcpus[i], cpuid);
	return status;
}

static void destroy(struct mv_machine *m)
{
	for (unsigned i = 0; i < m->nvcpus; i++) {
		if (m->vcpus[i].run)
			munmap(m->vcpus[i].run, m->vcpus[i].run_bytes);
		if (m->vcpus[i].fd >= 0)
			close(m->vcpus[i].fd);
	}
	free(m->cpuid);
	if (m->vm_fd >= 0)
		close(m->vm_fd);
	if (m->kvm_fd >= 0)
		close(m->kvm_fd);
}

/* ---- a fresh guest --------------------------------------------------------------------------------------------- */

#define CODE_SELECTOR (1 << 3 | 3)
#define DATA_SELECTOR (2 << 3 | 3)
#define TSS_SELECTOR (3 << 3)
#define TSS_GPA (GV_GDT_GPA + 0x100)
#define TSS_BYTES 0x68
/* The I/O permission bitmap: a clear bit allows the port. One byte of ones must follow the last byte. */
#define IO_BITMAP_BYTES ((GV_PORT_PANIC + 4) / 8)
#define TSS_LIMIT (TSS_BYTES + IO_BITMAP_BYTES)

/* Present, writable, user. Accessed and dirty are set too, so that the processor never writes to the tables. */
#define PTE_TABLE 0x27ull
#define PTE_PAGE_2M 0xe7ull

static uint64_t *table(struct mv_machine *m, uint64_t index)
{
	return mv_host(m, m->tables_gpa + index * MV_PAGE, MV_PAGE);
}

/* One PML4, then the PDPTs, then the PDs: all of memory, one to one, in 2 MiB pages. */
static void write_page_tables(struct mv_machine *m)
{
	uint64_t first_pd = 1 + m->ntables_pdpt;

	for (uint64_t i = 0; i < m->ntables_pdpt; i++)
		table(m, 0)[i] = (m->tables_gpa + (1 + i) * MV_PAGE) | PTE_TABLE;
	for (uint64_t i = 0; i < m->ntables_pd; i++)
		table(m, 1 + i / 512)[i % 512] = (m->tables_gpa + (first_pd + i) * MV_PAGE) | PTE_TABLE;
	for (uint64_t at = 0; at < m->bytes; at += 2ull << 20)
		table(m, first_pd + (at >> 30))[(at >> 21) % 512] = at | PTE_PAGE_2M;
}

static void write_descriptors(struct mv_machine *m)
{
	uint64_t *gdt = mv_host(m, GV_GDT_GPA, MV_PAGE);
	uint8_t *tss = mv_host(m, TSS_GPA, TSS_LIMIT + 1);

	gdt[1] = 0x00affb000000ffffull; /* code, level 3, 64-bit, accessed */
	gdt[2] = 0x00cff3000000ffffull; /* data, level 3, accessed */
	gdt[3] = 0x00008b0000000000ull | TSS_LIMIT | (uint64_t)TSS_GPA << 16; /* busy 64-bit TSS below 16 MiB */
	gdt[4] = 0;
	tss[0x66] = TSS_BYTES; /* where the bitmap begins */
	memset(tss + TSS_BYTES, 0xff, IO_BITMAP_BYTES + 1);
	for (unsigned port = GV_PORT_BURST; port < GV_PORT_PANIC + 4; port++)
		tss[TSS_BYTES + port / 8] &= (uint8_t)~(1u << port % 8);
}

static struct kvm_segment segment(uint16_t selector, uint8_t type, bool code)
{
	return (struct kvm_segment){
		.limit = 0xffffffff,
		.selector = selector,
		.type = type,
		.present = 1,
		.dpl = 3,
		.db = !code,
		.s = 1,
		.l = code,
		.g = 1,
	};
}

static int reset_vcpu(struct mv_vcpu *v)
{
	struct mv_machine *m = v->m;
	struct kvm_segment data = segment(DATA_SELECTOR, 3, false);
	struct kvm_sregs s;
	struct kvm_regs r = {
		.rip = GV_CODE_GPA,
		.rflags = 0x3002, /* IOPL 3 */
		.rdi = mvi_mailbox_gpa(v->index),
		/* As after a call: 8 bytes off a multiple of 16. */
		.rsp = mvi_mailbox_gpa(v->index) + GV_VCPU_PAGES * GV_PAGE - 8,
	};

	if (ioctl(v->fd, KVM_GET_SREGS, &s) < 0)
		return mvi_error(m, "KVM_GET_SREGS: %s", strerror(errno));
	s.cs = segment(CODE_SELECTOR, 11, true);
	s.ds = s.es = s.fs = s.gs = s.ss = data;
	s.tr = (struct kvm_segment){
		.base = TSS_GPA,
		.limit = TSS_LIMIT,
		.selector = TSS_SELECTOR,
		.type = 11,
		.present = 1,
	};
	s.ldt = (struct kvm_segment){.type = 2, .unusable = 1};
	s.gdt = (struct kvm_dtable){.base = GV_GDT_GPA, .limit = 5 * 8 - 1};
	s.idt = (struct kvm_dtable){.base = 0, .limit = 0};
	s.cr0 = 0x80050033; /* PG AM WP NE ET MP PE */
	s.cr2 = 0;
	s.cr3 = m->tables_gpa;
	s.cr4 = 0x20;   /* PAE */
	s.efer = 0x500; /* LMA LME */
	if (ioctl(v->fd, KVM_SET_SREGS, &s) < 0)
		return mvi_error(m, "KVM_SET_SREGS: %s", strerror(errno));
	if (ioctl(v->fd, KVM_SET_REGS, &r) < 0)
		return mvi_error(m, "KVM_SET_REGS: %s", strerror(errno));
	return 0;
}

static int boot(struct mv_machine *m)
{
	size_t image = (size_t)(mv_guest_image_end - mv_guest_image);

	if (image > GV_CODE_MAX || mv_write(m, GV_CODE_GPA, mv_guest_image, image) < 0)
		return mvi_error(m, "the guest program of %zu bytes does not fit", image);
	write_descriptors(m);
	write_page_tables(m);
	for (unsigned i = 0; i < m->nvcpus; i++)
		if (reset_vcpu(&m->vcpus[i]) < 0)
			return -1;
	return 0;
}

/* ---- running --------------------------------------------------------------------------------------------------- */

static int on_io(struct mv_vcpu *v)
{
	struct kvm_run *run = v->run;
	uint32_t value;
	unsigned char *data = (unsigned char *)run + run->io.data_offset;

	if (run->io.size == 4 && run->io.count == 1) {
		if (run->io.direction == KVM_EXIT_IO_IN && run->io.port == GV_PORT_BURST) {
			value = mvi_pace(v);
			mvi_answer(v, value);
			/* The value reaches the guest's register at the next KVM_RUN, and not before. */
			memcpy(data, &value, sizeof value);
			return 0;
		}
		if (run->io.direction == KVM_EXIT_IO_OUT && run->io.port == GV_PORT_PANIC)
			return mvi_dead(v, "the guest found no valid mailbox");
	}
	return mvi_dead(v, "unexpected %s of %u bytes at port %#x", run->io.direction == KVM_EXIT_IO_IN ? "in" : "out",
			run->io.size, run->io.port);
}

static int dead_exit(struct mv_vcpu *v)
{
	struct kvm_run *run = v->run;
	struct kvm_regs r = {0};

	ioctl(v->fd, KVM_GET_REGS, &r);
	switch (run->exit_reason) {
	case KVM_EXIT_SHUTDOWN:
		return mvi_dead(v, "triple fault at rip %#llx", r.rip);
	case KVM_EXIT_MMIO:
		return mvi_dead(v, "access to %#llx, where no memory is, at rip %#llx", run->mmio.phys_addr, r.rip);
	case KVM_EXIT_FAIL_ENTRY:
		return mvi_dead(v, "entry failed: hardware reason %#llx", run->fail_entry.hardware_entry_failure_reason);
	case KVM_EXIT_INTERNAL_ERROR:
		return mvi_dead(v, "KVM internal error %u at rip %#llx", run->internal.suberror, r.rip);
	default:
		return mvi_dead(v, "unexpected exit %u at rip %#llx", run->exit_reason, r.rip);
	}
}

static int run_vcpu(struct mv_vcpu *v)
{
	const struct mv_hooks *hooks = &v->m->config.hooks;
	brant_error *e;

	for (;;) {
		int32_t code = brant_gate_vcpu_run(v->at, &e); /* waits here while the guest is paused */

		if (code) {
			int status = code == BRANT_E_CANCELLED ? 0 : mvi_dead(v, "%s", brant_error_message(e));

			brant_error_free(e);
			return status;
		}
		switch (v->run->exit_reason) {
		case KVM_EXIT_INTR: /* somebody wanted it out */
			break;
		case KVM_EXIT_IO:
			if (on_io(v) < 0)
				return -1;
			break;
		case KVM_EXIT_DIRTY_RING_FULL:
			if (!hooks->dirty_ring_full)
				return mvi_dead(v, "the dirty ring is full and nobody empties it");
			if (hooks->dirty_ring_full(hooks->opaque, v->index) < 0)
				return mvi_dead(v, "the dirty ring is full and could not be emptied");
			break;
		default:
			return dead_exit(v);
		}
	}
}

const struct mv_backend mvi_kvm_backend = {
	.create = create,
	.destroy = destroy,
	.boot = boot,
	.run = run_vcpu,
};
