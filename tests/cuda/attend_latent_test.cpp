// Attention over coordinates on CUDA, in both ways of making products, against sums of doubles over
// the rows that coordinates stand for.

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include <kvcondense/backend/cuda/attend.cuh>

#include "device.hpp"
#include "paged_heads.hpp"

using namespace kvcondense;
using prim::AttendMath;
using test::at;
using test::ColumnShape;

namespace {

using Exact = prim::ExactRows;
using Coordinates = prim::Latent<Exact>;
using Coded = prim::Latent<prim::GroupInt<4>>;

/// What is behind a map, and its form with one.
template <class Codec>
struct Form {
  using Stored = Codec;
  static Codec with(const Codec& codec, const prim::LatentMap&) { return codec; }
};
template <class C>
struct Form<prim::Latent<C>> {
  using Stored = C;
  static prim::Latent<C> with(const C& codec, const prim::LatentMap& map) { return {codec, map}; }
};

/// One column: a head's rows, and its map.
template <class Codec>
class Side {
 public:
  using Stored = typename Form<Codec>::Stored;

  /// `ranks`: of the heads. Not `maps`: none was found yet.
  Side(const Stored& codec, index_t dim, index_t page_slots, const std::vector<ColumnShape>& shapes,
       std::vector<index_t> ranks, bool maps, unsigned seed)
      : codec_(codec), dim_(dim), page_slots_(page_slots), ranks_(std::move(ranks)), maps_(maps) {
    const index_t most = *std::max_element(ranks_.begin(), ranks_.end());
    step_ = prim::LatentMap::header + prim::LatentMap::floats(dim, most);
    table_.assign(at(step_ * static_cast<index_t>(shapes.size())), 0.0f);
    std::mt19937 random(seed);
    std::normal_distribution<float> normal;
    for (std::size_t h = 0; h < shapes.size(); ++h) {
      heads_.emplace_back(codec, Exact{}, dim, page_slots, std::vector<ColumnShape>{shapes[h]},
                          seed + static_cast<unsigned>(h) + 1, ranks_[h]);
      float* table = table_.data() + static_cast<index_t>(h) * step_;
      table[0] = static_cast<float>(ranks_[h]), table[1] = maps ? 1.0f : 0.0f;
      float* decode = table + prim::LatentMap::header + dim * ranks_[h];
      for (index_t i = 0; i < (ranks_[h] + 1) * dim; ++i)
        decode[i] = normal(random) / std::sqrt(static_cast<float>(ranks_[h] + 1));
    }
  }

  /// Slot `s` of a head as the row that it stands for.
  std::vector<double> row(std::size_t head, index_t s) const {
    std::vector<double> x(at(dim_));
    const float* decode = table_.data() + static_cast<index_t>(head) * step_ +
                          prim::LatentMap::header + dim_ * ranks_[head];
    heads_[head].each(0, s, 1, [&](const prim::SlotRun& run, index_t place, index_t, index_t) {
      std::vector<float> z(at(run.coded ? ranks_[head] : dim_));
      const prim::RowBlock<float> to{z.data(), 1, static_cast<index_t>(z.size())};
      if (!run.coded)
        prim::PageCodec<Cpu, Exact>::decode({}, heads_[head].page(run), place, 1, to);
      else
        prim::PageCodec<Cpu, Stored>::decode(codec_, heads_[head].page(run), place, 1, to);
      if (!run.coded || !mapped())
        return static_cast<void>(std::copy(z.begin(), z.end(), x.begin()));
      for (index_t c = 0; c < dim_; ++c) {
        x[at(c)] = decode[ranks_[head] * dim_ + c];
        for (std::size_t j = 0; j < z.size(); ++j)
          x[at(c)] += static_cast<double>(z[j]) *
                      static_cast<double>(decode[static_cast<index_t>(j) * dim_ + c]);
      }
    });
    return x;
  }
  /// A NaN among the halves of a slot that is coordinates.
  void spoil(std::size_t head, index_t s) {
    heads_[head].each(0, s, 1, [&](const prim::SlotRun& run, index_t place, index_t, index_t) {
      REQUIRE(run.coded);
      reinterpret_cast<std::uint16_t*>(run.page)[place * ranks_[head] + ranks_[head] / 2] = 0x7e00;
    });
  }

