// Every kernel once, in the forms that caches use most: what budget.py compiles for every architecture.

#include <kvcondense/cuda.cuh>
#include <kvcondense/evict/h2o.hpp>
#include <kvcondense/quant/fp8.hpp>
#include <kvcondense/quant/kivi.hpp>
#include <kvcondense/retrieve/quest.hpp>

using namespace kvcondense;

template <class Codec>
Status pages(Context<Cuda>& ctx, const Codec& codec, const prim::PageBatch& batch) {
  const Status s = prim::PageCodec<Cuda, Codec>::encode(ctx, codec, batch);
  return s == Status::ok ? prim::PageCodec<Cuda, Codec>::decode(ctx, codec, batch) : s;
}
template Status pages(Context<Cuda>&, const prim::ExactRows&, const prim::PageBatch&);
template Status pages(Context<Cuda>&, const prim::GroupInt<3>&, const prim::PageBatch&);
template Status pages(Context<Cuda>&, const prim::GroupInt<4>&, const prim::PageBatch&);
template Status pages(Context<Cuda>&, const prim::BlockCodes&, const prim::PageBatch&);
template Status pages(Context<Cuda>&, const prim::DeviceCodec<prim::Sketched<prim::LevelCodes>>&, const prim::PageBatch&);
template Status prim::PageLayout::copy(const Context<Cuda>&, const prim::GroupInt<4>&, const std::byte*, const prim::GroupInt<4>&, std::byte*, index_t, index_t);

template <class K, class V>
Status attend(Context<Cuda>& ctx, const prim::AttendRequest& r, const prim::PagedHeads<K, V>& heads) {
  return prim::Attend<Cuda>::run(ctx, r, heads, 4096);
}
template Status attend(Context<Cuda>&, const prim::AttendRequest&, const prim::PagedHeads<prim::ExactRows, prim::ExactRows>&);
template Status attend(Context<Cuda>&, const prim::AttendRequest&, const prim::PagedHeads<prim::GroupInt<2>, prim::GroupInt<2>>&);
template Status attend(Context<Cuda>&, const prim::AttendRequest&, const prim::PagedHeads<prim::GroupInt<4>, prim::GroupInt<4>>&);
template Status attend(Context<Cuda>&, const prim::AttendRequest&, const prim::PagedHeads<prim::GroupInt<8>, prim::GroupInt<8>>&);
template Status attend(Context<Cuda>&, const prim::AttendRequest&, const prim::PagedHeads<prim::DeviceCodec<prim::SketchRows>, prim::GroupInt<2>>&);

Status rank(Context<Cuda>& ctx, RaggedView<const float> scores, const index_t* total, const prim::Ends* ends,
            RaggedView<std::int32_t> slots, index_t* count) {
  const Status s = prim::KeepEnds<Cuda>::run(ctx, ends, slots, count);
  return s == Status::ok ? prim::TopK<Cuda>::run(ctx, scores, ends, total, slots, count) : s;
}

