/*
 * What the virtio devices of serialvmm have in common: registers (virtio-mmio, version 2), queues (split rings), and a
 * thread. All of their migration is here too: the state is a structure, the device's writes are marked in one
 * place, the thread goes through the gate, and a guest that has arrived finds lines up and bells rung.
 */
#include "virtio.h"
#include "serialvmm.h"

#include <linux/virtio_config.h>
#include <linux/virtio_mmio.h>
#include <linux/virtio_ring.h>
#include <poll.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

static struct virtio_machine machine;
static struct virtio *devices[VIRTIO_DEVICES];
static unsigned count;

void virtio_start(const struct virtio_machine *of)
{
	machine = *of;
}

unsigned virtio_count(void)
{
	return count;
}

/* ---- queues ---- */

/* The guest's memory at an address that the guest gave, or NULL. */
static void *at(uint64_t address, uint64_t length)
{
	if (address > machine.bytes || length > machine.bytes - address)
		return NULL;
	return machine.memory + address;
}

/* A driver that breaks the rules has to reset the device. */
static bool broken(struct virtio *dev)
{
	dev->state.status |= VIRTIO_CONFIG_S_NEEDS_RESET;
	for (unsigned i = 0; i < VIRTIO_QUEUES; i++)
		dev->state.queues[i].ready = 0;
	return false;
}

bool virtio_next(struct virtio *dev, unsigned queue, struct virtio_request *request)
{
	struct virtio_queue *q = &dev->state.queues[queue];
	struct vring_avail *driver = at(q->driver, sizeof(*driver) + q->size * sizeof(driver->ring[0]));
	struct vring_desc *table = at(q->descriptors, q->size * sizeof(*table)), part = {.flags = VRING_DESC_F_NEXT};

	if (!q->ready)
		return false;
	if (!driver || !table || !q->size || q->size > VIRTIO_QUEUE_SIZE) /* the size too can have come from a source */
		return broken(dev);
	if (q->next == __atomic_load_n(&driver->idx, __ATOMIC_ACQUIRE))
		return false;
	part.next = request->head = driver->ring[q->next % q->size];
	for (request->parts = 0; part.flags & VRING_DESC_F_NEXT; request->parts++) {
		struct virtio_part *to = &request->part[request->parts];

		if (part.next >= q->size || request->parts == q->size)
			return broken(dev);
		part = table[part.next]; /* once: the guest can change it */
		to->host = at(part.addr, part.len);
		to->length = part.len;
		to->writable = part.flags & VRING_DESC_F_WRITE;
		if (!to->host || part.flags & VRING_DESC_F_INDIRECT)
			return broken(dev);
	}
	q->next++;
	return true;
}

void virtio_put_back(struct virtio *dev, unsigned queue)
{
	dev->state.queues[queue].next--;
}

/*
 * The place where all of a device's writes are marked: those to its buffers, which it has made before, and those to
 * the used ring. Write first, then mark; a mark that comes first can be collected before its write is there.
 */
void virtio_done(struct virtio *dev, unsigned queue, const struct virtio_request *request, uint32_t written)
{
	struct virtio_queue *q = &dev->state.queues[queue];
	struct vring_avail *driver = at(q->driver, sizeof(*driver));
	struct vring_used *used = at(q->device, sizeof(*used) + q->size * sizeof(used->ring[0]));
	vring_used_elem_t *element;

	if (!used || !driver) {
		broken(dev);
		return;
	}
	element = &used->ring[q->used % q->size];
	element->id = request->head;
	element->len = written;
	__atomic_store_n(&used->idx, ++q->used, __ATOMIC_RELEASE);

	for (unsigned i = 0; i < request->parts && written; i++) {
		const struct virtio_part *part = &request->part[i];
		uint32_t here = part->length < written ? part->length : written;

		if (part->writable) {
			brant_tracker_mark_host(machine.tracker, part->host, here);
			written -= here;
		}
	}
	brant_tracker_mark_host(machine.tracker, element, sizeof(*element));
	brant_tracker_mark_host(machine.tracker, &used->idx, sizeof(used->idx));

	__atomic_thread_fence(__ATOMIC_SEQ_CST); /* the driver allows interrupts, then looks at the index again */
	if (!(driver->flags & VRING_AVAIL_F_NO_INTERRUPT)) {
		dev->state.interrupt |= VIRTIO_MMIO_INT_VRING;
		irq_line(VIRTIO_IRQ + dev->number, true);
	}
}

/* ---- threads ---- */

static void ring(struct virtio *dev)
{
	eventfd_write(dev->bell, 1);
}

/*
 * It comes in before it takes a request and leaves when all of the request's marks are made. So no request is half
 * done when the guest stands still, and there is none to migrate. A bell that was rung for nothing is harmless.
 */
static void *device_thread(void *opaque)
{
	struct virtio *dev = opaque;
	struct pollfd from[2] = {{.fd = dev->bell, .events = POLLIN}, {.events = POLLIN}};
	eventfd_t rung;

	for (;;) {
		from[1].fd = dev->input;
		if (poll(from, 2, -1) < 0)
			continue;
		if (brant_gate_device_enter(dev->gate, BRANT_NO_LIMIT, NULL))
			return NULL; /* the guest has shut down */
		eventfd_read(dev->bell, &rung);
		pthread_mutex_lock(&dev->lock);
		dev->work(dev);
		pthread_mutex_unlock(&dev->lock);
		brant_gate_device_leave(dev->gate, NULL);
	}
}

void virtio_add(struct virtio *dev)
{
	pthread_t thread;

	dev->number = count;
	devices[count++] = dev;
	pthread_mutex_init(&dev->lock, NULL);
	dev->bell = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
	MUST(brant_gate_add_device(machine.gate, dev->name, &dev->gate, &e));
	MUST(brant_guest_add_state(machine.guest, dev->name, 0, VIRTIO_VERSION, &dev->state, sizeof(dev->state), &e));
	must(dev->bell < 0 || pthread_create(&thread, NULL, device_thread, dev), dev->name);
}

