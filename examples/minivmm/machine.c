/*
 * The machine (machine.h): guest memory and its layout, the vCPU threads (start, pause, resume), the pacing of the guest, and
 * the checks from outside. The differences between a KVM guest and a guest in plain memory are behind struct mv_backend.
 * Pausing is the gate's: see mv_pause.
 */
#define _GNU_SOURCE
#include "machine.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "internal.h"

#define HUGE (2ull << 20)
#define FLAT_OUT_BURST 512u
#define NS 1000000000ull

/* ---- errors ---------------------------------------------------------------------------------------------------- */

int mvi_error(struct mv_machine *m, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(m->call_error, sizeof m->call_error, fmt, ap);
	va_end(ap);
	return -1;
}

int mvi_dead(struct mv_vcpu *v, const char *fmt, ...)
{
	struct mv_machine *m = v->m;
	char text[200];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(text, sizeof text, fmt, ap);
	va_end(ap);
	pthread_mutex_lock(&m->lock);
	if (!atomic_load(&m->dead)) {
		snprintf(m->dead_error, sizeof m->dead_error, "vCPU %u: %s", v->index, text);
		atomic_store(&m->dead, true);
	}
	pthread_mutex_unlock(&m->lock);
	return -1;
}

bool mv_failed(struct mv_machine *m)
{
	return atomic_load(&m->dead);
}

const char *mv_error(struct mv_machine *m)
{
	/* dead_error is written once, before dead is set. */
	return atomic_load(&m->dead) ? m->dead_error : m->call_error;
}

/* ---- guest memory ---------------------------------------------------------------------------------------------- */

void *mv_host(struct mv_machine *m, uint64_t gpa, uint64_t len)
{
	for (unsigned i = 0; i < m->nregions; i++) {
		const struct mv_region *r = &m->regions[i];

		if (gpa >= r->gpa && gpa - r->gpa < r->bytes)
			return len <= r->bytes - (gpa - r->gpa) ? (char *)r->host + (gpa - r->gpa) : NULL;
	}
	return NULL;
}

/* Copies part by part, because guest memory that is contiguous for the guest may cross regions. */
static int copy_guest(struct mv_machine *m, uint64_t gpa, void *out, const void *in, uint64_t len)
{
	if (gpa > m->bytes || len > m->bytes - gpa)
		return -1;
	for (uint64_t done = 0; done < len;) {
		uint64_t at = gpa + done, part = MV_PAGE - at % MV_PAGE;
		char *host;

		if (part > len - done)
			part = len - done;
		host = mv_host(m, at, part);
		if (!host)
			return -1;
		if (in)
			memcpy(host, (const char *)in + done, part);
		else
			memcpy((char *)out + done, host, part);
		done += part;
	}
	return 0;
}

int mv_read(struct mv_machine *m, uint64_t gpa, void *buf, uint64_t len)
{
	return copy_guest(m, gpa, buf, NULL, len);
}

static void mark(struct mv_machine *m, uint64_t gpa, uint64_t len)
{
	if (m->config.hooks.mark)
		m->config.hooks.mark(m->config.hooks.opaque, gpa, len);
}

int mv_write(struct mv_machine *m, uint64_t gpa, const void *buf, uint64_t len)
{
	if (copy_guest(m, gpa, NULL, buf, len) < 0)
		return -1;
	mark(m, gpa, len); /* write first, then mark: a mark before the write can be collected before the write lands */
	return 0;
}

/* Writes one aligned word that the guest may read meanwhile. */
static void write_word(struct mv_machine *m, uint64_t gpa, uint64_t value)
{
	gv_put(mv_host(m, gpa, 8), value);
	mark(m, gpa, 8);
}

uint64_t mv_memory_bytes(struct mv_machine *m)
{
	return m->bytes;
}

/* Reserves the region with unmapped pages around it. Its offset from a 2 MiB boundary is that in the guest, so that a
 * huge page of the host can back a huge page of the guest. */
