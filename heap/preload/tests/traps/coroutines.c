/* Allocations on stacks that the program made itself. */
#include "trap.h"
#include <ucontext.h>
static ucontext_t main_context, contexts[16];
NOINLINE void *in_coroutine(void) { return used(malloc(5000)); }
static void body(void)
{
	for (int i = 0; i < 100; i++) {
		in_coroutine();
		swapcontext(&contexts[i % 16 == 99], &main_context);
	}
}
static void run(int which)
{
	for (int i = 0; i < 50; i++) in_coroutine();
	swapcontext(&contexts[which], &main_context);
}
int main(void)
{
	(void)body;
	for (int i = 0; i < 16; i++) {
		size_t size = 64 << 10;
		/* The page behind each stack is not there. */
		char *stack = mmap(0, size + 8192, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		MUST(stack != MAP_FAILED && mprotect(stack + 4096, size, PROT_READ | PROT_WRITE) == 0);
		getcontext(&contexts[i]);
		contexts[i].uc_stack.ss_sp = stack + 4096;
		contexts[i].uc_stack.ss_size = size;
		makecontext(&contexts[i], (void (*)(void))run, 1, i);
		swapcontext(&main_context, &contexts[i]);
		munmap(stack, size + 8192);
	}
	puts("switched");
	return 0;
}
