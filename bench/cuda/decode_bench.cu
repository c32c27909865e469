// Decode attention on a device: one layer, one token, 32 query heads over 8 KV heads of 128
// numbers, pages of 64 slots as f16 and as codes of 8, 4 and 2 bits. First the device's bandwidth
// when memory is only read. A table:
//
//   us      of a call: the median of rounds, in which all rows take turns, and the least and most.
//   Several calls, one
//           behind the other in a graph, over layers that share nothing; a cache full of other
//           things before.
//   floor   the time to read what the layer's pages hold at the bandwidth that was measured
//   share   the floor over the median
//
//   error   of AttendMath::halves against f32 over the same pages, relative, root mean square; the
//   program fails above 1e-2
//
// Beside pages a call reads lists of runs, and writes and reads the workspace; the floor has
// neither. Pages hold random bits.
//
//   decode_bench [--sizes BATCHxCONTEXT,...] [--only NAME] [--math halves|f32] [--rounds N]
//   [--bytes N] [--flush N] [--in-order]
//
//   --bytes    that the calls of a graph read together, at least; --flush: that are read in
//   between, 8 times the second cache if not given
//   --in-order pages lie in the order of their slots, else anywhere

#include <charconv>
#include <cstring>
#include <string_view>

#include "paged_layers.cuh"

namespace {

using namespace bench;

struct Options {
  std::vector<Size> sizes{{16, 32768}, {64, 8192}, {4, 131072}, {1, 131072}, {1, 4096}};
  std::string_view only;
  prim::AttendMath math = prim::AttendMath::halves;
  int rounds = 21;
  std::size_t bytes = std::size_t{256} << 20, flush = 0;
  bool in_order = false;
};

[[noreturn]] void refuse(std::string_view what) {
  std::fprintf(stderr, "decode_bench: %.*s\n", static_cast<int>(what.size()), what.data());
  std::exit(2);
}
template <class N>
N number(std::string_view text) {
  N n{};
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), n);
  if (error != std::errc() || end != text.data() + text.size() || n < N{1})
    refuse("a number above 0 is wanted");
  return n;
}
std::vector<Size> sizes_of(std::string_view text) {
  std::vector<Size> sizes;
  while (!text.empty()) {
    const std::string_view one = text.substr(0, text.find(','));
    text.remove_prefix(std::min(text.size(), one.size() + 1));
    const std::size_t x = one.find('x');
    if (x == one.npos) refuse("--sizes wants 16x32768,1x4096");
    sizes.push_back({number<index_t>(one.substr(0, x)), number<index_t>(one.substr(x + 1))});
    if (sizes.back().context % page_slots != 0) refuse("a context is a multiple of 64");
  }
  return sizes;
}
Options options_of(int argc, char** argv) {
  Options o;
  for (int i = 1; i < argc; ++i) {
    const std::string_view name = argv[i];
    if (name == "--in-order") {
      o.in_order = true;
      continue;
    }
    if (i + 1 == argc) refuse("an option without a value, or unknown");
    const std::string_view value = argv[++i];
    if (name == "--sizes")
      o.sizes = sizes_of(value);
    else if (name == "--only")
      o.only = value;
    else if (name == "--math" && (value == "halves" || value == "f32"))
      o.math = value == "f32" ? prim::AttendMath::f32 : prim::AttendMath::halves;
    else if (name == "--rounds")
      o.rounds = number<int>(value);
    else if (name == "--bytes")
      o.bytes = number<std::size_t>(value);
    else if (name == "--flush")
      o.flush = number<std::size_t>(value);
    else
      refuse("an option without a value, or unknown");
  }
  if (o.flush == 0) o.flush = 8 * static_cast<std::size_t>(attribute(cudaDevAttrL2CacheSize));
  return o;
}

void print_device() {
  cudaDeviceProp p{};
  int driver = 0, runtime = 0, device = 0;
  must(cudaGetDevice(&device), "cudaGetDevice");
  must(cudaGetDeviceProperties(&p, device), "cudaGetDeviceProperties");
  must(cudaDriverGetVersion(&driver), "cudaDriverGetVersion");
  must(cudaRuntimeGetVersion(&runtime), "cudaRuntimeGetVersion");
  const double bus = 2e3 * attribute(cudaDevAttrMemoryClockRate) * p.memoryBusWidth / 8;
  std::printf(
      "%s, %d.%d, %d multiprocessors, %d MB second cache, %.0f GB/s by its bus, CUDA %d, driver "
      "%d\n\n",
      p.name, p.major, p.minor, p.multiProcessorCount, p.l2CacheSize >> 20, 1e-9 * bus, runtime,
      driver);
}

