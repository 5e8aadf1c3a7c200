#include "commands.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "programs.h"

enum { MOST = 32 };
static struct command {
    char name[32], kind[8], text[1024];
} commands[MOST];
static int known;

double seconds_now(void) {
    struct timespec time;
    if (clock_gettime(CLOCK_MONOTONIC, &time) != 0)
        fail("clock_gettime");
    return (double)time.tv_sec + (double)time.tv_nsec * 1e-9;
}

int read_commands(const char *path) {
    char line[1200];
    FILE *list = fopen(path, "re");
    if (!list)
        fail(path);
    for (known = 0; known < MOST && fgets(line, sizeof line, list);) {
        struct command *next = &commands[known];
        if (*line != '#' && sscanf(line, "%31s %7s %1023[^\n]", next->name, next->kind, next->text) == 3)
            known++;
    }
    fclose(list);
    return known;
}

void list_commands(void) {
    for (int i = 0; i < known; i++)
        printf("VIREO-PROGRAM %s real\n", commands[i].name);
}

// Runs it once. Returns the seconds it took, or that it tells, and a value that depends on what it prints.
static double run_command(const struct command *command, uint64_t *check) {
    static char chunk[65536];
    double told = 0, start = seconds_now();
    size_t size;
    FILE *output = popen(command->text, "re");
    if (!output)
        fail(command->name);
    while ((size = fread(chunk, 1, sizeof chunk - 1, output)) > 0) {
        chunk[size] = 0;
        told = strtod(chunk, NULL);
        for (size_t i = 0; i < size; i++)
            *check = mix(*check, (uint8_t)chunk[i]);
    }
    if (pclose(output) != 0)
        printf("VIREO-ERROR %s: the command failed\n", command->name);
    if (strcmp(command->kind, "rate") != 0)
        return seconds_now() - start;
    *check = 0;
    return told;
}

int measure_command(char *name, long repeats) {
    const struct command *command = commands;
    while (command < commands + known && strcmp(command->name, name) != 0)
        command++;
    if (command == commands + known)
        return printf("VIREO-ERROR %s: no such command\n", name);
    double best = 1e9, start = seconds_now();
    uint64_t check = 0;
    for (long i = 0; i < repeats; i++) {
        check = 0;
        double taken = run_command(command, &check);
        best = taken < best ? taken : best;
    }
    printf("VIREO-CPU %s %.9f %.9f %016" PRIx64 "\n", command->name, best, seconds_now() - start, check);
    return 0;
}
