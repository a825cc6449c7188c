/* Children that all do the same. */
#include "trap.h"
int main(void)
{
	for (int child = 0; child < 8; child++) {
		pid_t pid = fork();
		if (!pid) {
			for (int i = 0; i < 400; i++) used(malloc(10000 + i));
			_exit(0);
		}
		int status;
		MUST(waitpid(pid, &status, 0) == pid && status == 0);
	}
	puts("forked");
	return 0;
}
