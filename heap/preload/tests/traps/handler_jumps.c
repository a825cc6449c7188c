/* A signal handler that jumps out of whatever it interrupts, also out of the hook;
   others that jump within themselves and return. */
#include "trap.h"
static sigjmp_buf out;
static volatile long jumps;
NOINLINE void *after_jumps(void) { return used(malloc(100000)); }
static void handler(int unused)
{
	(void)unused;
	sigjmp_buf here;
	if (!sigsetjmp(here, 0)) siglongjmp(here, 1);
	if (jumps++ % 2) siglongjmp(out, 1);
}
int main(int n, char **argv)
{
	struct itimerval every = { { 0, 200 }, { 0, 200 } };
	char stack[65536];
	if (n > 1) {
		stack_t other = { .ss_sp = stack, .ss_size = sizeof stack };
		MUST(sigaltstack(&other, 0) == 0);
	}
	struct sigaction action = { .sa_handler = handler, .sa_flags = argv[1] ? SA_ONSTACK : 0 };
	sigaction(SIGALRM, &action, 0);
	MUST(setitimer(ITIMER_REAL, &every, 0) == 0);
	sigsetjmp(out, 1);
	while (jumps < 3000) free(used(malloc(200)));
	every = (struct itimerval){ 0 };
	MUST(setitimer(ITIMER_REAL, &every, 0) == 0);
	signal(SIGALRM, SIG_IGN);
	for (int i = 0; i < 300; i++) after_jumps();
	puts("jumped");
	return 0;
}
