#include "arrays.hpp"

#include <algorithm>
#include <initializer_list>
#include <optional>
#include <utility>

namespace kvcondense::python {
namespace {

const char* meaning(Status s) {
  switch (s) {
    case Status::ok: return "";
    case Status::shape_mismatch: return "an array disagrees with the cache or with another array";
    case Status::invalid_argument: return "a value outside its documented range";
    case Status::out_of_range: return "a layer, head, slot, token or position that does not exist";
    case Status::out_of_memory: return "no more memory";
    case Status::workspace_too_small: return "scratch memory is too small";
    case Status::missing_input: return "the recipe needs something that was not given";
    case Status::not_supported: return "a legal request that this recipe cannot serve";
    case Status::incompatible: return "stages that may not be combined, or a snapshot of another shape, recipe or version";
    case Status::corrupt_data: return "bytes that are no snapshot, or no longer";
    case Status::io_error: return "a reader or writer failed";
    case Status::order_violation: return "a call that must wait for another one, such as two prompts without a step between";
    case Status::no_device: return "there is no device";
    case Status::device_error: return "the device failed";
  }
  return "";
}

[[noreturn]] void bad(const std::string& sentence, Status why = Status::invalid_argument) { raise(why, sentence); }

std::string shape_text(const py::array& a) {
  std::string text = "(";
  for (py::ssize_t i = 0; i < a.ndim(); ++i) text += (i == 0 ? "" : ", ") + std::to_string(a.shape(i));
  return text + ")";
}

Floats floats(const py::handle& object, py::ssize_t dimensions, const std::string& name) {
  auto a = Floats::ensure(object);
  if (!a) {
    PyErr_Clear();
    bad(name + " is no array of numbers");
  }
  if (a.ndim() != dimensions)
    bad(name + " has " + std::to_string(dimensions) + " dimensions, this one is " + shape_text(a), Status::shape_mismatch);
  return a;
}

template <class V>
struct Named {
  const char* name;
  V value;
};
template <class V>
V one_of(std::string_view name, const char* what, std::initializer_list<Named<V>> known) {
  std::string all;
  for (const auto& k : known) {
    if (name == k.name) return k.value;
    all += (all.empty() ? "" : ", ") + std::string(k.name);
  }
  bad("no " + std::string(what) + " '" + std::string(name) + "'; there are " + all);
}

// ---- facts of the model: an array becomes the table that its name asks for ------------------------------------

class Taker {
 public:
  Taker(Facts& to, std::string name, py::handle value) : to_(&to), name_(std::move(name)), value_(value) {}

  bool found = false;