Status smaller_words(Context<Cuda>& ctx, const SlotRows<Cuda>& rows, RaggedView<const float> x, RaggedView<float> out,
                     TensorView<const float, 3> keys, TensorView<const index_t, 2> positions, TensorView<float, 3> turned,
                     RaggedView<const std::int32_t> keep, const index_t* count, const prim::PageTable& pages) {
  Status s = prim::RowNorm<Cuda>::run(ctx, rows, 1, 1.0f, out);
  if (s == Status::ok) s = prim::RowProduct<Cuda>::run(ctx, rows, 1, x.data, 1.0f, out);
  if (s == Status::ok) s = prim::SlotNumbers<Cuda>::fill(ctx, 0.0f, out);
  if (s == Status::ok) s = prim::SlotNumbers<Cuda>::index(ctx, out);
  if (s == Status::ok) s = prim::SlotNumbers<Cuda>::mix(ctx, x, 1.0f, 1.0f, out);
  if (s == Status::ok) s = prim::SlotNumbers<Cuda>::larger(ctx, x, out);
  if (s == Status::ok) s = prim::SlotNumbers<Cuda>::times(ctx, x, 1.0f, out);
  if (s == Status::ok) s = prim::SlotNumbers<Cuda>::sum_heads(ctx, x, 1.0f, 0.5f, out);
  if (s == Status::ok) s = prim::SlotNumbers<Cuda>::larger_brought(ctx, x, out);
  if (s == Status::ok) s = prim::SoftmaxRows<Cuda>::run(ctx, 1.0f, out);
  if (s == Status::ok) s = prim::FoldRows<Cuda>::run(ctx, x, 2, prim::RowFold::mean, out);
  if (s == Status::ok) s = prim::ColumnPool<Cuda>::run(ctx, x, nullptr, prim::Pool::maximum, 5, out);
  if (s == Status::ok) s = prim::TokenNumbers<Cuda>::write(ctx, TensorView<const float, 2>{}, 1.0f, 0, prim::MissingNumber::stays, out);
  if (s == Status::ok) s = prim::TokenNumbers<Cuda>::write(ctx, std::span<const TokenClass>{}, out);
  if (s == Status::ok) s = prim::TokenNumbers<Cuda>::extend(ctx, 1, out);
  if (s == Status::ok) s = prim::Rope<Cuda>::rotate(ctx, prim::RopeAngles{}, keys, positions, turned);
  if (s == Status::ok) s = prim::TurnRows::to_slots(ctx, prim::RopeAngles{}, keys, {}, {}, count, 1, turned);
  if (s == Status::ok) s = prim::TurnRows::back(ctx, prim::RopeAngles{}, TensorView<const half, 3>{}, {}, turned);
  if (s == Status::ok) s = prim::RowTransform<Cuda, prim::Hadamard>::forward(ctx, {}, 64, {nullptr, 1, 64});
  if (s == Status::ok) s = prim::SlotExposure<Cuda>::count(ctx, 1, 1, 1, out);
  if (s == Status::ok) s = prim::SlotExposure<Cuda>::mean(ctx, x, x, 1, out);
  if (s == Status::ok) s = prim::SlotExposure<Cuda>::row_divisors(ctx, 9, 3, out.data);
  if (s == Status::ok) s = prim::SlotExposure<Cuda>::open_logs(ctx, 1, out);
  if (s == Status::ok) s = prim::SlotExposure<Cuda>::decayed_mean(ctx, x, x, 1, 0.5f, out);
  if (s == Status::ok) s = prim::ChunkPool<Cuda>::run(ctx, nullptr, prim::ChunkReduce::sum, 8, out);
  if (s == Status::ok) s = prim::RowDirection<Cuda>::run(ctx, rows, prim::Anchor::mean_row, 1.0f, out);
  if (s == Status::ok) s = prim::KeepRows<Cuda>::rows(ctx, prim::ExactRows{}, pages, keep, count);
  if (s == Status::ok) s = prim::KeepRows<Cuda>::rows(ctx, prim::GroupInt<4>{}, pages, keep, count);
  if (s == Status::ok) s = prim::KeepRows<Cuda>::numbers(ctx, keep, count, out);
  if (s == Status::ok) s = prim::HeadSlots::write_newest(ctx, {}, out);
  if (s == Status::ok) s = prim::SlotSummary::take(ctx, rows, rows, {keep, count}, keep, {});
  if (s == Status::ok) s = prim::SlotSummary::limit(ctx, count, 1, {});
  return s;
}

Status choosing_words(Context<Cuda>& ctx, RaggedView<const float> scores, const prim::Ends* ends, const index_t* total, RaggedView<std::int32_t> slots,
                      index_t* count, RaggedView<float> out, Scratch scratch) {
  Status s = prim::ChunkTopK<Cuda>::run(ctx, scores, ends, 8, total, slots, count);
  if (s == Status::ok) s = prim::BlockTopK<Cuda>::run(ctx, scores, ends, 128, total, slots, count);
  if (s == Status::ok) s = prim::TopThenNewest<Cuda>::run(ctx, scores, 4, 16, total, slots, count);
  if (s == Status::ok) s = prim::KeepTokens<Cuda>::run(ctx, slots, slots, total, slots, count);
  if (s == Status::ok) s = prim::TopKCounts<Cuda>::run(ctx, scores, ends, total, 64, count, scratch);
  if (s == Status::ok) s = prim::CountAbove<Cuda>::run(ctx, scores, ends, 0.5f, count);
  if (s == Status::ok) s = prim::DrawRanks<Cuda>::run(ctx, 0.5f, 1, out);
  if (s == Status::ok) s = prim::EndsSum<Cuda>::run(ctx, scores, ends, out.data);
  if (s == Status::ok) s = prim::LiftTop<Cuda>::run(ctx, scores, scores, ends, total, 0.0f, out);
  if (s == Status::ok) s = prim::OpenBlocks<Cuda>::mark(ctx, scores, 4, 128, out);
  if (s == Status::ok) s = prim::OpenBlocks<Cuda>::settle(ctx, scores, out);
  if (s == Status::ok) s = prim::OpenBlocks<Cuda>::count(ctx, scores, ends, count);
  if (s == Status::ok) s = prim::SettleProbed<Cuda>::run(ctx, out, out);
  if (s == Status::ok) s = prim::BlockStride<Cuda>::mark(ctx, {}, 0, 1, out);
  return s;
}

