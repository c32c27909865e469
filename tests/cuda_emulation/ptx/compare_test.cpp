// setp, set, selp, slct.

#include "instruction.hpp"
#include "reference.hpp"

using namespace ptx;
using namespace ptx::test;

namespace {

Numbers numbers(71);

// The outcome of a comparison by name.
bool outcome(std::string const& how, bool less, bool equal, bool unordered) {
  if (how == "num") return !unordered;
  if (how == "nan") return unordered;
  bool const with_nan = how.size() == 3;
  std::string const base = how.substr(0, 2);
  if (unordered) return with_nan;
  if (base == "eq") return equal;
  if (base == "ne") return !equal;
  if (base == "lt" || base == "lo") return less;
  if (base == "le" || base == "ls") return less || equal;
  if (base == "gt" || base == "hi") return !less && !equal;
  return !less;
}

template <class Value>
void check_type(std::string const& type, char letter, std::vector<std::string> const& how,
                std::function<u64()> const& draw, Value value) {
  auto const inputs = [&] {
    auto out = rows(320, {draw, draw, [] { return numbers.any() & 1; }});
    for (std::size_t i = 0; i < out.size(); i += 4) out[i][1] = out[i][0];
    return out;
  }();
  std::string const two(2, letter);
  for (std::string const& name : how) {
    auto const want = [&](Row const& r) {
      auto const a = value(r[0]), b = value(r[1]);
      return outcome(name, a < b, a == b, a != a || b != b);
    };
    check("setp." + name + type, "p=" + two, inputs, [&](Row const& r) { return u64{want(r)}; });
    check("setp." + name + ".and" + type, "p=" + two + "p", inputs, [&](Row const& r) { return u64{want(r) && r[2]}; });
    check("setp." + name + ".or" + type, "p=" + two + "p", inputs, [&](Row const& r) { return u64{want(r) || r[2]}; });
    check("setp." + name + ".xor" + type, "p=" + two + "p", inputs, [&](Row const& r) { return u64{want(r) != (r[2] != 0)}; });
    check("set." + name + ".u32" + type, "r=" + two, inputs, [&](Row const& r) { return u64{want(r) ? 0xffffffffU : 0U}; });
    check("set." + name + ".f32" + type, "r=" + two, inputs, [&](Row const& r) { return u64{want(r) ? 0x3f800000U : 0U}; });
  }
}

}  // namespace

TEST_CASE("ptx: comparisons of integers") {
  std::vector<std::string> const is_signed = {"eq", "ne", "lt", "le", "gt", "ge"};
  std::vector<std::string> is_unsigned = is_signed;
  for (char const* each : {"lo", "ls", "hi", "hs"}) is_unsigned.push_back(each);
  for (u32 const bits : {16U, 32U, 64U}) {
    char const c = bits == 16 ? 'h' : bits == 32 ? 'r' : 'l';
    auto const draw = [bits] { return numbers.integer(bits); };
    auto const plain = [](u64 x) { return x; };
    check_type(".u" + std::to_string(bits), c, is_unsigned, draw, plain);
    check_type(".b" + std::to_string(bits), c, {"eq", "ne"}, draw, plain);
    check_type(".s" + std::to_string(bits), c, is_signed, draw, [bits](u64 x) {
      return static_cast<i64>(x << (64 - bits)) >> (64 - bits);
    });
  }
}

TEST_CASE("ptx: comparisons of floats, ordered and unordered") {
  std::vector<std::string> const all = {"eq", "ne", "lt", "le", "gt", "ge", "equ", "neu", "ltu", "leu", "gtu", "geu", "num", "nan"};
  check_type(".f32", 'r', all, [] { return numbers.f32(); }, [](u64 x) { return ref_f32.value(x); });
  check_type(".f64", 'l', all, [] { return numbers.f64(); }, [](u64 x) { return ref_f64.value(x); });
  check_type(".f16", 'h', all, [] { return numbers.f16(); }, [](u64 x) { return ref_f16.value(x); });
  check_type(".bf16", 'h', all, [] { return numbers.bf16(); }, [](u64 x) { return ref_bf16.value(x); });
  check_type(".ftz.f32", 'r', all, [] { return numbers.f32(); }, [](u64 x) {
    return (x & 0x7fffffff) < 0x800000 ? 0.0L : ref_f32.value(x);
  });
}

TEST_CASE("ptx: the second predicate of setp holds the opposite") {
  // p|q: q is the negated comparison, combined alike.
  std::string const text = R"(.version 8.0
.target sm_80
.address_size 64
.visible .entry k(.param .u64 out) {
.reg .pred %p<4>; .reg .b32 %r<6>; .reg .b64 %l<3>;
mov.u32 %r0, %tid.x; ld.param.u64 %l0, [out]; mad.wide.u32 %l1, %r0, 8, %l0;
and.b32 %r1, %r0, 1; setp.ne.u32 %p0, %r1, 0;
setp.lt.and.u32 %p1|%p2, %r0, 10, !%p0;
selp.u32 %r2, 1, 0, %p1; selp.u32 %r3, 1, 0, %p2;
st.global.v2.u32 [%l1], {%r2, %r3}; ret; })";
  Session session(text);
  u64 const out = session.put(std::vector<u32>(64));
  session.launch("k", {1}, {32}, {out});
  auto const got = session.get<u32>(out, 64);
  for (u32 t = 0; t < 32; ++t) {
    CHECK(got[2 * t] == u32{t < 10 && t % 2 == 0});
    CHECK(got[2 * t + 1] == u32{t >= 10 && t % 2 == 0});
  }
}

TEST_CASE("ptx: comparisons of pairs of f16") {
  auto const pair = [] { return numbers.f16() | numbers.f16() << 16; };
  auto inputs = rows(640, {pair, pair});
  for (std::size_t i = 0; i < inputs.size(); i += 4) inputs[i][1] = inputs[i][0];
  for (std::string const how : {"eq", "ne", "lt", "ge", "geu", "neu", "num", "nan"}) {
    auto const one = [&](u64 x, u64 y) {
      long double const a = ref_f16.value(x & 0xffff), b = ref_f16.value(y & 0xffff);
      return outcome(how, a < b, a == b, a != a || b != b);
    };
    check("set." + how + ".f16x2.f16x2", "r=rr", inputs, [&](Row const& r) {
      return (one(r[0], r[1]) ? 0x3c00U : 0U) | (one(r[0] >> 16, r[1] >> 16) ? u64{0x3c000000} : u64{0});
    });
    check("setp." + how + ".f16x2", "p=rr", inputs, [&](Row const& r) { return u64{one(r[0], r[1])}; });
  }
}

TEST_CASE("ptx: selections") {
  for (u32 const bits : {16U, 32U, 64U}) {
    char const c = bits == 16 ? 'h' : bits == 32 ? 'r' : 'l';
    auto const draw = [bits] { return numbers.integer(bits); };
    for (std::string const sort : {"b", "u", "s"})
      check("selp." + sort + std::to_string(bits), std::string{c, '=', c, c, 'p'},
            rows(96, {draw, draw, [] { return numbers.any() & 1; }}), [](Row const& r) { return r[2] ? r[0] : r[1]; });
    if (bits > 16)
      check("slct.u" + std::to_string(bits) + ".s32", std::string{c, '=', c, c, 'r'},
            rows(96, {draw, draw, [] { return numbers.integer(32); }}),
            [](Row const& r) { return r[2] >> 31 ? r[1] : r[0]; });
  }
}
