#!/usr/bin/env python3
"""Plants one small bug at a time in a header and sees whether the tests that speak of it fail.

    tests/mutation/mutate.py [--part NAME ...] [--count N] [--seed S] [--header TEXT] [--library FILE]

Bugs: < for <=, + for -, a number that is one too large, && for ||, min for max, a statement left out, a condition turned round.
Which bugs are planted follows from the seed alone. A bug that no test sees is a survivor; those that known.txt explains (they change
nothing that can be seen) are counted apart. Ends with a table; the exit status is 1 where a survivor is not explained.

Test programs are compiled without optimization, each from one file. `--library`: libkvcondense_any.a, for kernels and recipe texts.
"""

import argparse
import os
import random
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent

# part: [(header, tests that speak of it)]
PARTS = {
    "selection": [
        ("backend/cpu/top_k.hpp", ["prim/top_k"]),
        ("prim/rank_bits.hpp", ["prim/top_k"]),
        ("prim/block_top_k.hpp", ["prim/block_top_k"]),
        ("backend/cpu/block_top_k.hpp", ["prim/block_top_k"]),
        ("backend/cpu/chunk_top_k.hpp", ["prim/chunk_top_k"]),
        ("backend/cpu/lift_top.hpp", ["prim/lift_top"]),
        ("backend/cpu/top_then_newest.hpp", ["prim/top_then_newest"]),
        ("backend/cpu/open_blocks.hpp", ["prim/open_blocks"]),
        ("core/apportion.hpp", ["core/apportion"]),
    ],
    "bits": [
        ("prim/pack_bits.hpp", ["prim/pack_bits"]),
        ("backend/cpu/pack_bits.hpp", ["prim/pack_bits"]),
        ("prim/mini_float.hpp", ["prim/mini_float"]),
        ("bitstream/range_coder.hpp", ["bitstream/range_coder", "bitstream/coders"]),
        ("bitstream/rans.hpp", ["bitstream/rans", "bitstream/coders"]),
        ("bitstream/symbol_table.hpp", ["bitstream/symbol_table", "bitstream/coders"]),
        ("bitstream/token_symbols.hpp", ["bitstream/token_symbols"]),
    ],
    "codes": [
        ("prim/group_quant.hpp", ["prim/group_int_codec", "prim/group_int_lanes", "prim/group_quant"]),
        ("backend/cpu/group_quant.hpp", ["prim/group_int_codec", "prim/group_int_lanes"]),
        ("backend/cpu/group_quant_bits.hpp", ["prim/group_int_codec", "prim/group_int_lanes"]),
        ("backend/cpu/group_quant_rows.hpp", ["prim/group_int_codec", "prim/group_int_lanes"]),
        ("prim/block_codes.hpp", ["prim/block_codes_codec"]),
        ("backend/cpu/block_codes.hpp", ["prim/block_codes_codec"]),
        ("prim/ggml_block.hpp", ["quant/ggml"]),
        ("core/dtype.hpp", ["core/dtype"]),
    ],
    "position": [
        ("prim/rope.hpp", ["prim/rope", "position/rope"]),
        ("prim/rope_config.hpp", ["prim/rope", "position/rope"]),
        ("backend/cpu/rope.hpp", ["prim/rope", "position/rope"]),
        ("position/reindex.hpp", ["position/reindex"]),
        ("position/rerotate.hpp", ["position/rerotate"]),
        ("cache/query_window.hpp", ["cache/query_window"]),
        ("evict/blocks/protect.hpp", ["evict/pipeline", "evict/page_round", "evict/sink_window"]),
    ],
    "slots": [
        ("cache/kept.hpp", ["cache/kept"]),
        ("cache/page.hpp", ["cache/segment"]),
        ("cache/slot_ids.hpp", ["cache/segment"]),
        ("cache/segment.hpp", ["cache/segment"]),
        ("cache/segment_compact.hpp", ["cache/segment"]),
        ("core/buffer.hpp", ["core/containers"]),
        ("core/bytes.hpp", ["core/containers"]),
    ],
    "vectors": [
        ("backend/cpu/simd/row_ops.inl", ["prim/row_ops"]),
        ("backend/cpu/simd/coding_ops.inl", ["prim/coding_ops"]),
        ("backend/cpu/simd/code_ops.inl", ["prim/group_int_lanes"]),
        ("backend/cpu/simd/number_ops.inl", ["prim/number_ops"]),
        ("backend/cpu/simd/rank_kernels.hpp", ["prim/rank_ops"]),
        ("backend/cpu/simd/portable.hpp", ["prim/row_ops", "prim/number_ops", "prim/coding_ops", "prim/group_int_lanes"]),
        ("backend/cpu/simd/avx2.hpp", ["prim/row_ops", "prim/number_ops", "prim/coding_ops", "prim/group_int_lanes"]),
        ("backend/cpu/simd/avx512.hpp", ["prim/row_ops", "prim/number_ops", "prim/coding_ops"]),
        ("backend/cpu/simd/vnni.hpp", ["prim/group_int_lanes"]),
    ],
}
KERNELS = "backend/cpu/simd/"  # what the library has compiled: a bug there is seen where the test compiles it