/// How far both kinds of arithmetic are apart over a layer.
double compare(Context<Cuda>& ctx, Layers& layers) {
  layers.attend(ctx, 0, prim::AttendMath::halves);
  const std::vector<float> halves = layers.outputs(ctx);
  layers.attend(ctx, 0, prim::AttendMath::f32);
  const std::vector<float> exact = layers.outputs(ctx);
  double size = 0, apart = 0;
  for (std::size_t i = 0; i < exact.size(); ++i) {
    const double x = static_cast<double>(exact[i]), d = static_cast<double>(halves[i]) - x;
    size += x * x, apart += d * d;
  }
  const double error = std::sqrt(apart / size);
  if (error <= 1e-2) return error;  // not so of NaN
  std::fprintf(stderr, "%s, %lld x %lld: halves and f32 are %g apart\n", layers.name(),
               static_cast<long long>(layers.size().batch),
               static_cast<long long>(layers.size().context), error);
  std::exit(1);
}

struct Row {
  std::unique_ptr<Layers> layers;
  Graph graph;
  double error;
  Times us;
};

}  // namespace

int main(int argc, char** argv) {
  const Options o = options_of(argc, argv);
  print_device();
  cudaStream_t stream = nullptr;
  must(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "cudaStreamCreateWithFlags");
  Expected<Context<Cuda>> made = Context<Cuda>::make(stream);
  must(made.status(), "Context");
  Context<Cuda>& ctx = *made;

  std::size_t bytes = o.bytes;
  const auto each_row = [&](auto&& use) {
    each_format([&](const auto& format) {
      for (const Size& s : o.sizes)
        if (o.only.empty() || o.only == format.name) use(format, s);
    });
  };
  each_row([&](const auto& format, const Size& s) {
    bytes = std::max(bytes, format.memory(s, o.bytes));
  });
  Memory memory(ctx, bytes);
  Clock clock(ctx, o.flush);
  const Graph reading(ctx, [&] { memory.read(ctx); });
  Times read;
  std::vector<Row> rows;
  each_row([&](const auto& format, const Size& s) {
    auto layers = std::make_unique<Layers>(ctx, memory, format, s, o.bytes, o.in_order);
    const double error = compare(ctx, *layers);
    Graph graph(ctx, [&] {
      for (int l = 0; l < layers->count(); ++l) layers->attend(ctx, l, o.math);
    });
    rows.push_back({std::move(layers), std::move(graph), error, {}});
  });
  if (rows.empty()) refuse("no row is left");
  for (int round = -1; round < o.rounds; ++round) {  // the first one warms up
    const double r = clock.time(reading);
    if (round >= 0) read.all.push_back(r);
    for (Row& row : rows) {
      const double t = clock.time(row.graph) / row.layers->count();
      if (round >= 0) row.us.all.push_back(t);
    }
  }

  const double per_us = static_cast<double>(memory.bytes()) / read.median();  // bytes
  std::printf("only read: %.1f MB in %.1f us (%.1f to %.1f), %.0f GB/s\n\n",
              1e-6 * static_cast<double>(memory.bytes()), read.median(), read.least(), read.most(),
              1e-3 * per_us);
  std::printf(
      "| pages | batch | context | MB | workspace MB | calls | us | least | most | GB/s | floor | "
      "share | error |\n");
  std::printf("|---|---|---|---|---|---|---|---|---|---|---|---|---|\n");
  for (Row& row : rows) {
    Layers& l = *row.layers;
    const double held = static_cast<double>(l.layer_bytes()), us = row.us.median();
    std::printf(
        "| %s | %lld | %lld | %.1f | %.1f | %d | %.2f | %.2f | %.2f | %.0f | %.2f | %.0f%% | %.1e "
        "|\n",
        l.name(), static_cast<long long>(l.size().batch), static_cast<long long>(l.size().context),
        1e-6 * held, 1e-6 * static_cast<double>(l.workspace_bytes()), l.count(), us, row.us.least(),
        row.us.most(), 1e-3 * held / us, held / per_us, 100 * held / per_us / us, row.error);
  }
  return 0;
}
