// mma, ldmatrix, movmatrix, by the tables of fragments in the PTX manual.

#include "kernel_text.hpp"
#include "reference.hpp"

using namespace ptx;
using namespace ptx::test;

namespace {

Numbers numbers(91);

struct Shape {
  std::string name;  // "m16n8k16"
  u32 m, k, bits;    // bits of an element of A and B
  u32 a_words() const { return m * k * bits / 32 / 32; }
  u32 b_words() const { return k * 8 * bits / 32 / 32; }
};
// Row and column of element i of lane l, counted over all words, as the manual lists them.
std::pair<u32, u32> place_a(Shape const& s, u32 lane, u32 i) {
  u32 const group = lane >> 2, in_group = lane % 4, per = 32 / s.bits, word = i / per;
  bool const lower = s.m == 16 && word % 2 == 1;
  bool const right = s.m == 16 ? word >= 2 : word >= 1;
  return {group + (lower ? 8 : 0), in_group * per + i % per + (right ? 4 * per : 0)};
}
std::pair<u32, u32> place_b(Shape const& s, u32 lane, u32 i) {
  u32 const per = 32 / s.bits;
  return {lane % 4 * per + i % per + i / per * 4 * per, lane >> 2};
}

std::string registers(std::string const& name, u32 count) {
  std::string out = "{";
  for (u32 i = 0; i < count; ++i) out += (i ? ", " : "") + name + std::to_string(i);
  return out + "}";
}

// Runs one mma on words per lane: [lane][word] for A, B, C; D's words.
std::vector<u32> run_mma(std::string const& opcode, Shape const& s, u32 c_words, std::vector<u32> const& words) {
  u32 const a = s.a_words(), b = s.b_words(), each = a + b + c_words;
  std::string body = "mad.lo.u32 %r39, %t, " + std::to_string(4 * each) + ", 0; cvt.u64.u32 %l0, %r39; add.u64 %l0, %l0, %A;";
  for (u32 i = 0; i < each; ++i) {
    std::string const to = i < a ? "%ra" + std::to_string(i) : i < a + b ? "%rb" + std::to_string(i - a) : "%rc" + std::to_string(i - a - b);
    body += "ld.global.u32 " + to + ", [%l0+" + std::to_string(4 * i) + "];";
  }
  body += opcode + " " + registers("%rd", c_words) + ", " + registers("%ra", a) + ", " + registers("%rb", b) + ", " + registers("%rc", c_words) + ";";
  body += "mad.lo.u32 %r38, %t, " + std::to_string(4 * c_words) + ", 0; cvt.u64.u32 %l1, %r38; add.u64 %l1, %l1, %B;";
  for (u32 i = 0; i < c_words; ++i) body += "st.global.u32 [%l1+" + std::to_string(4 * i) + "], %rd" + std::to_string(i) + ";";
  std::string const text = kernel(".reg .b32 %ra<4>, %rb<2>, %rc<4>, %rd<4>;" + body + "ld.global.u32 %y, [%b0];");
  return run_kernel(text, words);
}

}  // namespace

