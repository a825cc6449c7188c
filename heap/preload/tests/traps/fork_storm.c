/* Forks of forks, several at once, from threads while others allocate, and by the
   system call alone. */
#include "trap.h"
#include <sys/syscall.h>
static volatile int stop;
static void *busy(void *unused)
{
	while (!stop) free(used(malloc(3000)));
	return unused;
}
static void child(int depth)
{
	pid_t pid = 0;
	int status = 0;
	while (!pid && depth-- >= 0) {
		for (int i = 0; i < 50; i++) free(used(malloc(2000)));
		MUST((pid = fork()) >= 0);
	}
	if (pid) MUST(waitpid(pid, &status, 0) == pid && status == 0);
	_exit(0);
}
static void *forks(void *count)
{
	for (long i = 0; i < (long)count; i++) {
		int status;
		pid_t pid = i % 5 == 4 ? (pid_t)syscall(SYS_fork) : fork();
		MUST(pid >= 0);
		if (!pid) {
			if (i % 5 == 4) {
				/* No handler has run: not even malloc's own locks are safe. */
				_exit(0);
			}
			child(i % 4);
		}
		MUST(waitpid(pid, &status, 0) == pid && status == 0);
	}
	return 0;
}
int main(void)
{
	pthread_t b, f[3];
	char *kept[100];
	for (int i = 0; i < 100; i++) memset(kept[i] = malloc(10000), i, 10000);
	MUST(pthread_create(&b, 0, busy, 0) == 0);
	for (int i = 0; i < 3; i++) MUST(pthread_create(&f[i], 0, forks, (void *)300) == 0);
	for (int i = 0; i < 3; i++) MUST(pthread_join(f[i], 0) == 0);
	stop = 1;
	MUST(pthread_join(b, 0) == 0);
	for (int i = 0; i < 100; i++) MUST(kept[i][9999] == i);
	puts("forked");
	return 0;
}
