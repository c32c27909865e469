#include <eval/calibrate.hpp>

#include <algorithm>
#include <limits>
#include <numeric>

#include <engine/dense_attention.hpp>
#include <eval/calibrate_quant.hpp>
#include <eval/calibrate_retrieval.hpp>
#include <eval/error.hpp>
#include <eval/evaluate_model.hpp>
#include <eval/table.hpp>
#include <kvcondense/lowrank/blocks/basis_rule.hpp>
#include <kvcondense/lowrank/fit/factor.hpp>
#include <kvcondense/lowrank/fit/ranks.hpp>
#include <kvcondense/lowrank/fit/shared_heads.hpp>
#include <kvcondense/lowrank/fit/train.hpp>
#include <kvcondense/version.hpp>

namespace eval {
namespace {

namespace fit = kvcondense::lowrank::fit;
using kvcondense::KeyForm;
using Rows = Eigen::Map<const Eigen::MatrixXf, 0, Eigen::Stride<1, Eigen::Dynamic>>;

/// One window: q, k and v as attention wants them, and sums over what they were projected from.
struct Window {
  Recording recording;
  std::vector<fit::Matrix> input_products;  ///< per layer [hidden, hidden]
  std::vector<fit::Vector> input_sizes;     ///< per layer, sums of |x|
};

Window record(const ModelTask& task, std::size_t i, bool inputs, const Tick& tick) {
  Window w{Recording(task.shape), {}, {}};
  w.recording.rope = task.rope;
  const auto layers = static_cast<std::size_t>(task.shape.layers);
  const index_t hidden = task.model.config.hidden;
  if (inputs) {
    w.input_products.assign(layers, fit::Matrix::Zero(hidden, hidden));
    w.input_sizes.assign(layers, fit::Vector::Zero(hidden));
  }
  engine::DenseAttention dense(task.model.config);
  engine::Decoder decoder(task.model, {.rotate = true, .chunk = task.feeding.chunk});
  const engine::Attention attention = [&](const engine::LayerChunk& chunk, TensorView<float, 3> out) {
    w.recording.append(chunk);
    if (inputs) {
      const auto at = static_cast<std::size_t>(chunk.layer);
      const Eigen::Map<const Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>> x(
          chunk.inputs.data, chunk.inputs.extent[0], chunk.inputs.extent[1]);
      const fit::Matrix rows = x.cast<double>();
      w.input_products[at].noalias() += rows.transpose() * rows;
      w.input_sizes[at] += rows.cwiseAbs().colwise().sum().transpose();
    }
    if (chunk.layer == task.shape.layers - 1) tick(static_cast<double>(chunk.k.extent[1]));
    return dense(chunk, out);
  };
  const auto tokens = task.window(i).first(static_cast<std::size_t>(task.context));
  require(decoder.prefill(tokens, 0, attention).status(), "the model refused a text");
  return w;
}

/// The rows of one head of [tokens, heads, dim].
Eigen::MatrixXf head_rows(const std::vector<float>& all, index_t heads, index_t head, index_t dim) {
  const auto tokens = static_cast<Eigen::Index>(all.size()) / (heads * dim);
  return Rows(all.data() + head * dim, tokens, dim, Eigen::Stride<1, Eigen::Dynamic>(1, heads * dim));
}

/// What one head's side becomes.
struct Side {
  fit::Matrix encode, decode;  ///< decode of no size: encode serves for both
  fit::Vector mean, energy;
  index_t rank = 0;
};

struct HeadResult {
  Side keys, values;
  double before = 0, after = 0;  ///< of a training; of shared heads the parts of keys and values that one head holds
  std::shared_ptr<const fit::Distiller> distiller;
};

void say_made(MethodBases& b, const Options& o) {
  b.method = o.calibration.method;
  b.made = {{"tool", "kvcondense-eval"}, {"version", kvcondense::version_string}, {"command", o.command}, {"seed", o.seed}};
}

class Calibrator {
 public:
  Calibrator(const Options& o, const ModelTask& task) : o_(o), c_(o.calibration), task_(task) {
    const std::string& m = c_.method;
    weights_ = m == "cskv" || m == "palu" || m == "weight_svd" || m == "lorc" || m == "recalkv";
    joint_ = m == "kvtc", maps_ = m == "aquakv", fit_ = find_head_fit(m);
    shared_ = m == "kv_heads_svd";
    groups_ = !shared_ ? task.shape.kv_heads : c_.kv_heads > 0 ? c_.kv_heads : std::max<index_t>(1, task.shape.kv_heads / 2);
    if (task.shape.kv_heads % groups_ != 0)
      throw Error("--kv-heads " + std::to_string(groups_) + ": the model's " + std::to_string(task.shape.kv_heads) + " heads do not divide into so many groups");
    raw_ = c_.keys.empty() ? weights_ || joint_ || maps_ || (fit_ != nullptr && fit_->raw) : c_.keys == "raw";
    trained_ = m == "matryoshka";
    if (trained_ && raw_) throw Error("--keys raw: matryoshka trains on keys as attention compares them");
    if (fit_ != nullptr && fit_->only != nullptr && raw_ != fit_->raw) throw Error("--keys " + c_.keys + ": " + fit_->only);
    const index_t rows = o.windows * o.context;
    const TokensNeeded need = fit_ != nullptr ? fit_->needs(c_, task.shape)
                              : joint_ || maps_ ? TokensNeeded{}
                                                : TokensNeeded{task.shape.head_dim, std::to_string(task.shape.head_dim) + " directions"};
    if (rows < need.tokens) throw Error(std::to_string(rows) + " tokens cannot show " + need.what + ": raise --context or --windows");
  }

