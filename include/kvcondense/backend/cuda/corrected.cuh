#pragma once

#include <cstddef>
#include <cstdint>

#include <kvcondense/backend/cuda/block.cuh>
#include <kvcondense/backend/cuda/group_bits.cuh>
#include <kvcondense/backend/cuda/low_rank.cuh>
#include <kvcondense/backend/cuda/page_codec.cuh>
#include <kvcondense/backend/cuda/row_codec.cuh>
#include <kvcondense/prim/corrected.hpp>

// Codes of a chunk of slots with what corrects them: a product of low rank and outliers.

namespace kvcondense::prim {

/// Corrected codes of groups, of rows of one size, as kernels take them: widths, groups and numbers of outliers are numbers that they learn when they run.
/// One of dim 0 takes no rows: `DeviceForm` makes it of a codec that is not valid, or whose codes are of another form, rounding or layout.
struct CorrectedForm {
  std::int16_t dim = 0, chunk = 1;
  std::int16_t scale_slots = 1, scale_channels = 1;  ///< of a group of codes
  std::int16_t outliers = 0;                         ///< of a vector, of both ends together
  std::int8_t bits = 2, rank = 0, loops = 1;
  ParamType params = ParamType::f16;
  GroupAxis axis = GroupAxis::channel;  ///< of vectors

  KVCONDENSE_HD constexpr bool corrects() const { return rank > 0 || outliers > 0; }
  KVCONDENSE_HD constexpr int vectors() const { return axis == GroupAxis::channel ? dim : chunk; }
  KVCONDENSE_HD constexpr int vector_size() const { return axis == GroupAxis::channel ? chunk : dim; }
  KVCONDENSE_HD constexpr int outlier_count() const { return vectors() * outliers; }
  KVCONDENSE_HD constexpr bool wide() const { return vector_size() > 256; }  ///< places of two bytes
  KVCONDENSE_HD constexpr int scales() const { return dim / scale_channels; }
  KVCONDENSE_HD constexpr int corrections_at(int slots) const {
    const int rows = (slots * ((dim * bits + 7) / 8) + 3) / 4 * 4, groups = (slots + scale_slots - 1) / scale_slots;
    return rows + groups * 2 * scales() * static_cast<int>(size_of(params));
  }
  // Of the corrections of a chunk.
  KVCONDENSE_HD constexpr int b_at() const { return 2 * rank * chunk; }
  KVCONDENSE_HD constexpr int addends_at() const { return 2 * rank * (chunk + dim); }
  KVCONDENSE_HD constexpr int places_at() const { return addends_at() + 2 * outlier_count(); }
  KVCONDENSE_HD constexpr int places_end() const { return places_at() + outlier_count() * (wide() ? 2 : 1); }
  KVCONDENSE_HD constexpr int chunk_bytes() const { return (places_end() + 3) / 4 * 4; }

