#!/usr/bin/env python3
"""Measures designs of the inline TLB check on compiled code and prints the tables of README.md.

usage: measure.py [--rounds N] [--only PROGRAM,…] [--designs NAME,…]"""

import argparse
import math
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

sys.dont_write_bytecode = True

from checks import Addend, Foreseen, Free, Mixed, Tag, Wide  # noqa: E402
from rewrite import Rewriter  # noqa: E402

HERE = Path(__file__).resolve().parent
PROGRAMS = HERE.parent / "cpu" / "programs"
SOURCES = {"arithmetic.c": "-O2", "control.c": "-O2", "data.c": "-O2", "text.c": "-O2", "scalar.c": "-O2",
           "packed.c": "-O3"}
NAMES = ("list tree qsort hashtable sieve crc32 strings lz edit json interp vcall fib imat sha256 bignum "
         "nbody saxpy dmat").split()
SSE = ("nbody", "saxpy", "dmat")
# As bench/cpu/build.sh, and the registers that checks need.
FLAGS = ("-std=gnu11 -march=x86-64 -mtune=generic -fno-pie -fcf-protection=none -fno-stack-protector -fno-builtin "
         "-fno-tree-loop-distribute-patterns -fno-math-errno -ffp-contract=off -fno-asynchronous-unwind-tables "
         "-ffixed-r11 -ffixed-r14 -ffixed-r15 -masm=intel").split()
# Name: design, flags, groups, known page of the stack.
DESIGNS = {
    "native": None,
    "tag": (Tag, {}, "lazy", True, True),
    "tag, low": (Tag, {"low": True}, "lazy", True, True),
    "tag, no groups": (Tag, {}, "lazy", False, True),
    "tag, no stack page": (Tag, {}, "lazy", True, False),
    "tag, neither": (Tag, {}, "lazy", False, False),
    "lahf where live": (Tag, {}, "around", True, True),
    "lahf where live, no groups": (Tag, {}, "around", False, True),
    "lahf always": (Tag, {}, "always", True, True),
    "lahf always, no groups": (Tag, {}, "always", False, True),
    "flag-free": (Free, {}, "lazy", True, True),
    "flag-free, no groups": (Free, {}, "lazy", False, True),
    "addend": (Addend, {}, "lazy", True, True),
    "addend, no groups": (Addend, {}, "lazy", False, True),
    "addend, low": (Addend, {"low": True}, "lazy", True, True),
    "mixed": (Mixed, {}, "lazy", True, True),
    "mixed, low": (Mixed, {"low": True}, "lazy", True, True),
    "wide, low": (Wide, {"low": True}, "lazy", True, True),
    "wide, low, no groups": (Wide, {"low": True}, "lazy", False, True),
    "last page, low": (Foreseen, {"low": True}, "lazy", True, True),
}


def command(*words):
    done = subprocess.run([str(w) for w in words], text=True, capture_output=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(map(str, words))}: exit code {done.returncode}\n{done.stderr[:2000]}")
    return done.stdout


def build_runtime(folder):
    command("gcc", "-O1", HERE / "offsets.c", "-o", folder / "offsets")
    (folder / "vcpu.inc").write_text(command(folder / "offsets"))
    common = ["gcc", "-O2", "-Wall", "-Wextra", "-Werror", "-static", "-no-pie", "-fno-pie", f"-Wa,-I{folder}"]
    command(*common, HERE / "chase.c", HERE / "chase.S", "-o", folder / "chase")
    # What is checked overwrites these registers, also those that a function preserves.
    command(*common, "-ffixed-r14", "-ffixed-r15", "-I", PROGRAMS, "-c", HERE / "driver.c", "-o", folder / "driver.o")
    command(*common, "-c", HERE / "runtime.S", "-o", folder / "runtime.o")


def build(folder, number, design):
    """An executable with all programs checked by a design."""
    objects = []
    for name, level in SOURCES.items():
        text = command("gcc", *FLAGS, level, "-S", "-o", "-", PROGRAMS / name)
        if design is None:
            text = ".intel_syntax noprefix\n" + text
        else:
            kind, options, flags, group, stack = design
            text = Rewriter(lambda out: kind(out, stack, **options), flags, group).run(text)
        source = folder / f"{number}-{name}.s"
        source.write_text(text)
        # Where jumps lie in lines of code would else be the greater part of small differences on some processors.
        command("gcc", "-c", f"-Wa,-I{folder},-mbranches-within-32B-boundaries", source, "-o", source.with_suffix(".o"))
        objects.append(source.with_suffix(".o"))
    command("gcc", "-static", "-no-pie", folder / "driver.o", folder / "runtime.o", *objects, "-o", folder / f"run{number}")


def measure(folder, names, designs, rounds):
    """Best time of each program in each design. All designs are in each round, one after the other."""
    best, checks, missed = {}, {}, {}
    for turn in range(rounds):
        for name in names:
            for number, design in enumerate(designs):
                time, check, misses = command(folder / f"run{number}", name, 2).split()
                if checks.setdefault(name, check) != check:
                    sys.exit(f"{name}: {design} computes {check}, not {checks[name]}")
                best[design, name] = min(best.get((design, name), math.inf), int(time))
                missed[design, name] = max(missed.get((design, name), 0), int(misses))
        print(f"round {turn + 1} of {rounds}", file=sys.stderr)
    return best, missed


def mean(values):
    values = list(values)
    return math.exp(sum(map(math.log, values)) / len(values))


def print_programs(best, names, designs):
    integer = [n for n in names if n not in SSE]
    print("| design | mean, integer | mean, SSE | " + " | ".join(f"`{n}`" for n in names) + " |")
    print("|---" * (len(names) + 3) + "|")
    for design in designs:
        ratio = {n: best[design, n] / best["native", n] for n in names}
        means = [mean(ratio[n] for n in group) if group else math.nan for group in (integer, set(names) - set(integer))]
        print(f"| {design} | " + " | ".join("" if math.isnan(v) else f"{v:.2f}" for v in means + [ratio[n] for n in names]) + " |")


def print_chase(folder, rounds):
    rows, layouts = {}, []
    for line in command(folder / "chase", rounds).splitlines():
        layout, design, cycles = line.split()
        rows.setdefault(design, []).append(cycles)
        if layout not in layouts:
            layouts.append(layout)
    print("| design | " + " | ".join(layouts) + " |")
    print("|---" * (len(layouts) + 1) + "|")
    for design, cycles in rows.items():
        print(f"| `{design}` | " + " | ".join(cycles) + " |")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", default=",".join(NAMES))
    parser.add_argument("--designs", default=";".join(DESIGNS), help="separated by semicolons; native comes first")
    arguments = parser.parse_args()
    names, designs = arguments.only.split(","), arguments.designs.split(";")
    if platform.machine() != "x86_64":
        sys.exit("only on x86-64")
    if "bmi2" not in Path("/proc/cpuinfo").read_text():
        sys.exit("the sequences need a processor with BMI2")
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        build_runtime(folder)
        print("Cycles per link of a pointer chase\n")
        print_chase(folder, 40 * arguments.rounds)
        for number, design in enumerate(designs):
            build(folder, number, DESIGNS[design])
        best, missed = measure(folder, names, designs, arguments.rounds)
        print("\nTime of programs, as a multiple of the time without checks\n")
        print_programs(best, names, designs)
        for (design, name), misses in missed.items():
            if misses > 10000:
                print(f"{design}, {name}: {misses} accesses missed in two runs", file=sys.stderr)


if __name__ == "__main__":
    main()
