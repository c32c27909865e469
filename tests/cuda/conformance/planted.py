#!/usr/bin/env python3
"""Does a comparison of conformance find every wrong wrapper?

    planted.py write FIBERS OUT              the headers of tests/cuda_emulation/fibers once more, with wrong wrappers in the dialect
    planted.py check PROGRAM --include DIR   PROGRAM is conformance.cpp built over those; the variable PLANTED says which is wrong

Every wrapper is wrong once at least: the lines that a table says must differ from conformance.txt, and no others. A wrong file and
names that do not fit must be found too.
"""

import argparse
import os
import sys
from pathlib import Path

import conformance

MMA = ("mma_f16/integers", "mma_f16/subnormal", "mma_f16/infinite", "mma_f16/near")
SOME = ("copy_async/4", "copy_async/8", "copy_async/16")

# what is wrong: (a place of the dialect, what stands there instead, where WRONG is true if this one is chosen, lines that must differ)
PLANTED = {
    "dyn_smem: a thread's own memory": (
        "return cuda_fibers::machine.shared;",
        "alignas(128) static unsigned char own[96][1 << 16]; return WRONG ? own[threadIdx.x] : cuda_fibers::machine.shared;",
        ("dyn_smem", "forget_shared", *SOME, "copy_async/all")),
    "forget_shared: at once": ("{ cuda_fibers::forget_shared(); }", "{ cuda_fibers::forget_shared(); if (WRONG) cuda_fibers::poison_shared(); }",
                               ("forget_shared",)),
    "prmt: as __byte_perm": ("if ((s & 8u) != 0) byte", "if (!(WRONG) && (s & 8u) != 0) byte", ("prmt",)),
    "and_or: the other way round": ("return (a & mask) | bits;", "return WRONG ? (a | bits) & mask : (a & mask) | bits;", ("and_or",)),
    "half2_pack: swapped": ("return detail::two_halves(low, high);", "return WRONG ? detail::two_halves(high, low) : detail::two_halves(low, high);",
                            ("half2_pack",)),
    "half2_fma: rounded twice": ("return x * y + z;", "return WRONG ? static_cast<double>(static_cast<float>(x * y + z)) : x * y + z;", ("half2_fma",)),
    "half2_mul: subnormal halves are 0": ("return x * y;", "return WRONG && std::fabs(x * y) < 0x1p-14 ? 0 : x * y;", ("half2_mul",)),
    "exp2_fast: subnormals stay": ("return power < ", "return !(WRONG) && power < ", ("exp2_fast/exact",)),
    "exp2_fast: a thousandth off": ("std::exp2(x)", "std::exp2(x) * (WRONG && std::fabs(x) > 1e-30f ? 1.001f : 1.0f)", ("exp2_fast/near",)),
    "copy_async: nothing instead of zeros": ("const bool late =", "if (WRONG && !take) return;\n  const bool late =", SOME),
    "copy_async: always zeros": ("= take ? from : zeros;", "= take && !(WRONG) ? from : zeros;", (*SOME, "copy_async/all", "copy_async_commit", "copy_async_wait")),
    "copy_async_commit: an empty group is none": (
        "{ cuda_fibers::commit_copies(); }",
        "{ const auto& t = *cuda_fibers::machine.running; const bool empty = t.copies_open == 0 || t.copies[t.copies_open - 1].group != t.group;"
        " if (!(WRONG && empty)) cuda_fibers::commit_copies(); }", ("copy_async_commit",)),
    "copy_async_wait: one group less": ("next_landing(N, c)", "next_landing(WRONG && N > 0 ? N + 1 : N, c)", ("copy_async_commit", "copy_async_wait")),
    "mma_f16: registers of A swapped": ("{{a[0], a[1], a[2], a[3]}", "{{a[0], a[WRONG ? 2 : 1], a[WRONG ? 1 : 2], a[3]}", MMA),
    "mma_f16: subnormal halves are 0": (
        "return detail::low_half(x) *",
        "if (WRONG && (x & 0x7c00u) == 0) x &= ~0x7fffu;\n    if (WRONG && (x & 0x7c000000u) == 0) x &= ~0x7fff0000u;\n    return detail::low_half(x) *",
        ("mma_f16/subnormal", "mma_f16/near")),
    "mma_f16: sums are halves": (
        "d[c] += pair(left.a[2 * half], right.b[half]);",
        "d[c] += pair(left.a[2 * half], right.b[half]);\n        if (WRONG) d[c] = detail::low_half(detail::two_halves(d[c], 0));", MMA),
    "transpose_8x8: not transposed": ("return element(column, row) |", "if (WRONG) return v;\n  return element(column, row) |", ("transpose_8x8",)),
}


