/* What the examples of docs/vfio.md take as given. */
#include <pthread.h>
struct disk { pthread_mutex_t lock; int socket; };
extern brant_guest *guest;
extern brant_tracker *tracker;
extern int device_fd;
extern brant_error *error;