  /// The same on a device.
  struct Copy {
    std::vector<typename test::HostColumn<Stored>::Copy> heads;
    std::vector<test::OnDevice<prim::SlotRun>> runs;
    std::vector<test::OnDevice<index_t>> offset;
    std::vector<test::OnDevice<float>> table;
    prim::ColumnRuns columns;
    Codec codec;
  };
  Copy on(test::Device& device) const {
    Copy copy;
    std::vector<prim::SlotRun> runs;
    std::vector<index_t> offset{0};
    for (const auto& head : heads_) {
      copy.heads.push_back(head.on(device));
      for (const prim::SlotRun& run : copy.heads.back().runs[0].read()) runs.push_back(run);
      offset.push_back(static_cast<index_t>(runs.size()));
    }
    copy.runs.emplace_back(device, runs), copy.offset.emplace_back(device, offset),
        copy.table.emplace_back(device, table_);
    copy.columns = {copy.runs[0].data(), copy.offset[0].data(), page_slots_};
    const bool uneven =
        std::any_of(ranks_.begin(), ranks_.end(), [&](index_t r) { return r != ranks_[0]; });
    copy.codec = Form<Codec>::with(codec_, {.table = copy.table[0].data(),
                                            .step = step_,
                                            .dim = static_cast<int>(dim_),
                                            .rank = static_cast<int>(ranks_[0]),
                                            .uneven = uneven});
    return copy;
  }

 private:
  bool mapped() const { return maps_ && !std::is_same_v<Codec, Stored>; }

