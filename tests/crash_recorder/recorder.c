/* Records what a program does to the files below a directory, for LD_PRELOAD.
 *
 * CRASH_RECORDER_ROOT names the directory, by its real path; CRASH_RECORDER_LOG the file to which
 * the records go. Each wrapped function does its system call and appends one record while it holds
 * a lock, so the log has the order in which the calls of all threads were done. A call that fails
 * is not recorded, and a sync is not done. Names are made absolute; `recorder.py` follows them, and what each descriptor
 * stands for.
 *
 * What the C library calls inside of itself (fopen, posix_fallocate's fallback) does not come by
 * here. Nor does io_uring. Tests compare the end of a recording with the directory for that reason.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

/* Kinds of records, as in recorder.py. */
enum {
    OPEN = 1, CLOSE, DUPLICATE, WRITE, TRUNCATE, SYNC, RENAME, REMOVE, MAKE_DIRECTORY, LINK,
    SYMLINK, MAP, MARK, ALLOCATE, SYNC_ALL, SYNC_RANGE, SYNC_FAILED
};

struct record {
    uint32_t kind;
    int32_t fd;
    int64_t a, b, c;
    uint32_t thread;
    uint32_t path_bytes, other_bytes;
    uint32_t reserved;
    uint64_t content_bytes;
};

#define DESCRIPTORS 65536

static volatile unsigned char followed[DESCRIPTORS];
static char root[PATH_MAX];
static size_t root_bytes;
static int log_fd = -1;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static long (*real_syscall)(long, ...);

/* The syscall of the C library, past the wrapper below, whoever calls first. */
#define CALL(...) (start(), real_syscall(__VA_ARGS__))

static void start(void)
{
    if (!real_syscall)
        real_syscall = (long (*)(long, ...))dlsym(RTLD_NEXT, "syscall");
}

