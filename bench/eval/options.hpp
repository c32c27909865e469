#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include <eval/ask.hpp>
#include <kvcondense/core/config.hpp>
#include <kvcondense/core/shape.hpp>

namespace eval {

using kvcondense::index_t;

/// What quantizers are told of a model.
struct QuantProbe {
  index_t level_bits = 4;    ///< of kvquant's levels
  double outliers = 0.01;    ///< part of a key channel outside of its thresholds
  index_t clusters = 4;      ///< groups of channels of a head, of skvq
  double mean_width = 3;     ///< bits of a number in the mean, of bit_allocation
  index_t width_group = 32;  ///< numbers that share a scale where widths are compared
  index_t queries = 64;      ///< whose outputs widths are compared by, the newest
};

/// How `identify-heads` looks at a model.
struct HeadProbe {
  std::string out;        ///< where the tables go
  index_t segment = 0;    ///< random tokens that repeat; 0: 2500, or as many as the model was made for
  index_t repeats = 4;
  index_t sinks = 64;     ///< what a head without a gate sees: these,
  index_t recent = 256;   ///< and these
  double l1 = 0.05;       ///< weight of the mean gate
  index_t steps = 2000;   ///< of the search for gates, at most
  double evict = 0.5;     ///< part of all tokens at which layers are compared
  QuantProbe quant{};     ///< what quantizers are told
};

/// What `plan` asks the cost models.
struct PlanRequest {
  std::string model_shape, gpu;
  double of_16_bit = 0;      ///< one more column: a cache of this part of 16 bits; 0: none
  index_t generated = 250;   ///< tokens of an answer
  index_t rounds = 3;        ///< of a dialogue
  index_t devices = 1;
  index_t weight_bits = 16;
  index_t on_chip = 192;     ///< KiB of fast memory
};

/// What `calibrate` makes of a model.
struct Calibration {
  std::string method = "pca";
  std::string out;               ///< where the bases go
  std::string keys;              ///< rotated or raw; empty: as the method was published
  std::string weighing = "whitening";  ///< of weight_svd: plain, asvd or whitening
  bool center = false;           ///< pca: whether the mean is taken off
  bool aware = false;            ///< pca: whether key directions suit queries
  index_t kv_heads = 0;          ///< kv_heads_svd: heads that are left; 0: half of them
  bool paired = false;           ///< kv_heads_svd: whether the basis of keys commutes with their rotation
  std::string checkpoint;        ///< kv_heads_svd: where the model goes with the bases in its weights; empty: nowhere
  double keep = 0.4;             ///< part of all numbers: what cskv is fitted for, and what rank tables hold
  index_t tile = 8;              ///< ranks of tables are multiples of it
  index_t steps = 0;             ///< of a training; 0: as many as the method needs
  index_t stages = 21;           ///< of commvq's books
  index_t words = 64;            ///< of a stage
  index_t codes = 4096;          ///< a2ats: centroids of a head's keys
  index_t distance = 2048;       ///< a2ats: at which queries compare them
  index_t tables = 150;          ///< of magicpig's planes
  index_t bits = 10;             ///< planes of a table
};

/// What `suite` runs.
struct SuiteRequest {
  std::string recipes_file;      ///< a recipe a line
  std::vector<double> shares;    ///< of the bytes of keys and values in 16 bits, that holes are sized for
  index_t needles = 2;           ///< documents of a cell of the needle grid; 0: none
  index_t depths = 5;            ///< of the grid
  index_t lengths = 3;           ///< of the grid: the context, half of it, ...
  index_t dialogues = 2;         ///< documents of the life cycle; 0: none
  index_t keys = 8;              ///< values of each
  index_t plans = 1;             ///< long answers by a plan; 0: none
  index_t lines = 24;            ///< of a plan
  index_t texts = 2;             ///< texts that are continued; 0: none
  index_t continued = 128;       ///< tokens of a continuation
  bool induction = true;         ///< whether the written model is asked
  std::vector<std::string> join; ///< nothing runs: what earlier runs wrote becomes one
  std::string out = ".";         ///< where suite.json, suite.md and the pictures go
};

/// What `tune` searches for.
struct TuneRequest {
  double bytes_per_token = 0;   ///< that a cache may take at the end of a context; 0: by share
  double share = 0;             ///< the same in percent of keys and values in 16 bits
  index_t best = 5;             ///< recipes that are reported
  index_t keep = 4;             ///< one in so many goes on to the next rung
  index_t turn = 4;             ///< the best so many get their knobs turned
  index_t questions = 8;        ///< values that are asked for in the last rung, those with the longest context
  double recall_weight = 0.1;   ///< nats that lost recall counts
};

/// What the command line says.
struct Options {
  std::string command;  ///< the command line, ready to paste into a shell, without folders of ours

  std::string model, qkv;         ///< one of the two
  std::string model_name;         ///< what reports call the model; empty: `model` as it was given
  std::string text, ids, recall;  ///< beside a model
  std::string heads;              ///< tables of `identify-heads` for recipes
  std::vector<std::string> bases; ///< files of `calibrate` for recipes
  std::vector<std::string> recipes;

  index_t context = 2048;  ///< tokens of one window
  index_t prefill = 0;     ///< of them fed at once; 0: half
  index_t chunk = 1024;    ///< most tokens of one prefill pass
  index_t last_pass = 0;   ///< tokens at the end of a prefill that are a question behind it
  index_t windows = 2;
  index_t documents = 8;
  Ask ask = Ask::stream;   ///< when documents ask
  index_t question = 24;   ///< tokens before a value that ask for it
  index_t rounds = 8;  ///< of the timing; 0: none
  index_t jobs = 0;    ///< threads; 0: as many as the machine has
  index_t page_slots = kvcondense::CacheShape{}.page_slots;  ///< of every cache
  std::uint64_t seed = 1;

  std::string json, plot, dump, dump_qkv;
  bool quiet = false;
  bool list = false;
  std::string about;  ///< a word to describe
  bool identify = false;  ///< the subcommand identify-heads
  HeadProbe probe;
  bool planning = false;  ///< the subcommand plan
  PlanRequest plan;
  bool run_suite = false;  ///< the subcommand suite
  SuiteRequest suite;
  bool calibrate = false;  ///< the subcommand calibrate
  Calibration calibration;
  bool tuning = false;  ///< the subcommand tune
  TuneRequest tune;
};

/// How main() goes on after the command line was read.
struct Parsed {
  Options options;
  std::string help;       ///< when not empty (help or version): print it and end well
  std::string complaint;  ///< when not empty: a usage error in one line
};

/// Reads the command line; the subcommand `demo` fills in what the demo runs.
Parsed parse_options(int argc, const char* const* argv);

/// Recipes that show each family once, with room for a quarter of `context` slots.
std::vector<std::string> default_recipes(index_t context);

}  // namespace eval
