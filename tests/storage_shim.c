/* Stands between a program and the C library, and lets calls fail as storage does that goes away.

   SHIM_RULES names a file with lines "WHAT ERRNO PATH": calls of the kind WHAT ("read": open for reading,
   "write": open for writing, write, fsync, truncate, rename, link) on files whose path begins with PATH fail
   with ERRNO. It is read at every call, so that a test can change it while the program runs. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Nothing of the C library that is replaced here may be used to read the rules. */
static int fails(const char *what, const char *path) {
    const char *rules = getenv("SHIM_RULES");
    if (rules == NULL || path == NULL) return 0;
    int before = errno, found = 0;
    long file = syscall(SYS_openat, AT_FDCWD, rules, O_RDONLY | O_CLOEXEC);
    if (file >= 0) {
        char text[4096];
        long size = syscall(SYS_read, file, text, sizeof text - 1);
        syscall(SYS_close, file);
        text[size > 0 ? size : 0] = 0;
        char *rest = text, *line;
        while (!found && (line = strsep(&rest, "\n")) != NULL) {
            char kind[16], prefix[2048];
            int number;
            if (sscanf(line, "%15s %d %2047[^\n]", kind, &number, prefix) == 3 && !strcmp(kind, what) &&
                !strncmp(path, prefix, strlen(prefix)))
                found = number;
        }
    }
    errno = before;
    return found;
}

static int refused(const char *what, const char *path) {
    int number = fails(what, path);
    if (number) errno = number;
    return number;
}

static int refused_file(const char *what, int file) {
    char link[64], path[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    long size = syscall(SYS_readlinkat, AT_FDCWD, link, path, sizeof path - 1);
    if (size <= 0) return 0;
    path[size] = 0;
    return refused(what, path);
}

#define NEXT(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
#define KIND(flags) ((flags) & (O_WRONLY | O_RDWR) ? "write" : "read")
#define MODE(flags) \
    mode_t mode = 0; \
    if ((flags) & (O_CREAT | O_TMPFILE)) { va_list more; va_start(more, flags); mode = va_arg(more, mode_t); va_end(more); }

int open(const char *path, int flags, ...) {
    MODE(flags)
    return refused(KIND(flags), path) ? -1 : NEXT(open)(path, flags, mode);
}

int open64(const char *path, int flags, ...) {
    MODE(flags)
    return refused(KIND(flags), path) ? -1 : NEXT(open64)(path, flags, mode);
}

FILE *fopen(const char *path, const char *mode) {
    return refused(strpbrk(mode, "wa+") ? "write" : "read", path) ? NULL : NEXT(fopen)(path, mode);
}

FILE *fopen64(const char *path, const char *mode) {
    return refused(strpbrk(mode, "wa+") ? "write" : "read", path) ? NULL : NEXT(fopen64)(path, mode);
}

ssize_t write(int file, const void *data, size_t size) {
    return refused_file("write", file) ? -1 : NEXT(write)(file, data, size);
}

int fsync(int file) { return refused_file("write", file) ? -1 : NEXT(fsync)(file); }

int rename(const char *old, const char *name) { return refused("write", name) ? -1 : NEXT(rename)(old, name); }

int link(const char *old, const char *name) { return refused("write", name) ? -1 : NEXT(link)(old, name); }
