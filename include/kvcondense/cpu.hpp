#pragma once

// Everything that runs on the host. The kvcondense headers of methods may be included before or after.
#include <kvcondense/backend/cpu/attend.hpp>
#include <kvcondense/backend/cpu/context.hpp>
#include <kvcondense/backend/cpu/exact_rows.hpp>
#include <kvcondense/backend/cpu/slot_rows.hpp>
#include <kvcondense/cache/cache.hpp>
#include <kvcondense/kvcondense.hpp>