  void operator()(std::string_view fact, HeadTable& t) {
    if (const auto a = mine(fact, 2)) t = {a->data(), a->shape(0), a->shape(1)};
  }
  void operator()(std::string_view fact, LayerTable& t) {
    if (const auto a = mine(fact, 1)) t = {a->data(), a->shape(0)};
  }
  void operator()(std::string_view fact, HeadRows& t) {
    if (const auto a = mine(fact, 3)) t = {a->data(), a->shape(0), a->shape(1), a->shape(2)};
  }
  void operator()(std::string_view fact, HashPlanes& t) {
    if (const auto a = mine(fact, 3)) t = {a->data(), a->shape(0), a->shape(1), a->shape(2)};
  }
  /// An array [layers, rows, columns], or a list of matrices, which are not copied.
  void operator()(std::string_view fact, LayerMatrices& t) {
    if (name_ != fact) return;
    found = true;
    auto list = std::make_unique<std::vector<const float*>>();
    py::ssize_t rows = 0, columns = 0;
    for (const py::handle layer : py::reinterpret_borrow<py::iterable>(value_)) {
      const Floats a = floats(layer, 2, "every layer of " + name_);
      if (!list->empty() && (a.shape(0) != rows || a.shape(1) != columns)) bad("layers of " + name_ + " differ in shape", Status::shape_mismatch);
      rows = a.shape(0), columns = a.shape(1);
      list->push_back(a.data());
      to_->arrays.push_back(a);
    }
    t = {list->data(), static_cast<index_t>(list->size()), rows, columns};
    to_->lists.push_back(std::move(list));
  }
  /// Per method its arrays, named as the tensors of a file of `calibrate` are, and what keys they were made of.
  void operator()(std::string_view fact, BasisList& t) {
    if (name_ != fact) return;
    found = true;
    for (const auto& item : cast<py::dict>(value_, name_)) {
      const auto method = cast<std::string>(item.first, "a method");
      to_->methods.push_back(std::make_unique<std::string>(method));
      to_->bases.push_back({*to_->methods.back()});
      NamedBases& b = to_->bases.back();
      KeyForm form = KeyForm::rotated;
      for (const auto& part : cast<py::dict>(item.second, "bases of " + method)) {
        const auto tensor = cast<std::string>(part.first, "a name");
        if (tensor == "keys")
          form = one_of<KeyForm>(cast<std::string>(part.second, tensor), "form of keys", {{"rotated", KeyForm::rotated}, {"raw", KeyForm::raw}});
        else if (!basis_part(tensor, "key.", method, part.second, b.keys) && !basis_part(tensor, "value.", method, part.second, b.values))
          bad("bases of " + method + " have no '" + tensor + "'");
      }
      whole(b.keys, method + "'s keys"), whole(b.values, method + "'s values");
      b.keys.keys = form;
    }
    t = {to_->bases.data(), static_cast<index_t>(to_->bases.size())};
  }
  void operator()(prim::RopeConfig& rope) {
    if (name_ != "rope") return;
    found = true;
    for (const auto& item : cast<py::dict>(value_, "rope")) {
      const auto field = cast<std::string>(item.first, "a name");
      const py::handle value = item.second;
      bool known = false;
      const auto number = [&](const char* name, auto& member) {
        if (field == name) member = cast<std::remove_reference_t<decltype(member)>>(value, field), known = true;
      };
      const auto table = [&](const char* name, std::span<const float>& member) {
        if (field != name) return;
        const Floats a = floats(value, 1, field);
        member = {a.data(), static_cast<std::size_t>(a.shape(0))}, known = true;
        to_->arrays.push_back(a);
      };
      number("rotary_dim", rope.rotary_dim), number("base", rope.base), number("factor", rope.factor);
      number("original_length", rope.original_length), number("length", rope.length);
      number("low_frequency", rope.low_frequency), number("high_frequency", rope.high_frequency);
      number("beta_fast", rope.beta_fast), number("beta_slow", rope.beta_slow);
      number("attention_factor", rope.attention_factor);
      table("table", rope.table), table("long_table", rope.long_table);
      using prim::RopePairing, prim::RopeScaling;
      if (field == "pairing")
        known = true, rope.pairing = one_of<RopePairing>(cast<std::string>(value, field), "pairing",
                                                         {{"half_split", RopePairing::half_split}, {"interleaved", RopePairing::interleaved}});
      if (field == "scaling")
        known = true, rope.scaling = one_of<RopeScaling>(
                          cast<std::string>(value, field), "scaling",
                          {{"none", RopeScaling::none}, {"linear", RopeScaling::linear}, {"dynamic_ntk", RopeScaling::dynamic_ntk},
                           {"llama3", RopeScaling::llama3}, {"yarn", RopeScaling::yarn}, {"longrope", RopeScaling::longrope}, {"table", RopeScaling::table}});
      if (!known) bad("rope has no field '" + field + "'");
    }
  }

 private:
  /// The array, if it is the fact that is asked for; kept alive.
  std::optional<Floats> mine(std::string_view fact, py::ssize_t dimensions) {
    if (name_ != fact) return {};
    found = true;
    Floats a = floats(value_, dimensions, name_);
    to_->arrays.push_back(a);
    return a;
  }

