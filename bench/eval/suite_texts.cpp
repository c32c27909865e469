#include <eval/suite_texts.hpp>

#include <algorithm>
#include <cstdio>

#include <eval/error.hpp>

namespace eval {

std::uint64_t Draws::next() {
  std::uint64_t z = state_ += 0x9e3779b97f4a7c15u;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

TextMaker::TextMaker(std::string_view text, std::uint64_t seed) : draws_(seed) {
  std::string word;
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t end = std::min(text.find('\n', at), text.size());
    const std::string_view line = text.substr(at, end - at);
    const bool plain = std::all_of(line.begin(), line.end(), [](char c) { return c >= ' ' && c <= '~'; });
    if (plain && line.size() >= 16 && line.size() <= 100) lines_.push_back(std::string(line) + "\n");
    for (std::size_t i = 0; i <= line.size(); ++i) {
      const char c = i < line.size() ? line[i] : ' ';
      if ((c >= 'a' && c <= 'z') || (c == '_' && !word.empty())) {
        word += c;
        continue;
      }
      if (word.size() >= 4 && word.size() <= 12 && word.back() != '_') words_.push_back(word);
      word.clear();
    }
    at = end + 1;
  }
  std::sort(words_.begin(), words_.end());
  words_.erase(std::unique(words_.begin(), words_.end()), words_.end());
  if (lines_.size() < 32 || words_.size() < 32)
    throw Error("the text has " + std::to_string(lines_.size()) + " lines of 16 to 100 letters and " + std::to_string(words_.size()) +
                " words: documents for recall need 32 of both");
}

Needle TextMaker::needle() {
  Needle n;
  do n.name = words_[static_cast<std::size_t>(draws_.below(static_cast<index_t>(words_.size())))] + "_" + std::to_string(draws_.below(100));
  while (std::find(taken_.begin(), taken_.end(), n.name) != taken_.end());
  taken_.push_back(n.name);
  char digits[8];
  std::snprintf(digits, sizeof digits, "%04d", static_cast<int>(draws_.below(10000)));
  n.value = digits;
  return n;
}

std::string TextMaker::line() { return lines_[next_line_++ % lines_.size()]; }

Haystack TextMaker::haystack(index_t length, const std::vector<double>& depths) {
  Haystack h;
  taken_.clear();
  next_line_ = static_cast<std::size_t>(draws_.below(static_cast<index_t>(lines_.size())));
  std::size_t room = static_cast<std::size_t>(length);
  for (std::size_t i = 0; i < depths.size(); ++i) {
    h.needles.push_back(needle());
    const std::size_t size = h.needles.back().definition().size();
    if (size > room) throw Error("a document of " + std::to_string(length) + " bytes has no room for " + std::to_string(depths.size()) + " values");
    room -= size;  // of lines, at the end
  }
  std::size_t filled = 0, next = 0;  // bytes of lines, needles placed
  const auto place = [&](double depth) {
    while (next < depths.size() && depths[next] <= depth) {
      Needle& n = h.needles[next++];
      n.at = static_cast<index_t>(h.text.size() + n.name.size() + 3);
      h.text += n.definition();
    }
  };
  for (;;) {
    place(static_cast<double>(filled) / static_cast<double>(std::max<std::size_t>(room, 1)));
    const std::string more = line();
    if (filled + more.size() > room) break;
    filled += more.size();
    h.text += more;
  }
  place(2);
  return h;
}

}  // namespace eval