Status taught_words(Context<Cuda>& ctx, const SlotRows<Cuda>& rows, const prim::UnitPlanes& planes, const prim::UnitScores& scores, const index_t* known, float* x,
                    RaggedView<const float> all, RaggedView<std::int32_t> units, index_t* count, TensorView<const float, 3> queries, TensorView<float, 3> out) {
  const Scratch scratch(ctx.workspace());
  Status s = prim::ChannelPages::build(ctx, rows, rows, planes, known, known, 0, 8);
  if (s == Status::ok) s = prim::ChannelPages::queries(ctx, queries, 0, 1, x);
  if (s == Status::ok) s = prim::ChannelPages::score(ctx, planes, scores, x, 64, 8);
  if (s == Status::ok) s = prim::ChannelPages::share(ctx, rows, {}, known, x);
  if (s == Status::ok) s = prim::ChannelPages::mix(ctx, rows, planes, known, known, x, out);
  if (s == Status::ok) s = prim::SlotCodes::build(ctx, rows, planes, {}, known, known, 0, 8);
  if (s == Status::ok) s = prim::SlotCodes::tables(ctx, {}, x, 1, 1, 64, x);
  if (s == Status::ok) s = prim::SlotCodes::score(ctx, planes, {}, scores, x, 8);
  if (s == Status::ok) s = prim::KeyClusters::fit(ctx, rows, 0, 8, {}, queries, 1.0f, x, scratch);
  if (s == Status::ok) s = prim::KeyClusters::tables(ctx, {}, x, 1, 1, 64, 1.0f, 1, x);
  if (s == Status::ok) s = prim::KeyClusters::above(ctx, all, {}, 1, 0.0f, units, count);
  if (s == Status::ok) s = prim::PartialColumns::choose(ctx, queries, 0, 1, x, 64, 8, x, scratch);
  if (s == Status::ok) s = prim::KeyGraph::build(ctx, rows, planes, {}, known, known);
  if (s == Status::ok) s = prim::KeyGraph::forget(ctx, planes, {}, known, 1, 8);
  if (s == Status::ok) s = prim::KeyGraph::score(ctx, rows, planes, {}, scores, x, count);
  if (s == Status::ok) s = prim::KeyGraph::fit(ctx, rows, 0, 8, {}, queries, x, scratch);
  if (s == Status::ok) s = prim::KeyGraph::keep_visited(ctx, all, units, count);
  return s == Status::ok ? prim::PartialColumns::within(ctx, all, 1.0f, known, count) : s;
}

Status scoring_words(Context<Cuda>& ctx, const SlotRows<Cuda>& rows, TensorView<const float, 3> numbers, TensorView<float, 2> mean, TensorView<float, 3> covariance,
                     RaggedView<float> x, RaggedView<float> out) {
  Scratch scratch(ctx.workspace());
  Status s = prim::LagSpread<Cuda>::add(ctx, rows, 128, 1.0f, x, out);
  if (s == Status::ok) s = prim::ProjectedNorm<Cuda>::run(ctx, rows, nullptr, CacheShape{}, nullptr, 1, out);
  if (s == Status::ok) s = prim::ProjectedNorm<Cuda>::weigh(ctx, rows, CacheShape{}, nullptr, 1, x, out);
  if (s == Status::ok) s = prim::RowRedundancy<Cuda>::run(ctx, rows, 0.5f, x, out, scratch);
  if (s == Status::ok) s = prim::OutputError<Cuda>::run(ctx, rows, nullptr, {}, out);
  if (s == Status::ok) s = prim::RowDeviation<Cuda>::run(ctx, numbers, numbers, nullptr);
  if (s == Status::ok) s = prim::TokenSurprise<Cuda>::run(ctx, {}, {}, prim::SurpriseOf::this_token, {});
  if (s == Status::ok) s = prim::ForwardPool<Cuda>::add(ctx, x, 8, out);
  if (s == Status::ok) s = prim::QueryMoments<Cuda>::add(ctx, numbers, 0, mean, covariance);
  if (s == Status::ok) s = prim::PackBits<Cuda>::pack(ctx, prim::DenseLe<3>{}, {}, {});
  if (s == Status::ok) s = prim::PackBits<Cuda>::pack(ctx, prim::SplitHalf{}, {}, {});
  if (s == Status::ok) s = prim::PackBits<Cuda>::pack(ctx, prim::BitPlanes<4>{}, {}, {});
  if (s == Status::ok) s = prim::PackBits<Cuda>::unpack(ctx, prim::DenseLe<3>{}, {}, {});
  return s;
}