static int map_region(struct mv_machine *m, unsigned index, const struct mv_region_config *rc)
{
	struct mv_region *r = &m->regions[index];
	size_t reserve = r->bytes + 3 * HUGE;
	int prot = PROT_READ | PROT_WRITE;
	char *base = mmap(NULL, reserve, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	uintptr_t host;
	void *mapped;

	if (base == MAP_FAILED)
		return mvi_error(m, "%s: cannot reserve %zu bytes: %s", r->name, reserve, strerror(errno));
	m->reserved[index] = base;
	m->reserved_bytes[index] = reserve;
	host = (((uintptr_t)base + HUGE) & ~(HUGE - 1)) + r->gpa % HUGE;
	if (rc->memfd) {
		r->fd = memfd_create(r->name, MFD_CLOEXEC | MFD_ALLOW_SEALING);
		if (r->fd < 0 || ftruncate(r->fd, (off_t)r->bytes) < 0)
			return mvi_error(m, "%s: cannot make a memfd of %llu bytes: %s", r->name, (unsigned long long)r->bytes,
					 strerror(errno));
		mapped = mmap((void *)host, r->bytes, prot, MAP_SHARED | MAP_FIXED | MAP_NORESERVE, r->fd, 0);
	} else {
		mapped = mmap((void *)host, r->bytes, prot, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0);
	}
	if (mapped == MAP_FAILED)
		return mvi_error(m, "%s: cannot map %llu bytes: %s", r->name, (unsigned long long)r->bytes,
				 strerror(errno));
	r->host = mapped;
	/* Without huge pages one touched page is one page of host memory, and the guest's holes stay. EINVAL means a kernel
	 * without transparent huge pages, which is as good. */
	madvise(mapped, r->bytes, m->config.huge_pages ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
	return 0;
}

static int cut_slots(struct mv_machine *m, unsigned index, const struct mv_region_config *rc)
{
	const struct mv_region *r = &m->regions[index];
	unsigned n = rc->nslots ? rc->nslots : 1;
	uint64_t offset = 0;

	if (n > MV_MAX_REGION_SLOTS)
		return mvi_error(m, "%s: %u slots, at most %u", r->name, n, MV_MAX_REGION_SLOTS);
	for (unsigned i = 0; i < n; i++) {
		struct mv_slot *s = &m->slots[m->nslots];
		uint64_t bytes = rc->nslots ? rc->slot_bytes[i] : 0;

		if (bytes == 0 && i == n - 1)
			bytes = r->bytes - offset;
		if (bytes == 0 || bytes % MV_PAGE || bytes > r->bytes - offset)
			return mvi_error(m, "%s: slot %u of %llu bytes at offset %llu does not fit a region of %llu bytes", r->name,
					 i, (unsigned long long)bytes, (unsigned long long)offset,
					 (unsigned long long)r->bytes);
		s->id = m->nslots++;
		s->region = index;
		s->offset = offset;
		s->bytes = bytes;
		s->gpa = r->gpa + offset;
		s->host = (char *)r->host + offset;
		offset += bytes;
	}
	if (offset != r->bytes)
		return mvi_error(m, "%s: the slots cover %llu of %llu bytes", r->name, (unsigned long long)offset,
				 (unsigned long long)r->bytes);
	return 0;
}

static int make_memory(struct mv_machine *m)
{
	struct mv_config *c = &m->config;

	if (c->nregions > MV_MAX_REGIONS)
		return mvi_error(m, "%u regions, at most %u", c->nregions, MV_MAX_REGIONS);
	if (c->nregions == 0) {
		c->nregions = 1;
		c->regions[0] = (struct mv_region_config){
			.bytes = c->memory_bytes ? c->memory_bytes : 64ull << 20,
			.memfd = c->memfd,
		};
	}
	for (unsigned i = 0; i < c->nregions; i++) {
		const struct mv_region_config *rc = &c->regions[i];
		struct mv_region *r = &m->regions[i];

		r->fd = -1;
		if (rc->name)
			snprintf(r->name, sizeof r->name, "%s", rc->name);
		else if (i == 0)
			snprintf(r->name, sizeof r->name, "ram");
		else
			snprintf(r->name, sizeof r->name, "ram%u", i);
		if (rc->bytes == 0 || rc->bytes % MV_PAGE || rc->bytes > 1ull << 46)
			return mvi_error(m, "%s: %llu bytes is no positive multiple of 4096 up to 64 TiB", r->name,
					 (unsigned long long)rc->bytes);
		r->gpa = m->bytes;
		r->bytes = rc->bytes;
		m->bytes += rc->bytes;
		m->nregions = i + 1;
		if (map_region(m, i, rc) < 0 || cut_slots(m, i, rc) < 0)
			return -1;
	}
	return 0;
}

/* ---- layout: vCPU pages, boot page tables, records, work area -------------------------------------------------- */

static uint64_t partition_pages(const struct mv_machine *m, unsigned vcpu)
{
	return m->work_pages / m->nvcpus + (vcpu < m->work_pages % m->nvcpus);
}

static uint64_t record_pages(const struct mv_machine *m, unsigned vcpu)
{
	return (partition_pages(m, vcpu) * 8 + MV_PAGE - 1) / MV_PAGE;
}

static int lay_out(struct mv_machine *m)
{
	uint64_t records_gpa, room, used;

	m->tables_gpa = GV_VCPU_GPA + (uint64_t)m->nvcpus * GV_VCPU_PAGES * GV_PAGE;
	m->ntables_pd = (m->bytes + (1ull << 30) - 1) >> 30;
	m->ntables_pdpt = (m->ntables_pd + 511) / 512;
	records_gpa = m->tables_gpa + (1 + m->ntables_pdpt + m->ntables_pd) * MV_PAGE;
	if (m->bytes < records_gpa + (uint64_t)m->nvcpus * 32 * MV_PAGE)
		return mvi_error(m, "%llu bytes of memory are too few for %u vCPUs", (unsigned long long)m->bytes, m->nvcpus);
	room = (m->bytes - records_gpa) / MV_PAGE;
	m->work_pages = room - room / 512;
	for (;; m->work_pages--) {
		used = m->work_pages;
		for (unsigned i = 0; i < m->nvcpus; i++)
			used += record_pages(m, i);
		if (used <= room)
			break;
	}
	m->work_gpa = records_gpa + (used - m->work_pages) * MV_PAGE;
	return 0;
}

/* Computed, and not read from guest memory: neither a guest nor a peer may mislead the VMM. */
static void partition(const struct mv_machine *m, unsigned vcpu, uint64_t *first_gpa, uint64_t *record_gpa)
{
	*first_gpa = m->work_gpa;
	*record_gpa = m->tables_gpa + (1 + m->ntables_pdpt + m->ntables_pd) * MV_PAGE;
	for (unsigned i = 0; i < vcpu; i++) {
		*first_gpa += partition_pages(m, i) * MV_PAGE;
		*record_gpa += record_pages(m, i) * MV_PAGE;
	}
}

uint64_t mvi_record_gpa(const struct mv_machine *m, unsigned vcpu)
{
	uint64_t first_gpa, record_gpa;

	partition(m, vcpu, &first_gpa, &record_gpa);
	return record_gpa;
}

static void write_mailboxes(struct mv_machine *m)
{
	unsigned permille = m->config.hot_permille ? m->config.hot_permille : 50;

	for (unsigned i = 0; i < m->nvcpus; i++) {
		struct gv_mailbox *mb = mvi_mailbox(m, i);

		mb->magic = GV_MAGIC;
		mb->vcpu = i;
		partition(m, i, &mb->first_gpa, &mb->record_gpa);
		mb->npages = partition_pages(m, i);
		mb->device_gpa = mvi_mailbox_gpa(i) + GV_PAGE;
		mb->hot_pages = mb->npages * (permille < 1000 ? permille : 1000) / 1000;
		if (mb->hot_pages == 0)
			mb->hot_pages = 1;
		mb->rng = gv_mix(m->config.seed * 1000003 + i) | 1;
		mb->workload = m->config.workload;
	}
}

static void fill(struct mv_machine *m)
{
	for (uint64_t page = 0; m->config.fill_percent > 0 && page < m->work_pages; page++) {
		uint64_t gpa = m->work_gpa + page * MV_PAGE;
		uint64_t x = gv_mix(gpa ^ m->config.seed) | 1, *word;

		if (gv_mix(page / 16 + m->config.seed) % 100 >= m->config.fill_percent)
			continue;
		word = mv_host(m, gpa, MV_PAGE);
		for (unsigned i = 0; i < GV_WORDS; i++) {
			x ^= x << 13;
			x ^= x >> 7;
			x ^= x << 17;
			word[i] = x;
		}
	}
}

/* A reason of brant's, for mv_error. */
static int of_brant(struct mv_machine *m, brant_error *e)
{
	mvi_error(m, "%s", brant_error_message(e));
	brant_error_free(e);
	return -1;
}

/* ---- making and unmaking --------------------------------------------------------------------------------------- */

static int set_up_threads(struct mv_machine *m)
{
	brant_gate_config config = {
		.size = sizeof(config), .signal = m->config.kick_signal, .flags = BRANT_GATE_INSTALL_HANDLER, .wait_ms = 60000};
	pthread_condattr_t attr;
	brant_error *e;

	if (brant_gate_new(&config, &m->gate, &e))
		return of_brant(m, e);
	pthread_mutex_init(&m->lock, NULL);
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&m->ctl_cond, &attr);
	pthread_condattr_destroy(&attr);
	m->locks_made = true;
	return 0;
}

static int set_up(struct mv_machine *m)
{
	if (m->config.kind != MV_KVM && m->config.kind != MV_PROCESS)
		return mvi_error(m, "unknown kind of machine %d", (int)m->config.kind);
	m->nvcpus = m->config.vcpus ? m->config.vcpus : 1;
	if (m->nvcpus > MV_MAX_VCPUS)
		return mvi_error(m, "%u vCPUs, at most %u", m->nvcpus, MV_MAX_VCPUS);
	m->vcpus = calloc(m->nvcpus, sizeof *m->vcpus);
	if (!m->vcpus)
		return mvi_error(m, "out of memory");
	for (unsigned i = 0; i < m->nvcpus; i++)
		/* The first question is answered at once, in case the mailbox came with a request in it. */
		m->vcpus[i] = (struct mv_vcpu){.m = m, .index = i, .fd = -1, .nudge_seen = (uint64_t)-1};
	if (set_up_threads(m) < 0 || make_memory(m) < 0 || lay_out(m) < 0)
		return -1;
	m->backend = m->config.kind == MV_KVM ? &mvi_kvm_backend : &mvi_process_backend;
	if (m->backend->create(m) < 0)
		return -1;
	if (m->config.incoming)
		return 0;
	write_mailboxes(m);
	fill(m);
	return m->backend->boot(m);
}

struct mv_machine *mv_machine_new(const struct mv_config *config, char *err, size_t err_len)
{
	struct mv_machine *m = calloc(1, sizeof *m);

	if (!m) {
		snprintf(err, err_len, "out of memory");
		return NULL;
	}
	m->config = *config;
	m->kvm_fd = m->vm_fd = -1;
	m->rate = config->rate;
	if (set_up(m) < 0) {
		snprintf(err, err_len, "%s", mv_error(m));
		mv_destroy(m);
		return NULL;
	}
	return m;
}

void mv_destroy(struct mv_machine *m)
{
	if (!m)
		return;
	if (m->gate)
		brant_gate_shut_down(m->gate, NULL);
	for (unsigned i = 0; m->vcpus && i < m->nvcpus; i++)
		if (m->vcpus[i].thread_made)
			pthread_join(m->vcpus[i].thread, NULL);
	brant_gate_free(m->gate);
	if (m->backend)
		m->backend->destroy(m);
	for (unsigned i = 0; i < m->nregions; i++) {
		if (m->reserved[i])
			munmap(m->reserved[i], m->reserved_bytes[i]);
		if (m->regions[i].fd >= 0)
			close(m->regions[i].fd);
	}
	if (m->locks_made) {
		pthread_cond_destroy(&m->ctl_cond);
		pthread_mutex_destroy(&m->lock);
	}
	free(m->vcpus);
	free(m);
}

/* ---- vCPU threads ---------------------------------------------------------------------------------------------- */

static uint64_t now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * NS + (uint64_t)ts.tv_nsec;
}

