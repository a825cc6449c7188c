/* malloc is no point at which a thread can be cancelled (pthreads(7)). */
#include "trap.h"
static volatile int may_go, went_on;
static void *work(void *unused)
{
	while (!may_go) __asm__ volatile("pause");
	for (int i = 0; i < 100; i++) free(used(malloc(100000)));
	went_on++;
	pthread_testcancel();
	return unused;
}
int main(void)
{
	for (int i = 0; i < 50; i++) {
		pthread_t thread;
		void *result;
		may_go = 0;
		MUST(pthread_create(&thread, 0, work, 0) == 0 && pthread_cancel(thread) == 0);
		may_go = 1;
		MUST(pthread_join(thread, &result) == 0 && result == PTHREAD_CANCELED);
	}
	MUST(went_on == 50);
	puts("cancelled");
	return 0;
}
