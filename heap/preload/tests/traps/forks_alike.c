/* Children that all do the same; with an argument the C library does not know of them. */
#include "trap.h"
#include <sys/syscall.h>
int main(int n, char **argv)
{
	for (int child = 0; child < 8; child++) {
		pid_t pid = n > 1 ? (pid_t)syscall(SYS_fork) : fork();
		if (!pid) {
			for (int i = 0; i < 400; i++) used(malloc(10000 + i));
			_exit(0);
		}
		int status;
		MUST(waitpid(pid, &status, 0) == pid && status == 0);
	}
	puts(n > 1 ? argv[1] : "forked");
	return 0;
}
