// One target under libFuzzer, named by KVCONDENSE_FUZZ_TARGET.
#include <fuzz/fuzz.hpp>

// What all inputs share is made by the first one: before the clock of an input runs.
extern "C" int LLVMFuzzerInitialize(int*, char***) {
  const std::byte zero{};
  kvcondense::fuzz::KVCONDENSE_FUZZ_TARGET.run({&zero, 1});
  return 0;
}

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  kvcondense::fuzz::KVCONDENSE_FUZZ_TARGET.run({reinterpret_cast<const std::byte*>(data), size});
  return 0;
}
