#pragma once

#include <string_view>

// What `tune` tries, beside what it finds in the registry by itself: a policy with a field `tokens` takes its budget there, one with
// `keep` as a part; a quantizer with a field `bits` is tried in each width below, one of another form as it is by default. All of it is
// text that recipes hold; the holes are those of sizing.hpp.

namespace eval::space {

/// A method and fields that it is tried with.
struct Fields {
  std::string_view word, fields;
};

/// Policies and merge stages whose budget has another name, or more than one.
inline constexpr Fields budgets[] = {
    {"sliding_window", "window={tokens}"},
    {"sink_window", "recent={tokens}"},
    {"h2o", "heavy={tokens/2}, recent={tokens/2}"},
    {"sirllm", "memory={tokens}"},
    {"alisa", "ratio={part}"},
    {"paged_h2o", "start=32, recent=32, evictable={32..65536:32}"},
    {"scissorhands", "drop=16, tokens={tokens}"},
    {"rkv", "slack=16, tokens={tokens}"},
    {"keyformer", "tokens={tokens+1}, recent={tokens/3}"},
    {"duo_attention", "sinks=4, recent=32, sparsity={1|0.875|0.75|0.625|0.5|0.375|0.25|0.125}"},
    {"prefixkv", ""},
};

/// Words that are no candidates of their own: without a budget of bytes, or never smaller.
inline constexpr std::string_view left_out[] = {"keep_all", "exact", "absolute", "read_all", "fastgen", "dms", "razor_attention", "strided_blocks"};

/// Policies that budgets and merge stages are tried around.
inline constexpr std::string_view wrapped[] = {"h2o", "snapkv"};
/// Of those, the one that every quantizer is tried behind.
inline constexpr std::string_view coded = "snapkv";
/// Wrappers that are tried around them.
inline constexpr Fields wrappers[] = {{"ada", ""}, {"pyramid", "beta=4"}, {"critical", ""}, {"caote", ""}, {"kvcrush", ""}};

/// Widths of a field `bits`.
inline constexpr int widths[] = {2, 3, 4, 8};
/// Quantizers that say their widths in other words, or that are rather tried in a few forms.
inline constexpr Fields quantizers[] = {
    {"kitty", ""},
    {"turboquant", "key_bits=4, value_bits=4"},
    {"turboquant", "key_bits=3, value_bits=2"},
    {"ggml", "format=q8_0"},
    {"ggml", "format=q5_0"},
    {"ggml", "format=q4_0"},
    {"mx", "format=fp8_e4m3"},
    {"mx", "format=fp6_e2m3"},
    {"mx", "format=fp4"},
    {"skvq", "key_levels=16, value_levels=16, window=32"},
    {"skvq", "key_levels=4, value_levels=4, window=32"},
    {"bit_allocation", "key_bits=4, value_bits=2"},
    {"bfp", "bits=4, value_bits=4"},
    {"qjl", "bits=256, first_layers=0, buffer=32"},
};
/// Of those, which go with every policy.
inline constexpr Fields partners[] = {{"kivi", "bits=2"}, {"kivi", "bits=4"}, {"group_int", "bits=4"}};
/// What stands around a quantizer of one token at a time.
inline constexpr Fields rotations[] = {{"hadamard", "group_int(bits=2)"}, {"hadamard", "group_int(bits=3)"}, {"hadamard", "group_int(bits=4)"}};

/// Low-rank stages store parts of rows; what the default rules do not find.
inline constexpr Fields ranks[] = {
    {"think", "ratio={0.875|0.75|0.625|0.5|0.375|0.25|0.125}"},
    {"xkv", "layers=2, keep={0.0625|0.125|0.25|0.375|0.5}, value_keep={0.0625|0.125|0.25|0.375|0.5}"},
};

/// Knobs of the best: another value of one field at a time, where the method has the field and it holds something else.
struct Knob {
  std::string_view field, value;
};
inline constexpr Knob knobs[] = {
    {"window", "8"},           {"window", "16"},          {"window", "64"},
    {"recent", "16"},          {"recent", "64"},          {"recent", "128"},
    {"sinks", "0"},            {"sinks", "4"},            {"sinks", "16"},
    {"kernel", "3"},           {"kernel", "15"},          {"kernel", "31"},
    {"group_size", "16"},      {"group_size", "32"},      {"group_size", "64"},
    {"residual_window", "0"},  {"residual_window", "16"}, {"residual_window", "64"},
    {"floor", "0.1"},          {"floor", "0.5"},          {"beta", "2"},
    {"beta", "8"},
};

}  // namespace eval::space