Status merging_words(Context<Cuda>& ctx, const SlotRows<Cuda>& rows, const prim::WeightRequest& weights, const prim::MergeLinks& links,
                     const prim::SlotRange* targets, RaggedView<float> x, RaggedView<std::int32_t> turn, TensorView<float, 3> out) {
  Status s = prim::MergePartials<Cuda>::run(ctx, {}, out);
  if (s == Status::ok) s = prim::MergeWeights<Cuda>::run(ctx, weights, links);
  if (s == Status::ok) s = prim::MergeWeights<Cuda>::votes(ctx, x, true, x, links);
  if (s == Status::ok) s = prim::MergeWeights<Cuda>::add_sizes(ctx, targets, links, x, 1);
  if (s == Status::ok) s = prim::MergeWeights<Cuda>::add_scales(ctx, targets, links, x, 1);
  if (s == Status::ok) s = prim::MergeWeights<Cuda>::places(ctx, true, links, x, turn);
  if (s == Status::ok) s = prim::RowSimilarity<Cuda>::nearest(ctx, rows, &rows, targets, 0, links);
  if (s == Status::ok) s = prim::RowSimilarity<Cuda>::adjacent(ctx, rows, x);
  if (s == Status::ok) s = prim::RowSimilarity<Cuda>::gaussian(ctx, rows, 0.0f, links);
  return s;
}

Status linking_words(Context<Cuda>& ctx, const SlotRows<Cuda>& rows, RaggedView<const std::int32_t> tokens, RaggedView<std::int32_t> kept, index_t* count,
                     const prim::SlotRange* targets, RaggedView<float> x, TensorView<float, 2> state, const prim::MergeLinks& links, const prim::CombineRequest& fold) {
  Status s = prim::MergeSets<Cuda>::begin(ctx, tokens, count, links);
  if (s == Status::ok) s = prim::MergeSets<Cuda>::drop(ctx, links);
  if (s == Status::ok) s = prim::MergeSets<Cuda>::next(ctx, targets, links);
  if (s == Status::ok) s = prim::MergeSets<Cuda>::nearest_token(ctx, tokens, 0, 1, targets, links);
  if (s == Status::ok) s = prim::MergeSets<Cuda>::spans(ctx, tokens, nullptr, targets, 0.5, nullptr, count);
  if (s == Status::ok) s = prim::MergeSets<Cuda>::runs(ctx, {targets}, x, links);
  if (s == Status::ok) s = prim::MergeSets<Cuda>::alternate(ctx, targets, links);
  if (s == Status::ok) s = prim::MergeSets<Cuda>::strongest(ctx, targets, 0, count, links);
  if (s == Status::ok) s = prim::MergeFilter<Cuda>::moving_mean(ctx, 0.5f, 0.5f, state, links);
  if (s == Status::ok) s = prim::MergeFilter<Cuda>::best_part(ctx, 0.5, links);
  if (s == Status::ok) s = prim::MergeFilter<Cuda>::chance(ctx, x, targets, tokens, 0, links);
  if (s == Status::ok) s = prim::SegmentedCombine<Cuda>::run(ctx, fold, rows, rows, 1);
  return s == Status::ok ? prim::MergeSets<Cuda>::end(ctx, links, kept, count, count) : s;
}

Status retrieving_words(Context<Cuda>& ctx, const SlotRows<Cuda>& rows, TensorView<const float, 3> numbers, TensorView<float, 3> out, TensorView<float, 2> sums,
                        TensorView<std::int32_t, 3> chosen, RaggedView<float> x, std::int32_t* labels, Scratch scratch) {
  const prim::RowBlock<const float> block{nullptr, 1, 1};
  Status s = prim::UnitFold<Cuda>::largest(ctx, numbers, sums);
  if (s == Status::ok) s = prim::UnitFold<Cuda>::smallest(ctx, numbers, sums);
  if (s == Status::ok) s = prim::UnitFold<Cuda>::sum(ctx, numbers, sums);
  if (s == Status::ok) s = prim::UnitSpread<Cuda>::smallest_cosine(ctx, numbers, sums, nullptr);
  if (s == Status::ok) s = prim::KMeans<Cuda>::nearest(ctx, block, 1, nullptr, 1, labels);
  if (s == Status::ok) s = prim::KMeans<Cuda>::fit(ctx, block, 1, {}, nullptr, scratch);
  if (s == Status::ok) s = prim::MetricLength<Cuda>::squared(ctx, block, 1, nullptr, nullptr);
  if (s == Status::ok) s = prim::CodeScores<Cuda>::scores(ctx, nullptr, 1, 1, 1, 0, 1, block, {});
  if (s == Status::ok) s = prim::CodeScores<Cuda>::matches(ctx, nullptr, 1, 1, 0, 1, block, {});
  if (s == Status::ok) s = prim::RetrieveChunks<Cuda>::means(ctx, numbers, 1, out);
  if (s == Status::ok) s = prim::RetrieveChunks<Cuda>::run(ctx, {}, numbers, 1, 1.0f, out, sums, chosen, scratch);
  if (s == Status::ok) s = prim::GatedMerge<Cuda>::run(ctx, numbers, numbers, {}, out);
  if (s == Status::ok) s = prim::VerticalSlash<Cuda>::run(ctx, numbers, numbers, 1.0f, sums, sums, scratch);
  return s == Status::ok ? prim::ExpectedAttention<Cuda>::run(ctx, {}, rows, x, scratch) : s;
}

