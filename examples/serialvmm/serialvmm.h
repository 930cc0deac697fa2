/* The parts of serialvmm: the device, and a Linux kernel's way into memory. */
#ifndef SERIALVMM_H
#define SERIALVMM_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define UART_PORT 0x3f8
#define UART_IRQ 4
#define UART_VERSION 1

/* An 8250 with a queue of 16 bytes. What it sends appears at once on standard output. */
struct uart {
	/* All that the guest knows of: this is what migrates. */
	struct uart_state {
		uint8_t ier, lcr, mcr, fcr, scr, dll, dlm;
		uint8_t sent; /* the interrupt for an empty transmitter waits */
		uint8_t queue[16], queued;
	} state;
	pthread_mutex_t lock; /* vCPUs and the console's thread */
	bool up;              /* the interrupt line */
};

void uart_init(struct uart *uart);
uint8_t uart_read(struct uart *uart, unsigned offset);
void uart_write(struct uart *uart, unsigned offset, uint8_t value);
/* A byte that was typed; dropped when the queue is full. */
void uart_receive(struct uart *uart, uint8_t byte);
/* The state has been loaded into a machine whose interrupt line is down. */
void uart_arrived(struct uart *uart);

/* The machine's. */
void irq_line(unsigned irq, bool up);

/* Puts a bzImage, an initramfs (may be NULL), the kernel's options, and tables that tell of the vCPUs into memory. */
void linux_load(uint8_t *memory, size_t bytes, int vcpus, const char *kernel, const char *initrd, const char *options);
/* Registers of the first vCPU as the kernel's 32-bit entry wants them. */
void linux_enter(int vcpu_fd);

#endif
