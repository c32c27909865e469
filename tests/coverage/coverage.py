#!/usr/bin/env python3
"""Lines and branches of include/ that the tests of some rooms reach, measured with clang.

    tests/coverage/coverage.py ROOM... [--test TEXT] [--under TEXT ...] [--library FILE] [--together N] [--list]

Compiles the tests of the rooms without optimization, N files as one (what they include is parsed once; a file that cannot share is compiled
alone), runs them, and adds up what they reached. Counts the headers of include/kvcondense/ROOM, and those whose path contains a TEXT.
`--test`: only tests whose name contains it. `--list` names the lines that nothing reached, and the conditions that were never true (T) or never false (F), as line:column.

A branch is one outcome of one condition as it stands in the text: of `a && b` there are four. It is taken where any instance of a template
takes it. No branches: conditions that the compiler knows (`if constexpr`, constants of a template), asserts, a `switch` that finds no case. Code
of templates that no test instantiates is not in any program, and so in no figure.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))
from together import together  # noqa: E402
INCLUDE = ROOT / "include/kvcondense"


class Bench:
    def __init__(self, options, folder):
        self.options, self.folder, self.runs = options, Path(folder), 0
        self.main = []
        for source in ("catch_main", "oracle"):
            self.main.append(self.folder / f"{source}.o")
            subprocess.run([*self.compiler(), "-c", ROOT / f"tests/support/{source}.cpp", "-o", self.main[-1]], check=True)

    def compiler(self):
        library = ["-DKVCONDENSE_COMPILED_KERNELS=1"] if self.options.library else []
        return [*self.options.launcher.split(), self.options.compiler, "-std=c++20", "-O0", "-w", "-ffp-contract=off", f"-I{ROOT}/include",
                f"-I{ROOT}/tests", f"-I{ROOT}/examples", "-isystem", "/usr/include/eigen3", f'-DKVCONDENSE_TEST_DATA="{ROOT}/tests"',
                f'-DKVCONDENSE_SOURCE_DIR="{ROOT}"', *library]

    def measure(self, tests):
        """The program of these tests and the file of its counters, or None where it does not compile or fails."""
        self.runs += 1
        work = self.folder / f"run_{self.runs}"
        work.mkdir()
        source, program = work / "tests.cpp", work / "program"
        source.write_text(together(tests))
        steps = [[*self.compiler(), "-fprofile-instr-generate", "-fcoverage-mapping", "-c", source, "-o", work / "tests.o"],
                 [self.options.compiler, "-fprofile-instr-generate", "-pthread", work / "tests.o", *self.main,
                  *([self.options.library] if self.options.library else []), "-o", program],
                 [program],
                 ["llvm-profdata", "merge", "-sparse", "default.profraw", "-o", "counters"]]
        for step in steps:
            done = subprocess.run(step, cwd=work, capture_output=True, text=True)
            if done.returncode != 0:
                if len(tests) == 1 or step[0] == program:
                    print(f"{', '.join(t.name for t in tests)}: {done.stdout[-2000:]}{done.stderr[-2000:]}", file=sys.stderr)
                if step[0] != program:
                    return None
        return program, work / "counters"


def lines_of(program, counters):
    """(header, line, how often)."""
    out = subprocess.run(["llvm-cov", "export", "-format=lcov", "-skip-functions", f"-instr-profile={counters}", program], capture_output=True, text=True, check=True).stdout
    header = None
    for record in out.splitlines():
        if record.startswith("SF:"):
            path = Path(record[3:])
            header = str(path.relative_to(INCLUDE)) if INCLUDE in path.parents else None
        elif header and record.startswith("DA:"):
            line, count = record[3:].split(",")[:2]
            yield header, int(line), int(count)


def branches_of(program, counters):
    """(header, (line, column), how often true, how often false) of every condition of every instance that the compiler does not know."""
    out = subprocess.run(["llvm-cov", "export", "-format=text", f"-instr-profile={counters}", program], capture_output=True, check=True).stdout
    for function in json.loads(out)["data"][0]["functions"]:
        path = Path(function["filenames"][0])
        if INCLUDE not in path.parents:
            continue
        header = str(path.relative_to(INCLUDE))
        code = [r for r in function["regions"] if r[7] == 0 and r[5] == 0]
        for branch in function.get("branches", []):
            if branch[6] != 0:  # in a macro
                continue
            start = (branch[0], branch[1])
            if branch[4] == branch[5] == 0:
                around = [r for r in code if (r[0], r[1]) <= start and (branch[2], branch[3]) <= (r[2], r[3])]
                inner = min(around, key=lambda r: (r[2] - r[0], r[3] - r[1]), default=None)
                if inner is None or inner[4] > 0:  # passed, and neither true nor false: known when compiled
                    continue
            yield header, start, branch[4], branch[5]


def not_counted(header):
    """Lines of asserts and of `if constexpr`, functions that the compiler writes, and the way past all cases of a `switch`, as line and column."""
    skipped, depth = set(), 0
    for number, line in enumerate((INCLUDE / header).read_text().splitlines(), 1):
        if found := re.search(r"\bswitch \(", line):
            skipped.add((number, found.end() + 1))
        if depth == 0 and not re.match(r"\s*(assert\(|static_assert\()|.*\bif constexpr\b|.* = default;", line):
            continue
        skipped.add(number)
        if depth > 0 or re.match(r"\s*(static_)?assert\(", line):
            depth += line.count("(") - line.count(")")
    return skipped


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("rooms", nargs="+")
    parser.add_argument("--test", default="")
    parser.add_argument("--under", action="append", default=[])
    parser.add_argument("--compiler", default="clang++")
    parser.add_argument("--launcher", default="")
    parser.add_argument("--library", default="")
    parser.add_argument("--together", type=int, default=8)
    parser.add_argument("--list", action="store_true")
    options = parser.parse_args()
    if options.library:
        options.library = str(Path(options.library).resolve())
    lines = defaultdict(lambda: defaultdict(int))  # header: line: how often
    branches = defaultdict(dict)                   # header: (line, column): [true, false]
    failed = 0
    counts = lambda header: any(header.startswith(r + "/") for r in options.rooms) or any(u in header for u in options.under)
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(options, folder)
        for room in options.rooms:
            tests = sorted(t for t in (ROOT / "tests" / room).glob("*_test.cpp") if options.test in t.stem)
            for at in range(0, len(tests), options.together):
                part = tests[at:at + options.together]
                done = [bench.measure(part)]
                if done[0] is None and len(part) > 1:
                    done = [bench.measure([test]) for test in part]
                failed += done.count(None)
                for result in filter(None, done):
                    for header, line, count in lines_of(*result):
                        if counts(header):
                            lines[header][line] += count
                    for header, where, yes, no in branches_of(*result):
                        if counts(header):
                            was = branches[header].get(where, (0, 0))
                            branches[header][where] = (was[0] + yes, was[1] + no)
    total = [0, 0, 0, 0]
    for header in sorted(lines):
        skipped = not_counted(header)
        taken = {k: c for k, c in branches[header].items() if k[0] not in skipped and k not in skipped}
        row = [sum(c > 0 for c in lines[header].values()), len(lines[header]), sum((t > 0) + (f > 0) for t, f in taken.values()), 2 * len(taken)]
        total = [a + b for a, b in zip(total, row)]
        missed = sorted(n for n, c in lines[header].items() if c == 0)
        half = sorted((*k, "TF" if t + f == 0 else "T" if t == 0 else "F") for k, (t, f) in taken.items() if min(t, f) == 0 and k[0] not in missed)
        print(f"{header:44} lines {row[0]:4}/{row[1]:4}  branches {row[2]:4}/{row[3]:4}")
        if options.list and missed:
            print(f"    never: {' '.join(map(str, missed))}")
        if options.list and half:
            print(f"    one way: {' '.join(f'{line}:{column}{which}' for line, column, which in half)}")
    print(f"{'all':44} lines {total[0]}/{total[1]} = {100 * total[0] / max(total[1], 1):.1f} %  "
          f"branches {total[2]}/{total[3]} = {100 * total[2] / max(total[3], 1):.1f} %")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
