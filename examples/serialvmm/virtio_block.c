/*
 * A virtio disk in a file, which both VMMs of a migration can open. The one that has the guest locks the file, and lets
 * go of it when the other one is ready.
 */
#define _GNU_SOURCE
#include "virtio.h"
#include "serialvmm.h"

#include <fcntl.h>
#include <linux/virtio_blk.h>
#include <linux/virtio_ids.h>
#include <sys/stat.h>
#include <unistd.h>

#define SECTOR 512u

static int disk;
static struct virtio_blk_config config;

/* All of one part, from or to the file. */
static bool transfer(const struct virtio_part *part, uint64_t offset)
{
	uint64_t end = config.capacity * SECTOR;
	uint32_t done = 0;

	if (part->length % SECTOR || offset > end || part->length > end - offset)
		return false;
	while (done < part->length) {
		uint8_t *host = part->host + done;
		size_t left = part->length - done;
		ssize_t n = part->writable ? pread(disk, host, left, offset + done)
		                           : pwrite(disk, host, left, offset + done);

		if (n <= 0)
			return false;
		done += n;
	}
	return true;
}

/* A header, parts of data, and a byte for the end. Returns how many bytes of the writable parts were written. */
static uint32_t serve(const struct virtio_request *request)
{
	const struct virtio_part *end = &request->part[request->parts - 1];
	struct virtio_blk_outhdr header;
	uint8_t status = VIRTIO_BLK_S_OK;
	uint32_t written = 1;
	uint64_t offset;

	if (request->parts < 2 || request->part[0].length < sizeof(header) || !end->writable || end->length != 1)
		return 0;
	memcpy(&header, request->part[0].host, sizeof(header));
	offset = header.sector * SECTOR;
	switch (header.type) {
	case VIRTIO_BLK_T_IN:
	case VIRTIO_BLK_T_OUT:
		if (header.sector > config.capacity)
			status = VIRTIO_BLK_S_IOERR;
		for (const struct virtio_part *part = &request->part[1]; part < end; part++) {
			if (part->writable != (header.type == VIRTIO_BLK_T_IN) ||
			    (status == VIRTIO_BLK_S_OK && !transfer(part, offset)))
				status = VIRTIO_BLK_S_IOERR;
			offset += part->length;
			/* After an error too: a part may have been written to. */
			written += part->writable ? part->length : 0;
		}
		break;
	case VIRTIO_BLK_T_FLUSH:
		status = fdatasync(disk) ? VIRTIO_BLK_S_IOERR : VIRTIO_BLK_S_OK;
		break;
	default:
		status = VIRTIO_BLK_S_UNSUPP;
		for (const struct virtio_part *part = &request->part[1]; part < end; part++)
			written += part->writable ? part->length : 0;
	}
	*end->host = status;
	return written;
}

static void work(struct virtio *dev)
{
	struct virtio_request request;

	while (virtio_next(dev, 0, &request))
		virtio_done(dev, 0, &request, serve(&request));
}

/* The lock is the open file's, and goes with it. What the guest has written is on the disk before the next one reads. */
static bool hold(struct virtio *dev, bool held)
{
	struct flock lock = {.l_type = held ? F_WRLCK : F_UNLCK, .l_whence = SEEK_SET};

	(void)dev;
	return (held || fdatasync(disk) == 0) && fcntl(disk, F_OFD_SETLK, &lock) == 0;
}

void virtio_block_add(const char *file)
{
	static struct virtio dev = {
		.name = "virtio-block", .id = VIRTIO_ID_BLOCK, .queues = 1, .features = 1ull << VIRTIO_BLK_F_FLUSH,
		.config = &config, .config_bytes = sizeof(config), .work = work, .hold = hold, .input = -1,
	};
	struct stat of;

	disk = open(file, O_RDWR | O_CLOEXEC);
	must(disk < 0 || fstat(disk, &of), file);
	config.capacity = of.st_size / SECTOR;
	virtio_add(&dev);
}
