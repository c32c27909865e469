# kvcondense_warnings: how this project's own programs are compiled. Never part of the interface.

add_library(kvcondense_warnings INTERFACE)
target_compile_options(kvcondense_warnings INTERFACE
  $<$<COMPILE_LANG_AND_ID:CXX,GNU,Clang,AppleClang>:-Wall;-Wextra;-Wpedantic;-Wshadow;-Wconversion>)
if(KVCONDENSE_WERROR)
  target_compile_options(kvcondense_warnings INTERFACE
    $<$<COMPILE_LANG_AND_ID:CXX,GNU,Clang,AppleClang>:-Werror>)
endif()

# kvcondense_build: sanitizers and the machine's own instructions, for everything compiled here.
add_library(kvcondense_build INTERFACE)
if(KVCONDENSE_NATIVE)
  target_compile_options(kvcondense_build INTERFACE $<$<COMPILE_LANGUAGE:CXX>:-march=native>)
endif()
if(KVCONDENSE_FUZZ)
  target_compile_options(kvcondense_build INTERFACE $<$<COMPILE_LANGUAGE:CXX>:-fsanitize=fuzzer-no-link>)
endif()
if(KVCONDENSE_SANITIZE)
  target_compile_options(kvcondense_build INTERFACE
    $<$<COMPILE_LANGUAGE:CXX>:-fsanitize=${KVCONDENSE_SANITIZE};-fno-omit-frame-pointer>
    $<$<COMPILE_LANGUAGE:CXX>:-fno-sanitize-recover=all>)
  target_link_options(kvcondense_build INTERFACE -fsanitize=${KVCONDENSE_SANITIZE})
endif()
