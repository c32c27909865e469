#include <eval/tune_candidates.hpp>

#include <algorithm>
#include <functional>
#include <set>
#include <stdexcept>

#include <eval/tune_space.hpp>

namespace eval {
namespace {

using kvcondense::Stage;
using kvcondense::any::Entry;
using kvcondense::any::Field;
using kvcondense::any::FieldType;
using kvcondense::any::Registry;

bool left_out(std::string_view word) {
  return std::find(std::begin(space::left_out), std::end(space::left_out), word) != std::end(space::left_out);
}

template <std::size_t N>
std::vector<Piece> declared(const space::Fields (&table)[N], std::string_view word) {
  std::vector<Piece> out;
  for (const space::Fields& f : table)
    if (f.word == word) out.push_back(piece_of(f.word, f.fields));
  return out;
}

/// What evicts or merges to a budget: as declared, or by the name of a field.
std::vector<Piece> with_budget(const Entry& e) {
  std::vector<Piece> out = declared(space::budgets, e.word);
  if (!out.empty()) return out;
  if (e.field("tokens") != nullptr) return {piece_of(e.word, "tokens={tokens}")};
  const Field* keep = e.field("keep");
  if (keep != nullptr && keep->type == FieldType::fraction) return {piece_of(e.word, "keep={part}")};
  return {};
}

std::vector<Piece> in_widths(const Entry& e) {
  std::vector<Piece> out = declared(space::quantizers, e.word);
  if (!out.empty()) return out;
  const Field* bits = e.field("bits");
  if (bits == nullptr || bits->name != "bits") return {piece_of(e.word, "")};
  for (const int width : space::widths) {
    const bool named = std::any_of(bits->choices.begin(), bits->choices.end(), [&](const auto& c) { return c.value == width; });
    const bool counted = bits->type == FieldType::integer && width >= bits->lowest && width <= bits->highest;
    if (named || counted) out.push_back(piece_of(e.word, "bits=" + std::to_string(width)));
  }
  return out;
}

std::vector<Piece> in_ranks(const Entry& e) {
  std::vector<Piece> out = declared(space::ranks, e.word);
  if (!out.empty() || e.field("keep") == nullptr) return out;
  return {piece_of(e.word, e.field("value_keep") != nullptr ? "keep={part}, value_keep={part}" : "keep={part}")};
}

bool is_wrapped(std::string_view word) {
  return std::find(std::begin(space::wrapped), std::end(space::wrapped), word) != std::end(space::wrapped);
}

}  // namespace

std::string Piece::text() const {
  std::string inside;
  for (const Piece& p : inner) inside += (inside.empty() ? "" : ", ") + p.text();
  for (const auto& [name, value] : fields) inside += (inside.empty() ? "" : ", ") + name + "=" + value;
  return inside.empty() ? word : word + "(" + inside + ")";
}

std::string Candidate::text() const {
  std::string out;
  for (const Piece& p : stages) out += (out.empty() ? "" : " + ") + p.text();
  return out;
}

Piece piece_of(std::string_view word, std::string_view fields) {
  Piece p{std::string(word), {}};
  while (!fields.empty()) {
    const std::size_t end = std::min(fields.find(", "), fields.size()), is = fields.substr(0, end).find('=');
    if (is == std::string_view::npos) throw std::logic_error("no field: " + std::string(fields));
    p.fields.emplace_back(fields.substr(0, is), fields.substr(is + 1, end - is - 1));
    fields.remove_prefix(std::min(end + 2, fields.size()));
  }
  return p;
}

std::vector<Candidate> all_candidates(const Registry& registry) {
  std::vector<Piece> policies, folding, quantizers, ranks, partners, wrapped;
  std::vector<Piece> merging;  // what has a budget of its own
  for (const Entry* e : registry.entries()) {
    if (e->wraps || left_out(e->word)) continue;
    const auto add = [](std::vector<Piece>& to, std::vector<Piece> more) { to.insert(to.end(), more.begin(), more.end()); };
    if (e->room == Stage::evict) {
      add(policies, with_budget(*e));
      if (is_wrapped(e->word)) add(wrapped, with_budget(*e));
    } else if (e->room == Stage::merge) {
      if (e->field("tokens") != nullptr) add(merging, with_budget(*e));
      else folding.push_back(piece_of(e->word, ""));
    } else if (e->room == Stage::quant) {
      add(quantizers, in_widths(*e));
    } else if (e->room == Stage::lowrank) {
      add(ranks, in_ranks(*e));
    }
  }
  for (const space::Fields& f : space::partners)
    if (registry.find(f.word) != nullptr) partners.push_back(piece_of(f.word, f.fields));
  for (const space::Fields& f : space::rotations) {
    if (registry.find(f.word) == nullptr) continue;
    const std::size_t open = f.fields.find('(');
    Piece around{std::string(f.word), {}};
    around.inner.push_back(piece_of(f.fields.substr(0, open), f.fields.substr(open + 1, f.fields.size() - open - 2)));
    quantizers.push_back(around);
  }

  std::vector<Candidate> out;
  std::set<std::string> seen;
  const auto add = [&](std::vector<Piece> stages) {
    Candidate c{std::move(stages)};
    if (seen.insert(c.text()).second) out.push_back(std::move(c));
  };
  // Alone, then one more stage at a time: what drops tokens, with what stores fewer bits; what stores fewer numbers, likewise.
  for (const auto* alone : {&policies, &merging, &quantizers, &ranks})
    for (const Piece& p : *alone) add({p});
  for (const auto* first : {&policies, &merging, &ranks})
    for (const Piece& p : *first)
      for (const Piece& q : partners) add({p, q});
  for (const Piece& p : wrapped) {
    for (const Piece& q : quantizers)
      if (p.word == space::coded) add({p, q});
    for (const Piece& m : folding) {
      add({p, m});
      add({p, m, partners.front()});
    }
    for (const space::Fields& w : space::wrappers) {
      if (registry.find(w.word) == nullptr) continue;
      Piece around = piece_of(w.word, w.fields);
      around.inner.push_back(p);
      add({around});
      for (const Piece& q : partners) add({around, q});
    }
  }
  return out;
}

namespace {

/// Every piece of a candidate, wrapped ones too, turned by one knob at a time.
void turn(Piece& p, const Registry& registry, const std::function<void()>& emit) {
  const Entry* e = registry.find(p.word);
  for (const space::Knob& knob : space::knobs) {
    const Field* field = e == nullptr ? nullptr : e->field(knob.field);
    if (field == nullptr || field->name != knob.field) continue;
    const double value = std::stod(std::string(knob.value));
    if (value < field->lowest || value > field->highest) continue;
    const auto there = std::find_if(p.fields.begin(), p.fields.end(), [&](const auto& f) { return f.first == knob.field; });
    if (there != p.fields.end() && (there->second == knob.value || there->second.find('{') != std::string::npos)) continue;
    const auto before = p.fields;
    if (there != p.fields.end()) there->second = knob.value;
    else p.fields.emplace_back(knob.field, knob.value);
    emit();
    p.fields = before;
  }
  for (Piece& inner : p.inner) turn(inner, registry, emit);
}

}  // namespace

std::vector<Candidate> turned(const Candidate& candidate, const Registry& registry) {
  std::vector<Candidate> out;
  Candidate c = candidate;
  for (Piece& p : c.stages) turn(p, registry, [&] { out.push_back(c); });
  return out;
}

Candidate as_it_is(std::string text) { return {{Piece{std::move(text), {}}}}; }

}  // namespace eval
