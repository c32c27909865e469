// One target under libFuzzer, named by KVCONDENSE_FUZZ_TARGET.
#include <fuzz/fuzz.hpp>

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  kvcondense::fuzz::KVCONDENSE_FUZZ_TARGET.run({reinterpret_cast<const std::byte*>(data), size});
  return 0;
}
