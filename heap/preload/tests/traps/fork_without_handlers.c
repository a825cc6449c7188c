/* A child that the C library does not know of, and that allocates. */
#include "trap.h"
#include <sys/syscall.h>
NOINLINE void *in_parent(void) { return used(malloc(30000)); }
NOINLINE void *in_child(void) { return used(malloc(30000)); }
int main(void)
{
	void *before[50];
	for (int i = 0; i < 50; i++) before[i] = in_parent();
	pid_t pid = (pid_t)syscall(SYS_fork);
	if (!pid) {
		for (int i = 0; i < 50; i++) free(before[i]);
		for (int i = 0; i < 70; i++) in_child();
		_exit(0);
	}
	int status;
	MUST(waitpid(pid, &status, 0) == pid && status == 0);
	puts("forked");
	return 0;
}
