#include "field_text.hpp"

#include <algorithm>
#include <charconv>
#include <cmath>

namespace kvcondense::any {

namespace {

char lower(char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c; }

template <class T>
bool read_all(std::string_view text, T& out) {
  const auto end = std::from_chars(text.data(), text.data() + text.size(), out);
  return end.ec == std::errc{} && end.ptr == text.data() + text.size();
}

/// A real as its member will hold it, so that printing and reading again gives the same number.
bool read_real(const Field& field, std::string_view text, double& out) {
  const bool percent = field.type == FieldType::fraction && text.ends_with('%');
  if (percent) text.remove_suffix(1);
  if (field.narrow && !percent) {
    float narrow = 0.0f;
    if (!read_all(text, narrow)) return false;
    out = static_cast<double>(narrow);
  } else {
    if (!read_all(text, out)) return false;
    if (percent) out /= 100.0;
    if (field.narrow) out = static_cast<double>(static_cast<float>(out));
  }
  return std::isfinite(out);
}

/// Shortest, but whole numbers without an exponent.
template <std::size_t N>
FixedText<N>& add_number(FixedText<N>& to, const Field& field, double value) {
  const bool whole = std::fabs(value) < 1e15 && value == std::floor(value);
  if (!field.is_real() || whole) return to.add(static_cast<std::int64_t>(value));
  return field.narrow ? to.add(static_cast<float>(value)) : to.add(value);
}

}  // namespace

FixedText<64> value_text(const Field& field, FieldValue value) {
  FixedText<64> text;
  switch (field.type) {
    case FieldType::integer:
      return text.add(value.integer);
    case FieldType::real:
    case FieldType::fraction:
      return add_number(text, field, value.real);
    case FieldType::boolean:
      return text.add(std::string_view(value.integer != 0 ? "true" : "false"));
    case FieldType::choice:
      for (const Choice& c : field.choices)
        if (c.value == value.integer) return text.add(c.name);
      return text.add('?');
  }
  return text;
}

FixedText<256> accepts_text(const Field& field) {
  FixedText<256> text;
  if (field.type == FieldType::boolean) return text.add("true or false");
  if (field.type == FieldType::choice) {
    for (const Choice& c : field.choices) text.put(&c == field.choices.data() ? "" : ", ", c.name);
    return text;
  }
  text.put(to_string(field.type), " from ");
  add_number(text, field, field.lowest);
  text.add(" to ");
  add_number(text, field, field.highest);
  return text;
}

namespace detail {

bool read_value(const Field& field, std::string_view text, FieldValue& out, Message& why) {
  bool known = false, inside = true;
  if (field.type == FieldType::integer) {
    known = read_all(text, out.integer);
    const auto v = static_cast<double>(out.integer);
    inside = v >= field.lowest && v <= field.highest;
  } else if (field.is_real()) {
    known = read_real(field, text, out.real);
    inside = out.real >= field.lowest && out.real <= field.highest;
  } else if (field.type == FieldType::boolean) {
    known = text == "true" || text == "false";
    out.integer = text == "true" ? 1 : 0;
  } else {
    for (const Choice& c : field.choices)
      if (c.name == text) known = true, out.integer = c.value;
  }
  if (known && inside) return true;
  const bool names = field.type == FieldType::choice;
  why.put(field.name, names ? " must be one of " : " must be ", field.is_real() ? "a " : "");
  if (field.type == FieldType::integer) why.add("an ");
  why.put(accepts_text(field).view(), ", not ").quote(text);
  if (names) {
    const std::string_view near = nearest(
        text, [&](std::size_t i) { return i < field.choices.size() ? field.choices[i].name : ""; });
    if (!near.empty()) why.put("; did you mean '", near, "'?");
  }
  return false;
}

std::size_t edit_distance(std::string_view a, std::string_view b) {
  std::size_t row[33];
  for (std::size_t j = 0; j <= b.size(); ++j) row[j] = j;
  for (std::size_t i = 1; i <= a.size(); ++i) {
    std::size_t diagonal = row[0];
    row[0] = i;
    for (std::size_t j = 1; j <= b.size(); ++j) {
      const std::size_t change = diagonal + (lower(a[i - 1]) != lower(b[j - 1]) ? 1 : 0);
      diagonal = row[j];
      row[j] = std::min({row[j] + 1, row[j - 1] + 1, change});
    }
  }
  return row[b.size()];
}

}  // namespace detail
}  // namespace kvcondense::any
