/*
 * brant's numbers in the words of this program's user. For migrate.c, which has brant's handles.
 */
#ifndef MINIVMM_REPORT_H
#define MINIVMM_REPORT_H

#include "migrate.h"

#include <brant.h>

/* The progress; `stage` is "" while there is nothing to show. `f` is NULL while there is no forecast. */
struct mg_progress report_progress(const brant_stats *s, const brant_forecast *f, bool last);
/* The result, except what only the caller knows: the limit, whether it was cancelled, the JSON. */
struct mg_result report_result(const brant_stats *s);
/* The progress of an image that is saved or restored. */
struct mg_progress report_image_progress(const brant_image_stats *s, bool last);
struct mg_image_result report_image_result(const brant_image_stats *s);
/* Which of KVM's logs a tracker uses. */
void report_log(const brant_tracker *tracker, char *text, size_t len);

#endif
