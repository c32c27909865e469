#pragma once
// What a launch cost, in the units that decide its speed on a device.

#include <string>
#include <vector>

#include "program.hpp"

namespace ptx {

struct Counters {
  u64 launches = 0;
  u64 warp_instructions = 0;
  u64 global_requests = 0;  // one per warp instruction
  u64 global_sectors = 0;   // of 32 bytes
  u64 global_bytes = 0;     // asked for
  u64 shared_requests = 0;
  u64 shared_waves = 0;        // passes over the 32 banks
  u64 shared_ideal_waves = 0;  // the same without conflicts

  Counters& operator+=(Counters const& other);
};

/// Counts one access of `bytes` bytes a lane.
void count_global(Counters&, u64 const (&address)[warp_size], Mask lanes, u32 bytes);
void count_shared(Counters&, Instruction const&, u64 const (&address)[warp_size], Mask lanes,
                  u32 bytes);

struct OpcodeCount {
  std::string opcode;
  u64 executed = 0;
};
struct ConflictCount {
  std::string where;
  u64 waves = 0, ideal_waves = 0;
};
/// By opcode, most first; of instructions with bank conflicts, worst first.
std::vector<OpcodeCount> opcode_counts(std::vector<Module const*> const&);
std::vector<ConflictCount> conflict_counts(std::vector<Module const*> const&);

}  // namespace ptx
