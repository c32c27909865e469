#pragma once
// What a test built with kvcondense_ptx_test may ask of the emulated device. No CUDA header.
//
// Streams run as late as they may: work is done when somebody waits for it, so a host that does
// not wait reads what was there before. PTX_EMULATION_EAGER=1 runs it at once; so does order().
// PTX_EMULATION_STATS=1 prints the counters when the program ends.

#include <string>
#include <vector>

#include "counters.hpp"

namespace ptx::emulation {

enum class OnFault {
  stop,   // print the fault and end the program with status 70 (the default)
  report  // the call returns cudaErrorLaunchFailure, and fault() says why
};
void on_fault(OnFault);
/// The last fault, or nothing; forgets it, and the device works again.
std::string fault();

enum class Order { late, eager };
void order(Order);

/// Whether there is a device; without one every call that may fail says cudaErrorNoDevice.
void device_there(bool);

/// Counting accesses is slower by a half; opcodes and instructions are always counted.
void count_accesses(bool);
Counters counters();
void reset_counters();
std::vector<OpcodeCount> opcodes();
std::vector<ConflictCount> conflicts();
/// Bytes the program has allocated on the device.
u64 device_bytes();

}  // namespace ptx::emulation
