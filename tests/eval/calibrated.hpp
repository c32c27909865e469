#pragma once

#include <fstream>
#include <string>

#include <eval/bases_file.hpp>
#include <eval/calibrate.hpp>
#include <eval/error.hpp>

#include "dump_files.hpp"

namespace eval::test {

inline const CacheShape tinylm{.layers = 4, .q_heads = 6, .kv_heads = 2, .head_dim = 64};

inline Options tiny(const std::string& method) {
  Options o;
  o.model = KVCONDENSE_SOURCE_DIR "/examples/models/tinylm";
  o.context = 128, o.windows = 2, o.documents = 0, o.jobs = 1, o.rounds = 0;
  o.quiet = true, o.calibrate = true;
  o.calibration.method = method, o.calibration.steps = 20;
  return o;
}

/// A file that goes when the test does.
struct Saved : TempFile {
  Saved(const std::string& bytes, const char* name) : TempFile(name) { std::ofstream(path(), std::ios::binary) << bytes; }
};

inline std::string complaint(const std::string& path, const CacheShape& shape = tinylm) {
  try {
    (void)read_bases({path}, shape);
  } catch (const Error& e) {
    return std::string(e.what()).substr(path.size());
  }
  return "";
}

}  // namespace eval::test
