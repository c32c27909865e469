#include <kvcondense/any/tools.hpp>

#include <kvcondense/cost/deployment.hpp>
#include <kvcondense/cost/flexgen.hpp>
#include <kvcondense/cost/io_bound.hpp>
#include <kvcondense/cost/kinetics_law.hpp>
#include <kvcondense/cost/roofline.hpp>

namespace kvcondense::any {

namespace {

constexpr Tool all[] = {
    tool<cost::Deployment>("Tells users per device, prefill, decode and switching times of a model with long contexts."),
    tool<cost::Roofline>("Tells whether arithmetic or memory limits each operation of a layer, and its least time."),
    tool<cost::IoBound>("Tells how many numbers any exact attention must move between memory and chip."),
    tool<cost::FlexGen>("Tells how fast a model runs whose weights, cache and activations are spread over device, host and disk."),
    tool<cost::KineticsLaw>("Tells what long answers cost in arithmetic and in memory traffic together, dense and with few slots."),
};

}  // namespace

std::span<const Tool> tools() { return all; }

const Tool* find_tool(std::string_view word) {
  for (const Tool& t : all)
    if (t.word == word) return &t;
  return nullptr;
}

}  // namespace kvcondense::any