  Calibrated run() {
    const index_t layers = task_.shape.layers, heads = groups_;
    Progress progress(o_.quiet);
    const auto tokens = static_cast<double>(o_.context);
    windows_.resize(static_cast<std::size_t>(o_.windows));
    std::vector<HeadResult> results(static_cast<std::size_t>(layers * heads));
    std::vector<Job> record_jobs, fit_jobs;
    for (std::size_t i = 0; i < windows_.size(); ++i)
      record_jobs.push_back({"text", tokens, [this, i](const Tick& tick) { windows_[i] = record(task_, i, weights_, tick); }});
    std::vector<fit::Directions> joint(joint_ ? 2 : 0);
    for (std::size_t i = 0; i < joint.size(); ++i)
      fit_jobs.push_back({"bases", tokens, [this, &joint, i](const Tick&) {
                            auto d = fit::principal_of_rows(joint_rows(i == 0), true, std::numeric_limits<index_t>::max());
                            require(d.status(), "directions of all layers");
                            joint[i] = *std::move(d);
                          }});
    Calibrated made;
    if (maps_) fit_jobs.push_back({"maps", tokens, [this, &made](const Tick&) { made.text = put_layer_maps(texts(), made.bases); }});
    std::vector<HeadArrays> arrays(fit_ != nullptr ? results.size() : 0);
    for (std::size_t i = 0; i < arrays.size(); ++i)
      fit_jobs.push_back({"arrays", tokens, [this, &arrays, i, heads](const Tick&) {
                            arrays[i] = fit_->find({texts(), static_cast<index_t>(i) / heads, static_cast<index_t>(i) % heads}, c_, o_.seed);
                          }});
    const bool bases = fit_jobs.empty();
    for (std::size_t i = 0; bases && i < results.size(); ++i)
      fit_jobs.push_back({"bases", tokens, [this, &results, i, heads](const Tick&) {
                            const index_t l = static_cast<index_t>(i) / heads, h = static_cast<index_t>(i) % heads;
                            results[i] = shared_ ? group(l, h) : head(l, h);
                          }});
    for (const auto* jobs : {&record_jobs, &fit_jobs})
      for (const Job& j : *jobs) progress.expect(j.tokens);
    const index_t threads = threads_for(o_.jobs);
    run_jobs(std::move(record_jobs), threads, progress);
    if (raw_)
      for (Window& w : windows_) raw_keys_.push_back(before_rotation(w.recording));
    run_jobs(std::move(fit_jobs), threads, progress);
    if (joint_) return assemble_joint(joint);
    if (fit_ != nullptr) made.text = put_arrays(*fit_, arrays, task_.shape, made.bases);
    if (maps_ || fit_ != nullptr) {
      say_how(made.bases);
      return made;
    }
    choose_ranks(results);
    return assemble(results);
  }

 private:
  /// With keys as the method wants them.
  Texts texts() const {
    Texts all;
    for (std::size_t w = 0; w < windows_.size(); ++w) all.push_back(&keys_of(w));
    return all;
  }
  const Recording& keys_of(std::size_t w) const { return raw_ ? raw_keys_[w] : windows_[w].recording; }

