/* A child of vfork has its parent's memory: what it allocates is the parent's. */
#include "trap.h"
#include <spawn.h>
extern char **environ;
NOINLINE void *in_child(void) { return used(malloc(50000)); }
static void *volatile kept[200];
int main(int n, char **argv)
{
	if (n > 1) return !used(malloc(100000));
	for (volatile int i = 0; i < 200; i++) {
		int status;
		pid_t pid = vfork();
		if (!pid) {
			kept[i] = in_child();
			free(used(malloc(3000)));
			if (i % 2) execl(argv[0], argv[0], "again", NULL);
			_exit(0);
		}
		MUST(pid > 0 && waitpid(pid, &status, 0) == pid && status == 0);
		char *args[] = { argv[0], "again", NULL };
		if (i % 10 == 0) {
			MUST(posix_spawn(&pid, argv[0], NULL, NULL, args, environ) == 0);
			MUST(waitpid(pid, &status, 0) == pid && status == 0);
		}
		memset(kept[i], 1, 50000);
	}
	puts("200");
	return 0;
}
