#include <eval/fold_checkpoint.hpp>

#include <filesystem>
#include <fstream>
#include <sstream>

#include <Eigen/Dense>
#include <engine/config.hpp>
#include <engine/safetensors.hpp>
#include <eval/error.hpp>
#include <kvcondense/lowrank/fit/shared_heads.hpp>

namespace eval {
namespace {

namespace fit = kvcondense::lowrank::fit;
using RowMajor = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

fit::Matrix matrix(const std::vector<float>& x, index_t rows, index_t columns) {
  return Eigen::Map<const RowMajor>(x.data(), rows, columns).cast<double>();
}

/// The columns of one group's basis that a head of `dim` numbers takes.
fit::Matrix basis(const SideBases& b, index_t layer, index_t group, index_t dim) {
  const index_t at = (layer * b.groups + group) * b.dim * b.columns;
  return Eigen::Map<const RowMajor>(b.encode.data() + at, b.dim, b.columns).leftCols(dim).cast<double>();
}

struct Folder {
  const engine::ModelConfig& c;
  const MethodBases& b;
  index_t groups() const { return b.keys.groups; }
  index_t share() const { return c.kv_heads / groups(); }

  /// New weights of one of the four projections, or nothing where the tensor is none of them.
  std::vector<float> folded(const std::string& name, const std::vector<float>& data, std::vector<index_t>& shape) const {
    for (index_t l = 0; l < c.layers; ++l) {
      const std::string prefix = "model.layers." + std::to_string(l) + ".self_attn.";
      if (!name.starts_with(prefix)) continue;
      const fit::Matrix w = matrix(data, shape[0], shape[1]);
      fit::Matrix out;
      if (name == prefix + "k_proj.weight" || name == prefix + "v_proj.weight") {
        const SideBases& side = name == prefix + "k_proj.weight" ? b.keys : b.values;
        out.resize(groups() * c.head_dim, c.hidden);
        for (index_t g = 0; g < groups(); ++g)
          out.middleRows(g * c.head_dim, c.head_dim) =
              fit::fold_joined(w.middleRows(g * share() * c.head_dim, share() * c.head_dim), basis(side, l, g, c.head_dim));
      } else if (name == prefix + "q_proj.weight" || name == prefix + "o_proj.weight") {
        const bool queries = name == prefix + "q_proj.weight";
        out = w;
        for (index_t h = 0; h < c.q_heads; ++h) {
          const index_t kv = h / (c.q_heads / c.kv_heads), at = h * c.head_dim;
          const fit::Matrix slice =
              basis(queries ? b.keys : b.values, l, kv / share(), c.head_dim).middleRows(kv % share() * c.head_dim, c.head_dim);
          if (queries) out.middleRows(at, c.head_dim) = fit::fold_query(w.middleRows(at, c.head_dim), slice);
          else out.middleCols(at, c.head_dim) = fit::fold_output(w.middleCols(at, c.head_dim), slice);
        }
      } else {
        return {};
      }
      shape = {out.rows(), out.cols()};
      const RowMajor numbers = out.cast<float>();
      return {numbers.data(), numbers.data() + numbers.size()};
    }
    return {};
  }
};

}  // namespace

void fold_checkpoint(const std::string& from, const MethodBases& bases, const std::string& to) {
  namespace fs = std::filesystem;
  const fs::path source(from), target(to);
  std::error_code error;
  fs::create_directories(target, error);
  if (error || (fs::exists(target / "config.json", error) && fs::equivalent(source / "config.json", target / "config.json", error)))
    throw Error(to + ": no directory for another model");
  std::string why;
  const auto config = engine::read_config((source / "config.json").string(), why);
  if (!config) throw Error(why);
  const auto file = engine::SafetensorsFile::read((source / "model.safetensors").string(), why);
  if (!file) throw Error(why);
  const Folder folder{*config, bases};
  engine::SafetensorsWriter writer;
  writer.metadata("format", "pt");
  for (const engine::TensorInfo& t : file->tensors()) {
    if (t.name.ends_with("rotary_emb.inv_freq")) continue;  // says nothing that config.json does not
    auto data = file->floats(t.name, why);
    if (!data) throw Error(why);
    std::vector<index_t> shape = t.shape;
    std::vector<float> numbers = folder.folded(t.name, *data, shape);
    if (numbers.empty()) numbers = *std::move(data);
    if (t.dtype == "F16") writer.f16(t.name, shape, numbers);
    else writer.f32(t.name, shape, numbers);
  }
  std::ifstream in(source / "config.json");
  std::ostringstream text;
  text << in.rdbuf();
  nlohmann::ordered_json json = nlohmann::ordered_json::parse(text.str());
  json["num_key_value_heads"] = folder.groups();
  json["head_dim"] = config->head_dim;
  std::ofstream out(target / "config.json");
  out << json.dump(1) << "\n";
  out.close();
  if (!out) throw Error((target / "config.json").string() + ": cannot be written");
  if (writer.write((target / "model.safetensors").string(), why) != kvcondense::Status::ok) throw Error(why);
}

}  // namespace eval