  fit::Matrix key_rows(std::size_t w, index_t l, index_t h) const {
    return head_rows(keys_of(w).layers[static_cast<std::size_t>(l)].k, task_.shape.kv_heads, h, task_.shape.head_dim).cast<double>();
  }
  fit::Matrix value_rows(std::size_t w, index_t l, index_t h) const {
    return head_rows(keys_of(w).layers[static_cast<std::size_t>(l)].v, task_.shape.kv_heads, h, task_.shape.values()).cast<double>();
  }
  Eigen::MatrixXf query_rows(std::size_t w, index_t l, index_t q_head) const {
    return head_rows(windows_[w].recording.layers[static_cast<std::size_t>(l)].q, task_.shape.q_heads, q_head, task_.shape.head_dim);
  }

  /// Numbers of all layers and heads of a token as one row, for all tokens.
  fit::Matrix joint_rows(bool keys) const {
    const index_t heads = task_.shape.kv_heads, dim = keys ? task_.shape.head_dim : task_.shape.values();
    fit::Matrix rows(static_cast<Eigen::Index>(windows_.size()) * o_.context, task_.shape.layers * heads * dim);
    for (std::size_t w = 0; w < windows_.size(); ++w)
      for (index_t i = 0; i < task_.shape.layers * heads; ++i)
        rows.block(static_cast<Eigen::Index>(w) * o_.context, i * dim, o_.context, dim) =
            keys ? key_rows(w, i / heads, i % heads) : value_rows(w, i / heads, i % heads);
    return rows;
  }

  template <class F>
  fit::Moments moments(index_t dim, F&& rows) const {
    fit::Moments m(dim);
    for (std::size_t w = 0; w < windows_.size(); ++w) m.add(rows(w));
    return m;
  }
  fit::Directions directions(const kvcondense::Expected<fit::Directions>& d, index_t l, index_t h) const {
    if (!d) throw Error("layer " + std::to_string(l) + ", head " + std::to_string(h) + ": no basis: " + to_string(d.status()));
    return *d;
  }
  static Side side(fit::Directions d, fit::Vector mean = {}) { return {std::move(d.columns), {}, std::move(mean), std::move(d.energy), 0}; }

  /// Several heads as one.
  HeadResult group(index_t l, index_t g) const {
    const CacheShape& s = task_.shape;
    const index_t share = s.kv_heads / groups_;
    const auto products = [&](index_t dim, auto&& rows_of) {
      fit::Moments m(share * dim);
      for (std::size_t w = 0; w < windows_.size(); ++w) {
        fit::Matrix rows(o_.context, share * dim);
        for (index_t i = 0; i < share; ++i) rows.middleCols(i * dim, dim) = rows_of(w, g * share + i);
        m.add(rows);
      }
      return m.covariance(false);
    };
    const fit::Matrix k = products(s.head_dim, [&](std::size_t w, index_t h) { return key_rows(w, l, h); });
    const fit::Matrix v = products(s.values(), [&](std::size_t w, index_t h) { return value_rows(w, l, h); });
    const index_t rotary = task_.rope.rotary_dim == 0 ? s.head_dim : task_.rope.rotary_dim;
    HeadResult r;
    r.keys = side(directions(c_.paired ? fit::paired_head(k, s.head_dim, rotary, task_.rope.pairing) : fit::principal(k), l, g));
    r.values = side(directions(fit::principal(v), l, g));
    r.before = fit::held_energy(k, r.keys.encode.leftCols(s.head_dim));
    r.after = fit::held_energy(v, r.values.encode.leftCols(s.values()));
    return r;
  }

