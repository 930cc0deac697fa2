/*
 * Virtio devices of serialvmm: what each of them is, and what virtio.c, which has their registers and queues, does for
 * them. A device is a thread that is rung by the guest; virtio_console.c and virtio_block.c are two.
 */
#ifndef VIRTIO_H
#define VIRTIO_H

#include <brant.h>

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* The registers of device i are at VIRTIO_AT + i * VIRTIO_STEP, its interrupt is VIRTIO_IRQ + i. */
#define VIRTIO_AT 0xd0000000u
#define VIRTIO_STEP 0x1000u
#define VIRTIO_IRQ 16
#define VIRTIO_DEVICES 2
#define VIRTIO_QUEUES 2
#define VIRTIO_QUEUE_SIZE 64
#define VIRTIO_VERSION 1

/* Where devices are. */
struct virtio_machine {
	uint8_t *memory;
	size_t bytes;
	brant_guest *guest;
	brant_tracker *tracker;
	brant_gate *gate;
};

/* One request of the guest's: parts of its memory, in order. The device writes to those that are writable. */
struct virtio_request {
	unsigned head, parts;
	struct virtio_part {
		uint8_t *host;
		uint32_t length;
		bool writable;
	} part[VIRTIO_QUEUE_SIZE];
};

struct virtio {
	/* What a device is. */
	const char *name;
	uint32_t id;
	uint64_t features;
	const void *config;
	size_t config_bytes;
	unsigned queues;
	void (*work)(struct virtio *dev);             /* on the device's thread, inside the gate, with the lock */
	bool (*hold)(struct virtio *dev, bool held);  /* what one VMM alone may have; NULL: nothing */
	int input;                                    /* work is called too when this can be read; -1: nothing */

	/* All that the guest knows of: this is what migrates. A queue's contents are in the guest's memory. */
	struct virtio_state {
		uint32_t status, interrupt, device_page, driver_page, queue, unused;
		uint64_t accepted;
		struct virtio_queue {
			uint64_t descriptors, driver, device; /* guest addresses: the table, available ring, used ring */
			uint16_t size, ready;
			uint16_t next, used;                  /* requests taken, requests done */
		} queues[VIRTIO_QUEUES];
	} state;

	unsigned number;
	int bell;
	pthread_mutex_t lock; /* vCPUs and the device's thread */
	brant_gate_device *gate;
};

/* ---- for devices ---- */

/* Adds the device to the machine and starts its thread. */
void virtio_add(struct virtio *dev);
/* Takes the next request. False when there is none. */
bool virtio_next(struct virtio *dev, unsigned queue, struct virtio_request *request);
/* The request just taken was not begun. */
void virtio_put_back(struct virtio *dev, unsigned queue);
/* The request is done, and so many bytes of its writable parts were written, from the first on. */
void virtio_done(struct virtio *dev, unsigned queue, const struct virtio_request *request, uint32_t written);

/* ---- for the machine ---- */

void virtio_start(const struct virtio_machine *machine);
/* A console on a descriptor, and a disk in a file. */
void virtio_console_add(int fd);
void virtio_block_add(const char *file);
unsigned virtio_count(void);
/* A vCPU's access to an address. False when no device is there. */
bool virtio_access(uint64_t address, uint8_t *data, uint32_t length, bool write);
/* Takes or lets go of what one VMM alone may have. False when another has it. */
bool virtio_hold(bool held);
/* The states have been loaded into a machine whose interrupt lines are down and where nobody rang. */
void virtio_arrived(void);

#endif