  constexpr std::size_t page_bytes(index_t slots, index_t) const {
    const int n = static_cast<int>(slots);
    return static_cast<std::size_t>(corrections_at(n) + (n + chunk - 1) / chunk * chunk_bytes());
  }
  constexpr index_t group_slots() const { return chunk; }
  constexpr bool valid(index_t n) const { return n == dim; }
  constexpr std::int64_t fingerprint() const {
    std::int64_t f = 0;
    for (const int field : {int{dim}, int{chunk}, int{scale_slots}, int{scale_channels}, int{outliers}, int{bits}, int{rank}, int{loops}, static_cast<int>(params), static_cast<int>(axis)})
      f = mix_fingerprints(f, field);
    return f;
  }
};

template <int Bits>
struct DeviceForm<Corrected<GroupInt<Bits>>> {
  using Codec = Corrected<GroupInt<Bits>>;
  using type = CorrectedForm;
  static index_t floats(const Codec&, index_t) { return 0; }
  static void fill(const Codec&, index_t, float*) {}
  static bool reads(const GroupInt<Bits>& c) { return c.form == GroupForm::minimum && c.rounding == Rounding::half_even && c.layout == CodeLayout::rows; }
  static type of(const Codec& c, const float*, index_t, index_t dim) {
    if (!c.valid(dim) || !reads(c.codec)) return {};
    const auto small = [](index_t n) { return static_cast<std::int16_t>(n); };
    return {small(dim), small(c.chunk), small(c.codec.group_slots()), small(c.codec.group_channels(dim)), small(2 * c.each_end(dim)), Bits,
            static_cast<std::int8_t>(c.rank), static_cast<std::int8_t>(c.loops), c.codec.params, c.axis};
  }
};
/// A chunk of one slot would have to move with it, in more pieces than SlotBytes has.
template <int Bits>
struct CodecTable<Corrected<GroupInt<Bits>>> {
  static bool serves(const Corrected<GroupInt<Bits>>& c) { return c.chunk > 1 && DeviceForm<Corrected<GroupInt<Bits>>>::reads(c.codec); }
};

namespace cuda_kernels {

template <>
inline constexpr bool codes_groups<CorrectedForm> = true;
template <>
inline constexpr int group_blocks<CorrectedForm> = 2;  // a chunk lies in shared memory

/// A chunk is coded in shared memory; what is read is the number at (slot, channel): code, then direction after direction, then an outlier's addend.
template <>
struct RowPage<CorrectedForm> {
  using Factors = ThinFactors<channel_threads>;

  CorrectedForm codec;
  std::byte* data;
  int slots, dim;

  __device__ RowPage(const CorrectedForm& c, std::byte* page, int page_slots, int row) : codec(c), data(page), slots(page_slots), dim(row) {}
  __device__ BitRows codes() const {
    return {data, slots, dim, codec.bits, codec.scale_slots, codec.scale_channels, codec.scales(), codec.params};
  }
  /// Of the chunk that a slot belongs to.
  __device__ std::byte* corrections(int slot) const { return data + codec.corrections_at(slots) + slot / codec.chunk * codec.chunk_bytes(); }

  __device__ float value(int slot, int c) const {
    const std::byte* const at = corrections(slot);
    const int in = slot % codec.chunk;
    float x = codes().value(slot, c);
    for (int j = 0; j < codec.rank; ++j)
      x = __fadd_rn(x, __fmul_rn(read_number(DType::f16, at, j * codec.chunk + in), read_number(DType::f16, at + codec.b_at(), j * dim + c)));
    const bool channel = codec.axis == GroupAxis::channel;
    const int outlier = find(at, channel ? c : in, channel ? in : c);
    return outlier < 0 ? x : __fadd_rn(x, read_number(DType::f16, at + codec.addends_at(), outlier));
  }

  struct GroupScratch {
    cuda::BlockScratch<float, channel_threads> most;
    ChannelShared codes;

    __device__ float* behind() { return reinterpret_cast<float*>(this + 1); }
  };
  /// Behind it in shared memory: a chunk of rows, the factors of its error, and of every vector smallest and largest number and mean. With chunks of a cache all is
  /// below 90 KiB, in a join below 91; chunks of more slots than rows have numbers may want more than a device has, which `launch` refuses.
  static std::size_t behind(const CorrectedForm& c) {
    return static_cast<std::size_t>(c.chunk * Factors::step_for(c.dim) + c.rank * (c.chunk + c.dim) + 3 * c.vectors()) * sizeof(float);
  }
  template <class Rows>
  __device__ int encode_group(int slot, const Rows& rows, int begin, GroupScratch& s) const {
    const int step = Factors::step_for(dim), chunk = codec.chunk, lane = cuda::lane_of_warp();
    float* const block = s.behind();
    const Factors factors{block, block + chunk * step, block + chunk * step + codec.rank * chunk, chunk, dim, step, codec.rank};
    float* const vectors = factors.b + codec.rank * dim;
    std::byte* const to = corrections(slot);
    int bad = 0;
    for (int i = cuda::warp_of_block(); i < chunk; i += warps) {
      const auto x = rows.row(begin + i);
      for (int c = lane; c < dim; c += cuda::warp_lanes) block[i * step + c] = x(c);
    }
    __syncthreads();
    if (codec.corrects()) {
      for (int v = cuda::warp_of_block(); v < codec.vectors(); v += warps) bad += take_outliers(v, rows.counted, block, step, vectors + 3 * v, to);
      __syncthreads();
    }
    const int coded = encode_codes(slot, Block<Rows::counted>{block, step}, s.codes);  // in every thread
    if (codec.corrects()) {
      __syncthreads();
      correct(slot, rows, begin, factors, vectors, s.most, bad);
    }
    return coded + cuda::block_sum<int, channel_threads>(bad, s.codes.sums);
  }

