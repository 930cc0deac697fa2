/*
 * A device with a large state that changes while the guest runs.
 *
 * The state is a row of chunks. A thread of the device rewrites one after the other, and remembers which have changed
 * since they were sent. While the guest runs, changed chunks are sent; after the stop, those that are left, and a
 * record that says what the whole must be. The destination checks each chunk and the whole before the guest runs there.
 */
#define _GNU_SOURCE
#include "device.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { CHUNK = 64 << 10, WORDS = CHUNK / 8, PER_MIB = (1 << 20) / CHUNK, VERSION = 1 };
#define WHOLE UINT32_MAX /* in place of a chunk's number: the record that says what the whole must be */

/* What goes before each chunk. */
struct head {
	uint32_t chunk, version;
	uint64_t whole; /* with WHOLE: the sum of all versions */
};

struct device {
	uint32_t chunks, rate;
	uint64_t *state;
	uint32_t *versions;
	bool *changed;
	uint32_t changes; /* how many chunks have changed */
	uint32_t next;    /* the chunk to look at first */
	bool run, threaded, said;
	pthread_t thread;
	pthread_mutex_t lock;
	pthread_cond_t wake;
	/* A record on its way: out at the source, in at the destination. */
	struct {
		struct head head;
		uint64_t words[WORDS];
	} record;
	size_t at, length;
	uint64_t whole; /* destination: what the whole must be */
};

static uint64_t word(uint32_t chunk, uint32_t version, unsigned i)
{
	return ((uint64_t)chunk << 32 | version) * 0x9e3779b97f4a7c15ull + i;
}

static void rewrite(struct device *d, uint32_t chunk)
{
	uint32_t version = ++d->versions[chunk];

	for (unsigned i = 0; i < WORDS; i++)
		d->state[(size_t)chunk * WORDS + i] = word(chunk, version, i);
	d->changes += !d->changed[chunk];
	d->changed[chunk] = true;
}

static void *work(void *arg)
{
	struct device *d = arg;
	struct timespec until;
	uint32_t chunk = 0;

	clock_gettime(CLOCK_MONOTONIC, &until);
	pthread_mutex_lock(&d->lock);
	while (d->run) {
		rewrite(d, chunk);
		chunk = (chunk + 1) % d->chunks;
		until.tv_nsec += 1000000000l / PER_MIB / d->rate;
		if (until.tv_nsec >= 1000000000l)
			until.tv_sec++, until.tv_nsec -= 1000000000l;
		while (d->run && pthread_cond_timedwait(&d->wake, &d->lock, &until) == 0)
			;
	}
	pthread_mutex_unlock(&d->lock);
	return NULL;
}

struct device *device_new(uint32_t mib, uint32_t rate)
{
	struct device *d = calloc(1, sizeof(*d));
	pthread_condattr_t monotonic;

	if (!d)
		return NULL;
	d->chunks = mib * PER_MIB;
	d->rate = rate;
	d->state = calloc(d->chunks, CHUNK);
	d->versions = calloc(d->chunks, sizeof(*d->versions));
	d->changed = calloc(d->chunks, sizeof(*d->changed));
	pthread_mutex_init(&d->lock, NULL);
	pthread_condattr_init(&monotonic);
	pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
	pthread_cond_init(&d->wake, &monotonic);
	pthread_condattr_destroy(&monotonic);
	if (!d->state || !d->versions || !d->changed) {
		device_free(d);
		return NULL;
	}
	return d;
}

static void halt(struct device *d)
{
	pthread_mutex_lock(&d->lock);
	d->run = false;
	pthread_cond_signal(&d->wake);
	pthread_mutex_unlock(&d->lock);
	if (d->threaded)
		pthread_join(d->thread, NULL);
	d->threaded = false;
}

void device_free(struct device *d)
{
	if (!d)
		return;
	halt(d);
	pthread_cond_destroy(&d->wake);
	pthread_mutex_destroy(&d->lock);
	free(d->state);
	free(d->versions);
	free(d->changed);
	free(d);
}

int device_start(struct device *d)
{
	d->run = d->rate > 0;
	d->threaded = d->run && pthread_create(&d->thread, NULL, work, d) == 0;
	return d->run && !d->threaded ? -1 : 0;
}

/* ---- the source: what the engine asks of it ---- */

static int32_t begin(void *opaque, brant_reason *reason)
{
	struct device *d = opaque;

	(void)reason;
	pthread_mutex_lock(&d->lock);
	/* Everything is to be sent. */
	memset(d->changed, true, d->chunks);
	d->changes = d->chunks;
	d->at = d->length = 0;
	d->said = false;
	pthread_mutex_unlock(&d->lock);
	return 0;
}

static int32_t left(void *opaque, brant_device_left *left, brant_reason *reason)
{
	struct device *d = opaque;

	(void)reason;
	pthread_mutex_lock(&d->lock);
	left->running = (uint64_t)d->changes * sizeof(d->record) + (d->length - d->at);
	left->stopped = sizeof(struct head);
	pthread_mutex_unlock(&d->lock);
	return 0;
}

