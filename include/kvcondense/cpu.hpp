#pragma once

// Everything that runs on the host: the words of the CPU backend, and the cache.
#include <kvcondense/backend/cpu/attend.hpp>
#include <kvcondense/backend/cpu/attend_columns.hpp>
#include <kvcondense/backend/cpu/block_codes.hpp>
#include <kvcondense/backend/cpu/block_top_k.hpp>
#include <kvcondense/backend/cpu/chunk_pool.hpp>
#include <kvcondense/backend/cpu/chunk_top_k.hpp>
#include <kvcondense/backend/cpu/column_pool.hpp>
#include <kvcondense/backend/cpu/context.hpp>
#include <kvcondense/backend/cpu/exact_rows.hpp>
#include <kvcondense/backend/cpu/group_quant.hpp>
#include <kvcondense/backend/cpu/lag_spread.hpp>
#include <kvcondense/backend/cpu/open_blocks.hpp>
#include <kvcondense/backend/cpu/query_columns.hpp>
#include <kvcondense/backend/cpu/rope.hpp>
#include <kvcondense/backend/cpu/row_direction.hpp>
#include <kvcondense/backend/cpu/row_norm.hpp>
#include <kvcondense/backend/cpu/row_redundancy.hpp>
#include <kvcondense/backend/cpu/slot_exposure.hpp>
#include <kvcondense/backend/cpu/slot_numbers.hpp>
#include <kvcondense/backend/cpu/slot_rows.hpp>
#include <kvcondense/backend/cpu/top_k.hpp>
#include <kvcondense/cache/cache.hpp>
#include <kvcondense/cache/snapshot.hpp>
#include <kvcondense/kvcondense.hpp>