/* False when the time has come. */
static bool wait_until(struct mv_machine *m, pthread_cond_t *cond, uint64_t ns)
{
	struct timespec ts = {.tv_sec = (time_t)(ns / NS), .tv_nsec = (long)(ns % NS)};

	return pthread_cond_timedwait(cond, &m->lock, &ts) != ETIMEDOUT && now_ns() < ns;
}

static void *vcpu_main(void *arg)
{
	struct mv_vcpu *v = arg;
	struct mv_machine *m = v->m;
	brant_error *e;

	if (brant_gate_add_vcpu(m->gate, v->index, v->fd, &v->at, &e) == 0) {
		m->backend->run(v);
		brant_gate_vcpu_free(v->at);
	} else if (e) {
		mvi_dead(v, "%s", brant_error_message(e));
		brant_error_free(e);
	}
	/* Whoever waits for progress looks whether this was the end of it. */
	pthread_mutex_lock(&m->lock);
	pthread_cond_broadcast(&m->ctl_cond);
	pthread_mutex_unlock(&m->lock);
	return NULL;
}

int mv_make_threads(struct mv_machine *m)
{
	sigset_t all, old;
	int status = 0;

	if (m->started)
		return mvi_error(m, "the machine was started before");
	for (unsigned i = 0; m->config.incoming && i < m->nvcpus; i++)
		if (!m->vcpus[i].loaded)
			return mvi_error(m, "vCPU %u of an incoming machine has no state yet", i);
	m->started = true;
	/* vCPU threads take no signal but the gate's, so that the program's own handlers never run on them. */
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	for (unsigned i = 0; i < m->nvcpus && status == 0; i++) {
		status = pthread_create(&m->vcpus[i].thread, NULL, vcpu_main, &m->vcpus[i]);
		m->vcpus[i].thread_made = status == 0;
	}
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	return status ? mvi_error(m, "cannot create a vCPU thread: %s", strerror(status)) : 0;
}

