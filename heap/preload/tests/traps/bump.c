/* A malloc that may be called in signal handlers: never free, no lock. It can be told
   to raise a signal, once, when it is asked for a block's size, as the hook does. */
#include <stddef.h>
#include <string.h>
#include <stdatomic.h>
#include <errno.h>
#include <signal.h>
volatile int bump_raises;
#define ROOM (3ul << 30)
static char heap[ROOM] __attribute__((aligned(4096)));
static _Atomic size_t next;
static void *take(size_t align, size_t size)
{
	size_t at = atomic_fetch_add(&next, size + align + 16);
	char *p = (char *)(((size_t)heap + at + 16 + align - 1) & ~(align - 1));
	if (size > ROOM || at > ROOM - size - align - 16) { errno = ENOMEM; return 0; }
	((size_t *)p)[-1] = size;
	return p;
}
void *malloc(size_t n) { return take(16, n); }
void free(void *p) { (void)p; }
void *calloc(size_t n, size_t m) { return take(16, n * m); }
void *memalign(size_t a, size_t n) { return take(a, n); }
void *aligned_alloc(size_t a, size_t n) { return take(a, n); }
int posix_memalign(void **out, size_t a, size_t n) { *out = take(a, n); return 0; }
size_t malloc_usable_size(void *p)
{
	int signal = bump_raises;
	bump_raises = 0;
	if (signal) raise(signal);
	return p ? ((size_t *)p)[-1] : 0;
}
void *realloc(void *p, size_t n)
{
	void *q = take(16, n);
	if (p && q) memcpy(q, p, malloc_usable_size(p) < n ? malloc_usable_size(p) : n);
	return q;
}