__attribute__((constructor)) static void begin(void)
{
    const char *directory = getenv("CRASH_RECORDER_ROOT");
    const char *log = getenv("CRASH_RECORDER_LOG");
    start();
    if (!directory || !log || strlen(directory) >= sizeof root)
        return;
    int fd = CALL(SYS_openat, AT_FDCWD, log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
    if (fd < 0)
        return;
    strcpy(root, directory);
    root_bytes = strlen(root);
    log_fd = fd;
    unsetenv("LD_PRELOAD"); /* programs that this one starts are not recorded */
}

static int is_followed(int fd)
{
    return fd >= 0 && fd < DESCRIPTORS && followed[fd];
}

static void follow(int fd, int yes)
{
    if (fd >= 0 && fd < DESCRIPTORS)
        followed[fd] = (unsigned char)yes;
}

/* ---- names ------------------------------------------------------------------------------------ */

static int is_below(const char *path)
{
    return log_fd >= 0 && !strncmp(path, root, root_bytes) &&
           (path[root_bytes] == '/' || !path[root_bytes]);
}

/* Make a name absolute; true if it lies below the root. Links on the way are followed, and the
 * last one too if `follow_last`. */
static int absolute(int dirfd, const char *path, int follow_last, char *out)
{
    char joined[PATH_MAX * 2], parent[PATH_MAX], link[64];
    if (log_fd < 0 || !path)
        return 0;
    if (path[0] == '/') {
        if (!is_below(path))
            return 0;
        snprintf(joined, sizeof joined, "%s", path);
    } else {
        ssize_t bytes;
        snprintf(link, sizeof link, dirfd == AT_FDCWD ? "/proc/self/cwd" : "/proc/self/fd/%d", dirfd);
        bytes = CALL(SYS_readlinkat, AT_FDCWD, link, parent, sizeof parent - 1);
        if (bytes < 0)
            return 0;
        parent[bytes] = 0;
        if (!is_below(parent))
            return 0;
        snprintf(joined, sizeof joined, "%s/%s", parent, path);
    }
    size_t bytes = strlen(joined);
    while (bytes > root_bytes && joined[bytes - 1] == '/')
        joined[--bytes] = 0;
    if (follow_last && realpath(joined, out))
        return is_below(out);
    char *last = strrchr(joined, '/');
    if (bytes <= root_bytes || !strcmp(last, "/.") || !strcmp(last, "/.."))
        return realpath(joined, out) && is_below(out);
    *last = 0;
    if (!realpath(joined, out) || strlen(out) + strlen(last + 1) + 2 > PATH_MAX)
        return 0;
    strcat(strcat(out, "/"), last + 1);
    return is_below(out);
}

/* ---- the log ---------------------------------------------------------------------------------- */

static void lost(const char *why)
{
    fprintf(stderr, "crash recorder: %s\n", why);
    abort();
}

/* Append a record; the caller holds the lock. Leaves errno as it is. */
static void append(struct record record, const char *path, const char *other, const void *contents)
{
    int saved = errno;
    struct iovec parts[4];
    size_t whole = sizeof record;
    record.thread = (uint32_t)CALL(SYS_gettid);
    record.path_bytes = path ? (uint32_t)strlen(path) : 0;
    record.other_bytes = other ? (uint32_t)strlen(other) : 0;
    parts[0] = (struct iovec){&record, sizeof record};
    parts[1] = (struct iovec){(void *)path, record.path_bytes};
    parts[2] = (struct iovec){(void *)other, record.other_bytes};
    parts[3] = (struct iovec){(void *)contents, record.content_bytes};
    whole += record.path_bytes + record.other_bytes + record.content_bytes;
    if (CALL(SYS_writev, log_fd, parts, 4) != (long)whole)
        lost("the log is incomplete");
    errno = saved;
}

/* Append what a range of a file holds now: what a write, of whatever kind, has put there. */
static void append_written(int fd, int64_t offset, int64_t bytes)
{
    char name[64];
    char *contents = malloc((size_t)bytes + 1);
    snprintf(name, sizeof name, "/proc/self/fd/%d", fd);
    int saved = errno, reader = (int)CALL(SYS_openat, AT_FDCWD, name, O_RDONLY | O_CLOEXEC, 0);
    int64_t done = 0;
    while (contents && reader >= 0 && done < bytes) {
        long got = CALL(SYS_pread64, reader, contents + done, bytes - done, offset + done);
        if (got <= 0)
            break;
        done += got;
    }
    if (done != bytes)
        lost("what was written could not be read");
    CALL(SYS_close, reader);
    errno = saved;
    append((struct record){.kind = WRITE, .fd = fd, .a = offset, .content_bytes = (uint64_t)bytes},
           NULL, NULL, contents);
    free(contents);
}

static int64_t position(int fd)
{
    return CALL(SYS_lseek, fd, 0L, SEEK_CUR);
}

static int64_t size_of(int fd)
{
    struct stat status;
    return fstat(fd, &status) ? 0 : status.st_size;
}

/* Do a write at the descriptor's own position (`own`), or elsewhere, and record what it did. */
#define WRITING(fd, own, offset, call)                                                             \
    if (!is_followed(fd))                                                                          \
        return call;                                                                               \
    pthread_mutex_lock(&lock);                                                                     \
    long done = call;                                                                              \
    if (done > 0) {                                                                                \
        int appends = (int)CALL(SYS_fcntl, fd, F_GETFL) & O_APPEND;                                \
        append_written(fd, (own) ? position(fd) - done : appends ? size_of(fd) - done : (offset),  \
                       done);                                                                      \
    }                                                                                              \
    pthread_mutex_unlock(&lock);                                                                   \
    return done

/* Do a call on a followed descriptor, and record it if it succeeds. */
#define RECORDING(is, call, ...)                                                                   \
    if (!(is))                                                                                     \
        return call;                                                                               \
    pthread_mutex_lock(&lock);                                                                     \
    long done = call;                                                                              \
    if (done >= 0)                                                                                 \
        append(__VA_ARGS__);                                                                       \
    pthread_mutex_unlock(&lock);                                                                   \
    return done

/* For tests: an event of the program's own; and all that was done so far as if it were synced. */
void crash_recorder_mark(const void *contents, uint64_t bytes)
{
    pthread_mutex_lock(&lock);
    append((struct record){.kind = MARK, .content_bytes = bytes}, NULL, NULL, contents);
    pthread_mutex_unlock(&lock);
}

void crash_recorder_settle(void)
{
    pthread_mutex_lock(&lock);
    append((struct record){.kind = SYNC_ALL}, NULL, NULL, NULL);
    pthread_mutex_unlock(&lock);
}

/* ---- open and close --------------------------------------------------------------------------- */

static int opened(int dirfd, const char *path, int flags, mode_t mode)
{
    char full[PATH_MAX];
    struct stat status;
    int fd;
    if (!absolute(dirfd, path, !(flags & O_NOFOLLOW), full))
        return (int)CALL(SYS_openat, dirfd, path, flags, mode);
    pthread_mutex_lock(&lock);
    int was_there = !lstat(full, &status);
    fd = (int)CALL(SYS_openat, dirfd, path, flags, mode);
    if (fd >= 0) {
        if (fd >= DESCRIPTORS)
            lost("a descriptor is too large");
        follow(fd, 1);
        append((struct record){.kind = OPEN, .fd = fd, .a = flags, .b = !was_there}, full, NULL,
               NULL);
    }
    pthread_mutex_unlock(&lock);
    return fd;
}

#define MODE(flags)                                                                                \
    mode_t mode = 0;                                                                               \
    if ((flags) & O_CREAT || ((flags) & O_TMPFILE) == O_TMPFILE) {                                 \
        va_list rest;                                                                              \
        va_start(rest, flags);                                                                     \
        mode = va_arg(rest, mode_t);                                                               \
        va_end(rest);                                                                              \
    }

int open(const char *path, int flags, ...) { MODE(flags) return opened(AT_FDCWD, path, flags, mode); }
int open64(const char *path, int flags, ...) { MODE(flags) return opened(AT_FDCWD, path, flags, mode); }
int openat(int at, const char *path, int flags, ...) { MODE(flags) return opened(at, path, flags, mode); }
int openat64(int at, const char *path, int flags, ...) { MODE(flags) return opened(at, path, flags, mode); }
int __open_2(const char *path, int flags) { return opened(AT_FDCWD, path, flags, 0); }
int __open64_2(const char *path, int flags) { return opened(AT_FDCWD, path, flags, 0); }
int __openat_2(int at, const char *path, int flags) { return opened(at, path, flags, 0); }
int __openat64_2(int at, const char *path, int flags) { return opened(at, path, flags, 0); }
int creat(const char *path, mode_t mode) { return opened(AT_FDCWD, path, O_CREAT | O_WRONLY | O_TRUNC, mode); }
int creat64(const char *path, mode_t mode) { return opened(AT_FDCWD, path, O_CREAT | O_WRONLY | O_TRUNC, mode); }

int close(int fd)
{
    if (!is_followed(fd))
        return (int)CALL(SYS_close, fd);
    pthread_mutex_lock(&lock);
    long done = CALL(SYS_close, fd);
    follow(fd, 0);
    append((struct record){.kind = CLOSE, .fd = fd}, NULL, NULL, NULL);
    pthread_mutex_unlock(&lock);
    return (int)done;
}

static int duplicated(int fd, long call, long first, long second, long third)
{
    pthread_mutex_lock(&lock);
    int copy = (int)CALL(call, first, second, third);
    if (copy >= 0 && copy != fd && (is_followed(fd) || is_followed(copy))) {
        follow(copy, is_followed(fd));
        append((struct record){.kind = DUPLICATE, .fd = fd, .a = copy, .b = is_followed(fd)}, NULL,
               NULL, NULL);
    }
    pthread_mutex_unlock(&lock);
    return copy;
}

int dup(int fd) { return duplicated(fd, SYS_dup, fd, 0, 0); }
int dup3(int fd, int copy, int flags) { return duplicated(fd, SYS_dup3, fd, copy, flags); }
int dup2(int fd, int copy)
{
    if (fd == copy)
        return (int)CALL(SYS_fcntl, fd, F_GETFD) < 0 ? -1 : fd;
    return duplicated(fd, SYS_dup3, fd, copy, 0);
}

static int controlled(int fd, int command, long argument)
{
    if ((command == F_DUPFD || command == F_DUPFD_CLOEXEC) && is_followed(fd))
        return duplicated(fd, SYS_fcntl, fd, command, argument);
    return (int)CALL(SYS_fcntl, fd, command, argument);
}

#define CONTROL                                                                                    \
    va_list rest;                                                                                  \
    va_start(rest, command);                                                                       \
    long argument = va_arg(rest, long);                                                            \
    va_end(rest);                                                                                  \
    return controlled(fd, command, argument)

int fcntl(int fd, int command, ...) { CONTROL; }
int fcntl64(int fd, int command, ...) { CONTROL; }

/* ---- contents --------------------------------------------------------------------------------- */

ssize_t write(int fd, const void *from, size_t bytes) { WRITING(fd, 1, 0, CALL(SYS_write, fd, from, bytes)); }
ssize_t writev(int fd, const struct iovec *parts, int count) { WRITING(fd, 1, 0, CALL(SYS_writev, fd, parts, count)); }
ssize_t pwrite(int fd, const void *from, size_t bytes, off_t at) { WRITING(fd, 0, at, CALL(SYS_pwrite64, fd, from, bytes, at)); }
ssize_t pwrite64(int fd, const void *from, size_t bytes, off_t at) { WRITING(fd, 0, at, CALL(SYS_pwrite64, fd, from, bytes, at)); }
ssize_t pwritev(int fd, const struct iovec *parts, int count, off_t at) { WRITING(fd, 0, at, CALL(SYS_pwritev, fd, parts, count, at, 0L)); }
ssize_t pwritev64(int fd, const struct iovec *parts, int count, off_t at) { WRITING(fd, 0, at, CALL(SYS_pwritev, fd, parts, count, at, 0L)); }
ssize_t pwritev2(int fd, const struct iovec *parts, int count, off_t at, int flags) { WRITING(fd, at == -1, at, CALL(SYS_pwritev2, fd, parts, count, at, 0L, flags)); }
ssize_t pwritev64v2(int fd, const struct iovec *parts, int count, off_t at, int flags) { WRITING(fd, at == -1, at, CALL(SYS_pwritev2, fd, parts, count, at, 0L, flags)); }
ssize_t sendfile(int fd, int from, off_t *at, size_t bytes) { WRITING(fd, 1, 0, CALL(SYS_sendfile, fd, from, at, bytes)); }
ssize_t sendfile64(int fd, int from, off_t *at, size_t bytes) { WRITING(fd, 1, 0, CALL(SYS_sendfile, fd, from, at, bytes)); }

static long copied(int from, void *from_at, int fd, int64_t *at, size_t bytes, unsigned flags)
{
    int64_t offset = at ? *at : 0;
    WRITING(fd, !at, offset, CALL(SYS_copy_file_range, from, from_at, fd, at, bytes, flags));
}

ssize_t copy_file_range(int from, off_t *from_at, int fd, off_t *at, size_t bytes, unsigned flags)
{
    return copied(from, from_at, fd, (int64_t *)at, bytes, flags);
}

static int truncated(int fd, off_t size)
{
    RECORDING(is_followed(fd), CALL(SYS_ftruncate, fd, size),
              (struct record){.kind = TRUNCATE, .fd = fd, .a = size}, NULL, NULL, NULL);
}

int ftruncate(int fd, off_t size) { return truncated(fd, size); }
int ftruncate64(int fd, off_t size) { return truncated(fd, size); }

static int named_truncated(const char *path, off_t size)
{
    char full[PATH_MAX];
    RECORDING(absolute(AT_FDCWD, path, 1, full), CALL(SYS_truncate, path, size),
              (struct record){.kind = TRUNCATE, .fd = -1, .a = size}, full, NULL, NULL);
}

int truncate(const char *path, off_t size) { return named_truncated(path, size); }
int truncate64(const char *path, off_t size) { return named_truncated(path, size); }

static int allocated(int fd, int how, off_t offset, off_t bytes)
{
    RECORDING(is_followed(fd), CALL(SYS_fallocate, fd, how, offset, bytes),
              (struct record){.kind = ALLOCATE, .fd = fd, .a = offset, .b = bytes, .c = how}, NULL,
              NULL, NULL);
}

int fallocate(int fd, int how, off_t offset, off_t bytes) { return allocated(fd, how, offset, bytes); }
int fallocate64(int fd, int how, off_t offset, off_t bytes) { return allocated(fd, how, offset, bytes); }
int posix_fallocate(int fd, off_t offset, off_t bytes) { return allocated(fd, 0, offset, bytes) ? errno : 0; }
int posix_fallocate64(int fd, off_t offset, off_t bytes) { return allocated(fd, 0, offset, bytes) ? errno : 0; }

static void *mapped(void *where, size_t bytes, int access, int flags, int fd, off_t offset)
{
    int shared = (flags & MAP_TYPE) == MAP_SHARED || (flags & MAP_TYPE) == MAP_SHARED_VALIDATE;
    if (flags & MAP_ANONYMOUS || !shared || !(access & PROT_WRITE) || !is_followed(fd))
        return (void *)CALL(SYS_mmap, where, bytes, access, flags, fd, offset);
    pthread_mutex_lock(&lock);
    void *map = (void *)CALL(SYS_mmap, where, bytes, access, flags, fd, offset);
    if (map != MAP_FAILED)
        append((struct record){.kind = MAP, .fd = fd, .a = offset, .b = (int64_t)bytes}, NULL, NULL,
               NULL);
    pthread_mutex_unlock(&lock);
    return map;
}

void *mmap(void *where, size_t bytes, int access, int flags, int fd, off_t offset) { return mapped(where, bytes, access, flags, fd, offset); }
void *mmap64(void *where, size_t bytes, int access, int flags, int fd, off_t offset) { return mapped(where, bytes, access, flags, fd, offset); }

/* ---- syncs ------------------------------------------------------------------------------------ */

static char failing[256]; /* what the name contains of the file whose next sync fails; or empty */

/* For tests: let the next sync of a file fail whose name contains this; of none if it is empty. */
void crash_recorder_fail_sync(const char *name)
{
    pthread_mutex_lock(&lock);
    snprintf(failing, sizeof failing, "%s", name);
    pthread_mutex_unlock(&lock);
}

static int is_to_fail(int fd)
{
    char link[64], name[PATH_MAX];
    if (!failing[0])
        return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t bytes = CALL(SYS_readlinkat, AT_FDCWD, link, name, sizeof name - 1);
    name[bytes > 0 ? bytes : 0] = 0;
    return !!strstr(name, failing);
}

/* Only recorded: what is recorded is thrown away. Another thread would wait for the lock meanwhile
 * anyway. */
static int synced(int fd, long call)
{
    if (!is_followed(fd))
        return (int)CALL(call, fd);
    pthread_mutex_lock(&lock);
    int fails = is_to_fail(fd);
    if (fails)
        failing[0] = 0;
    append((struct record){.kind = fails ? SYNC_FAILED : SYNC, .fd = fd}, NULL, NULL, NULL);
    pthread_mutex_unlock(&lock);
    if (fails)
        errno = EIO;
    return fails ? -1 : 0;
}

int fsync(int fd) { return synced(fd, SYS_fsync); }
int fdatasync(int fd) { return synced(fd, SYS_fdatasync); }
int syncfs(int fd)
{
    RECORDING(log_fd >= 0, is_followed(fd) ? 0 : CALL(SYS_syncfs, fd),
              (struct record){.kind = SYNC_ALL}, NULL, NULL, NULL);
}
void sync(void)
{
    if (log_fd >= 0)
        crash_recorder_settle();
    else
        CALL(SYS_sync);
}
int sync_file_range(int fd, off_t offset, off_t bytes, unsigned flags)
{
    RECORDING(is_followed(fd), CALL(SYS_sync_file_range, fd, offset, bytes, flags),
              (struct record){.kind = SYNC_RANGE, .fd = fd, .a = offset, .b = bytes}, NULL, NULL, NULL);
}

/* ---- entries of directories ------------------------------------------------------------------- */

static int renamed(int at, const char *path, int to_at, const char *other, unsigned flags)
{
    char full[PATH_MAX], full_other[PATH_MAX];
    int below = absolute(at, path, 0, full), other_below = absolute(to_at, other, 0, full_other);
    if (below != other_below)
        lost("a rename crosses the border of what is recorded");
    RECORDING(below, CALL(SYS_renameat2, at, path, to_at, other, flags),
              (struct record){.kind = RENAME, .a = flags}, full, full_other, NULL);
}

int rename(const char *path, const char *other) { return renamed(AT_FDCWD, path, AT_FDCWD, other, 0); }
int renameat(int at, const char *path, int to_at, const char *other) { return renamed(at, path, to_at, other, 0); }
int renameat2(int at, const char *path, int to_at, const char *other, unsigned flags) { return renamed(at, path, to_at, other, flags); }

static int removed(int at, const char *path, int flags)
{
    char full[PATH_MAX];
    RECORDING(absolute(at, path, 0, full), CALL(SYS_unlinkat, at, path, flags),
              (struct record){.kind = REMOVE}, full, NULL, NULL);
}

int unlink(const char *path) { return removed(AT_FDCWD, path, 0); }
int unlinkat(int at, const char *path, int flags) { return removed(at, path, flags); }
int rmdir(const char *path) { return removed(AT_FDCWD, path, AT_REMOVEDIR); }
int remove(const char *path)
{
    int done = removed(AT_FDCWD, path, 0);
    return done && errno == EISDIR ? removed(AT_FDCWD, path, AT_REMOVEDIR) : done;
}

static int directory_made(int at, const char *path, mode_t mode)
{
    char full[PATH_MAX];
    RECORDING(absolute(at, path, 0, full), CALL(SYS_mkdirat, at, path, mode),
              (struct record){.kind = MAKE_DIRECTORY}, full, NULL, NULL);
}

int mkdir(const char *path, mode_t mode) { return directory_made(AT_FDCWD, path, mode); }
int mkdirat(int at, const char *path, mode_t mode) { return directory_made(at, path, mode); }

static int linked(int at, const char *path, int to_at, const char *other, int flags)
{
    char full[PATH_MAX], full_other[PATH_MAX];
    int below = absolute(at, path, flags & AT_SYMLINK_FOLLOW, full);
    int other_below = absolute(to_at, other, 0, full_other);
    if (other_below && !below)
        lost("a link crosses the border of what is recorded");
    RECORDING(other_below, CALL(SYS_linkat, at, path, to_at, other, flags),
              (struct record){.kind = LINK}, full, full_other, NULL);
}

int link(const char *path, const char *other) { return linked(AT_FDCWD, path, AT_FDCWD, other, 0); }
int linkat(int at, const char *path, int to_at, const char *other, int flags) { return linked(at, path, to_at, other, flags); }

static int symbolic(const char *target, int at, const char *path)
{
    char full[PATH_MAX];
    RECORDING(absolute(at, path, 0, full), CALL(SYS_symlinkat, target, at, path),
              (struct record){.kind = SYMLINK}, full, target, NULL);
}

int symlink(const char *target, const char *path) { return symbolic(target, AT_FDCWD, path); }
int symlinkat(const char *target, int at, const char *path) { return symbolic(target, at, path); }

/* ---- calls without a wrapper in the C library ------------------------------------------------- */

long syscall(long number, ...)
{
    long r[6];
    va_list rest;
    va_start(rest, number);
    for (int place = 0; place < 6; place++)
        r[place] = va_arg(rest, long);
    va_end(rest);
    switch (number) {
    case SYS_openat:
        return opened((int)r[0], (const char *)r[1], (int)r[2], (mode_t)r[3]);
    case SYS_openat2: { /* struct open_how begins with flags and mode; its limits are of no use here */
        const uint64_t *how = (const uint64_t *)r[2];
        return opened((int)r[0], (const char *)r[1], (int)how[0], (mode_t)how[1]);
    }
    case SYS_renameat2:
        return renamed((int)r[0], (const char *)r[1], (int)r[2], (const char *)r[3], (unsigned)r[4]);
    case SYS_copy_file_range:
        return copied((int)r[0], (void *)r[1], (int)r[2], (int64_t *)r[3], (size_t)r[4], (unsigned)r[5]);
    default:
        return CALL(number, r[0], r[1], r[2], r[3], r[4], r[5]);
    }
}
