// The one program of all consumer projects; also built without exceptions and run-time types.
#include <cstdio>

#if __has_include(<kvcondense/kvcondense.hpp>) && __has_include(<kvcondense/cpu.hpp>)
#include <kvcondense/kvcondense.hpp>

#include <kvcondense/cpu.hpp>
#endif
#include <kvcondense/version.hpp>

int main() {
  std::printf("kvcondense %s\n", kvcondense::version_string);
  return 0;
}
