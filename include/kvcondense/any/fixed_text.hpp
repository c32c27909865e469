#pragma once

#include <algorithm>
#include <charconv>
#include <cstddef>
#include <cstdint>
#include <string_view>

namespace kvcondense::any {

/// Text of bounded length in place: no heap. What does not fit is cut, and `complete()` says so.
template <std::size_t Capacity>
class FixedText {
 public:
  std::string_view view() const { return {text_, size_}; }
  const char* c_str() const { return text_; }
  std::size_t size() const { return size_; }
  static constexpr std::size_t capacity() { return Capacity; }
  bool empty() const { return size_ == 0; }
  bool complete() const { return complete_; }
  friend bool operator==(const FixedText& a, const FixedText& b) { return a.view() == b.view(); }

  FixedText& add(std::string_view s) {
    const std::size_t n = std::min(s.size(), Capacity - size_);
    std::copy_n(s.data(), n, text_ + size_);
    size_ += n;
    text_[size_] = 0;
    complete_ = complete_ && n == s.size();
    return *this;
  }
  FixedText& add(char c) { return add(std::string_view(&c, 1)); }
  /// The shortest text that reads back as the same number.
  template <class T>
  requires(std::is_arithmetic_v<T> && !std::is_same_v<T, char> &&
           !std::is_same_v<T, bool>) FixedText& add(T value) {
    char digits[32];
    const auto end = std::to_chars(digits, digits + sizeof digits, value);
    return add(std::string_view(digits, static_cast<std::size_t>(end.ptr - digits)));
  }
  /// All of them, one after the other.
  template <class... T>
  FixedText& put(const T&... parts) {
    return (add(parts), ..., *this);
  }
  /// Text of somebody else, quoted: at most 32 bytes, anything but printable ASCII as a question
  /// mark.
  FixedText& quote(std::string_view s) {
    add('\'');
    for (const char c : s.substr(0, 32)) add(c >= ' ' && c <= '~' ? c : '?');
    return add(s.size() > 32 ? "...'" : "'");
  }

 private:
  char text_[Capacity + 1]{};
  std::size_t size_ = 0;
  bool complete_ = true;
};

}  // namespace kvcondense::any