 private:
  static constexpr int warps = channel_threads / cuda::warp_lanes;

  /// Rows of a chunk in shared memory.
  template <bool Counted>
  struct Block {
    static constexpr bool counted = Counted;
    const float* rows;
    int step;

    __device__ auto row(int i) const {
      const float* const x = rows + i * step;
      return [x](int c) { return x[c]; };
    }
  };

  __device__ int place(const std::byte* corrections, int outlier) const {
    const std::byte* const at = corrections + codec.places_at();
    return codec.wide() ? reinterpret_cast<const std::uint16_t*>(at)[outlier] : static_cast<int>(at[outlier]);
  }
  __device__ void put_place(std::byte* corrections, int outlier, int place) const {
    std::byte* const at = corrections + codec.places_at();
    if (codec.wide()) reinterpret_cast<std::uint16_t*>(at)[outlier] = static_cast<std::uint16_t>(place);
    else at[outlier] = static_cast<std::byte>(place);
  }
  /// The outlier at a place of a vector, or -1. Places of a vector ascend, as encoders write them; of a damaged one that do not, some are not found.
  __device__ int find(const std::byte* corrections, int vector, int where) const {
    int low = vector * codec.outliers, high = low + codec.outliers;
    const int end = high;
    while (low < high) {
      const int middle = (low + high) / 2;
      if (place(corrections, middle) < where) low = middle + 1;
      else high = middle;
    }
    return low < end && place(corrections, low) == where ? low : -1;
  }
  /// Row and channel of number i of a vector.
  __device__ int row_of(int vector, int i) const { return codec.axis == GroupAxis::channel ? i : vector; }
  __device__ int channel_of(int vector, int i) const { return codec.axis == GroupAxis::channel ? vector : i; }
  /// What is coded instead of x in a vector with these ends.
  __device__ static float repaired(float x, const float* ends) {
    const float y = without_nan(x);
    return y < ends[0] ? ends[0] : y > ends[1] ? ends[1] : y;
  }

  /// A vector in shared memory, by a warp: numbers are repaired, the ends get its mean. What is known of it goes into `known`, places of outliers into the page. How
  /// many were repaired, of this lane's. Doubles are added in another order than on the host, so a mean as near to the middle between two floats as their rounding
  /// may become the other one.
  __device__ int take_outliers(int vector, bool counted, float* block, int step, float* known, std::byte* to) const {
    const int n = codec.vector_size(), lane = cuda::lane_of_warp();
    const auto number = [&](int i) -> float& { return block[row_of(vector, i) * step + channel_of(vector, i)]; };
    int bad = 0;
    const GroupRange range = warp_range(number, 0, n, counted, bad);
    const float ends[2] = {range.lo <= range.hi ? range.lo : 0.0f, range.lo <= range.hi ? range.hi : 0.0f};
    double sum = 0.0;
    for (int i = lane; i < n; i += cuda::warp_lanes) {
      number(i) = repaired(number(i), ends);
      sum += static_cast<double>(number(i));
    }
    const auto mean = static_cast<float>(cuda::warp_sum(sum) / static_cast<double>(n));
    if (lane == 0) known[0] = ends[0], known[1] = ends[1], known[2] = mean;
    std::uint32_t taken = 0;  // of this lane's numbers: vectors have at most 1024
    const auto take = [&]<bool Largest>() {
      for (int k = 0; k < codec.outliers / 2; ++k) {
        const int i = first_extreme<Largest>(n, [&](int j) { return (taken >> j / cuda::warp_lanes & 1u) != 0; }, number);
        if (i % cuda::warp_lanes == lane) taken |= 1u << i / cuda::warp_lanes;
      }
    };
    take.template operator()<true>();
    take.template operator()<false>();
    int before = vector * codec.outliers;
    for (int k = 0; codec.outliers > 0 && k * cuda::warp_lanes < n; ++k) {
      const bool mine = (taken >> k & 1u) != 0;
      const unsigned all = __ballot_sync(cuda::full_warp, static_cast<int>(mine));
      if (mine) {
        put_place(to, before + __popc(all & ((1u << lane) - 1u)), k * cuda::warp_lanes + lane);
        number(k * cuda::warp_lanes + lane) = mean;
      }
      before += __popc(all);
    }
    return bad;
  }