TEST_CASE("ptx: mma of integers of 8 and 4 bits") {
  Shape const shapes[] = {{"m8n8k16", 8, 16, 8}, {"m16n8k16", 16, 16, 8}, {"m16n8k32", 16, 32, 8},
                          {"m8n8k32", 8, 32, 4}, {"m16n8k32", 16, 32, 4}, {"m16n8k64", 16, 64, 4}};
  for (Shape const& s : shapes)
    for (bool const sa : {false, true})
      for (bool const sb : {false, true})
        for (bool const clamp : {false, true}) {
          u32 const c_words = s.m / 4, a = s.a_words(), b = s.b_words(), each = a + b + c_words;
          std::vector<u32> words(32 * each);
          for (u32 lane = 0; lane < 32; ++lane)
            for (u32 i = 0; i < each; ++i)
              words[lane * each + i] = static_cast<u32>(i < a + b ? numbers.any() : numbers.integer(32));
          auto const element = [&](u32 lane, u32 from, u32 i, bool is_signed) {
            u32 const per = 32 / s.bits, raw = words[lane * each + from + i / per] >> (i % per * s.bits) & ((1U << s.bits) - 1);
            return is_signed && raw >> (s.bits - 1) ? i64{raw} - (i64{1} << s.bits) : i64{raw};
          };
          i64 left[16][64] = {}, right[64][8] = {};
          for (u32 lane = 0; lane < 32; ++lane) {
            for (u32 i = 0; i < a * 32 / s.bits; ++i) {
              auto const [row, column] = place_a(s, lane, i);
              left[row][column] = element(lane, 0, i, sa);
            }
            for (u32 i = 0; i < b * 32 / s.bits; ++i) {
              auto const [row, column] = place_b(s, lane, i);
              right[row][column] = element(lane, a, i, sb);
            }
          }
          std::string const type = s.bits == 8 ? "8" : "4";
          std::string const opcode = "mma.sync.aligned." + s.name + ".row.col" + (clamp ? ".satfinite" : "") + ".s32." +
                                     (sa ? "s" : "u") + type + "." + (sb ? "s" : "u") + type + ".s32";
          auto const got = run_mma(opcode, s, c_words, words);
          bool right_all = true;
          for (u32 lane = 0; lane < 32; ++lane)
            for (u32 i = 0; i < c_words; ++i) {
              u32 const row = lane / 4 + (i >= 2 ? 8 : 0), column = lane % 4 * 2 + i % 2;
              i64 sum = static_cast<i32>(words[lane * each + a + b + i]);
              for (u32 k = 0; k < s.k; ++k) sum += left[row][k] * right[k][column];
              if (clamp) sum = std::clamp<i64>(sum, INT32_MIN, INT32_MAX);
              right_all &= got[lane * c_words + i] == static_cast<u32>(sum);
            }
          INFO(opcode);
          CHECK(right_all);
        }
}

TEST_CASE("ptx: mma of f16 and bf16") {
  for (std::string const type : {"f16", "bf16"})
    for (bool const narrow_sum : {false, true})
      for (Shape const& s : {Shape{"m16n8k8", 16, 8, 16}, Shape{"m16n8k16", 16, 16, 16}}) {
        if (narrow_sum && type == "bf16") continue;
        RealFormat const f = type == "f16" ? ref_f16 : ref_bf16;
        u32 const c_words = narrow_sum ? 2 : 4, a = s.a_words(), b = s.b_words(), each = a + b + c_words;
        std::vector<u32> words(32 * each);
        auto const small = [&] { return f.round(static_cast<long double>(static_cast<int>(numbers.any() % 65) - 32) / 8, 'n', false); };
        for (u32 lane = 0; lane < 32; ++lane)
          for (u32 i = 0; i < each; ++i) {
            u64 const pair = small() | small() << 16;
            long double const c = static_cast<long double>(static_cast<int>(numbers.any() % 129) - 64) / 4;
            words[lane * each + i] = i < a + b || narrow_sum ? static_cast<u32>(pair) : static_cast<u32>(ref_f32.round(c, 'n', c < 0));
          }
        // A round of small() above lost the sign: set it where a bit says so.
        for (u32 lane = 0; lane < 32; ++lane)
          for (u32 i = 0; i < a + b; ++i) words[lane * each + i] ^= static_cast<u32>(numbers.any()) & 0x80008000;
        long double left[16][16] = {}, right[16][8] = {};
        for (u32 lane = 0; lane < 32; ++lane) {
          for (u32 i = 0; i < 2 * a; ++i) {
            auto const [row, column] = place_a(s, lane, i);
            left[row][column] = f.value(words[lane * each + i / 2] >> (i % 2 * 16) & 0xffff);
          }
          for (u32 i = 0; i < 2 * b; ++i) {
            auto const [row, column] = place_b(s, lane, i);
            right[row][column] = f.value(words[lane * each + a + i / 2] >> (i % 2 * 16) & 0xffff);
          }
        }
        std::string const to = narrow_sum ? "f16" : "f32";
        std::string const opcode = "mma.sync.aligned." + s.name + ".row.col." + to + "." + type + "." + type + "." + to;
        auto const got = run_mma(opcode, s, c_words, words);
        bool right_all = true;
        for (u32 lane = 0; lane < 32; ++lane)
          for (u32 i = 0; i < 4; ++i) {
            u32 const row = lane / 4 + (i >= 2 ? 8 : 0), column = lane % 4 * 2 + i % 2;
            u32 const word = narrow_sum ? i / 2 : i, shift = narrow_sum ? i % 2 * 16 : 0;
            u64 const c = words[lane * each + a + b + word] >> shift & (narrow_sum ? 0xffffU : ~0U);
            RealFormat const sums = narrow_sum ? ref_f16 : ref_f32;
            long double sum = sums.value(c);
            for (u32 k = 0; k < s.k; ++k) sum += left[row][k] * right[k][column];
            u64 const d = got[lane * c_words + word] >> shift & (narrow_sum ? 0xffffU : ~0U);
            right_all &= sums.value(d) == sums.value(sums.round(sum, 'n', sum < 0));
          }
        INFO(opcode);
        CHECK(right_all);
      }
}