int mv_start(struct mv_machine *m)
{
	brant_error *e;

	if (mv_make_threads(m) < 0)
		return -1;
	return brant_gate_start(m->gate, &e) ? of_brant(m, e) : 0;
}

struct brant_gate *mv_gate(struct mv_machine *m)
{
	return m->gate;
}

/*
 * The gate takes each vCPU out of KVM_RUN and lets it stand when its last exit is retired: an exit that is being handled is
 * finished (write and mark included), and the next KVM_RUN completes the instruction (an `in` gets its value only there). A
 * vCPU that waits out its pace is woken for that.
 */
int mv_pause(struct mv_machine *m)
{
	brant_error *e;

	if (!m->started)
		return 0; /* never ran */
	if (!m->paused && brant_gate_pause(m->gate, BRANT_NO_LIMIT, &e))
		return of_brant(m, e);
	m->paused = true;
	return mv_failed(m) ? -1 : 0;
}

int mv_resume(struct mv_machine *m)
{
	brant_error *e;

	if (!m->started)
		return mv_start(m);
	if (mv_failed(m))
		return -1;
	if (m->paused && brant_gate_resume(m->gate, &e))
		return of_brant(m, e);
	m->paused = false;
	return 0;
}

/* A pause that nobody needs takes every vCPU out. A migration's own kicks are the gate's. */
int mv_kick(struct mv_machine *m)
{
	brant_error *e;

	if (!m->started || m->config.kind == MV_PROCESS)
		return 0;
	if (brant_gate_pause(m->gate, BRANT_NO_LIMIT, &e) || brant_gate_resume(m->gate, &e))
		return of_brant(m, e);
	return mv_failed(m) ? -1 : 0;
}

