#define _GNU_SOURCE
#include "interrupt.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sys/signalfd.h>
#include <time.h>
#include <unistd.h>

static int fd = -1;
static bool switch_over;

int interrupt_init(void)
{
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, SIGINT);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGUSR1);
	if (pthread_sigmask(SIG_BLOCK, &set, NULL))
		return -1;
	fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
	return fd < 0 ? -1 : 0;
}

int interrupt_fd(void)
{
	return fd;
}

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

int interrupt_wait(double seconds)
{
	double end = now() + seconds, left;
	struct pollfd look = {.fd = fd, .events = POLLIN};
	struct signalfd_siginfo info;

	do {
		while (read(fd, &info, sizeof(info)) == sizeof(info)) {
			if (info.ssi_signo != SIGUSR1)
				return (int)info.ssi_signo;
			switch_over = true;
		}
		left = end - now();
		if (left > 0)
			poll(&look, 1, left > 1e6 ? 1000000000 : (int)(left * 1e3) + 1);
	} while (left > 0);
	return 0;
}

bool interrupt_switch_over(void)
{
	bool asked = switch_over;

	switch_over = false;
	return asked;
}
