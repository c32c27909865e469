#include <catch2/catch.hpp>
#include <condition_variable>
#include <mutex>
#include <thread>

#include <engine/dense_attention.hpp>
#include <engine/sharded_attention.hpp>
#include <engine/tinylm.hpp>

using namespace engine;
using namespace engine::test;
using kvcondense::storage::PartialAttention;

namespace {

/// An all-gather between threads of this process.
class Meeting {
 public:
  explicit Meeting(std::size_t ranks) : ranks_(ranks) {}
  Status gather(std::size_t rank, std::span<const float> mine, std::span<float> all) {
    std::unique_lock lock(mutex_);
    ready_.wait(lock, [&] { return leaving_ == 0; });
    buffer_.resize(all.size());
    std::copy(mine.begin(), mine.end(), buffer_.begin() + static_cast<std::ptrdiff_t>(rank * mine.size()));
    if (++arrived_ == ranks_) leaving_ = ranks_, arrived_ = 0, ++round_, ready_.notify_all();
    else {
      const std::size_t round = round_;
      ready_.wait(lock, [&] { return round_ != round; });
    }
    std::copy(buffer_.begin(), buffer_.end(), all.begin());
    if (--leaving_ == 0) ready_.notify_all();
    return Status::ok;
  }

 private:
  std::size_t ranks_, arrived_ = 0, leaving_ = 0, round_ = 0;
  std::mutex mutex_;
  std::condition_variable ready_;
  std::vector<float> buffer_;
};

std::vector<std::int32_t> bytes_of_text(std::size_t n) {
  const std::string text = tinylm_text("heldout.txt");
  std::vector<std::int32_t> ids;
  for (std::size_t i = 0; i < n; ++i) ids.push_back(static_cast<unsigned char>(text[9000 + i]));
  return ids;
}

/// The logits after the prompt and after each of `more` tokens, of rank 0.
std::vector<std::vector<float>> run_ranks(std::size_t ranks, const std::string& recipe, const std::vector<std::int32_t>& ids,
                                          index_t prompt, index_t chunk, std::vector<index_t>* slots = nullptr) {
  Meeting meeting(ranks);
  std::vector<std::vector<float>> seen;
  std::vector<std::thread> threads;
  std::vector<Status> ended(ranks, Status::ok);
  if (slots != nullptr) slots->assign(ranks, 0);
  (void)tinylm();
  for (std::size_t r = 0; r < ranks; ++r) {
    auto cache = any_attention(recipe, kvcondense::DType::f32);
    threads.emplace_back([&, r, rank_cache = std::move(cache.cache())]() mutable {
      ShardedAttention attention(std::move(rank_cache), PartialAttention{static_cast<index_t>(ranks), prompt}, static_cast<index_t>(r),
                                 [&](auto mine, auto all) { return meeting.gather(r, mine, all); });
      Decoder decoder(tinylm(), {.chunk = chunk});
      const std::span<const std::int32_t> all(ids);
      auto logits = decoder.prefill(all.first(static_cast<std::size_t>(prompt)), 0, std::ref(attention));
      for (std::size_t t = static_cast<std::size_t>(prompt);; ++t) {
        ended[r] = logits.status();
        if (!logits) return;
        if (r == 0) seen.emplace_back(logits->begin(), logits->end());
        if (t == ids.size()) break;
        logits = decoder.forward(all.subspan(t, 1), static_cast<index_t>(t), std::ref(attention), Logits::last, Phase::decode);
      }
      if (slots != nullptr) (*slots)[r] = attention.cache().slots(0, 0);
    });
  }
  for (auto& t : threads) t.join();
  for (const Status s : ended) REQUIRE(s == Status::ok);
  return seen;
}

}  // namespace

TEST_CASE("sharded: slices of a cache answer as one full cache does", "[engine][sharded]") {
  const auto ids = bytes_of_text(230);
  constexpr index_t prompt = 200;
  DenseAttention full(tinylm().config);
  Decoder reference(tinylm());
  std::vector<std::vector<float>> want;
  auto logits = reference.prefill(std::span(ids).first(prompt), 0, std::ref(full));
  for (std::size_t t = prompt;; ++t) {
    REQUIRE(logits);
    want.emplace_back(logits->begin(), logits->end());
    if (t == ids.size()) break;
    logits = reference.forward(std::span(ids).subspan(t, 1), static_cast<index_t>(t), std::ref(full));
  }
  for (const std::size_t ranks : {1, 2, 3, 5})
    for (const index_t chunk : {256, 64, 33}) {  // chunks that span slices, and slices that span chunks
      const auto got = run_ranks(ranks, "exact", ids, prompt, chunk);
      REQUIRE(got.size() == want.size());
      double worst = 0;
      for (std::size_t t = 0; t < want.size(); ++t)
        for (std::size_t i = 0; i < want[t].size(); ++i) worst = std::max(worst, static_cast<double>(std::fabs(got[t][i] - want[t][i])));
      CAPTURE(ranks, chunk);
      CHECK(worst < 2e-3);
    }
}

TEST_CASE("sharded: every slice is condensed by its own recipe", "[engine][sharded]") {
  const auto ids = bytes_of_text(230);
  std::vector<index_t> slots;
  const auto got = run_ranks(3, "snapkv(tokens=24, window=8)", ids, 200, 64, &slots);
  REQUIRE(got.size() == 31);
  // Slices of 66, 67 and 67 tokens were cut to 24; the last one took the generated tokens.
  CHECK(slots == std::vector<index_t>{24, 24, 24 + 30});
  for (const auto& row : got)
    for (const float x : row) REQUIRE(std::isfinite(x));
}