  /// One array of a basis; false: it is no such array.
  bool basis_part(const std::string& tensor, const std::string& side, const std::string& method, py::handle value, HeadBases& to) {
    if (tensor.rfind(side, 0) != 0) return false;
    const std::string part = tensor.substr(side.size());
    struct Part {
      const char* name;
      const float* HeadBases::*data;
      std::vector<index_t HeadBases::*> extent;
    };
    const Part parts[] = {{"encode", &HeadBases::encode, {&HeadBases::layers, &HeadBases::groups, &HeadBases::dim, &HeadBases::columns}},
                          {"decode", &HeadBases::decode, {&HeadBases::layers, &HeadBases::groups, &HeadBases::dim, &HeadBases::columns}},
                          {"mean", &HeadBases::mean, {&HeadBases::layers, &HeadBases::groups, &HeadBases::dim}},
                          {"energy", &HeadBases::energy, {&HeadBases::layers, &HeadBases::groups, &HeadBases::columns}},
                          {"ranks", &HeadBases::ranks, {&HeadBases::layers, &HeadBases::groups}}};
    for (const Part& p : parts) {
      if (part != p.name) continue;
      const Floats a = floats(value, static_cast<py::ssize_t>(p.extent.size()), tensor + " of " + method);
      for (std::size_t i = 0; i < p.extent.size(); ++i) {
        index_t& n = to.*(p.extent[i]);
        const index_t is = a.shape(static_cast<py::ssize_t>(i));
        if (is < 1 || (n != 0 && n != is)) bad(tensor + " of " + method + " disagrees with its other arrays: it is " + shape_text(a), Status::shape_mismatch);
        n = is;
      }
      to.*(p.data) = a.data();
      to_->arrays.push_back(a);
      return true;
    }
    return false;
  }
  /// Sizes without an encoder are arrays that nothing reads.
  static void whole(const HeadBases& b, const std::string& whose) {
    if (b.encode == nullptr && (b.layers != 0 || b.columns != 0)) bad("bases of " + whose + " lack 'encode'", Status::missing_input);
  }