/* Takes every vCPU out of its wait. One that has no thread yet will look anyway. */
static void wake(struct mv_machine *m)
{
	for (unsigned i = 0; i < m->nvcpus; i++)
		brant_gate_kick_vcpu(m->gate, i, NULL);
}

/* Makes every vCPU look at its mailbox. */
static void nudge(struct mv_machine *m)
{
	pthread_mutex_lock(&m->lock);
	m->nudge++;
	pthread_mutex_unlock(&m->lock);
	wake(m);
}

/* ---- pacing ---------------------------------------------------------------------------------------------------- */

/* Waits until `ns`, and returns false when the vCPU is wanted before. Called with m->lock held. */
static bool sleep_until(struct mv_vcpu *v, uint64_t ns)
{
	struct mv_machine *m = v->m;
	uint64_t now = now_ns();

	if (now >= ns)
		return true;
	pthread_mutex_unlock(&m->lock);
	brant_gate_vcpu_idle(v->at, (ns - now) / 1000000 + 1, NULL);
	pthread_mutex_lock(&m->lock);
	return now_ns() >= ns;
}

/* The vCPU owes rest in proportion to the time it ran. Bursts are short and timers are inexact, so the debt is
 * collected and paid in parts of 2 ms or more, as measured by the clock. */
static bool throttle(struct mv_vcpu *v, uint64_t now)
{
	uint64_t rest, slept;
	bool whole;

	if (v->throttle == 0 || v->entered_ns == 0) {
		v->owed_ns = 0;
		return true;
	}
	v->owed_ns += (now - v->entered_ns) * v->throttle / (100 - v->throttle);
	if (v->owed_ns < NS / 500)
		return true;
	rest = v->owed_ns < NS ? v->owed_ns : NS;
	whole = sleep_until(v, now + rest);
	slept = now_ns() - now;
	v->owed_ns = slept < rest ? rest - slept : 0;
	return whole;
}

