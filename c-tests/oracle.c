/*
 * Every kind of log before the oracle. oracle.h has the promises for each. For a new kind, add a
 * line to the table.
 *
 * time limit: 300 s
 */
#include "oracle.h"

static const struct oracle_kind kinds[] = {
    { .name = "get-and-clear", .add = vm_add_kvm, .mode = BRANT_KVM_GET_AND_CLEAR },
    { .name = "manual-protect", .add = vm_add_kvm, .mode = BRANT_KVM_MANUAL_PROTECT },
    { .name = "initially-set", .add = vm_add_kvm, .mode = BRANT_KVM_INITIALLY_SET },
    { .name = "initially-set, cleared at sync", .add = vm_add_kvm,
      .mode = BRANT_KVM_INITIALLY_SET, .clearing = BRANT_CLEAR_AT_SYNC },
    { .name = "ring of 256 entries", .add = vm_add_kvm, .mode = BRANT_KVM_RING, .ring_bytes = 4096 },
    { .name = "ring as shipped", .add = vm_add_kvm, .mode = BRANT_KVM_RING,
      .ring_bytes = RING_DEFAULT },
    { .name = "ring of 65536 entries", .add = vm_add_kvm, .mode = BRANT_KVM_RING,
      .ring_bytes = 1 << 20 },
    { .name = "reported, of a process", .machine = MV_PROCESS },
    { .name = "userfault", .add = oracle_add_userfault, .available = oracle_has_userfault },
};

enum { KINDS = sizeof kinds / sizeof kinds[0] };

int main(void)
{
    plan(KINDS * 2 * ORACLE_PROMISES);
    random_begin();
    for (int i = 0; i < KINDS; i++) {
        oracle(&kinds[i], 1);
        oracle(&kinds[i], 4);
    }
    return done();
}
