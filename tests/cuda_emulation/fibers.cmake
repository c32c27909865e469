# Kernels as host C++: see CMakeLists.txt, which includes this.

add_library(kvcondense_cuda_fibers INTERFACE)
target_compile_definitions(kvcondense_cuda_fibers INTERFACE KVCONDENSE_CUDA_FIBERS)
target_compile_options(kvcondense_cuda_fibers INTERFACE -Wno-unknown-pragmas)  # #pragma unroll
target_include_directories(kvcondense_cuda_fibers INTERFACE "${kvcondense_SOURCE_DIR}/tests")

# Dozens of caches in a file, and words of every type: what optimization saves when they run is less than what it takes.
set(joined ${sources})
set(plain ${sources})
list(FILTER joined INCLUDE REGEX "/cache_[a-z_]+_test[.]cpp$")
list(REMOVE_ITEM plain ${joined})
kvcondense_join_tests(cuda joined 4)
kvcondense_join_tests(cuda_words plain 4)
set(optimized -O1)
if(KVCONDENSE_SANITIZE)  # what sanitizers add is optimized for minutes
  set(optimized -O0)
endif()
set_source_files_properties(${joined} ${plain} PROPERTIES COMPILE_OPTIONS ${optimized})
add_executable(cuda_fibers_test fibers/fibers_test.cpp ${plain} ${joined})
target_include_directories(cuda_fibers_test PRIVATE "${cuda_tests}")
target_compile_definitions(cuda_fibers_test PRIVATE KVCONDENSE_TEST_DATA="${kvcondense_SOURCE_DIR}/tests")
target_link_libraries(cuda_fibers_test PRIVATE kvcondense kvcondense_any Catch2::Catch2 kvcondense_build kvcondense_warnings
  kvcondense_catch_main kvcondense_cuda_fibers)
catch_discover_tests(cuda_fibers_test TEST_PREFIX "${prefix}/fibers/"
  EXTRA_ARGS --warn NoTests PROPERTIES TIMEOUT 900)
if(KVCONDENSE_TEST_CUDA_SWEEP)
  catch_discover_tests(cuda_fibers_test TEST_SPEC "[sweep]" TEST_PREFIX "${prefix}/fibers/"
    EXTRA_ARGS --warn NoTests PROPERTIES TIMEOUT 900)
endif()

# Does the emulation find bugs? Three builds, whatever the sanitizers of the whole build are. The kernel of attention
# is tried too.
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
endif()

