#include <retrieve/rig.hpp>

using namespace kvcondense;

TEST_CASE("read_all: everything is read, and counted", "[retrieve][read_all]") {
  const auto oracle = test::load_oracle("retrieval_reuse_storage.json", "quest");
  test::RetrieveRig<retrieve::ReadAll> rig(oracle["K"], oracle["V"], 2, 0.5f, retrieve::ReadAll{});
  const auto seen = rig.attend(test::floats(oracle["Q"]));
  for (std::size_t i = 0; i < 4; ++i) REQUIRE(seen.out[i] == Approx(test::floats(oracle["dense_out"])[i]).margin(1e-6));
  REQUIRE(seen.slots[0].size() == 18);
  REQUIRE(seen.slots[1] == seen.slots[0]);
  REQUIRE(seen.reads.slots_read == 18);
  REQUIRE(seen.reads.slot_bytes == 18 * (4 + 2) * 4);
  REQUIRE(seen.reads.units_scored == 0);
  REQUIRE(rig.rig.cache.report().index_bytes == 0);
  REQUIRE_FALSE(rig.rig.cache.capabilities().reads_part);
}