bool virtio_hold(bool held)
{
	for (unsigned i = 0; i < count; i++)
		if (devices[i]->hold && !devices[i]->hold(devices[i], held))
			return false;
	return true;
}

/*
 * Example of the loss: the guest rings a bell at the source, and the pause comes before the device's thread does. The
 * request stands in the ring, the bell does not migrate, and the guest waits for ever. So every bell is rung once.
 */
void virtio_arrived(void)
{
	for (unsigned i = 0; i < count; i++) {
		irq_line(VIRTIO_IRQ + i, devices[i]->state.interrupt != 0);
		ring(devices[i]);
	}
}

/* ---- registers ---- */

static void half(uint64_t *of, uint32_t value, bool high)
{
	*of = high ? (*of & 0xffffffff) | (uint64_t)value << 32 : (*of & ~0xffffffffull) | value;
}

static uint32_t read_register(struct virtio *dev, uint64_t offset)
{
	struct virtio_state *s = &dev->state;

	switch (offset) {
	case VIRTIO_MMIO_MAGIC_VALUE:
		return 'v' | 'i' << 8 | 'r' << 16 | 't' << 24;
	case VIRTIO_MMIO_VERSION:
		return 2;
	case VIRTIO_MMIO_DEVICE_ID:
		return dev->id;
	case VIRTIO_MMIO_DEVICE_FEATURES:
		return s->device_page < 2 ? (dev->features | 1ull << VIRTIO_F_VERSION_1) >> 32 * s->device_page : 0;
	case VIRTIO_MMIO_QUEUE_NUM_MAX:
		return s->queue < dev->queues ? VIRTIO_QUEUE_SIZE : 0;
	case VIRTIO_MMIO_QUEUE_READY:
		return s->queue < dev->queues ? s->queues[s->queue].ready : 0;
	case VIRTIO_MMIO_INTERRUPT_STATUS:
		return s->interrupt;
	case VIRTIO_MMIO_STATUS:
		return s->status;
	}
	return 0;
}

static void write_queue(struct virtio_queue *q, uint64_t offset, uint32_t value)
{
	switch (offset) {
	case VIRTIO_MMIO_QUEUE_NUM:
		if (value && value <= VIRTIO_QUEUE_SIZE && !(value & (value - 1)))
			q->size = value;
		break;
	case VIRTIO_MMIO_QUEUE_READY:
		q->ready = value & 1 && q->size;
		break;
	case VIRTIO_MMIO_QUEUE_DESC_LOW:
	case VIRTIO_MMIO_QUEUE_DESC_HIGH:
		half(&q->descriptors, value, offset & 4);
		break;
	case VIRTIO_MMIO_QUEUE_AVAIL_LOW:
	case VIRTIO_MMIO_QUEUE_AVAIL_HIGH:
		half(&q->driver, value, offset & 4);
		break;
	case VIRTIO_MMIO_QUEUE_USED_LOW:
	case VIRTIO_MMIO_QUEUE_USED_HIGH:
		half(&q->device, value, offset & 4);
		break;
	}
}

static void write_register(struct virtio *dev, uint64_t offset, uint32_t value)
{
	struct virtio_state *s = &dev->state;

	switch (offset) {
	case VIRTIO_MMIO_DEVICE_FEATURES_SEL:
		s->device_page = value;
		break;
	case VIRTIO_MMIO_DRIVER_FEATURES_SEL:
		s->driver_page = value;
		break;
	case VIRTIO_MMIO_DRIVER_FEATURES:
		if (s->driver_page < 2)
			half(&s->accepted, value, s->driver_page);
		break;
	case VIRTIO_MMIO_QUEUE_SEL:
		s->queue = value;
		break;
	case VIRTIO_MMIO_QUEUE_NOTIFY:
		ring(dev);
		break;
	case VIRTIO_MMIO_INTERRUPT_ACK:
		s->interrupt &= ~value;
		irq_line(VIRTIO_IRQ + dev->number, s->interrupt != 0);
		break;
	case VIRTIO_MMIO_STATUS:
		s->status = value;
		if (value == 0) {
			memset(s, 0, sizeof(*s));
			irq_line(VIRTIO_IRQ + dev->number, false);
		}
		break;
	default:
		if (s->queue < dev->queues)
			write_queue(&s->queues[s->queue], offset, value);
	}
}

bool virtio_access(uint64_t address, uint8_t *data, uint32_t length, bool write)
{
	uint64_t number = (address - VIRTIO_AT) / VIRTIO_STEP, offset = (address - VIRTIO_AT) % VIRTIO_STEP;
	struct virtio *dev;
	uint32_t value = 0;

	if (address < VIRTIO_AT || number >= count)
		return false;
	dev = devices[number];
	if (offset >= VIRTIO_MMIO_CONFIG) {
		offset -= VIRTIO_MMIO_CONFIG;
		if (!write)
			memset(data, 0, length);
		if (!write && offset < dev->config_bytes && length <= dev->config_bytes - offset)
			memcpy(data, (const uint8_t *)dev->config + offset, length);
		return true;
	}
	pthread_mutex_lock(&dev->lock);
	if (write && length == sizeof(value)) {
		memcpy(&value, data, sizeof(value));
		write_register(dev, offset, value);
	} else if (!write) {
		value = read_register(dev, offset);
		memset(data, 0, length);
		memcpy(data, &value, length < sizeof(value) ? length : sizeof(value));
	}
	pthread_mutex_unlock(&dev->lock);
	return true;
}
