// Control flow: calls, indirect calls, jump tables, recursive parsing.
#include "programs.h"

static __attribute__((noinline)) unsigned fib(unsigned n) {
    return n < 2 ? n : fib(n - 1) + fib(n - 2);
}

// Calls and returns, deep and plenty.
uint64_t run_fib(void) { return mix(fib(34), fib(33)); }

struct shape {
    uint64_t (*area)(const struct shape *, uint64_t);
    uint64_t width, height;
};

static uint64_t rectangle(const struct shape *s, uint64_t scale) { return s->width * s->height + scale; }
static uint64_t triangle(const struct shape *s, uint64_t scale) { return s->width * s->height / 2 ^ scale; }
static uint64_t circle(const struct shape *s, uint64_t scale) { return s->width * s->width * 355 / 113 + scale; }
static uint64_t nothing(const struct shape *s, uint64_t scale) { return s->height + scale; }

// Calls through pointers: four targets in an order that does not repeat early.
uint64_t run_vcall(void) {
    static uint64_t (*const areas[4])(const struct shape *, uint64_t) = {rectangle, triangle, circle, nothing};
    struct shape shapes[61];
    uint64_t state = 2463534242u, check = 0;
    for (int i = 0; i < 61; i++) {
        uint64_t random = next_random(&state);
        shapes[i] = (struct shape){areas[random % 4], random >> 40 & 255, random >> 50 & 255};
    }
    for (int round = 0; round < 300000; round++)
        for (int i = 0; i < 61; i++)
            check = shapes[i].area(&shapes[i], check);
    return check;
}

enum opcode { PUSH, LOAD, STORE, ADD, SUB, MUL, LESS, JUMP_IF_ZERO, JUMP, HALT };

// for (i = 0, sum = 1; i < n; i++) { sum = sum * 3 + i; if (sum < 0) sum = sum - i; }; the comments tell addresses.
static const int32_t bytecode[] = {
    /*  0 */ PUSH, 0, STORE, 0,
    /*  4 */ PUSH, 1, STORE, 1,
    /*  8 */ LOAD, 0, LOAD, 2, LESS, JUMP_IF_ZERO, 48,
    /* 15 */ LOAD, 1, PUSH, 3, MUL, LOAD, 0, ADD, STORE, 1,
    /* 25 */ LOAD, 1, PUSH, 0, LESS, JUMP_IF_ZERO, 39,
    /* 32 */ LOAD, 1, LOAD, 0, SUB, STORE, 1,
    /* 39 */ LOAD, 0, PUSH, 1, ADD, STORE, 0,
    /* 46 */ JUMP, 8,
    /* 48 */ HALT,
};

static int64_t interpret(const int32_t *code, int64_t variables[4]) {
    int64_t stack[16];
    int top = -1;
    for (;;) {
        switch (*code++) {
            case PUSH: stack[++top] = *code++; break;
            case LOAD: stack[++top] = variables[*code++]; break;
            case STORE: variables[*code++] = stack[top--]; break;
            case ADD: top--; stack[top] = (int64_t)((uint64_t)stack[top] + (uint64_t)stack[top + 1]); break;
            case SUB: top--; stack[top] = (int64_t)((uint64_t)stack[top] - (uint64_t)stack[top + 1]); break;
            case MUL: top--; stack[top] = (int64_t)((uint64_t)stack[top] * (uint64_t)stack[top + 1]); break;
            case LESS: top--; stack[top] = stack[top] < stack[top + 1]; break;
            case JUMP_IF_ZERO: code = stack[top--] == 0 ? bytecode + *code : code + 1; break;
            case JUMP: code = bytecode + *code; break;
            default: return variables[1];
        }
    }
}

// A bytecode interpreter: one indirect jump for each of its instructions.
uint64_t run_interp(void) {
    int64_t variables[4] = {0, 0, 800000, 0};
    return mix((uint64_t)interpret(bytecode, variables), (uint64_t)variables[0]);
}

enum { DOCUMENT_SIZE = 65536, MAX_DEPTH = 8 };
static char document[DOCUMENT_SIZE + 1];

// Appends a text to the document.
static char *put(char *to, const char *text) {
    while (*text)
        *to++ = *text++;
    return to;
}

static char *put_number(char *to, uint64_t number) {
    char digits[20];
    int count = 0;
    do
        digits[count++] = (char)('0' + number % 10);
    while (number /= 10);
    while (count > 0)
        *to++ = digits[--count];
    return to;
}

