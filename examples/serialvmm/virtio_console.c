/* A virtio console on a descriptor: a terminal, a socket. What the guest writes goes out, what comes in goes to it. */
#include "virtio.h"

#include <linux/virtio_ids.h>
#include <poll.h>
#include <unistd.h>

enum { RECEIVE, TRANSMIT };

static int console;

static void put(const uint8_t *bytes, size_t length)
{
	ssize_t written;

	/* Whoever does not read keeps the guest from being paused: it waits for this thread. */
	for (; length && (written = write(console, bytes, length)) > 0; length -= written)
		bytes += written;
}

/* The bytes go from the descriptor into the guest's memory inside the gate: none is lost in between. */
static void work(struct virtio *dev)
{
	struct virtio_request request;
	struct pollfd in = {.fd = console, .events = POLLIN};
	ssize_t length;

	while (virtio_next(dev, TRANSMIT, &request)) {
		for (unsigned i = 0; i < request.parts; i++)
			if (!request.part[i].writable)
				put(request.part[i].host, request.part[i].length);
		virtio_done(dev, TRANSMIT, &request, 0);
	}
	while (poll(&in, 1, 0) == 1) {
		dev->input = -1; /* without a buffer, the guest's next ring is waited for */
		if (!virtio_next(dev, RECEIVE, &request))
			return;
		length = request.part[0].writable ? read(console, request.part[0].host, request.part[0].length) : 0;
		if (length <= 0) {
			virtio_put_back(dev, RECEIVE);
			return; /* the other end is closed */
		}
		virtio_done(dev, RECEIVE, &request, (uint32_t)length);
	}
	dev->input = console;
}

void virtio_console_add(int fd)
{
	static struct virtio dev = {.name = "virtio-console", .id = VIRTIO_ID_CONSOLE, .queues = 2, .work = work};

	console = dev.input = fd;
	virtio_add(&dev);
}
