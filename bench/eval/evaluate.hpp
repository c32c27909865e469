#pragma once

#include <memory>

#include <eval/facts.hpp>
#include <eval/options.hpp>
#include <eval/replay.hpp>
#include <eval/result.hpp>

namespace eval {

/// The caches after the recorded window, for --dump: one per recipe, in order.
struct Kept {
  Facts facts;  ///< arrays that the caches borrow
  Outputs exact;
  std::vector<std::unique_ptr<Session>> sessions;
  std::vector<Outputs> outputs;
};

/// Runs everything that `options` asks for. Throws Error. The same options give the same numbers,
/// times apart, whatever the number of threads. `kept`, when not null, receives the caches.
Results evaluate(const Options& options, Kept* kept = nullptr);

/// q, k and v of the model's first window, as a file for --qkv. Throws Error.
std::string dump_qkv(const Options& options);

}  // namespace eval
