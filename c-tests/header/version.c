/*
 * Prints the version of the header's macros, for a comparison with the crate's. Used by
 * scripts/test.
 */
#include <stdio.h>

#include "brant.h"

int main(void)
{
    printf("%d.%d.%d\n", (int)BRANT_VERSION_MAJOR, (int)BRANT_VERSION_MINOR,
           (int)BRANT_VERSION_PATCH);
    return 0;
}
