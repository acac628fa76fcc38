/* The measured side of ./dev bench: one workload a run, with as little of its own as possible.
 *
 *     driver WORKLOAD PATH [ARGUMENT]...
 *
 * prints "NANOSECONDS COUNT BYTES CHECKSUM": how long the workload's system calls took, and what
 * they saw or left, so that a file system that answers wrongly is not taken for a fast one. A call
 * that fails ends the run with 1 and a line on stderr.
 *
 * Written in C because an interpreter's own cost per call is about that of a native stat (0.6 us).
 */

#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { BUFFER = 256 * 1024, SECTOR = 512, PATH = 4096 };

static char buffer[BUFFER];
static uint64_t count, bytes, checksum;
static struct timespec started;
static uint64_t elapsed;

static void fail(const char *what, const char *path)
{
    fprintf(stderr, "%s %s: %s\n", what, path, strerror(errno));
    exit(1);
}

static void start(void)
{
    clock_gettime(CLOCK_MONOTONIC, &started);
}

static void stop(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    elapsed = (now.tv_sec - started.tv_sec) * 1000000000ull + now.tv_nsec - started.tv_nsec;
}

static long number(const char *text)
{
    char *end;
    long value = strtol(text, &end, 10);
    if (*text == 0 || *end != 0) {
        fprintf(stderr, "not a number: %s\n", text);
        exit(2);
    }
    return value;
}

/* One word of each sector, weighted by its place: cheap beside the copy that brought it here. */
static void add_to_checksum(size_t length, uint64_t offset)
{
    for (size_t at = 0; at + sizeof(uint64_t) <= length; at += SECTOR) {
        uint64_t word;
        memcpy(&word, buffer + at, sizeof word);
        checksum += word * ((offset + at) | 1);
    }
}

static void fill_buffer(void)
{
    uint64_t state = 88172645463325252ull; /* xorshift64: nothing that compresses */
    for (size_t at = 0; at < BUFFER; at += sizeof state) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        memcpy(buffer + at, &state, sizeof state);
    }
}

static void read_all(int fd, const char *path)
{
    uint64_t offset = 0;
    ssize_t got;
    while ((got = read(fd, buffer, BUFFER)) > 0) {
        add_to_checksum(got, offset);
        offset += got;
    }
    if (got < 0)
        fail("read", path);
    count++;
    bytes += offset;
}

static void write_all(int fd, const char *path, uint64_t size)
{
    for (uint64_t offset = 0; offset < size;) {
        size_t length = size - offset < BUFFER ? size - offset : BUFFER;
        memcpy(buffer, &offset, sizeof offset);
        ssize_t put = write(fd, buffer, length);
        if (put < 0)
            fail("write", path);
        add_to_checksum(put, offset);
        offset += put;
    }
    count++;
    bytes += size;
}

static int open_or_fail(const char *path, int flags)
{
    int fd = open(path, flags | O_CLOEXEC, 0644);
    if (fd < 0)
        fail("open", path);
    return fd;
}

static void close_or_fail(int fd, const char *path)
{
    if (close(fd))
        fail("close", path);
}

static void read_file(const char *path)
{
    int fd = open_or_fail(path, O_RDONLY);
    read_all(fd, path);
    close_or_fail(fd, path);
}

static void stat_file(const char *path)
{
    struct stat status;
    if (stat(path, &status))
        fail("stat", path);
    count++;
    bytes += status.st_size;
}

/* The paths in the file `list`, one a line, each below `base`; ended by NULL. */
static char **paths_of(const char *list, const char *base)
{
    FILE *file = fopen(list, "re");
    char *line = NULL;
    size_t room = 0, used = 0, capacity = 1024;
    char **paths = malloc(capacity * sizeof *paths);
    ssize_t length;
    if (file == NULL || paths == NULL)
        fail("open", list);
    while ((length = getline(&line, &room, file)) > 0) {
        line[length - 1] = 0;
        if (used + 2 > capacity)
            paths = realloc(paths, (capacity *= 2) * sizeof *paths);
        if (paths == NULL || asprintf(&paths[used++], "%s/%s", base, line) < 0)
            fail("memory for", list);
    }
    paths[used] = NULL;
    fclose(file);
    return paths;
}

static char *numbered(const char *folder, const char *stem, long index)
{
    static char path[2 * PATH];
    snprintf(path, sizeof path, "%s/%s%05ld.md", folder, stem, index);
    return path;
}

enum { STAT = 1, READ = 2 };

