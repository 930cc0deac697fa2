/*
 * A whole VMM for a Linux guest with a serial console, and its live migration: what a small VMM has to write when it
 * leaves the rest to brant. The guest has an interrupt controller and a timer of KVM's.
 *
 *     serialvmm --kernel bzImage --initrd FILE --to unix:/tmp/b            the guest begins here
 *     serialvmm --listen unix:/tmp/b                                       and moves there on SIGUSR1
 *
 * With both --listen and --to the guest can come back: after it has left, the program waits for it again.
 * linux.c puts the kernel into memory, uart.c is the serial port; virtio.c and its neighbours are a console and a disk.
 */
#define _GNU_SOURCE
#include "serialvmm.h"
#include "virtio.h"

#include <fcntl.h>
#include <linux/kvm.h>
#include <pthread.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#define MAX_VCPUS 8

static struct {
	int kvm, vm, vcpus, vcpu[MAX_VCPUS];
	uint8_t *memory;
	size_t bytes;
	struct uart uart;
	struct kvm_cpuid2 *cpuid;
	brant_guest *guest;
	brant_tracker *tracker;
	brant_gate *gate;
	brant_gate_device *console;
} vm = {.vcpus = 1, .bytes = 128 << 20};

/* ---- the machine ---- */

/* The same processor on every host: what this KVM supports, with the vCPU's own number in it. */
static void set_cpuid(int vcpu)
{
	for (unsigned i = 0; i < vm.cpuid->nent; i++) {
		struct kvm_cpuid_entry2 *leaf = &vm.cpuid->entries[i];

		if (leaf->function == 1) {
			leaf->ebx = (leaf->ebx & 0xffff) | vcpu << 24 | vm.vcpus << 16;
			/* A guest that knows of its hypervisor takes KVM's clock. */
			leaf->ecx |= 1u << 31;
		}
		if (leaf->function == 0xb || leaf->function == 0x1f)
			leaf->edx = vcpu;
	}
	must(ioctl(vm.vcpu[vcpu], KVM_SET_CPUID2, vm.cpuid), "KVM_SET_CPUID2");
}

