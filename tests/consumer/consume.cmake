# Configures, builds and runs one consumer project from nothing:
#   cmake -D KIND=installed|subdirectory|fetched -D TREE=<source> -D BUILT=<build tree>
#         -D WORK=<scratch> -D CXX=<compiler> -D GENERATOR=<generator> -P consume.cmake

function(run)
  execute_process(COMMAND ${ARGN} COMMAND_ECHO STDOUT RESULT_VARIABLE code)
  if(NOT code EQUAL 0)
    message(FATAL_ERROR "${KIND}: exit ${code}")
  endif()
endfunction()

file(REMOVE_RECURSE "${WORK}")
set(options -DCMAKE_CXX_COMPILER=${CXX} -DKVCONDENSE_TREE=${TREE})
set(programs app)
if(KIND STREQUAL "installed")
  run("${CMAKE_COMMAND}" --install "${BUILT}" --prefix "${WORK}/prefix")
  list(APPEND options "-DCMAKE_PREFIX_PATH=${WORK}/prefix")
  list(APPEND programs app_any)
endif()
run("${CMAKE_COMMAND}" -G "${GENERATOR}" -S "${CMAKE_CURRENT_LIST_DIR}/${KIND}" -B "${WORK}/build"
  ${options})
run("${CMAKE_COMMAND}" --build "${WORK}/build" --target ${programs})
foreach(program IN LISTS programs)
  run("${WORK}/build/${program}")
endforeach()
file(REMOVE_RECURSE "${WORK}")
