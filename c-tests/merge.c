/*
 * Images of a chain without a guest: what is in them, and one full image made of them, in one call or as a
 * job that is watched and cancelled. The guest that they are of is plain memory.
 */
#include "support.h"

#include <sys/stat.h>

enum { PAGES = 16384, LENGTH = PAGES * 4096, IMAGES = 3 };

static char *memory;
static brant_guest *guest;
static brant_tracker *tracker;
static char directory[] = "/tmp/brant-merge-XXXXXX", text[1 << 16], message[400];

static int32_t nothing(void *opaque, brant_reason *reason)
{
    (void)opaque, (void)reason;
    return 0;
}

static int32_t own_save(void *opaque, brant_saver *saver, brant_reason *reason)
{
    (void)opaque, (void)reason;
    return brant_saver_put(saver, "cpu", 0, 3, "state", 5, NULL);
}

static int32_t own_load(void *opaque, const brant_state_blob *blob, brant_reason *reason)
{
    (void)opaque, (void)reason;
    return blob->length == 5 ? 0 : -1;
}

static const brant_ops ops = { .size = sizeof ops, .pause = nothing, .resume = nothing, .run = nothing,
                               .save = own_save, .load = own_load };

/* The path of an image. */
static const char *at(const char *name)
{
    static char paths[4][300];
    static int next;
    char *path = paths[next++ % 4];

    snprintf(path, sizeof paths[0], "%s/%s", directory, name);
    return path;
}

static void put(uint64_t page, char byte)
{
    memset(memory + page * PAGE, byte, PAGE);
    brant_tracker_mark_host(tracker, memory + page * PAGE, PAGE);
}

static void save(brant_image_chain *chain, const char *name)
{
    brant_image_save_params params = { .size = sizeof params, .chain = chain };
    brant_image_save *image;

    must(brant_image_save_new(tracker, &params, &image, &e));
    must(brant_image_save_start(image, at(name), &e));
    must(brant_image_save_wait(image, patience(60000), &e));
    brant_image_save_free(image);
}

static brant_error *failed;

/* Keeps the message of the error in `failed`. */
static int32_t kept(int32_t code)
{
    snprintf(message, sizeof message, "%s", brant_error_message(failed));
    brant_error_free(failed);
    return code;
}

/* Describes an image, and whether all of `words` are in the text. */
static bool says(const char *name, const char *const *words)
{
    size_t needed;

    must(brant_image_describe(at(name), text, sizeof text, &needed, &e));
    if (needed != strlen(text) + 1)
        return false;
    for (; *words != NULL; words++) {
        if (strstr(text, *words) == NULL) {
            note("%s: expected %s in %s", name, *words, text);
            return false;
        }
    }
    return true;
}

static bool there(const char *name)
{
    struct stat found;

    return stat(at(name), &found) == 0;
}

