#include "lexer.hpp"

#include <algorithm>
#include <cctype>
#include <charconv>

namespace ptx {
namespace {

bool starts_word(char c) {
  return std::isalpha(static_cast<unsigned char>(c)) || c == '_' || c == '$' || c == '%' || c == '.';
}
bool in_word(char c) {
  return std::isalnum(static_cast<unsigned char>(c)) || c == '_' || c == '$' || c == '.';
}

}  // namespace

Lexer::Lexer(std::string_view source) : source_(source) {
  u32 line = 1;
  std::size_t i = 0;
  auto const ahead = [&](std::size_t n) { return i + n < source.size() ? source[i + n] : '\0'; };
  while (i < source.size()) {
    char const c = source[i];
    if (c == '\n') ++line;
    if (std::isspace(static_cast<unsigned char>(c))) {
      ++i;
      continue;
    }
    if (c == '/' && ahead(1) == '/') {
      while (i < source.size() && source[i] != '\n') ++i;
      continue;
    }
    if (c == '/' && ahead(1) == '*') {
      i += 2;
      while (i < source.size() && !(source[i] == '*' && ahead(1) == '/')) line += source[i++] == '\n';
      i += 2;
      continue;
    }
    std::size_t end = i + 1;
    Token token{Token::Sort::mark, {}, line};
    if (c == '"') {
      while (end < source.size() && source[end] != '"') end += source[end] == '\\' ? 2 : 1;
      token.sort = Token::Sort::text;
      token.text = source.substr(i + 1, end - i - 1);
      ++end;
    } else if (std::isdigit(static_cast<unsigned char>(c))) {
      while (end < source.size() && in_word(source[end])) ++end;
      token.sort = Token::Sort::number;
    } else if (starts_word(c)) {
      for (; end < source.size(); ++end) {
        if (source[end] == '.' && c == '.') break;  // ".reg.b32" is two directives
        if (in_word(source[end])) continue;
        if (source[end] == ':' && end + 1 < source.size() && source[end + 1] == ':')
          ++end;
        else
          break;
      }
      token.sort = Token::Sort::word;
    }
    if (token.sort != Token::Sort::text) token.text = source.substr(i, end - i);
    tokens_.push_back(token);
    i = end;
  }
  tokens_.push_back({Token::Sort::end, source.substr(source.size()), line});
}

Token const& Lexer::peek(std::size_t ahead) const {
  return tokens_[std::min(at_ + ahead, tokens_.size() - 1)];
}

Token Lexer::next() {
  Token const token = peek();
  if (at_ + 1 < tokens_.size()) ++at_;
  return token;
}

bool Lexer::at(std::string_view text, std::size_t ahead) const {
  Token const& token = peek(ahead);
  return token.sort != Token::Sort::text && token.sort != Token::Sort::end && token.text == text;
}

bool Lexer::take(std::string_view text) {
  if (!at(text)) return false;
  next();
  return true;
}

void Lexer::expect(std::string_view text) {
  if (!take(text)) fail("expected '" + std::string(text) + "'");
}

std::string_view Lexer::word() {
  if (peek().sort != Token::Sort::word) fail("expected a word");
  return next().text;
}

u64 Lexer::integer() {
  bool const negative = take("-");
  u64 value = 0;
  if (peek().sort != Token::Sort::number || !number(peek().text, value)) fail("expected a number");
  next();
  return negative ? u64{0} - value : value;
}

void Lexer::skip_line() {
  u32 const line = peek().line;
  while (peek().sort != Token::Sort::end && peek().line == line) next();
}

std::string Lexer::source_from(Token const& from) const {
  char const* const end = peek().text.data();
  std::string out;
  for (char const* p = from.text.data(); p < end; ++p) {
    bool const blank = std::isspace(static_cast<unsigned char>(*p));
    if (!blank)
      out += *p;
    else if (!out.empty() && out.back() != ' ')
      out += ' ';
  }
  while (!out.empty() && (out.back() == ' ' || out.back() == ';')) out.pop_back();
  return out;
}

void Lexer::fail(std::string const& what) const {
  throw Fault("PTX line " + std::to_string(peek().line) + ": " + what + " at '" +
              std::string(peek().text) + "'");
}

bool Lexer::number(std::string_view text, u64& value) {
  int base = 10;
  if (text.size() > 1 && text[0] == '0') {
    char const kind = static_cast<char>(std::tolower(static_cast<unsigned char>(text[1])));
    base = kind == 'x' || kind == 'f' || kind == 'd' ? 16 : kind == 'b' ? 2 : 8;
    std::size_t const digits = text.size() - 2;
    if ((kind == 'f' && digits != 8) || (kind == 'd' && digits != 16)) return false;
    text.remove_prefix(base == 8 ? 1 : 2);
  }
  if (text.size() > 1 && (text.back() == 'U' || text.back() == 'u')) text.remove_suffix(1);
  auto const done = std::from_chars(text.data(), text.data() + text.size(), value, base);
  return done.ec == std::errc{} && done.ptr == text.data() + text.size();
}

}  // namespace ptx
