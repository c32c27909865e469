#pragma once

// Is every word of some rooms a test?

#include <algorithm>
#include <initializer_list>
#include <map>
#include <set>
#include <string>
#include <string_view>

#include <catch2/catch.hpp>

#include <kvcondense/core/policy.hpp>

namespace cuda_cache {

template <class E>
const E& listed(const E& entry) {
  return entry;
}
template <class E>
const E& listed(const E* entry) {
  return *entry;
}

/// Each word that `entries` list of these rooms has a test called `prefix` and the word, or the one
/// that `elsewhere` names, or a reason in `lacking`: one of these.
template <class Entries>
void every_word_is_tried(const Entries& entries, std::initializer_list<kvcondense::Stage> rooms,
                         const std::string& prefix,
                         const std::map<std::string, std::string>& lacking,
                         const std::map<std::string, std::string>& elsewhere = {}) {
  std::set<std::string> tried, words;
  for (const auto& test : Catch::getRegistryHub().getTestCaseRegistry().getAllTests())
    tried.insert(test.name);
  for (const auto& entry : entries) {
    const auto& e = listed(entry);
    if (std::find(rooms.begin(), rooms.end(), e.room) == rooms.end()) continue;
    const std::string word(e.word);
    INFO(word);
    words.insert(word);
    const auto other = elsewhere.find(word);
    const std::size_t there =
        tried.count(prefix + word) + (other == elsewhere.end() ? 0 : tried.count(other->second));
    CHECK(there + lacking.count(word) == 1);
    const auto why = lacking.find(word);
    const bool on_cuda = why == lacking.end() || why->second.rfind("nothing", 0) == 0;
    CHECK((e.backends.find("cuda") != std::string_view::npos) ==
          on_cuda);  // what docs/methods.md says
  }
  CHECK(!words.empty());
  for (const auto& [word, why] : lacking) {
    INFO(word << " lacks: " << why);
    CHECK(words.count(word) == 1);
  }
}

}  // namespace cuda_cache
