/* A sandbox that kills for what no allocator needs. */
#include "trap.h"
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
static const int allowed[] = { SYS_read, SYS_write, SYS_mmap, SYS_munmap, SYS_mprotect, SYS_mremap, SYS_brk, SYS_madvise,
	SYS_futex, SYS_rt_sigaction, SYS_rt_sigprocmask, SYS_rt_sigreturn, SYS_clone, SYS_clone3, SYS_set_robust_list, SYS_rseq, SYS_exit,
	SYS_exit_group, SYS_getrandom, SYS_newfstatat, SYS_fstat, SYS_sched_yield };
NOINLINE void *leak_in_thread(void) { return used(malloc(9000)); }
static void *work(void *unused)
{
	for (int i = 0; i < 500; i++) leak_in_thread();
	return unused;
}
int main(void)
{
	struct sock_filter code[64] = { BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)) };
	unsigned short n = 1;
	for (size_t i = 0; i < sizeof allowed / sizeof *allowed; i++) {
		code[n++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (unsigned)allowed[i], 0, 1);
		code[n++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
	}
	code[n++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS);
	struct sock_fprog program = { n, code };
	MUST(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 && prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0);
	pthread_t threads[4];
	for (int i = 0; i < 4; i++) MUST(pthread_create(&threads[i], 0, work, 0) == 0);
	for (int i = 0; i < 4; i++) MUST(pthread_join(threads[i], 0) == 0);
	puts("sandboxed");
	return 0;
}
