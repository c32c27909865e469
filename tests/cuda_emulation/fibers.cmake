# Kernels as host C++: see CMakeLists.txt, which includes this.

add_library(kvcondense_cuda_fibers INTERFACE)
target_compile_definitions(kvcondense_cuda_fibers INTERFACE KVCONDENSE_CUDA_FIBERS)
target_compile_options(kvcondense_cuda_fibers INTERFACE -Wno-unknown-pragmas)  # #pragma unroll
target_include_directories(kvcondense_cuda_fibers INTERFACE "${kvcondense_SOURCE_DIR}/tests")

# Dozens of caches in a file, and words of every type: optimization takes longer than it saves when they run. Of most caches, which run for a few
# seconds, any does; those named here run for longer, and so does the sweep.
set(longer faults merge position taught)
list(JOIN longer "|" longer)
set(joined ${sources})
set(plain ${sources})
list(FILTER joined INCLUDE REGEX "/cache_[a-z_]+_test[.]cpp$")
list(REMOVE_ITEM plain ${joined})
set(quick)
if(NOT KVCONDENSE_TEST_CUDA_SWEEP)
  set(quick ${joined})
  list(FILTER quick EXCLUDE REGEX "/cache_(${longer})_test[.]cpp$")
  list(REMOVE_ITEM joined ${quick})
  kvcondense_join_tests(cuda_quick quick 4)
  set_source_files_properties(${quick} PROPERTIES COMPILE_OPTIONS -O0)
endif()
kvcondense_join_tests(cuda joined 4)
kvcondense_join_tests(cuda_words plain 4)
set(optimized -O1)
if(KVCONDENSE_SANITIZE)  # what sanitizers add is optimized for minutes
  set(optimized -O0)
endif()
set_source_files_properties(${joined} ${plain} PROPERTIES COMPILE_OPTIONS ${optimized})
add_executable(cuda_fibers_test fibers/fibers_test.cpp ${plain} ${joined} ${quick})
target_include_directories(cuda_fibers_test PRIVATE "${cuda_tests}")
target_compile_definitions(cuda_fibers_test PRIVATE KVCONDENSE_TEST_DATA="${kvcondense_SOURCE_DIR}/tests")
target_link_libraries(cuda_fibers_test PRIVATE kvcondense kvcondense_any Catch2::Catch2 kvcondense_build kvcondense_warnings
  kvcondense_catch_main kvcondense_cuda_fibers)
catch_discover_tests(cuda_fibers_test TEST_PREFIX "${prefix}/fibers/"
  EXTRA_ARGS --warn NoTests PROPERTIES TIMEOUT 900)
# One cache of each kind again, with threads and blocks in another order and copies that land at once.
catch_discover_tests(cuda_fibers_test TEST_SPEC "[ways]" TEST_PREFIX "${prefix}/fibers_ways/"
  EXTRA_ARGS --warn NoTests PROPERTIES TIMEOUT 900 ENVIRONMENT "KVCONDENSE_FIBERS=3,eager")
if(KVCONDENSE_TEST_CUDA_SWEEP)
  catch_discover_tests(cuda_fibers_test TEST_SPEC "[sweep]" TEST_PREFIX "${prefix}/fibers/"
    EXTRA_ARGS --warn NoTests PROPERTIES TIMEOUT 900)
endif()

# What the wrappers of the dialect do, compared with conformance.txt.
set(conformance "${cuda_tests}/conformance")
add_executable(cuda_conformance "${conformance}/conformance.cpp")
target_link_libraries(cuda_conformance PRIVATE kvcondense kvcondense_build kvcondense_warnings kvcondense_cuda_fibers)
add_test(NAME "${prefix}/conformance" COMMAND "${Python3_EXECUTABLE}" "${conformance}/conformance.py" $<TARGET_FILE:cuda_conformance>
  --include "${kvcondense_SOURCE_DIR}/include" --fibers)
set_tests_properties("${prefix}/conformance" PROPERTIES TIMEOUT 300)

