// What a kernel does for one process: system calls, memory maps, page faults, signals, and large copies by rep.
#define _GNU_SOURCE
#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "programs.h"

enum { PAGE = 4096, LARGE = 65536 };

static uint8_t *mapped(size_t size) {
    void *at = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (at == MAP_FAILED)
        fail("mmap");
    return at;
}

static void protect(void *page, int protection) {
    if (mprotect(page, PAGE, protection) != 0)
        fail("mprotect");
}

// The shortest system call.
uint64_t run_getppid(void) {
    uint64_t same = 0;
    pid_t parent = getppid();
    for (int i = 0; i < 250000; i++)
        same += syscall(SYS_getppid) == parent;
    return same;
}

// The time of day as libraries read it, without a system call where the clock allows it.
uint64_t run_clock(void) {
    uint64_t forward = 0;
    struct timespec last = {0, 0}, now;
    for (int i = 0; i < 1000000; i++) {
        if (clock_gettime(CLOCK_MONOTONIC, &now) != 0)
            fail("clock_gettime");
        forward += now.tv_sec > last.tv_sec || (now.tv_sec == last.tv_sec && now.tv_nsec >= last.tv_nsec);
        last = now;
    }
    return forward;
}

// open, fstat, close of a file by its path.
uint64_t run_files(void) {
    uint64_t devices = 0;
    for (int i = 0; i < 25000; i++) {
        struct stat status;
        int file = open("/dev/null", O_RDONLY | O_CLOEXEC);
        if (file < 0 || fstat(file, &status) != 0 || close(file) != 0)
            fail("/dev/null");
        devices += S_ISCHR(status.st_mode);
    }
    return devices;
}

// Maps that come and go without being used.
uint64_t run_mmap(void) {
    uint64_t maps = 0;
    for (int i = 0; i < 20000; i++)
        maps += munmap(mapped(LARGE), LARGE) == 0;
    return maps;
}

// Page faults: 1 MiB mapped, each page written, unmapped.
uint64_t run_fault(void) {
    enum { SIZE = 1 << 20 };
    uint64_t check = 0;
    for (int i = 0; i < 40; i++) {
        volatile uint8_t *area = mapped(SIZE);
        for (int at = 0; at < SIZE; at += PAGE) {
            check += area[at];
            area[at] = (uint8_t)i;
            check += area[at];
        }
        munmap((void *)area, SIZE);
    }
    return check;
}

// Protection of a page taken away and given back, the page used in between.
uint64_t run_protect(void) {
    volatile uint8_t *page = mapped(PAGE);
    uint64_t check = 0;
    for (int i = 0; i < 12000; i++) {
        page[i % PAGE] = (uint8_t)i;
        protect((void *)page, PROT_READ);
        check += page[i % PAGE];
        protect((void *)page, PROT_READ | PROT_WRITE);
    }
    munmap((void *)page, PAGE);
    return check;
}

static volatile uint64_t delivered;
static uint8_t *volatile locked;

static void handle(int number) {
    delivered += (uint64_t)number;
}

static void unlock(int number) {
    delivered += (uint64_t)number;
    protect(locked, PROT_READ | PROT_WRITE);
}

static void on(int number, void (*handler)(int)) {
    struct sigaction action = {.sa_handler = handler};
    if (sigaction(number, &action, NULL) != 0)
        fail("sigaction");
}

// Signals to the process itself: frame, handler, return.
uint64_t run_signal(void) {
    delivered = 0;
    on(SIGUSR1, handle);
    for (int i = 0; i < 20000; i++)
        kill(getpid(), SIGUSR1);
    return delivered;
}

// Faults that the process handles itself: a write to a protected page, which the handler opens.
uint64_t run_segv(void) {
    delivered = 0;
    on(SIGSEGV, unlock);
    locked = mapped(PAGE);
    for (int i = 0; i < 6000; i++) {
        protect(locked, PROT_READ);
        *(volatile uint8_t *)(locked + i % PAGE) = (uint8_t)i;
    }
    munmap(locked, PAGE);
    on(SIGSEGV, SIG_DFL);
    return delivered;
}

static uint8_t large_from[LARGE + 64], large_to[LARGE];

void prepare_zero(void) {
    for (int i = 0; i < LARGE; i++)
        large_to[i] = 1;
}

// 64 KiB of zeros from the kernel: rep stos.
uint64_t run_zero(void) {
    uint64_t bytes = 0;
    int file = open("/dev/zero", O_RDONLY | O_CLOEXEC);
    if (file < 0)
        fail("/dev/zero");
    for (int i = 0; i < 8000; i++)
        bytes += (uint64_t)read(file, large_to, LARGE) + large_to[i];
    close(file);
    return bytes;
}

void prepare_movsb(void) {
    uint64_t state = 33166247903u;
    for (size_t i = 0; i < sizeof large_from; i++)
        large_from[i] = (uint8_t)next_random(&state);
}

// Copies of 64 KiB by rep movsb, the source at every offset of a cache line.
uint64_t run_movsb(void) {
    uint64_t check = 0;
    for (int i = 0; i < 8000; i++) {
        const uint8_t *from = large_from + i % 64;
        uint8_t *to = large_to;
        size_t count = LARGE;
        __asm__ volatile("rep movsb" : "+S"(from), "+D"(to), "+c"(count) : : "memory");
        check = mix(check, large_to[(unsigned)i * 13 % LARGE]);
    }
    return check;
}
