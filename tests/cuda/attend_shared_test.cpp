// Dynamic shared memory of attention, and the blocks of a multiprocessor that it leaves room for
// beside their registers. The host's arithmetic: nothing is launched.

#include <array>
#include <fstream>
#include <sstream>
#include <string>
#include <type_traits>

#include <kvcondense/cuda.cuh>

#include <catch2/catch.hpp>

using namespace kvcondense;
using namespace kvcondense::prim::cuda_kernels;

namespace {

/// A multiprocessor of sm_80, sm_90 and sm_100, in the order of budget.txt.
constexpr std::array<int, 3> shared_of_chip{164 * 1024, 228 * 1024, 228 * 1024};
constexpr int registers_of_chip = 65536, quarters = 4,
              shared_of_system = 1024;  ///< the last of each block

/// Registers that budget.txt gives a kernel on each of them.
std::array<int, 3> registers(const std::string& kernel) {
  std::ifstream file(KVCONDENSE_TEST_DATA "/cuda/budget.txt");
  for (std::string line; std::getline(file, line);) {
    std::istringstream words(line);
    std::string name;
    std::array<int, 3> n{};
    if (words >> name >> n[0] >> n[1] >> n[2] && name == kernel) return n;
  }
  FAIL(kernel << " is not in budget.txt");
  return {};
}

/// "234": blocks of 128 threads of a multiprocessor of each. Each of its quarters has a warp of a
/// block.
std::string blocks(const std::string& kernel, std::size_t shared) {
  static_assert(halves_threads == quarters * cuda::warp_lanes && piece_threads == halves_threads);
  const std::array<int, 3> given = registers(kernel);
  std::string shown;
  for (std::size_t i = 0; i < given.size(); ++i) {
    const int of_registers = registers_of_chip / quarters / (given[i] * cuda::warp_lanes);
    const int of_shared =
        shared_of_chip[i] / (static_cast<int>((shared + 127) / 128 * 128) + shared_of_system);
    shown += std::to_string(of_registers < of_shared ? of_registers : of_shared);
  }
  return shown;
}

constexpr index_t page_slots = 128;

template <class K, class V, int Dim>
std::size_t ring_bytes(const K& k, const V& v) {
  return halves_shared<Dim>(ring_layout(k, page_slots, v, page_slots, Dim, Dim));
}

struct Format {
  int dim, bits;
  prim::GroupAxis axis;  ///< of keys; values have their own scales for every slot
  index_t group;         ///< of keys
  std::array<std::size_t, 3>
      bytes;  ///< values in groups of 32, 64 and 128; none of 128 in heads of 64
  std::array<const char*, 3> blocks;
};

template <int Bits, int Dim>
void check(const Format& ring) {
  using Codec = prim::GroupInt<Bits>;
  const std::string b = std::to_string(Bits), kernel = "attend_halves<GroupInt<" + b +
                                                       ">,GroupInt<" + b + ">," +
                                                       std::to_string(Dim) + ">";
  const std::array<index_t, 3> groups{32, 64, 128};
  for (std::size_t i = 0; i < groups.size(); ++i) {
    const Codec k{.axis = ring.axis, .group_size = ring.group},
        v{.axis = prim::GroupAxis::token, .group_size = groups[i]};
    const std::size_t bytes = v.valid(Dim) ? ring_bytes<Codec, Codec, Dim>(k, v) : 0;
    INFO(kernel << (ring.axis == prim::GroupAxis::channel ? " channel " : " token ") << ring.group
                << ", values " << groups[i]);
    CHECK(bytes == ring.bytes[i]);
    CHECK((bytes == 0 ? std::string() : blocks(kernel, bytes)) == ring.blocks[i]);
  }
}

constexpr auto channel = prim::GroupAxis::channel, token = prim::GroupAxis::token;
constexpr Format formats[] = {
    {64, 2, channel, 32, {70656, 69632, 0}, {"233", "233", ""}},
    {64, 2, channel, 64, {72704, 70656, 0}, {"233", "233", ""}},
    {64, 2, channel, 128, {72704, 70656, 0}, {"233", "233", ""}},
    {64, 2, token, 32, {74752, 72704, 0}, {"233", "233", ""}},
    {64, 2, token, 64, {72704, 70656, 0}, {"233", "233", ""}},
    {64, 4, channel, 32, {70656, 69632, 0}, {"233", "233", ""}},
    {64, 4, channel, 64, {72704, 70656, 0}, {"233", "233", ""}},
    {64, 4, channel, 128, {72704, 70656, 0}, {"233", "233", ""}},
    {64, 4, token, 32, {74752, 72704, 0}, {"233", "233", ""}},
    {64, 4, token, 64, {72704, 70656, 0}, {"233", "233", ""}},
    {64, 8, channel, 32, {70656, 69632, 0}, {"233", "233", ""}},
    {64, 8, channel, 64, {72704, 70656, 0}, {"233", "233", ""}},
    {64, 8, channel, 128, {72704, 70656, 0}, {"233", "233", ""}},
    {64, 8, token, 32, {74752, 72704, 0}, {"233", "233", ""}},
    {64, 8, token, 64, {72704, 70656, 0}, {"233", "233", ""}},
    {128, 2, channel, 32, {74752, 72704, 71680}, {"233", "233", "233"}},
    {128, 2, channel, 64, {78848, 74752, 72704}, {"222", "233", "233"}},
    {128, 2, channel, 128, {78848, 74752, 72704}, {"222", "233", "233"}},
    {128, 2, token, 32, {82944, 78848, 76800}, {"222", "222", "233"}},
    {128, 2, token, 64, {78848, 74752, 72704}, {"222", "233", "233"}},
    {128, 2, token, 128, {76800, 72704, 70656}, {"233", "233", "233"}},
    {128, 4, channel, 32, {74752, 72704, 71680}, {"233", "233", "233"}},
    {128, 4, channel, 64, {78848, 74752, 72704}, {"222", "233", "233"}},
    {128, 4, channel, 128, {78848, 74752, 72704}, {"222", "233", "233"}},
    {128, 4, token, 32, {82944, 78848, 76800}, {"222", "222", "233"}},
    {128, 4, token, 64, {78848, 74752, 72704}, {"222", "233", "233"}},
    {128, 4, token, 128, {76800, 72704, 70656}, {"233", "233", "233"}},
    {128, 8, channel, 32, {74752, 72704, 71680}, {"233", "233", "233"}},
    {128, 8, channel, 64, {74752, 72704, 71680}, {"233", "233", "233"}},
    {128, 8, channel, 128, {74752, 72704, 71680}, {"233", "233", "233"}},
    {128, 8, token, 32, {74752, 72704, 71680}, {"233", "233", "233"}},
    {128, 8, token, 64, {72704, 70656, 69632}, {"233", "233", "233"}},
    {128, 8, token, 128, {71680, 69632, 68608}, {"233", "233", "233"}},
};

}  // namespace

