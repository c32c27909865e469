#pragma once
// What a peer brings: attention of one token over a cache of its own. A peer is compiled into a module of its own, loaded
// when the program runs, so that two forks of one library can be timed in one run.

#include <cstddef>

namespace peers {

struct Problem {
  long q_heads, kv_heads, dim, slots, layers;
  int threads;
  const float* keys;    ///< [kv_heads][slots][dim], the same for every layer
  const float* values;  ///< likewise
};

class Attention {
 public:
  virtual ~Attention() = default;
  /// Of one layer, keys and values as they are stored.
  virtual double bytes_per_layer() const = 0;
  /// queries and out: [q_heads][dim]; false when it failed.
  virtual bool attend(long layer, const float* queries, float* out) = 0;
  /// The rows of a layer's head as they are stored, [slots][dim] each.
  virtual bool decode(long layer, long head, float* keys, float* values) = 0;
};

/// A way to store and attend.
struct Form {
  const char* name;
  int bits;  ///< 16, 8 or 4: whom it is compared with
};

extern "C" {
using FormsFunction = std::size_t(const Form** forms);
/// Null when it cannot be made.
using MakeFunction = Attention*(std::size_t form, const Problem& problem);
}

}  // namespace peers
