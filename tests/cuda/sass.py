#!/usr/bin/env python3
"""Counts what the machine executes for a tile of attention on tensor cores, and what the tile's bytes allow.

    sass.py --cubin FILE --architecture 80|90a [--nvcc NVCC] [--nvdisasm NVDISASM] [--write]

FILE is what budget.py --keep left. Without a disassembler (NVDISASM, one beside NVCC or on the PATH) the exit status is 77.

A tile of the usual kind is whole, of one page, codes alone, keys and values of one width. Its way is the shortest through the
loop from the wait for copies to the next one that makes the tile's products and starts its copies, and passes nothing that
belongs to tiles of another kind (ASIDE). Loops that search pass once. sass.txt has limits, a few percent above what was
counted: --write writes the architecture's anew.
"""

import argparse
import collections
import heapq
import operator
import re
import shutil
import struct
import subprocess
import sys
from pathlib import Path

from budget import short

HERE = Path(__file__).resolve().parent
HEADERS = HERE.parents[1] / "include/kvcondense/backend/cuda"
LIMITS = HERE / "sass.txt"
HEADING = "# architecture, keys and values, dim, axis of the scales of keys, limits for 64 slots: instructions of a warp, those of the ALU; by sass.py --write\n"

# a device: bytes a second that copies reach, multiprocessors, cycles a second while they do
DEVICES = {"80": ("A100", 1.75e12, 108, 1.41e9), "90a": ("H200", 4.3e12, 132, 1.755e9)}
QUARTERS = 4      # of a multiprocessor: each starts an instruction of a warp in a cycle
ALU_CYCLES = 2    # for 32 lanes; a quarter has 16
RING_ROWS, RING_SLOTS, GROUP = 4096, 64, 64  # of ring_layout.cuh; groups of 64

# what opcodes keep busy, in this order
PIPES = (("tensor", "HMMA|IMMA"), ("transpose", "MOVM"), ("xu", "MUFU|F2F|I2F|F2I|POPC|BREV|FLO"),
         ("memory", "LD|ST|ATOM|RED|SHFL|DEPBAR"),
         ("control", "BRA|BAR|EXIT|BSSY|BSYNC|BREAK|WARPSYNC|NOP|CALL|RET|BMOV|YIELD|ERRBAR|MEMBAR|ENDCOLLECTIVE"),
         ("uniform", "U[A-Z]|R2UR|S2UR|VOTEU"), ("fma", "FFMA|FMUL|FADD|HFMA2|HADD2|HMUL2|IMAD|IDP"), ("alu", ""))

SCALES_OF_KEYS = "const PairScale x = pair_scale(rule, own, own, j, groups.count), y"
# source of other kinds of tiles: file, text of the line, whether only what it calls is meant, and where it is theirs
ASIDE = (
    ("ring.cuh", "if (kind == nullptr) copy<padded_row(16, Dim)>", True, "coded"),
    ("ring.cuh", "if (row < rows) copy_grain(to + chunk(row, b / 16) * 16", False, "all"),
    ("attend_halves.cuh", "if (exact_keys) exact_scores<Order, Dim>", True, "coded"),
    ("attend_halves.cuh", "if (exact_values) add_exact_values<Dim>", True, "coded"),
    ("attend_halves.cuh", SCALES_OF_KEYS, False, "channel"),
    ("attend_halves.cuh", "fold_scales<KeyCodec::bits, Order, Dim>(key_rule", True, "token"),
    ("attend_halves.cuh", "plan.logit_row(head, row)[tile.first + in_tile] = score[c] * ln_2", False, "all"),
)
WORK = ("HMMA", "LDGSTS", "LDS", "ST")  # what a way that is theirs does

Instruction = collections.namedtuple("Instruction", "opcode operands condition lines")
# copies of 16 bytes and of fewer; what scales of keys by token take
Work = collections.namedtuple("Work", "products transposes wide narrow scales", defaults=(0,))


