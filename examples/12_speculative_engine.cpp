// Speculative decoding on the small engine: a cache of 64 tokens per head drafts, the full cache verifies four drafts in
// one pass, both take back what was wrong. What comes out is what the full cache alone would have said.

#include <cstdio>
#include <string>

#include <engine/condensed_attention.hpp>
#include <engine/json_text.hpp>
#include <engine/speculative.hpp>
#include <engine/tokenizer.hpp>
#include <kvcondense/any/any_cache.hpp>

namespace kvc = kvcondense;
using Cache = kvc::any::AnyCache;

int main() {
  std::string why;
  const std::string folder = KVCONDENSE_EXAMPLES_DIR "/models/tinylm/";
  const auto model = engine::load_model(folder, why);
  const auto text = engine::read_file(folder + "heldout.txt", std::size_t{1} << 24, why);
  if (!model || !text) return std::fprintf(stderr, "%s\n", why.c_str()), 1;
  const auto prompt = engine::bytes_to_tokens(std::string_view(*text).substr(0, 400));
  constexpr kvc::index_t tokens = 96;

  const auto cache = [&](const char* recipe) {
    // An engine asks before anything runs whether a recipe may draft.
    const auto fits = kvc::any::admit(recipe, engine::cache_shape(model->config), {.drafts = 4}, kvc::any::on<kvc::Cpu>);
    if (!fits) std::fprintf(stderr, "%s: %s\n", recipe, fits.message.c_str());
    return kvc::any::make(recipe, engine::cache_shape(model->config), kvc::any::on<kvc::Cpu>);
  };

  // Plain greedy decoding.
  auto plain = cache("keep_all");
  if (!plain) return 1;
  engine::CondensedAttention alone(*std::move(plain));
  engine::Decoder decoder(*model, alone.decoder_options());
  std::vector<std::int32_t> want;
  auto logits = decoder.prefill(prompt, 0, std::ref(alone));
  while (logits && static_cast<kvc::index_t>(want.size()) < tokens) {
    want.push_back(engine::greedy(*logits));
    logits = decoder.forward({&want.back(), 1}, alone.cache().next_position(), std::ref(alone));
  }

  bool good = static_cast<bool>(logits);
  for (const char* recipe : {"sink_window(sinks=4, recent=60)", "h2o(heavy=32, recent=32) + kivi4(group=16, residual=16)", "kivi2(group=16, residual=16)"}) {
    auto small = cache(recipe), whole = cache("keep_all");
    if (!small || !whole) return 1;
    engine::TentativeAttention draft(*std::move(small)), full(*std::move(whole));
    const auto got = engine::speculate(*model, draft, full, prompt, tokens, 4);
    if (!got) return std::fprintf(stderr, "%s: %s\n", recipe, to_string(got.status())), 1;
    std::printf("%-55s %2lld passes of the full cache for %lld tokens, %3.0f%% of drafts accepted, %zu against %zu bytes: %s\n", recipe,
                static_cast<long long>(got->rounds), static_cast<long long>(tokens), 100 * got->acceptance(), draft.cache().report().bytes(),
                full.cache().report().bytes(), got->tokens == want ? "the same tokens" : "OTHER TOKENS");
    good = good && got->tokens == want && got->rounds < tokens;
  }
  return good ? 0 : 1;
}