/* The bytes of a guest that is restored from an image. */
static char *restored(const char *name)
{
    brant_ram_block block = { .size = sizeof block, .name = "ram", .length = LENGTH };
    brant_image_restore *restore;
    brant_guest *other;

    block.host = mmap(NULL, LENGTH, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    must(brant_guest_new(&ops, NULL, &other, &e));
    must(brant_guest_add_block(other, &block, NULL, &e));
    must(brant_image_restore_new(other, NULL, &restore, &e));
    must(brant_image_restore_start(restore, at(name), &e));
    must(brant_image_restore_wait(restore, patience(60000), &e));
    brant_image_restore_free(restore);
    brant_guest_free(other);
    return block.host;
}

static void described(void)
{
    ok(says("0", (const char *const[]){ "\"kind\":\"full\"", "\"format\":1", "\"complete\":true", "\"problem\":null",
                                        "\"memory_bytes\":67108864", "\"state_bytes\":5", "\"parents\":[]",
                                        "\"name\":\"ram\",\"bytes\":67108864,\"page_size\":4096,\"rom\":false",
                                        "\"data_pages\":8192,\"zero_pages\":8192,\"unchanged_pages\":0",
                                        "\"states\":[{\"kind\":\"state\",\"name\":\"cpu\",\"instance\":0,\"version\":3,"
                                        "\"bytes\":5}]", NULL }),
       "a full image is described");
    ok(says("2", (const char *const[]){ "\"kind\":\"changes\"", "\"format\":2", "\"complete\":true",
                                        "\"data_pages\":1,\"zero_pages\":0,\"unchanged_pages\":16383",
                                        "\"parents\":[{\"file\":\"1\",\"found\":true,", "{\"file\":\"0\",\"found\":true,",
                                        NULL }),
       "an image of changes has what is before it");
    ok(brant_image_describe(at("none"), text, sizeof text, NULL, NULL) == BRANT_E_NOT_FOUND
           && kept(brant_image_describe("/dev/null", text, sizeof text, NULL, &failed)) == BRANT_E_IMAGE
           && brant_image_describe(NULL, text, sizeof text, NULL, NULL) == BRANT_E_INVALID,
       "what is no image is an error: %s", message);
}

static void merged(void)
{
    brant_image_stats stats = { .size = sizeof stats };
    brant_image_merging *merging;
    char *simple, *job;

    must(brant_image_merge(at("2"), at("simple"), &e));
    must(brant_image_merging_new(NULL, &merging, &e));
    ok(brant_image_merging_wait(merging, 0, NULL) == BRANT_E_STATE, "a merge that was not started is not waited for");
    must(brant_image_merging_start(merging, at("2"), at("job"), &e));
    must(brant_image_merging_wait(merging, patience(60000), &e));
    must(brant_image_merging_get_stats(merging, &stats, &e));
    ok(stats.state == BRANT_IMAGE_COMPLETED && stats.progress == 10000 && stats.remaining_bytes == 0
           && stats.total_bytes == LENGTH && stats.data_pages + stats.zero_pages == PAGES && stats.file_bytes > LENGTH / 2,
       "its figures are those of a whole image");
    ok(brant_image_merging_start(merging, at("2"), at("more"), NULL) == BRANT_E_STATE, "one object is one merge");
    brant_image_merging_free(merging);
    simple = restored("simple");
    job = restored("job");
    ok(memcmp(simple, memory, LENGTH) == 0 && memcmp(job, memory, LENGTH) == 0, "both ways make the guest of the last image");
    munmap(simple, LENGTH);
    munmap(job, LENGTH);
    ok(says("job", (const char *const[]){ "\"kind\":\"full\"", "\"complete\":true", "\"parents\":[]", NULL }),
       "and a full image");

    /* Cancelled at some moment of it, or before it begins. */
    must(brant_image_merging_new(NULL, &merging, &e));
    must(brant_image_merging_start(merging, at("2"), at("cancelled"), &e));
    must(brant_image_merging_cancel(merging, &e));
    int32_t code = brant_image_merging_wait(merging, 0, NULL);
    ok(code == BRANT_E_CANCELLED ? !there("cancelled") : code == 0 && there("cancelled"),
       "a cancelled merge leaves no file (%" PRId32 ")", code);
    brant_image_merging_free(merging);

    ok(kept(brant_image_merge(NULL, at("x"), &failed)) == BRANT_E_INVALID && strcmp(message, "image is NULL") == 0
           && kept(brant_image_merge(at("2"), NULL, &failed)) == BRANT_E_INVALID && strcmp(message, "to is NULL") == 0,
       "NULL is named: %s", message);
    unlink(at("1"));
    ok(says("2", (const char *const[]){ "\"complete\":false", "\"problem\":\"image", "{\"file\":\"1\",\"found\":false,", NULL })
           && kept(brant_image_merge(at("2"), at("x"), &failed)) == BRANT_E_NOT_FOUND,
       "an image whose parent is missing is not complete, and is not merged: %s", message);
}

int main(void)
{
    brant_ram_block block = { .size = sizeof block, .name = "ram", .length = LENGTH };
    brant_image_chain *chain;
    char command[300];

    plan(11);
    if (mkdtemp(directory) == NULL)
        bail("%s: %s", directory, strerror(errno));
    memory = block.host = mmap(NULL, LENGTH, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    must(brant_guest_new(&ops, NULL, &guest, &e));
    must(brant_guest_add_block(guest, &block, NULL, &e));
    must(brant_tracker_new(guest, NULL, &tracker, &e));
    for (uint64_t page = 0; page < PAGES; page += 2)
        memset(memory + page * PAGE, 'a', PAGE);
    must(brant_image_chain_new(tracker, &chain, &e));
    save(chain, "0");
    put(4, 'b');
    put(7, 'b');
    save(chain, "1");
    put(4, 'c');
    save(chain, "2");
    described();
    merged();
    brant_image_chain_free(chain);
    brant_tracker_free(tracker);
    brant_guest_free(guest);
    munmap(memory, LENGTH);
    snprintf(command, sizeof command, "rm -r %s", directory);
    if (system(command))
        bail("%s", command);
    return done();
}