SWAPS = [
    (r" < ", [" <= "]), (r" <= ", [" < "]), (r" > ", [" >= "]), (r" >= ", [" > "]),
    (r" == ", [" != "]), (r" != ", [" == "]), (r" \+ ", [" - "]), (r" - ", [" + "]), (r" \* ", [" / "]), (r" / ", [" * "]), (r" % ", [" / "]),
    (r" && ", [" || "]), (r" \|\| ", [" && "]), (r" << ", [" >> "]), (r" >> ", [" << "]), (r" & ", [" | "]), (r" \| ", [" & "]),
    (r" \+= ", [" -= "]), (r" -= ", [" += "]), (r"std::min\b", ["std::max"]), (r"std::max\b", ["std::min"]),
    (r"\btrue\b", ["false"]), (r"\bfalse\b", ["true"]), (r"\bfloor\b", ["ceil"]), (r"\bif \((?!constexpr)", ["if (!"]),
]
NUMBER = re.compile(r"(?<![\w.])(\d+)(u|ull)?(?![\w.'])")
WHOLE = re.compile(r"^\s*(?!return|using|static|const |template|auto |break|continue|case|else|for|while|do\b|public|private|friend)"
                   r"[\w:>\[\].()*+&, -]+(\s[-+|&^*/]?=\s.*|\(.*\)|\+\+|--);\s*$")
LET_BE = re.compile(r"^\s*(//|#|static_assert|template|concept|requires|namespace|using |friend|operator|\"|\*|/\*|KVCONDENSE_ASSERT|assert)")


def code_of(line):
    """The line up to its comment, texts blanked: what may be changed."""
    line = re.sub(r'"(\\.|[^"\\])*"', lambda m: '"' + "." * (len(m[0]) - 2) + '"', line)
    return line.split("//")[0]


def mutants_of(text):
    """(line number, changed line) of every bug that can be planted."""
    found = []
    for number, line in enumerate(text.splitlines()):
        code = code_of(line)
        if LET_BE.match(code) or not code.strip() or "operator" in code or "requires" in code:
            continue
        for pattern, others in SWAPS:
            for m in re.finditer(pattern, code):
                for other in others:
                    changed = line[: m.start()] + other + line[m.end():]
                    if pattern.endswith("(?!constexpr)"):  # close the bracket that was opened
                        depth, at = 0, m.end() - 1
                        for at in range(m.end() - 1, len(code)):
                            depth += {"(": 1, ")": -1}.get(code[at], 0)
                            if depth == 0:
                                break
                        if depth != 0 or "; " in code[m.end():at]:
                            continue
                        changed = line[: m.end() - 1] + "(!" + line[m.end() - 1: at + 1] + ")" + line[at + 1:]
                    found.append((number, changed))
        for m in NUMBER.finditer(code):
            found.append((number, line[: m.start(1)] + str(int(m[1]) + 1) + line[m.end(1):]))
            if int(m[1]) > 1:
                found.append((number, line[: m.start(1)] + str(int(m[1]) - 1) + line[m.end(1):]))
        if WHOLE.match(code):
            found.append((number, re.match(r"\s*", line)[0] + ";"))
    return [(n, c) for n, c in found if c != text.splitlines()[n]]


