// A sequence whose cache is spread over MPI ranks, each slice condensed by its own recipe:
//
//   mpirun -n 3 context_parallel [TOKENS] [RECIPE of rank 0] [RECIPE of rank 1] ...
//
// Every rank runs the model; attention is partial on each rank and joined exactly, so with recipes that lose
// nothing the logits are those of one full cache. The last recipe given serves all further ranks.

#include <mpi.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include <engine/condensed_attention.hpp>
#include <engine/dense_attention.hpp>
#include <engine/json_text.hpp>
#include <engine/sharded_attention.hpp>
#include <kvcondense/any/any_cache.hpp>

namespace kvc = kvcondense;
using kvc::index_t;
using kvc::Status;

namespace {

struct Rank {
  int number = 0, ranks = 1;

  Status gather(std::span<const float> mine, std::span<float> all) const {
    const int n = static_cast<int>(mine.size());
    return MPI_Allgather(mine.data(), n, MPI_FLOAT, all.data(), n, MPI_FLOAT, MPI_COMM_WORLD) == MPI_SUCCESS ? Status::ok : Status::io_error;
  }
};

int complain(const char* what, Status s) {
  std::fprintf(stderr, "context_parallel: %s: %s\n", what, to_string(s));
  return 1;
}

int run(const Rank& rank, index_t tokens, const std::vector<std::string>& recipes) {
  const std::string folder = KVCONDENSE_EXAMPLES_DIR "/models/tinylm";
  std::string why;
  const auto model = engine::load_model(folder, why);
  const auto text = engine::read_file(folder + "/heldout.txt", std::size_t{1} << 24, why);
  if (!model || !text) return complain(why.c_str(), Status::io_error);
  std::vector<std::int32_t> ids;
  for (index_t i = 0; i < tokens; ++i) ids.push_back(static_cast<unsigned char>((*text)[static_cast<std::size_t>(5000 + i)]));
  const index_t prompt = tokens * 3 / 4;

  const std::string& recipe = recipes[std::min(static_cast<std::size_t>(rank.number), recipes.size() - 1)];
  auto cache = kvc::any::make(recipe, engine::cache_shape(model->config), kvc::any::on<kvc::Cpu>);
  if (!cache) return complain(std::string(cache.message()).c_str(), cache.status());
  if (cache->capabilities().raw_keys) return complain("a slice does not know where it stands: no position stage", Status::incompatible);
  engine::ShardedAttention attention(*std::move(cache), {rank.ranks, prompt}, rank.number,
                                     [&](auto mine, auto all) { return rank.gather(mine, all); });
  engine::Decoder decoder(*model, {.chunk = 128});
  const std::span<const std::int32_t> all(ids);
  const auto prefilled = decoder.prefill(all.first(static_cast<std::size_t>(prompt)), 0, std::ref(attention));
  if (!prefilled) return complain("prefill", prefilled.status());

  // The same with one full cache, on rank 0 only.
  engine::DenseAttention full(model->config);
  engine::Decoder reference(*model, {.chunk = 128});
  if (rank.number == 0 && !reference.prefill(all.first(static_cast<std::size_t>(prompt)), 0, std::ref(full))) return 1;

  double bits = 0, full_bits = 0, worst = 0;
  const auto bits_of = [](std::span<const float> logits, std::int32_t id) {
    double top = logits[0], sum = 0;
    for (const float x : logits) top = std::max(top, static_cast<double>(x));
    for (const float x : logits) sum += std::exp(x - top);
    return (std::log(sum) + top - static_cast<double>(logits[static_cast<std::size_t>(id)])) / std::log(2.0);
  };
  for (index_t t = prompt; t + 1 < tokens; ++t) {
    const auto token = all.subspan(static_cast<std::size_t>(t), 1);
    const auto logits = decoder.forward(token, t, std::ref(attention), engine::Logits::last, kvc::Phase::decode);
    if (!logits) return complain("decode", logits.status());
    bits += bits_of(*logits, ids[static_cast<std::size_t>(t + 1)]);
    if (rank.number != 0) continue;
    const auto want = reference.forward(token, t, std::ref(full), engine::Logits::last, kvc::Phase::decode);
    if (!want) return complain("reference", want.status());
    full_bits += bits_of(*want, ids[static_cast<std::size_t>(t + 1)]);
    for (std::size_t i = 0; i < want->size(); ++i) worst = std::max(worst, static_cast<double>(std::fabs((*logits)[i] - (*want)[i])));
  }

  const auto report = attention.cache().report();
  std::vector<double> held(static_cast<std::size_t>(rank.ranks));
  const double mine = static_cast<double>(report.bytes());
  MPI_Gather(&mine, 1, MPI_DOUBLE, held.data(), 1, MPI_DOUBLE, 0, MPI_COMM_WORLD);
  if (rank.number != 0) return 0;
  for (int r = 0; r < rank.ranks; ++r)
    std::printf("rank %d: %s: %.0f kB\n", r, recipes[std::min(static_cast<std::size_t>(r), recipes.size() - 1)].c_str(), held[static_cast<std::size_t>(r)] / 1e3);
  const double n = static_cast<double>(tokens - prompt - 1);
  std::printf("%.3f bits per byte over %.0f tokens, %.3f with one full cache; logits differ by %.4f at most; %.1f kB sent per token and rank\n",
              bits / n, n, full_bits / n, worst, static_cast<double>(attention.sent_bytes()) / 1e3 / static_cast<double>(tokens));
  // Exact slices must give the full cache's answer, up to 16 bits of storage.
  const bool exact = recipes.size() == 1 && recipes[0] == "exact";
  return exact && worst > 0.05 ? complain("exact slices differ from one full cache", Status::corrupt_data) : 0;
}

}  // namespace

int main(int argc, char** argv) {
  MPI_Init(&argc, &argv);
  Rank rank;
  MPI_Comm_rank(MPI_COMM_WORLD, &rank.number);
  MPI_Comm_size(MPI_COMM_WORLD, &rank.ranks);
  const long tokens = argc > 1 ? std::strtol(argv[1], nullptr, 10) : 1024;
  std::vector<std::string> recipes(argv + std::min(argc, 2), argv + argc);
  if (recipes.empty()) recipes = {"exact"};
  const int failed = tokens >= 8 && tokens <= 100000 ? run(rank, tokens, recipes) : complain("give 8 to 100000 tokens", Status::invalid_argument);
  if (failed != 0) MPI_Abort(MPI_COMM_WORLD, failed);  // the others may wait for this rank's message
  MPI_Finalize();
  return failed;
}