static uint32_t pace(struct mv_vcpu *v, uint64_t workload)
{
	struct mv_machine *m = v->m;
	double rate = m->rate / m->nvcpus, burst = FLAT_OUT_BURST;
	uint64_t now = now_ns();

	if (workload == GV_IDLE) {
		pthread_mutex_unlock(&m->lock);
		brant_gate_vcpu_idle(v->at, BRANT_NO_LIMIT, NULL);
		pthread_mutex_lock(&m->lock);
		return 0;
	}
	/* A vCPU that begins has no delay to make up for. */
	if (v->pace_seen != m->pace || v->due_ns == 0) {
		v->pace_seen = m->pace;
		v->due_ns = now;
	}
	if (!throttle(v, now))
		return 0;
	if (rate <= 0)
		return (uint32_t)burst;
	if (!sleep_until(v, v->due_ns))
		return 0;
	burst = rate / 100; /* a hundred a second, within bounds */
	burst = burst < 1 ? 1 : burst > FLAT_OUT_BURST ? FLAT_OUT_BURST : (uint32_t)burst;
	now = now_ns();
	/* A late vCPU may catch up on at most 50 ms. */
	if (v->due_ns + NS / 20 < now)
		v->due_ns = now - NS / 20;
	v->due_ns += (uint64_t)(burst / rate * (double)NS);
	return (uint32_t)burst;
}

uint32_t mvi_pace(struct mv_vcpu *v)
{
	struct mv_machine *m = v->m;
	uint64_t workload = gv_get(&mvi_mailbox(m, v->index)->workload);
	uint32_t n;

	pthread_mutex_lock(&m->lock);
	if (m->watchers > 0)
		pthread_cond_broadcast(&m->ctl_cond);
	/* A kick that comes after this look ends the wait. */
	n = v->nudge_seen == m->nudge ? pace(v, workload) : 0;
	if (v->nudge_seen != m->nudge)
		n = 0;
	v->nudge_seen = m->nudge;
	v->entered_ns = now_ns();
	pthread_mutex_unlock(&m->lock);
	return n;
}

void mvi_answer(struct mv_vcpu *v, uint32_t pages)
{
	struct mv_machine *m = v->m;
	uint64_t device_gpa = mvi_mailbox_gpa(v->index) + GV_PAGE;
	struct gv_device *dev = mv_host(m, device_gpa, sizeof *dev);
	uint64_t seq;

	if (pages == 0)
		return;
	/* The VMM's own write to guest memory. Its count is in guest memory too, and so it migrates. */
	seq = gv_get(&dev->seq) + 1;
	gv_put(&dev->seq, seq);
	gv_put(&dev->stamp, gv_mix(seq));
	mark(m, device_gpa, sizeof *dev);
}

void mv_set_rate(struct mv_machine *m, double pages_per_second)
{
	pthread_mutex_lock(&m->lock);
	m->rate = pages_per_second;
	m->pace++;
	pthread_mutex_unlock(&m->lock);
	wake(m);
}

void mv_set_throttle(struct mv_machine *m, int vcpu, unsigned percent)
{
	pthread_mutex_lock(&m->lock);
	for (unsigned i = 0; i < m->nvcpus; i++)
		if (vcpu < 0 || (unsigned)vcpu == i)
			m->vcpus[i].throttle = percent < 99 ? percent : 99;
	m->pace++;
	pthread_mutex_unlock(&m->lock);
	wake(m);
}

int mv_set_workload(struct mv_machine *m, enum gv_workload workload)
{
	if (workload > GV_MIXED)
		return mvi_error(m, "unknown workload %d", (int)workload);
	for (unsigned i = 0; i < m->nvcpus; i++)
		write_word(m, mvi_mailbox_gpa(i) + offsetof(struct gv_mailbox, workload), workload);
	nudge(m);
	return 0;
}

/* ---- looking at the guest -------------------------------------------------------------------------------------- */

int mv_kvm_fd(struct mv_machine *m)
{
	return m->kvm_fd;
}

const struct kvm_cpuid2 *mv_cpuid(struct mv_machine *m)
{
	return m->cpuid;
}

int mv_vm_fd(struct mv_machine *m)
{
	return m->vm_fd;
}

int mv_vcpu_fd(struct mv_machine *m, unsigned vcpu)
{
	return vcpu < m->nvcpus ? m->vcpus[vcpu].fd : -1;
}

unsigned mv_vcpu_count(struct mv_machine *m)
{
	return m->nvcpus;
}

const struct mv_region *mv_regions(struct mv_machine *m, unsigned *n)
{
	*n = m->nregions;
	return m->regions;
}