/* Go through a folder and those in it, as find(1) does, with a stat or a read for each file. */
static void walk(int parent, const char *name, int what)
{
    int fd = openat(parent, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    DIR *folder = fd < 0 ? NULL : fdopendir(fd);
    if (folder == NULL)
        fail("opendir", name);
    struct dirent *entry;
    while (errno = 0, (entry = readdir(folder)) != NULL) {
        struct stat status;
        if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0)
            continue;
        if (what & STAT) {
            if (fstatat(fd, entry->d_name, &status, AT_SYMLINK_NOFOLLOW))
                fail("stat", entry->d_name);
            if (S_ISREG(status.st_mode)) {
                count++;
                bytes += status.st_size;
            }
        }
        if (entry->d_type == DT_DIR) {
            walk(fd, entry->d_name, what);
        } else if (what & READ) {
            int file = openat(fd, entry->d_name, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
            if (file < 0)
                fail("open", entry->d_name);
            read_all(file, entry->d_name);
            close_or_fail(file, entry->d_name);
        } else if (what == 0) {
            count++;
        }
    }
    if (errno)
        fail("readdir", name);
    closedir(folder);
}

/* Write beside, fsync, rename over. */
static void save(char **paths, uint64_t size)
{
    for (; *paths != NULL; paths++) {
        static char beside[PATH];
        snprintf(beside, sizeof beside, "%s.tmp", *paths);
        int fd = open_or_fail(beside, O_WRONLY | O_CREAT | O_EXCL);
        write_all(fd, beside, size);
        if (fsync(fd))
            fail("fsync", beside);
        close_or_fail(fd, beside);
        if (rename(beside, *paths))
            fail("rename", beside);
    }
}

/* What an editor or a sync program does to see its own change: a write, then a stat by name. */
static void stat_after_write(char **paths, long writes)
{
    for (; *paths != NULL; paths++) {
        int fd = open_or_fail(*paths, O_WRONLY | O_TRUNC);
        for (long written = 1; written <= writes; written++) {
            struct stat status;
            if (write(fd, buffer, SECTOR) != SECTOR)
                fail("write", *paths);
            if (stat(*paths, &status))
                fail("stat", *paths);
            if (status.st_size != written * SECTOR) {
                fprintf(stderr, "%s: wrong size after a write\n", *paths);
                exit(1);
            }
            bytes += SECTOR;
        }
        close_or_fail(fd, *paths);
        count++;
    }
}

static void create_files(const char *folder, long files, uint64_t size)
{
    for (long index = 0; index < files; index++) {
        const char *path = numbered(folder, "note", index);
        int fd = open_or_fail(path, O_WRONLY | O_CREAT | O_EXCL);
        write_all(fd, path, size);
        close_or_fail(fd, path);
    }
}

static void unlink_files(const char *folder, long files)
{
    for (long index = 0; index < files; index++) {
        const char *path = numbered(folder, "note", index);
        if (unlink(path))
            fail("unlink", path);
        count++;
    }
}

/* Every other file stays in its folder, the rest go to the folder `other` in it. */
static void rename_files(const char *folder, long files)
{
    char other[PATH];
    snprintf(other, sizeof other, "%s/other", folder);
    for (long index = 0; index < files; index++) {
        char *old = strdup(numbered(folder, "note", index));
        const char *target = index % 2 ? other : folder;
        if (rename(old, numbered(target, "renamed", index)))
            fail("rename", old);
        free(old);
        count++;
    }
}

static void append(const char *path, long times, size_t size)
{
    int fd = open_or_fail(path, O_WRONLY | O_APPEND);
    for (long index = 0; index < times; index++) {
        memcpy(buffer, &index, sizeof index);
        ssize_t put = write(fd, buffer, size);
        if (put < 0 || (size_t)put != size)
            fail("write", path);
        add_to_checksum(size, bytes);
        bytes += size;
    }
    close_or_fail(fd, path);
    count = 1;
}

static void spin(void)
{
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    for (volatile uint64_t turns = 0;; turns++)
        ;
}

int main(int argc, char **argv)
{
    const char *workload = argc > 1 ? argv[1] : "";
    const char *path = argc > 2 ? argv[2] : "";
    long first = argc > 3 && argv[3][0] != '/' ? number(argv[3]) : 0;
    long second = argc > 4 ? number(argv[4]) : 0;
    char **paths = argc > 3 && argv[3][0] == '/' ? paths_of(argv[3], path) : NULL;

    fill_buffer();
    start();
    if (strcmp(workload, "walk") == 0) {
        walk(AT_FDCWD, path, STAT);
    } else if (strcmp(workload, "walk-and-read") == 0) {
        walk(AT_FDCWD, path, READ);
    } else if (strcmp(workload, "list") == 0) {
        walk(AT_FDCWD, path, 0);
    } else if (strcmp(workload, "read") == 0 && paths != NULL) {
        for (; *paths != NULL; paths++)
            read_file(*paths);
    } else if (strcmp(workload, "stat") == 0 && paths != NULL) {
        for (; *paths != NULL; paths++)
            stat_file(*paths);
    } else if (strcmp(workload, "save") == 0 && paths != NULL) {
        save(paths, second);
    } else if (strcmp(workload, "stat-after-write") == 0 && paths != NULL) {
        stat_after_write(paths, second);
    } else if (strcmp(workload, "create") == 0) {
        create_files(path, first, second);
    } else if (strcmp(workload, "unlink") == 0) {
        unlink_files(path, first);
    } else if (strcmp(workload, "rename") == 0) {
        rename_files(path, first);
    } else if (strcmp(workload, "read-file") == 0) {
        read_file(path);
    } else if (strcmp(workload, "write-file") == 0) {
        int fd = open_or_fail(path, O_WRONLY | O_CREAT | O_EXCL);
        write_all(fd, path, first);
        close_or_fail(fd, path);
    } else if (strcmp(workload, "append") == 0) {
        append(path, first, second);
    } else if (strcmp(workload, "spin") == 0) {
        spin();
    } else {
        fprintf(stderr, "no such workload: %s\n", workload);
        return 2;
    }
    stop();
    printf("%llu %llu %llu %llu\n", (unsigned long long)elapsed, (unsigned long long)count,
           (unsigned long long)bytes, (unsigned long long)checksum);
    return 0;
}
