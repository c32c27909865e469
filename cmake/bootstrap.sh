#!/usr/bin/env bash
# Everything a bare Debian 12 needs, then one job:
#
#   bash cmake/bootstrap.sh deps   install what is missing
#   bash cmake/bootstrap.sh demo   build the evaluation tool and run it on the shipped model
#   bash cmake/bootstrap.sh test   build and run every test, a part of them under ASan and UBSan
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

jobs="$(nproc 2>/dev/null || echo 2)"

say() { printf '\n== %s\n' "$*"; }

as_root() {
  if [ "$(id -u)" -eq 0 ]; then
    "$@"
  elif command -v sudo >/dev/null; then
    sudo "$@"
  else
    echo "bootstrap: '$*' needs root: run it yourself, or install sudo" >&2
    return 1
  fi
}

# need PACKAGE FILE-OR-COMMAND: notes the package when what it brings is not there.
missing=()
need() {
  case "$2" in
    /*) [ -e "$2" ] || missing+=("$1") ;;
    *) command -v "$2" >/dev/null || missing+=("$1") ;;
  esac
}

need_demo() {
  need g++ g++
  need cmake cmake
  need ninja-build ninja
  need nlohmann-json3-dev /usr/include/nlohmann/json.hpp
  need libcli11-dev /usr/include/CLI/CLI.hpp
  need libeigen3-dev /usr/include/eigen3/Eigen/Core
}

need_test() {
  need_demo
  need clang clang++
  compgen -G '/usr/lib/llvm-*/lib/clang/*/lib/linux/libclang_rt.asan*.a' >/dev/null || missing+=(libclang-rt-dev)
  need python3 python3
  need doxygen doxygen
  need g++-aarch64-linux-gnu aarch64-linux-gnu-g++
  need qemu-user qemu-aarch64
  need catch2 /usr/include/catch2/catch.hpp
  need libbenchmark-dev /usr/include/benchmark/benchmark.h
}

install_missing() {
  if [ "${#missing[@]}" -eq 0 ]; then return; fi
  say "installing ${missing[*]}"
  if ! command -v apt-get >/dev/null; then
    echo "bootstrap: no apt-get here; install these yourself: ${missing[*]}" >&2
    return 1
  fi
  as_root env DEBIAN_FRONTEND=noninteractive apt-get update -qq
  as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
  missing=()
}

# build PRESET [configure options]
build() {
  local preset="$1"
  shift
  say "building $preset"
  cmake --preset "$preset" "$@"
  cmake --build --preset "$preset" --parallel "$jobs"
}

run_demo() {
  build demo
  say "demo"
  build/demo/bench/kvcondense-eval demo --out build/demo
}

# The rooms worth a sanitizer on every change (any has caches of every word); the rest run under it with the preset asan.
sanitized_rooms="core;bitstream;any;c;io"

# Clang where its runtime is there: it takes half the time under sanitizers, and sees the tests with a second compiler.
sanitized_compiler() {
  if echo 'int main() {}' | clang++ -x c++ -fsanitize=address,undefined -o /dev/null - 2>/dev/null; then
    echo -DCMAKE_C_COMPILER=clang -DCMAKE_CXX_COMPILER=clang++
  fi
}

# Test files compiled as one: from nothing that is a third quicker.
together=8

run_test() {
  build release -DKVCONDENSE_QUICK_BENCH=ON "-DKVCONDENSE_TEST_TOGETHER=$together"
  # shellcheck disable=SC2046
  build asan $(sanitized_compiler) "-DKVCONDENSE_TEST_ROOMS=$sanitized_rooms" \
    -DKVCONDENSE_EXAMPLES=OFF -DKVCONDENSE_EVAL=OFF "-DKVCONDENSE_TEST_TOGETHER=$together"
  # One CTest run over both builds, so that one summary speaks for everything.
  mkdir -p build/all
  printf 'subdirs("%s")\nsubdirs("%s")\n' "$PWD/build/asan" "$PWD/build/release" >build/all/CTestTestfile.cmake
  say "testing"
  ctest --test-dir build/all --output-on-failure --no-tests=error --parallel "$jobs"
}

case "${1:-}" in
  deps) need_test; install_missing ;;
  demo) need_demo; install_missing; run_demo ;;
  test) need_test; install_missing; run_test ;;
  *) sed -n '2,7s/^# \{0,1\}//p' "$0"; exit 2 ;;
esac
