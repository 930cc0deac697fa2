/*
 * Ctrl-C, and a request to terminate, as something that a loop can wait for: no handler runs, and no call of another
 * thread is disturbed.
 */
#ifndef MINIVMM_INTERRUPT_H
#define MINIVMM_INTERRUPT_H

/* Before any thread is made: all of them leave SIGINT and SIGTERM to whoever reads them here. 0 or -1. */
int interrupt_init(void);
/* Readable when one of them has come. */
int interrupt_fd(void);
/* Waits up to `seconds` for one. Gives SIGINT or SIGTERM, which then has been read, or 0. */
int interrupt_wait(double seconds);

#endif
