#define _GNU_SOURCE
#include "screen.h"

#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

#define MAX_WIDTH 250
#define MIN_BAR 8 /* with its brackets */

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static bool terminal, renewed; /* renewed: something is at the bottom that a newline has not ended */
static double shown;

void screen_init(void)
{
	terminal = isatty(STDOUT_FILENO);
}

bool screen_is_terminal(void)
{
	return terminal;
}

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

/* Asked each time, because a window can be resized. */
static unsigned width(void)
{
	struct winsize size;

	if (ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) || size.ws_col == 0)
		return 80;
	return size.ws_col < MAX_WIDTH ? size.ws_col : MAX_WIDTH;
}

/* How many of the columns the bottom line uses. The last column makes some terminals wrap, and a terminal itself
 * writes "^C" behind the line. */
static unsigned usable(unsigned columns)
{
	return columns <= 3 ? 1 : columns < MAX_WIDTH ? columns - 3 : MAX_WIDTH - 3;
}

/* ---- what is known, in few characters ---- */

/* "412 MB/s", "9.1 GB/s"; at most 8 characters. */
static void amount(char *out, size_t len, double bytes, const char *unit)
{
	static const char *const prefixes[] = {"", "k", "M", "G", "T", "P"};
	unsigned i = 0;

	for (; bytes >= 999.5 && i < 5; i++)
		bytes /= 1000;
	snprintf(out, len, "%.*f %s%s", bytes < 9.95 && i ? 1 : 0, bytes, prefixes[i], unit);
}

/* "33 ms", "1.2 s", "12 min", "5 h"; "?" if unknown. */
static void duration(char *out, size_t len, double seconds)
{
	if (seconds < 0)
		snprintf(out, len, "?");
	else if (seconds < 0.9995)
		snprintf(out, len, "%.0f ms", seconds * 1e3);
	else if (seconds < 99.5)
		snprintf(out, len, "%.1f s", seconds);
	else if (seconds < 99.5 * 60)
		snprintf(out, len, "%.0f min", seconds / 60);
	else if (seconds < 99.5 * 3600)
		snprintf(out, len, "%.0f h", seconds / 3600);
	else
		snprintf(out, len, "%.0f d", seconds < 9e6 * 86400 ? seconds / 86400 : 9e6);
}

static void rate(char *out, size_t len, double bytes)
{
	if (bytes < 0)
		snprintf(out, len, "?");
	else
		amount(out, len, bytes, "B/s");
}

struct texts {
	char percent[16], stage[40], sending[32], left[48], dirtied[48], downtime[64];
};

static void describe(struct texts *t, const struct mg_progress *p)
{
	char text[32];
	unsigned tenths;

	/* Rounded down, because 100 % means the end. */
	tenths = (unsigned)(p->percent * 10 + 1e-6);
	snprintf(t->percent, sizeof(t->percent), "%3u.%u %%", tenths / 10, tenths % 10);
	snprintf(t->stage, sizeof(t->stage), "%s", p->stage);
	if (p->pass)
		snprintf(t->stage, sizeof(t->stage), "pass %u", p->pass);
	rate(t->sending, sizeof(t->sending), p->bytes_per_second);
	duration(text, sizeof(text), p->seconds_left);
	snprintf(t->left, sizeof(t->left), "left %s%s", p->at_least ? ">" : "", p->never ? "never" : text);
	rate(text, sizeof(text), p->dirtied_per_second);
	snprintf(t->dirtied, sizeof(t->dirtied), "dirtied %s", text);
	duration(text, sizeof(text), p->downtime);
	snprintf(t->downtime, sizeof(t->downtime), "downtime %s", text);
}

/* The fields in the order of their importance; a narrow terminal gets the first ones. Each keeps its column, so that
 * the bar keeps its length from one second to the next. */
