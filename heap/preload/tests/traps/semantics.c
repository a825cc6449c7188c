/* Every function of the family does what its man page says, sampled or not. */
#include "trap.h"
static uintptr_t at(void *p) { return (uintptr_t)p; }
/* Other allocators than glibc's set errno themselves, and mimalloc 2.0
   has no alignments above a page and wrong ones for sizes that are multiples. */
static int strict;
#define KEPT (!strict || errno == 77)
int main(int n, char **argv)
{
	(void)argv;
	strict = n > 1;
	volatile size_t huge = (size_t)-100;
	srand(7);
	for (int i = 0; i < 4000; i++) {
		size_t size = (size_t)rand() % (i % 50 ? 3000 : 400000);
		unsigned char *p = 0;
		void *out = (void *)1;
		errno = 77;
		MUST((p = malloc(size)) && KEPT);
		MUST(malloc_usable_size(p) >= size && (size < 16 || at(p) % 16 == 0));
		memset(p, i, malloc_usable_size(p));
		MUST((p = realloc(p, size + 700)) && KEPT && (!size || (p[0] == i % 256 && p[size - 1] == i % 256)));
		MUST((p = realloc(p, size / 3 + 1)) && KEPT && (size < 3 || p[size / 3 - 1] == i % 256));
		MUST((p = reallocarray(p, size + 1, 2)) && KEPT);
		free(p);
		MUST(KEPT);
		MUST((p = calloc(size / 8 + 1, 8)));
		for (size_t j = 0; j < size; j++) MUST(!p[j]);
		free(p);
		size_t align = 1ul << (4 + i % (strict ? 13 : 9));
		if (!strict) size |= 1;
		MUST((p = memalign(align, size)) && at(p) % align == 0 && malloc_usable_size(p) >= size);
		memset(p, i, size);
		free(p);
		MUST((p = aligned_alloc(align, strict ? size / align * align + align : size)) && at(p) % align == 0);
		MUST((p = realloc(p, size + 5000)));
		free(p);
		MUST(posix_memalign(&out, align, size) == 0 && at(out) % align == 0 && malloc_usable_size(out) >= size);
		free(out);
		MUST(KEPT);
		if (i % 100 == 0) {
			MUST((p = valloc(size)) && at(p) % 4096 == 0);
			free(p);
			p = NULL;
			MUST(!strict || ((p = memalign(1ul << 26, 100)) && at(p) % (1ul << 26) == 0));
			free(p);
		}
	}
	void *p = malloc(100), *out = (void *)1;
	memset(p, 9, 100);
	MUST(!reallocarray(p, huge, 3) && errno == ENOMEM);
	MUST(!realloc(p, huge) && errno == ENOMEM && ((char *)p)[99] == 9);
	MUST(!malloc(huge) && !calloc(huge, 2) && !calloc(huge / 2, 3));
	MUST(posix_memalign(&out, 3, 10) == EINVAL && posix_memalign(&out, 4, 10) == EINVAL && out == (void *)1);
	MUST(posix_memalign(&out, 16, huge) == ENOMEM && out == (void *)1);
	free(p);
	free(NULL);
	/* What realloc(p, 0) returns is the allocator's choice; it is told. */
	p = realloc(malloc(5000), 0);
	printf("realloc to 0: %s; malloc(0): %d\n", p ? "a block" : "null", malloc(0) != 0);
	MUST(malloc_usable_size(NULL) == 0);
	return 0;
}