# Kernels of words, of a cache with codes, of pieces of attention and of captured calls under sanitizers, every time; the presets asan and tsan build all
# tests so.
if(NOT KVCONDENSE_SANITIZE)
  set(watched cache_codes capture pieces words)
  list(TRANSFORM watched REPLACE "(.+)" "${cuda_tests}/\\1_test.cpp")
  kvcondense_join_tests(cuda_watched watched 2)
  add_executable(cuda_fibers_address ${watched})
  target_include_directories(cuda_fibers_address PRIVATE "${cuda_tests}")
  target_compile_definitions(cuda_fibers_address PRIVATE KVCONDENSE_TEST_DATA="${kvcondense_SOURCE_DIR}/tests")
  target_compile_options(cuda_fibers_address PRIVATE -O0 -g1 -fsanitize=address,undefined -fno-sanitize-recover=undefined)
  target_link_options(cuda_fibers_address PRIVATE -fsanitize=address,undefined)
  target_link_libraries(cuda_fibers_address PRIVATE kvcondense kvcondense_any Catch2::Catch2 kvcondense_build kvcondense_warnings
    kvcondense_catch_main kvcondense_cuda_fibers)
  add_test(NAME "${prefix}/fibers_address" COMMAND cuda_fibers_address)
  set_tests_properties("${prefix}/fibers_address" PROPERTIES TIMEOUT 900)
endif()

# Does the emulation find bugs? Three builds, whatever the sanitizers of the whole build are. Kernels of attention
# are tried too.
function(kvcondense_planted kind source)
  add_executable(cuda_planted_${kind} planted/${source})
  target_link_libraries(cuda_planted_${kind} PRIVATE kvcondense kvcondense_cuda_fibers kvcondense_warnings)
  target_compile_options(cuda_planted_${kind} PRIVATE -O1 -g1 ${ARGN})
  target_link_options(cuda_planted_${kind} PRIVATE ${ARGN})
  add_test(NAME "${prefix}/planted_${kind}" COMMAND "${Python3_EXECUTABLE}"
    "${CMAKE_CURRENT_SOURCE_DIR}/planted/planted.py" $<TARGET_FILE:cuda_planted_${kind}> ${kind})
  set_tests_properties("${prefix}/planted_${kind}" PROPERTIES TIMEOUT 600)
endfunction()
if(NOT KVCONDENSE_SANITIZE)
  kvcondense_planted(plain planted.cpp)
  kvcondense_planted(address planted.cpp -fsanitize=address,undefined)
  kvcondense_planted(thread planted.cpp -fsanitize=thread)
  kvcondense_planted(attend_address attend.cpp -fsanitize=address,undefined)
  kvcondense_planted(attend_thread attend.cpp -fsanitize=thread)
  foreach(kind IN ITEMS address thread)
    target_include_directories(cuda_planted_attend_${kind} BEFORE PRIVATE "${overlay}")
    add_dependencies(cuda_planted_attend_${kind} cuda_planted_overlay)
  endforeach()

  # Does the comparison find wrong wrappers?
  set(wrong "${CMAKE_CURRENT_BINARY_DIR}/wrong_dialect")
  file(GLOB fiber_headers CONFIGURE_DEPENDS "${CMAKE_CURRENT_SOURCE_DIR}/fibers/*.hpp")
  add_custom_command(OUTPUT "${wrong}/cuda_emulation/fibers/dialect.hpp"
    COMMAND "${Python3_EXECUTABLE}" "${conformance}/planted.py" write "${CMAKE_CURRENT_SOURCE_DIR}/fibers" "${wrong}/cuda_emulation/fibers"
    DEPENDS "${conformance}/planted.py" ${fiber_headers})
  add_executable(cuda_planted_conformance "${conformance}/conformance.cpp" "${wrong}/cuda_emulation/fibers/dialect.hpp")
  target_link_libraries(cuda_planted_conformance PRIVATE kvcondense kvcondense_build kvcondense_warnings kvcondense_cuda_fibers)
  target_include_directories(cuda_planted_conformance BEFORE PRIVATE "${wrong}")
  add_test(NAME "${prefix}/planted_conformance" COMMAND "${Python3_EXECUTABLE}" "${conformance}/planted.py" check
    $<TARGET_FILE:cuda_planted_conformance> --include "${kvcondense_SOURCE_DIR}/include")
  set_tests_properties("${prefix}/planted_conformance" PROPERTIES TIMEOUT 300)
endif()
