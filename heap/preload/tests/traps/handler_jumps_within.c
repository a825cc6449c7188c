/* A signal handler on a stack of its own, above the stack that it interrupts the
   hook on, jumps within itself, allocates and returns. */
#include "trap.h"
#include <dlfcn.h>
static volatile int handled;
static void handler(int unused)
{
	(void)unused;
	sigjmp_buf here;
	if (!sigsetjmp(here, 0)) siglongjmp(here, 1);
	for (int i = 0; i < 10; i++) used(malloc(70000));
	handled++;
}
int main(void)
{
	char stack[65536];
	stack_t other = { .ss_sp = stack, .ss_size = sizeof stack };
	MUST(sigaltstack(&other, 0) == 0);
	struct sigaction action = { .sa_handler = handler, .sa_flags = SA_ONSTACK };
	MUST(sigaction(SIGUSR1, &action, 0) == 0);
	volatile int *bump_raises = dlsym(RTLD_DEFAULT, "bump_raises");
	MUST(bump_raises);
	for (int i = 0; i < 100; i++) {
		*bump_raises = SIGUSR1;
		used(malloc(100000));
		MUST(*bump_raises == 0);
	}
	MUST(handled == 100);
	puts("returned");
	return 0;
}