  Stored codec_;
  index_t dim_, page_slots_, step_ = 0;
  std::vector<index_t> ranks_;
  bool maps_;
  std::vector<float> table_;
  std::vector<test::HostColumn<Stored>> heads_;
};

struct Case {
  index_t group = 1, tokens = 1, dim = 128, value_dim = 128, page_slots = 64;
  std::vector<index_t> key_ranks, value_ranks;  ///< one: of all heads
  std::vector<ColumnShape> keys, values;
  bool maps = true;
  index_t spoilt = -1;  ///< a slot of the first head of which a coordinate of the key, and one of
                        ///< the value, is NaN
  std::vector<AttendMath> maths{AttendMath::f32, AttendMath::halves};
};

struct Numbers {
  std::vector<float> out, lse, mass;
};

/// Sums of doubles; mass of the last token.
template <class K, class V>
Numbers expected(const Case& c, const Side<K>& keys, const Side<V>& values,
                 const std::vector<float>& queries, double scale) {
  Numbers n;
  for (std::size_t h = 0; h < c.keys.size(); ++h) {
    const index_t slots = c.keys[h].slots();
    std::vector<std::vector<double>> k, v;
    for (index_t s = 0; s < slots; ++s) k.push_back(keys.row(h, s)), v.push_back(values.row(h, s));
    std::vector<double> mass(at(slots));
    for (index_t q = 0; q < c.group; ++q)
      for (index_t t = 0; t < c.tokens; ++t) {
        const float* x =
            queries.data() + ((static_cast<index_t>(h) * c.group + q) * c.tokens + t) * c.dim;
        const index_t sees = std::max<index_t>(0, slots - c.tokens + t + 1);
        std::vector<double> logit(at(sees)), sum(at(c.value_dim));
        double top = -std::numeric_limits<double>::infinity(), total = 0.0;
        for (std::size_t s = 0; s < logit.size(); ++s) {
          for (index_t i = 0; i < c.dim; ++i)
            logit[s] += scale * static_cast<double>(x[i]) * k[s][at(i)];
          top = logit[s] > top ? logit[s] : top;
        }
        for (const double l : logit) total += std::exp(l - top);
        for (std::size_t s = 0; s < logit.size(); ++s) {
          const double p = std::exp(logit[s] - top) / total;
          for (index_t i = 0; i < c.value_dim; ++i) sum[at(i)] += p * v[s][at(i)];
          if (t == c.tokens - 1) mass[s] += p;
        }
        for (const double y : sum) n.out.push_back(static_cast<float>(y));
        n.lse.push_back(static_cast<float>(sees > 0 ? top + std::log(total)
                                                    : -std::numeric_limits<double>::infinity()));
      }
    for (const double m : mass) n.mass.push_back(static_cast<float>(m));
  }
  return n;
}

void check_near(const std::string& what, const std::vector<float>& got,
                const std::vector<float>& wanted, float within) {
  INFO(what);
  REQUIRE(got.size() == wanted.size());
  for (std::size_t i = 0; i < got.size(); ++i) {
    if (got[i] == wanted[i] || (std::isnan(got[i]) && std::isnan(wanted[i]))) continue;
    if (!(std::fabs(got[i] - wanted[i]) <= within))
      FAIL("number " << i << ": " << got[i] << " instead of " << wanted[i]);
  }
}

/// `near`: how near halves are.
template <class K, class V>
void compare(const Case& c, const typename Form<K>::Stored& key_codec,
             const typename Form<V>::Stored& value_codec, float near, bool ways = false) {
  const index_t heads = static_cast<index_t>(c.keys.size()), q_heads = heads * c.group;
  const auto of_all = [&](const std::vector<index_t>& ranks) {
    return ranks.size() == 1 ? std::vector<index_t>(c.keys.size(), ranks[0]) : ranks;
  };
  Side<K> keys(key_codec, c.dim, c.page_slots, c.keys, of_all(c.key_ranks), c.maps, 100);
  Side<V> values(value_codec, c.value_dim, c.page_slots, c.values, of_all(c.value_ranks), c.maps,
                 200);
  if (c.spoilt >= 0) keys.spoil(0, c.spoilt), values.spoil(0, c.spoilt);
  std::vector<index_t> slots, offset{0};
  index_t most = 0;
  for (const ColumnShape& s : c.keys)
    slots.push_back(s.slots()), offset.push_back(offset.back() + s.slots()),
        most = std::max(most, s.slots());
  for (std::size_t h = 0; h < slots.size(); ++h) REQUIRE(c.values[h].slots() == slots[h]);
  std::mt19937 random(3);
  std::normal_distribution<float> normal;
  std::vector<float> queries(at(q_heads * c.tokens * c.dim));
  for (float& x : queries) x = normal(random);
  const float scale = 1.0f / std::sqrt(static_cast<float>(c.dim));
  const Numbers wanted = expected(c, keys, values, queries, static_cast<double>(scale));

  const auto on_device = [&] {
    test::Device device;
    auto device_keys = keys.on(device);
    auto device_values = values.on(device);
    test::OnDevice<index_t> device_slots(device, slots), device_offset(device, offset);
    test::OnDevice<float> q(device, queries),
        out(device, std::vector<float>(wanted.out.size(), 7.0f)),
        lse(device, std::vector<float>(wanted.lse.size(), 7.0f)),
        mass(device, std::vector<float>(wanted.mass.size(), 7.0f));
    prim::AttendRequest r;
    r.queries = dense_view(static_cast<const float*>(q.data()), q_heads, c.tokens, c.dim);
    r.out = dense_view(out.data(), q_heads, c.tokens, c.value_dim);
    r.lse = dense_view(lse.data(), q_heads, c.tokens);
    r.mass = {mass.data(), device_offset.data(), heads}, r.mass_rows = 1;
    r.softmax_scale = scale;
    const prim::PagedHeads<K, V> paged{
        device_keys.codec,     device_values.codec, {},   device_keys.columns,
        device_values.columns, device_slots.data(), heads};
    constexpr prim::LatentSides sides{prim::is_latent<K>, prim::is_latent<V>};
    Context<Cuda> ctx =
        device.with_workspace(prim::Attend<Cuda>::workspace_bytes(r, heads, most, sides));
    for (const AttendMath math : c.maths) {
      INFO("group " << c.group << " tokens " << c.tokens << " dims " << c.dim << ' ' << c.value_dim
                    << " ranks " << c.key_ranks[0] << ' ' << c.value_ranks[0] << " math "
                    << static_cast<int>(math));
      out.write(std::vector<float>(wanted.out.size(), 7.0f));
      REQUIRE(prim::Attend<Cuda>::run(ctx, r, paged, most, math) == Status::ok);
      const float within = math == AttendMath::f32 ? 5e-5f : near;
      check_near("out", out.read(), wanted.out, within),
          check_near("lse", lse.read(), wanted.lse, within),
          check_near("mass", mass.read(), wanted.mass, within);
    }
  };
  if (ways)
    test::each_way(on_device);
  else
    on_device();
}

prim::GroupInt<4> token(index_t group) {
  return {.axis = prim::GroupAxis::token, .group_size = group};
}
prim::GroupInt<4> channel(index_t group) {
  return {.axis = prim::GroupAxis::channel, .group_size = group};
}

/// Ragged: exact first and newest slots of every kind of number, holes, heads without slots, a head
/// of many pieces.
const std::vector<ColumnShape> key_shapes{{4, 160, 40}, {0, 0, 0}, {0, 33, 0},
                                          {2, 0, 7},    {0, 1, 0}, {3, 500, 17, 2}},
    value_shapes{{4, 170, 30}, {0, 0, 0}, {0, 23, 10}, {2, 0, 7}, {0, 0, 1}, {3, 507, 10, 1}};

constexpr float of_halves = 8e-3f;

}  // namespace

