/*
 * A Linux kernel's way into memory, by its boot protocol (Documentation/arch/x86/boot.rst in the kernel's source) and
 * its 32-bit entry, and the few ACPI tables from which it learns of vCPUs and of the interrupt controllers.
 */
#include "serialvmm.h"
#include "virtio.h"

#include <asm/bootparam.h>
#include <linux/kvm.h>
#include <sys/ioctl.h>

#define PARAMS_AT 0x10000
#define OPTIONS_AT 0x20000
#define TABLES_AT 0xf0000
#define KERNEL_AT 0x100000
#define LOW_END 0x9fc00
/* What a console on the serial port needs; PCI is not there. */
#define OPTIONS "console=ttyS0 pci=off reboot=k panic=1 "

static _Noreturn void die(const char *what, const char *file)
{
	fprintf(stderr, "serialvmm: %s: %s\n", file, what);
	exit(1);
}

/* Reads `file` from `offset` on, to its end. Returns the bytes read. */
static size_t read_file(const char *file, long offset, uint8_t *to, size_t room)
{
	FILE *in = fopen(file, "rb");
	size_t length;

	if (!in || fseek(in, offset, SEEK_SET))
		die("cannot be read", file);
	length = fread(to, 1, room, in);
	if (length == room && fgetc(in) != EOF)
		die("does not fit into the guest's memory", file);
	fclose(in);
	return length;
}

static uint8_t checksum(const uint8_t *bytes, size_t length)
{
	uint8_t sum = 0;

	while (length--)
		sum += *bytes++;
	return (uint8_t)-sum;
}

/* The header of an ACPI table at `at`, whose contents follow it; returns the byte behind the table. */
static uint8_t *table(uint8_t *at, const char *signature, uint8_t revision, const void *contents, uint32_t bytes)
{
	uint32_t length = 36 + bytes;

	memset(at, 0, 36);
	memcpy(at, signature, 4);
	memcpy(at + 4, &length, 4);
	at[8] = revision;
	memcpy(at + 10, "BRANT SERIALVMBRNT", 18);
	memcpy(at + 36, contents, bytes);
	at[9] = checksum(at, length);
	return at + ((length + 15) & ~15u);
}

/*
 * The DSDT's contents: for each virtio device its registers and its interrupt, in the bytecode of chapter 20 of the ACPI
 * specification. Returns their length.
 */
static uint32_t describe_devices(uint8_t *to, unsigned devices)
{
	/* Device (VRT0) {Name (_HID, "LNRO0005") Name (_UID, 0) Name (_CRS, ResourceTemplate () {…})} */
	static const uint8_t device[] =
		"\x5b\x82\x3b" "VRT0" "\x08_HID\x0d" "LNRO0005\0" "\x08_UID\x0a\0" "\x08_CRS\x11\x1a\x0a\x17"
		"\x86\x09\0\x01" "base" "size" /* memory of a fixed address, to be read and written */
		"\x89\x06\0\x01\x01" "line"   /* one interrupt, by level, active high */
		"\x79";                        /* the end, with its sum, which may be 0 */
	uint32_t length = 2 + 5 + devices * sizeof(device);

	if (devices == 0)
		return 0;
	memcpy(to, (uint8_t[]){0x10, 0x40 | (length & 15), length >> 4, '\\', '_', 'S', 'B', '_'}, 8);
	to += 8;
	for (uint32_t i = 0; i < devices; i++, to += sizeof(device)) {
		memcpy(to, device, sizeof(device));
		to[6] += i;
		to[28] = i;
		memcpy(to + 42, &(uint32_t){VIRTIO_AT + i * VIRTIO_STEP}, 4);
		memcpy(to + 46, &(uint32_t){VIRTIO_STEP}, 4);
		memcpy(to + 55, &(uint32_t){VIRTIO_IRQ + i}, 4);
	}
	return 1 + length;
}

