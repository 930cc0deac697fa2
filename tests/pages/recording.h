/* What the examples of docs/recording.md take as given. */
#include <fcntl.h>
#include <stdint.h>
#include <unistd.h>
extern brant_outgoing *outgoing;
extern const char *endpoint;
extern brant_error *error;
extern brant_recorded recorded;
