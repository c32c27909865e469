#!/usr/bin/env python3
"""One file, two lives: plain it compiles; with -DKVCONDENSE_EXPECT_FAIL it stops with our sentences.

    must_not_compile.py --compiler g++ --include DIR cases.cpp

Each case of the file has a line "// EXPECT: sentence"; all of them must be said by errors, each as many times as it stands there.
"""

import argparse
import re
import subprocess
import sys
from pathlib import Path


def compile_it(compiler, includes, source, *more):
    command = [compiler, "-std=c++20", "-fsyntax-only", "-ffp-contract=off"]
    command += ["-ferror-limit=0"] if "clang" in Path(compiler).name else ["-fmax-errors=0"]
    command += [f"-I{folder}" for folder in includes] + [*more, str(source)]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    return done.returncode == 0, done.stdout + done.stderr


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--compiler", default="g++")
    parser.add_argument("--include", action="append", default=[])
    parser.add_argument("source", type=Path)
    options = parser.parse_args()

    sentences = re.findall(r"^\s*//\s*EXPECT:\s*(.+?)\s*$", options.source.read_text(), re.M)
    if not sentences:
        print(f"{options.source}: no line '// EXPECT: sentence'")
        return 1
    compiles, said = compile_it(options.compiler, options.include, options.source)
    if not compiles:
        print(f"{options.source}: without the flag it must compile, but:\n{said}")
        return 1
    compiles, said = compile_it(options.compiler, options.include, options.source,
                                "-DKVCONDENSE_EXPECT_FAIL")
    if compiles:
        print(f"{options.source}: compiles with KVCONDENSE_EXPECT_FAIL; nothing was refused")
        return 1
    errors = [line for line in said.splitlines() if "error:" in line]
    missing = [s for s in sorted(set(sentences)) if sum(s in e for e in errors) < sentences.count(s)]
    for sentence in missing:
        print(f"{options.source}: the compiler does not say the sentence as often\n  {sentence}\nbut:\n{said}")
    print(f"{options.source.name}: {len(sentences)} cases")
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
