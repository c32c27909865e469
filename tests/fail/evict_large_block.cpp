// EXPECT: a block chosen at run time is trivially copyable and has at most 192 bytes
#include <kvcondense/cpu.hpp>
#include <kvcondense/evict/erased.hpp>
#include <kvcondense/evict/h2o.hpp>

using namespace kvcondense;

struct Table : evict::Absolute {
#ifdef KVCONDENSE_EXPECT_FAIL
  index_t per_layer[80] = {};
#else
  const index_t* per_layer = nullptr;
#endif
};

evict::AnyPipeline any() { return evict::AnyPipeline(evict::H2O{}.pipeline().with_allocate(Table{})); }
