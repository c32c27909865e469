#pragma once

#include <memory>
#include <optional>

#include <engine/output_projections.hpp>
#include <eval/bases_file.hpp>
#include <eval/heads_file.hpp>
#include <kvcondense/any/model_facts.hpp>

namespace eval {

/// What this evaluation knows of the model; what a dump or the options do not say is not there. Caches borrow
/// the arrays: whoever keeps a cache keeps a copy of this.
struct Facts {
  std::optional<kvcondense::prim::RopeConfig> rope;
  std::shared_ptr<const HeadsFile> heads;
  std::shared_ptr<const engine::OutputProjections> output;
  std::shared_ptr<const BasesFile> bases;

  kvcondense::any::ModelFacts for_recipes() const {
    kvcondense::any::ModelFacts facts;
    if (rope) facts.rope = *rope;
    if (output != nullptr) facts.output = output->view();
    if (bases != nullptr) facts = bases->add_to(facts);
    return heads == nullptr ? facts : heads->add_to(facts);
  }
};

}  // namespace eval