/* Makes a record of the next chunk that has changed. Returns whether there is one. */
static bool next_record(struct device *d)
{
	for (uint32_t i = 0; d->changes && i < d->chunks; i++) {
		uint32_t chunk = (d->next + i) % d->chunks;

		if (!d->changed[chunk])
			continue;
		d->changed[chunk] = false;
		d->changes--;
		d->next = chunk + 1;
		d->record.head = (struct head){.chunk = chunk, .version = d->versions[chunk]};
		memcpy(d->record.words, d->state + (size_t)chunk * WORDS, CHUNK);
		d->at = 0;
		d->length = sizeof(d->record);
		return true;
	}
	return false;
}

/* The last record: the sum of all versions. */
static bool last_record(struct device *d)
{
	if (d->said)
		return false;
	d->said = true;
	d->record.head = (struct head){.chunk = WHOLE};
	for (uint32_t chunk = 0; chunk < d->chunks; chunk++)
		d->record.head.whole += d->versions[chunk];
	d->at = 0;
	d->length = sizeof(struct head);
	return true;
}

static size_t give(struct device *d, char *to, size_t room, bool stopped)
{
	size_t given = 0;

	pthread_mutex_lock(&d->lock);
	while (given < room && (d->at < d->length || next_record(d) || (stopped && last_record(d)))) {
		size_t n = d->length - d->at < room - given ? d->length - d->at : room - given;

		memcpy(to + given, (char *)&d->record + d->at, n);
		d->at += n;
		given += n;
	}
	pthread_mutex_unlock(&d->lock);
	return given;
}

static int32_t read_running(void *opaque, void *buffer, size_t length, size_t *read, brant_reason *reason)
{
	(void)reason;
	*read = give(opaque, buffer, length, false);
	return 0;
}

static int32_t stop(void *opaque, brant_reason *reason)
{
	(void)reason;
	halt(opaque);
	return 0;
}

static int32_t read_stopped(void *opaque, void *buffer, size_t length, size_t *read, brant_reason *reason)
{
	(void)reason;
	*read = give(opaque, buffer, length, true);
	return 0;
}

static int32_t start(void *opaque, brant_reason *reason)
{
	(void)reason;
	return device_start(opaque);
}

/* ---- the destination ---- */

static int32_t refuse(brant_reason *reason, const char *why)
{
	brant_reason_set(reason, why);
	return -1;
}

static int32_t load(void *opaque, const void *data, size_t length, brant_reason *reason)
{
	struct device *d = opaque;
	const char *from = data;

	while (length > 0) {
		size_t whole = d->at >= sizeof(struct head) && d->record.head.chunk != WHOLE ? sizeof(d->record)
											    : sizeof(struct head);
		size_t n = whole - d->at < length ? whole - d->at : length;

		memcpy((char *)&d->record + d->at, from, n);
		d->at += n;
		from += n;
		length -= n;
		if (d->at < sizeof(struct head))
			continue;
		if (d->record.head.chunk == WHOLE) {
			d->whole = d->record.head.whole;
			d->said = true;
			d->at = 0;
			continue;
		}
		if (d->record.head.chunk >= d->chunks)
			return refuse(reason, "a chunk that this device does not have");
		if (d->at == sizeof(d->record)) {
			uint32_t chunk = d->record.head.chunk;

			memcpy(d->state + (size_t)chunk * WORDS, d->record.words, CHUNK);
			d->versions[chunk] = d->record.head.version;
			d->at = 0;
		}
	}
	return 0;
}

static int32_t loaded(void *opaque, brant_reason *reason)
{
	struct device *d = opaque;
	uint64_t whole = 0;

	if (!d->said || d->at)
		return refuse(reason, "the state ends in the middle");
	for (uint32_t chunk = 0; chunk < d->chunks; chunk++) {
		uint32_t version = d->versions[chunk];

		whole += version;
		for (unsigned i = 0; version && i < WORDS; i += WORDS - 1)
			if (d->state[(size_t)chunk * WORDS + i] != word(chunk, version, i))
				return refuse(reason, "a chunk is not what it was");
	}
	return whole == d->whole ? 0 : refuse(reason, "some chunks are older than at the source");
}

static void reset(void *opaque)
{
	struct device *d = opaque;

	memset(d->versions, 0, d->chunks * sizeof(*d->versions));
	d->at = 0;
	d->said = false;
}

int32_t device_add(struct device *d, brant_guest *guest, brant_error **error)
{
	brant_device device = {
		.size = sizeof(device), .name = "tables", .version = VERSION, .opaque = d,
		.begin = begin, .left = left, .read_running = read_running, .stop = stop,
		.read_stopped = read_stopped, .resume = start, .load_running = load, .load_stopped = load,
		.loaded = loaded, .run = start, .reset = reset,
	};

	return brant_guest_add_device(guest, &device, error);
}
