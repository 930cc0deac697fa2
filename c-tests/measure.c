/*
 * The costs of KVM's logs, measured before a VMM chooses. The figures are complete, AUTO picks the
 * recommended log and says so, nothing is left behind, and a wrong descriptor or limit is refused.
 */
#include "support.h"

#include <dirent.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <sys/ioctl.h>

enum { FIGURES = 4, REST = 9 };

static const char *const names[] = { "auto", "get and clear", "manual protect", "initially set", "ring" };

static const brant_kvm_cost *cost_of(const brant_kvm_costs *costs, uint64_t mode)
{
    switch (mode) {
    case BRANT_KVM_GET_AND_CLEAR:
        return &costs->get_and_clear;
    case BRANT_KVM_MANUAL_PROTECT:
        return &costs->manual_protect;
    case BRANT_KVM_INITIALLY_SET:
        return &costs->initially_set;
    default:
        return &costs->ring;
    }
}

static bool offered(int kvm, uint64_t mode)
{
    int manual = ioctl(kvm, KVM_CHECK_EXTENSION, 168);

    switch (mode) {
    case BRANT_KVM_MANUAL_PROTECT:
        return manual & 1;
    case BRANT_KVM_INITIALLY_SET:
        return (manual & 3) == 3;
    case BRANT_KVM_RING:
        return ioctl(kvm, KVM_CHECK_EXTENSION, 223) > 0 || ioctl(kvm, KVM_CHECK_EXTENSION, 192) > 0;
    default:
        return true;
    }
}

static long descriptors(void)
{
    DIR *dir = opendir("/proc/self/fd");
    long n = 0;

    while (dir && readdir(dir))
        n++;
    if (dir)
        closedir(dir);
    return n;
}

static bool refused(int32_t code, int32_t expected, brant_error **e, const char *says)
{
    bool good = code == expected && strstr(brant_error_message(*e), says);

    if (!good)
        note("%d: %s", code, brant_error_message(*e));
    brant_error_free(*e);
    *e = NULL;
    return good;
}

/* Adds the log of a new machine, and returns the mode that was picked. */
static uint32_t picked(int kvm, const brant_kvm_costs *costs, bool rings, char *reason, size_t size)
{
    int vm = ioctl(kvm, KVM_CREATE_VM, 0);
    brant_kvm_log log = { .size = sizeof log, .mode = BRANT_KVM_AUTO, .costs = costs };
    brant_kvm_info info = { .size = sizeof info };
    brant_tracker *tracker;
    brant_guest *guest;

    if (vm < 0)
        bail("KVM_CREATE_VM: %s", strerror(errno));
    if (rings)
        must(brant_kvm_enable_ring(vm, 0, NULL, &e));
    must(brant_guest_new(NULL, NULL, &guest, &e));
    must(brant_tracker_new(guest, NULL, &tracker, &e));
    log.vm_fd = vm;
    must(brant_tracker_add_kvm(tracker, &log, &e));
    close(vm);
    must(brant_tracker_get_kvm(tracker, &info, reason, size, NULL, &e));
    brant_tracker_free(tracker);
    brant_guest_free(guest);
    return info.mode;
}