  HeadResult head(index_t l, index_t h) const {
    const CacheShape& s = task_.shape;
    HeadResult r;
    const auto k = moments(s.head_dim, [&](std::size_t w) { return key_rows(w, l, h); });
    const auto v = moments(s.values(), [&](std::size_t w) { return value_rows(w, l, h); });
    if (weights_) {
      const auto at = static_cast<std::size_t>(l);
      r.keys = of_weights(task_.model.layers[at].k, k, l, h, s.head_dim, false);
      r.values = of_weights(task_.model.layers[at].v, v, l, h, s.values(), true);
      return r;
    }
    const bool centred = trained_ || c_.center;
    r.keys = side(directions(fit::principal(k, centred), l, h), centred ? k.mean() : fit::Vector());
    r.values = side(directions(fit::principal(v, centred), l, h), centred ? v.mean() : fit::Vector());
    const bool with_queries = (c_.method == "eigen_attention" && !raw_) || c_.aware;
    if (with_queries) {
      if (raw_) throw Error("--aware belongs to rotated keys: that is what queries meet");
      fit::Moments q(s.head_dim);
      for (index_t g = h * s.group(); g < (h + 1) * s.group(); ++g)
        q.add(moments(s.head_dim, [&](std::size_t w) { return query_rows(w, l, g).cast<double>().eval(); }));
      if (c_.aware) {
        const auto f = fit::query_aware(k.covariance(false), q.covariance(false), 1e-3);
        require(f.status(), "key directions that suit queries");
        r.keys = {f->encode, f->decode, {}, f->energy, 0};
      } else {
        r.keys = side(directions(fit::principal(k.products + q.products), l, h));
      }
    }
    if (trained_) train(r, l, h);
    return r;
  }

  /// Factors of the rows of a projection that make one head.
  Side of_weights(const engine::PackedMatrix& packed, const fit::Moments& rows, index_t l, index_t h, index_t dim, bool values) const {
    const std::vector<float> all = packed.row_major();
    const fit::Matrix w = Eigen::Map<const Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>>(
                              all.data() + h * dim * packed.in(), dim, packed.in())
                              .cast<double>();
    const auto at = static_cast<std::size_t>(l);
    fit::Matrix products = fit::Matrix::Zero(packed.in(), packed.in());
    fit::Vector sizes = fit::Vector::Zero(packed.in());
    for (const Window& window : windows_) products += window.input_products[at], sizes += window.input_sizes[at];
    fit::Matrix root = fit::Matrix::Identity(packed.in(), packed.in());
    const std::string& m = c_.method;
    const std::string how = m == "weight_svd" ? c_.weighing : m == "cskv" ? "asvd" : m == "lorc" ? "plain" : "whitening";
    if (how == "asvd") root = ((sizes / rows.count).array() + 1e-6).sqrt().matrix().asDiagonal();
    if (how == "whitening") root = fit::whitening_root(products / rows.count);
    Side s = side(directions(fit::output_directions(w, root), l, h));
    const bool by_turns = m == "recalkv" && values;
    if (m != "cskv" && !by_turns) return s;
    const index_t rank = std::max<index_t>(1, static_cast<index_t>(c_.keep * static_cast<double>(dim) + 1e-9));
    fit::Factors f{s.encode.leftCols(rank), s.encode.leftCols(rank), s.energy.head(rank)};
    if (by_turns) {
      fit::alternate(rows.covariance(false), f, 10);
    } else {
      const fit::Matrix c = rows.covariance(false) / rows.covariance(false).trace();
      (void)fit::fit_reconstruction(c, f, c_.steps > 0 ? c_.steps : 1500, 0.01);
    }
    return {f.encode, f.decode, {}, f.energy, 0};
  }

  void train(HeadResult& r, index_t l, index_t h) const {
    const CacheShape& s = task_.shape;
    std::vector<fit::HeadText> texts;
    for (std::size_t w = 0; w < windows_.size(); ++w) {
      fit::HeadText t;
      for (index_t g = h * s.group(); g < (h + 1) * s.group(); ++g) t.queries.push_back(query_rows(w, l, g));
      t.keys = key_rows(w, l, h).cast<float>(), t.values = value_rows(w, l, h).cast<float>();
      texts.push_back(std::move(t));
    }
    const engine::PackedMatrix& packed = task_.model.layers[static_cast<std::size_t>(l)].o;
    const std::vector<float> all = packed.row_major();
    const Eigen::Map<const Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>> output(all.data(), packed.out(), packed.in());
    std::vector<fit::Matrix> metric;
    for (index_t g = h * s.group(); g < (h + 1) * s.group(); ++g) {
      const fit::Matrix o = output.middleCols(g * s.values(), s.values()).cast<double>();
      metric.push_back(o.transpose() * o);
    }
    const auto distiller = std::make_shared<const fit::Distiller>(std::move(texts), std::move(metric),
                                                                  1.0 / std::sqrt(static_cast<double>(s.head_dim)), o_.seed);
    fit::CentredBasis keys{r.keys.encode, r.keys.mean}, values{r.values.encode, r.values.mean};
    const auto loss = [&] {
      double sum = 0;
      for (const index_t part : {2, 3, 4, 6})
        sum += distiller->loss(keys, s.head_dim * part / 8, values, s.values() * part / 8) / 4;
      return sum;
    };
    r.before = loss();
    distiller->train(keys, values, {.steps = c_.steps > 0 ? c_.steps : 600, .rate = 0.005, .tile = c_.tile, .seed = o_.seed});
    r.after = loss();
    if (r.after < r.before) {  // else principal directions stay
      r.keys.encode = keys.columns, r.keys.mean = keys.mean;
      r.values.encode = values.columns, r.values.mean = values.mean;
    }
    r.distiller = distiller;
  }

