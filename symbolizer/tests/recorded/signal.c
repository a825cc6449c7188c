/* A signal, whose handler has a stack of its own, interrupts a leaf that keeps nothing. */
static volatile int sink;
char own_stack[16384] __attribute__((aligned(16)));

static long call(long number, long a, long b, long c, long d)
{
	register long x8 __asm__("x8") = number;
	register long x0 __asm__("x0") = a;
	register long x1 __asm__("x1") = b;
	register long x2 __asm__("x2") = c;
	register long x3 __asm__("x3") = d;

	__asm__ volatile("svc #0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3) : "memory");
	return x0;
}

__attribute__((noinline)) void stop_here(void) { sink++; }

__attribute__((noinline)) static void in_handler(int n)
{
	stop_here();
	sink += n;
}

void handler(int signal)
{
	in_handler(signal);
	sink++;
}

/* Its only instruction that can fault is its first. */
int load(const int *from);
__asm__(".text; .type load, %function; load: .cfi_startproc; ldr w0, [x0]; ret; .cfi_endproc; .size load, .-load");

__attribute__((noinline)) static int work(int n)
{
	return load((const int *)0) + sink + n;
}

/* Numbers and layouts: include/uapi/asm-generic/{unistd,signal}.h, arch/arm64/include/uapi/asm/signal.h. */
__attribute__((noinline)) int run(int n)
{
	struct { void *at; int flags; unsigned long bytes; } stack = {own_stack, 0, sizeof(own_stack)};
	struct { void (*handler)(int); unsigned long flags; void *restorer; unsigned long mask; } action = {handler, 0x08000000};

	call(132, (long)&stack, 0, 0, 0);
	call(134, 11, (long)&action, 0, 8);
	return work(n) + sink;
}
