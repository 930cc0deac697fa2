/*
 * BRANT_INIT wherever a structure can begin: a variable, a static variable, a member and an
 * element. Compiled as C and as C++ with every warning an error, and never run. scripts/test checks
 * that it fits every structure with a size, and runs that program.
 */
#include "brant.h"

struct both {
    brant_params params;
    brant_slot slots[2];
};

static const brant_params fixed = BRANT_INIT(brant_params);

int brant_init_was_understood(void);
int brant_init_was_understood(void)
{
    brant_stats stats = BRANT_INIT(brant_stats);
    struct both both = { BRANT_INIT(brant_params), { BRANT_INIT(brant_slot), BRANT_INIT(brant_slot) } };

    stats.pass = 1;
    both.params.downtime_limit_ms = 100;
    return (int)(fixed.size + stats.pass + both.params.channels + both.slots[1].slot);
}
