#!/usr/bin/env python3
"""Lines and branches of include/ that the tests of some rooms reach, measured with gcov.

    tests/coverage/coverage.py ROOM... [--under TEXT ...] [--library FILE] [--list]

Compiles each test of the rooms alone, without optimization, runs it, and adds up what every instance of a template reached. Counts the
headers of include/kvcondense/ROOM, and those whose path contains a TEXT. `--list` names the lines that nothing reached, and those
with a branch that was never taken. Branches into exceptions are not counted: the library throws none. Code of templates that no test
instantiates is not in any program, and so in no figure.
"""

import argparse
import gzip
import json
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def measure(test, options, folder):
    """The JSON of gcov for one test, or None where it fails."""
    work = Path(folder) / test.stem
    work.mkdir()
    base = [*options.launcher.split(), options.compiler, "-std=c++20", "-O0", "-w", "-ffp-contract=off", f"-I{ROOT}/include", f"-I{ROOT}/tests",
            f"-I{ROOT}/bench", "-isystem", "/usr/include/eigen3", f'-DKVCONDENSE_TEST_DATA="{ROOT}/tests"', f'-DKVCONDENSE_SOURCE_DIR="{ROOT}"']
    if options.library:
        base.append("-DKVCONDENSE_COMPILED_KERNELS=1")
    program = work / "program"
    steps = [[*base, "--coverage", "-fno-inline", "-c", test, "-o", work / "test.o"],
             [options.compiler, "--coverage", "-pthread", work / "test.o", *options.main, *([options.library] if options.library else []), "-o", program],
             [program]]
    for step in steps:
        done = subprocess.run(step, cwd=work, capture_output=True, text=True)
        if done.returncode != 0:
            print(f"{test}: {done.stdout[-2000:]}{done.stderr[-2000:]}", file=sys.stderr)
            return None
    subprocess.run(["gcov", "-j", "-b", "test.gcda"], cwd=work, capture_output=True, check=True)
    return json.loads(gzip.open(next(work.glob("*.gcov.json.gz"))).read())


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("rooms", nargs="+")
    parser.add_argument("--under", action="append", default=[])
    parser.add_argument("--compiler", default="g++")
    parser.add_argument("--launcher", default="")
    parser.add_argument("--library", default="")
    parser.add_argument("--list", action="store_true")
    options = parser.parse_args()
    lines = defaultdict(lambda: defaultdict(int))  # header: line: how often
    branches = defaultdict(dict)                   # header: (line, of how many, number): how often
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        options.main = []
        for source in ("catch_main", "oracle"):
            options.main.append(Path(folder) / f"{source}.o")
            subprocess.run([*options.launcher.split(), options.compiler, "-std=c++20", "-O0", "-w", f"-I{ROOT}/tests",
                            f'-DKVCONDENSE_TEST_DATA="{ROOT}/tests"', "-c", ROOT / f"tests/support/{source}.cpp", "-o", options.main[-1]], check=True)
        for room in options.rooms:
            for test in sorted((ROOT / "tests" / room).glob("*_test.cpp")):
                report = measure(test, options, folder)
                failed += report is None
                for file in report["files"] if report else []:
                    path = (Path(folder) / file["file"]).resolve()
                    if ROOT / "include" not in path.parents:
                        continue
                    header = str(path.relative_to(ROOT / "include/kvcondense"))
                    if not any(header.startswith(r + "/") for r in options.rooms) and not any(u in header for u in options.under):
                        continue
                    for line in file["lines"]:
                        lines[header][line["line_number"]] += line["count"]
                        taken = [b for b in line.get("branches", []) if not b.get("throw")]
                        for i, b in enumerate(taken):
                            key = (line["line_number"], len(taken), i)
                            branches[header][key] = branches[header].get(key, 0) + b["count"]
    total = [0, 0, 0, 0]
    for header in sorted(lines):
        # Instances of a template whose branches are other ones are told apart by their number: the largest speaks for the line.
        most = {n: max(k[1] for k in branches[header] if k[0] == n) for n, _, _ in branches[header]}
        taken = {k: c for k, c in branches[header].items() if k[1] == most[k[0]]}
        row = [sum(c > 0 for c in lines[header].values()), len(lines[header]), sum(c > 0 for c in taken.values()), len(taken)]
        total = [a + b for a, b in zip(total, row)]
        missed = sorted(n for n, c in lines[header].items() if c == 0)
        half = sorted({k[0] for k, c in taken.items() if c == 0} - set(missed))
        print(f"{header:44} lines {row[0]:4}/{row[1]:4}  branches {row[2]:4}/{row[3]:4}")
        if options.list and missed:
            print(f"    never: {' '.join(map(str, missed))}")
        if options.list and half:
            print(f"    one way: {' '.join(map(str, half))}")
    print(f"{'all':44} lines {total[0]}/{total[1]} = {100 * total[0] / max(total[1], 1):.1f} %  "
          f"branches {total[2]}/{total[3]} = {100 * total[2] / max(total[3], 1):.1f} %")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
