#!/usr/bin/env python3
"""Do the wrappers of backend/cuda/dialect.cuh do the same in an emulation, in another, and on a device?

    conformance.py --include DIR PROGRAM [--fibers] [--write]

PROGRAM (conformance.cpp, built in whatever way) prints a line per wrapper, or per case of one, with a hash of its results;
conformance.txt has the lines that it must print. --fibers: PROGRAM is host C++, and is run in several orders. --write writes
conformance.txt anew. A wrapper without a line, a line without a wrapper, a wrapper that emulation lacks and one that no
header uses are failures too.
"""

import argparse
import re
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
FILE = HERE / "conformance.txt"
DIALECT = "kvcondense/backend/cuda/dialect.cuh"
TWIN = HERE.parents[1] / "cuda_emulation" / "fibers" / "dialect.hpp"
RUNS = (["0"], ["3"], ["0", "early"], ["3", "early"])
HEAD = "# wrapper[/case] of backend/cuda/dialect.cuh, and a hash of what it must do; written by conformance.py --write\n"


def wrappers(text):
    """The functions of namespace kvcondense::cuda, not of its detail."""
    text = re.sub(r"^namespace detail \{.*?^\}  // namespace detail$", "", text, flags=re.M | re.S)
    return set(re.findall(r"^(?!template|namespace|#|//)[\w:][\w:<> ]*[ *&]+(\w+)\(", text, re.M))


def names_wrong(dialect, twin, lines, headers):
    """What is wrong with the names; texts of both dialects and of the headers that use them, and the program's lines."""
    ours, theirs, tried = wrappers(dialect), wrappers(twin), {line.split("/")[0] for line in lines}
    used = {word for text in headers for word in re.findall(r"\w+", text)}
    bad = [] if ours else ["no wrappers found in dialect.cuh"]
    bad += [f"{w}: the twin in emulation lacks it" for w in sorted(ours - theirs)]
    bad += [f"{w}: only the twin in emulation has it" for w in sorted(theirs - ours)]
    bad += [f"{w}: no line of the program tries it" for w in sorted(ours - tried)]
    bad += [f"{w}: a line of the program, but no wrapper" for w in sorted(tried - ours)]
    return bad + [f"{w}: no header uses it" for w in sorted(ours - used)]


def parse(text):
    return dict(line.split() for line in text.splitlines() if line and not line.startswith("#"))


def differences(expected, got):
    """{line: what is wrong with it}"""
    bad = {line: f"{got[line]}, not {expected[line]}" for line in expected if line in got and got[line] != expected[line]}
    bad |= {line: "in conformance.txt, but not printed" for line in expected if line not in got}
    return bad | {line: "printed, but not in conformance.txt" for line in got if line not in expected}


def run(program, options=(), environment=None):
    """Lines with hashes, and what went wrong."""
    done = subprocess.run([str(program), *options], env=environment, text=True, errors="replace", stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, timeout=300)
    if done.returncode != 0:
        return {}, f"{program} {' '.join(options)}: exit {done.returncode}\n{done.stdout[-500:]}{done.stderr[-1500:]}"
    return parse(done.stdout), ""


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("program", type=Path)
    parser.add_argument("--include", required=True, type=Path)
    parser.add_argument("--fibers", action="store_true")
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    bad, printed = [], []
    for arguments in RUNS if options.fibers else ([],):
        lines, said = run(options.program, arguments)
        bad += [said] if said else []
        printed.append((arguments, lines))
    dialect = options.include / DIALECT
    headers = [p.read_text() for p in sorted(options.include.rglob("*.cuh")) if p != dialect]
    bad += names_wrong(dialect.read_text(), TWIN.read_text(), printed[0][1], headers)
    expected = printed[0][1] if options.write else parse(FILE.read_text())
    for arguments, lines in printed:
        bad += [f"{line} {' '.join(arguments)}: {what}" for line, what in differences(expected, lines).items()]
    if options.write and not bad:
        FILE.write_text(HEAD + "".join(f"{line} {value}\n" for line, value in expected.items()))
    print("\n".join(bad) if bad else f"{len(expected)} lines as in conformance.txt")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