  /// Codes of the rows of a chunk. How many parameters were cut, and numbers repaired, in every thread.
  template <class Rows>
  __device__ int encode_codes(int slot, const Rows& rows, ChannelShared& s) const {
    const BitRows page = codes();
    if (page.channels == 1 && page.group > 1) {
      int bad = 0;
      for (int i = 0; i < codec.chunk; i += page.group) bad += encode_channels(page, slot + i, rows, i, s);
      return bad;
    }
    int bad = 0;
    for (int i = cuda::warp_of_block(); i < codec.chunk; i += warps) {
      bad += encode_groups(page, slot + i, rows, i, s.codes[cuda::warp_of_block()]);
      __syncwarp();  // its codes have been read
    }
    return cuda::block_sum<int, channel_threads>(cuda::lane_of_warp() == 0 ? bad : 0, s.sums);
  }

  /// What codes leave of the chunk becomes a product of low rank, what both leave of outliers their addends. A barrier in front of it.
  template <class Rows>
  __device__ void correct(int slot, const Rows& rows, int begin, const Factors& left, const float* known, cuda::BlockScratch<float, channel_threads>& most, int& bad) const {
    const BitRows page = codes();
    std::byte* const to = corrections(slot);
    for (int i = cuda::warp_of_block(); i < codec.chunk; i += warps)
      for (int c = cuda::lane_of_warp(); c < dim; c += cuda::warp_lanes) left.x[i * left.step + c] -= page.value(slot + i, c);
    __syncthreads();
    const auto each_outlier = [&](auto&& f) {
      for (int e = static_cast<int>(threadIdx.x); e < codec.outlier_count(); e += channel_threads) {
        const int v = e / codec.outliers, i = place(to, e);
        f(e, known + 3 * v, row_of(v, i), channel_of(v, i));
      }
    };
    each_outlier([&](int, const float*, int i, int c) { left.x[i * left.step + c] = 0.0f; });
    const auto put = [&](std::byte* at, int e, float x) {
      bool saturated = false;
      const float kept = stored(ParamType::f16, x, saturated);
      write_number(DType::f16, at, e, kept);
      bad += static_cast<int>(saturated);
      return kept;
    };
    if (codec.rank > 0) {
      left.fit(codec.loops, most);
      for (int e = static_cast<int>(threadIdx.x); e < codec.rank * codec.chunk; e += channel_threads) left.a[e] = put(to, e, left.a[e]);
      for (int e = static_cast<int>(threadIdx.x); e < codec.rank * dim; e += channel_threads) left.b[e] = put(to + codec.b_at(), e, left.b[e]);
      __syncthreads();
    }
    each_outlier([&](int e, const float* of, int i, int c) {
      float x = repaired(rows.row(begin + i)(c), of) - of[2];
      x += of[2] - page.value(slot + i, c);
      for (int j = 0; j < codec.rank; ++j) x = __fadd_rn(x, -__fmul_rn(left.a[j * codec.chunk + i], left.b[j * dim + c]));
      put(to + codec.addends_at(), e, x);
    });
    for (int i = codec.places_end() + static_cast<int>(threadIdx.x); i < codec.chunk_bytes(); i += channel_threads) to[i] = std::byte{};  // goes into files
  }
};

}  // namespace cuda_kernels
}  // namespace kvcondense::prim