int main(void)
{
    /* Ten seconds are the longest limit. The measurement takes a fraction of it. */
    brant_kvm_workload workload = { .size = sizeof workload, .limit_ms = 10000 };
    brant_kvm_costs costs = { .size = sizeof costs }, some;
    int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC), null = open("/dev/null", O_RDONLY | O_CLOEXEC);
    char reason[1024], why[1024];
    size_t needed = 0;
    brant_error *e = NULL;
    int32_t code;
    uint32_t mode;
    long before;

    if (kvm < 0)
        skip_all("cannot open /dev/kvm");
    code = brant_kvm_measure(kvm, &workload, &costs, reason, sizeof reason, &needed, &e);
    if (code == BRANT_E_UNSUPPORTED) {
        note("%s", brant_error_message(e));
        skip_all("brant has no guest program for this machine");
    }
    plan(FIGURES + REST);
    if (code != 0)
        bail("brant_kvm_measure: %s", brant_error_message(e));
    note("%s", reason);
    for (uint64_t m = BRANT_KVM_GET_AND_CLEAR; m <= BRANT_KVM_RING; m++) {
        const brant_kvm_cost *c = cost_of(&costs, m);

        note("%s: first write %" PRIu64 " ns, busy write %" PRIu64 ", sync %" PRIu64 " a page, %" PRIu64
             " a GiB", names[m], c->first_write_ns, c->busy_write_ns, c->sync_page_ns, c->sync_gib_ns);
        ok(offered(kvm, m) ? c->measured == 1 && c->first_write_ns && c->busy_write_ns && c->sync_page_ns
                           : c->measured == 0 && !c->first_write_ns && !c->busy_write_ns,
           "%s: there are figures where this KVM has it, and else none", names[m]);
    }
    ok(costs.recommended >= 1 && costs.recommended <= 4 && cost_of(&costs, costs.recommended)->measured &&
           needed == strlen(reason) + 1,
       "a kind that was measured is recommended, and why: %s", reason);
    mode = picked(kvm, &costs, false, why, sizeof why);
    note("%s", why);
    ok(strstr(why, "measured") && (mode == costs.recommended || costs.recommended == BRANT_KVM_RING),
       "AUTO picks what was recommended as long as it is to be had, and says why");
    /* The same machine, if bitmaps were expensive: AUTO follows the figures, and not its order
     * without figures. */
    some = costs;
    some.get_and_clear = (brant_kvm_cost){ 1, 1, 1, 1, 1 };
    mode = picked(kvm, &some, false, why, sizeof why);
    equal(mode, BRANT_KVM_GET_AND_CLEAR, "other figures have AUTO pick another kind");
    if (!offered(kvm, BRANT_KVM_RING)) {
        skip("this KVM has no rings", "rings that are enabled are taken, and what they cost is told");
    } else {
        some.ring = (brant_kvm_cost){ 1, 9000, 9000, 90, 0 };
        mode = picked(kvm, &some, true, why, sizeof why);
        note("%s", why);
        ok(mode == BRANT_KVM_RING && strstr(why, "would have been cheaper"),
           "rings that are enabled are taken, and what they cost is told");
    }
    some = (brant_kvm_costs){ .size = sizeof some };
    {
        brant_tracker *tracker;
        brant_guest *guest;
        brant_kvm_log log = { .size = sizeof log, .vm_fd = ioctl(kvm, KVM_CREATE_VM, 0), .costs = &some };

        must(brant_guest_new(NULL, NULL, &guest, &e));
        must(brant_tracker_new(guest, NULL, &tracker, &e));
        ok(refused(brant_tracker_add_kvm(tracker, &log, &e), BRANT_E_INVALID, &e,
                   "brant_kvm_measure"),
           "costs without a figure are refused");
        close(log.vm_fd);
        brant_tracker_free(tracker);
        brant_guest_free(guest);
    }
    before = descriptors();
    workload.limit_ms = 20;
    for (int i = 0; i < 3; i++) {
        code = brant_kvm_measure(-1, &workload, &costs, NULL, 0, NULL, NULL);
        if (code != 0 && code != BRANT_E_TIMEOUT)
            break;
    }
    ok(code == 0 || code == BRANT_E_TIMEOUT, "a short limit is kept, or says that it was too short");
    equal(descriptors(), before, "no descriptor stays");
    ok(refused(brant_kvm_measure(null, NULL, &costs, NULL, 0, NULL, &e), BRANT_E_INVALID, &e, "/dev/kvm") &&
           fcntl(null, F_GETFD) >= 0,
       "what is not /dev/kvm is refused, and stays the caller's");
    workload.limit_ms = 10001;
    ok(refused(brant_kvm_measure(kvm, &workload, &costs, NULL, 0, NULL, &e), BRANT_E_INVALID, &e,
               "20 to 10000 ms"),
       "a limit out of range is refused with the range");
    close(null);
    close(kvm);
    return done();
}
