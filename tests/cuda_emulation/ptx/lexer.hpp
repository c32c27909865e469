#pragma once
// PTX text as words, numbers and marks, with comments left out.

#include <string_view>
#include <vector>

#include "types.hpp"

namespace ptx {

struct Token {
  enum class Sort : u8 { word, number, text, mark, end };
  Sort sort = Sort::end;
  std::string_view text;  // a quoted text without its quotes
  u32 line = 0;           // of the PTX
};

/// A word may hold dots and double colons, so that a whole opcode is one word.
class Lexer {
 public:
  explicit Lexer(std::string_view source);

  Token const& peek(std::size_t ahead = 0) const;
  Token next();
  bool at(std::string_view text, std::size_t ahead = 0) const;
  /// Takes the next token if it is `text`.
  bool take(std::string_view text);
  /// Takes the next token, which must be `text`.
  void expect(std::string_view text);
  std::string_view word();
  u64 integer();  // with a sign
  void skip_line();
  /// The source from the token `from` to the one before the next, blanks made single.
  std::string source_from(Token const& from) const;
  [[noreturn]] void fail(std::string const& what) const;

  /// The bits of a number: 12, 0x1f, 017, 0b11, 0f3f800000, 0d3ff0000000000000.
  static bool number(std::string_view text, u64& value);

 private:
  std::string_view source_;
  std::vector<Token> tokens_;
  std::size_t at_ = 0;
};

}  // namespace ptx
