/* A thousand threads that allocate, free each other's blocks, and do both in the
   destructors of their variables. */
#include "trap.h"
static pthread_key_t key;
static void *_Atomic shelf[64];
NOINLINE void *leak_in_thread(void) { return used(malloc(20000)); }
static void at_exit_of_thread(void *mine)
{
	free(mine);
	for (int i = 0; i < 10; i++) free(used(malloc(1000)));
	free(__atomic_exchange_n(&shelf[0], used(malloc(7000)), __ATOMIC_SEQ_CST));
}
static void *work(void *unused)
{
	MUST(pthread_setspecific(key, used(malloc(3000))) == 0);
	for (int i = 0; i < 300; i++)
		free(__atomic_exchange_n(&shelf[i % 64], used(malloc(100 + i * 30)), __ATOMIC_SEQ_CST));
	leak_in_thread();
	return unused;
}
int main(void)
{
	pthread_t threads[200];
	pthread_attr_t attr;
	MUST(pthread_key_create(&key, at_exit_of_thread) == 0 && pthread_attr_init(&attr) == 0);
	/* Small stacks: the hooks must not need much. */
	MUST(pthread_attr_setstacksize(&attr, 32 << 10) == 0);
	for (int round = 0; round < 5; round++) {
		for (int i = 0; i < 200; i++) MUST(pthread_create(&threads[i], &attr, work, 0) == 0);
		for (int i = 0; i < 200; i++) MUST(pthread_join(threads[i], 0) == 0);
	}
	puts("1000");
	return 0;
}
