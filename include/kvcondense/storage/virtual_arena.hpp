#pragma once

// POSIX only (mmap), so no umbrella header brings this one.
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <utility>

#include <kvcondense/core/buffer.hpp>
#include <kvcondense/core/expected.hpp>
#include <kvcondense/core/policy.hpp>
#include <kvcondense/core/status.hpp>

namespace kvcondense::storage {

/// Reserves addresses for the longest sequence and maps memory only behind what is used.
///
/// Idea     a cache that grows in place stays one contiguous array for every kernel, and needs no page table;
///          the machine's own page table gives and takes the memory behind it.
/// Source   vAttention, arXiv:2405.04437, with mmap in place of the device's virtual memory calls.
/// Needs    a POSIX host.
/// Shapes   bytes; commit and decommit act on whole pages.
/// Cost     a system call per call that changes something.
/// Numbers  committed bytes are zero until they are written, and again after they were decommitted.
/// Differs  the authors' small pages need a changed driver; here pages are the host's.
/// Errors   out_of_range: beyond what is reserved; out_of_memory: the system said no. Nothing changes then.
class VirtualArena {
 public:
  static constexpr Descriptor about{"virtual_arena", Stage::storage, "arXiv:2405.04437"};

  VirtualArena() = default;
  VirtualArena(VirtualArena&& o) noexcept { swap(o); }
  VirtualArena& operator=(VirtualArena&& o) noexcept {
    VirtualArena gone(std::move(o));
    swap(gone);
    return *this;
  }
  VirtualArena(const VirtualArena&) = delete;
  VirtualArena& operator=(const VirtualArena&) = delete;
  ~VirtualArena() {
    if (data_ != nullptr) ::munmap(data_, bytes_);
  }

  /// Addresses for `bytes`, rounded up to pages; no memory yet.
  static Expected<VirtualArena> reserve(std::size_t bytes, MemoryResource<Cpu>& tables = heap_memory()) {
    if (bytes == 0 || bytes > std::numeric_limits<std::size_t>::max() / 2) return Status::invalid_argument;
    VirtualArena a;
    a.page_ = static_cast<std::size_t>(::sysconf(_SC_PAGESIZE));
    const std::size_t pages = (bytes + a.page_ - 1) / a.page_;
    a.mapped_ = Buffer<std::uint8_t>(tables);
    if (const Status s = a.mapped_.resize(static_cast<index_t>(pages), 0); s != Status::ok) return s;
    void* p = ::mmap(nullptr, pages * a.page_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) return Status::out_of_memory;
    a.data_ = static_cast<std::byte*>(p);
    a.bytes_ = pages * a.page_;
    return a;
  }

  std::byte* data() const { return data_; }
  std::size_t bytes() const { return bytes_; }
  std::size_t page_bytes() const { return page_; }
  std::size_t committed() const { return committed_; }
  bool is_committed(std::size_t at) const { return at < bytes_ && mapped_[static_cast<index_t>(at / page_)] != 0; }

  /// Memory behind every page that [first, first + count) touches; what was there stays as it is.
  Status commit(std::size_t first, std::size_t count) {
    if (first > bytes_ || count > bytes_ - first) return Status::out_of_range;
    if (count == 0) return Status::ok;
    return each_run(first / page_, (first + count - 1) / page_ + 1, 0, [&](std::size_t at, std::size_t n) {
      return ::mprotect(data_ + at, n, PROT_READ | PROT_WRITE) == 0;
    });
  }

  /// Gives back every page that lies wholly in [first, first + count): its bytes are gone.
  Status decommit(std::size_t first, std::size_t count) {
    if (first > bytes_ || count > bytes_ - first) return Status::out_of_range;
    const std::size_t begin = (first + page_ - 1) / page_, end = (first + count) / page_;
    if (end <= begin) return Status::ok;
    return each_run(begin, end, 1, [&](std::size_t at, std::size_t n) {
      return ::madvise(data_ + at, n, MADV_DONTNEED) == 0 && ::mprotect(data_ + at, n, PROT_NONE) == 0;
    });
  }

 private:
  /// Calls change(byte, bytes) for each run of pages whose mark is `mark`, and turns the marks it managed.
  template <class Change>
  Status each_run(std::size_t begin, std::size_t end, std::uint8_t mark, Change&& change) {
    for (std::size_t p = begin; p < end;) {
      if (mapped_[static_cast<index_t>(p)] != mark) {
        ++p;
        continue;
      }
      std::size_t stop = p;
      while (stop < end && mapped_[static_cast<index_t>(stop)] == mark) ++stop;
      if (!change(p * page_, (stop - p) * page_)) return Status::out_of_memory;
      std::fill(mapped_.begin() + p, mapped_.begin() + stop, static_cast<std::uint8_t>(1 - mark));
      const std::size_t n = (stop - p) * page_;
      committed_ = mark == 0 ? committed_ + n : committed_ - n;
      p = stop;
    }
    return Status::ok;
  }

  void swap(VirtualArena& o) noexcept {
    std::swap(data_, o.data_), std::swap(bytes_, o.bytes_), std::swap(page_, o.page_), std::swap(committed_, o.committed_);
    mapped_.swap(o.mapped_);
  }

  std::byte* data_ = nullptr;
  std::size_t bytes_ = 0, page_ = 1, committed_ = 0;
  Buffer<std::uint8_t> mapped_;
};

/// What pages of `page_bytes` mean for one tensor (keys or values of one layer) and for all of them.
struct VirtualPages {
  index_t page_bytes = 2 << 20;
  index_t layers = 1;
  index_t kv_heads = 1;
  index_t head_dim = 64;
  index_t number_bytes = 2;

