#!/usr/bin/env python3
"""Lines and branches of include/ that the tests of some rooms reach, measured with clang.

    tests/coverage/coverage.py ROOM... [--test EXPRESSION] [--under TEXT ...] [--library FILE] [--together N] [--list] [--save FILE]
    tests/coverage/coverage.py --join FILE... [--under TEXT ...] [--list]
    tests/coverage/coverage.py --build-library FILE

Compiles the tests of the rooms without optimization, N files as one (what they include is parsed once; a file that cannot share is compiled
alone), runs them, and adds up what they reached. Counts the headers of include/kvcondense/ROOM, and those whose path contains a TEXT.
`--test`: only tests in whose name this expression is found. `--save` keeps what was reached, in all of include/; `--join` adds up such files without running
anything, over all of include/ that runs on a CPU, so that rooms can be measured one by one. A header that was changed after it was saved is
named, and what was saved of it left out. `--build-library` compiles src/any so that what its instances of templates reach counts, too: it
is a FILE for `--library`. `--list` names the lines that nothing reached, and the conditions that were never true (T) or never false (F), as line:column.

A branch is one outcome of one condition as it stands in the text: of `a && b` there are four. It is taken where any instance of a template
takes it. No branches: conditions that the compiler knows (`if constexpr`, constants of a template), asserts, a `switch` that finds no case. Code
of templates that no test instantiates is not in any program, and so in no figure.
"""

import argparse
import hashlib
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


COUNTED = ["-fprofile-instr-generate", "-fcoverage-mapping"]


class Bench:
    def __init__(self, options, folder):
        self.options, self.folder, self.runs, self.main = options, Path(folder), 0, []

    def compile_main(self):
        for source in ("catch_main", "oracle"):
            self.main.append(self.folder / f"{source}.o")
            subprocess.run([*self.compiler(), "-c", ROOT / f"tests/support/{source}.cpp", "-o", self.main[-1]], check=True)

    def build_library(self, archive):
        objects = []
        for source in sorted([*(ROOT / "src/any").glob("*.cpp"), *(ROOT / "src/c").glob("*.cpp")]):
            objects.append(self.folder / f"{source.stem}.o")
            subprocess.run([*self.compiler(), "-DKVCONDENSE_COMPILED_KERNELS=1", *COUNTED, "-c", source, "-o", objects[-1]], check=True)
        subprocess.run(["ar", "rcs", archive, *objects], check=True)

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
        launcher = self.options.launcher.split()
        steps = [[*self.compiler(), f"-I{tests[0].parent}", *COUNTED, "-c", source, "-o", work / "tests.o"],
                 [*launcher, self.options.compiler, "-fprofile-instr-generate", "-pthread", work / "tests.o", *self.main,
                  *([self.options.library] if self.options.library else []), "-o", program],
                 [*launcher, program],
                 ["llvm-profdata", "merge", "-sparse", "default.profraw", "-o", "counters"]]
        for step in steps:
            done = subprocess.run(step, cwd=work, capture_output=True, text=True)
            if done.returncode != 0:
                ran = step == [*launcher, program]
                if len(tests) == 1 or ran:
                    print(f"{', '.join(t.name for t in tests)}: {done.stdout[-2000:]}{done.stderr[-2000:]}", file=sys.stderr)
                if not ran:
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
    """(header, (line, column), how often true, how often false) of every condition of every instance; no numbers where the compiler knew it."""
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
                    yield header, start, None, None
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


def code_of(header):
    """Lines that hold more than a comment: the compiler counts what lies between two statements as well."""
    text = (INCLUDE / header).read_text().splitlines()
    return {number for number, line in enumerate(text, 1) if line.split("//")[0].strip()}


def text_of(header):
    return hashlib.sha256((INCLUDE / header).read_bytes()).hexdigest()


