#pragma once

// The methods of the library. A backend (kvcondense/cpu.hpp or kvcondense/cuda.cuh) makes them run.
#include <kvcondense/cache/recipe.hpp>
#include <kvcondense/evict/chunkkv.hpp>
#include <kvcondense/evict/h2o.hpp>
#include <kvcondense/evict/keep_all.hpp>
#include <kvcondense/evict/keydiff.hpp>
#include <kvcondense/evict/knorm.hpp>
#include <kvcondense/evict/lagkv.hpp>
#include <kvcondense/evict/observed_attention.hpp>
#include <kvcondense/evict/rkv.hpp>
#include <kvcondense/evict/sink_window.hpp>
#include <kvcondense/evict/sliding_window.hpp>
#include <kvcondense/evict/snapkv.hpp>
#include <kvcondense/evict/tova.hpp>
#include <kvcondense/position/absolute.hpp>
#include <kvcondense/position/reindex.hpp>
#include <kvcondense/position/rerotate.hpp>
#include <kvcondense/quant/fp8.hpp>
#include <kvcondense/quant/ggml.hpp>
#include <kvcondense/quant/group_int.hpp>
#include <kvcondense/quant/kivi.hpp>
#include <kvcondense/quant/mx.hpp>
#include <kvcondense/quant/nvfp4.hpp>
#include <kvcondense/version.hpp>
