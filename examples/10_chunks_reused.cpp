// Four chunks of text whose keys and values are already there stand in a prompt in another order. Nothing,
// a part, or all of them is computed again, and the answer to a question is compared with a full prefill.

#include <cmath>
#include <cstdio>
#include <string>
#include <utility>
#include <vector>

#include <engine/chunk_reuse.hpp>
#include <engine/dense_attention.hpp>
#include <engine/json_text.hpp>

namespace reuse = kvcondense::reuse;
using kvcondense::index_t;

namespace {

/// How far the next token's distribution is from the one wanted, in bits.
double divergence(const std::vector<float>& want, std::span<const float> got) {
  const auto log_sum = [](std::span<const float> x) {
    double sum = 0;
    for (const float v : x) sum += std::exp(static_cast<double>(v) - static_cast<double>(x[0]));
    return static_cast<double>(x[0]) + std::log(sum);
  };
  const double a = log_sum(want), b = log_sum(got);
  double kl = 0;
  for (std::size_t i = 0; i < want.size(); ++i) {
    const double p = static_cast<double>(want[i]) - a, q = static_cast<double>(got[i]) - b;
    kl += std::exp(p) * (p - q);
  }
  return kl / std::log(2.0);
}

struct Row {
  const char* name;
  double bits = 0, computed = 0;
};

}  // namespace

int main() {
  const std::string folder = KVCONDENSE_EXAMPLES_DIR "/models/tinylm";
  std::string why;
  const auto model = engine::load_model(folder, why);
  const auto text = engine::read_file(folder + "/heldout.txt", std::size_t{1} << 24, why);
  if (!model || !text) return std::printf("%s\n", why.c_str()), 1;
  const auto piece = [&](std::size_t first, std::size_t n) {
    std::vector<std::int32_t> ids;
    for (std::size_t i = 0; i < n; ++i) ids.push_back(static_cast<unsigned char>((*text)[first + i]));
    return ids;
  };

  constexpr std::size_t size = 128, prompts = 12;
  Row rows[] = {{"each made alone, as it is"}, {"cacheblend, 15 % behind the second layer"}, {"cacheblend, 25 %"},
                {"made in another order, as it is"}, {"cache_craft"}};
  for (std::size_t p = 0; p < prompts; ++p) {
    const std::size_t first = 10000 + p * 20000;
    std::vector<std::pair<reuse::ChunkId, std::vector<std::int32_t>>> chunks;
    for (std::size_t i = 0; i < 4; ++i) chunks.emplace_back(static_cast<reuse::ChunkId>(i), piece(first + i * size, size));
    const auto question = piece(first + 4 * size, 40);

    // What a store would hold: each chunk as it was made alone, and all four as they stood in an earlier prompt.
    std::vector<engine::StoredChunk> alone;
    for (const auto& c : chunks) {
      auto made = engine::store_chunks(*model, {c});
      if (!made) return 1;
      alone.push_back(std::move((*made)[0]));
    }
    const auto together = engine::store_chunks(*model, chunks);
    if (!together) return 1;
    const std::size_t order[] = {2, 0, 1, 3};
    std::vector<const engine::StoredChunk*> a, b;
    std::vector<std::int32_t> all;
    for (const std::size_t i : order) {
      a.push_back(&alone[i]), b.push_back(&(*together)[i]);
      all.insert(all.end(), chunks[i].second.begin(), chunks[i].second.end());
    }
    all.insert(all.end(), question.begin(), question.end());
    engine::DenseAttention full(model->config);
    engine::Decoder decoder(*model);
    const auto logits = decoder.prefill(all, 0, std::ref(full));
    if (!logits) return 1;
    const std::vector<float> want(logits->begin(), logits->end());

    engine::ChunkPrompt from_alone(*model, a), from_prompt(*model, b);
    const auto add = [&](Row& row, const engine::ChunkPrompt& prompt, const auto& got) {
      if (!got) return false;
      row.bits += divergence(want, *got) / prompts;
      row.computed += prompt.computed() / prompts;
      return true;
    };
    const bool fine = add(rows[0], from_alone, from_alone.craft({.alpha = 0.0}, question)) &&
                      add(rows[1], from_alone, from_alone.blend({.ratio = 0.15}, question)) &&
                      add(rows[2], from_alone, from_alone.blend({.ratio = 0.25}, question)) &&
                      add(rows[3], from_prompt, from_prompt.craft({.alpha = 0.0}, question)) &&
                      add(rows[4], from_prompt, from_prompt.craft({}, question));
    if (!fine) return 1;
  }
  std::printf("%-42s %22s %20s\n", "chunks", "of the rows computed", "bits from full");
  for (const Row& r : rows) std::printf("%-42s %20.0f %% %20.6f\n", r.name, 100 * r.computed, r.bits);
  // The claim: a part of the work takes away most of the difference.
  return rows[1].bits < 0.5 * rows[0].bits && rows[2].bits < rows[0].bits / 4 && rows[4].bits < rows[3].bits ? 0 : 1;
}
