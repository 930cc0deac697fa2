/* What the examples of docs/channels.md take as given. */
extern brant_tracker *tracker;
extern brant_outgoing *outgoing;
extern brant_error *error;
extern int32_t sockets[4];
