// What only KVTC has; the rest of whole caches as its streams is fitted_streams_test.cpp's.

#include <cmath>

#include <io/fitted_streams.hpp>

using namespace kvcondense;
using namespace kvcondense::test;
using namespace kvcondense::test::fitted;
using quant::Kvtc;

TEST_CASE("kvtc: levels lose less and take more, one by one", "[io][kvtc]") {
  const KvtcStreams::Model model;
  const Rows4 x(shape, 200);
  Rig a;
  a.append(x, 0, 200);
  double last = HUGE_VAL;
  std::size_t bytes = 0;
  for (int n = 1; n <= Kvtc::levels; ++n) {
    Kvtc m = Kvtc::level(n);
    const Bytes stream = streamed<KvtcStreams>(a.cache, m, model.t);
    Rig b;
    REQUIRE(io::load_kvtc(b.cache, b.ctx, stream, model.t) == Status::ok);
    const double lost = part_lost(numbers(a.cache, 0, 200), numbers(b.cache, 0, 200));
    REQUIRE(lost < last);
    REQUIRE(stream.size() > bytes);
    last = lost, bytes = stream.size();
  }
}
