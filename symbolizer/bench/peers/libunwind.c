/* Unwinds all threads of a process by libunwind's accessors for ptrace(2), as
 * libunwind-ptrace(3) has it: with its cache for the whole process, once cold and then
 * warm. Prints threads, frames, and nanoseconds of each pass. */
#include <dirent.h>
#include <libunwind-ptrace.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ptrace.h>
#include <sys/wait.h>
#include <time.h>

enum { MOST_THREADS = 20000, MOST_FRAMES = 512 };

static long now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000000000L + now.tv_nsec;
}

static int attach(const char *pid, pid_t *threads)
{
	char path[64];
	struct dirent *entry;
	DIR *tasks;
	int count = 0;

	snprintf(path, sizeof(path), "/proc/%s/task", pid);
	tasks = opendir(path);
	if (!tasks)
		return -1;
	while ((entry = readdir(tasks)) && count < MOST_THREADS) {
		pid_t tid = atoi(entry->d_name);

		if (tid <= 0)
			continue;
		if (ptrace(PTRACE_SEIZE, tid, 0, 0) || ptrace(PTRACE_INTERRUPT, tid, 0, 0) ||
		    waitpid(tid, NULL, __WALL) != tid)
			return -1;
		threads[count++] = tid;
	}
	closedir(tasks);
	return count;
}

/* Frames of one thread; its context is kept, as a debugger does. */
static long unwind(unw_addr_space_t space, void *context)
{
	unw_cursor_t cursor;
	long frames = 1;

	if (unw_init_remote(&cursor, space, context))
		return 0;
	while (frames < MOST_FRAMES && unw_step(&cursor) > 0)
		frames++;
	return frames;
}

int main(int argc, char **argv)
{
	static pid_t threads[MOST_THREADS];
	static void *contexts[MOST_THREADS];
	unw_addr_space_t space = unw_create_addr_space(&_UPT_accessors, 0);
	int count, passes;

	if (argc != 3 || !space)
		return 2;
	passes = atoi(argv[2]);
	count = attach(argv[1], threads);
	if (count <= 0)
		return 1;
	unw_set_caching_policy(space, UNW_CACHE_GLOBAL);
	for (int i = 0; i < count; i++)
		if (!(contexts[i] = _UPT_create(threads[i])))
			return 1;
	printf("{\"threads\":%d,\"passes\":[", count);
	for (int pass = 0; pass < passes; pass++) {
		long begun = now_ns(), frames = 0;

		for (int i = 0; i < count; i++)
			frames += unwind(space, contexts[i]);
		printf("%s{\"frames\":%ld,\"ns\":%ld}", pass ? "," : "", frames, now_ns() - begun);
	}
	puts("]}");
	return 0;
}
