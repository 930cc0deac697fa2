/*
 * The state of a machine besides its memory. What KVM knows of a guest is brant's business (docs/kvm-state.md); a guest
 * of plain memory has a state of its own in process.c.
 */
#include <stdio.h>
#include <string.h>

#include "state.h"

#define STATE_VERSION 1u

static int32_t machines_reason(struct mv_machine *m, brant_reason *reason)
{
	brant_reason_set(reason, mv_error(m));
	return -1;
}

static int32_t brants_reason(brant_reason *reason, brant_error *error)
{
	brant_reason_set(reason, brant_error_message(error));
	brant_error_free(error);
	return -1;
}

int32_t mv_early_save(struct mv_machine *m, brant_saver *saver, brant_reason *reason)
{
	brant_error *e;

	if (mv_vm_fd(m) < 0 || !brant_kvm_compat_save(mv_kvm_fd(m), mv_vm_fd(m), mv_cpuid(m), saver, &e))
		return 0;
	return brants_reason(reason, e);
}

bool mv_is_compat(const brant_state_blob *blob)
{
	return strcmp(blob->name, "kvm-compat") == 0;
}

int32_t mv_early_load(struct mv_machine *m, const brant_state_blob *blob, brant_reason *reason)
{
	brant_error *e;

	if (mv_vm_fd(m) < 0) {
		brant_reason_set(reason, "the source is a KVM guest, and this machine is plain memory");
		return -1;
	}
	return brant_kvm_compat_check(mv_kvm_fd(m), mv_vm_fd(m), mv_cpuid(m), blob, &e) ? brants_reason(reason, e) : 0;
}

void mv_stood_still(struct mv_machine *m)
{
	for (unsigned i = 0; mv_vm_fd(m) >= 0 && i < mv_vcpu_count(m); i++)
		brant_kvm_vcpu_stood_still(mv_vcpu_fd(m, i), NULL);
}

int32_t mv_save(struct mv_machine *m, brant_saver *saver, brant_reason *reason)
{
	int kvm = mv_kvm_fd(m), vm = mv_vm_fd(m);
	uint8_t state[MV_VCPU_STATE_MAX];
	brant_error *e;

	for (unsigned i = 0; i < mv_vcpu_count(m); i++) {
		long len;

		if (mv_need_still(m, i) < 0)
			return machines_reason(m, reason);
		if (vm >= 0) {
			if (brant_kvm_vcpu_save(kvm, vm, mv_vcpu_fd(m, i), i, saver, &e))
				return brants_reason(reason, e);
			continue;
		}
		len = mv_save_vcpu(m, i, state, sizeof(state));
		if (len < 0)
			return machines_reason(m, reason);
		if (brant_saver_put(saver, "vcpu", i, STATE_VERSION, state, (size_t)len, NULL))
			return -1;
	}
	return vm >= 0 && brant_kvm_vm_save(kvm, vm, saver, &e) ? brants_reason(reason, e) : 0;
}

static int32_t load_kvm(struct mv_machine *m, const brant_state_blob *blob, brant_reason *reason)
{
	int kvm = mv_kvm_fd(m), vm = mv_vm_fd(m);
	brant_error *e;

	if (strcmp(blob->name, "kvm-vm") == 0)
		return brant_kvm_vm_load(kvm, vm, blob, &e) ? brants_reason(reason, e) : 0;
	if (brant_kvm_vcpu_load(kvm, vm, mv_vcpu_fd(m, blob->instance), blob, &e))
		return brants_reason(reason, e);
	mv_vcpu_loaded(m, blob->instance);
	return 0;
}

int32_t mv_load(struct mv_machine *m, const brant_state_blob *blob, brant_reason *reason)
{
	bool kvm = mv_vm_fd(m) >= 0;
	bool of_vcpu = strcmp(blob->name, kvm ? "kvm-vcpu" : "vcpu") == 0 && blob->instance < mv_vcpu_count(m);

	if (mv_need_still(m, 0) < 0)
		return machines_reason(m, reason);
	if (kvm && (of_vcpu || strcmp(blob->name, "kvm-vm") == 0))
		return load_kvm(m, blob, reason);
	if (!kvm && of_vcpu && blob->version == STATE_VERSION)
		return mv_load_vcpu(m, blob->instance, blob->data, blob->length) ? machines_reason(m, reason) : 0;
	BRANT_REASON_SETF(reason, "blob `%s` %u version %u is not known here", blob->name, blob->instance, blob->version);
	return -1;
}