Status joining_words(Context<Cuda>& ctx, const prim::OpenRows& open, const prim::Joining& join, TensorView<const half, 3> rows, TensorView<const float, 3> queries,
                     TensorView<float, 3> out, const index_t* slots, const prim::PassedSlots& passed, RaggedView<std::int32_t> heirs) {
  Status s = prim::OpenSlots::add(ctx, open, join, 0, {}, rows, rows, queries, {}, slots, 0, DType::f16, out, out, nullptr);
  if (s == Status::ok) s = prim::OpenSlots::settle(ctx, open, 1, 1);
  if (s == Status::ok) s = prim::OpenSlots::heirs(ctx, passed, heirs);
  return s == Status::ok ? prim::OpenSlots::clear(ctx, join.control, {}, queries, out) : s;
}

template <prim::IndexRule Rule>
Status index_units(Context<Cuda>& ctx, const SlotRows<Cuda>& keys, const prim::UnitPlanes& planes, const prim::UnitScores& scores, const index_t* known, const float* queries) {
  const Status s = prim::UnitIndex::build<Rule>(ctx, keys, planes, known, known, 0, 8);
  return s == Status::ok ? prim::UnitScoring::score<Rule>(ctx, planes, scores, queries, 64, 8) : s;
}
Status index_words(Context<Cuda>& ctx, const SlotRows<Cuda>& keys, const prim::UnitPlanes& planes, const prim::UnitScores& scores, TensorView<const float, 3> queries,
                   RaggedView<const std::int32_t> keep, index_t* count, float* rows, const prim::ChosenUnits& units, const prim::ColumnRuns& column,
                   const prim::ChosenRuns& runs, RaggedView<float> mass) {
  Status s = index_units<prim::IndexRule::bounds>(ctx, keys, planes, scores, count, rows);
  if (s == Status::ok) s = index_units<prim::IndexRule::mean>(ctx, keys, planes, scores, count, rows);
  if (s == Status::ok) s = index_units<prim::IndexRule::spread>(ctx, keys, planes, scores, count, rows);
  if (s == Status::ok) s = index_units<prim::IndexRule::coordinates>(ctx, keys, planes, scores, count, rows);
  if (s == Status::ok) s = index_units<prim::IndexRule::last>(ctx, keys, planes, scores, count, rows);
  if (s == Status::ok) s = prim::MetricCodes::build(ctx, keys, planes, {}, count, count, 0, 8);
  if (s == Status::ok) s = prim::SignWords::mean(ctx, keys, 0, 0, 8, 8.0, rows);
  if (s == Status::ok) s = prim::SignWords::build(ctx, keys, planes, {}, count, count, 0, 8);
  if (s == Status::ok) s = prim::SignWords::queries(ctx, {}, rows, 1, rows);
  if (s == Status::ok) s = prim::SignWords::score(ctx, planes, scores, 8, rows, 8);
  if (s == Status::ok) s = prim::SignWords::sample(ctx, mass, {}, count);
  if (s == Status::ok) s = prim::SignWords::chances(ctx, keys, planes, {}, 4, 8, 8, rows);
  if (s == Status::ok) s = prim::DrawnSlots::step(ctx, {}, 1, rows, mass, nullptr, count);
  if (s == Status::ok) s = prim::DrawnSlots::build(ctx, keys, planes, {}, 4, count, count, 0, 8);
  if (s == Status::ok) s = prim::DrawnSlots::score(ctx, planes, scores, rows, 64, 8);
  if (s == Status::ok) s = prim::UnitOrder::ranks(ctx, mass, keep, count, nullptr);
  if (s == Status::ok) s = prim::UnitOrder::unite(ctx, keep, count, {}, count);
  if (s == Status::ok) s = prim::UnitBiases::of_blocks(ctx, keys, {}, 4, 1.0f, rows, 8, rows);
  if (s == Status::ok) s = prim::ListNumbers::run(ctx, units, runs, {}, {}, rows, 64, {rows, rows});
  if (s == Status::ok) s = prim::UnitIndex::moved(ctx, keep, count, count);
  if (s == Status::ok) s = prim::UnitIndex::below(ctx, {}, count, 1, 1, count);
  if (s == Status::ok) s = prim::UnitScoring::queries<prim::QueryRule::each>(ctx, queries, 0, 1, 1, rows);
  if (s == Status::ok) s = prim::UnitScoring::queries<prim::QueryRule::mean>(ctx, queries, 0, 1, 1, rows);
  if (s == Status::ok) s = prim::UnitScoring::queries<prim::QueryRule::group_channels>(ctx, queries, 0, 1, 1, rows);
  if (s == Status::ok) s = prim::UnitScoring::coordinates(ctx, planes, rows, 1, 1, 64, rows);
  if (s == Status::ok) s = prim::UnitScoring::join(ctx, mass, true, 1.0f, mass);
  if (s == Status::ok) s = prim::UnitScoring::mark_outliers(ctx, planes, scores, 1, 1.0f);
  if (s == Status::ok) s = prim::ChosenSlots::lay(ctx, units, column, column, runs);
  return s == Status::ok ? prim::ChosenSlots::spread(ctx, units, runs, mass, 64, mass) : s;
}