TEST_CASE("ptx: movmatrix transposes, ldmatrix loads rows") {
  std::vector<u32> words(128);
  for (u32& w : words) w = static_cast<u32>(numbers.any());
  auto const at = [](std::vector<u32> const& v, u32 row, u32 column) {
    return v[row * 4 + column / 2] >> (16 * (column % 2)) & 0xffff;
  };
  auto const moved = run_kernel(kernel("movmatrix.sync.aligned.m8n8.trans.b16 %y, %x;"), words);
  for (u32 row = 0; row < 8; ++row)
    for (u32 column = 0; column < 8; ++column) CHECK(at(moved, row, column) == at(words, column, row));
  // Shared memory holds 32 rows of 16 bytes; lane l names row 31 - l.
  std::string const fill = R"(
    .shared .align 16 .b8 s[512]; .reg .b32 %q<4>; mad.wide.u32 %l0, %t, 16, %A; ld.global.v4.u32 {%q0, %q1, %q2, %q3}, [%l0];
    mov.u32 %r0, s; mad.lo.u32 %r1, %t, 16, %r0; st.shared.v4.u32 [%r1], {%q0, %q1, %q2, %q3}; bar.sync 0;
    sub.u32 %r2, 31, %t; mad.lo.u32 %r2, %r2, 16, %r0;)";
  for (u32 const count : {1U, 2U, 4U})
    for (bool const transposed : {false, true})
      for (u32 part = 0; part < count; ++part) {
        auto const got = run_kernel(kernel(fill + "ldmatrix.sync.aligned.m8n8.x" + std::to_string(count) +
                                           (transposed ? ".trans" : "") + ".shared.b16 " + registers("%q", count) +
                                           ", [%r2]; mov.u32 %y, %q" + std::to_string(part) + ";"), words);
        bool right = true;
        for (u32 row = 0; row < 8; ++row)
          for (u32 column = 0; column < 8; ++column) {
            u32 const r = transposed ? column : row, c = transposed ? row : column;
            right &= at(got, row, column) == at(words, 31 - (part * 8 + r), c);
          }
        CHECK(right);
      }
}

TEST_CASE("ptx: matrix operations need the whole warp") {
  auto const fault = [](std::string const& body, u32 threads) {
    return fault_of([&] { run_kernel(kernel(body), iota(32), threads); });
  };
  CHECK_THAT(fault("movmatrix.sync.aligned.m8n8.trans.b16 %y, %x;", 16), Catch::Contains("part of a warp"));
  CHECK_THAT(fault("setp.lt.u32 %p0, %t, 9; @%p0 movmatrix.sync.aligned.m8n8.trans.b16 %y, %x;", 32),
             Catch::Contains("lane 9 exits while others wait for it: warp operation reached by lanes 0-8 of 0-31"));
}
