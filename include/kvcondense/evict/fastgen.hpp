#pragma once

#include <limits>

#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/policy.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/evict/blocks/above.hpp>
#include <kvcondense/evict/blocks/head_policy.hpp>
#include <kvcondense/evict/blocks/pool.hpp>
#include <kvcondense/evict/blocks/protect.hpp>
#include <kvcondense/evict/blocks/select.hpp>
#include <kvcondense/evict/blocks/trigger.hpp>
#include <kvcondense/evict/pipeline.hpp>
#include <kvcondense/evict/policy.hpp>

namespace kvcondense::evict {

/// Looks at a prompt how each head attends, and lets it keep the least of five sets that serves it.
///
/// Idea     some heads look at special tokens, some at punctuation, some at a few tokens or at what is near;
///          only the others need everything.
/// Source   FastGen, arXiv:2310.01801.
/// Needs    the queries of every step, and the classes of its tokens: which are special, which are
///          punctuation.
/// Shapes   queries [q_heads, tokens, head_dim], classes [tokens], keys and scores [kv_heads, slots].
/// Cost     16 bytes per slot. When a prompt ends four reads of all keys for every 32 query rows of a head;
///          then two at every step, for sums that go on. The queries are profile * q_heads * head_dim * 4
///          bytes per layer; slots * 4 bytes of workspace. Full heads grow without limit.
/// Numbers  the sets, each with those before it: special tokens; punctuation; the ceil(frequent * tokens seen)
///          slots with most attention, with `per_row` per row that saw them; the newest ceil(local * tokens
///          seen); all. A head takes the first that keeps a part `recovery` of the attention of the newest
///          `profile` query rows of the prompt, in the mean over rows and query group: exact where `profile`
///          covers the prompt. Later it keeps the same sets of what is there, and always its newest token.
///          Attention is float32, of the profile's rows and those after it; ties keep the smaller slot, NaN is
///          never frequent; where attention is NaN the head is full. A later prompt chooses anew, of the
///          slots that are there, and takes a slot as seen by no more rows than there are slots from it on. A
///          head of which everything was taken back keeps all until then.
/// Differs  the paper's frequent and local sets are parts of the prompt; here they go on growing with the
///          answer. The paper's profile looks at all rows of the prompt, this one at the newest `profile`. Recovery is the
///          attention that is kept, not a bound on how far attention changes.
/// Errors   invalid_argument unless recovery, frequent and local are from 0 to 1 and profile >= 1.
struct FastGen {
  static constexpr Descriptor about{"fastgen", Stage::evict, "arXiv:2310.01801"};
  static constexpr Inputs needs = Input::queries | Input::classes;

  double recovery = 0.95;
  double frequent = 0.3;
  double local = 0.3;
  index_t profile = 128;
  bool per_row = true;

  constexpr auto pipeline() const {
    return Pipeline{HeadPolicyMass{recovery, frequent, local, profile, per_row},
                    NoPool{},
                    Recent{1},
                    Above{std::numeric_limits<float>::infinity()},
                    TopK{},
                    PrefillOnceAndEveryStep{}};
  }
  Status validate(const CacheShape&) const {
    const auto part = [](double x) { return x >= 0.0 && x <= 1.0; };
    return part(recovery) && part(frequent) && part(local) && profile >= 1 ? Status::ok : Status::invalid_argument;
  }
};

static_assert(check_eviction_policy<FastGen, Cpu>());

}  // namespace kvcondense::evict
