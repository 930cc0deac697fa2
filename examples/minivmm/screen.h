/*
 * The program's output: lines and, on a terminal, one line at the bottom that is renewed in place. The renewed line
 * never takes more than the terminal's width, so that it never wraps. Any other line takes its place, and the renewed
 * one comes back below. Any thread may call these functions.
 */
#ifndef MINIVMM_SCREEN_H
#define MINIVMM_SCREEN_H

#include "migrate.h"

void screen_init(void);
/* Whether the output is a terminal. */
bool screen_is_terminal(void);
/* Prints a line on stdout; screen_complain on stderr, after the program's name. */
void screen_say(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
void screen_complain(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
/* Renews the line at the bottom. Does nothing without a terminal. */
void screen_status(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
/* Shows a migration's progress: on a terminal in the renewed line, otherwise a line now and then. The last one stays.
 */
void screen_progress(const struct mg_progress *p);
/* The line at the bottom stays, and the next line begins below it. */
void screen_done(void);

/* The line for a terminal of this many columns: three fewer, so that no terminal wraps. */
void screen_bar(char *out, size_t len, unsigned columns, const struct mg_progress *p);

#endif