class Bench:
    def __init__(self, options, folder):
        self.options, self.folder = options, Path(folder)
        # What takes the longest to read, read once.
        self.first = self.folder / "first.hpp"
        self.first.write_text("#include <catch2/catch.hpp>\n#include <nlohmann/json.hpp>\n")
        subprocess.run([*self.compiler(), "-x", "c++-header", self.first, "-o", f"{self.first}.gch"], check=True)
        self.main = []
        for source in ("catch_main", "oracle"):
            self.main.append(self.folder / f"{source}.o")
            subprocess.run([*options.launcher.split(), options.compiler, "-std=c++20", "-O0", "-w", f"-I{ROOT}/tests",
                            f'-DKVCONDENSE_TEST_DATA="{ROOT}/tests"', "-c",
                            ROOT / f"tests/support/{source}.cpp", "-o", self.main[-1]], check=True)

    def compiler(self):
        return [*self.options.launcher.split(), self.options.compiler, "-std=c++20", "-O0", "-w", "-ffp-contract=off", "-pthread"]

    def run(self, test, library, overlay=None):
        """'passes', 'fails' or 'does not compile'."""
        program = self.folder / "program"
        command = [*self.compiler(), "-include", self.first, *(["-DKVCONDENSE_COMPILED_KERNELS=1"] if library else [])]
        command += [f"-I{f}" for f in ([overlay] if overlay else []) + [ROOT / "include", ROOT / "tests"]]
        command += ["-isystem", "/usr/include/eigen3", f'-DKVCONDENSE_TEST_DATA="{ROOT}/tests"', f'-DKVCONDENSE_SOURCE_DIR="{ROOT}"']
        command += [ROOT / "tests" / f"{test}_test.cpp", *self.main, *([library] if library else []), "-o", program]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            if overlay is None:
                print(done.stderr, file=sys.stderr)
            return "does not compile"
        try:
            limits = ["bash", "-c", f'ulimit -v 4000000 -t {self.options.seconds}; exec "$0"', program]
            done = subprocess.run(limits, capture_output=True, timeout=20 * self.options.seconds, cwd=self.folder)
        except subprocess.TimeoutExpired:
            return "fails"
        return "passes" if done.returncode == 0 else "fails"


def known_survivors():
    """{(header, line, changed line)}: known.txt has blocks of three such lines, then why in any number of lines, then an empty one."""
    known = set()
    path = HERE / "known.txt"
    for block in path.read_text().split("\n\n") if path.exists() else []:
        lines = [l.strip() for l in block.strip().splitlines() if not l.startswith("#")]
        if len(lines) >= 4:
            known.add((lines[0], lines[1].removeprefix("- ").strip(), lines[2].removeprefix("+ ").strip()))
    return known


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--part", action="append", choices=PARTS, help="default: all")
    parser.add_argument("--header", default="", help="only headers whose path contains this")
    parser.add_argument("--count", type=int, default=8, help="most bugs per header")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--compiler", default="g++")
    parser.add_argument("--launcher", default="")
    parser.add_argument("--library", default="")
    parser.add_argument("--seconds", type=int, default=60, help="a test that needs more of the processor's time has failed")
    options = parser.parse_args()
    os.chdir(ROOT)
    known, rows, bad, sound = known_survivors(), [], 0, set()  # sound: tests that pass without a bug
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(options, folder)
        for part in options.part or PARTS:
            for header, tests in PARTS[part]:
                if options.header not in header:
                    continue
                source = ROOT / "include/kvcondense" / header
                text = source.read_text()
                library = "" if header.startswith(KERNELS) else options.library
                for test in tests:
                    if (test, library) in sound:
                        continue
                    if (was := bench.run(test, library)) != "passes":
                        print(f"{test}_test.cpp {was} as it is", file=sys.stderr)
                        return 2
                    sound.add((test, library))
                every = mutants_of(text)
                random.Random(f"{options.seed} {header}").shuffle(every)
                row = {"header": header, "planted": 0, "found": 0, "known": 0, "survived": 0}
                for number, changed in every:
                    if row["planted"] == options.count:
                        break
                    overlay = Path(folder) / "overlay"
                    target = overlay / "kvcondense" / header
                    target.parent.mkdir(parents=True, exist_ok=True)
                    lines = text.splitlines()
                    was, lines[number] = lines[number], changed
                    target.write_text("\n".join(lines) + "\n")
                    results = []
                    for test in tests:
                        results.append(bench.run(test, library, overlay))
                        if results[-1] != "passes":
                            break
                    target.unlink()
                    if results[-1] == "does not compile":
                        continue
                    row["planted"] += 1
                    if results[-1] == "fails":
                        row["found"] += 1
                    elif (header, was.strip(), changed.strip()) in known:
                        row["known"] += 1
                    else:
                        row["survived"] += 1
                        print(f"survived: {header}:{number + 1}\n  - {was.strip()}\n  + {changed.strip()}", flush=True)
                rows.append((part, row))
                print(f"{part:10} {header:36} planted {row['planted']:3}  found {row['found']:3}  explained {row['known']:3}  "
                      f"survived {row['survived']:3}", flush=True)
                bad += row["survived"]
    total = {k: sum(r[k] for _, r in rows) for k in ("planted", "found", "known", "survived")}
    print(f"{'all':10} {'':36} planted {total['planted']:3}  found {total['found']:3}  explained {total['known']:3}  "
          f"survived {total['survived']:3}  (seed {options.seed})")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
