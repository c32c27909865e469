// Continues a text with the likeliest byte each time, its cache condensed by a recipe:
// kvcondense-engine --model DIR --prompt TEXT [--tokens N] [--recipe TEXT]

#include <charconv>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <string_view>
#include <vector>

#include <engine/condensed_attention.hpp>
#include <engine/decoder.hpp>
#include <engine/output_projections.hpp>
#include <engine/sampling.hpp>
#include <engine/tokenizer.hpp>
#include <kvcondense/any/any_cache.hpp>

namespace {

struct Options {
  std::string model, prompt, recipe = "keep_all";
  int tokens = 64;
};

constexpr const char* usage =
    "usage: kvcondense-engine --model DIR --prompt TEXT [--tokens N] [--recipe TEXT]\n";

bool parse(int argc, char** argv, Options& out) {
  if (argc % 2 == 0) return false;
  for (int i = 1; i < argc; i += 2) {
    const std::string_view name = argv[i], value = argv[i + 1];
    if (name == "--model") {
      out.model = value;
    } else if (name == "--prompt") {
      out.prompt = value;
    } else if (name == "--recipe") {
      out.recipe = value;
    } else if (name == "--tokens") {
      const auto [end, error] =
          std::from_chars(value.data(), value.data() + value.size(), out.tokens);
      if (error != std::errc{} || end != value.data() + value.size() || out.tokens < 0)
        return false;
    } else {
      return false;
    }
  }
  return !out.model.empty() && !out.prompt.empty();
}

int fail(const std::string& why) {
  std::fprintf(stderr, "kvcondense-engine: %s\n", why.c_str());
  return EXIT_FAILURE;
}

}  // namespace

int main(int argc, char** argv) {
  Options options;
  if (!parse(argc, argv, options)) return std::fputs(usage, stderr), EXIT_FAILURE;
  std::string why;
  const auto model = engine::load_model(options.model, why);
  if (!model) return fail(why);
  if (!engine::speaks_bytes(model->config))
    return fail("this model has no byte vocabulary, and there is no other tokenizer here");

  const auto context = static_cast<engine::index_t>(options.prompt.size()) + options.tokens;
  const engine::OutputProjections output(*model);
  const kvcondense::any::ModelFacts facts{.rope = engine::library_rope(model->config.rope, context), .output = output.view()};
  const auto shape = engine::cache_shape(model->config);
  auto made = kvcondense::any::make(options.recipe, shape, kvcondense::any::on<kvcondense::Cpu>, kvcondense::heap_memory(), facts);
  if (!made) return fail("recipe: " + std::string(made.message()));
  const auto admission = kvcondense::admit(made->capabilities(), engine::engine_facts);
  if (!admission) return fail(std::string("recipe: ") + admission.sentence);
  if (admission.warns()) std::fprintf(stderr, "kvcondense-engine: %s\n", admission.sentence);
  engine::CondensedAttention cache(*std::move(made));
  engine::Decoder decoder(*model, cache.decoder_options());
  const engine::Attention attention = std::ref(cache);
  auto position = static_cast<engine::index_t>(options.prompt.size());
  const auto tokens = engine::bytes_to_tokens(options.prompt);
  auto logits = decoder.prefill(tokens, 0, attention);
  if (!logits) return fail(to_string(logits.status()));
  std::vector<float> last(logits->begin(), logits->end());  // what asks about the prompt writes over the decoder's
  if (const auto s = cache.condense(decoder, tokens, engine::DecoderOptions{}.chunk); s != kvcondense::Status::ok)
    return fail(std::string("the prompt cannot be condensed: ") + to_string(s));
  std::fputs(options.prompt.c_str(), stdout);
  for (int i = 0; i < options.tokens; ++i) {
    const std::int32_t token = engine::greedy(last);
    std::putchar(token);
    std::fflush(stdout);
    logits = decoder.forward({&token, 1}, position++, attention);
    if (!logits) return fail(to_string(logits.status()));
    last.assign(logits->begin(), logits->end());
  }
  std::putchar('\n');
  return EXIT_SUCCESS;
}
