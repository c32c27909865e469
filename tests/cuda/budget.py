#!/usr/bin/env python3
"""Compiles every kernel for every architecture, warnings as errors, and checks what ptxas says of it.

    budget.py --nvcc NVCC --include DIR... [--architecture 80]... [--keep FOLDER] [--write]

budget.txt has a line per kernel: its name, the registers it may be given on each architecture, and where it has any the bytes of a
stack frame (arrays that are indexed by what only the device knows) on the worst of them. Registers are given out in
eights: what ptxas uses of the last eight moves when a function elsewhere does, and changes nothing. A kernel that is given
more of either, that spills, that has static shared memory, that has no line, or a line without a kernel, is a failure. --write writes
the file anew. --keep leaves the machine code in a folder, for sass.py.
"""

import argparse
import concurrent.futures
import re
import subprocess
import sys
import tempfile
import typing
from pathlib import Path

HERE = Path(__file__).resolve().parent
ARCHITECTURES = ("80", "90a", "100")
GIVEN_TOGETHER = 8
TYPES = ("kvcondense::", "prim::", "cuda_kernels::", "cuda::")


class Use(typing.NamedTuple):
    """Of a kernel on an architecture: registers that it is given, bytes."""
    registers: int
    shared: int
    spilled: int
    stack: int


def short(name):
    """attend_piece<GroupInt<4>, GroupInt<4>> of the demangled signature."""
    name = re.sub(r"^void ", "", name)
    depth, end = 0, len(name)
    for i, c in enumerate(name):
        depth += (c == "<") - (c == ">")
        if c == "(" and depth == 0 and not name.startswith("(anonymous", i):
            end = i
            break
    name = name[:end]
    for t in TYPES:
        name = name.replace(t, "")
    return re.sub(r"\((?:int|bool)\)", "", name).replace(" ", "")


def compile_for(nvcc, includes, architecture, keep):
    """What nvcc said, and {kernel: what it uses}."""
    command = [nvcc, "-std=c++20", "-O3", "-Werror", "all-warnings", "-Xptxas", "-v",
               "-gencode", f"arch=compute_{architecture},code=sm_{architecture}", "-cubin"]
    command += [f"-I{i}" for i in includes] + (["-lineinfo"] if keep else [])
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run([*command, str(HERE / "kernels.cu"), "-o", f"{keep or folder}/sm_{architecture}.cubin"], text=True,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if done.returncode != 0:
        return done.stdout, {}
    names = re.findall(r"Compiling entry function '(\w+)'", done.stdout)
    filt = Path(nvcc).resolve().with_name("cu++filt")
    shown = subprocess.run([str(filt) if filt.exists() else "c++filt"], input="\n".join(names), text=True,
                           stdout=subprocess.PIPE, check=True).stdout.split("\n")
    kernels, name = {}, None
    demangled = dict(zip(names, shown))
    for line in done.stdout.split("\n"):
        if match := re.search(r"Compiling entry function '(\w+)'", line):
            name = short(demangled[match[1]])
        if match := re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", line):
            stack, spilled = int(match[1]), int(match[2]) + int(match[3])
            if name in kernels:  # of a function that it calls
                kernels[name] = kernels[name]._replace(spilled=kernels[name].spilled + spilled, stack=kernels[name].stack + stack)
        if match := re.search(r"Used (\d+) registers", line):
            shared = re.search(r"(\d+) bytes smem", line)
            kernels[name] = Use(-(-int(match[1]) // GIVEN_TOGETHER) * GIVEN_TOGETHER, int(shared[1]) if shared else 0, spilled, stack)
    return "", kernels


def read_budget(path):
    lines = [l.split() for l in path.read_text().split("\n") if l and not l.startswith("#")] if path.exists() else []
    return {words[0]: dict(zip((*ARCHITECTURES, "stack"), map(int, words[1:]))) for words in lines}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nvcc", required=True)
    parser.add_argument("--include", action="append", default=[])
    parser.add_argument("--architecture", action="append", default=[], choices=ARCHITECTURES)
    parser.add_argument("--keep", type=Path)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    path = HERE / "budget.txt"
    budget, used, bad = read_budget(path), {}, []
    asked = options.architecture or list(ARCHITECTURES)
    if options.keep:
        options.keep.mkdir(parents=True, exist_ok=True)
    with concurrent.futures.ThreadPoolExecutor(len(asked)) as pool:
        done = list(pool.map(lambda a: compile_for(options.nvcc, options.include, a, options.keep), asked))
    for architecture, (said, kernels) in zip(asked, done):
        if said:
            bad.append(f"sm_{architecture} does not compile:\n{said}")
            continue
        for kernel, (registers, shared, spilled, stack) in kernels.items():
            use = used.setdefault(kernel, {"stack": 0})
            use[architecture], use["stack"] = registers, max(use["stack"], stack)
            if spilled:
                bad.append(f"sm_{architecture} {kernel}: {spilled} bytes spilled")
            if shared:  # dyn_smem has all of it, where emulation poisons and guards it
                bad.append(f"sm_{architecture} {kernel}: {shared} bytes of static shared memory")
            allowed = budget.get(kernel, {}).get(architecture, 0)
            if registers > allowed and not options.write:
                bad.append(f"sm_{architecture} {kernel}: {registers} registers, budget {allowed}")
            if stack > budget.get(kernel, {}).get("stack", 0) and not options.write:
                bad.append(f"sm_{architecture} {kernel}: a stack frame of {stack} bytes, budget {budget.get(kernel, {}).get('stack', 0)}")
        if not options.write:
            bad += [f"sm_{architecture} {kernel}: in budget.txt, but not compiled" for kernel in budget if kernel not in kernels]
    if options.write and not bad:
        rows = [f"{kernel} {' '.join(str(n[a]) for a in ARCHITECTURES)}{' ' + str(n['stack']) if n['stack'] else ''}" for kernel, n in sorted(used.items())]
        path.write_text("# kernel, the registers it may be given on sm_80 sm_90a sm_100, and bytes of its stack frame if it has one; written by budget.py --write\n"
                        + "\n".join(rows) + "\n")
    print("\n".join(bad) if bad else f"{len(used)} kernels on {', '.join('sm_' + a for a in asked)}: within budget, nothing spilled, no static shared memory")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
