/* Mappings that are cut, covered, moved, grown; each by a size of its own. */
#include "trap.h"
#define MIB (1ul << 20)
static char *map(size_t n)
{
	char *p = mmap(0, n, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	MUST(p != MAP_FAILED);
	return p;
}
int main(void)
{
	char *front = map(10 * MIB), *middle = map(11 * MIB), *whole = map(12 * MIB), *covered = map(13 * MIB);
	char *shrunk = map(14 * MIB), *grown = map(15 * MIB), *refused = map(16 * MIB);
	MUST(munmap(front, 3 * MIB + 5) == 0);
	MUST(munmap(middle + 4 * MIB, MIB) == 0);
	MUST(munmap(whole, 12 * MIB) == 0);
	MUST(mmap(covered, 13 * MIB, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == covered);
	MUST(mremap(shrunk, 14 * MIB, 2 * MIB, 0) == shrunk);
	MUST(mremap(grown, 15 * MIB, 150 * MIB, MREMAP_MAYMOVE) != MAP_FAILED);
	errno = 0;
	MUST(mmap(refused, MIB, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED, -1, 0) == MAP_FAILED && errno == EBADF);
	MUST(munmap(refused + 1, 4096) == -1 && errno == EINVAL);
	puts("mapped");
	return 0;
}