/* Entries: see chapter 5 of the ACPI specification. */
static void describe_machine(uint8_t *memory, int vcpus)
{
	uint8_t *root = memory + TABLES_AT, *at = root + 48, madt[8 + 8 * 256 + 12 + 10] = {0}, fadt[240] = {0};
	uint8_t dsdt[8 + 64 * VIRTIO_DEVICES];
	uint32_t apic = 0xfee00000, io_apic = 0xfec00000, length = 8;
	uint64_t address, tables[2];

	/* Devices of old are there: two PICs beside the APICs. */
	memcpy(madt, &apic, 4);
	madt[4] = 1;
	for (int i = 0; i < vcpus; i++, length += 8)
		memcpy(madt + length, (uint8_t[8]){0, 8, i, i, 1, 0, 0, 0}, 8);
	memcpy(madt + length, (uint8_t[12]){1, 12, vcpus}, 12);
	memcpy(madt + length + 4, &io_apic, 4);
	length += 12;
	tables[1] = at - memory;
	at = table(at, "APIC", 3, madt, length);
	address = at - memory;
	at = table(at, "DSDT", 2, dsdt, describe_devices(dsdt, virtio_count()));
	memcpy(fadt + 40 - 36, &(uint32_t){(uint32_t)address}, 4);
	/* Without power management Linux drops ACPI whole, devices included. Its interrupt never comes, its ports are empty. */
	fadt[46 - 36] = 9;
	memcpy(fadt + 56 - 36, &(uint32_t){0x600}, 4);
	memcpy(fadt + 64 - 36, &(uint32_t){0x604}, 4);
	fadt[88 - 36] = 4, fadt[89 - 36] = 2;
	fadt[112 - 36] = 0x35;  /* no buttons, and WBINVD and HLT work */
	fadt[109 - 36] = 3;     /* ports of old devices, a keyboard controller that resets */
	memcpy(fadt + 140 - 36, &address, 8);
	tables[0] = at - memory;
	at = table(at, "FACP", 6, fadt, sizeof(fadt));
	address = at - memory;
	table(at, "XSDT", 1, tables, sizeof(tables));

	memset(root, 0, 36);
	memcpy(root, "RSD PTR ", 8);
	memcpy(root + 9, "BRANT ", 6);
	root[15] = 2;
	root[20] = 36;
	memcpy(root + 24, &address, 8);
	root[8] = checksum(root, 20);
	root[32] = checksum(root, 36);
}

void linux_load(uint8_t *memory, size_t bytes, int vcpus, const char *kernel, const char *initrd, const char *options)
{
	struct boot_params *params = (struct boot_params *)(memory + PARAMS_AT);
	uint8_t *head = calloc(1, 4096);
	struct setup_header *header = (struct setup_header *)(head + 0x1f1);
	FILE *in = fopen(kernel, "rb");
	long setup;

	if (!in || fread(head, 1, 4096, in) != 4096 || memcmp(&header->header, "HdrS", 4) || header->version < 0x20a)
		die("no bzImage of boot protocol 2.10 or later", kernel);
	fclose(in);
	setup = ((header->setup_sects ? header->setup_sects : 4) + 1) * 512L;
	memset(params, 0, sizeof(*params));
	params->hdr = *header;
	read_file(kernel, setup, memory + KERNEL_AT, bytes - KERNEL_AT);
	if (initrd) {
		/* At the end of memory, where the kernel that unpacks itself does not come. */
		size_t room = bytes / 2, length = read_file(initrd, 0, memory + bytes - room, room);
		size_t at = (bytes - length) & ~4095ul;

		memmove(memory + at, memory + bytes - room, length);
		params->hdr.ramdisk_image = at;
		params->hdr.ramdisk_size = length;
	}
	params->hdr.type_of_loader = 0xff;
	params->hdr.cmd_line_ptr = OPTIONS_AT;
	snprintf((char *)memory + OPTIONS_AT, 2048, OPTIONS "%s", options);
	params->e820_entries = 2;
	params->e820_table[0] = (struct boot_e820_entry){.addr = 0, .size = LOW_END, .type = 1};
	params->e820_table[1] = (struct boot_e820_entry){.addr = KERNEL_AT, .size = bytes - KERNEL_AT, .type = 1};
	describe_machine(memory, vcpus);
	params->acpi_rsdp_addr = TABLES_AT;
	free(head);
}

void linux_enter(int vcpu_fd)
{
	struct kvm_regs regs = {.rip = KERNEL_AT, .rsi = PARAMS_AT, .rflags = 2};
	struct kvm_segment flat = {.limit = 0xffffffff, .selector = 0x18, .type = 3, .present = 1, .db = 1, .s = 1, .g = 1};
	struct kvm_sregs sregs;

	if (ioctl(vcpu_fd, KVM_GET_SREGS, &sregs))
		die("KVM_GET_SREGS", "vCPU 0");
	sregs.ds = sregs.es = sregs.fs = sregs.gs = sregs.ss = flat;
	sregs.cs = flat;
	sregs.cs.selector = 0x10, sregs.cs.type = 0xb;
	sregs.cr0 |= 1;
	if (ioctl(vcpu_fd, KVM_SET_SREGS, &sregs) || ioctl(vcpu_fd, KVM_SET_REGS, &regs))
		die("KVM_SET_REGS", "vCPU 0");
}