// An array of objects with numbers, strings (with escapes and UTF-8 of 2 to 4 bytes), arrays and names.
void prepare_json(void) {
    static const char *const words[] = {"alpha", "b\\\"eta", "g\xc3\xa4mma", "\xe2\x82\xac 5", "\xf0\x9f\x98\x80", "", "tab\\t\\u00e4"};
    uint64_t state = 1181783497276652981u;
    char *to = put(document, "[");
    for (uint64_t id = 0; to < document + DOCUMENT_SIZE - 256; id++) {
        uint64_t random = next_random(&state);
        to = put(to, id == 0 ? "{\"id\": " : ",\n{\"id\": ");
        to = put_number(to, id);
        to = put(put(put(to, ", \"name\": \""), words[random % 7]), "\", \"values\": [");
        for (unsigned i = 0; i <= random % 5; i++)
            to = put_number(put(to, i == 0 ? "-" : ", "), random >> (8 * i) & 0xfffff);
        to = put(put(to, "], \"on\": "), random >> 60 & 1 ? "true" : "null");
        to = put(put(to, ", \"next\": {\"a\": \""), words[random >> 32 & 3]);
        to = put(to, "\"}}");
    }
    *put(to, "]") = 0;
}

struct parser {
    const char *at;
    uint64_t check;
    int broken;
};

static void parse_value(struct parser *p, int depth);

static char after_space(struct parser *p) {
    while (*p->at == ' ' || *p->at == '\n' || *p->at == '\t' || *p->at == '\r')
        p->at++;
    return *p->at;
}

// Takes the character if it is next.
static int take(struct parser *p, char wanted) {
    if (after_space(p) != wanted)
        return 0;
    p->at++;
    return 1;
}

// One character that is not ASCII (RFC 3629).
static uint32_t parse_utf8(struct parser *p) {
    uint8_t first = (uint8_t)*p->at++;
    int more = first >= 0xf0 ? 3 : first >= 0xe0 ? 2 : 1;
    uint32_t character = first & (0x3fu >> more);
    p->broken |= first < 0xc2 || first > 0xf4;
    for (; more > 0; more--) {
        uint8_t next = (uint8_t)*p->at;
        if ((next & 0xc0) != 0x80) {
            p->broken = 1;
            break;
        }
        character = character << 6 | (next & 0x3f);
        p->at++;
    }
    return character;
}

static uint32_t parse_escape(struct parser *p) {
    char kind = *p->at++;
    uint32_t character = 0;
    if (kind != 'u')
        return kind == 't' ? 9 : kind == 'n' ? 10 : (uint8_t)kind;
    for (int i = 0; i < 4; i++) {
        char digit = *p->at++;
        character = character << 4 | (uint32_t)(digit <= '9' ? digit - '0' : (digit | 32) - 'a' + 10);
    }
    return character;
}

static void parse_string(struct parser *p) {
    while (*p->at != '"' && !p->broken) {
        uint32_t character = (uint8_t)*p->at;
        if (character >= 0x80)
            character = parse_utf8(p);
        else if (p->at++, character == '\\')
            character = parse_escape(p);
        else
            p->broken |= character < 0x20;
        p->check = mix(p->check, character);
    }
    p->at++;
}

static void parse_number(struct parser *p) {
    int negative = take(p, '-');
    int64_t number = 0;
    if (*p->at < '0' || *p->at > '9')
        p->broken = 1;
    while (*p->at >= '0' && *p->at <= '9')
        number = number * 10 + (*p->at++ - '0');
    p->check = mix(p->check, (uint64_t)(negative ? -number : number));
}

static void parse_name(struct parser *p, const char *name) {
    p->check = mix(p->check, (uint8_t)*name);
    for (; *name; name++)
        p->broken |= *p->at++ != *name;
}

// The values of an array, or the names and values of an object, up to its end.
static void parse_members(struct parser *p, char end, int depth) {
    if (depth > MAX_DEPTH)
        p->broken = 1;
    if (take(p, end))
        return;
    do {
        if (end == '}') {
            p->broken |= !take(p, '"');
            parse_string(p);
            p->broken |= !take(p, ':');
        }
        parse_value(p, depth + 1);
    } while (take(p, ',') && !p->broken);
    p->broken |= !take(p, end);
}

static void parse_value(struct parser *p, int depth) {
    switch (after_space(p)) {
        case '{': p->at++; parse_members(p, '}', depth); break;
        case '[': p->at++; parse_members(p, ']', depth); break;
        case '"': p->at++; parse_string(p); break;
        case 't': parse_name(p, "true"); break;
        case 'f': parse_name(p, "false"); break;
        case 'n': parse_name(p, "null"); break;
        default: parse_number(p); break;
    }
}

// A JSON parser (RFC 8259): recursion, and a branch or two on each byte.
uint64_t run_json(void) {
    uint64_t check = 0;
    for (int round = 0; round < 300; round++) {
        struct parser parser = {document, check, 0};
        parse_value(&parser, 0);
        if (parser.broken)
            fail("parse of the document");
        check = parser.check;
    }
    return check;
}