  constexpr index_t token_bytes() const { return kv_heads * head_dim * number_bytes; }
  constexpr index_t tokens_per_page() const { return page_bytes / token_bytes(); }
  /// Where all layers of a token lie in one tensor.
  constexpr index_t tokens_per_page_all_layers() const { return page_bytes / (token_bytes() * layers); }
  /// Keys and values of every layer grow by one page at once.
  constexpr index_t pages_per_growth() const { return 2 * layers; }
  constexpr index_t bytes_per_growth() const { return pages_per_growth() * page_bytes; }
  constexpr index_t pages(index_t tokens) const { return (tokens * token_bytes() + page_bytes - 1) / page_bytes; }
  /// Addresses of one request in one tensor.
  constexpr index_t request_bytes(index_t longest) const { return pages(longest) * page_bytes; }
  constexpr index_t reserved_bytes(index_t requests, index_t longest) const {
    return requests * request_bytes(longest) * 2 * layers;
  }
  constexpr double used(index_t tokens) const {
    return static_cast<double>(tokens * token_bytes()) / static_cast<double>(pages(tokens) * page_bytes);
  }
};

/// Rows of requests that grow in place, each a contiguous array of its own: [requests, longest, row_bytes].
///
/// What a finished request leaves mapped stays so and serves the next one; `trim` gives it back. One thread.
class VirtualRows {
 public:
  static Expected<VirtualRows> make(index_t requests, index_t longest, index_t row_bytes, MemoryResource<Cpu>& tables = heap_memory()) {
    if (requests < 1 || longest < 1 || row_bytes < 1 || row_bytes > (index_t{1} << 46) / longest / requests) return Status::invalid_argument;
    VirtualRows v;
    v.row_bytes_ = row_bytes, v.longest_ = longest;
    const auto page = static_cast<index_t>(::sysconf(_SC_PAGESIZE));
    v.stride_ = (longest * row_bytes + page - 1) / page * page;
    v.requests_ = Buffer<Request>(tables);
    if (const Status s = v.requests_.resize(requests); s != Status::ok) return s;
    auto arena = VirtualArena::reserve(static_cast<std::size_t>(v.stride_ * requests), tables);
    if (!arena) return arena.status();
    v.arena_ = std::move(*arena);
    return v;
  }

  /// A place for a new request that will soon have `tokens` rows: the free one whose mapped memory fits best.
  Expected<index_t> open(index_t tokens) {
    if (tokens < 0 || tokens > longest_) return Status::out_of_range;
    const index_t need = tokens * row_bytes_;
    index_t best = -1;
    for (index_t r = 0; r < requests_.size(); ++r) {
      if (requests_[r].open) continue;
      const auto cost = [&](index_t i) {  // first what must be mapped, then what lies idle
        const index_t have = requests_[i].mapped;
        return std::pair{std::max<index_t>(need - have, 0), have};
      };
      if (best < 0 || cost(r) < cost(best)) best = r;
    }
    if (best < 0) return Status::out_of_memory;
    if (const Status s = map(best, need); s != Status::ok) return s;
    requests_[best].open = true;
    requests_[best].tokens = tokens;
    return best;
  }

  /// Room for `tokens` rows; fewer than before only forgets.
  Status resize(index_t request, index_t tokens) {
    if (!is_open(request) || tokens < 0 || tokens > longest_) return Status::out_of_range;
    if (const Status s = map(request, tokens * row_bytes_); s != Status::ok) return s;
    requests_[request].tokens = tokens;
    return Status::ok;
  }
  /// The request is over; its memory waits for the next one.
  Status close(index_t request) {
    if (!is_open(request)) return Status::out_of_range;
    requests_[request].open = false;
    requests_[request].tokens = 0;
    return Status::ok;
  }
  /// Gives back what no row needs, of closed requests first, the last place first, until at most `bytes` are mapped.
  Status trim(std::size_t bytes) {
    for (const bool open : {false, true})
      for (index_t r = requests_.size(); r-- > 0 && arena_.committed() > bytes;) {
        Request& q = requests_[r];
        if (q.open != open) continue;
        const index_t page = static_cast<index_t>(arena_.page_bytes());
        const index_t keep = (q.tokens * row_bytes_ + page - 1) / page * page;
        if (q.mapped <= keep) continue;
        if (const Status s = arena_.decommit(static_cast<std::size_t>(r * stride_ + keep), static_cast<std::size_t>(q.mapped - keep)); s != Status::ok)
          return s;
        q.mapped = keep;
      }
    return Status::ok;
  }

  bool is_open(index_t request) const { return request >= 0 && request < requests_.size() && requests_[request].open; }
  index_t tokens(index_t request) const { return requests_[request].tokens; }
  std::byte* data(index_t request) const { return arena_.data() + request * stride_; }
  index_t row_bytes() const { return row_bytes_; }
  std::size_t committed() const { return arena_.committed(); }
  std::size_t reserved() const { return arena_.bytes(); }

 private:
  struct Request {
    index_t mapped = 0, tokens = 0;
    bool open = false;
  };

  Status map(index_t request, index_t bytes) {
    Request& q = requests_[request];
    if (bytes <= q.mapped) return Status::ok;
    if (const Status s = arena_.commit(static_cast<std::size_t>(request * stride_ + q.mapped), static_cast<std::size_t>(bytes - q.mapped)); s != Status::ok)
      return s;
    const index_t page = static_cast<index_t>(arena_.page_bytes());
    q.mapped = (bytes + page - 1) / page * page;
    return Status::ok;
  }

  VirtualArena arena_;
  Buffer<Request> requests_;
  index_t row_bytes_ = 0, longest_ = 0, stride_ = 0;
};

}  // namespace kvcondense::storage
