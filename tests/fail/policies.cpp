// What a policy lacks, part by part.
#include <kvcondense/cpu.hpp>
#include <kvcondense/evict/erased.hpp>
#include <kvcondense/evict/h2o.hpp>
#include <kvcondense/evict/knorm.hpp>
#include <kvcondense/evict/policy.hpp>
#include <kvcondense/merge/cam.hpp>
#include <kvcondense/retrieve/erased.hpp>
#include <kvcondense/retrieve/quest.hpp>

#include "either.hpp"

using namespace kvcondense;
using test::Either, test::Policy;

namespace {

template <Stage S>
struct About {
  static constexpr Descriptor about{"mine", S, "none"};
};
struct Validates {
  Status validate(const CacheShape&) const { return Status::ok; }
};
struct Nothing {};

}  // namespace

namespace eviction {

using About = ::About<Stage::evict>;
struct Needs {
  static constexpr Inputs needs{};
};
template <class Source = evict::KeyNorm, class Pool = evict::NoPool, class Protect = evict::NoProtect, class Allocate = evict::Absolute,
          class Select = evict::TopK, class Trigger = evict::EveryStep>
struct Blocks {
  constexpr auto pipeline() const { return evict::Pipeline<Source, Pool, Protect, Allocate, Select, Trigger>{}; }
};
template <class Right, class Wrong>
constexpr bool check = evict::check_eviction_policy<Either<Right, Wrong>, Cpu>();
template <class B>
using With = Policy<About, Needs, Validates, B>;
using Whole = With<Blocks<>>;

// EXPECT: an eviction policy needs a member 'static constexpr kvcondense::Descriptor about'.
static_assert(check<Whole, Policy<Needs, Validates, Blocks<>>>);
// EXPECT: the stage in an eviction policy's 'about' is Stage::evict.
static_assert(check<Whole, Policy<::About<Stage::quant>, Needs, Validates, Blocks<>>>);
// EXPECT: an eviction policy needs a member 'static constexpr kvcondense::Inputs needs'.
static_assert(check<Whole, Policy<About, Validates, Blocks<>>>);
// EXPECT: an eviction policy needs 'Status validate(const CacheShape&) const'.
static_assert(check<Whole, Policy<About, Needs, Blocks<>>>);
// EXPECT: an eviction policy needs 'pipeline() const' that returns an evict::Pipeline
static_assert(check<Whole, Policy<About, Needs, Validates>>);
// EXPECT: a source block needs attention(), lanes(), one_set(), observe(...), score(...)
static_assert(check<Whole, With<Blocks<Nothing>>>);
// EXPECT: a pool block needs run(...) and workspace_bytes(...)
static_assert(check<Whole, With<Blocks<evict::KeyNorm, Nothing>>>);
// EXPECT: a protect block needs 'Protected of(view, head) const' and most().
static_assert(check<Whole, With<Blocks<evict::KeyNorm, evict::NoPool, Nothing>>>);
// EXPECT: an allocate block needs uses_scores(), run(...) and workspace_bytes(...)
static_assert(check<Whole, With<Blocks<evict::KeyNorm, evict::NoPool, evict::NoProtect, Nothing>>>);
// EXPECT: a select block needs run(...) and workspace_bytes(...)
static_assert(check<Whole, With<Blocks<evict::KeyNorm, evict::NoPool, evict::NoProtect, evict::Absolute, Nothing>>>);
// EXPECT: a trigger block needs 'bool fires(view) const', or with a LayerBudget behind it.
static_assert(check<Whole, With<Blocks<evict::KeyNorm, evict::NoPool, evict::NoProtect, evict::Absolute, evict::TopK, Nothing>>>);

struct Attentive : evict::H2O {
  static constexpr Inputs needs = test::wrong ? Inputs{} : Inputs(Input::attention);
};
// EXPECT: this policy's source asks for an input that its 'needs' does not name.
static_assert(evict::check_eviction_policy<Attentive, Cpu>());

struct Table : evict::Absolute {
  index_t per_layer[test::wrong ? 80 : 1] = {};
};
// EXPECT: a block chosen at run time is trivially copyable and has at most 192 bytes
evict::AnyPipeline any() { return evict::AnyPipeline(evict::H2O{}.pipeline().with_allocate(Table{})); }

}  // namespace eviction

namespace merging {

struct Needs {
  static constexpr Inputs needs = Input::attention;
};
struct Blocks {
  constexpr auto pipeline() const { return merge::CaM{}.pipeline(); }
};
using About = ::About<Stage::merge>;
template <class Right, class Wrong>
constexpr bool check = merge::check_merge_policy<Either<Right, Wrong>, Cpu>();
using Whole = Policy<About, Needs, Validates, Blocks>;

// EXPECT: a merge policy needs a member 'static constexpr kvcondense::Descriptor about'.
static_assert(check<Whole, Policy<Needs, Validates, Blocks>>);
// EXPECT: the stage in a merge policy's 'about' is Stage::merge.
static_assert(check<Whole, Policy<::About<Stage::evict>, Needs, Validates, Blocks>>);
// EXPECT: a merge policy needs a member 'static constexpr kvcondense::Inputs needs'.
static_assert(check<Whole, Policy<About, Validates, Blocks>>);
// EXPECT: a merge policy needs 'Status validate(const CacheShape&) const'.
static_assert(check<Whole, Policy<About, Needs, Blocks>>);
// EXPECT: a merge policy needs 'pipeline() const' that returns a merge::Pipeline.
static_assert(check<Whole, Policy<About, Needs, Validates>>);

}  // namespace merging

namespace retrieval {

struct Keys {
  static constexpr retrieve::KeyState keys = retrieve::KeyState::rotated;
};
struct Blocks {
  constexpr auto pipeline() const { return retrieve::Quest{}.pipeline(); }
};
struct Mute {
  struct Pipeline : retrieve::ReadAll::Nothing {
    constexpr bool active() const { return true; }
  };
  constexpr Pipeline pipeline() const { return {}; }
};
using About = ::About<Stage::retrieve>;
template <class Right, class Wrong>
constexpr bool check = retrieve::check_retrieval_policy<Either<Right, Wrong>, Cpu>();
using Whole = Policy<About, Keys, Validates, Blocks>;

// EXPECT: a retrieval policy needs a member 'static constexpr kvcondense::Descriptor about'.
static_assert(check<Whole, Policy<Keys, Validates, Blocks>>);
// EXPECT: the stage in a retrieval policy's 'about' is Stage::retrieve.
static_assert(check<Whole, Policy<::About<Stage::evict>, Keys, Validates, Blocks>>);
// EXPECT: a retrieval policy needs a member 'static constexpr kvcondense::retrieve::KeyState keys'.
static_assert(check<Whole, Policy<About, Validates, Blocks>>);
// EXPECT: a retrieval policy needs 'pipeline() const' that returns a retrieve::Pipeline, and 'Status validate(const CacheShape&) const'.
static_assert(check<Whole, Policy<About, Keys, Validates>>);

}  // namespace retrieval
