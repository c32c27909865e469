# Configures, builds and runs one consumer project from nothing:
#   cmake -D KIND=installed|subdirectory|fetched -D TREE=<source> -D BUILT=<build tree>
#         -D WORK=<scratch> -D CXX=<compiler> -D "FLAGS=<options>" -D GENERATOR=<generator> -D SAME=<program> -P consume.cmake
# Its program must print the digest that SAME prints: the same selections and codes, whatever it was compiled with.

function(run)
  execute_process(COMMAND ${ARGN} COMMAND_ECHO STDOUT ECHO_OUTPUT_VARIABLE OUTPUT_VARIABLE text RESULT_VARIABLE code)
  if(NOT code EQUAL 0)
    message(FATAL_ERROR "${KIND}: exit ${code}")
  endif()
  string(REGEX MATCH "digest [0-9a-f]+" text "${text}")
  set(digest "${text}" PARENT_SCOPE)
endfunction()

file(REMOVE_RECURSE "${WORK}")
set(options -DCMAKE_CXX_COMPILER=${CXX} "-DCMAKE_CXX_FLAGS=${FLAGS}" -DKVCONDENSE_TREE=${TREE})
set(programs app)
if(KIND STREQUAL "installed")
  run("${CMAKE_COMMAND}" --install "${BUILT}" --prefix "${WORK}/prefix")
  list(APPEND options "-DCMAKE_PREFIX_PATH=${WORK}/prefix")
  list(APPEND programs app_any)
endif()
run("${CMAKE_COMMAND}" -G "${GENERATOR}" -S "${CMAKE_CURRENT_LIST_DIR}/${KIND}" -B "${WORK}/build"
  ${options})
run("${CMAKE_COMMAND}" --build "${WORK}/build" --target ${programs})
run("${SAME}")
set(same "${digest}")
run("${WORK}/build/app")
if(NOT same OR NOT digest STREQUAL same)
  message(FATAL_ERROR "${KIND}, compiled by ${CXX} with '${FLAGS}': ${digest}, where ${SAME} says ${same}")
endif()
if(KIND STREQUAL "installed")
  run("${WORK}/build/app_any")
endif()
file(REMOVE_RECURSE "${WORK}")
