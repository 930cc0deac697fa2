/*
 * What the program says: lines, and on a terminal one line at the bottom that is renewed in place. The renewed line never
 * takes more than the terminal's width, so that it never wraps; whatever else is said takes its place, and it comes back
 * below. Any thread may call.
 */
#ifndef MINIVMM_SCREEN_H
#define MINIVMM_SCREEN_H

#include "migrate.h"

void screen_init(void);
/* Whether a person sits before it. */
bool screen_is_terminal(void);
/* A line on stdout; on stderr, after the program's name. */
void screen_say(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
void screen_complain(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
/* Renews the line at the bottom; not on a terminal: nothing. */
void screen_status(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
/* How far a migration is: on a terminal the renewed line, otherwise a line now and then. The last one stays. */
void screen_progress(const struct mg_progress *p);
/* What is at the bottom stays, and the next line begins below. */
void screen_done(void);

/* The line for a terminal of so many columns: three fewer, so that no terminal wraps. */
void screen_bar(char *out, size_t len, unsigned columns, const struct mg_progress *p);

#endif