TEST_CASE("cuda attend: coordinates that are halves, ranks and query heads") {
  struct Sizes {
    index_t dim, value_dim, rank, value_rank;
  };
  // Ranks of whole units and not, above and below half of a row, and as long as one.
  const Sizes sizes[] = {{128, 128, 32, 32}, {128, 128, 64, 48}, {128, 128, 96, 128},
                         {64, 64, 32, 64},   {64, 32, 16, 16},   {80, 48, 20, 10},
                         {112, 96, 7, 1},    {16, 128, 1, 65}};
  const index_t groups[] = {4, 1, 7, 3};
  int which = 0;
  for (const Sizes& s : sizes) {
    Case c{.group = groups[which % 4],
           .dim = s.dim,
           .value_dim = s.value_dim,
           .key_ranks = {s.rank},
           .value_ranks = {s.value_rank},
           .keys = key_shapes,
           .values = value_shapes};
    compare<Coordinates, Coordinates>(c, {}, {}, of_halves, which == 1);
    ++which;
  }
}

TEST_CASE("cuda attend: coordinates that are halves, of heads with ranks of their own") {
  compare<Coordinates, Coordinates>(Case{.group = 3,
                                         .key_ranks = {32, 8, 100, 16, 5, 64},
                                         .value_ranks = {8, 128, 17, 16, 32, 40},
                                         .keys = key_shapes,
                                         .values = value_shapes},
                                    {}, {}, of_halves);
}

TEST_CASE("cuda attend: coordinates that are codes") {
  for (const index_t group : {4, 7}) {
    const Case narrow{.group = group,
                      .key_ranks = {64},
                      .value_ranks = {32},
                      .keys = key_shapes,
                      .values = value_shapes};
    compare<Coded, Coded>(narrow, token(32), token(16), 2e-2f, group == 7);
    // Keys by channel are coded in whole groups.
    const std::vector<ColumnShape> keys{{4, 160, 40}, {0, 32, 0}, {0, 0, 0}, {1, 480, 30}},
        values{{4, 181, 19}, {0, 30, 2}, {0, 0, 0}, {1, 500, 10}};
    const Case wide{
        .group = group, .key_ranks = {96}, .value_ranks = {112}, .keys = keys, .values = values};
    compare<Coded, Coded>(wide, channel(32), token(0), 2e-2f);
  }
}

