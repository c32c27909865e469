#pragma once

#include <concepts>
#include <cstdint>
#include <span>
#include <string_view>
#include <type_traits>
#include <utility>

#include <kvcondense/core/config.hpp>

namespace kvcondense::any {

/// What may stand behind the `=` of a field. A fraction is a real that may also be written as 25%.
enum class FieldType : std::uint8_t { integer, real, fraction, boolean, choice };

constexpr std::string_view to_string(FieldType t) {
  switch (t) {
    case FieldType::integer:
      return "integer";
    case FieldType::real:
      return "real number";
    case FieldType::fraction:
      return "fraction";
    case FieldType::boolean:
      return "true or false";
    case FieldType::choice:
      return "name";
  }
  return "value";
}

/// One name that a choice may have, and the number of its enumerator.
struct Choice {
  std::string_view name;
  std::int64_t value = 0;
};

/// The value of a field: `real` for reals and fractions, `integer` for everything else.
struct FieldValue {
  std::int64_t integer = 0;
  double real = 0.0;

  friend bool operator==(const FieldValue&, const FieldValue&) = default;
};

/// One knob of a method as text, docs and parser see it, bound to the member of the method's
/// struct.
struct Field {
  std::string_view name;        ///< the member's name
  std::string_view short_name;  ///< another name in recipes; may be empty
  std::string_view meaning;     ///< one line
  FieldType type = FieldType::integer;
  bool narrow = false;  ///< a real held as float
  double lowest = 0.0;  ///< inclusive; numbers only
  double highest = 0.0;
  std::span<const Choice> choices{};
  FieldValue (*get)(const void* knobs) = nullptr;
  void (*set)(void* knobs, FieldValue value) = nullptr;

  constexpr bool is_real() const { return type == FieldType::real || type == FieldType::fraction; }
  constexpr bool answers_to(std::string_view word) const {
    return word == name || (!short_name.empty() && word == short_name);
  }
};

namespace detail {

/// Reads and writes the member that a chain of member pointers leads to.
template <class Knobs, auto... Path>
struct Access {
  template <class K>
  static constexpr auto& member(K& knobs) {
    return (knobs.*....*Path);
  }
  using Member = std::remove_reference_t<decltype(member(std::declval<Knobs&>()))>;

  static FieldValue get(const void* knobs) {
    const Member& m = member(*static_cast<const Knobs*>(knobs));
    if constexpr (std::is_floating_point_v<Member>)
      return {0, static_cast<double>(m)};
    else
      return {static_cast<std::int64_t>(m), 0.0};
  }
  static void set(void* knobs, FieldValue value) {
    Member& m = member(*static_cast<Knobs*>(knobs));
    if constexpr (std::is_floating_point_v<Member>)
      m = static_cast<Member>(value.real);
    else
      m = static_cast<Member>(value.integer);
  }
};

template <class Knobs, auto... Path>
constexpr Field bind(std::string_view name, std::string_view short_name, std::string_view meaning) {
  using A = Access<Knobs, Path...>;
  Field f;
  f.name = name;
  f.short_name = short_name;
  f.meaning = meaning;
  f.narrow = std::same_as<typename A::Member, float>;
  f.get = &A::get;
  f.set = &A::set;
  return f;
}

}  // namespace detail

/// A number with its inclusive range: `number<H2O, &H2O::heavy>("heavy", "", "...", 0,
/// most_slots)`. The type of the member decides whether it is an integer or a real.
template <class Knobs, auto... Path>
constexpr Field number(std::string_view name, std::string_view short_name, std::string_view meaning,
                       double lowest, double highest) {
  using Member = typename detail::Access<Knobs, Path...>::Member;
  static_assert(std::is_arithmetic_v<Member> && !std::same_as<Member, bool>,
                "kvcondense: a number field binds an integer or a real member.");
  Field f = detail::bind<Knobs, Path...>(name, short_name, meaning);
  f.type = std::is_floating_point_v<Member> ? FieldType::real : FieldType::integer;
  f.lowest = lowest;
  f.highest = highest;
  return f;
}

/// A real in [0, 1] by default, which text may also give in percent.
template <class Knobs, auto... Path>
constexpr Field fraction(std::string_view name, std::string_view short_name,
                         std::string_view meaning, double lowest = 0.0, double highest = 1.0) {
  Field f = number<Knobs, Path...>(name, short_name, meaning, lowest, highest);
  f.type = FieldType::fraction;
  return f;
}

template <class Knobs, auto... Path>
constexpr Field flag(std::string_view name, std::string_view short_name, std::string_view meaning) {
  static_assert(std::same_as<typename detail::Access<Knobs, Path...>::Member, bool>,
                "kvcondense: a flag field binds a bool member.");
  Field f = detail::bind<Knobs, Path...>(name, short_name, meaning);
  f.type = FieldType::boolean;
  return f;
}

/// An enum (or an integer with named values); `choices` outlives the field.
template <class Knobs, auto... Path>
constexpr Field choice(std::string_view name, std::string_view short_name, std::string_view meaning,
                       std::span<const Choice> choices) {
  Field f = detail::bind<Knobs, Path...>(name, short_name, meaning);
  f.type = FieldType::choice;
  f.choices = choices;
  return f;
}

}  // namespace kvcondense::any
