/* What the examples of docs/devices.md take as given. */
#include <stdint.h>
extern struct gpu *gpu;
extern brant_guest *guest;
extern brant_error *error;
uint64_t gpu_dirty_bytes(struct gpu *gpu);
uint64_t gpu_register_bytes(struct gpu *gpu);
size_t gpu_take_dirty(struct gpu *gpu, void *buffer, size_t length);
int32_t stop(void *opaque, brant_reason *reason);
int32_t resume(void *opaque, brant_reason *reason);
int32_t run(void *opaque, brant_reason *reason);
int32_t read_stopped(void *opaque, void *buffer, size_t length, size_t *read, brant_reason *reason);
int32_t load(void *opaque, const void *data, size_t length, brant_reason *reason);
