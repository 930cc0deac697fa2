/*
 * Calls with one twist each, in a world of its own.
 */
#ifndef MANNERS_TWISTS_H
#define MANNERS_TWISTS_H

#include "manners/world.h"

struct twisted { const struct row *row; struct args *a; bool with_error; int64_t expected; };

static void call_twisted(struct world *w, void *arg)
{
    struct twisted *t = arg;

    call(w, t->row, t->a, t->with_error, t->expected);
}

static void blocked(struct world *w)
{
    MUST(brant_blocker_new(w->there, "for now", &w->blocker, NULL));
}

static void twist(const struct row *row, struct args *a, int64_t expected)
{
    for (int with_error = 0; with_error < 2; with_error++) {
        struct args copy = *a;
        struct twisted t = { row, &copy, with_error, expected };
        struct world w;

        world_begin(&w, row->inside ? FRESH : row->state);
        if (row->gone)
            blocked(&w);
        if (row->inside) {
            w.inside = call_twisted;
            w.inside_arg = &t;
            w.operation = OP_save;
            w.side = SOURCE;
            connect_both(&w);
            sem_wait(&w.called);
        } else {
            world_enter(&w, row->state);
            call_twisted(&w, &t);
        }
        world_end(&w);
        if (!row->has_error)
            break;
    }
}

static bool points(const struct argument *arg)
{
    return arg->kind >= HANDLE && arg->kind <= FILLED;
}

static void try_null(const struct row *row)
{
    struct args a;
    int64_t all = ANYTHING;

    args_fill(&a);
    trying("%s as it should be", row->name);
    twist(row, &a, FINE);
    for (int i = 0; i < ARGS; i++) {
        if (!points(&row->args[i]))
            continue;
        args_fill(&a);
        a.null = 1u << i;
        trying("%s with NULL for %s", row->name, row->args[i].name);
        twist(row, &a, row->args[i].null);
        if (row->args[i].null == BRANT_E_INVALID)
            all = BRANT_E_INVALID;
    }
    args_fill(&a);
    a.null = ~0u;
    trying("%s with NULL for everything", row->name);
    twist(row, &a, all);
    ok(nothing_wrong(), "%s: NULL for each argument, and for all", row->name);
}

static void try_sizes(const struct row *row, int i)
{
    const struct argument *arg = &row->args[i];
    const struct { size_t size; char tail; int64_t given, filled; } sizes[] = {
        { 0, 0, BRANT_E_INVALID, BRANT_E_INVALID },
        { 7, 0, BRANT_E_INVALID, BRANT_E_INVALID },
        { 8, 0, ANYTHING, FINE },
        { arg->size / 2, 0, ANYTHING, FINE },
        { arg->size, 0, FINE, FINE },
        { arg->size + 16, 0, FINE, FINE },
        { arg->size + 16, 1, BRANT_E_INVALID, FINE },
        { SIZE_MAX, 0, BRANT_E_INVALID, BRANT_E_INVALID },
    };
    struct args a;

    for (size_t n = 0; n < sizeof sizes / sizeof sizes[0]; n++) {
        size_t size = sizes[n].size;

        args_fill(&a);
        a.instead[i] = resized(arg, (char *)&a + arg->offset, size > PAGE ? arg->size : size,
                               sizes[n].tail);
        if (size > PAGE)
            memcpy((void *)(uintptr_t)a.instead[i], &size, sizeof size);
        trying("%s with %s of size %zu%s", row->name, arg->name, size,
               sizes[n].tail ? " and something in its tail" : "");
        twist(row, &a, arg->kind == GIVEN ? sizes[n].given : sizes[n].filled);
        if (arg->kind == FILLED && size > arg->size && size < PAGE)
            for (size_t k = arg->size; k < size; k++)
                if (((const char *)a.instead[i])[k])
                    wrong("what it does not know is not 0");
    }
}

static void try_values(const struct row *row)
{
    static char longest[100001];
    struct args a;

    memset(longest, 'x', sizeof longest - 1);
    for (int i = 0; i < ARGS; i++) {
        const struct argument *arg = &row->args[i];

        if (arg->kind == GIVEN || arg->kind == FILLED)
            try_sizes(row, i);
        for (int f = 0; f < FIELDS && arg->fields[f].name; f++) {
            const uint32_t none = UINT32_MAX;

            args_fill(&a);
            memcpy((char *)&a + arg->offset + arg->fields[f].offset, &none, sizeof none);
            trying("%s with all bits set in %s.%s", row->name, arg->name, arg->fields[f].name);
            twist(row, &a, BRANT_E_INVALID);
        }
        if (arg->kind == ENUM || arg->kind == NUMBER)
            for (int n = 0; n < 2; n++) {
                args_fill(&a);
                a.numbered = 1u << i;
                a.number = n ? UINT64_MAX : 0;
                trying("%s with %s for %s", row->name, n ? "all bits set" : "0", arg->name);
                twist(row, &a, arg->kind == ENUM && n ? BRANT_E_INVALID : ANYTHING);
            }
        if (arg->kind == TEXT) {
            const char *texts[] = { "no \xff UTF-8", "", longest };

            for (int n = 0; n < 3; n++) {
                args_fill(&a);
                a.instead[i] = texts[n];
                trying("%s with text %d for %s", row->name, n, arg->name);
                twist(row, &a, n == 0 ? arg->wrong : ANYTHING);
            }
        }
    }
    ok(nothing_wrong(), "%s: other sizes, enumerations, numbers and text", row->name);
}

static void try_states(const struct row *row)
{
    for (enum state state = 0; state < STATES; state++) {
        struct world w;
        struct args a;
        int64_t expected = row->states[state].known ? row->states[state].code
                           : state == row->state && !row->inside ? FINE : ANYTHING;

        trying("%s when %s", row->name, states[state]);
        args_fill(&a);
        world_begin(&w, state);
        world_enter(&w, state);
        if (row->gone)
            blocked(&w);
        call(&w, row, &a, true, expected);
        /* Everything that the call left can still be used. */
        for (int i = 0; i < FUNCTIONS; i++)
            if (!rows[i].gone && rows[i].any_thread) {
                args_fill(&a);
                call(&w, &rows[i], &a, true, ANYTHING);
            }
        world_end(&w);
    }
    ok(nothing_wrong(), "%s: in every state", row->name);
}

static void try_callbacks(const struct row *row)
{
    for (enum operation op = 0; op < OPERATIONS; op++)
        for (enum side side = SOURCE; side <= DESTINATION; side++) {
            struct world w;
            struct args a;
            struct twisted t = { row, &a, true, ANYTHING };

            if (operations[op].side != side && operations[op].side != BOTH)
                continue;
            args_fill(&a);
            if (row->own == side && row->callback) {
                t.expected = row->callback;
                a.timeout_ms = BRANT_NO_LIMIT;
            }
            trying("%s inside %s of the %s", row->name, operations[op].name,
                   side == SOURCE ? "source" : "destination");
            world_begin(&w, FRESH);
            w.inside = call_twisted;
            w.inside_arg = &t;
            w.operation = op;
            w.side = side;
            w.fail_release = op == OP_resume;
            connect_both(&w);
            while (sem_wait(&w.called))
                ;
            world_end(&w);
        }
    ok(nothing_wrong(), "%s: inside every operation", row->name);
}

#endif
