// Every number of the worked cases is read by a test, or it stands below why not. Read from the text of the tests: whether
// a test fails where the library differs is for that test to say.

#include <cctype>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <set>
#include <sstream>
#include <string>
#include <vector>

#include <catch2/catch.hpp>

#include <support/oracle.hpp>

using namespace kvcondense;

namespace {

const std::set<std::string> oracle_words{"desc", "note", "rule", "formula", "convention", "order", "trigger", "tie_break"};

const std::map<std::string, std::string> oracle_keys_left_out{
    // Sizes that the case's lists have, or that its tests write out: all are of one fixture, or of one small example.
    {"fixture_FX1", "T n_prompt head_dim num_q_heads num_kv_heads A_prompt WO"},  // other cases hold what is made of the last two
    {"h2o", "budget group_agg"},
    {"observed_attention", "n_kept"},
    {"caote", "params query_head row kv_head X H_norm evict_h2o_only"},
    {"caote_greedy", "params query_head row evictions scores"},
    {"longgen", "num_blocks sparse"},
    {"kvzip", "scale n_index threshold"},
    {"locret", "act chunk seq_len stabilizers_active hidden"},
    {"prefixkv", "target_forget start_size protect_last scaled"},
    {"block_left_padding", "pad total_mass column_sum_no_padding"},
    // What lies between the inputs and the scores, sets or outputs that are compared, or what those say in other words.
    {"streaming_llm", "key_positions query_position"},  // the worked attention is compared, tests/cache/oracles_test.cpp
    {"tova", "evicted"},
    {"h2o_scripted", "evicted"},
    {"snapkv", "raw_window_sums"},
    {"rkv", "retain importance_pooled zeroed_column_per_row redundancy"},
    {"keyformer", "query_head token visible"},
    {"alisa_swa", "global_dynamic local_static"},
    {"keydiff", "anchor pairwise_neg_rowsum"},
    {"criticalkv", "epsilon base stage1 stage2_scores stage2"},
    {"pyramidkv", "mode clamped min_num max_num step prefix_capacity fallback"},
    {"razor", "scale embeddings pairs log_N probs"},
    {"adakv", "floor_0_0 floor_0_2 floor_0_5 n_kept n_safe"},
    {"chunkkv", "top_chunks"},
    {"expected_attention", "head_dim rope_base R_bar mu_rot logits"},
    {"lagkv", "key_scores value_scores selected_in_partition"},
    {"block_gqa_aggregation", "logits"},
    {"block_subset_attention", "probs out_full_cache"},
    {"streaming_attention", "probs"},
    {"paged_h2o", "tracked_tokens evictable_pages page_scores evicted_pages"},
    {"block_pooling", "k3 k5"},  // built from the width
    {"rounding_pitfalls", "float64_trunc"},  // what comes of the mistake
    {"scissorhands", "observations high_fraction dropped"},  // counts against a slot decide, not its share of good ones
    // Training.
    {"dms", "token gumbel_sigmoid logit noise tau prob schedule initial_cr final_cr max_steps points step cr target_evict_fraction"},
    {"duo", "teacher student distill reg_weight total token"},  // on another scale: tests/eval/gate_search_test.cpp
};

std::set<std::string> oracle_words_of(const std::string& list) {
  std::istringstream in(list);
  return {std::istream_iterator<std::string>(in), {}};
}

void oracle_keys_in(const nlohmann::json& from, std::set<std::string>& keys) {
  for (const auto& [key, value] : from.items()) {
    if (from.is_object() && std::isalpha(static_cast<unsigned char>(key[0])) != 0) keys.insert(key);  // numbers are gone through
    if (value.is_structured()) oracle_keys_in(value, keys);
  }
}

}  // namespace

TEST_CASE("oracles: every case of eviction is asked for by a test, and every key of it is read there or left out for a reason", "[evict][oracle]") {
  std::vector<std::string> tests;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(KVCONDENSE_TEST_DATA)) {
    const auto end = entry.path().extension();
    if (!entry.is_regular_file() || (end != ".cpp" && end != ".hpp") || entry.path().filename() == "oracle_keys_test.cpp") continue;
    std::ifstream in(entry.path());
    std::string text{std::istreambuf_iterator<char>(in), {}};
    if (text.find("oracle(\"") != text.npos) tests.push_back(std::move(text));
  }
  const auto cases = test::read_json(KVCONDENSE_TEST_DATA "/oracles/eviction.json").at("oracles");
  std::string nowhere;
  for (const auto& [name, values] : cases.items()) {
    std::string text;  // of the tests that ask for the case
    for (const auto& t : tests)
      if (t.find("eviction_oracle(\"" + name + "\")") != t.npos || t.find("eviction.json\", \"" + name + "\")") != t.npos) text += t;
    if (text.empty()) nowhere += name + " ";
    const auto left = oracle_keys_left_out.find(name);
    const auto known = oracle_words_of(left == oracle_keys_left_out.end() ? "" : left->second);
    std::set<std::string> keys;
    oracle_keys_in(values, keys);
    for (const std::string& key : keys)
      if (oracle_words.count(key) + known.count(key) == 0 && text.find("\"" + key + "\"") == text.npos) nowhere += name + "." + key + " ";
  }
  REQUIRE(nowhere == "");
}
