/*
 * Ctrl-C, and a request to terminate, as events that a loop can wait for. No handler runs, and no call of another
 * thread is interrupted.
 */
#ifndef MINIVMM_INTERRUPT_H
#define MINIVMM_INTERRUPT_H

/* Call this before any thread is made: every thread then leaves SIGINT and SIGTERM to the reader here. Returns 0 or
 * -1. */
int interrupt_init(void);
/* A descriptor that is readable when one of them has come. */
int interrupt_fd(void);
/* Waits up to `seconds` for one of them. Returns SIGINT or SIGTERM, which has been read then, or 0. */
int interrupt_wait(double seconds);

#endif