  /// Tables of ranks: for matryoshka a greedy search by measured error, for lorc condition numbers.
  void choose_ranks(std::vector<HeadResult>& results) const {
    const index_t dim = task_.shape.head_dim, tile = c_.tile;
    if (trained_) {
      const std::size_t n = results.size();
      std::vector<index_t> rank(2 * n, dim);
      const auto whole = static_cast<double>(2 * n) * static_cast<double>(dim);
      const auto loss = [&](std::size_t i, index_t key_rank, index_t value_rank) {
        const HeadResult& r = results[i];
        return r.distiller->loss({r.keys.encode, r.keys.mean}, key_rank, {r.values.encode, r.values.mean}, value_rank);
      };
      std::vector<double> error(2 * n);
      const auto measure = [&](std::size_t i) {  // a head's losses depend on its own ranks alone
        const index_t kr = rank[i], vr = rank[n + i];
        error[i] = loss(i, std::max(kr - tile, tile), vr), error[n + i] = loss(i, kr, std::max(vr - tile, tile));
      };
      for (std::size_t i = 0; i < n; ++i) measure(i);
      while (static_cast<double>(std::accumulate(rank.begin(), rank.end(), index_t{0})) > c_.keep * whole) {
        const auto lowered = fit::greedy_step(error, rank, tile, std::max<index_t>(1, static_cast<index_t>(n) / 4));
        if (lowered.empty()) break;
        for (const std::size_t i : lowered) measure(i % n);
      }
      for (std::size_t i = 0; i < n; ++i) results[i].keys.rank = rank[i], results[i].values.rank = rank[n + i];
    }
    if (c_.method == "lorc") {
      const auto heads = static_cast<std::size_t>(task_.shape.kv_heads);
      const double spread = std::min(c_.keep, 1 - c_.keep) / 2;
      const auto bound = [&](double part) {
        return std::max<index_t>(1, static_cast<index_t>(part * static_cast<double>(dim)));
      };
      for (Side HeadResult::*side : {&HeadResult::keys, &HeadResult::values}) {
        std::vector<double> condition;
        for (std::size_t i = 0; i < results.size(); i += heads) {
          double worst = 1;
          for (std::size_t h = 0; h < heads; ++h) {
            const fit::Vector& e = (results[i + h].*side).energy;
            worst = std::max(worst, std::sqrt(e(0) / std::max(e(e.size() - 1), 1e-12 * e(0))));
          }
          condition.push_back(worst);
        }
        const auto ranks = fit::condition_ranks(fit::condition_products(condition), bound(c_.keep - spread), bound(c_.keep + spread));
        for (std::size_t i = 0; i < results.size(); ++i) (results[i].*side).rank = ranks[i / heads];
      }
    }
  }

  Calibrated assemble(const std::vector<HeadResult>& results) const {
    Calibrated done;
    MethodBases& b = done.bases;
    for (const auto& [from, to] : {std::pair{&HeadResult::keys, &b.keys}, std::pair{&HeadResult::values, &b.values}}) {
      const Side& first = results[0].*from;
      to->layers = task_.shape.layers, to->groups = groups_;
      to->dim = first.encode.rows(), to->columns = first.encode.cols();
      for (const HeadResult& r : results) {
        const Side& s = r.*from;
        const auto put = [](std::vector<float>& list, const fit::Matrix& m) {
          for (Eigen::Index i = 0; i < m.rows(); ++i)
            for (Eigen::Index j = 0; j < m.cols(); ++j) list.push_back(static_cast<float>(m(i, j)));
        };
        put(to->encode, s.encode), put(to->decode, s.decode), put(to->mean, s.mean), put(to->energy, s.energy);
        if (s.rank > 0) to->ranks.push_back(static_cast<float>(s.rank));
      }
    }
    say_how(b);
    done.text = table(results);
    return done;
  }

