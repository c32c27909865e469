#pragma once

#include <string>
#include <vector>

#include <kvcondense/any/registry.hpp>

namespace kvcondense::test {

/// A wrapper is tried around snapkv, or around a policy whose scores last.
inline std::string with_fields(const any::Entry& e, std::string fields) {
  const std::string policy = e.room == Stage::quant ? "kivi(bits=3, group_size=8, residual_window=16)" : e.word == "global_top" ? "knorm" : "snapkv(tokens=48, window=8)";
  if (e.wraps) fields = policy + (fields.empty() ? "" : ", " + fields);
  // A merge stage folds what a policy lets go.
  // One that stores layers together looks for the same tokens in both.
  const std::string lets_go = e.word == "minicache" ? "sink_window(recent=150) + " : e.room == Stage::merge ? "h2o(heavy=60, recent=20) + " : "";
  return lets_go + std::string(e.word) + "(" + fields + ")";
}

/// Settings in which a small cache shows what each field does; several where one rules another out.
inline std::vector<std::string> stages_to_vary(const any::Entry& e) {
  const std::string word(e.word);
  if (word == "sliding_window") return {"window=40"};
  if (word == "sink_window") return {"recent=40"};
  if (word == "h2o") return {"heavy=30, recent=10"};
  if (word == "tova") return {"tokens=40"};
  if (word == "snapkv") return {"tokens=48, window=8"};
  if (word == "finch") return {"keep=40%, window=8"};
  if (word == "nacl") return {"tokens=48, window=8, recent=8, drawn=50%"};
  if (word == "knorm") return {"tokens=40, recent=8"};
  if (word == "keydiff") return {"tokens=40, recent=8"};
  if (word == "qfilters") return {"keep=40%, recent=8"};
  if (word == "lagkv") return {"sinks=4, lag=16"};
  if (word == "rkv") return {"tokens=40, window=4, kernel=3, threshold=0.1, slack=8"};
  if (word == "chunkkv") return {"tokens=48, window=8, chunk=7", "tokens=110, window=8, chunk=50", "tokens=48, window=8, chunk=7, reuse=2"};
  if (word == "global_top") return {"keep=40%"};
  if (word == "kvzip") return {"keep=40%"};  // its probes come with all inputs
  if (word == "razor_attention") return {"sinks=2, least=20, divisor=6"};
  if (word == "sirllm") return {"sinks=4, memory=40, recent=6, decay=0.5"};
  if (word == "locret") return {"tokens=60, stabilizers=20, local=10"};
  if (word == "dms") return {"window=40, scale=10, offset=2"};
  if (word == "expected_attention") return {"keep=40%"};
  if (word == "exit_threshold") return {"window=30, least=0.001"};
  if (word == "duo_attention") return {"sinks=4, recent=16"};
  if (word == "simlayerkv") return {"threshold=5%, sinks=4, recent=16"};
  if (word == "strided_blocks") return {"block=3, local=4, every=5"};
  if (word == "prefixkv") return {"distance=9"};
  if (word == "paged_h2o") return {"page=2, start=2, evictable=30, recent=10", "page=1, start=1, evictable=20, recent=4"};
  if (word == "head_table") return {"beta=2"};
  if (word == "scissorhands") return {"tokens=40, drop=8, history=20, recent=4"};
  if (word == "keyformer") return {"tokens=40, recent=8, generation=10", "tokens=150, recent=4, generation=2"};
  if (word == "alisa") return {"ratio=40%, history=8"};
  if (word == "fastgen") return {"recovery=80%, frequent=20%, local=20%, profile=40", "recovery=80%, frequent=0%, local=20%, profile=40"};
  if (word == "chunked") return {"chunk=7", "chunk=20"};
  if (word == "page_round") return {"page=4"};
  if (word == "uniform") return {"tokens=40"};
  if (word == "xkv") return {"keep=20%, value_keep=20%, layers=2, least=20"};
  if (word == "kvmerger") return {"least=0.05, window=8, sinks=2", "least=0.05, window=8, keep=50%"};
  if (word == "dmc") return {"window=3, init=0.5"};
  if (word == "cam") return {"targets=4"};
  if (word == "kvcrush") return {"share=50%", "share=50%, block=3"};
  if (word == "keepkv") return {"least=0.05"};
  if (word == "ems") return {"window=8, least=0.001"};
  if (word == "tome") return {"tokens=50, slack=4, sinks=2, recent=8"};
  if (word == "centroid") return {"tokens=50, chunk=12, slack=4, sinks=2, recent=8"};
  if (word == "hadamard") return {"spread_offsets=true", ""};
  if (word == "qjl") return {"first_layers=1"};
  if (word == "group_int") return {"", "residual_window=10"};
  if (word == "bit_allocation") return {"", "layout=kivi"};
  if (word == "boundary_layers") return {"first=1, last=1"};
  if (word == "fp8") return {"", "scale=block", "scale=tensor"};
  if (word == "eigen_attention" || word == "lorc") return {"rule=energy", "rule=part"};
  if (word == "ratio") return {"keep=0.2", "keep=0.01, min_keep=30"};
  if (word == "quest") return {"tokens=32, dense_layers=0"};
  if (word == "lserve") return {"page=8, part=4, tokens=40"};
  if (word == "kinetics") return {"block=8, blocks=2, sinks=2, local=10, dense_layers=0"};
  if (word == "triforce") return {"chunk=4, tokens=40"};
  if (word == "landmark") return {"tokens=7, blocks=2"};
  if (word == "retrieval_attention") return {"tokens=12, sinks=2, local=6, degree=2, beam=6, hubs=3, hub_keys=2"};
  if (word == "pqcache") return {"bits=3, sinks=4"};
  if (word == "a2ats") return {"share=10%, sinks=2, local=8"};
  if (word == "squeezed") return {"clusters=30%, observe=10", "clusters=30%, coarse=10%, observe=10", "clusters=5%, observe=10"};
  if (word == "sparq") return {"tokens=20, channels=2", "channels=8"};
  if (word == "infinigen") return {"dense_layers=0", "dense_layers=0, share=100%", "dense_layers=0, alpha=1000"};
  if (word == "rocketkv") return {"page=4, tokens=24, channels=4"};
  if (word == "alisa_window") return {"ratio=30%, history=4"};
  if (word == "infllm") return {"block=8, blocks=2, init=4, local=16, representatives=2"};
  if (word == "rekv") return {"frame=8, frames=2, init=2"};
  if (word == "magicpig") return {"sinks=2, local=8, dense_every=0"};
  if (word == "shadow_select") return {"chunk=4, tokens=16, outliers=2, local_chunks=2"};
  if (e.room == Stage::position && !e.fields.empty()) {
    std::vector<std::string> ropes{"", "scaling=linear, factor=4", "scaling=llama3, factor=4",
                                   "scaling=yarn, factor=4"};
    if (e.field("length") != nullptr)
      ropes.emplace_back("scaling=dynamic_ntk, factor=4, length=20000");
    return ropes;
  }
  return {""};
}

}  // namespace kvcondense::test