TEST_CASE("cuda attend: shared memory of tensor cores, and the blocks that fit") {
  const std::size_t exact[] = {ring_bytes<prim::ExactRows, prim::ExactRows, 64>({}, {}),
                               ring_bytes<prim::ExactRows, prim::ExactRows, 128>({}, {})};
  CHECK(exact[0] == 66560);
  CHECK(blocks("attend_halves<ExactRows,ExactRows,64>", exact[0]) == "233");
  CHECK(exact[1] == 66560);
  CHECK(blocks("attend_halves<ExactRows,ExactRows,128>", exact[1]) == "233");
  for (const Format& r : formats) {
    if (r.bits == 2) r.dim == 64 ? check<2, 64>(r) : check<2, 128>(r);
    if (r.bits == 4) r.dim == 64 ? check<4, 64>(r) : check<4, 128>(r);
    if (r.bits == 8) r.dim == 64 ? check<8, 64>(r) : check<8, 128>(r);
  }
}

TEST_CASE("cuda attend: shared memory of float32, and the blocks that fit") {
  struct Piece {
    index_t dim, reach;
    std::size_t bytes;
    const char *blocks, *exact_blocks;
    std::size_t latent;
    const char* latent_blocks;
  };
  const Piece pieces[] = {
      {64, 0, 19424, "444", "544", 27680, "333"},  {64, 8, 35936, "444", "444", 44192, "333"},
      {128, 0, 27616, "444", "544", 35872, "333"}, {128, 8, 52320, "344", "344", 60576, "233"},
      {256, 0, 44000, "344", "344", 52256, "333"}, {256, 8, 85088, "122", "122", 93344, "122"},
  };
  for (const Piece& p : pieces) {
    prim::KeyTurn turn;
    turn.reach = p.reach;
    INFO("heads of " << p.dim << ", reach " << p.reach);
    const std::size_t bytes = piece_shared(turn, p.dim, p.dim),
                      latent = latent_shared(turn, p.dim, p.dim);
    CHECK(bytes == p.bytes);
    CHECK(blocks("attend_piece<GroupInt<4>,GroupInt<4>>", bytes) == p.blocks);
    CHECK(blocks("attend_piece<ExactRows,ExactRows>", bytes) == p.exact_blocks);
    CHECK(latent == p.latent);
    CHECK(blocks("attend_latent_piece<Latent<GroupInt<4>>,Latent<GroupInt<4>>>", latent) ==
          p.latent_blocks);
  }
}

TEST_CASE("cuda attend: shared memory of coordinates on tensor cores, and the blocks that fit") {
  using Codec = prim::GroupInt<4>;
  const Codec codec{.axis = token, .group_size = 32};
  const auto bytes = [&]<int Dim, int Rank>(const auto& rows) {
    using Rows = StoredColumn<std::remove_cvref_t<decltype(rows)>>;
    return latent_halves_shared<Dim, Rank>(
        ring_layout(Rows{rows, page_slots, Rank}, Rows{rows, page_slots, Rank}, Dim, Rank));
  };
  const auto check = [](const std::string& type, const char* sizes, std::size_t shared,
                        std::size_t wanted, const char* fit) {
    const std::string kernel = "attend_latent_halves<" + type + "," + type + "," + sizes + ">";
    INFO(kernel);
    CHECK(shared == wanted);
    CHECK(blocks(kernel, shared) == fit);
  };
  const std::string exact = "Latent<ExactRows>", coded = "Latent<GroupInt<4>>";
  const HalfCoordinates halves;
  check(exact, "64,64", bytes.operator()<64, 64>(halves), 68736, "233");
  check(exact, "128,64", bytes.operator()<128, 64>(halves), 69760, "222");
  check(exact, "128,128", bytes.operator()<128, 128>(halves), 70784, "222");
  check(coded, "64,64", bytes.operator()<64, 64>(codec), 76928, "222");
  check(coded, "128,64", bytes.operator()<128, 64>(codec), 77952, "222");
  check(coded, "128,128", bytes.operator()<128, 128>(codec), 87168, "122");
}
