/* What the traps share: a wrong thing ends the program and says where. */
#define _GNU_SOURCE
#include <errno.h>
#include <malloc.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#define NOINLINE __attribute__((noinline))
#define MUST(x) do { if (!(x)) { fprintf(stderr, "%s:%d: %s, errno %d\n", __FILE__, __LINE__, #x, errno); abort(); } } while (0)

/* Keeps a block from being optimized away. */
static inline void *used(void *p) { __asm__ volatile("" : "+r"(p) : : "memory"); return p; }
