#pragma once

#include <algorithm>
#include <string>
#include <vector>

#include <kvcondense/core/config.hpp>

namespace kvcondense::bench {

/// A policy of about 4,096 slots a head behind its prompt, and how it is measured. Tokens are whole periods where slots leave
/// in bursts.
struct Method {
  const char* recipe;
  index_t tokens = 512;  ///< generated; 0: not measured alone
  index_t prompt = 4096;
  std::vector<index_t> every = {128, 256};  ///< and in `every` of so many tokens
  index_t turn = 0;                         ///< tokens between two turns
  const char* stored = "";                  ///< stages behind the policy
};

constexpr index_t twice = 8192;  ///< a prompt of which half stays

inline const std::vector<Method> methods = {
    // No scores.
    {"keep_all", 512, 4096, {}, 0, " + kivi4(group=32)"},  // what coding costs by itself
    {"sliding_window(window=4096)", 512, 4096, {}},
    {"sink_window(recent=4092)", 512, 4096, {}},
    {"strided_blocks(local=4, every=2)", 512, twice, {}},
    {"duo_attention(sparsity=0.5)", 512, twice, {}},
    {"razor_attention(induction_part=0.3, echo_part=0.2)", 512, twice, {}},
    // Attention so far.
    {"h2o(heavy=2048, recent=2048)"},
    {"h2o(heavy=2048, recent=2048)", 512, 4096, {128, 256}, 0, " + kivi4(group=32)"},
    {"paged_h2o(evictable=3936)"},
    {"prefixkv", 512, twice},
    {"keyformer(tokens=4096)", 64, 4096, {}},
    {"observed_attention(keep=0.5)", 512, twice},
    // Attention of the newest queries.
    {"tova(tokens=4096)"},
    {"tova(tokens=4096)", 0, 4096, {128, 256}, 0, " + kivi4(group=32)"},
    {"snapkv(tokens=4096)", 512, twice},
    {"finch(keep=0.5)", 512, twice},
    {"nacl(tokens=4096)", 512, twice},
    {"chunkkv(tokens=4096)", 512, twice},
    {"scissorhands(tokens=4224, drop=128)", 256, 4224, {}},
    {"scissorhands(tokens=2730, drop=2730)", 2730, 4096, {}},  // half of the budget of 5,460, as in its paper
    {"scissorhands(tokens=2730, drop=2730, history=16)", 2730, 4096, {}},
    {"rkv(tokens=4096, slack=128)", 128, 4096, {}},  // as often as its authors
    {"rkv(tokens=4096, slack=512)", 512, 4096, {}},
    {"alisa(ratio=0.5)", 16, twice, {128}},
    {"alisa(ratio=0.5, history=4)", 16, twice, {128, 256}},
    {"fastgen(recovery=0.6)", 128, twice, {128}},
    {"simlayerkv(threshold=0.9)", 512, twice},
    // Keys and values.
    {"knorm(tokens=4096)"},
    {"keydiff(tokens=4096)", 64, 4096, {128, 256, 512}},
    {"qfilters(keep=0.5)", 512, twice},
    {"lagkv(keep=0.5)", 512, twice},
    {"expected_attention(keep=0.5)", 128, twice, {128}},
    {"expected_attention(keep=0.5, covariance=false)", 512, twice},
    // Numbers of tokens.
    {"sirllm(memory=2044, recent=2048)", 512, 4096, {}, 512},
    {"dms(window=512)", 512, twice, {}},
    {"locret(tokens=4096)", 128, twice, {}},
    {"kvzip(keep=0.5)", 512, twice, {}, 512},
    // Wrappers.
    {"caote(h2o(heavy=2048, recent=2048))", 64, 4096, {128, 256, 512}},
    {"caote(tova(tokens=4096))", 0, 4096, {128, 256, 512}},
    {"critical(h2o(heavy=2048, recent=2048))", 0, 4096, {128}},
    {"kvcrush(h2o(heavy=2048, recent=2048))", 128},
    {"kvcrush(tova(tokens=4096))", 0},
    {"chunked(h2o(heavy=2048, recent=2048))", 128},
    {"page_round(h2o(heavy=2048, recent=2048))", 128},
    {"page_round(keydiff(tokens=4096))", 0},
    {"compensate(h2o(heavy=2048, recent=2048))"},
    {"exit_threshold(h2o(heavy=2048, recent=2048), least=1.5)", 512, twice, {}},
    {"block_prefill(h2o(heavy=2048, recent=2048))"},
    // Budgets.
    {"uniform(h2o(recent=2048), tokens=4096)"},
    {"ratio(h2o(recent=2048), keep=0.5)", 512, twice},
    {"pyramid(h2o(heavy=2048, recent=2048))", 512, twice},
    {"ada(h2o(heavy=2048, recent=2048))"},
    {"skip_layers(h2o(heavy=2048, recent=2048), layers=1)"},
    {"layer_pattern(h2o(heavy=2048, recent=2048))"},
    {"head_table(h2o(heavy=2048, recent=2048))", 512, twice},
    {"prefix_mass(h2o(heavy=2048, recent=2048))", 512, twice},
    {"variance(h2o(heavy=2048, recent=2048))", 512, twice},
    {"global_top(h2o(recent=2048), keep=0.5)", 512, twice, {}, 512},
};

/// One row of the table.
struct Row {
  std::string recipe;
  index_t tokens;
  index_t prompt;
  index_t turn;
};

inline std::vector<Row> rows() {
  std::vector<Row> all;
  for (const Method& m : methods) {
    if (m.tokens > 0) all.push_back({std::string(m.recipe) + m.stored, m.tokens, m.prompt, m.turn});
    for (const index_t n : m.every)
      all.push_back({"every(" + std::string(m.recipe) + ", tokens=" + std::to_string(n) + ")" + m.stored,
                     std::max(n, std::min<index_t>(m.tokens, 512)), m.prompt, m.turn});
  }
  return all;
}

}  // namespace kvcondense::bench
