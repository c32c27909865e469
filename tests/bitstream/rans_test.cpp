#include <bitstream/streams.hpp>
#include <kvcondense/bitstream/rans.hpp>
#include <support/oracle.hpp>

using namespace kvcondense;
using namespace kvcondense::test;
using bitstream::Rans;

TEST_CASE("rans: state and words, oracle I3", "[bitstream][rans]") {
  const auto oracle = load_oracle("quantization.json", "I3_rans_optional");
  const auto symbols = oracle.at("symbols").get<Symbols>();
  std::vector<std::uint16_t> starts;
  std::uint32_t at = 0;
  for (const std::uint32_t f : oracle.at("freq")) starts.push_back(static_cast<std::uint16_t>(at)), at += f;
  REQUIRE(at == 4096);
  const bitstream::SymbolTable t{starts.data(), static_cast<int>(starts.size()), 12};
  const auto number = [](const nlohmann::json& hex) {
    return static_cast<std::uint32_t>(std::stoul(hex.get<std::string>(), nullptr, 16));
  };
  Bytes want;
  const std::uint32_t state = number(oracle.at("final_state"));
  for (int i = 0; i < 4; ++i) want.push_back(static_cast<std::byte>(state >> (8 * i)));
  const auto& words = oracle.at("words_in_push_order");
  for (std::size_t w = words.size(); w-- > 0;)
    for (int i = 0; i < 2; ++i) want.push_back(static_cast<std::byte>(number(words[w]) >> (8 * i)));
  REQUIRE(encoded<Rans>(symbols, t) == want);
  require_round_trip<Rans>(symbols, t);
}
