# kvcondense_ptx, the interpreter, and
#
#   kvcondense_ptx_test(<name> <sources...> [CUDA <more sources, of any ending, for nvcc>...]
#     [EAGER] [CATCH] [NO_TEST] [BEFORE <folder of headers>] [NEEDS <made files>...] [OPTIONS <nvcc options>...] [LINK <libraries>...])
#
# A program whose .cu files nvcc compiles unchanged and whose kernels run on the CPU, registered as
# the CTest entry ptx/<name>. EAGER adds ptx/<name>_eager, where streams run at once. CATCH: the
# program's tests are Catch2's, and each is an entry. NO_TEST: the caller says how it runs. BEFORE: headers that take the
# place of others. Without nvcc the function does nothing.

include_guard(GLOBAL)
include(CheckCXXCompilerFlag)

set(kvcondense_ptx_dir "${CMAKE_CURRENT_LIST_DIR}" CACHE INTERNAL "")

# No contraction: a product and a sum that PTX keeps apart stay apart. The machine's own
# instructions: lanes are loops that vectorize.
check_cxx_compiler_flag(-march=native KVCONDENSE_HAS_MARCH_NATIVE)
add_library(kvcondense_ptx STATIC
  counters.cpp lexer.cpp machine.cpp memory.cpp names.cpp numbers.cpp opcodes.cpp operands.cpp
  ops_approximate.cpp ops_atomic.cpp ops_bits.cpp ops_compare.cpp ops_convert.cpp ops_copy.cpp
  ops_float.cpp ops_flow.cpp ops_half.cpp ops_integer.cpp ops_matrix.cpp ops_memory.cpp
  ops_move.cpp ops_warp.cpp parser.cpp program.cpp shared_memory.cpp warp.cpp)
target_include_directories(kvcondense_ptx PUBLIC "${kvcondense_ptx_dir}")
target_compile_features(kvcondense_ptx PUBLIC cxx_std_20)
set(kvcondense_ptx_options -O3 -ffp-contract=off -fno-strict-aliasing)
if(KVCONDENSE_HAS_MARCH_NATIVE)
  list(APPEND kvcondense_ptx_options -march=native)
endif()
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
  list(APPEND kvcondense_ptx_options -Wno-restrict)  # false alarms of GCC 12 over std::string
endif()
target_compile_options(kvcondense_ptx PRIVATE ${kvcondense_ptx_options})
target_link_libraries(kvcondense_ptx PRIVATE kvcondense_warnings PUBLIC kvcondense_build)
set_source_files_properties(ops_float.cpp PROPERTIES COMPILE_OPTIONS -frounding-math)

if(NOT KVCONDENSE_CUDA STREQUAL "OFF")
  find_program(KVCONDENSE_PTX_NVCC nvcc HINTS ENV CUDA_PATH ENV CUDA_HOME /usr/local/cuda
    PATH_SUFFIXES bin DOC "nvcc for the tests that run PTX on the CPU")
  mark_as_advanced(KVCONDENSE_PTX_NVCC)
endif()
if(KVCONDENSE_PTX_NVCC)
  get_filename_component(kvcondense_nvcc_bin "${KVCONDENSE_PTX_NVCC}" REALPATH)
  get_filename_component(kvcondense_nvcc_bin "${kvcondense_nvcc_bin}" DIRECTORY)
  find_path(kvcondense_ptx_toolkit_dir cuda_runtime_api.h
    HINTS "${kvcondense_nvcc_bin}/../include" "${kvcondense_nvcc_bin}/../targets/x86_64-linux/include")
  mark_as_advanced(kvcondense_ptx_toolkit_dir)
endif()
if(kvcondense_ptx_toolkit_dir)
  add_library(kvcondense_ptx_runtime STATIC runtime_device.cpp runtime_launch.cpp
    runtime_memory.cpp runtime_state.cpp runtime_stream.cpp)
  target_include_directories(kvcondense_ptx_runtime SYSTEM PUBLIC "${kvcondense_ptx_toolkit_dir}")
  target_compile_options(kvcondense_ptx_runtime PRIVATE ${kvcondense_ptx_options})
  target_link_libraries(kvcondense_ptx_runtime PUBLIC kvcondense_ptx PRIVATE kvcondense_warnings)
else()
  message(STATUS "kvcondense: no nvcc; programs are not tested as PTX")
endif()

function(kvcondense_ptx_test name)
  cmake_parse_arguments(arg "EAGER;CATCH;NO_TEST" "BEFORE" "CUDA;NEEDS;OPTIONS;LINK" ${ARGN})
  if(NOT TARGET kvcondense_ptx_runtime)
    return()
  endif()
  set(includes ${arg_BEFORE} "${kvcondense_SOURCE_DIR}/include" "${kvcondense_SOURCE_DIR}/tests" "${kvcondense_ptx_dir}")
  if(arg_CATCH)
    list(APPEND includes "$<TARGET_PROPERTY:Catch2::Catch2,INTERFACE_INCLUDE_DIRECTORIES>")
  endif()
  set(for_nvcc ${arg_CUDA})
  set(inputs)
  foreach(source IN LISTS arg_UNPARSED_ARGUMENTS)
    if(source MATCHES "\\.cu$")
      list(APPEND for_nvcc "${source}")
    else()
      list(APPEND inputs "${source}")
    endif()
  endforeach()
  # -O0 is for what the host runs; kernels become PTX as ever, and their interpreter is a library.
  foreach(source IN LISTS for_nvcc)
    get_filename_component(path "${source}" ABSOLUTE)
    get_filename_component(stem "${source}" NAME_WE)
    set(object "${CMAKE_CURRENT_BINARY_DIR}/${name}_${stem}.o")
    add_custom_command(OUTPUT "${object}"
      COMMAND "${KVCONDENSE_PTX_NVCC}" -std=c++20 -O0 -lineinfo -cudart none --no-compress
        -gencode arch=compute_80,code=compute_80 -Xcompiler=-ffp-contract=off
        ${arg_OPTIONS} "-I$<JOIN:$<REMOVE_DUPLICATES:${includes}>,;-I>"
        -MD -MF "${object}.d" -x cu -c "${path}" -o "${object}"
      DEPENDS "${path}" ${arg_NEEDS} DEPFILE "${object}.d" VERBATIM COMMAND_EXPAND_LISTS
      COMMENT "nvcc, to PTX: ${stem}")
    list(APPEND inputs "${object}")
  endforeach()
  add_executable(${name} ${inputs})
  set_target_properties(${name} PROPERTIES LINKER_LANGUAGE CXX)
  target_link_libraries(${name} PRIVATE kvcondense_ptx_runtime ${arg_LINK})
  if(arg_NO_TEST)
    return()
  endif()
  if(arg_CATCH)
    target_link_libraries(${name} PRIVATE Catch2::Catch2 kvcondense_catch_main)
    catch_discover_tests(${name} TEST_PREFIX "${KVCONDENSE_TEST_PREFIX}ptx/${name}/"
      EXTRA_ARGS --warn NoTests PROPERTIES TIMEOUT 300)
    return()
  endif()
  set(entry "${KVCONDENSE_TEST_PREFIX}ptx/${name}")
  add_test(NAME "${entry}" COMMAND ${name})
  set_tests_properties("${entry}" PROPERTIES TIMEOUT 300)
  if(arg_EAGER)
    add_test(NAME "${entry}_eager" COMMAND ${name})
    set_tests_properties("${entry}_eager" PROPERTIES TIMEOUT 300 ENVIRONMENT PTX_EMULATION_EAGER=1)
  endif()
endfunction()
