#!/usr/bin/env python3
"""Does an emulation find every planted bug?

    planted.py PROGRAM KIND      KIND: plain, address or thread, how the program was built; ptx: its PTX is interpreted

Runs PROGRAM (planted.cpp or attend.cpp) with every bug, in order and in a random order, with copies that land late and at
once. A table says what must be printed and in which runs; others, which may also be right, are left out. Without a
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
PTX_RACE = "race in shared memory"
PTX_COPY = "shared memory touched while cp.async still copies to it"
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

# those of attend.cpp, the kernel itself; built with TSan or ASan, or interpreted
ATTEND = {
    "no_copy_wait": {"thread": (f"{RACE}|{WRONG}", LATE), "ptx": (PTX_COPY, ALL)},
    "weak_copy_wait": {"thread": (f"{RACE}|{WRONG}", LATE), "ptx": (PTX_COPY, ALL)},
    "no_sync_after_wait": {"thread": (RACE, ALL), "ptx": (PTX_RACE, ALL)},
    "no_sync_in_step": {"thread": (RACE, ALL), "ptx": (PTX_RACE, ALL)},
    "no_sync_before_refill": {"thread": (RACE, ALL), "ptx": (PTX_RACE, ALL)},
    "no_sync_before_sums": {"thread": (RACE, ALL), "ptx": (PTX_RACE, ALL)},
    "no_sync_before_merge": {"thread": (RACE, ALL), "ptx": (PTX_RACE, ALL)},
    "no_tail_mask": {"any": (WRONG, ALL)},
    "mask_without_me": {"address": ("whose mask does not name it", ALL), "ptx": ("whose mask names only lanes", ALL)},
    "source_outside_mask": {"address": ("reads a lane that its mask does not name|different warp operations", ALL),
                            "ptx": ("which does not take part", ALL)},
    "shared_overrun": {"address": (OVERRUN, ALL), "ptx": ("shared memory .* out of bounds", ALL)},
    "global_overrun": {"address": (OVERRUN, ALL), "ptx": ("past an allocation", ALL)},
}


def run(program, bug, options):
    env = dict(os.environ, TSAN_OPTIONS="exitcode=66:halt_on_error=1")
    done = subprocess.run([program, bug, *options], env=env, text=True, errors="replace",
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=120)
    return done.returncode, done.stdout


def main():
    program, kind = sys.argv[1], sys.argv[2].removeprefix("attend_")
    names = subprocess.run([program], text=True, stdout=subprocess.PIPE).stdout.split()
    expected = ATTEND if "no_sync_in_step" in names else EXPECTED
    bad = [f"no expectation for {n}" for n in names if n not in expected and n != "none"]
    bad += [f"{n} is not in the program" for n in expected if n not in names]
    runs = ([],) if kind == "ptx" else RUNS
    found = 0
    for name in names:
        said, where = expected.get(name, {}).get(kind) or expected.get(name, {}).get("any", ("", ()))
        for i, options in enumerate(runs):
            if name != "none" and i not in where:
                continue
            code, text = run(program, name, options)
            shown = f"{name} {' '.join(options)}: exit {code}\n{text[-1500:]}"
            if name == "none" and (code != 0 or text != "right\n"):
                bad.append(f"a bug where there is none: {shown}")
            if i in where and (code == 0 or not re.search(said, text)):
                bad.append(f"not found: {shown}")
            found += i in where
    print("\n".join(bad) if bad else f"{len(names) - 1} bugs, {found} runs of {len(runs) * len(names)} had to find theirs")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
