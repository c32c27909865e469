#include <fuzz/fuzz.hpp>

#include <random>

#include <stateful/program.hpp>

namespace kvcondense::fuzz {
namespace {

// Four bytes choose a recipe, each five after them are a call.
void run(Bytes bytes) {
  Reader in(bytes);
  std::mt19937 random(in.take<std::uint32_t>() % 4096);
  test::Program p = test::random_program(random);
  p.calls.clear();
  while (!in.done() && p.calls.size() < 24) {
    test::Call call;
    call.kind = in.up_to(test::Call::weights - 1), call.a = in.take<std::uint16_t>(), call.b = in.take<std::uint16_t>();
    p.calls.push_back(call);
  }
  if (const auto why = test::broken(p)) throw test::Broken(*why + "\n" + test::described(p));
}

std::vector<Input> seeds() {
  std::vector<Input> list;
  for (int seed = 0; seed < 6; ++seed) {
    Input one{static_cast<std::byte>(seed), std::byte{0}, std::byte{0}, std::byte{0}};
    for (int i = 0; i < 60; ++i) one.push_back(static_cast<std::byte>((seed + 3) * i * 29 % 253));
    list.push_back(one);
  }
  return list;
}

}  // namespace

const Target cache_calls{"cache_calls", run, seeds};

}  // namespace kvcondense::fuzz
