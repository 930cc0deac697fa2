/* What the example of docs/snapshots.md takes as given. */
extern brant_tracker *tracker;
extern brant_image_chain *chain;
extern brant_image_save *save;
extern brant_error *error;
