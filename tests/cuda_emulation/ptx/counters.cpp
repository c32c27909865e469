#include "counters.hpp"

#include <algorithm>
#include <map>

namespace ptx {

Counters& Counters::operator+=(Counters const& other) {
  launches += other.launches;
  warp_instructions += other.warp_instructions;
  global_requests += other.global_requests;
  global_sectors += other.global_sectors;
  global_bytes += other.global_bytes;
  shared_requests += other.shared_requests;
  shared_waves += other.shared_waves;
  shared_ideal_waves += other.shared_ideal_waves;
  return *this;
}

void count_global(Counters& counters, u64 const (&address)[warp_size], Mask lanes, u32 bytes) {
  u64 sectors[2 * warp_size];
  u32 count = 0;
  for (u32 lane = 0; lane < warp_size; ++lane) {
    if (!(lanes >> lane & 1)) continue;
    for (u64 s = address[lane] / 32; s <= (address[lane] + bytes - 1) / 32; ++s)
      if (std::find(sectors, sectors + count, s) == sectors + count) sectors[count++] = s;
    counters.global_bytes += bytes;
  }
  ++counters.global_requests;
  counters.global_sectors += count;
}

void count_shared(Counters& counters, Instruction const& instruction,
                  u64 const (&address)[warp_size], Mask lanes, u32 bytes) {
  // Wide accesses go in phases, so that a phase moves at most 128 bytes.
  u32 const in_phase = bytes <= 4 ? 32 : bytes == 8 ? 16 : 8;
  ++counters.shared_requests, ++instruction.requests;
  for (u32 first = 0; first < warp_size; first += in_phase) {
    u32 words[32][warp_size], count[32] = {}, worst = 0;  // different words asked of each bank
    for (u32 lane = first; lane < first + in_phase; ++lane) {
      if (!(lanes >> lane & 1)) continue;
      for (u32 part = 0; part < std::max(1U, bytes / 4); ++part) {
        u32 const word = static_cast<u32>(address[lane] / 4 + part), bank = word % 32;
        u32* const end = words[bank] + count[bank];
        if (std::find(words[bank], end, word) != end) continue;
        *end = word;
        worst = std::max(worst, ++count[bank]);
      }
    }
    if (worst == 0) continue;
    counters.shared_waves += worst, instruction.waves += worst;
    ++counters.shared_ideal_waves, ++instruction.ideal_waves;
  }
}

std::vector<OpcodeCount> opcode_counts(std::vector<Module const*> const& modules) {
  std::map<std::string, u64> sums;
  for (Module const* const module : modules)
    for (Instruction const& i : module->code)
      if (i.executed) sums[module->opcode_names[i.opcode]] += i.executed;
  std::vector<OpcodeCount> out;
  for (auto const& [opcode, executed] : sums) out.push_back({opcode, executed});
  std::stable_sort(out.begin(), out.end(),
                   [](auto const& a, auto const& b) { return a.executed > b.executed; });
  return out;
}

std::vector<ConflictCount> conflict_counts(std::vector<Module const*> const& modules) {
  std::vector<ConflictCount> out;
  for (Module const* const module : modules)
    for (Function const& f : module->functions)
      for (u32 at = f.start; at < f.end; ++at)
        if (Instruction const& i = module->code[at]; i.waves > i.ideal_waves)
          out.push_back({f.name + ": " + i.text, i.waves, i.ideal_waves});
  std::stable_sort(out.begin(), out.end(), [](auto const& a, auto const& b) {
    return a.waves - a.ideal_waves > b.waves - b.ideal_waves;
  });
  return out;
}

}  // namespace ptx