TEST_CASE("cuda attend: coordinates that are codes, of heads with ranks of their own") {
  compare<Coded, Coded>(Case{.group = 3,
                             .key_ranks = {32, 64, 64, 32, 64, 32},
                             .value_ranks = {64, 32, 32, 32, 64, 64},
                             .keys = key_shapes,
                             .values = value_shapes,
                             .maths = {AttendMath::f32, AttendMath::either}},
                        token(16), token(16), 5e-5f);
}

TEST_CASE("cuda attend: coordinates of values alone, and rows before a map is found") {
  Case c{.group = 4,
         .dim = 64,
         .value_dim = 64,
         .key_ranks = {64},
         .value_ranks = {16},
         .keys = key_shapes,
         .values = value_shapes};
  compare<Exact, Coordinates>(c, {}, {}, of_halves);
  c.value_ranks = {64}, c.maps = false;
  compare<Coordinates, Coordinates>(c, {}, {}, of_halves);
}

TEST_CASE("cuda attend: several tokens see coordinates that are theirs") {
  for (const index_t tokens : {3, 30}) {
    const Case c{.group = 3,
                 .tokens = tokens,
                 .dim = 64,
                 .value_dim = 64,
                 .key_ranks = {24},
                 .value_ranks = {32},
                 .keys = key_shapes,
                 .values = value_shapes};
    compare<Coordinates, Coordinates>(c, {}, {}, of_halves);
  }
}

TEST_CASE("cuda attend: a coordinate that is NaN is its head's alone") {
  const Case c{.group = 3,
               .dim = 64,
               .value_dim = 64,
               .key_ranks = {24},
               .value_ranks = {32},
               .keys = key_shapes,
               .values = value_shapes,
               .spoilt = 20};
  compare<Coordinates, Coordinates>(c, {}, {}, of_halves);
}

TEST_CASE("cuda attend: coordinates that tensor cores do not take are refused") {
  test::Device device;
  const auto status = [&]<class C>(const C& codec, int rank, index_t dim, DType exact,
                                   const prim::KeyTurn& turn, bool uneven = false) {
    static const float table = 0.0f;
    const prim::Latent<C> latent{codec,
                                 {.table = &table,
                                  .dim = static_cast<int>(dim),
                                  .rank = rank,
                                  .uneven = uneven}};
    prim::PagedHeads<prim::Latent<C>, prim::Latent<C>> heads{latent, latent,  {exact}, {},
                                                             {},     nullptr, 1};
    heads.turn = turn;
    static const float q = 0.0f;
    static float o = 0.0f;
    prim::AttendRequest r;
    r.queries = dense_view(&q, index_t{1}, index_t{0}, dim),
    r.out = dense_view(&o, index_t{1}, index_t{0}, dim);
    return prim::Attend<Cuda>::run(device, r, heads, 10, AttendMath::halves);
  };
  static const float fine = 0.0f;
  prim::KeyTurn raw;
  raw.fine = &fine;
  CHECK(status(Exact{}, 20, 64, DType::f16, {}) == Status::ok);  // no tokens: nothing to do
  CHECK(status(Exact{DType::f32}, 20, 64, DType::f16, {}) == Status::not_supported);
  CHECK(status(Exact{}, 20, 64, DType::bf16, {}) == Status::not_supported);
  CHECK(status(Exact{}, 20, 256, DType::f16, {}) == Status::not_supported);
  CHECK(status(Exact{}, 20, 40, DType::f16, {}) == Status::not_supported);
  CHECK(status(Exact{}, 20, 64, DType::f16, raw) == Status::not_supported);
  CHECK(status(token(16), 32, 64, DType::f16, {}) == Status::ok);
  CHECK(status(token(8), 24, 64, DType::f16, {}) == Status::not_supported);
  CHECK(status(Exact{}, 32, 64, DType::f16, {}, true) == Status::ok);
  CHECK(status(token(16), 32, 64, DType::f16, {}, true) == Status::not_supported);
}
