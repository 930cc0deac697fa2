/*
 * The bitmap, compared with a naive model: an array of bytes.
 */
#include "still.h"

static void check_bitmap(const brant_bitmap *bitmap, const uint8_t *model, uint64_t bits, bool *good)
{
    uint64_t at = 0, set = 0, model_set = 0, first, length;
    uint64_t longest = 1 + random_below(bits + 1);
    int32_t found;

    for (uint64_t i = 0; i < bits; i++)
        model_set += model[i];
    while ((found = brant_bitmap_next_run(bitmap, at, longest, &first, &length)) == 1) {
        *good = *good && first >= at && length >= 1 && length <= longest && first + length <= bits;
        for (uint64_t i = at; *good && i < first + length; i++)
            *good = model[i] == (i >= first);
        if (!*good)
            return;
        /* The run ends because it is long enough, or because the next bit is clear. */
        *good = length == longest || first + length == bits || !model[first + length];
        set += length;
        at = first + length;
    }
    *good = *good && found == 0 && set == model_set && brant_bitmap_count(bitmap) == model_set;
    for (int i = 0; i < 20 && bits; i++) {
        uint64_t bit = random_below(bits);

        *good = *good && brant_bitmap_test(bitmap, bit) == model[bit];
    }
    *good = *good && brant_bitmap_test(bitmap, bits) == 0;
}

static void bitmaps(void)
{
    static const uint64_t sizes[] = { 0, 1, 63, 64, 65, 127, 4096, 4097, 300000 };
    bool good = true, limits = true;

    for (size_t k = 0; k < sizeof sizes / sizeof sizes[0]; k++) {
        uint64_t bits = sizes[k];
        uint8_t *model = must_alloc(bits, 1);
        uint64_t *words = must_alloc(bits / 64 + 2, 8);
        brant_bitmap *bitmap, *other;

        must(brant_bitmap_new(bits, &bitmap, &e));
        for (int step = 0; good && step < 120; step++) {
            uint64_t first = random_below(bits + 1), count = random_below(bits - first + 1);
            uint64_t changed = ~0ull, expected = 0;
            unsigned op = (unsigned)random_below(4);

            if (op < 2) {
                for (uint64_t i = first; i < first + count; i++) {
                    expected += model[i] == op;
                    model[i] = !op;
                }
                must((op ? brant_bitmap_clear : brant_bitmap_set)(bitmap, first, count, &changed, &e));
            } else {
                for (uint64_t i = 0; i < count / 64 + 1; i++)
                    words[i] = gv_mix(random_state + i) & gv_mix(random_state - i);
                random_below(2);
                for (uint64_t i = 0; i < count; i++)
                    if (words[i / 64] >> i % 64 & 1) {
                        expected += !model[first + i];
                        model[first + i] = 1;
                    }
                if (op == 2) {
                    must(brant_bitmap_merge_words(bitmap, first, words, count, &changed, &e));
                } else {
                    must(brant_bitmap_new(bits, &other, &e));
                    must(brant_bitmap_merge_words(other, first, words, count, NULL, &e));
                    must(brant_bitmap_merge(bitmap, other, &changed, &e));
                    brant_bitmap_free(other);
                }
            }
            if (changed != expected) {
                note("%" PRIu64 " bits, step %d, operation %u: %" PRIu64 " changed, not %" PRIu64, bits,
                     step, op, changed, expected);
                good = false;
            }
            if (step % 10 == 0)
                check_bitmap(bitmap, model, bits, &good);
        }
        limits = limits && brant_bitmap_set(bitmap, bits, 1, NULL, NULL) == BRANT_E_INVALID &&
                 brant_bitmap_clear(bitmap, 0, bits + 1, NULL, NULL) == BRANT_E_INVALID &&
                 brant_bitmap_set(bitmap, 1, UINT64_MAX, NULL, NULL) == BRANT_E_INVALID &&
                 brant_bitmap_merge_words(bitmap, UINT64_MAX, words, 2, NULL, NULL) == BRANT_E_INVALID;
        must(brant_bitmap_new(bits + 1, &other, &e));
        limits = limits && brant_bitmap_merge(bitmap, other, NULL, NULL) == BRANT_E_INVALID;
        check_bitmap(bitmap, model, bits, &limits);
        brant_bitmap_free(other);
        brant_bitmap_free(bitmap);
        free(model);
        free(words);
    }
    ok(good, "a bitmap does what an array of bytes does");
    ok(limits, "what reaches past its end is refused and changes nothing");
    {
        brant_bitmap *huge;
        uint64_t first = 0, length = 0, last = (1ull << 34) - 1;

        must(brant_bitmap_new(last + 1, &huge, &e));
        must(brant_bitmap_set(huge, last, 1, NULL, &e));
        ok(brant_bitmap_next_run(huge, 0, 1, &first, &length) == 1 && first == last && length == 1,
           "a bitmap for 64 TiB costs what is set in it");
        brant_bitmap_free(huge);
    }
}

int main(void)
{
    plan(3);
    random_begin();
    bitmaps();
    return done();
}