void screen_bar(char *out, size_t len, unsigned columns, const struct mg_progress *p)
{
	struct texts t;
	const struct {
		const char *text;
		unsigned room;
	} fields[] = {{t.stage, 10}, {t.sending, 8}, {t.left, 12}, {t.dirtied, 16}, {t.downtime, 15}};
	unsigned n = p->incoming ? 2 : 5, room, used, bar, full;
	char line[MAX_WIDTH + 1];
	int at;

	describe(&t, p);
	columns = usable(columns);
	/* The percentage comes after the bar. A terminal without room for both has no bar. */
	used = (unsigned)strlen(t.percent) + 1;
	bar = columns >= used + MIN_BAR ? MIN_BAR : 0;
	room = columns - (bar + used < columns ? bar + used : columns);
	for (unsigned i = 0; i < n; i++) {
		if (!bar || 2 + fields[i].room > room) {
			n = i;
			break;
		}
		room -= 2 + fields[i].room;
	}
	at = 0;
	if (bar) {
		bar += room < 40 ? room : 40;
		full = (unsigned)((bar - 2) * p->percent / 100);
		line[at++] = '[';
		for (unsigned i = 0; i < bar - 2; i++)
			line[at++] = i < full ? '#' : '-';
		line[at++] = ']';
		line[at++] = ' ';
	}
	at += snprintf(line + at, sizeof(line) - (size_t)at, "%s", t.percent);
	for (unsigned i = 0; i < n; i++)
		at += snprintf(line + at, sizeof(line) - (size_t)at, "  %-*.*s", (int)fields[i].room, (int)fields[i].room,
			       fields[i].text);
	while (at > 0 && line[at - 1] == ' ')
		at--;
	snprintf(out, len, "%.*s", at < (int)columns ? at : (int)columns, line);
}

/* ---- the bottom line ---- */

static void put_bottom(const char *line)
{
	printf("\r\033[K%s", line);
	fflush(stdout);
	renewed = true;
}

static void clear_bottom(void)
{
	if (renewed)
		fputs("\r\033[K", stdout);
	renewed = false;
}

static void line(FILE *to, const char *before, const char *fmt, va_list args)
{
	pthread_mutex_lock(&lock);
	clear_bottom();
	fflush(stdout);
	fputs(before, to);
	vfprintf(to, fmt, args);
	fputc('\n', to);
	fflush(to);
	pthread_mutex_unlock(&lock);
}

void screen_say(const char *fmt, ...)
{
	va_list args;

	va_start(args, fmt);
	line(stdout, "", fmt, args);
	va_end(args);
}

void screen_complain(const char *fmt, ...)
{
	va_list args;

	va_start(args, fmt);
	line(stderr, "minivmm: ", fmt, args);
	va_end(args);
}

void screen_status(const char *fmt, ...)
{
	char text[MAX_WIDTH + 1];
	unsigned columns = width();
	va_list args;

	if (!terminal)
		return;
	va_start(args, fmt);
	vsnprintf(text, sizeof(text), fmt, args);
	va_end(args);
	text[usable(columns)] = 0;
	pthread_mutex_lock(&lock);
	put_bottom(text);
	pthread_mutex_unlock(&lock);
}

void screen_progress(const struct mg_progress *p)
{
	char text[MAX_WIDTH + 1];
	struct texts t;
	double time = now();

	/* Ten times a second is as fast as anybody reads; twice if the lines are kept. */
	if (!p->last && time - shown < (terminal ? 0.1 : 0.5))
		return;
	shown = time;
	if (terminal) {
		screen_bar(text, sizeof(text), width(), p);
		pthread_mutex_lock(&lock);
		put_bottom(text);
		pthread_mutex_unlock(&lock);
		if (p->last)
			screen_done();
		return;
	}
	describe(&t, p);
	if (p->incoming)
		screen_say("%s  %s  %s", t.percent, t.stage, t.sending);
	else
		screen_say("%s  %s  sending %s  %s  %s  expected %s", t.percent, t.stage, t.sending, t.dirtied, t.left, t.downtime);
}

void screen_done(void)
{
	pthread_mutex_lock(&lock);
	if (renewed)
		putchar('\n');
	renewed = false;
	fflush(stdout);
	pthread_mutex_unlock(&lock);
}
