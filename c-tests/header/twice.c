/*
 * The header needs nothing before it, may be included twice, and defines its
 * version as macros that the preprocessor can compare. Compiled as C and, under
 * another name, as C++; never run. Used by scripts/test.
 */
#include "brant.h"
#include "brant.h"

#if !defined(BRANT_VERSION_MAJOR) || !defined(BRANT_VERSION_MINOR) || !defined(BRANT_VERSION_PATCH)
#error "brant.h does not define its version"
#endif
#if BRANT_VERSION_MAJOR * 10000 + BRANT_VERSION_MINOR * 100 + BRANT_VERSION_PATCH < 100
#error "brant.h has a version older than its first"
#endif

int brant_header_was_understood;
