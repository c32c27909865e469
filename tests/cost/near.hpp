#pragma once

#include <catch2/catch.hpp>
#include <nlohmann/json.hpp>

namespace kvcondense::test {

/// A worked case's number, which is written with twelve digits.
inline Approx near(const nlohmann::json& x) { return Approx(x.get<double>()).epsilon(1e-11).margin(1e-30); }

}  // namespace kvcondense::test