Status head_words(Context<Cuda>& ctx, TensorView<const float, 3> numbers, TensorView<float, 3> out, RaggedView<float> x, RaggedView<std::int32_t> slots,
                  const prim::Ends* ends, index_t* count, std::uint8_t* kept, double* lengths) {
  const prim::RowBlock<const float> block{nullptr, 1, 1};
  Status s = prim::HeadPolicies<Cuda>::choose(ctx, {}, x, x, x, 0.9, x);
  if (s == Status::ok) s = prim::HeadPolicies<Cuda>::mark(ctx, {}, x, x);
  if (s == Status::ok) s = prim::HeadMixing<Cuda>::map(ctx, numbers, {}, 1, out);
  if (s == Status::ok) s = prim::HeadMixing<Cuda>::back(ctx, numbers, {}, 1, out);
  if (s == Status::ok) s = prim::Representatives<Cuda>::distances(ctx, {}, x, ends, count, x);
  if (s == Status::ok) s = prim::Representatives<Cuda>::pick(ctx, 0, x, ends, count, slots, count);
  if (s == Status::ok) s = prim::RetainingHead<Cuda>::write(ctx, {}, prim::Activation::silu, numbers, numbers, numbers, x);
  if (s == Status::ok) s = prim::SharedDirection<Cuda>::distance(ctx, block, block, 1, nullptr, lengths);
  if (s == Status::ok) s = prim::SharedDirection<Cuda>::apart(ctx, {}, nullptr, 1, kept, count);
  return s == Status::ok ? prim::SharedDirection<Cuda>::between(ctx, 0.5f, block, block, 1, {}) : s;
}

template <class K, class V>
Status columns(Context<Cuda>& ctx, const prim::ColumnRequest& r, TensorView<const float, 3> queries, const prim::PagedHeads<K, V>& heads) {
  const Status s = prim::QueryRows::join(ctx, queries, queries, {});
  return s == Status::ok ? prim::AttendColumns<Cuda>::run(ctx, r, queries, 1.0f, heads, 4096) : s;
}
template Status columns(Context<Cuda>&, const prim::ColumnRequest&, TensorView<const float, 3>, const prim::PagedHeads<prim::ExactRows, prim::ExactRows>&);
template Status columns(Context<Cuda>&, const prim::ColumnRequest&, TensorView<const float, 3>, const prim::PagedHeads<prim::GroupInt<4>, prim::GroupInt<4>>&);
template Status columns(Context<Cuda>&, const prim::ColumnRequest&, TensorView<const float, 3>, const prim::PagedHeads<prim::BlockCodes, prim::BlockCodes>&);

template <class C>
Status forward(Context<Cuda>& ctx, C& cache, TensorView<const float, 3> queries, TensorView<const half, 3> keys, TensorView<float, 3> out) {
  const Status s = cache.read(ctx, 0, 0, 0, {}, {});
  return s == Status::ok ? cache.forward(ctx, 0, queries, keys, keys, out) : s;
}
template Status forward(Context<Cuda>&, Cache<Cuda, RecipeOf<evict::H2O>>&, TensorView<const float, 3>, TensorView<const half, 3>, TensorView<float, 3>);
template Status forward(Context<Cuda>&, Cache<Cuda, RecipeOf<quant::Kivi<4>>>&, TensorView<const float, 3>, TensorView<const half, 3>, TensorView<float, 3>);
template Status forward(Context<Cuda>&, Cache<Cuda, RecipeOf<quant::Fp8>>&, TensorView<const float, 3>, TensorView<const half, 3>, TensorView<float, 3>);
template Status forward(Context<Cuda>&, Cache<Cuda, RecipeOf<retrieve::Quest>>&, TensorView<const float, 3>, TensorView<const half, 3>, TensorView<float, 3>);

