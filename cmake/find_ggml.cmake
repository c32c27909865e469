# kvcondense_add_ggml(<target> <directories>): an imported library of a ggml, llama.cpp or fork that the user has built: headers,
# libraries and what they need. The directories are those of its sources and of its build. Nothing of it is part of this project.

include_guard(GLOBAL)

function(kvcondense_add_ggml name)
  set(places)
  foreach(directory IN LISTS ARGN)
    list(APPEND places "${directory}" "${directory}/ggml" "${directory}/build" "${directory}/build/ggml")
  endforeach()
  find_path(header_${name} ggml.h PATHS ${places} PATH_SUFFIXES include NO_DEFAULT_PATH NO_CACHE)
  foreach(library ggml-cpu ggml-base ggml)
    find_library(${library}_${name} ${library} PATHS ${places}
      PATH_SUFFIXES lib lib64 bin src src/ggml-cpu NO_DEFAULT_PATH NO_CACHE)
  endforeach()
  # Older ones and some forks are one library.
  if(ggml-cpu_${name} AND ggml-base_${name})
    set(libraries "${ggml-cpu_${name}}" "${ggml-base_${name}}")
  else()
    set(libraries "${ggml_${name}}")
  endif()
  if(NOT header_${name} OR NOT libraries)
    message(FATAL_ERROR "kvcondense: ${name}: no ggml.h or no built library under ${ARGN}. Give the directories of its "
      "sources and of its build.")
  endif()
  add_library(${name} INTERFACE)
  target_include_directories(${name} SYSTEM INTERFACE "${header_${name}}")
  find_package(Threads REQUIRED)
  target_link_libraries(${name} INTERFACE ${libraries} Threads::Threads ${CMAKE_DL_LIBS})
  if(libraries MATCHES "\\.a(;|$)")
    # An archive does not say what it was built with.
    find_package(OpenMP QUIET COMPONENTS CXX)
    if(OpenMP_CXX_FOUND)
      target_link_libraries(${name} INTERFACE OpenMP::OpenMP_CXX)
    endif()
    target_link_options(${name} INTERFACE -Wl,--exclude-libs,ALL)
  endif()
endfunction()
