/* The parts of serialvmm: the serial port, and a Linux kernel's way into memory. virtio.h has the other devices. */
#ifndef SERIALVMM_H
#define SERIALVMM_H

#include <brant.h>

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

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

/* Ends the program when something of the kernel's has failed. */
static inline void must(int failed, const char *what)
{
	if (failed) {
		perror(what);
		exit(1);
	}
}

/* Ends the program when a call of brant's fails. The call passes `&e` to get the reason. */
#define MUST(call)                                                                      \
	do {                                                                            \
		brant_error *e;                                                         \
		if (call) {                                                             \
			fprintf(stderr, "serialvmm: %s\n", brant_error_message(e));     \
			exit(1);                                                        \
		}                                                                       \
	} while (0)

/* Puts a bzImage, an initramfs (may be NULL), options, and tables that tell of vCPUs and devices into memory. */
void linux_load(uint8_t *memory, size_t bytes, int vcpus, const char *kernel, const char *initrd, const char *options);
/* Registers of the first vCPU as the kernel's 32-bit entry wants them. */
void linux_enter(int vcpu_fd);

#endif