static void make_machine(void)
{
	struct kvm_pit_config pit = {.flags = KVM_PIT_SPEAKER_DUMMY};
	struct kvm_userspace_memory_region slot = {.memory_size = vm.bytes};

	vm.kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	must(vm.kvm < 0, "/dev/kvm");
	vm.vm = ioctl(vm.kvm, KVM_CREATE_VM, 0);
	must(vm.vm < 0, "KVM_CREATE_VM");
	must(ioctl(vm.vm, KVM_SET_TSS_ADDR, 0xfffbd000ul), "KVM_SET_TSS_ADDR");
	must(ioctl(vm.vm, KVM_CREATE_IRQCHIP), "KVM_CREATE_IRQCHIP");
	must(ioctl(vm.vm, KVM_CREATE_PIT2, &pit), "KVM_CREATE_PIT2");
	vm.memory = mmap(NULL, vm.bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	must(vm.memory == MAP_FAILED, "guest memory");
	slot.userspace_addr = (uint64_t)vm.memory;
	must(ioctl(vm.vm, KVM_SET_USER_MEMORY_REGION, &slot), "KVM_SET_USER_MEMORY_REGION");
	vm.cpuid = calloc(1, sizeof(*vm.cpuid) + 256 * sizeof(vm.cpuid->entries[0]));
	vm.cpuid->nent = 256;
	must(ioctl(vm.kvm, KVM_GET_SUPPORTED_CPUID, vm.cpuid), "KVM_GET_SUPPORTED_CPUID");
	for (int i = 0; i < vm.vcpus; i++) {
		vm.vcpu[i] = ioctl(vm.vm, KVM_CREATE_VCPU, i);
		must(vm.vcpu[i] < 0, "KVM_CREATE_VCPU");
		set_cpuid(i);
	}
}

void irq_line(unsigned irq, bool up)
{
	struct kvm_irq_level level = {.irq = irq, .level = up};

	ioctl(vm.vm, KVM_IRQ_LINE, &level);
}

/* ---- its threads ---- */

static void port(const struct kvm_run *run, uint8_t *data)
{
	for (unsigned i = 0; i < run->io.count; i++, data += run->io.size) {
		if (run->io.port >= UART_PORT && run->io.port < UART_PORT + 8 && run->io.size == 1) {
			if (run->io.direction == KVM_EXIT_IO_OUT)
				uart_write(&vm.uart, run->io.port - UART_PORT, *data);
			else
				*data = uart_read(&vm.uart, run->io.port - UART_PORT);
		} else if (run->io.direction == KVM_EXIT_IO_IN) {
			/* The clock chip has no time to tell; nothing is behind all other ports. */
			memset(data, run->io.port == 0x71 ? 0 : 0xff, run->io.size);
		} else if (run->io.port == 0x64 && *data == 0xfe) {
			brant_gate_shut_down(vm.gate, NULL); /* the guest resets its processor */
		}
	}
}

static void *vcpu_thread(void *number)
{
	int i = (int)(intptr_t)number, length = ioctl(vm.kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
	struct kvm_run *run = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_SHARED, vm.vcpu[i], 0);
	brant_gate_vcpu *vcpu;

	must(run == MAP_FAILED, "kvm_run");
	MUST(brant_gate_add_vcpu(vm.gate, i, vm.vcpu[i], &vcpu, &e));
	while (brant_gate_vcpu_run(vcpu, NULL) == 0) { /* waits here while the guest is paused */
		switch (run->exit_reason) {
		case KVM_EXIT_IO:
			port(run, (uint8_t *)run + run->io.data_offset);
			break;
		case KVM_EXIT_MMIO:
			if (!virtio_access(run->mmio.phys_addr, run->mmio.data, run->mmio.len, run->mmio.is_write))
				memset(run->mmio.data, 0xff, sizeof(run->mmio.data));
			break;
		case KVM_EXIT_INTR:
		case KVM_EXIT_IRQ_WINDOW_OPEN:
			break;
		default:
			fprintf(stderr, "serialvmm: vCPU %d: exit %u\n", i, run->exit_reason);
			brant_gate_shut_down(vm.gate, NULL);
		}
	}
	brant_gate_vcpu_free(vcpu);
	kill(getpid(), SIGTERM); /* the guest has shut down */
	return NULL;
}

/* What is typed goes to the guest. The UART belongs to the guest's state: a thread that changes it is inside. */
static void *console_thread(void *unused)
{
	char typed;

	(void)unused;
	while (read(STDIN_FILENO, &typed, 1) == 1 &&
	       brant_gate_device_enter(vm.console, BRANT_NO_LIMIT, NULL) == 0) {
		uart_receive(&vm.uart, typed);
		brant_gate_device_leave(vm.console, NULL);
	}
	return NULL;
}

/* ---- the operations ---- */

static int32_t refuse(brant_reason *reason, brant_error *error)
{
	brant_reason_set(reason, brant_error_message(error));
	brant_error_free(error);
	return -1;
}

static int32_t early_save(void *opaque, brant_saver *saver, brant_reason *reason)
{
	brant_error *e;

	(void)opaque;
	return brant_kvm_compat_save(vm.kvm, vm.vm, vm.cpuid, saver, &e) ? refuse(reason, e) : 0;
}

static int32_t early_load(void *opaque, const brant_state_blob *blob, brant_reason *reason)
{
	brant_error *e;

	(void)opaque;
	return brant_kvm_compat_check(vm.kvm, vm.vm, vm.cpuid, blob, &e) ? refuse(reason, e) : 0;
}

static int32_t save(void *opaque, brant_saver *saver, brant_reason *reason)
{
	brant_error *e;

	(void)opaque;
	for (int i = 0; i < vm.vcpus; i++)
		if (brant_kvm_vcpu_save(vm.kvm, vm.vm, vm.vcpu[i], i, saver, &e))
			return refuse(reason, e);
	return brant_kvm_vm_save(vm.kvm, vm.vm, saver, &e) ? refuse(reason, e) : 0;
}

static int32_t load(void *opaque, const brant_state_blob *blob, brant_reason *reason)
{
	brant_error *e = NULL;
	int32_t code = -1;

	(void)opaque;
	if (!strcmp(blob->name, "kvm-vcpu") && blob->instance < (uint32_t)vm.vcpus)
		code = brant_kvm_vcpu_load(vm.kvm, vm.vm, vm.vcpu[blob->instance], blob, &e);
	else if (!strcmp(blob->name, "kvm-vm"))
		code = brant_kvm_vm_load(vm.kvm, vm.vm, blob, &e);
	return code ? refuse(reason, e) : 0;
}

static int32_t release(void *opaque, brant_reason *reason)
{
	(void)opaque, (void)reason;
	return virtio_hold(false) ? 0 : -1;
}

static int32_t resume(void *opaque, brant_reason *reason)
{
	(void)opaque, (void)reason;
	for (int i = 0; i < vm.vcpus; i++)
		brant_kvm_vcpu_stood_still(vm.vcpu[i], NULL);
	return virtio_hold(true) ? 0 : -1;
}

static int32_t run(void *opaque, brant_reason *reason)
{
	(void)opaque, (void)reason;
	uart_arrived(&vm.uart); /* a line that is up at the source is put up here */
	virtio_arrived();       /* and each queue's doorbell is rung once */
	return virtio_hold(true) ? 0 : -1;
}

/* ---- migration ---- */

static void describe(void)
{
	brant_gate_config gate = {.size = sizeof(gate), .flags = BRANT_GATE_INSTALL_HANDLER};
	brant_ram_block ram = {.size = sizeof(ram), .name = "ram", .host = vm.memory, .length = vm.bytes};
	brant_kvm_log kvm = {.size = sizeof(kvm), .vm_fd = vm.vm};
	brant_ops ops = {
		.size = sizeof(ops), .early_save = early_save, .early_load = early_load, .save = save, .load = load,
		.release = release, .resume = resume, .run = run,
	};

	MUST(brant_gate_new(&gate, &vm.gate, &e));
	MUST(brant_gate_add_device(vm.gate, "console", &vm.console, &e));
	MUST(brant_guest_new(&ops, NULL, &vm.guest, &e));
	MUST(brant_guest_use_gate(vm.guest, vm.gate, &e));
	MUST(brant_guest_add_ram(vm.guest, &ram, 0, 0, NULL, &e));
	MUST(brant_guest_add_state(vm.guest, "uart", 0, UART_VERSION, &vm.uart.state, sizeof(vm.uart.state), &e));
	MUST(brant_tracker_new(vm.guest, NULL, &vm.tracker, &e));
	MUST(brant_tracker_add_kvm(vm.tracker, &kvm, &e));
}

/* Returns whether the guest has come. */
static bool receive(const char *endpoint)
{
	brant_incoming *incoming;
	brant_error *error;
	int32_t code;

	MUST(brant_incoming_new(vm.guest, NULL, &incoming, &e));
	MUST(brant_incoming_listen(incoming, endpoint, &e));
	fprintf(stderr, "serialvmm: waiting at %s\n", endpoint);
	code = brant_incoming_wait(incoming, BRANT_NO_LIMIT, &error);
	if (code) {
		fprintf(stderr, "serialvmm: %s\n", brant_error_message(error));
		brant_error_free(error);
	}
	brant_incoming_free(incoming);
	return code == 0;
}

/* Returns whether the guest has left. */
static bool send_to(const char *endpoint)
{
	brant_params params = {.size = sizeof(params), .downtime_limit_ms = 300};
	brant_outgoing *outgoing;
	brant_error *error;
	int32_t code;

	MUST(brant_outgoing_new(vm.tracker, &params, &outgoing, &e));
	code = brant_outgoing_start(outgoing, endpoint, &error);
	if (code == 0)
		code = brant_outgoing_wait(outgoing, BRANT_NO_LIMIT, &error);
	if (code == BRANT_E_UNANSWERED) {
		fprintf(stderr, "serialvmm: %s; the guest may run at %s, so it stays paused here\n",
			brant_error_message(error), endpoint);
		exit(1);
	}
	if (code) {
		fprintf(stderr, "serialvmm: %s: the guest runs on here\n", brant_error_message(error));
		brant_error_free(error);
	} else {
		brant_stats stats = {.size = sizeof(stats)};

		brant_outgoing_get_stats(outgoing, &stats, NULL);
		fprintf(stderr, "serialvmm: the guest runs at %s, %.1f MB, downtime %.1f ms\n", endpoint,
			(double)stats.wire_bytes / 1e6, (double)stats.downtime_ns / 1e6);
	}
	brant_outgoing_free(outgoing);
	return code == 0;
}

int main(int argc, char **argv)
{
	const char *kernel = NULL, *initrd = NULL, *listen = NULL, *to = NULL, *options = "", *disk = NULL;
	int console = -1;
	sigset_t signals;
	pthread_t thread;
	bool here;

	for (int i = 1; i + 1 < argc; i += 2) {
		if (!strcmp(argv[i], "--kernel"))
			kernel = argv[i + 1];
		else if (!strcmp(argv[i], "--initrd"))
			initrd = argv[i + 1];
		else if (!strcmp(argv[i], "--listen"))
			listen = argv[i + 1];
		else if (!strcmp(argv[i], "--to"))
			to = argv[i + 1];
		else if (!strcmp(argv[i], "--options"))
			options = argv[i + 1];
		else if (!strcmp(argv[i], "--vcpus"))
			vm.vcpus = atoi(argv[i + 1]);
		else if (!strcmp(argv[i], "--console"))
			console = atoi(argv[i + 1]);
		else if (!strcmp(argv[i], "--disk"))
			disk = argv[i + 1];
		else
			argc = 0;
	}
	if (argc % 2 == 0 || (!kernel && !listen) || vm.vcpus < 1 || vm.vcpus > MAX_VCPUS) {
		fprintf(stderr, "usage: serialvmm [--kernel BZIMAGE --initrd FILE [--options TEXT]] [--vcpus 1..%d] "
				"[--console DESCRIPTOR] [--disk FILE] [--listen ENDPOINT] [--to ENDPOINT]\n", MAX_VCPUS);
		return 2;
	}
	sigemptyset(&signals);
	sigaddset(&signals, SIGUSR1);
	sigaddset(&signals, SIGTERM);
	pthread_sigmask(SIG_BLOCK, &signals, NULL); /* threads that are made inherit it */
	make_machine();
	uart_init(&vm.uart);
	describe();
	virtio_start(&(struct virtio_machine){vm.memory, vm.bytes, vm.guest, vm.tracker, vm.gate});
	if (console >= 0)
		virtio_console_add(console);
	if (disk)
		virtio_block_add(disk);
	for (int i = 0; i < vm.vcpus; i++)
		must(pthread_create(&thread, NULL, vcpu_thread, (void *)(intptr_t)i), "a thread");
	must(pthread_create(&thread, NULL, console_thread, NULL), "a thread");
	here = kernel != NULL;
	if (here) {
		linux_load(vm.memory, vm.bytes, vm.vcpus, kernel, initrd, options);
		linux_enter(vm.vcpu[0]);
		must(!virtio_hold(true), "the disk");
		MUST(brant_gate_start(vm.gate, &e));
	}
	for (;;) {
		int signal;

		while (!here)
			here = receive(listen);
		sigwait(&signals, &signal);
		if (signal == SIGTERM)
			return 0;
		here = to == NULL || !send_to(to);
		if (!here && !listen)
			return 0;
	}
}
