/* What the example of docs/fast-restore.md takes as given. */
extern brant_guest *guest;
extern brant_image_restore *restore;
extern const char *path;
extern brant_error *error;