class Reached:
    """What was reached in each header: {line: how often} and {(line, column): (how often true, how often false)}."""

    def __init__(self):
        self.lines, self.branches = defaultdict(lambda: defaultdict(int)), defaultdict(lambda: defaultdict(lambda: (0, 0)))
        self.known = defaultdict(set)  # conditions that the compiler knew wherever they were passed

    def add_line(self, header, line, count):
        self.lines[header][line] += count

    def add_branch(self, header, where, yes, no):
        if yes is None:
            self.known[header].add(where)
            return
        was = self.branches[header][where]
        self.branches[header][where] = (was[0] + yes, was[1] + no)

    def add_program(self, program, counters):
        for found in lines_of(program, counters):
            self.add_line(*found)
        for found in branches_of(program, counters):
            self.add_branch(*found)

    def save(self, path):
        headers = {h: {"text": text_of(h), "lines": list(self.lines[h].items()),
                       "branches": [(*where, *taken) for where, taken in self.branches[h].items()],
                       "known": list(self.known[h])} for h in self.lines}
        Path(path).write_text(json.dumps(headers))

    def join(self, path):
        for header, saved in json.loads(Path(path).read_text()).items():
            if not (INCLUDE / header).exists() or saved["text"] != text_of(header):
                print(f"{path}: {header} was changed, and is left out", file=sys.stderr)
                continue
            for found in saved["lines"]:
                self.add_line(header, *found)
            for line, column, yes, no in saved["branches"]:
                self.add_branch(header, (line, column), yes, no)
            self.known[header].update(map(tuple, saved.get("known", [])))

    def report(self, counts, named):
        total, rooms = [0, 0, 0, 0], defaultdict(lambda: [0, 0, 0, 0])
        for header in sorted(filter(counts, self.lines)):
            code, skipped = code_of(header), not_counted(header)
            lines = {n: c for n, c in self.lines[header].items() if n in code}
            known = {k for k in self.known[header] if self.branches[header].get(k, (0, 0)) == (0, 0)}
            taken = {k: c for k, c in self.branches[header].items() if k[0] not in skipped and k not in skipped | known}
            row = [sum(c > 0 for c in lines.values()), len(lines), sum((t > 0) + (f > 0) for t, f in taken.values()), 2 * len(taken)]
            for sums in (total, rooms[header.split("/")[0]]):
                sums[:] = [a + b for a, b in zip(sums, row)]
            missed = sorted(n for n, c in lines.items() if c == 0)
            half = sorted((*k, "TF" if t + f == 0 else "T" if t == 0 else "F")
                          for k, (t, f) in taken.items() if min(t, f) == 0 and k[0] not in missed)
            print(f"{header:44} lines {row[0]:4}/{row[1]:4}  branches {row[2]:4}/{row[3]:4}")
            if named and missed:
                print(f"    never: {' '.join(map(str, missed))}")
            if named and half:
                print(f"    one way: {' '.join(f'{line}:{column}{which}' for line, column, which in half)}")
        for name, row in [*(rooms.items() if len(rooms) > 1 else []), ("all", total)]:
            print(f"{name:44} lines {row[0]}/{row[1]} = {100 * row[0] / max(row[1], 1):.1f} %  "
                  f"branches {row[2]}/{row[3]} = {100 * row[2] / max(row[3], 1):.1f} %")


def measure(options, reached):
    """Adds up what the tests of the rooms reach; how many programs did not compile."""
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(options, folder)
        bench.compile_main()
        for room in options.rooms:
            tests = sorted(t for t in (ROOT / "tests" / room).glob("*_test.cpp") if re.search(options.test, t.stem))
            for at in range(0, len(tests), options.together):
                part = tests[at:at + options.together]
                done = [bench.measure(part)]
                if done[0] is None and len(part) > 1:
                    done = [bench.measure([test]) for test in part]
                failed += done.count(None)
                for result in filter(None, done):
                    reached.add_program(*result)
                if options.save:
                    reached.save(options.save)  # after each part: a run that is stopped keeps what it has
    return failed


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("rooms", nargs="*")
    parser.add_argument("--test", default="")
    parser.add_argument("--under", action="append", default=[])
    parser.add_argument("--compiler", default="clang++")
    parser.add_argument("--launcher", default="")
    parser.add_argument("--library", default="")
    parser.add_argument("--build-library", default="")
    parser.add_argument("--together", type=int, default=8)
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--save", default="")
    parser.add_argument("--join", nargs="+", default=[])
    options = parser.parse_args()
    if options.library:
        options.library = str(Path(options.library).resolve())
    if options.build_library:
        with tempfile.TemporaryDirectory() as folder:
            Bench(options, folder).build_library(Path(options.build_library).resolve())
        return 0
    reached = Reached()
    failed = measure(options, reached) if options.rooms else 0
    for path in options.join:
        reached.join(path)
    under = [*(f"{room}/" for room in options.rooms), *options.under]
    on_cpu = lambda header: not header.startswith("backend/cuda/") and not header.endswith(".cuh")
    reached.report(lambda header: any(u in header for u in under) if under else on_cpu(header), options.list)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
