// What a kernel does between tasks: creation, context switches with and without a change of the address space.
#define _GNU_SOURCE
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "programs.h"

// Two tasks that take turns are to share a processor, whether there are others or not.
static void stay_here(void) {
    cpu_set_t here;
    CPU_ZERO(&here);
    CPU_SET(sched_getcpu(), &here);
    if (sched_setaffinity(0, sizeof here, &here) != 0)
        fail("sched_setaffinity");
}

static pid_t forked(void) {
    pid_t child = fork();
    if (child < 0)
        fail("fork");
    return child;
}

static uint64_t exit_code_of(pid_t child) {
    int status;
    if (waitpid(child, &status, 0) != child || !WIFEXITED(status))
        fail("waitpid");
    return (uint64_t)WEXITSTATUS(status);
}

// A process that ends at once: page tables copied, pages copied when written.
uint64_t run_fork(void) {
    uint64_t check = 0;
    for (int i = 0; i < 250; i++) {
        pid_t child = forked();
        if (child == 0)
            _exit(i % 100);
        check = mix(check, exit_code_of(child));
    }
    return check;
}

// The same, with another program in the child: "cpu-programs-exit" beside this one, which ends at once.
uint64_t run_exec(void) {
    char path[256];
    ssize_t length = readlink("/proc/self/exe", path, sizeof path - sizeof "-exit");
    if (length < 0)
        fail("/proc/self/exe");
    memcpy(path + length, "-exit", sizeof "-exit");
    uint64_t check = 0;
    for (int i = 0; i < 250; i++) {
        pid_t child = forked();
        if (child == 0) {
            execv(path, (char *[]){path, NULL});
            fail(path);
        }
        check = mix(check, exit_code_of(child));
    }
    return check;
}

// A byte to and fro between two processes.
uint64_t run_pipe(void) {
    enum { TURNS = 8000 };
    int to_child[2], to_parent[2];
    uint8_t byte = 1;
    uint64_t check = 0;
    stay_here();
    if (pipe(to_child) != 0 || pipe(to_parent) != 0)
        fail("pipe");
    pid_t child = forked();
    if (child == 0) {
        for (int i = 0; i < TURNS && read(to_child[0], &byte, 1) == 1; i++) {
            byte = (uint8_t)(byte * 5 + 1);
            if (write(to_parent[1], &byte, 1) != 1)
                fail("write");
        }
        _exit(0);
    }
    for (int i = 0; i < TURNS; i++) {
        if (write(to_child[1], &byte, 1) != 1 || read(to_parent[0], &byte, 1) != 1)
            fail("pipe");
        check = mix(check, byte);
    }
    for (int i = 0; i < 2; i++) {
        close(to_child[i]);
        close(to_parent[i]);
    }
    return mix(check, exit_code_of(child));
}

// Two processes that give way to each other by sched_yield.
uint64_t run_yield(void) {
    enum { TURNS = 12000 };
    atomic_uint *turn = mmap(NULL, sizeof *turn, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (turn == MAP_FAILED)
        fail("mmap");
    stay_here();
    pid_t child = forked();
    for (unsigned i = child == 0; i < 2 * TURNS; i += 2) {
        while (atomic_load(turn) != i)
            sched_yield();
        atomic_store(turn, i + 1);
    }
    if (child == 0)
        _exit(7);
    uint64_t code = exit_code_of(child), turns = atomic_load(turn);
    munmap(turn, sizeof *turn);
    return mix(turns, code);
}

enum { THREAD_TURNS = 8000 };
static atomic_uint baton;

// Waits for its turn, THREAD_TURNS times, and gives the other thread its own.
static void take_turns(unsigned first) {
    for (unsigned i = first; i < 2 * THREAD_TURNS; i += 2) {
        for (unsigned now = atomic_load(&baton); now != i; now = atomic_load(&baton))
            syscall(SYS_futex, &baton, FUTEX_WAIT_PRIVATE, now, NULL, NULL, 0);
        atomic_store(&baton, i + 1);
        syscall(SYS_futex, &baton, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
    }
}

static void *second_thread(void *unused) {
    take_turns(1);
    return unused;
}

// Two threads that wait for each other on a futex: context switches within an address space.
uint64_t run_futex(void) {
    pthread_t thread;
    stay_here();
    atomic_store(&baton, 0);
    if (pthread_create(&thread, NULL, second_thread, NULL) != 0)
        fail("pthread_create");
    take_turns(0);
    if (pthread_join(thread, NULL) != 0)
        fail("pthread_join");
    return atomic_load(&baton);
}
