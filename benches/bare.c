/*
 * The comparison for a stream of memory: plain send() and recv() of 1 MiB each between two buffers, with the socket
 * options that brant sets. scripts/bench builds this into a shared object. benches/figures/stream.rs calls it in the
 * same two processes as brant, and on the same memory. For benches/figures/pages.rs there are also transfers of pages
 * that lie apart, 256 pages a call, and a pass that only reads.
 */
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <stddef.h>
#include <sys/socket.h>
#include <sys/types.h>
#include <sys/uio.h>

#define CALL ((size_t)1 << 20)

static int options(int fd)
{
	int on = 1;

	if (setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on)) < 0)
		return -errno;
	/* As brant does. Neither SO_SNDBUF nor SO_RCVBUF is set, because setting one ends the kernel's tuning. */
	if (setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof(on)) < 0)
		return -errno;
	return 0;
}

#define STREAMS 16

/* One connection and its part of the memory. */
struct stream {
	int fd;
	char *memory;
	size_t length;
	int (*move)(int, char *, size_t);
	pthread_t thread;
	int error;
};

static void *stream(void *of)
{
	struct stream *s = of;

	s->error = s->move(s->fd, s->memory, s->length);
	return NULL;
}

/* Has each connection move its part, all but the first on a thread of its own; 0, or a negative errno. */
static int streams(const int *fds, size_t count, char *memory, size_t length,
		   int (*move)(int, char *, size_t))
{
	struct stream all[STREAMS];
	size_t part = length / (count ? count : 1), started = 1;
	int error = 0;

	if (count < 1 || count > STREAMS)
		return -EINVAL;
	for (size_t i = 0; i < count; i++)
		all[i] = (struct stream){ .fd = fds[i],
					  .memory = memory + i * part,
					  .length = i + 1 < count ? part : length - i * part,
					  .move = move };
	for (; started < count && error == 0; started += error == 0)
		error = -pthread_create(&all[started].thread, NULL, stream, &all[started]);
	if (error == 0)
		stream(&all[0]);
	for (size_t i = 1; i < started; i++)
		pthread_join(all[i].thread, NULL);
	for (size_t i = 0; i < count && error == 0; i++)
		error = all[i].error;
	return error;
}

static int send_part(int fd, char *memory, size_t length)
{
	int error = options(fd);

	while (error == 0 && length > 0) {
		ssize_t n = send(fd, memory, length < CALL ? length : CALL, MSG_NOSIGNAL);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -errno;
		memory += n;
		length -= (size_t)n;
	}
	return error;
}

/* Sends all of the memory, an equal part by each connection; 0, or a negative errno. */
int bare_send(const int *fds, size_t count, const char *memory, size_t length)
{
	return streams(fds, count, (char *)memory, length, send_part);
}

static int receive_part(int fd, char *memory, size_t length)
{
	int error = options(fd);

	while (error == 0 && length > 0) {
		ssize_t n = recv(fd, memory, length < CALL ? length : CALL, 0);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -errno;
		if (n == 0)
			return -EPIPE;
		memory += n;
		length -= (size_t)n;
	}
	return error;
}

/* Fills all of the memory, an equal part by each connection; 0, or a negative errno. */
int bare_receive(const int *fds, size_t count, char *memory, size_t length)
{
	return streams(fds, count, memory, length, receive_part);
}

#define PAGE ((size_t)4096)
#define BLOCK 256

/* Moves every `stride`th page of the memory by `move`. Returns 0 or a negative errno. */
static int pages(int fd, char *memory, size_t length, size_t stride,
		 ssize_t (*move)(int, const struct iovec *, int))
{
	size_t at = 0;

	while (at < length) {
		struct iovec parts[BLOCK], *part = parts;
		int count = 0;

		for (; count < BLOCK && at < length; at += stride * PAGE)
			parts[count++] = (struct iovec){ memory + at, PAGE };
		while (count > 0) {
			ssize_t n = move(fd, part, count);

			if (n < 0 && errno == EINTR)
				continue;
			if (n < 0)
				return -errno;
			if (n == 0)
				return -EPIPE;
			for (; count > 0 && (size_t)n >= part->iov_len; part++, count--)
				n -= (ssize_t)part->iov_len;
			if (count > 0) {
				part->iov_base = (char *)part->iov_base + n;
				part->iov_len -= (size_t)n;
			}
		}
	}
	return 0;
}

int bare_send_pages(int fd, const char *memory, size_t length, size_t stride)
{
	int error = options(fd);

	return error ? error : pages(fd, (char *)memory, length, stride, writev);
}

int bare_receive_pages(int fd, char *memory, size_t length, size_t stride)
{
	int error = options(fd);

	return error ? error : pages(fd, memory, length, stride, readv);
}

typedef unsigned long long words __attribute__((vector_size(64), may_alias));

/* How many bytes are zero before the first page that is not. */
__attribute__((target_clones("avx512f", "avx2", "default")))
size_t bare_read_zeros(const char *memory, size_t length)
{
	for (size_t at = 0; at < length; at += PAGE) {
		const words *from = (const words *)(memory + at);
		words any = { 0 };

		for (size_t i = 0; i < PAGE / sizeof(words); i += 4)
			any |= (from[i] | from[i + 1]) | (from[i + 2] | from[i + 3]);
		for (size_t i = 0; i < sizeof(words) / 8; i++)
			if (any[i])
				return at;
	}
	return length;
}
