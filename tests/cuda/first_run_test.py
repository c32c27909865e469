#!/usr/bin/env python3
"""Does first_run.sh run what it says, in its order, and say what went wrong?

    first_run_test.py --conformance PROGRAM --bench PROGRAM    both run without a GPU: their PTX is interpreted

Tools that only a machine with a GPU has, and the tests of the backend, are stand-ins here: they write down how they were called,
and run the program that they were given.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

SCRIPT = Path(__file__).resolve().with_name("first_run.sh")
TINY = "--sizes 1x128 --rounds 1 --bytes 1000 --flush 1000"
CHECKERS = ("memcheck", "racecheck", "synccheck", "initcheck")
STAND_INS = {
    "compute-sanitizer": 'test "$3" = --error-exitcode && shift 4 && exec "$@"',
    "ncu": 'test "$1" = --import && exit; while [ "$1" != --export ]; do shift; done; touch "$2.ncu-rep"; shift 2; exec "$@"',
    "backend_tests": "echo passed",
    "broken": "echo this went wrong; exit 3",
    "missing_gpu": "exit 2",
}


def run(folder, arguments=(), **programs):
    path = f"{folder}:{os.environ['PATH']}"
    done = subprocess.run(["bash", str(SCRIPT), "none", f"{folder}/out", *arguments], text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          env=dict(os.environ, PATH=path, BENCH_OPTIONS=TINY, STEP_SECONDS="240", **programs), timeout=900)
    return done.returncode, done.stdout.splitlines()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--conformance", required=True)
    parser.add_argument("--bench", required=True)
    options = parser.parse_args()
    bad = []

    def expect(ok, what):
        if not ok:
            bad.append(str(what))

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for tool, does in STAND_INS.items():
            (folder / tool).write_text(f'#!/bin/sh\necho "{tool} $*" >>{folder}/calls\n{does}\n')
            (folder / tool).chmod(0o755)
        given = {"CONFORMANCE": options.conformance, "TESTS": str(folder / "backend_tests"), "BENCH": options.bench}
        code, said = run(folder, **given)
        expect(code == 0 and said[-1] == "0 of 9 steps went wrong", said)
        expect([line.split(":")[0] for line in said[:-1]] == ["conformance", "tests", *CHECKERS, "speed", "speed_f32", "profile"], said)
        calls = (folder / "calls").read_text().splitlines()
        checked = [c.split()[2] for c in calls if c.startswith("compute-sanitizer")]
        expect(checked == [c for c in CHECKERS for _ in range(2)], calls)
        expect(any(c.startswith("ncu") and "attend_halves" in c and options.bench in c for c in calls), calls)
        for step in ("speed", "speed_f32"):
            log = (folder / "out" / f"{step}.log").read_text()
            rows = [line for line in log.splitlines() if line.startswith("| ") and "%" in line]
            expect([r.split("|")[1].strip() for r in rows] == ["f16", "8 bits", "4 bits", "2 bits"] and "only read:" in log, log)

        code, said = run(folder, ("conformance", "speed"), **given | {"CONFORMANCE": str(folder / "missing_gpu"), "BENCH": str(folder / "broken")})
        expect(code != 0 and said[0] == "conformance: FAILED, exit 1" and "speed: FAILED, exit 3" in said and "    this went wrong" in said
               and said[-1] == "2 of 2 steps went wrong", said)
        code, said = run(folder, ("tests",), **given | {"TESTS": str(folder / "nothing")})
        expect(code != 0 and said[0] == "tests: a program is not there", said)
    print("\n".join(bad) if bad else "steps run in their order, and failures are said")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
