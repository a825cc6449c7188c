/* A library beside ours whose constructor allocates, perhaps before ours has run. */
#include <stdlib.h>
#include <string.h>
static char *early[100];
__attribute__((constructor)) static void before(void)
{
	for (int i = 0; i < 100; i++) {
		early[i] = realloc(calloc(1, 100), 5000);
		memset(early[i], i, 5000);
	}
}
__attribute__((destructor)) static void after(void)
{
	for (int i = 0; i < 100; i++) {
		if (early[i][4999] != i) abort();
		free(early[i]);
	}
}