class Tile:
    """One of the usual kind."""

    def __init__(self, bits, dim, axis):
        row, coded = dim * bits // 8, bits < 16
        self.slots = min(RING_SLOTS, RING_ROWS // row)
        self.steps = self.slots // 16
        per_slot = 4 * (dim // GROUP) if coded else 0
        of_keys = 0 if not coded else 4 * dim if axis == "channel" else per_slot * self.slots
        self.bytes = 2 * self.slots * row + of_keys + per_slot * self.slots
        lane_slots = self.slots // 32 if coded else 0
        self.work = Work((dim // 8 if coded and axis == "channel" else 0) + 2 * self.steps * (dim // 16), 2 * self.steps,
                         2 * self.slots * row // 512 + (1 if coded and axis == "channel" else 0),
                         lane_slots * (1 if axis == "channel" else 2))


def kernels_of(cubin):
    """{mangled name: index of its symbol} of attend_halves."""
    data = cubin.read_bytes()
    at = struct.unpack_from("<Q", data, 0x28)[0]
    size, count = struct.unpack_from("<HH", data, 0x3A)
    sections = [struct.unpack_from("<IIQQQQIIQQ", data, at + i * size) for i in range(count)]
    found = {}
    for _, kind, _, _, offset, length, link, _, _, entry in sections:
        if kind != 2:
            continue
        names = sections[link][4]
        for i in range(length // entry):
            name, info = struct.unpack_from("<IB", data, offset + i * entry)
            text = data[names + name:data.index(b"\0", names + name)].decode()
            if info & 15 == 2 and "attend_halves" in text:
                found[text] = i
    return found


def parse(text):
    """[instructions], {label: place} of a function."""
    code, labels, lines = [], {}, []
    fresh = True
    for line in text.split("\n"):
        if match := re.match(r'\s*//## File "([^"]*)", line (\d+)', line):
            if fresh:
                lines, fresh = [], False
            lines.append((match[1].rsplit("/", 1)[-1], int(match[2])))
        elif match := re.match(r"\s*\.(L_\w+):", line):
            labels[match[1]] = len(code)
        elif match := re.match(r"\s*/\*[0-9a-f]{4,}\*/\s+(?:@(!?U?P\w+)\s+)?([A-Z][A-Z0-9_.]*)\s*([^;]*);", line):
            code.append(Instruction(match[2], match[3].strip(), match[1], tuple(lines)))
            fresh = True
    return code, labels


def blocks_of(code, labels):
    """[(first, last)] and [[successors]]. The wait for copies begins a block."""
    targets = {}  # places where a barrier of branches lets go
    for i in code:
        if i.opcode == "BSSY" or i.opcode.startswith("BSSY."):
            barrier, label = re.match(r"(B\d+), `\(\.(\w+)\)", i.operands).groups()
            targets.setdefault(barrier, set()).add(labels[label])
    ways = []
    for n, i in enumerate(code):
        kind, to = i.opcode.split(".")[0], [labels[name] for name in re.findall(r"\.(L_\w+)", i.operands)]
        if kind in ("BRA", "BRX", "BRXU") or (kind == "CALL" and to):  # a call of a place of the function itself is a branch
            always = i.condition is None and (kind != "BRA" or (i.operands.startswith("`") and ".DIV" not in i.opcode and ".CONV" not in i.opcode))
            ways.append(to + ([] if always else [n + 1]))
        elif i.opcode.startswith("BSYNC"):
            places = targets[re.match(r"B\d+", i.operands)[0]]
            ways.append([n + 1] if n + 1 in places or i.condition else sorted(places))
        elif kind in ("EXIT", "RET"):
            ways.append([n + 1] if i.condition else [])
        else:
            ways.append(None)
    starts = {0} | set(labels.values()) | {n + 1 for n, w in enumerate(ways) if w is not None}
    starts |= {n for n, i in enumerate(code) if is_wait(i)}
    starts = sorted(s for s in starts if s < len(code))
    number = {s: b for b, s in enumerate(starts)}
    blocks = list(zip(starts, starts[1:] + [len(code)]))
    after = [[number[w] for w in (ways[last - 1] if ways[last - 1] is not None else [last]) if w in number] for _, last in blocks]
    return blocks, after


def is_wait(instruction):
    return instruction.opcode == "DEPBAR.LE" and instruction.operands.endswith("0x1")


def inner_loops(code, blocks, after):
    """Blocks of loops that hold no other one and make products."""
    found = set()
    for latch, ways in enumerate(after):
        for head in ways:
            if head > latch:
                continue
            body = set(range(head, latch + 1))
            nested = any(h <= b and (h, b) != (head, latch) and h >= head for b in body for h in after[b])
            if not nested and any(i.opcode.startswith("HMMA") for b in body for i in code[blocks[b][0]:blocks[b][1]]):
                found |= body
    return found


def line_of(file, text):
    places = [n for n, line in enumerate((HEADERS / file).read_text().split("\n"), 1) if text in line]
    if len(places) != 1:
        sys.exit(f"{file}: {text!r} is not there once")
    return file, places[0]


def belongs(instruction, lines):
    """Whether it does work of one of the lines: {(file, line): whether only what it calls is meant}."""
    return instruction.opcode.startswith(WORK) and any(
        line in lines and not (lines[line] and depth == 0) for depth, line in enumerate(instruction.lines))


def work_of(instructions, times, scales):
    ops = [i.opcode for i in instructions]
    copies = [o for o in ops if o.startswith("LDGSTS")]
    wide = sum(".128" in o for o in copies)
    return Work(times * sum(o.startswith("HMMA") for o in ops), times * sum(o.startswith("MOVM") for o in ops), wide, len(copies) - wide,
                sum(belongs(i, scales) for i in instructions))


def way_of(code, labels, tile, kinds):
    """Opcodes of the tile's way, with how often each is executed; None: there is no such way."""
    blocks, after = blocks_of(code, labels)
    loops = inner_loops(code, blocks, after)
    aside = {line_of(file, text): calls for file, text, calls, kind in ASIDE if kind in kinds}
    scales = {line_of("attend_halves.cuh", SCALES_OF_KEYS): False} if "token" in kinds else {}
    barred = {b for b, (first, last) in enumerate(blocks) if any(belongs(i, aside) for i in code[first:last])}
    times = [tile.steps if b in loops else 1 for b in range(len(blocks))]
    works = [work_of(code[first:last], times[b], scales) for b, (first, last) in enumerate(blocks)]
    costs = [times[b] * (last - first) for b, (first, last) in enumerate(blocks)]
    wanted = tile.work._replace(scales=sum(w.scales for w in works))
    waits = [b for b, (first, _) in enumerate(blocks) if is_wait(code[first])]
    if len(waits) != 1:
        sys.exit(f"{len(waits)} waits for a stage instead of one")
    start, zero = waits[0], Work(0, 0, 0, 0)
    ways = without_rounds(start, [[w for w in next_ones if w not in barred] for next_ones in after])
    most = most_work(start, ways, works, wanted)
    came, queue, done = {(start, zero): (0, None)}, [(0, start, zero)], set()  # states: a block and the work before it
    while queue:
        cost, *state = heapq.heappop(queue)
        block, work = state = tuple(state)
        if block == start and cost > 0:
            break
        if state in done:
            continue
        done.add(state)
        now = Work(*map(operator.add, work, works[block]))
        for way in [] if any(map(operator.gt, now, wanted)) else ways[block]:
            total, behind = cost + costs[block], map(operator.add, now, zero if way == start else most[way])
            if not any(map(operator.lt, behind, wanted)) and total < came.get((way, now), (total + 1,))[0]:
                came[way, now] = (total, state)
                heapq.heappush(queue, (total, way, now))
    else:
        return None
    count, state = collections.Counter(), came[start, wanted][1]
    while state is not None:
        first, last = blocks[state[0]]
        for i in code[first:last]:
            count[i.opcode] += times[state[0]]
        state = came[state][1]
    return count


def most_work(start, ways, works, wanted):
    """What can be done at most from a block on until the start comes again, cut to what is wanted."""
    most, changed = list(works), True
    while changed:
        changed = False
        for b in range(len(ways) - 1, -1, -1):
            behind = [most[w] for w in ways[b] if w != start] or [Work(0, 0, 0, 0)]
            now = Work(*(min(own + max(parts), want) for own, parts, want in zip(works[b], zip(*behind), wanted)))
            if now != most[b]:
                most[b], changed = now, True
    return most


def without_rounds(start, after):
    """Without the ways back to the heads of loops, which all ways to them pass; that to the start stays."""
    order, seen, stack = [], {start}, [(start, iter(after[start]))]
    while stack:
        block, ways = stack[-1]
        way = next((w for w in ways if w not in seen), None)
        if way is None:
            order.append(block)
            stack.pop()
        else:
            seen.add(way)
            stack.append((way, iter(after[way])))
    place = {b: n for n, b in enumerate(order)}
    before = collections.defaultdict(list)
    for b in order:
        for w in after[b]:
            before[w].append(b)
    above = {start: start}  # the last block that all ways to a block pass
    changed = True
    while changed:
        changed = False
        for b in reversed(order):
            if b == start:
                continue
            best = None
            for x in before[b]:
                if x not in above:
                    continue
                y = best if best is not None else x
                while x != y:
                    while place[x] < place[y]:
                        x = above[x]
                    while place[y] < place[x]:
                        y = above[y]
                best = x
            if above.get(b) != best:
                above[b], changed = best, True

    def passes(head, b):
        while place[b] < place[head]:
            b = above[b]
        return b == head
    return [[w for w in ways if w == start or not (b in above and passes(w, b))] for b, ways in enumerate(after)]


def pipe(opcode):
    return next(name for name, pattern in PIPES if re.match(pattern, opcode))


def read_limits():
    lines = [line.split() for line in LIMITS.read_text().split("\n") if line and not line.startswith("#")] if LIMITS.exists() else []
    return {tuple(words[:4]): tuple(map(int, words[4:])) for words in lines}


def disassembler(options):
    if options.nvdisasm:
        return options.nvdisasm
    beside = Path(options.nvcc).resolve().with_name("nvdisasm") if options.nvcc else None
    return str(beside) if beside and beside.exists() else shutil.which("nvdisasm")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cubin", required=True, type=Path)
    parser.add_argument("--architecture", required=True, choices=DEVICES)
    parser.add_argument("--nvcc")
    parser.add_argument("--nvdisasm")
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    tool = disassembler(options)
    if not tool:
        print("no nvdisasm")
        return 77
    device, bandwidth, processors, clock = DEVICES[options.architecture]
    names = kernels_of(options.cubin)
    shown = subprocess.run(["c++filt"], input="\n".join(names), text=True, stdout=subprocess.PIPE, check=True).stdout.split("\n")
    print(f"sm_{options.architecture}: for 64 slots, of a warp; cycles of a multiprocessor of {device} ({bandwidth / 1e12:g} TB/s, {processors} of them, {clock / 1e9:g} GHz)")
    limits, counted, bad = read_limits(), {}, []
    for (name, index), full in sorted(zip(names.items(), shown), key=lambda k: k[1]):
        keys, values, dim = re.match(r"attend_halves<(.+),(.+),(\d+)>", short(full)).groups()
        if keys != values:
            continue
        bits, dim = int(m[1]) if (m := re.match(r"GroupInt<(\d+)>", keys)) else 16, int(dim)
        done = subprocess.run([tool, "-c", "-gi", "-fun", str(index), str(options.cubin)], text=True, stdout=subprocess.PIPE, check=True)
        code, labels = parse(done.stdout)
        for axis in ("channel", "token") if bits < 16 else ("-",):
            tile, key = Tile(bits, dim, axis), (options.architecture, keys, str(dim), axis)
            count = way_of(code, labels, tile, ("all", "coded", axis) if bits < 16 else ("all",))
            if count is None:
                bad.append(f"{' '.join(key)}: no way through the loop has {tile.work}")
                continue
            each = RING_SLOTS / tile.slots
            pipes = collections.Counter()
            for opcode, n in count.items():
                pipes[pipe(opcode)] += n * each
            total, alu, size = sum(pipes.values()), pipes["alu"], tile.bytes * each
            allowed = size * processors * clock / bandwidth
            issue, of_alu = total / QUARTERS, alu * ALU_CYCLES / QUARTERS
            counted[key] = (total, alu)
            print(f"{keys} {dim} {axis}: {total:.0f} instructions ({', '.join(f'{p} {pipes[p]:.0f}' for p, _ in PIPES)}), {size:.0f} bytes; "
                  f"cycles: {issue:.0f} to start them, {of_alu:.0f} of the ALU, {allowed:.0f} for the bytes: bound by {'memory' if max(issue, of_alu) <= allowed else 'instructions'}")
            if any(opcode.startswith(("LDL", "STL")) for opcode in count):
                bad.append(f"{' '.join(key)}: local memory")
            if not options.write and (key not in limits or any(n > limit for n, limit in zip(counted[key], limits[key]))):
                bad.append(f"{' '.join(key)}: {total:.0f} instructions and {alu:.0f} of the ALU, limits {limits.get(key)}")
    bad += [f"{' '.join(key)}: in sass.txt, but not counted" for key in limits if key[0] == options.architecture and key not in counted and not options.write]
    if options.write and not bad:
        rows = {k: v for k, v in limits.items() if k[0] != options.architecture}
        rows |= {k: tuple(-(-int(n * 1.02) // 20) * 20 for n in v) for k, v in counted.items()}
        LIMITS.write_text(HEADING + "".join(f"{' '.join(k)} {v[0]} {v[1]}\n" for k, v in sorted(rows.items())))
    print("\n".join(bad))
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
