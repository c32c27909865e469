#!/usr/bin/env python3
"""Does an emulation find every planted bug?

    planted.py PROGRAM KIND      KIND: plain, address or thread, how the program was built

Runs PROGRAM (planted.cpp) with every bug, in order and in a random order, with copies that land late and at
once. A table says what must be printed and in which runs; in the others the run may also be right. Without a
bug every run must be right and quiet.
"""

import os
import re
import subprocess
import sys

RUNS = (["0"], ["3"], ["0", "early"], ["3", "early"])
LATE, EARLY = (0, 1), (2, 3)
ALL = LATE + EARLY

RACE = "ThreadSanitizer: data race"
WRONG = "wrong result"
OVERRUN = "heap-buffer-overflow"

# bug -> kind of build -> (what is said, the runs that must say it); "any" holds for kinds not named
EXPECTED = {
    "no_copy_wait": {"any": (WRONG, LATE)},
    "weak_copy_wait": {"any": (WRONG, LATE)},
    "no_sync_after_wait": {"thread": (RACE, ALL), "any": (WRONG, ALL)},
    "no_sync_before_refill": {"thread": (RACE, EARLY), "any": (WRONG, EARLY)},
    "no_sync_before_merge": {"thread": (RACE, ALL), "any": (WRONG, ALL)},
    "no_sync_between_merges": {"thread": (RACE, ALL), "any": (WRONG, ())},
    "barrier_in_branch": {"any": ("in __syncthreads of different lines|deadlock", ALL)},
    "two_barriers": {"any": ("in __syncthreads of different lines", ALL)},
    "shuffle_in_branch": {"any": ("lanes meet in different warp operations", ALL)},
    "mask_without_me": {"any": ("whose mask does not name it", ALL)},
    "source_outside_mask": {"any": ("reads a lane that its mask does not name|different warp operations", ALL)},
    "exit_with_copy": {"any": ("exits with cp.async copies in flight", ALL)},
    "unaligned_copy": {"any": ("cp.async of bytes that are not aligned", ALL)},
    "shared_overrun": {"address": (OVERRUN, ALL), "any": (WRONG, ALL)},
    "global_overrun": {"address": (OVERRUN, ALL), "any": (WRONG, ALL)},
    "no_tail_mask": {"any": (WRONG, ALL)},
}


def run(program, bug, options):
    env = dict(os.environ, TSAN_OPTIONS="exitcode=66")
    done = subprocess.run([program, bug, *options], env=env, text=True, errors="replace",
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=120)
    return done.returncode, done.stdout


def main():
    program, kind = sys.argv[1:]
    names = subprocess.run([program], text=True, stdout=subprocess.PIPE).stdout.split()
    bad = [f"no expectation for {n}" for n in names if n not in EXPECTED and n != "none"]
    bad += [f"{n} is not in the program" for n in EXPECTED if n not in names]
    found = 0
    for name in names:
        said, where = EXPECTED.get(name, {}).get(kind) or EXPECTED.get(name, {}).get("any", ("", ()))
        for i, options in enumerate(RUNS):
            code, text = run(program, name, options)
            shown = f"{name} {' '.join(options)}: exit {code}\n{text[-1500:]}"
            if name == "none" and (code != 0 or text != "right\n"):
                bad.append(f"a bug where there is none: {shown}")
            if i in where and (code == 0 or not re.search(said, text)):
                bad.append(f"not found: {shown}")
            found += i in where
    print("\n".join(bad) if bad else f"{len(names) - 1} bugs, {found} runs of {4 * len(names)} had to find theirs")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
