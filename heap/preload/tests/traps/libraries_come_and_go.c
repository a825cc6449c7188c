/* dlopen and dlclose in threads while others allocate from within the library. */
#include "trap.h"
#include <dlfcn.h>
static const char *path;
static void *work(void *unused)
{
	for (int i = 0; i < 300; i++) {
		void *library = dlopen(path, RTLD_NOW);
		MUST(library);
		void *(*allocate)(void *(*)(size_t)) = (void *(*)(void *(*)(size_t)))dlsym(library, "allocate");
		MUST(allocate);
		for (int j = 0; j < 20; j++) free(allocate(malloc));
		MUST(dlclose(library) == 0);
	}
	return unused;
}
int main(int n, char **argv)
{
	pthread_t threads[4];
	MUST(n == 2);
	path = argv[1];
	for (int i = 0; i < 4; i++) MUST(pthread_create(&threads[i], 0, work, 0) == 0);
	for (int i = 0; i < 4; i++) MUST(pthread_join(threads[i], 0) == 0);
	puts("closed");
	return 0;
}