// Codecs of rows: what becomes codes, what moves, and attention over those that caches use most.
template <class Codec>
Status coded_rows(Context<Cuda>& ctx, const Codec& codec, const prim::ColumnParts& column, const prim::KeptSlots& kept) {
  const Status s = prim::HeadSlots::code(ctx, codec, prim::ExactRows{}, column, kept, 1, nullptr);
  return s == Status::ok ? prim::KeepRows<Cuda>::rows(ctx, codec, column.coded, kept) : s;
}
using Turned = prim::Transformed<prim::Hadamard, prim::Tabled<prim::LevelCodes>>;
using Uneven = prim::Tabled<prim::NuqRows>;
template Status coded_rows(Context<Cuda>&, const Turned&, const prim::ColumnParts&, const prim::KeptSlots&);
template Status coded_rows(Context<Cuda>&, const Uneven&, const prim::ColumnParts&, const prim::KeptSlots&);
template Status coded_rows(Context<Cuda>&, const prim::Tabled<prim::ClusterRows>&, const prim::ColumnParts&, const prim::KeptSlots&);
template Status coded_rows(Context<Cuda>&, const prim::Tabled<prim::ComplexVq>&, const prim::ColumnParts&, const prim::KeptSlots&);
template Status coded_rows(Context<Cuda>&, const prim::Tabled<prim::PolarTree>&, const prim::ColumnParts&, const prim::KeptSlots&);
template Status coded_rows(Context<Cuda>&, const prim::BipolarInt<2>&, const prim::ColumnParts&, const prim::KeptSlots&);
template Status attend(Context<Cuda>&, const prim::AttendRequest&, const prim::PagedHeads<Turned, Turned>&);
template Status attend(Context<Cuda>&, const prim::AttendRequest&, const prim::PagedHeads<Uneven, Uneven>&);
template Status columns(Context<Cuda>&, const prim::ColumnRequest&, TensorView<const float, 3>, const prim::PagedHeads<Turned, Turned>&);

// Coordinates of a low-rank stage, exact or as codes, and sums by which maps are found.
using Coordinates = prim::Latent<prim::ExactRows>;
using CodedCoordinates = prim::Latent<prim::GroupInt<4>>;
template Status coded_rows(Context<Cuda>&, const Coordinates&, const prim::ColumnParts&, const prim::KeptSlots&);
template Status coded_rows(Context<Cuda>&, const CodedCoordinates&, const prim::ColumnParts&, const prim::KeptSlots&);
template Status attend(Context<Cuda>&, const prim::AttendRequest&, const prim::PagedHeads<Coordinates, Coordinates>&);
template Status attend(Context<Cuda>&, const prim::AttendRequest&, const prim::PagedHeads<CodedCoordinates, CodedCoordinates>&);
template Status columns(Context<Cuda>&, const prim::ColumnRequest&, TensorView<const float, 3>, const prim::PagedHeads<Coordinates, Coordinates>&);
// Coordinates, exact or as codes, that heads of several layers, or of one, store together.
template <class C>
Status shared_rows(Context<Cuda>& ctx, const prim::SharingLayers<C>& layers, const prim::SharedSlots* pages, const prim::ColumnParts& column, const prim::GroupWork& work,
                   float* sums) {
  Status s = prim::SharedRows::products(ctx, layers, {}, 1, sums);
  if (s == Status::ok) s = prim::SharedRows::sum(ctx, layers, pages, 1, nullptr);
  return s == Status::ok ? prim::SharedRows::join(ctx, layers.at[0].codec, column, work) : s;
}
template Status shared_rows(Context<Cuda>&, const prim::SharingLayers<Coordinates>&, const prim::SharedSlots*, const prim::ColumnParts&, const prim::GroupWork&, float*);
template Status shared_rows(Context<Cuda>&, const prim::SharingLayers<CodedCoordinates>&, const prim::SharedSlots*, const prim::ColumnParts&, const prim::GroupWork&, float*);
// The largest codec of which kernels take one for every layer of a group.
using TurnedCoordinates = prim::Latent<Turned>;
template Status shared_rows(Context<Cuda>&, const prim::SharingLayers<TurnedCoordinates>&, const prim::SharedSlots*, const prim::ColumnParts&, const prim::GroupWork&, float*);

// Rows that two layers store as a direction and two lengths.
Status paired_rows(Context<Cuda>& ctx, const prim::SharingLayers<prim::PairedRows>& layers, const prim::PairedPage* pages, const prim::ColumnParts& column,
                   const prim::GroupWork& work, float* distance, std::uint8_t* kept, index_t* count) {
  Status s = prim::PairRows::measure(ctx, layers, {}, 0, 1, distance, kept, count);
  if (s == Status::ok) s = prim::PairRows::run(ctx, layers, 0.5f, pages, 1);
  return s == Status::ok ? prim::SharedRows::join(ctx, layers.at[0].codec, column, work) : s;
}
template Status attend(Context<Cuda>&, const prim::AttendRequest&, const prim::PagedHeads<prim::PairedRows, prim::PairedRows>&);
template Status columns(Context<Cuda>&, const prim::ColumnRequest&, TensorView<const float, 3>, const prim::PagedHeads<prim::PairedRows, prim::PairedRows>&);
Status find_maps(Context<Cuda>& ctx, const prim::FirstRows& first, float* sums) {
  Status s = prim::FindRows::observe(ctx, prim::FoundBasis{}, first, sums, 1);
  if (s == Status::ok) s = prim::FindRows::observe(ctx, prim::ChannelScale{prim::ChannelScale::Rule::balance}, first, sums, 1);
  return s == Status::ok ? prim::FindRows::observe(ctx, prim::ChannelList{}, first, sums, 1) : s;
}

