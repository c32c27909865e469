#include <eval/calibrate_retrieval.hpp>

#include <algorithm>
#include <filesystem>

#include <engine/model.hpp>
#include <eval/error.hpp>
#include <eval/table.hpp>
#include <kvcondense/backend/cpu/k_means.hpp>
#include <kvcondense/backend/cpu/rope.hpp>
#include <kvcondense/lowrank/blocks/basis_rule.hpp>
#include <kvcondense/lowrank/fit/principal.hpp>
#include <kvcondense/retrieve/a2ats.hpp>
#include <kvcondense/retrieve/blocks/hashes.hpp>

namespace eval {
namespace {

namespace fit = kvcondense::lowrank::fit;
namespace prim = kvcondense::prim;
namespace retrieve = kvcondense::retrieve;
using kvcondense::Cpu;
using kvcondense::Scratch;
using RowMajor = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

fit::Matrix matrix(const std::vector<float>& rows, index_t dim) {
  return Eigen::Map<const RowMajor>(rows.data(), static_cast<Eigen::Index>(rows.size()) / dim, dim).cast<double>();
}

std::vector<float> numbers(const fit::Matrix& m) {
  std::vector<float> list(static_cast<std::size_t>(m.size()));
  Eigen::Map<RowMajor>(list.data(), m.rows(), m.cols()) = m.cast<float>();
  return list;
}

std::string place(const HeadOfTexts& of) { return "layer " + std::to_string(of.layer) + ", head " + std::to_string(of.head); }

HeadArrays directions(const char* name, const std::vector<float>& rows, bool centred, const HeadOfTexts& of) {
  fit::Moments moments(of.shape().head_dim);
  moments.add(matrix(rows, of.shape().head_dim));
  const auto d = fit::principal(moments, centred);
  require(d.status(), place(of) + ": directions");
  HeadArrays found;
  found.arrays.push_back({name, {d->columns.rows(), d->columns.cols()}, numbers(d->columns)});
  for (const double part : {0.9, 0.99})
    found.said.push_back(std::to_string(kvcondense::lowrank::rank_by_energy(d->energy.data(), d->energy.size(), part)));
  return found;
}

/// Queries before rotation as if all stood at `distance`.
void turn(std::vector<float>& rows, const HeadOfTexts& of, index_t distance) {
  const index_t dim = of.shape().head_dim, n = static_cast<index_t>(rows.size()) / dim;
  if (!of.texts[0]->rope) throw Error("a2ats turns queries, and nothing says how");
  const auto angles = prim::rope_angles(*of.texts[0]->rope, dim);
  require(angles.status(), "rotary embedding");
  const std::vector<index_t> at(static_cast<std::size_t>(n), distance);
  const TensorView<float, 3> view{rows.data(), {1, n, dim}, {n * dim, dim, 1}};
  kvcondense::Context<Cpu> context;
  require(prim::Rope<Cpu>::rotate(context, *angles, view, kvcondense::dense_view<const index_t>(at.data(), 1, n), view), "rotation");
}

}  // namespace

HeadArrays head_key_axes(const HeadOfTexts& of, const Calibration&, std::uint64_t) { return directions("key.axes", of.keys(), true, of); }

HeadArrays head_query_axes(const HeadOfTexts& of, const Calibration&, std::uint64_t) {
  return directions("query.axes", of.queries(), false, of);
}

/// The first right singular vector of queries, turned so that most of their weight lies on its other side.
HeadArrays head_query_filters(const HeadOfTexts& of, const Calibration&, std::uint64_t) {
  const fit::Matrix queries = matrix(of.queries(), of.shape().head_dim);
  fit::Moments moments(of.shape().head_dim);
  moments.add(queries);
  const auto d = fit::principal(moments, false);
  require(d.status(), place(of) + ": directions");
  fit::Matrix filter = d->columns.col(0).transpose();
  if ((queries * filter.transpose()).sum() > 0) filter = -filter;
  const double along = (queries * filter.transpose()).squaredNorm(), all = queries.squaredNorm();
  const auto away = static_cast<double>(((queries * filter.transpose()).array() < 0).count());
  return {{{"query.filters", {of.shape().head_dim}, numbers(filter)}},
          {short_number(all > 0 ? along / all : 0, 3), short_number(away / static_cast<double>(queries.rows()), 3)}};
}

HeadArrays head_key_codes(const HeadOfTexts& of, const Calibration& how, std::uint64_t seed) {
  const index_t dim = of.shape().head_dim;
  std::vector<float> queries = of.queries();
  turn(queries, of, how.distance);
  FactArray metric{"key.metric", {dim, dim}, std::vector<float>(static_cast<std::size_t>(dim * dim))};
  retrieve::vq_metric(queries.data(), static_cast<index_t>(queries.size()) / dim, dim, metric.numbers.data());
  const fit::Matrix l = matrix(metric.numbers, dim);
  if (!l.allFinite() || !(l.diagonal().minCoeff() > 0)) throw Error(place(of) + ": queries make no metric for keys");

  // Where keys are compared by their distance, they are clustered.
  const fit::Matrix z = matrix(of.keys(), dim) * l;
  const std::vector<float> rows = numbers(z);
  const index_t n = z.rows();
  std::vector<float> centroids(static_cast<std::size_t>(how.codes * dim));
  kvcondense::Workspace work;
  require(work.reserve(Scratch::align + prim::KMeans<Cpu>::fit_bytes(n, dim, how.codes)), "memory for centroids");
  Scratch scratch(work.bytes());
  const auto read = [&](index_t first, prim::RowBlock<float> out) {
    for (index_t i = 0; i < out.rows; ++i) std::copy_n(rows.data() + (first + i) * dim, dim, out.data + i * out.step);
  };
  prim::KMeans<Cpu>::fit(read, n, dim, {how.codes, how.steps > 0 ? how.steps : 20, seed}, centroids.data(), scratch);
  const fit::Matrix c = matrix(centroids, dim);

  std::vector<std::int32_t> code(static_cast<std::size_t>(n));
  prim::KMeans<Cpu>::nearest({rows.data(), n, dim}, dim, centroids.data(), how.codes, code.data());
  double lost = 0;
  for (index_t i = 0; i < n; ++i) lost += (z.row(i) - c.row(code[static_cast<std::size_t>(i)])).squaredNorm();
  const double squares = (z.rowwise() - z.colwise().mean()).squaredNorm();

  HeadArrays found;
  const fit::Matrix codes = l.transpose().triangularView<Eigen::Upper>().solve(c.transpose()).transpose();
  found.arrays.push_back({"key.codes", {how.codes, dim}, numbers(codes)});
  found.arrays.push_back(std::move(metric));
  found.said.push_back(short_number(squares > 0 ? lost / squares : 0, 3));
  return found;
}

Calibrated draw_planes(const Options& o) {
  std::string why;
  const auto config = engine::read_config((std::filesystem::path(o.model) / "config.json").string(), why);
  if (!config) throw Error(why);
  const index_t tables = o.calibration.tables, bits = o.calibration.bits, dim = config->head_dim;
  Calibrated made;
  FactArray planes{"hash.planes", {tables, bits, dim}, std::vector<float>(static_cast<std::size_t>(tables * bits * dim))};
  retrieve::fill_planes(o.seed, planes.numbers.data(), tables * bits * dim);
  made.bases.arrays.push_back(std::move(planes));
  std::vector<std::vector<std::string>> text{{"cosine of query and key"}, {"chance to be read"}};
  for (const double cosine : {-0.25, 0.0, 0.25, 0.5, 0.75}) {
    text[0].push_back(short_number(cosine, 2));
    text[1].push_back(short_number(retrieve::Sampled::chance(cosine, bits, tables), 3));
  }
  made.text = aligned(text);
  return made;
}

}  // namespace eval
