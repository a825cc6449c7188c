/* Return addresses are signed (-mbranch-protection=pac-ret): what lies on the stack is no address. */
static volatile int sink;

__attribute__((noinline)) void stop_here(void) { sink++; }

__attribute__((noinline)) static void inner(int n)
{
	char *more = __builtin_alloca(n * 16);

	more[n] = (char)n;
	stop_here();
	sink += more[n];
}

__attribute__((noinline)) static int middle(int n)
{
	inner(n + 2);
	return sink + n;
}

__attribute__((noinline)) static int outer(int n) { return middle(n + 1) * 2; }

__attribute__((noinline)) int run(int n) { return outer(n) + sink; }
