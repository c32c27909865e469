// What CUDA C++ means on the host and in PTX must be the same: calls, halves, integers, mathematics
// as nvcc compiles them.

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cmath>
#include <cstdint>
#include <cstring>

#include "emulation.hpp"
#include "program_check.hpp"

using namespace ptx::test;

namespace {

struct Five {
  float v[5];
  int n;
};
__device__ __noinline__ Five shift(Five x, int by) {
  Five y;
  for (int i = 0; i < 5; ++i) y.v[i] = x.v[(i + by) % 5];
  y.n = x.n + by;
  return y;
}
__device__ __noinline__ int fib(int n) { return n < 2 ? n : fib(n - 1) + fib(n - 2); }
__constant__ float scale[4] = {1, 2, 4, 8};
__device__ int counter = 3;

__global__ void calls(float* out, int* numbers) {
  Five x;
  for (int i = 0; i < 5; ++i) x.v[i] = static_cast<float>(10 * i);
  x.n = 100;
  Five const y = shift(x, static_cast<int>(threadIdx.x % 5));
  out[threadIdx.x] = y.v[threadIdx.x % 3] * scale[threadIdx.x % 4];
  numbers[threadIdx.x] = fib(static_cast<int>(threadIdx.x % 10)) + y.n;
  atomicAdd(&counter, 2);
}

void test_calls() {
  Buffer<float> out(64);
  Buffer<int> numbers(64);
  int const start = 40;
  must(cudaMemcpyToSymbol(counter, &start, sizeof start));
  calls<<<1, 64>>>(out.data(), numbers.data());
  auto const got = out.get();
  auto const ints = numbers.get();
  int const fibs[] = {0, 1, 1, 2, 3, 5, 8, 13, 21, 34};
  bool right = true;
  for (int t = 0; t < 64; ++t) {
    right &= got[t] == static_cast<float>(10 * ((t % 3 + t % 5) % 5)) * static_cast<float>(1 << t % 4);
    right &= ints[t] == fibs[t % 10] + 100 + t % 5;
  }
  expect(right, "calls with structs and recursion");
  int counted = 0;
  must(cudaMemcpyFromSymbol(&counted, counter, sizeof counted));
  expect(counted == 40 + 128, "a device variable");
}

// The same expressions on both sides; results as bits.
template <class H>
__host__ __device__ float wide(H x) {
  if constexpr (sizeof(H) == 2) {
    unsigned short bits;
    memcpy(&bits, &x, 2);
    if constexpr (std::is_same_v<H, __half>) return __half2float(x);
    else {
      unsigned const word = static_cast<unsigned>(bits) << 16;
      float f;
      memcpy(&f, &word, 4);
      return f;
    }
  }
}
__global__ void halves(__half const* a, __nv_bfloat16 const* b, float* out) {
  int const t = static_cast<int>(threadIdx.x);
  __half const x = a[t], y = a[t + 1], z = a[t + 2];
  __nv_bfloat16 const u = b[t], v = b[t + 1], w = b[t + 2];
  float* const o = out + 24 * t;
  int n = 0;
  o[n++] = wide(__hadd(x, y)), o[n++] = wide(__hmul(x, y)), o[n++] = wide(__hfma(x, y, z));
  o[n++] = wide(__hsub(x, y)), o[n++] = wide(__hmax(x, y)), o[n++] = wide(__hmin(x, y));
  o[n++] = wide(__hneg(x)), o[n++] = wide(__habs(x)), o[n++] = __hlt(x, y), o[n++] = __hadd_sat(x, y);
  o[n++] = wide(__hadd(u, v)), o[n++] = wide(__hmul(u, v)), o[n++] = wide(__hfma(u, v, w));
  o[n++] = wide(__hsub(u, v)), o[n++] = wide(__hmax(u, v)), o[n++] = wide(__hmin(u, v));
  o[n++] = __hlt(u, v);
  __half2 const p = __hfma2(__halves2half2(x, y), __halves2half2(y, z), __halves2half2(z, x));
  o[n++] = __low2float(p), o[n++] = __high2float(p);
  o[n++] = wide(__float2half_rz(wide(x) * 1.001f)), o[n++] = wide(__float2bfloat16_rn(wide(u) * 1.001f));
  o[n++] = static_cast<float>(__half2int_rn(x)), o[n++] = wide(__int2half_rn(t * 77)), o[n++] = wide(hexp2(x));
}

void test_halves() {
  int const n = 256;
  std::vector<__half> a(n + 2);
  std::vector<__nv_bfloat16> b(n + 2);
  for (int i = 0; i < n + 2; ++i) {
    a[i] = __float2half(static_cast<float>((i * 37 % 101 - 50)) / 16.0f);
    b[i] = __float2bfloat16(static_cast<float>((i * 53 % 103 - 51)) / 7.0f);
  }
  Buffer<__half> da(a);
  Buffer<__nv_bfloat16> db(b);
  Buffer<float> out(24 * n);
  halves<<<1, n>>>(da.data(), db.data(), out.data());
  auto const got = out.get();
  auto const h = [](double x) { return static_cast<double>(__half2float(__double2half(x))); };
  // Exact in double; the rounding to bf16 once, by way of float, whose 24 bits hold these sums.
  auto const bf = [](double x) { return static_cast<double>(wide(__float2bfloat16_rn(static_cast<float>(x)))); };
  int bad[24] = {};
  for (int t = 0; t < n; ++t) {
    double const x = wide(a[t]), y = wide(a[t + 1]), z = wide(a[t + 2]), u = wide(b[t]), v = wide(b[t + 1]), w = wide(b[t + 2]);
    double const want[24] = {h(x + y), h(x * y), h(x * y + z), h(x - y), std::fmax(x, y), std::fmin(x, y), -x, std::fabs(x),
                             double(x < y), h(std::fmin(1, std::fmax(0, x + y))), bf(u + v), bf(u * v), bf(u * v + w), bf(u - v),
                             std::fmax(u, v), std::fmin(u, v), double(u < v), h(x * y + z), h(y * z + x), 0, bf(static_cast<float>(u) * 1.001f),
                             std::nearbyint(x), h(t * 77), std::exp2(x)};
    for (int i = 0; i < 24; ++i) {
      double const g = got[24 * t + i];
      if (i == 19) bad[i] += !(std::fabs(g) <= std::fabs(x * 1.001) && std::fabs(g) >= std::fabs(x) * 0.9995);
      else if (i == 23) bad[i] += !(std::fabs(g - want[i]) <= want[i] / 512);
      else bad[i] += g != want[i];
    }
  }
  for (int i = 0; i < 24; ++i) expect(bad[i] == 0, "half expression " + std::to_string(i));
}

__global__ void integers(int const* in, long long* out) {
  int const t = static_cast<int>(threadIdx.x), a = in[t], b = in[t + 1], c = in[t + 2];
  long long const wide_a = static_cast<long long>(a) * b;
  long long* const o = out + 20 * t;
  int n = 0;
  o[n++] = b ? a / b : 7, o[n++] = b ? a % b : 7, o[n++] = c ? wide_a / c : 7, o[n++] = c ? wide_a % c : 7;
  o[n++] = __popc(a), o[n++] = __clz(a), o[n++] = __ffs(a), o[n++] = static_cast<int>(__brev(a));
  o[n++] = __mulhi(a, b), o[n++] = __dp4a(a, b, c), o[n++] = static_cast<int>(__byte_perm(a, b, 0x3715));
  o[n++] = static_cast<int>(__funnelshift_l(a, b, c)), o[n++] = __popcll(wide_a), o[n++] = __clzll(wide_a);
  o[n++] = static_cast<long long>(__umul64hi(wide_a, static_cast<unsigned long long>(c)));
  o[n++] = min(max(a, -100), 100), o[n++] = abs(b), o[n++] = static_cast<signed char>(a), o[n++] = static_cast<unsigned short>(b);
  o[n++] = __sad(a, b, 5);
}

void test_integers() {
  int const n = 256;
  std::vector<int> in(n + 2);
  std::uint64_t state = 88172645463325252ULL;
  for (int& x : in) {
    state ^= state << 13, state ^= state >> 7, state ^= state << 17;
    x = static_cast<int>(state) >> (state >> 60) * 2;
  }
  Buffer<int> from(in);
  Buffer<long long> out(20 * n);
  integers<<<1, n>>>(from.data(), out.data());
  auto const got = out.get();
  int bad[20] = {};
  for (int t = 0; t < n; ++t) {
    int const a = in[t], b = in[t + 1], c = in[t + 2];
    unsigned const ua = static_cast<unsigned>(a), ub = static_cast<unsigned>(b);
    long long const w = static_cast<long long>(a) * b;
    long long dot = c;
    for (int i = 0; i < 4; ++i) dot += static_cast<signed char>(ua >> (8 * i)) * static_cast<signed char>(ub >> (8 * i));
    unsigned reversed = 0, picked = 0;
    for (int i = 0; i < 32; ++i) reversed |= (ua >> i & 1) << (31 - i);
    unsigned long long const pair = static_cast<unsigned long long>(ub) << 32 | ua;
    int const selector[] = {5, 1, 7, 3};
    for (int i = 0; i < 4; ++i) picked |= (static_cast<unsigned>(pair >> (8 * selector[i])) & 255) << (8 * i);
    unsigned const shift = static_cast<unsigned>(c) & 31;
    auto const divided = [](long long x, long long y) { return y ? x / y : 7; };
    auto const rest = [](long long x, long long y) { return y ? x % y : 7; };
    long long const want[20] = {
        divided(a, b), rest(a, b), divided(w, c), rest(w, c), __builtin_popcount(ua), ua ? __builtin_clz(ua) : 32, __builtin_ffs(a),
        static_cast<int>(reversed), w >> 32, static_cast<int>(dot), static_cast<int>(picked),
        static_cast<int>(static_cast<unsigned>(pair << shift >> 32)), __builtin_popcountll(w), w ? __builtin_clzll(w) : 64,
        static_cast<long long>(static_cast<unsigned long long>(static_cast<unsigned __int128>(static_cast<unsigned long long>(w)) *
                                                               static_cast<unsigned long long>(static_cast<long long>(c)) >> 64)),
        a < -100 ? -100 : a > 100 ? 100 : a, b < 0 ? -static_cast<long long>(b) : b, static_cast<signed char>(a),
        static_cast<unsigned short>(b), static_cast<long long>(static_cast<unsigned>((a < b ? static_cast<long long>(b) - a : static_cast<long long>(a) - b) + 5))};
    for (int i = 0; i < 20; ++i) bad[i] += got[20 * t + i] != want[i];
  }
  for (int i = 0; i < 20; ++i) expect(bad[i] == 0, "integer expression " + std::to_string(i));
}

__global__ void mathematics(float const* in, float* out, double* wide_out) {
  int const t = static_cast<int>(threadIdx.x);
  float const x = in[t], p = fabsf(x) + 0.125f;
  float* const o = out + 16 * t;
  o[0] = expf(x), o[1] = logf(p), o[2] = sinf(x), o[3] = cosf(x), o[4] = tanhf(x), o[5] = powf(p, 1.5f), o[6] = erff(x), o[7] = sqrtf(p);
  o[8] = rsqrtf(p), o[9] = x / p, o[10] = fmodf(x, 0.75f), o[11] = rintf(x), o[12] = floorf(x), o[13] = ldexpf(x, 3), o[14] = exp2f(x), o[15] = log2f(p);
  double* const d = wide_out + 4 * t;
  d[0] = exp(static_cast<double>(x)), d[1] = log(static_cast<double>(p)), d[2] = sqrt(static_cast<double>(p)), d[3] = static_cast<double>(x) / p;
}

void test_mathematics() {
  int const n = 256;
  std::vector<float> in(n);
  for (int i = 0; i < n; ++i) in[i] = static_cast<float>(i - 128) / 19.0f;
  Buffer<float> from(in), out(16 * n);
  Buffer<double> wide_out(4 * n);
  mathematics<<<1, n>>>(from.data(), out.data(), wide_out.data());
  auto const got = out.get();
  auto const wide_got = wide_out.get();
  int bad[20] = {};
  for (int t = 0; t < n; ++t) {
    double const x = in[t], p = std::fabs(in[t]) + 0.125f;
    double const want[20] = {std::exp(x), std::log(p), std::sin(x), std::cos(x), std::tanh(x), std::pow(p, 1.5), std::erf(x), std::sqrt(p),
                             1 / std::sqrt(p), x / p, std::fmod(x, 0.75), std::nearbyint(x), std::floor(x), x * 8, std::exp2(x), std::log2(p),
                             std::exp(x), std::log(p), std::sqrt(p), x / p};
    for (int i = 0; i < 20; ++i) {
      double const g = i < 16 ? got[16 * t + i] : wide_got[4 * t + i - 16], near = i < 16 ? 4e-6 : 1e-14;
      bad[i] += !(std::fabs(g - want[i]) <= near * (std::fabs(want[i]) + (i == 1 || i == 15 || i == 2 || i == 3 ? 0.1 : 1e-6)));
    }
  }
  for (int i = 0; i < 20; ++i) expect(bad[i] == 0, "mathematical function " + std::to_string(i));
}

__global__ void atomics(float* f, __half2* h, unsigned long long* u, double* d) {
  atomicAdd(f, 0.5f);
  atomicAdd(h, __half2{__float2half(1.0f), __float2half(2.0f)});
  atomicMax(u, static_cast<unsigned long long>(threadIdx.x) << 33);
  atomicAdd(d, 0.25);
  atomicAdd(reinterpret_cast<__nv_bfloat16*>(h) + 2, __float2bfloat16(1.0f));
}

void test_atomics() {
  Buffer<float> f(1);
  Buffer<__half2> h(2);
  Buffer<unsigned long long> u(1);
  Buffer<double> d(1);
  atomics<<<2, 48>>>(f.data(), h.data(), u.data(), d.data());
  expect(f.get()[0] == 48 && d.get()[0] == 24 && u.get()[0] == 47ULL << 33, "atomics of floats and words");
  auto const halves_got = h.get();
  expect(__low2float(halves_got[0]) == 96 && __high2float(halves_got[0]) == 192, "atomics of halves");
  unsigned short bits;
  std::memcpy(&bits, reinterpret_cast<char const*>(halves_got.data()) + 4, 2);
  expect(bits == 0x42c0, "atomics of bf16, by compare and swap");  // 96
}

}  // namespace

int main() {
  test_calls();
  test_halves();
  test_integers();
  test_mathematics();
  test_atomics();
  return report();
}
