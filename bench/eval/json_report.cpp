#include <eval/json_report.hpp>

#include <eval/host.hpp>
#include <kvcondense/version.hpp>

namespace eval {
using nlohmann::ordered_json;

ordered_json to_json(const Setting& s) {
  ordered_json j{{"command", s.command}, {"source", s.source}};
  if (s.has_text()) {
    j["text"] = s.text;
    j["windows"] = s.windows;
    j["seed"] = s.seed;
    j["max_positions"] = s.max_positions;
    j["token_is_byte"] = s.byte_tokens;
  }
  if (!s.recall.empty()) {
    j["recall"] = s.recall;
    j["documents"] = s.documents;
    j["ask"] = to_string(s.ask);
    if (s.ask != Ask::stream) j["question"] = s.question;
  }
  if (!s.heads.empty()) j["heads"] = s.heads;
  j["layers"] = s.layers;
  j["q_heads"] = s.q_heads;
  j["kv_heads"] = s.kv_heads;
  j["head_dim"] = s.head_dim;
  j["page_slots"] = s.page_slots;
  j["context"] = s.context;
  j["prefill"] = s.prefill;
  j["chunk"] = s.chunk;
  if (s.last_pass > 0) j["last_pass"] = s.last_pass;
  j["rounds"] = s.rounds;
  if (!s.left_out.empty()) j["left_out"] = s.left_out;
  return j;
}

namespace {

ordered_json to_json(const Host& h) {
  return {{"processor", h.processor}, {"compiler", h.compiler}, {"optimized", h.optimized}};
}

ordered_json to_json(const kvcondense::Report& r) {
  return {{"tokens", r.tokens},
          {"slots", r.slots},
          {"bytes", r.bytes()},
          {"exact_bytes", r.exact_bytes},
          {"coded_bytes", r.coded_bytes},
          {"side_bytes", r.side_bytes},
          {"index_bytes", r.index_bytes},
          {"fixed_bytes", r.fixed_bytes},
          {"dead_bytes", r.dead_bytes},
          {"dense_bytes", r.dense_bytes},
          {"budget_asked", r.budget_asked},
          {"budget_met", r.budget_met},
          {"evictions", r.evictions},
          {"evicted_slots", r.evicted_slots},
          {"merged_slots", r.merged_slots},
          {"across_rows", r.across_rows},
          {"nan_scores", r.nan_scores},
          {"repaired_numbers", r.repaired_numbers},
          {"coded_again", r.coded_again},
          {"kernel", r.kernel}};
}

ordered_json to_json(const RecallSums& r) {
  ordered_json bands = ordered_json::array();
  for (index_t b = 0; b < RecallSums::bands; ++b) {
    const index_t from = b == 0 ? 0 : RecallSums::band_end[b - 1];
    ordered_json band{{"from", from}};
    if (b + 1 < RecallSums::bands) band["below"] = RecallSums::band_end[b];
    band["asked"] = r.asked[b];
    band["right"] = r.right[b];
    bands.push_back(band);
  }
  ordered_json quarters = ordered_json::array();
  for (index_t q = 0; q < RecallSums::quarters; ++q)
    quarters.push_back({{"asked", r.deep_asked[q]}, {"right", r.deep_right[q]}});
  return {{"all", r.all()}, {"by_distance", bands}, {"by_depth", quarters}};
}

}  // namespace

ordered_json to_json(const Setting& s, const RecipeResult& r) {
  ordered_json j{{"recipe", r.recipe},
                 {"canonical", r.canonical},
                 {"drops_tokens", r.drops_tokens},
                 {"codes_numbers", r.codes_numbers},
                 {"bytes_per_token", r.bytes_per_token()},
                 {"ratio", r.report.ratio()},
                 {"attention_error", r.layer_error.empty() ? ordered_json(nullptr) : ordered_json(r.mean_error())},
                 {"attention_error_by_layer", r.layer_error}};
  if (r.reads.rows > 0) j["read"] = {{"slot_share", r.reads.slot_share()}, {"mass_share", r.reads.mass_share()}};
  if (s.has_text()) {
    j["predictions"] = r.text.predictions;
    j["kl_nats"] = r.text.mean_kl();
    j["kl_nats_most"] = r.text.kl_most;
    j["top1_agreement"] = r.text.agreement();
    j[s.byte_tokens ? "bits_per_byte" : "bits_per_token"] = r.text.mean_bits();
  }
  if (!s.recall.empty()) j["recall"] = to_json(r.recall);
  if (r.speed.tokens_per_second > 0)
    j["speed"] = {{"tokens_per_second", r.speed.tokens_per_second},
                  {"of_full", r.speed.of_full},
                  {"spread", r.speed.spread}};
  j["slots_by_layer_and_head"] = r.slots;
  j["report"] = to_json(r.report);
  return j;
}

ordered_json report_head() {
  return {{"tool", "kvcondense-eval"}, {"version", kvcondense::version_string}, {"format", 1}, {"host", to_json(this_host())}};
}

ordered_json to_json(const Results& results) {
  ordered_json recipes = ordered_json::array();
  for (const RecipeResult& r : results.recipes) recipes.push_back(to_json(results.setting, r));
  ordered_json j = report_head();
  j["setting"] = to_json(results.setting);
  j["seconds"] = results.seconds;
  j["recipes"] = recipes;
  return j;
}

}  // namespace eval
