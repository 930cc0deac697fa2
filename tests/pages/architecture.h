/* What the example of docs/architecture.md takes as given. */
#include <stdint.h>
struct brant_part;
