/*
 * One call, and the promises for each call.
 */
#ifndef MANNERS_CALL_H
#define MANNERS_CALL_H

#include "manners/arguments.h"

static void call(struct world *w, const struct row *row, struct args *a, bool with_error,
                 int64_t expected)
{
    brant_error *e = (brant_error *)(uintptr_t)UNTOUCHED;
    struct args before;
    int64_t got;

    args_lend(row, a);
    before = *a;
    got = row->call(w, a, with_error ? &e : NULL);
    if (expected == FINE)
        expected = row->good;
    if (expected == WITH_KVM)
        expected = kvm_fd >= 0 ? 0 : ANYTHING;
    if (expected == WITH_RINGS)
        expected = kvm_fd >= 0 && ioctl(kvm_fd, KVM_CHECK_EXTENSION, 223) > 0 ? 0 : ANYTHING;
    if (expected == DESCRIPTOR) {
        if (got < 0 || !is_open((int)got))
            wrong("no descriptor: %lld", (long long)got);
    } else if (expected != ANYTHING && got != expected) {
        wrong("returned %lld, not %lld", (long long)got, (long long)expected);
    }
    if (!row->has_error) {
        if (got == BRANT_E_INTERNAL)
            wrong("a defect: it panicked");
    } else {
        const char *name = brant_error_name((int32_t)got);

        if (got > 0 || got == BRANT_E_INTERNAL || strcmp(name, "unknown error") == 0)
            wrong("returned %lld%s%s", (long long)got, with_error && got ? ": " : "",
                  with_error && got ? brant_error_message(e) : "");
        if (with_error && got == 0 && e != NULL)
            wrong("succeeded, and the error was not set to NULL");
        if (with_error && got != 0 && (uintptr_t)e == UNTOUCHED)
            wrong("failed, and the error was not set");
        else if (with_error && got != 0) {
            if (brant_error_code(e) != got || brant_error_message(e)[0] == 0)
                wrong("the error says %d (%s), not %lld", brant_error_code(e),
                      brant_error_message(e), (long long)got);
            brant_error_free(e);
        }
        if (a->handed && !w->threads && got != 0 && left_open(a))
            wrong("failed, and left the socket open that was handed over");
    }
    /* Duplicates that brant keeps are counted at the end of the world. */
    if (a->lent && close(a->fd))
        wrong("closed the descriptor that was lent");
    for (int i = 0; i < ARGS; i++) {
        const struct argument *arg = &row->args[i];

        if (arg->kind == OUT_HANDLE && a->outs[i] != UNTOUCHED && a->outs[i] != 0) {
            if (got != 0)
                wrong("failed, and wrote to %s", arg->name);
            else if (row->unmake)
                row->unmake((void *)(uintptr_t)a->outs[i]);
        }
        if (arg->kind == OUT_NUMBER && row->has_error && got != 0 && a->outs[i] != UNTOUCHED)
            wrong("failed, and wrote to %s", arg->name);
        if (arg->kind == FILLED && got != 0 &&
            memcmp((char *)a + arg->offset, (char *)&before + arg->offset, arg->size))
            wrong("failed, and wrote to %s", arg->name);
    }
    if (row->gone && got == 0 && !(a->null & 1))
        row->gone(w);
}

#endif