// Codecs whose groups of slots share more than scales: what becomes codes, pages that are joined, and attention.
template <class Codec>
Status coded_groups(Context<Cuda>& ctx, const Codec& codec, const prim::ColumnParts& column, const prim::KeptSlots& kept, const prim::GroupWork& work, const prim::PageBatch& batch) {
  Status s = prim::GroupPages::code(ctx, codec, prim::ExactRows{}, column, kept, work, nullptr);
  if (s == Status::ok) s = prim::GroupPages::join(ctx, codec, column, work);
  return s == Status::ok ? pages(ctx, codec, batch) : s;
}
using Strong = prim::BoostedInt<2, 2>;
using Signs = prim::DeviceCodec<prim::SketchRows>;
using Widths = prim::DeviceCodec<prim::GroupBits>;
using Balanced = prim::DeviceCodec<prim::Transformed<prim::ChannelScale, prim::MixedRows<prim::GroupInt<8>, prim::GroupInt<2>>>>;
template Status coded_groups(Context<Cuda>&, const Signs&, const prim::ColumnParts&, const prim::KeptSlots&, const prim::GroupWork&, const prim::PageBatch&);
template Status coded_groups(Context<Cuda>&, const Widths&, const prim::ColumnParts&, const prim::KeptSlots&, const prim::GroupWork&, const prim::PageBatch&);
template Status coded_groups(Context<Cuda>&, const Strong&, const prim::ColumnParts&, const prim::KeptSlots&, const prim::GroupWork&, const prim::PageBatch&);
template Status coded_groups(Context<Cuda>&, const prim::PolarForm&, const prim::ColumnParts&, const prim::KeptSlots&, const prim::GroupWork&, const prim::PageBatch&);
template Status coded_groups(Context<Cuda>&, const prim::CorrectedForm&, const prim::ColumnParts&, const prim::KeptSlots&, const prim::GroupWork&, const prim::PageBatch&);
template Status coded_groups(Context<Cuda>&, const prim::MixedForm&, const prim::ColumnParts&, const prim::KeptSlots&, const prim::GroupWork&, const prim::PageBatch&);
template Status coded_groups(Context<Cuda>&, const Balanced&, const prim::ColumnParts&, const prim::KeptSlots&, const prim::GroupWork&, const prim::PageBatch&);
// Of rows that a map or factors meet first: what is joined lies below these.
template <class... Codec>
Status mapped_groups(Context<Cuda>& ctx, const prim::ColumnParts& column, const prim::KeptSlots& kept, const prim::GroupWork& work, const Codec&... codec) {
  for (const Status s : {prim::GroupPages::code(ctx, codec, prim::ExactRows{}, column, kept, work, nullptr)...})
    if (s != Status::ok) return s;
  return Status::ok;
}
using SmoothedGroups = prim::DeviceCodec<prim::Transformed<prim::ChannelScale, prim::GroupInt<4>>>;
template Status mapped_groups(Context<Cuda>&, const prim::ColumnParts&, const prim::KeptSlots&, const prim::GroupWork&, const CodedCoordinates&, const prim::Latent<Strong>&,
                              const prim::Latent<Signs>&, const prim::Latent<prim::PolarForm>&, const prim::Latent<prim::CorrectedForm>&, const SmoothedGroups&);
template Status attend(Context<Cuda>&, const prim::AttendRequest&, const prim::PagedHeads<Balanced, prim::MixedForm>&);
template Status columns(Context<Cuda>&, const prim::ColumnRequest&, TensorView<const float, 3>, const prim::PagedHeads<prim::MixedForm, Balanced>&);
template Status attend(Context<Cuda>&, const prim::AttendRequest&, const prim::PagedHeads<Strong, prim::GroupInt<2>>&);
template Status attend(Context<Cuda>&, const prim::AttendRequest&, const prim::PagedHeads<prim::CorrectedForm, prim::CorrectedForm>&);
template Status attend(Context<Cuda>&, const prim::AttendRequest&, const prim::PagedHeads<prim::PolarForm, prim::ExactRows>&);
