// Commands of a list instead of the built-in programs: real programs, measured in the same way.
#ifndef COMMANDS_H
#define COMMANDS_H

// Seconds of the monotonic clock.
double seconds_now(void);

// Reads a list of commands: lines "NAME KIND COMMAND", where the command is for the shell and KIND is `time` (its time
// is measured, what it prints is the check value) or `rate` (it prints the seconds that one of its operations takes).
// Empty lines and those with '#' are passed over. Returns how many there are.
int read_commands(const char *path);

// Prints "VIREO-PROGRAM NAME real" for each of them.
void list_commands(void);

// Runs the command of that name so many times and prints what `measure` of main.c prints; 0 when there is one.
int measure_command(char *name, long repeats);

#endif
