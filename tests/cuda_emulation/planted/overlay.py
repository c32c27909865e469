#!/usr/bin/env python3
"""Writes attend_halves.cuh with bugs that a number chooses while it runs: what emulations must find in the kernel itself.

    overlay.py HEADER OUT
"""

import sys
from pathlib import Path

WAIT = "    cuda::copy_async_wait<ring_stages - 1>();\n    __syncwarp();\n    const TileHead tile"

# a place of the kernel, with its bugs in braces
PLACES = (
    (WAIT, ("no_copy_wait", "weak_copy_wait", "no_sync_after_wait"),
     "    if ({1}) cuda::copy_async_wait<ring_stages>();\n    else if (!({0})) cuda::copy_async_wait<ring_stages - 1>();\n"
     "    if (!({2})) __syncwarp();\n    const TileHead tile"),
    ("      __syncwarp();  // keys of this step are read", ("no_sync_in_step",), "      if (!({0})) __syncwarp();"),
    ("    __syncwarp();  // all lanes are done with the stage", ("no_sync_before_refill",), "    if (!({0})) __syncwarp();"),
    ("  __syncthreads();  // rings are done with", ("no_sync_before_sums",), "  if (!({0})) __syncthreads();"),
    ("  __syncthreads();\n  for (int x", ("no_sync_before_merge",), "  if (!({0})) __syncthreads();\n  for (int x"),
    ("const bool sees = 16 * u", ("no_tail_mask",), "const bool sees = ({0}) || 16 * u"),
    ("= __shfl_xor_sync(cuda::full_warp, largest[e], d);", ("mask_without_me",),
     "= __shfl_xor_sync(({0}) ? 0x0000ffffu : cuda::full_warp, largest[e], d);"),
    ("total[e] += __shfl_xor_sync(cuda::full_warp, total[e], d);", ("source_outside_mask",),
     "if (!({0}) || lane < 16) total[e] += __shfl_xor_sync(({0}) ? 0x0000ffffu : cuda::full_warp, total[e], d);"),
    ("cuda::dyn_smem()) + warp * ring_stages", ("shared_overrun",), "cuda::dyn_smem()) + (warp + (({0}) ? 1 : 0)) * ring_stages"),
    (", slots = heads.slots[head], size", ("global_overrun",), ", slots = heads.slots[head] + (({0}) ? 8 : 0), size"),
)


def main():
    header, out = map(Path, sys.argv[1:])
    text, names = header.read_text(), ["none"]
    for place, bugs, instead in PLACES:
        if text.count(place) != 1:
            sys.exit(f"{header}: {place!r} is not there once")
        numbers = range(len(names), len(names) + len(bugs))
        text = text.replace(place, instead.format(*(f"planted_bug == {n}" for n in numbers)))
        names += bugs
    begin = "namespace kvcondense::prim::cuda_kernels {"
    quoted = ", ".join(f'"{n}"' for n in names)
    bug = ("#if defined(KVCONDENSE_CUDA_FIBERS)\ninline int planted_bug = 0;\n#else\n__device__ int planted_bug = 0;\n#endif\n"
           f"inline constexpr const char* planted_names[] = {{{quoted}}};\n\n")
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(text.replace(begin, bug + begin, 1))


if __name__ == "__main__":
    main()
