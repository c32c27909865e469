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

# those of attend.cpp, the kernels themselves; built with TSan or ASan, or interpreted. Copies land late in the first of two runs, at once in the other.
ONCE, TWICE = (0,), (0, 3)
PTX_SHARED = f"{PTX_RACE}|shared memory read before it was written|{PTX_COPY}"
PTX_MEMORY = "out of bounds|past an allocation"


def raced(where, but=RACE):
    """A barrier or a wait that is left out."""
    return {"thread": (but, where), "ptx": (PTX_SHARED, ALL)}


def wrong(where, but=WRONG, ptx=WRONG):
    return {"address": (but, where), "ptx": (ptx, ALL)}


# of each of the two kernels on tensor cores
HALVES = {
    "no_copy_wait": raced(LATE, f"{RACE}|{WRONG}"),
    "weak_copy_wait": raced(LATE, f"{RACE}|{WRONG}"),
    "no_sync_after_wait": raced(TWICE),
    "no_sync_in_step": raced(TWICE),
    "no_sync_before_refill": raced(EARLY),
    "no_sync_before_sums": raced(TWICE),
    "no_sync_before_merge": raced(TWICE),
    "no_tail_mask": wrong(TWICE),
    "mask_without_me": wrong(TWICE, "whose mask does not name it", "whose mask names only lanes"),
    "source_outside_mask": wrong(TWICE, "reads a lane that its mask does not name|different warp operations", "which does not take part"),
    "shared_overrun": wrong(TWICE, OVERRUN, f"shared memory .* out of bounds|{PTX_RACE}"),
    "global_overrun": wrong(TWICE, OVERRUN, PTX_MEMORY),
}
ATTEND = {
    **{f"{header}/{bug}": e for header in ("attend_halves", "attend_latent_halves") for bug, e in HALVES.items()},
    "attend_latent_halves/no_sync_behind_queries": raced(TWICE),
    "attend_latent_halves/no_sync_before_coordinates": raced(TWICE),
    "attend_latent_halves/no_sync_before_joining": raced(TWICE),
    "piece_walk/no_sync_between_bounds": raced(TWICE),
    "piece_walk/no_sync_behind_bounds": raced(TWICE),
    "piece_walk/lost_piece": wrong(TWICE),
    "piece_walk/no_sync_behind_place": raced(TWICE),
    "piece_walk/walks_on": wrong(TWICE, OVERRUN, PTX_MEMORY),
    "piece_walk/no_sync_in_next": raced(TWICE),
    "piece_walk/extra_piece": wrong(TWICE),
    "ring/mixed_tile": wrong(TWICE, f"{WRONG}|runtime error", f"{WRONG}|a null pointer"),
    "ring/padding_overrun": wrong(TWICE, OVERRUN, PTX_MEMORY),
    "ring/head_overrun": {"address": (OVERRUN, TWICE), "thread": (RACE, TWICE), "ptx": (PTX_SHARED, ALL)},
    "ring/no_commit": {"address": ("forgets shared memory with cp.async copies in flight", TWICE), "ptx": (PTX_COPY, ALL)},
    "attend_piece/shared_overrun": wrong(ONCE, OVERRUN, "shared memory .* out of bounds"),
    "attend_piece/no_sync_before_top": raced(ONCE),
    "attend_piece/global_overrun": wrong(ONCE, OVERRUN, PTX_MEMORY),
    "attend_piece/no_sync_behind_runs": raced(ONCE, f"{RACE}|SEGV"),  # a run is a pointer
    "attend_piece/no_sync_behind_keys": raced(ONCE),
    "attend_piece/no_tail_mask": wrong(ONCE),
    "attend_piece/no_sync_behind_weights": raced(ONCE),
    "attend_piece/no_sync_behind_values": raced(ONCE),
    "attend_piece/no_sync_before_results": raced(ONCE),
    "attend_piece/no_sync_before_join": raced(ONCE),
    "attend_columns/no_sync_behind_runs": raced(ONCE, f"{RACE}|SEGV"),
    "attend_columns/no_sync_before_queries": raced(ONCE),
    "attend_columns/no_sync_behind_queries": raced(ONCE),
    "attend_columns/no_tail_mask": wrong(ONCE),
    "attend_columns/no_sync_before_keys": raced(ONCE),
    "attend_columns/no_sync_before_shares": raced(ONCE),
}


def run(program, bug, options):
    env = dict(os.environ, TSAN_OPTIONS="exitcode=66:halt_on_error=1")
    done = subprocess.run([program, bug, *options], env=env, text=True, errors="replace",
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=120)
    return done.returncode, done.stdout


def main():
    program, kind = sys.argv[1], sys.argv[2].removeprefix("attend_")
    names = subprocess.run([program], text=True, stdout=subprocess.PIPE).stdout.split()
    expected = ATTEND if any("/" in n for n in names) else EXPECTED
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
