# Writes a source of the project: `what` is header, main or unit (with its number). The same each time.

# The next number below `limit`, from a generator whose products stay exact in awk's floating point.
function pick(limit) {
    state = (state * 4093 + 12345) % 1048576
    return int(state / 16) % limit
}

function mixer(name,    i) {
    print "static unsigned " name "(unsigned x, unsigned y) {"
    for (i = 0; i < 8; i++) {
        print "    x = (x ^ (y << " 1 + pick(15) ")) * " 2 * pick(30000) + 1 "u + (x >> " 1 + pick(15) ");"
        print "    if (x & " 2 ^ pick(16) "u) y += x / " 3 + pick(97) "u; else y ^= x % " 5 + pick(999) "u;"
    }
    print "    return x ^ y;\n}\n"
}

function machine(name,    i) {
    print "static unsigned " name "(const char *text) {"
    print "    unsigned state = " pick(100) ";"
    print "    for (size_t i = 0; text[i]; i++)"
    print "        switch ((unsigned char)text[i] % 12) {"
    for (i = 0; i < 12; i++)
        print "        case " i ": state = state * " 3 + 2 * pick(50) " + (unsigned char)text[i] + " pick(1000) "; break;"
    print "        }"
    print "    return state + (unsigned)strlen(text);\n}\n"
}

function table(name,    i) {
    print "static const struct entry { int key; const char *name; double weight; } " name "[] = {"
    for (i = 0; i < 20; i++)
        print "    {" pick(9999) ", \"entry " pick(9999) "\", " pick(999) ".5},"
    print "};\n"
}

function unit(    i) {
    state = number * 7919 % 1048576
    print "#include <stdio.h>\n#include <stdlib.h>\n#include <string.h>\n#include \"units.h\"\n"
    table("entries")
    for (i = 0; i < 3; i++) { mixer("mix" i); machine("machine" i) }
    print "static int by_key(const void *a, const void *b) {"
    print "    return ((const struct entry *)a)->key - ((const struct entry *)b)->key;\n}\n"
    print "unsigned unit" sprintf("%03d", number) "(unsigned value) {"
    print "    struct entry sorted[sizeof entries / sizeof *entries];\n    char line[64];"
    print "    memcpy(sorted, entries, sizeof sorted);"
    print "    qsort(sorted, sizeof sorted / sizeof *sorted, sizeof *sorted, by_key);"
    print "    for (size_t i = 0; i < sizeof sorted / sizeof *sorted; i++) {"
    print "        snprintf(line, sizeof line, \"%s %d %.1f %u\", sorted[i].name, sorted[i].key, sorted[i].weight, value);"
    for (i = 0; i < 3; i++)
        print "        value = mix" i "(value, machine" i "(line));"
    print "    }\n    return value;\n}"
}

BEGIN {
    if (what == "unit")
        unit()
    for (i = 1; i <= units && what == "header"; i++)
        printf "unsigned unit%03d(unsigned value);\n", i
    if (what == "main") {
        print "#include <stdio.h>\n#include \"units.h\"\n\nint main(void) {\n    unsigned value = 1;"
        for (i = 1; i <= units; i++)
            printf "    value = unit%03d(value);\n", i
        print "    printf(\"%08x\\n\", value);\n    return 0;\n}"
    }
}
