#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <engine/model.hpp>
#include <eval/ask.hpp>

namespace eval {

using kvcondense::index_t;

/// A text that asks for values it defined earlier.
struct Document {
  struct Query {
    index_t at = 0;        ///< where the value begins
    index_t length = 0;    ///< tokens of the value
    index_t distance = 0;  ///< tokens back to where the nearest earlier mention of the value begins
  };

  std::vector<std::int32_t> tokens;
  std::vector<Query> queries;
  index_t prefill = 0;  ///< tokens fed at once; 0: half
};

/// Reads a file of recall documents, one JSON object a line: `text`, whose bytes are the tokens of
/// a model that speaks bytes, or `ids`. Throws Error with the line at fault.
std::vector<Document> parse_recall(std::string_view lines, const engine::ModelConfig& config,
                                   const std::string& name);
std::vector<Document> read_recall(const std::string& path, const engine::ModelConfig& config);

/// The `count` longest documents of at most `context` tokens, in the order of the file.
std::vector<Document> choose_documents(std::vector<Document> all, index_t count, index_t context);

/// One document per value that the second half of a document asks for, cut behind the value; the question is
/// the `question` tokens before it. Values last mentioned nearer than that are left out.
std::vector<Document> ask_each(const std::vector<Document>& all, Ask ask, index_t question);

/// Token ids, divided by blanks or commas. Throws Error with the place at fault.
std::vector<std::int32_t> parse_ids(std::string_view text, index_t vocab, const std::string& name);

/// The text to be predicted: bytes of `text`, or ids of `ids` for models with another vocabulary.
std::vector<std::int32_t> read_tokens(const engine::ModelConfig& config, const std::string& text,
                                      const std::string& ids);

/// Where windows of `length` tokens begin: one in each of `count` equal parts of the text, drawn by
/// `seed`.
std::vector<index_t> window_starts(index_t tokens, index_t length, index_t count,
                                   std::uint64_t seed);

}  // namespace eval
