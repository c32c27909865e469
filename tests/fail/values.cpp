// Numbers and types that plain data does not take.
#include <memory>

#include <kvcondense/any/field.hpp>
#include <kvcondense/any/inline_value.hpp>
#include <kvcondense/core/buffer.hpp>
#include <kvcondense/core/view.hpp>
#include <kvcondense/evict/h2o.hpp>
#include <kvcondense/prim/bipolar_int.hpp>
#include <kvcondense/prim/boosted_int.hpp>
#include <kvcondense/prim/group_quant.hpp>
#include <kvcondense/prim/pack_bits.hpp>
#include <kvcondense/prim/polar_pairs.hpp>
#include <kvcondense/quant/qserve.hpp>

#include "either.hpp"

using namespace kvcondense;
using test::Either, test::wrong;

// EXPECT: GroupInt stores codes of 1 to 8 bits.
const prim::GroupInt<wrong ? 9 : 8> group_int;
// EXPECT: BipolarInt stores codes of 1 to 8 bits.
const prim::BipolarInt<wrong ? 0 : 1> bipolar_int;
// EXPECT: BoostedInt stores codes of 2 to 8 bits in two planes.
const prim::BoostedInt<4, wrong ? 5 : 4> boosted_int;
// EXPECT: PolarPairs stores lengths and angles of 1 to 5 bits, 8 together at most.
const prim::PolarPairs<4, wrong ? 6 : 4> polar_pairs;
// EXPECT: DenseLe packs codes of 1 to 8 bits.
const prim::DenseLe<wrong ? 9 : 3> dense;
// EXPECT: QServe stores numbers in 4 or 8 bits.
const quant::QServe<wrong ? 3 : 4> qserve;

// EXPECT: a Buffer holds trivially copyable values.
using Held = decltype(sizeof(Buffer<Either<int, std::unique_ptr<int>>>));
// EXPECT: a TensorView has one to four dimensions.
const TensorView<float, wrong ? 5 : 4> view;
// EXPECT: a TensorView needs one index per dimension.
float number(const TensorView<float, wrong ? 3 : 2>& v) { return v(0, 0); }

struct Large {
  char bytes[100];
};
// EXPECT: this value is larger than the room a stage chosen at run time has.
const any::InlineValue<96> too_large{Either<int, Large>{}};
// EXPECT: a stage chosen at run time must be trivially copyable.
const any::InlineValue<96> owner{Either<int, std::unique_ptr<int>>{}};

struct Knobs {
  int count = 0;
  bool sure = false;
};
// EXPECT: a number field binds an integer or a real member.
const any::Field count = any::number<Knobs, Either<std::integral_constant<int Knobs::*, &Knobs::count>, std::integral_constant<bool Knobs::*, &Knobs::sure>>::value>("n", "", "", 0, 1);
// EXPECT: a flag field binds a bool member.
const any::Field sure = any::flag<Knobs, Either<std::integral_constant<bool Knobs::*, &Knobs::sure>, std::integral_constant<int Knobs::*, &Knobs::count>>::value>("s", "", "");