  void say_how(MethodBases& b) const {
    b.keys.keys = raw_ ? KeyForm::raw : KeyForm::rotated;
    say_made(b, o_);
    b.made.update({{"context", o_.context}, {"windows", o_.windows}});
  }

  /// One basis of keys and one of values for all layers.
  Calibrated assemble_joint(const std::vector<fit::Directions>& joint) const {
    Calibrated done;
    MethodBases& b = done.bases;
    std::vector<std::vector<std::string>> text{{"side", "numbers", "components", "50%", "90%", "99%", "99.9%"}};
    for (const bool keys : {true, false}) {
      SideBases& to = keys ? b.keys : b.values;
      const fit::Directions& d = joint[keys ? 0 : 1];
      const index_t numbers = d.columns.rows(), all = d.columns.cols();
      to.layers = to.groups = 1, to.dim = numbers;
      to.columns = std::clamp<index_t>(static_cast<index_t>(c_.keep * static_cast<double>(numbers) + 1e-9), 1, all);
      for (Eigen::Index i = 0; i < numbers; ++i)
        for (Eigen::Index j = 0; j < to.columns; ++j) to.encode.push_back(static_cast<float>(d.columns(i, j)));
      const fit::Vector mean = joint_rows(keys).colwise().mean();
      for (Eigen::Index i = 0; i < numbers; ++i) to.mean.push_back(static_cast<float>(mean(i)));
      for (Eigen::Index j = 0; j < to.columns; ++j) to.energy.push_back(static_cast<float>(d.energy(j)));
      text.push_back({keys ? "keys" : "values", std::to_string(numbers), std::to_string(to.columns)});
      for (const double part : {0.5, 0.9, 0.99, 0.999})
        text.back().push_back(std::to_string(kvcondense::lowrank::rank_by_energy(d.energy.data(), all, part)));
    }
    say_how(b);
    done.text = aligned(text);
    return done;
  }

  std::string table(const std::vector<HeadResult>& results) const {
    std::vector<std::vector<std::string>> rows{{"layer", "head", "key 90%", "key 99%", "value 90%", "value 99%"}};
    const bool ranked = results[0].keys.rank > 0;
    if (ranked) rows[0].insert(rows[0].end(), {"key rank", "value rank"});
    if (trained_) rows[0].insert(rows[0].end(), {"loss", "trained"});
    if (shared_) rows[0].insert(rows[0].end(), {"keys held", "values held"});
    for (std::size_t i = 0; i < results.size(); ++i) {
      const HeadResult& r = results[i];
      const auto heads = static_cast<std::size_t>(groups_);
      rows.push_back({std::to_string(i / heads), std::to_string(i % heads)});
      for (const Side* s : {&r.keys, &r.values})
        for (const double part : {0.9, 0.99})
          rows.back().push_back(std::to_string(kvcondense::lowrank::rank_by_energy(s->energy.data(), s->energy.size(), part)));
      if (ranked) rows.back().insert(rows.back().end(), {std::to_string(r.keys.rank), std::to_string(r.values.rank)});
      if (shared_) rows.back().insert(rows.back().end(), {short_number(r.before, 3), short_number(r.after, 3)});
      if (trained_) rows.back().insert(rows.back().end(), {short_number(r.before, 3), short_number(r.after, 3)});
    }
    return aligned(rows);
  }

  const Options& o_;
  const Calibration& c_;
  const ModelTask& task_;
  bool weights_ = false, raw_ = false, trained_ = false, joint_ = false, shared_ = false, maps_ = false;
  const HeadFit* fit_ = nullptr;  ///< of methods that want arrays, not bases
  index_t groups_ = 0;
  std::vector<Window> windows_;
  std::vector<Recording> raw_keys_;
};

}  // namespace

Calibrated calibrate(const Options& o) {
  if (o.calibration.method == "magicpig") {
    Calibrated made = draw_planes(o);
    say_made(made.bases, o);
    return made;
  }
  Setting setting;
  const ModelTask task = load_task(o, setting);
  return Calibrator(o, task).run();
}

}  // namespace eval
