#include <kvcondense/any/any_recipe.hpp>

#include <kvcondense/cpu.hpp>

namespace kvcondense::any {

AnyCodec::AnyCodec() : AnyCodec(prim::ExactRows{}) {}
AnyQuant::AnyQuant() : AnyQuant(KeepExact{}) {}
AnyEvict::AnyEvict() : AnyEvict(evict::KeepAll{}) {}
AnyPosition::AnyPosition() : AnyPosition(position::Absolute{}) {}
AnyRetrieve::AnyRetrieve() : AnyRetrieve(retrieve::ReadAll{}) {}

}  // namespace kvcondense::any
