/* A disk that is full while the file CHAOS_DISK says so: what is there may be overwritten, and no file grows. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

static volatile int64_t *full;

__attribute__((constructor)) static void map_the_switch(void) {
  const char *name = getenv("CHAOS_DISK");
  int file = name ? open(name, O_RDONLY | O_CLOEXEC) : -1;
  if (file < 0) return;
  void *mapped = mmap(0, 8, PROT_READ, MAP_SHARED, file, 0);
  if (mapped != MAP_FAILED) full = mapped;
  close(file);
}

static int grows(int file, off_t end) {
  struct stat at;
  return full && *full && !fstat(file, &at) && S_ISREG(at.st_mode) && end > at.st_size;
}

static off_t length(const struct iovec *parts, int count) {
  off_t sum = 0;
  for (int i = 0; i < count; i++) sum += parts[i].iov_len;
  return sum;
}

#define NEXT(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

ssize_t pwrite(int file, const void *data, size_t size, off_t at) {
  if (grows(file, at + size)) return errno = ENOSPC, -1;
  return NEXT(pwrite)(file, data, size, at);
}

ssize_t pwritev(int file, const struct iovec *parts, int count, off_t at) {
  if (grows(file, at + length(parts, count))) return errno = ENOSPC, -1;
  return NEXT(pwritev)(file, parts, count, at);
}

int posix_fallocate(int file, off_t at, off_t size) {
  if (grows(file, at + size)) return ENOSPC;
  return NEXT(posix_fallocate)(file, at, size);
}

int fallocate(int file, int mode, off_t at, off_t size) {
  if (grows(file, at + size)) return errno = ENOSPC, -1;
  return NEXT(fallocate)(file, mode, at, size);
}

ssize_t pwrite64(int, const void *, size_t, off64_t) __attribute__((alias("pwrite")));
ssize_t pwritev64(int, const struct iovec *, int, off64_t) __attribute__((alias("pwritev")));
int posix_fallocate64(int, off64_t, off64_t) __attribute__((alias("posix_fallocate")));
int fallocate64(int, int, off64_t, off64_t) __attribute__((alias("fallocate")));
