/* Forty calls deep, of which some have frames of a size that is known only when they run. */
static volatile int sink;

__attribute__((noinline)) void stop_here(void) { sink++; }

__attribute__((noinline)) static void with_array(int n)
{
	char *more = __builtin_alloca(n * 16);

	more[n] = (char)n;
	stop_here();
	sink += more[n];
}

__attribute__((noinline)) static int odd(int n);

__attribute__((noinline)) static int even(int n)
{
	int local[4] = {n, sink};

	if (n == 0)
		with_array(sink + 3);
	else
		sink += odd(n - 1);
	return local[sink & 1] + n;
}

static int odd(int n) { return even(n - 1) + sink * n; }

/* With a frame pointer, as functions have that the C library begins with. Without any further out a
   frame of a size that is not known would be taken for the last: the frame pointer that it kept is 0. */
__attribute__((noinline, optimize("no-omit-frame-pointer"))) int run(int n) { return even(n) + sink; }
