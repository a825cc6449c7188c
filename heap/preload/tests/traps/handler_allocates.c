/* A signal handler that allocates at any instant, also in the hook. */
#include "trap.h"
static volatile long handled;
static void *volatile last;
static void handler(int unused)
{
	(void)unused;
	for (int i = 0; i < 3; i++) free(last = malloc(500));
	void *p = mmap(0, 1 << 17, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (p != MAP_FAILED) munmap(p, 1 << 17);
	handled++;
}
int main(void)
{
	struct itimerval every = { { 0, 200 }, { 0, 200 } };
	signal(SIGALRM, handler);
	MUST(setitimer(ITIMER_REAL, &every, 0) == 0);
	for (long i = 0; handled < 2000; i++) free(used(malloc(200 + i % 1000)));
	every = (struct itimerval){ 0 };
	MUST(setitimer(ITIMER_REAL, &every, 0) == 0);
	puts("handled");
	return 0;
}
