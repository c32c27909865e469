// Files of a recipe of other numbers in a cache on CUDA that retrieves: what they hold and what they have learned is read as the CPU reads it.

#include <kvcondense/position/reindex.hpp>
#include <kvcondense/retrieve/rekv.hpp>
#include <kvcondense/retrieve/squeezed.hpp>
#include <kvcondense/retrieve/triforce.hpp>

#include "cache_pair.hpp"

using namespace kvcondense;
using cuda_cache::Pair;

namespace {

const CacheShape shape{.layers = 2, .q_heads = 4, .kv_heads = 2, .head_dim = 16, .page_slots = 4};

/// Both sides of `to` go on from a file of `from`.
template <class From, class To>
void read_file(From& from, To& to) {
  test::ByteList file;
  REQUIRE(from.on_host().save(file) == Status::ok);
  REQUIRE(to.on_host().load(file.bytes) == Status::ok);
  REQUIRE(load(to.device(), to.on_device(), file.bytes) == Status::ok);
  to.compare();
}

}  // namespace

TEST_CASE("cuda cache loads: more units than this recipe would choose") {
  Pair wide(recipe(retrieve::TriForce{.chunk = 4, .tokens = 64}), "triforce(chunk=4, tokens=64)", shape);
  Pair narrow(recipe(retrieve::TriForce{.chunk = 4, .tokens = 16}), "triforce(chunk=4, tokens=16)", shape);
  wide.forward(90), read_file(wide, narrow);
  narrow.look();
  auto fork = narrow.fork();
  fork.look(), fork.forward(1), fork.look();
  narrow.forward(2), narrow.look(), narrow.exchange(), narrow.look();
  narrow.on_device().choose_anew(), narrow.on_host().choose_anew();
  narrow.look(), narrow.forward(1), narrow.look();

  Pair all(recipe(position::Reindex{}, retrieve::ReKv{.frame = 5, .frames = 14, .init = 2, .question = 8}), "reindex + rekv(frame=5, frames=14, init=2, question=8)", shape);
  Pair few(recipe(position::Reindex{}, retrieve::ReKv{.frame = 5, .frames = 3, .init = 2, .question = 8}), "reindex + rekv(frame=5, frames=3, init=2, question=8)", shape);
  all.forward(90), all.forward(4), read_file(all, few);
  few.look(), few.forward(1), few.look(), few.exchange(), few.look();
  few.forward(3), few.look();
}

TEST_CASE("cuda cache loads: clusters of two levels where this recipe makes one") {
  Pair two(recipe(retrieve::Squeezed{.clusters = 0.3, .coarse = 0.1, .observe = 6, .iterations = 3}), "squeezed(clusters=30%, coarse=10%, observe=6, iterations=3)", shape);
  Pair one(recipe(retrieve::Squeezed{.clusters = 0.3, .observe = 6, .iterations = 3}), "squeezed(clusters=30%, observe=6, iterations=3)", shape);
  two.forward(80);
  read_file(two, one);
  CHECK(one.look().units_scored > 0);
  one.forward(1), one.look();
  read_file(one, two);
  two.look();
}