  Facts* to_;
  std::string name_;
  py::handle value_;
};

}  // namespace

void raise(Status why, const std::string& sentence, std::int64_t position) {
  const py::object type = py::module_::import("kvcondense").attr("Error");
  const py::object error = type(sentence, to_string(why), position < 0 ? py::object(py::none()) : py::object(py::int_(position)));
  PyErr_SetObject(type.ptr(), error.ptr());
  throw py::error_already_set();
}
void require(Status s, const char* call, const char* detail) {
  if (s == Status::ok) return;
  const std::string sentence = detail == nullptr ? meaning(s) : "the recipe needs '" + std::string(detail) + "'";
  raise(s, std::string(call) + ": " + to_string(s) + ": " + sentence);
}

Rows::Rows(const py::handle& object, const char* name) {
  auto a = py::array::ensure(object);
  if (!a) {
    PyErr_Clear();
    bad(std::string(name) + " is no array");
  }
  if (a.ndim() != 3) bad(std::string(name) + " is [heads, tokens, dim]; this one is " + shape_text(a), Status::shape_mismatch);
  half_ = a.dtype().kind() == 'f' && a.itemsize() == 2;
  const bool single = a.dtype().kind() == 'f' && a.itemsize() == 4;
  if (!half_ && !single) bad(std::string(name) + " is float32 or float16; this one is " + py::cast<std::string>(py::str(a.dtype())));
  const auto own_bytes = [](const py::array& x) { return py::cast<bool>(x.dtype().attr("isnative")); };
  bool fits = own_bytes(a) && (a.shape(2) <= 1 || a.strides(2) == a.itemsize());
  for (int i = 0; i < 3; ++i) fits = fits && a.strides(i) % a.itemsize() == 0;
  fits = fits && reinterpret_cast<std::uintptr_t>(a.data()) % static_cast<std::uintptr_t>(a.itemsize()) == 0;
  if (!fits) a = py::module_::import("numpy").attr("ascontiguousarray")(a, half_ ? "float16" : "float32");
  view_.data = static_cast<const std::byte*>(a.data());
  for (int i = 0; i < 3; ++i) view_.extent[i] = a.shape(i), view_.stride[i] = a.strides(i) / a.itemsize();
  if (view_.extent[2] <= 1) view_.stride[2] = 1;
  owner_ = std::move(a);
}
Rows Rows::widened() const { return half_ ? Rows(Floats::ensure(owner_), "rows") : *this; }

void agree(Rows& a, Rows& b) {
  if (a.is_half() != b.is_half()) a = a.widened(), b = b.widened();
}

Facts::Facts(const py::dict& model) {
  for (const auto& item : model) {
    const auto name = cast<std::string>(item.first, "a name");
    Taker take(*this, name, item.second);
    take(facts.rope);
    take("gates", facts.gates), take("induction", facts.induction), take("echo", facts.echo), take("shares", facts.shares);
    take("evicted", facts.evicted), take("variance", facts.variance);
    take("key_widths", facts.key_widths), take("value_widths", facts.value_widths);
    take("key_clusters", facts.key_clusters), take("value_clusters", facts.value_clusters);
    take("key_lower", facts.key_lower), take("key_upper", facts.key_upper);
    take("key_levels", facts.key_levels), take("value_levels", facts.value_levels);
    take("bases", facts.bases);
    take("key_books", facts.key_books), take("value_books", facts.value_books);
    take("output", facts.output), take("key_codes", facts.key_codes), take("key_metric", facts.key_metric);
    take("key_axes", facts.key_axes), take("query_axes", facts.query_axes), take("query_filters", facts.query_filters);
    take("hash_planes", facts.hash_planes);
    take("retain_in", facts.retain_in), take("retain_out", facts.retain_out);
    if (!take.found) bad("nothing of a model is called '" + name + "'");
  }
}

Given::Given(const py::kwargs& named) {
  rows.reserve(4);
  for (const auto& item : named) {
    const auto name = cast<std::string>(item.first, "a name");
    const py::handle value = item.second;
    if (value.is_none()) continue;
    bool known = false;
    const auto three = [&](const char* field, TensorView<const float, 3>& view) {
      if (name != field) return;
      known = true;
      rows.push_back(Rows(value, field).widened());
      view = rows.back().view<float>();
    };
    const auto hold = [&](const py::array& array) {
      arrays.push_back(array);
      known = true;
    };
    three("queries", in.queries), three("raw_queries", in.raw_queries), three("raw_keys", in.raw_keys), three("values", in.values);
    if (name == "query_mean") {
      const Floats a = floats(value, 2, name);
      hold(a);
      in.query_mean = dense_view<const float>(a.data(), a.shape(0), a.shape(1));
    } else if (name == "query_covariance") {
      const Floats a = floats(value, 3, name);
      hold(a);
      in.query_covariance = dense_view<const float>(a.data(), a.shape(0), a.shape(1), a.shape(2));
    } else if (name == "gates") {
      const Floats a = floats(value, 2, name);
      hold(a);
      in.gates = dense_view<const float>(a.data(), a.shape(0), a.shape(1));
    } else if (name == "surprise") {
      const Floats a = floats(value, 1, name);
      hold(a);
      in.surprise = {a.data(), static_cast<std::size_t>(a.shape(0))};
    } else if (name == "hidden_norms") {
      const Floats a = floats(value, 1, name);
      hold(a);
      in.hidden_norms = {a.data(), static_cast<std::size_t>(a.shape(0))};
    } else if (name == "classes") {
      const auto a = py::array_t<std::uint8_t, py::array::c_style | py::array::forcecast>::ensure(value);
      if (!a || a.ndim() != 1) PyErr_Clear(), bad("classes is one number per token");
      if (std::any_of(a.data(), a.data() + a.size(), [](std::uint8_t c) { return c > 2; }))
        bad("classes are 0 (plain), 1 (punctuation) and 2 (special)");
      hold(a);
      in.classes = {reinterpret_cast<const TokenClass*>(a.data()), static_cast<std::size_t>(a.size())};
    } else if (name == "incoming") {
      in.incoming = cast<index_t>(value, name), known = true;
    } else if (name == "probe") {
      std::tie(in.probe_first, in.probe_last) = cast<std::pair<index_t, index_t>>(value, name), known = true;
    }
    if (!known) bad("no input of a step is called '" + name + "'");
  }
}

Phase phase_of(std::string_view name) {
  return one_of<Phase>(name, "phase", {{"automatic", Phase::automatic}, {"prefill_chunk", Phase::prefill_chunk},
                                       {"prefill_end", Phase::prefill_end}, {"decode", Phase::decode}, {"turn", Phase::turn}, {"probe", Phase::probe}});
}
DType dtype_of(std::string_view name) {
  return one_of<DType>(name, "dtype", {{"f32", DType::f32}, {"f16", DType::f16}, {"bf16", DType::bf16}});
}
Positions::Positions(const py::object& given) {
  if (given.is_none()) return;
  const auto a = py::array::ensure(given);
  if (!a) PyErr_Clear();
  if (!a || a.ndim() != 1 || (a.dtype().kind() != 'i' && a.dtype().kind() != 'u')) bad("positions are whole numbers, one per token");
  owner_ = Integers::ensure(a);
  numbers_ = {owner_.data(), static_cast<std::size_t>(owner_.size())};
}

}  // namespace kvcondense::python
