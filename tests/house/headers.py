#!/usr/bin/env python3
"""Compiles every header alone, twice in one file, with each compiler, and says what each costs.

    headers.py --root DIR [--compiler g++ --compiler clang++] [--limit SECONDS] [--together]

What a header forgot to include one compiler tells as well as another, so a second one may read them all `--together`, in one file.
"""

import argparse
import concurrent.futures
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

# What needs Eigen pays for Eigen; no header that a cache needs includes it.
EIGEN, EIGEN_LIMIT = "kvcondense/lowrank/fit/", 60.0

FLAGS = ["-std=c++20", "-fsyntax-only", "-Wall", "-Wextra", "-Wpedantic", "-Wshadow", "-Wconversion",
         "-Werror"]


def compile_alone(compiler, include, system, headers, folder):
    """Returns (what the compiler said or None, CPU seconds)."""
    stem = f"{headers[0].replace('/', '_')}.{Path(compiler).name}"
    source = Path(folder) / f"{stem}.cpp"
    source.write_text("".join(f"#include <{h}>\n" for h in 2 * headers))
    output = Path(folder) / f"{stem}.log"
    with output.open("wb") as log:
        process = subprocess.Popen([compiler, *FLAGS, "-I", str(include), *system, str(source)],
                                   stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        _, status, used = os.wait4(process.pid, 0)  # CPU time, so that a busy machine is no excuse
    process.returncode = os.waitstatus_to_exitcode(status)
    said = None if process.returncode == 0 else output.read_text(errors="replace") or "no output"
    return said, used.ru_utime + used.ru_stime


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, default=Path(__file__).resolve().parents[2])
    parser.add_argument("--compiler", action="append", default=[])
    parser.add_argument("--system", action="append", default=[], help="folder of a library's headers, such as Eigen's")
    parser.add_argument("--limit", type=float, default=8.0, help="CPU seconds one header may take")
    parser.add_argument("--together", action="store_true")
    options = parser.parse_args()

    compilers = [c for c in options.compiler or ["g++", "clang++"] if shutil.which(c)]
    if not compilers:
        print("no compiler found")
        return 1
    include = options.root.resolve() / "include"
    system = [word for folder in options.system for word in ("-isystem", folder)]
    headers = sorted(p.relative_to(include).as_posix() for p in include.rglob("*.hpp"))
    device = sum(1 for _ in include.rglob("*.cuh"))
    print(f"{len(headers)} headers with {', '.join(compilers)}; {device} .cuh headers not compiled here")
    if not headers:
        return 1

    costs, failed, slow = [], 0, 0
    with tempfile.TemporaryDirectory() as folder, \
            concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        files = [headers] if options.together else [[h] for h in headers]
        jobs = [(f, c, pool.submit(compile_alone, c, include, system, f, folder))
                for f in files for c in compilers]
        for file, compiler, job in jobs:
            header = file[0] if len(file) == 1 else "all headers together"
            said, seconds = job.result()
            costs.append((seconds, header, compiler))
            if said is not None:
                failed += 1
                print(f"FAILED {header} with {compiler}:\n{said[:4000]}")
            eigen = any(h.startswith(EIGEN) for h in file)
            limit = max(options.limit, EIGEN_LIMIT) if eigen else options.limit
            if seconds > limit:
                slow += 1
                print(f"SLOW {header} with {compiler}: {seconds:.1f} s of {limit:.1f} s")
    print("slowest:")
    for seconds, header, compiler in sorted(costs, reverse=True)[:5]:
        print(f"  {seconds:5.2f} s  {header}  {compiler}")
    print(f"{failed} failed, {slow} over the limit")
    return 1 if failed or slow else 0


if __name__ == "__main__":
    sys.exit(main())