def write(fibers, out):
    out.mkdir(parents=True, exist_ok=True)
    for header in fibers.glob("*.hpp"):
        text = header.read_text()
        if header.name == "dialect.hpp":
            for number, (place, instead, _) in enumerate(PLANTED.values(), 1):
                if text.count(place) != 1:
                    sys.exit(f"{header}: {place!r} is not there once")
                text = text.replace(place, instead.replace("WRONG", f"planted_bug == {number}"))
            begin = "namespace kvcondense::cuda {\n"
            text = text.replace(begin, begin + '\ninline const int planted_bug = std::atoi(std::getenv("PLANTED"));\n', 1)
        (out / header.name).write_text(text)


def wrong_wrappers(program, expected):
    for number, (name, (_, _, lines)) in enumerate([("none", ("", "", ())), *PLANTED.items()]):
        for arguments in conformance.RUNS:
            if arguments[-1] == "early" and name.startswith(("copy_async_", "copy_async: nothing")):
                continue  # copies that land at once need no wait
            got, said = conformance.run(program, arguments, dict(os.environ, PLANTED=str(number)))
            found = set(conformance.differences(expected, got))
            if said or found != set(lines):
                yield f"{name} {' '.join(arguments)}: differs in {sorted(found)}, not in {sorted(lines)}\n{said}"
    for w in sorted({line.split("/")[0] for line in expected} - {name.split(":")[0] for name in PLANTED}):
        yield f"{w}: is never wrong here"


def wrong_files(expected, include):
    line, value = next(iter(expected.items()))
    for what, changed in (("a wrong hash", expected | {line: value[::-1]}), ("a line too few", {k: v for k, v in expected.items() if k != line}),
                          ("a line too many", expected | {"more": value})):
        if len(conformance.differences(expected, changed)) != 1 or len(conformance.differences(changed, expected)) != 1:
            yield f"{what} in the file: not found"
    dialect, twin = (include / conformance.DIALECT).read_text(), conformance.TWIN.read_text()
    users = ["\n".join(conformance.wrappers(dialect))]
    more = "\n__device__ __forceinline__ float more(float x) { return x; }\n"
    for what, texts in (("a new wrapper", (dialect + more, twin + more, expected, users + ["more"])), ("one without a twin", (dialect + more, twin, [*expected, "more"], users + ["more"])),
                        ("a twin alone", (dialect, twin + "\ninline float more(float x) { return x; }\n", expected, users)), ("a line of none", (dialect, twin, [*expected, "more/1"], users)),
                        ("one that nobody uses", (dialect + more, twin + more, [*expected, "more"], users))):
        if len(found := conformance.names_wrong(*texts)) != 1 or not found[0].startswith("more: "):
            yield f"{what}: found {found}"
    if found := conformance.names_wrong(dialect, twin, expected, users):
        yield f"nothing wrong: found {found}"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("write", "check"))
    parser.add_argument("paths", type=Path, nargs="+")
    parser.add_argument("--include", type=Path)
    options = parser.parse_args()
    if options.what == "write":
        return write(*options.paths)
    expected = conformance.parse(conformance.FILE.read_text())
    bad = [*wrong_wrappers(options.paths[0], expected), *wrong_files(expected, options.include)]
    print("\n".join(bad) if bad else f"{len(PLANTED)} wrong wrappers, each found in its lines alone")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
