#!/usr/bin/env python3
"""Writes headers of attention with bugs that a number chooses while it runs: what emulations must find in the kernels themselves.

    overlay.py INCLUDE OUT HEADER...

Headers are named without folder and ending; planted_bug.cuh, beside them, has the number and the names, which are HEADER/BUG.
"""

import sys
from pathlib import Path

FOLDER = Path("kvcondense/backend/cuda")

SYNC, WARP_SYNC = "__syncthreads();", "__syncwarp();"


def left_out(bug, before, what, behind):
    """A barrier between `before` and `behind` that the bug leaves out."""
    return before + what + behind, (bug,), f"{before}if (!({{0}})) {what}{behind}"


# of kernels on tensor cores: a place of the header, its bugs, and what stands there instead, with bugs in braces
HALVES = (
    ("    cuda::copy_async_wait<ring_stages - 1>();\n    __syncwarp();\n    const TileHead tile",
     ("no_copy_wait", "weak_copy_wait", "no_sync_after_wait"),
     "    if ({1}) cuda::copy_async_wait<ring_stages>();\n    else if (!({0})) cuda::copy_async_wait<ring_stages - 1>();\n"
     "    if (!({2})) __syncwarp();\n    const TileHead tile"),
    left_out("no_sync_in_step", "", WARP_SYNC, "  // keys of this step are read"),
    left_out("no_sync_before_refill", "", WARP_SYNC, "  // all lanes are done with the stage"),
    left_out("no_sync_before_sums", "", SYNC, "  // rings are done with"),
    left_out("no_sync_before_merge", "", SYNC, "\n  for (int x"),
    ("const bool sees = 16 * u", ("no_tail_mask",), "const bool sees = ({0}) || 16 * u"),
    ("= __shfl_xor_sync(cuda::full_warp, largest[e], d);", ("mask_without_me",),
     "= __shfl_xor_sync(({0}) ? 0x0000ffffu : cuda::full_warp, largest[e], d);"),
    ("total[e] += __shfl_xor_sync(cuda::full_warp, total[e], d);", ("source_outside_mask",),
     "if (!({0}) || lane < 16) total[e] += __shfl_xor_sync(({0}) ? 0x0000ffffu : cuda::full_warp, total[e], d);"),
    ("+ warp * ring_stages * layout.stage", ("shared_overrun",), "+ (warp + (({0}) ? 1 : 0)) * ring_stages * layout.stage"),
    ("slots = heads.slots[head], size", ("global_overrun",), "slots = heads.slots[head] + (({0}) ? 8 : 0), size"),
)

HEADERS = {
    "attend_halves": HALVES,
    "attend_latent_halves": (
        *HALVES,
        left_out("no_sync_behind_queries", "", SYNC, "\n  int visible[2];"),
        left_out("no_sync_before_coordinates", "", SYNC, "\n    show_sums(shared, of_coordinates"),
        left_out("no_sync_before_joining", "", SYNC, "\n    const int width"),
    ),
    "piece_walk": (
        left_out("no_sync_between_bounds", "", SYNC, "\n#pragma unroll 1"),
        left_out("no_sync_behind_bounds", "", SYNC, "\n    place_ = "),
        ("end_ = shared.bound[1];", ("lost_piece",), "end_ = shared.bound[1] - (({0}) ? 1 : 0);"),
        left_out("no_sync_behind_place", "", SYNC, "\n  }\n  __device__ bool any"),
        ("return place_ < end_;", ("walks_on",), "return place_ < end_ + (({0}) ? 1 : 0);"),
        left_out("no_sync_in_next", "", SYNC, "\n    const bool last"),
        ("piece() + 1 >= rule_", ("extra_piece",), "piece() + (({0}) ? 0 : 1) >= rule_"),
    ),
    "ring": (
        ("if constexpr (exact_only) return true;", ("mixed_tile",), "if ({0}) return true;\n    if constexpr (exact_only) return true;"),
        ("source = row < count ?", ("padding_overrun",), "source = ({0}) || row < count ?"),
        ("(stage + 1) * bytes - 16", ("head_overrun",), "(stage + 1) * bytes - (({0}) ? 0 : 16)"),
        ("    cuda::copy_async_commit();", ("no_commit",), "    if (!({0})) cuda::copy_async_commit();"),
    ),
    "attend_piece": (
        ("float* row = tile + i * (dim + 1);\n    if", ("shared_overrun",), "float* row = tile + (i + (({0}) ? 1 : 0)) * (dim + 1);\n    if"),
        left_out("no_sync_before_top", "", WARP_SYNC, "  // all lanes have read"),
        ("slots = heads.slots[head], size", ("global_overrun",), "slots = heads.slots[head] + (({0}) ? 8 : 0), size"),
        left_out("no_sync_behind_runs", "", SYNC, "\n    load_tile(of_head(heads.key_codec"),
        left_out("no_sync_behind_keys", "", SYNC, "\n\n    for (int r = warp"),
        ("at + lane < plan.visible(slots, row);", ("no_tail_mask",), "(({0}) || at + lane < plan.visible(slots, row));"),
        left_out("no_sync_behind_weights", "", SYNC, "\n    load_tile(of_head(heads.value_codec"),
        left_out("no_sync_behind_values", "", SYNC, "\n#pragma unroll\n    for (int k = 0; k < columns"),
        left_out("no_sync_before_results", "", SYNC, "\n#pragma unroll\n  for (int r = 0; r < piece_rows"),
        left_out("no_sync_before_join", "", SYNC, "\n  for (int c ="),
    ),
    "attend_columns": (
        left_out("no_sync_behind_runs", "", SYNC, "\n  load_tile("),
        left_out("no_sync_before_queries", "", SYNC, "  // the queries before are read"),
        left_out("no_sync_behind_queries", "", SYNC, "\n#pragma unroll\n    for (int k = 0; k < warp_lines; ++k) {\n      const int r = warp"),
        ("at + lane >= plan.sees(head, slots, first + r)) continue;", ("no_tail_mask",),
         "(!({0}) && at + lane >= plan.sees(head, slots, first + r))) continue;"),
        left_out("no_sync_before_keys", "", SYNC, "\n    load_keys("),
        left_out("no_sync_before_shares", "", SYNC, "\n    for (int r = 0; mine"),
    ),
}

BUG = """#pragma once

#if defined(KVCONDENSE_CUDA_FIBERS)
inline int planted_bug = 0;
#else
__device__ int planted_bug = 0;
#endif
inline constexpr const char* planted_names[] = {%s};
"""


def main():
    include, out, given = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]
    if sorted(given) != sorted(HEADERS):
        sys.exit(f"bugs are there for {sorted(HEADERS)}, not for {sorted(given)}")
    names = ["none"]
    (out / FOLDER).mkdir(parents=True, exist_ok=True)
    for header, places in HEADERS.items():
        text = (include / FOLDER / f"{header}.cuh").read_text()
        for place, bugs, instead in places:
            if text.count(place) != 1:
                sys.exit(f"{header}: {place!r} is not there once")
            numbers = range(len(names), len(names) + len(bugs))
            for i, n in enumerate(numbers):
                instead = instead.replace(f"{{{i}}}", f"planted_bug == {n}")
            text = text.replace(place, instead)
            names += [f"{header}/{b}" for b in bugs]
        (out / FOLDER / f"{header}.cuh").write_text(text.replace("#pragma once\n", f"#pragma once\n\n#include <{FOLDER}/planted_bug.cuh>\n", 1))
    (out / FOLDER / "planted_bug.cuh").write_text(BUG % ", ".join(f'"{n}"' for n in names))


if __name__ == "__main__":
    main()
