/*
 * What a stream of memory is held against: plain send() and recv() of 1 MiB each between two
 * buffers, with the socket options that brant sets. Built into a shared object by
 * scripts/bench and called by benches/figures/stream.rs in the same two processes, and on the
 * same memory, as brant.
 */
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stddef.h>
#include <sys/socket.h>
#include <sys/types.h>

#define CALL ((size_t)1 << 20)

static int options(int fd)
{
	int on = 1;

	if (setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on)) < 0)
		return -errno;
	/* As brant does. No SO_SNDBUF and no SO_RCVBUF: setting one ends the kernel's tuning. */
	if (setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof(on)) < 0)
		return -errno;
	return 0;
}

/* Sends all of the memory; 0, or a negative errno. */
int bare_send(int fd, const char *memory, size_t length)
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

/* Fills all of the memory; 0, or a negative errno. */
int bare_receive(int fd, char *memory, size_t length)
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