void *mv_replace_memory(struct mv_machine *m, const char *name, int fd, uint64_t offset, uint64_t bytes)
{
	struct mv_region *r = m->regions;
	int own;

	while (r < m->regions + m->nregions && strcmp(r->name, name) != 0)
		r++;
	if (r == m->regions + m->nregions || r->bytes != bytes || offset != 0) {
		mvi_error(m, "%s: there is no region of this name with %llu bytes, as one whole file", name,
			  (unsigned long long)bytes);
		return NULL;
	}
	own = fcntl(fd, F_DUPFD_CLOEXEC, 0);
	if (own < 0 || mmap(r->host, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED | MAP_NORESERVE, fd, 0) == MAP_FAILED) {
		mvi_error(m, "%s: cannot map the file: %s", name, strerror(errno));
		if (own >= 0)
			close(own);
		return NULL;
	}
	if (r->fd >= 0)
		close(r->fd);
	r->fd = own;
	madvise(r->host, bytes, m->config.huge_pages ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
	return r->host;
}

const struct mv_slot *mv_slots(struct mv_machine *m, unsigned *n)
{
	*n = m->nslots;
	return m->slots;
}

int mv_need_still(struct mv_machine *m, unsigned vcpu)
{
	uint32_t holds = 0;

	if (vcpu >= m->nvcpus)
		return mvi_error(m, "there is no vCPU %u", vcpu);
	brant_gate_get_holds(m->gate, &holds, NULL);
	return holds ? 0 : mvi_error(m, "the machine is running");
}

long mv_save_vcpu(struct mv_machine *m, unsigned vcpu, void *buf, size_t cap)
{
	if (!m->backend->save_vcpu)
		return mvi_error(m, "the state of a KVM machine is saved by state.c");
	return mv_need_still(m, vcpu) < 0 ? -1 : m->backend->save_vcpu(&m->vcpus[vcpu], buf, cap);
}

int mv_load_vcpu(struct mv_machine *m, unsigned vcpu, const void *buf, size_t len)
{
	if (!m->backend->load_vcpu)
		return mvi_error(m, "the state of a KVM machine is loaded by state.c");
	if (mv_need_still(m, vcpu) < 0 || m->backend->load_vcpu(&m->vcpus[vcpu], buf, len) < 0)
		return -1;
	m->vcpus[vcpu].loaded = true;
	return 0;
}

void mv_vcpu_loaded(struct mv_machine *m, unsigned vcpu)
{
	m->vcpus[vcpu].loaded = true;
}

void mv_counters(struct mv_machine *m, int vcpu, struct mv_counters *out)
{
	*out = (struct mv_counters){0};
	for (unsigned i = 0; i < m->nvcpus; i++) {
		const struct gv_mailbox *mb = mvi_mailbox(m, i);

		if (vcpu >= 0 && (unsigned)vcpu != i)
			continue;
		out->writes += gv_get(&mb->writes);
		out->loops += gv_get(&mb->loops);
		out->bursts += gv_get(&mb->bursts);
		out->device_errors += gv_get(&mb->device_errors);
	}
}

/* Waits, with m->lock held, until done(m, arg) is true or the time is up. It is asked after every burst of every
 * vCPU. */
static int watch(struct mv_machine *m, bool (*done)(struct mv_machine *, uint64_t), uint64_t arg, unsigned timeout_ms)
{
	uint64_t end = now_ns() + timeout_ms * 1000000ull;
	bool in_time = true, is_done;

	m->watchers++;
	while (!(is_done = done(m, arg)) && in_time && !mv_failed(m))
		in_time = wait_until(m, &m->ctl_cond, end);
	m->watchers--;
	return is_done ? 0 : -1;
}

static bool writes_reached(struct mv_machine *m, uint64_t target)
{
	struct mv_counters c;

	mv_counters(m, -1, &c);
	return c.writes >= target;
}

int mv_wait_writes(struct mv_machine *m, uint64_t n, unsigned timeout_ms)
{
	struct mv_counters c;
	int status;

	mv_counters(m, -1, &c);
	pthread_mutex_lock(&m->lock);
	status = watch(m, writes_reached, c.writes + n, timeout_ms);
	pthread_mutex_unlock(&m->lock);
	return status == 0 ? 0 : mvi_error(m, "the guest did not make %llu writes in %u ms", (unsigned long long)n, timeout_ms);
}

static bool checks_done(struct mv_machine *m, uint64_t unused)
{
	(void)unused;
	for (unsigned i = 0; i < m->nvcpus; i++) {
		const struct gv_mailbox *mb = mvi_mailbox(m, i);

		if (gv_get(&mb->check_done) != gv_get(&mb->check_request))
			return false;
	}
	return true;
}

int mv_self_check(struct mv_machine *m, unsigned timeout_ms, uint64_t *bad)
{
	int status;

	*bad = 0;
	for (unsigned i = 0; i < m->nvcpus; i++)
		write_word(m, mvi_mailbox_gpa(i) + offsetof(struct gv_mailbox, check_request),
			   gv_get(&mvi_mailbox(m, i)->check_request) + 1);
	nudge(m);
	pthread_mutex_lock(&m->lock);
	status = watch(m, checks_done, 0, timeout_ms);
	pthread_mutex_unlock(&m->lock);
	if (status < 0)
		return mvi_error(m, "the guest's check was not done in %u ms", timeout_ms);
	for (unsigned i = 0; i < m->nvcpus; i++)
		*bad += gv_get(&mvi_mailbox(m, i)->check_bad);
	return 0;
}

uint64_t mv_record(struct mv_machine *m, unsigned vcpu, uint64_t *first_page_gpa, uint64_t *record, uint64_t n)
{
	uint64_t first, record_gpa, pages;

	if (vcpu >= m->nvcpus)
		return 0;
	partition(m, vcpu, &first, &record_gpa);
	pages = partition_pages(m, vcpu);
	if (first_page_gpa)
		*first_page_gpa = first;
	if (record)
		mv_read(m, record_gpa, record, (n < pages ? n : pages) * 8);
	return pages;
}

/* A write in flight has stored some of its three words, in order, over the recorded ones. */
static bool page_in_flight(const uint64_t *word, uint64_t gpa, uint64_t seq, uint64_t next)
{
	uint64_t old = gv_stamp(gpa, seq), new = gv_stamp(gpa, next);
	unsigned old_at = gv_moving_word(old), new_at = gv_moving_word(new);
	bool second = word[new_at] == gv_moving_stamp(new), third = word[GV_WORDS - 1] == ~new;

	if (word[0] != new || (third && !second))
		return false;
	return (third || word[GV_WORDS - 1] == ~old) &&
	       (word[old_at] == gv_moving_stamp(old) || (second && old_at == new_at));
}

static void verify_vcpu(struct mv_machine *m, unsigned vcpu, struct mv_verify *out)
{
	const struct gv_mailbox *mb = mvi_mailbox(m, vcpu);
	const struct gv_device *dev = mv_host(m, mvi_mailbox_gpa(vcpu) + GV_PAGE, sizeof *dev);
	uint64_t first, record_gpa, record[512], pages = partition_pages(m, vcpu), in_flight = 0;
	uint64_t next = mb->writes + 1;

	partition(m, vcpu, &first, &record_gpa);
	for (uint64_t page = 0; page < pages; page++) {
		uint64_t gpa = first + page * MV_PAGE, seq;
		const uint64_t *word;
		bool good;

		if (page % 512 == 0)
			mv_read(m, record_gpa + page * 8, record, (pages - page < 512 ? pages - page : 512) * 8);
		seq = record[page % 512];
		if (seq == 0)
			continue; /* never written, or its first write is in flight: there is nothing to hold it to */
		out->written++;
		word = mv_host(m, gpa, MV_PAGE);
		good = seq <= next && gv_page_holds(word, gpa, seq);
		if (good)
			continue;
		if (seq < next && in_flight == 0 && page_in_flight(word, gpa, seq, next)) {
			in_flight++;
			continue;
		}
		if (out->bad++ == 0)
			out->first_bad_gpa = gpa;
	}
	out->in_flight += in_flight;
	/* Between the VMM's write and the guest's own count, the device page is one ahead. */
	if ((dev->seq != mb->bursts && dev->seq != mb->bursts + 1) || (dev->seq > 0 && dev->stamp != gv_mix(dev->seq))) {
		if (out->bad++ == 0)
			out->first_bad_gpa = mvi_mailbox_gpa(vcpu) + GV_PAGE;
	}
}

int mv_verify_host(struct mv_machine *m, struct mv_verify *out)
{
	*out = (struct mv_verify){0};
	if (mv_need_still(m, 0) < 0)
		return -1;
	for (unsigned i = 0; i < m->nvcpus; i++)
		verify_vcpu(m, i, out);
	return out->bad == 0 ? 0 : mvi_error(m, "%llu pages do not hold what the guest recorded, the first at %#llx",
					     (unsigned long long)out->bad, (unsigned long long)out->first_bad_gpa);
}
