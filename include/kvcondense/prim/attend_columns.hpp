#pragma once

#include <cstdint>
#include <span>

#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/config.hpp>
#include <kvcondense/core/view.hpp>

namespace kvcondense::prim {

/// How the query heads of a KV head become one row of probabilities.
enum class GroupReduce : std::uint8_t {
  none,       ///< they do not: one number per (query head, slot)
  sum,        ///< of their probabilities
  mean,
  max,
  max_logit,  ///< the largest logit of the group, before the softmax
};

/// How the query rows of a window become one number per slot.
enum class RowReduce : std::uint8_t {
  sum,
  mean,
  max,
  seen_mean,  ///< the mean over the rows that see the slot
  low_count,  ///< rows in which the slot got less than an even share of what the row sees, or NaN
  log_decay,  ///< no softmax: the logarithm of a sum over the rows that see the slot, of exp(logit), its mean over the
              ///< group: from row to row it fades to `decay` of it, and 1 - decay of the row's joins it
};

/// Which slots a row may see: those of the first `sinks` tokens, of tokens [first, last), and the rows'
/// own. Only slots of [first, last) get numbers, and none below the smallest normal one.
struct ColumnPart {
  index_t sinks = 0;
  index_t first = 0;
  index_t last = 0;  ///< 0: no part, all slots
};

/// Columns of the attention matrix of some query rows, reduced without ever holding the matrix.
///
/// Shapes   out: one number per (kv head, slot), as `Cache::ragged` lays them out; with
///          GroupReduce::none room for group times as many, [group, slots] per KV head.
/// Numbers  float32; a slot that no row sees gets 0, with log_decay -inf, and logits are those of the key alone, without
///          a slot's bias, and `group` and `band` do not act. `past` takes the newest `rows` slots out of the
///          softmax and gives them 0. Temperature and noise act on logits:
///          softmax((logit + Gumbel noise) / temperature); the noise is drawn from (seed, query head,
///          token of the row, token of the slot), so it is the same wherever and however often it is
///          asked for; seed 0 means none. The temperature of row r is temperature + warming * r. A summary
///          slot takes no part. With a `band` a row gives numbers only to the newest `band` slots that it
///          sees; the others stay in its softmax.
struct ColumnRequest {
  index_t rows = 0;  ///< query tokens; the last of them is the newest token
  std::span<const std::int32_t> chosen{};  ///< of these rows the ones that count, ascending; empty: all
  GroupReduce group = GroupReduce::mean;
  RowReduce row = RowReduce::sum;
  bool past = false;
  bool add = false;  ///< to what is in `out`, instead of replacing it
  float temperature = 1.0f;
  float warming = 0.0f;
  float decay = 0.0f;  ///< of log_decay
  std::uint64_t seed = 0;
  const float* divide = nullptr;  ///< null, or per row: its shares are divided by it, and are none where it is not positive
  ColumnPart part{};
  index_t band = 0;  ///< 0: none
  RaggedView<float> out{};
};

/// Exact column sums of attention by log-sum-exp: one pass over the keys for each row's normaliser, a
/// second one for the columns.
///
///   run(ctx, request, shape, heads) -> Status
///
/// Source   `heads(kv_head)` gives an object with `slots()`, `visible(row)` (slots that a row sees),
///          `load_query(row, member, q)` (comparable with the keys, not scaled), `key_scores(cursor,
///          count, queries, out, first_slot)`, `token(slot)`, `row_token(row)`, the type `Cursor`,
///          for parts `below(token)` (slots of earlier tokens), and maybe `scalars()` and `hide`, see Attend.
/// Cost     two reads of every key per block of query rows, or one where logits are kept (on the CPU those of the first 8,192
///          slots, if the workspace has room for them); codes are unpacked once per read for all query
///          heads of a block. Scratch for one block and one strip of slots per worker.
/// Errors   workspace_too_small, invalid_argument (a temperature that is not positive), not_supported (a part of
///          heads that do not say where tokens lie).
template <Backend B>
struct AttendColumns {
  static_assert(detail::always_false<B>, "kvcondense: include kvcondense/cpu.hpp or kvcondense/cuda.cuh first.");
};

}  // namespace kvcondense::prim
