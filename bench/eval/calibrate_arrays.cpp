#include <eval/calibrate_arrays.hpp>

#include <algorithm>

#include <eval/calibrate_quant.hpp>
#include <eval/calibrate_retrieval.hpp>
#include <eval/table.hpp>

namespace eval {
namespace {

/// Adds the rows of one of `heads` heads.
void add_rows(std::vector<float>& to, const std::vector<float>& all, index_t heads, index_t head, index_t dim) {
  for (auto at = all.begin() + head * dim; at < all.end(); at += std::min<std::ptrdiff_t>(heads * dim, all.end() - at)) to.insert(to.end(), at, at + dim);
}

TokensNeeded any_number(const Calibration&, const CacheShape&) { return {}; }
TokensNeeded all_directions(const Calibration&, const CacheShape& s) { return {s.head_dim, std::to_string(s.head_dim) + " directions"}; }
TokensNeeded more_than_codes(const Calibration& how, const CacheShape& s) {
  return how.codes < s.head_dim ? all_directions(how, s) : TokensNeeded{how.codes + 1, std::to_string(how.codes) + " codes"};
}

}  // namespace

std::vector<float> HeadOfTexts::keys() const {
  std::vector<float> rows;
  for (const Recording* r : texts) add_rows(rows, r->layers[static_cast<std::size_t>(layer)].k, shape().kv_heads, head, shape().head_dim);
  return rows;
}

std::vector<float> HeadOfTexts::values() const {
  std::vector<float> rows;
  for (const Recording* r : texts) add_rows(rows, r->layers[static_cast<std::size_t>(layer)].v, shape().kv_heads, head, shape().values());
  return rows;
}

std::vector<float> HeadOfTexts::queries() const {
  std::vector<float> rows;
  const index_t group = shape().group();
  for (index_t g = head * group; g < (head + 1) * group; ++g)
    for (const Recording* r : texts) add_rows(rows, r->layers[static_cast<std::size_t>(layer)].q, shape().q_heads, g, shape().head_dim);
  return rows;
}

const HeadFit* find_head_fit(const std::string& method) {
  static const std::vector<HeadFit> all{
      {"commvq", true, nullptr, {"keys lose", "values lose"}, any_number, head_books},
      {"loki", false, nullptr, {"key 90%", "key 99%"}, all_directions, head_key_axes},
      {"infinigen", false, "infinigen's directions meet queries as attention compares them", {"query 90%", "query 99%"}, all_directions, head_query_axes},
      {"qfilters", false, "qfilters' directions meet keys as attention compares them", {"squares along", "queries away"}, any_number, head_query_filters},
      {"a2ats", true, "a2ats codes keys before rotation", {"keys lose"}, more_than_codes, head_key_codes}};
  for (const HeadFit& f : all)
    if (method == f.method) return &f;
  return nullptr;
}

std::string put_arrays(const HeadFit& fit, const std::vector<HeadArrays>& heads, const CacheShape& shape, MethodBases& to) {
  std::vector<std::vector<std::string>> text{{"layer", "head"}};
  text[0].insert(text[0].end(), fit.columns.begin(), fit.columns.end());
  to.arrays = heads[0].arrays;
  for (FactArray& a : to.arrays) a.numbers.clear(), a.extent.insert(a.extent.begin(), {shape.layers, shape.kv_heads});
  for (std::size_t i = 0; i < heads.size(); ++i) {
    for (std::size_t a = 0; a < to.arrays.size(); ++a) {
      const std::vector<float>& numbers = heads[i].arrays[a].numbers;
      to.arrays[a].numbers.insert(to.arrays[a].numbers.end(), numbers.begin(), numbers.end());
    }
    const auto of = static_cast<std::size_t>(shape.kv_heads);
    text.push_back({std::to_string(i / of), std::to_string(i % of)});
    text.back().insert(text.back().end(), heads[i].said.begin(), heads[i].said.end());
  }
  return aligned(text);
}

}  // namespace eval
