#include <bitstream/streams.hpp>
#include <kvcondense/bitstream/range_coder.hpp>
#include <support/oracle.hpp>

using namespace kvcondense;
using namespace kvcondense::test;
using bitstream::RangeCoder;

TEST_CASE("range_coder: streams of the released encoder, oracle I1", "[bitstream][range_coder]") {
  const auto oracle = load_oracle("quantization.json", "I1_cachegen_lmcache_codec");
  std::size_t total = 0;
  for (const auto& channel : oracle.at("channels")) {
    const auto symbols = channel.at("symbols").get<Symbols>();
    const Table t(channel.at("counts").get<std::vector<std::uint32_t>>(), 16);
    const Bytes stream = encoded<RangeCoder>(symbols, t.view());
    REQUIRE(stream == from_hex(channel.at("bitstream_hex")));
    REQUIRE((channel.at("bits_before_padding").get<std::size_t>() + 7) / 8 == stream.size());
    require_round_trip<RangeCoder>(symbols, t.view());
    total += stream.size();
  }
  REQUIRE(total == oracle.at("total_bytes").get<std::size_t>());
}
