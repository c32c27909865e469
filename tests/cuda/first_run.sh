#!/usr/bin/env bash
# What to run when a GPU is at hand, in this order; docs/cuda.md says how to build it before.
#
#   tests/cuda/first_run.sh BUILD OUT [STEP...]    all steps, or these; OUT/STEP.log has what each said
#
# conformance       wrappers of PTX against conformance.txt, which emulation made
# tests             the tests of the CUDA backend, with the real runtime
# memcheck racecheck synccheck initcheck          compute-sanitizer over conformance and tests of words
# speed             bandwidth of reading, then decode attention: tables, share of the byte floor
# speed_f32         the same of AttendMath::f32
# profile           ncu over one call of attention at 4 bits
#
# A step that fails, or whose tool is not there, does not stop the others; the last line and the exit status say how many did.
# STEP_SECONDS: what a step may take (900). CONFORMANCE, TESTS, BENCH: other programs than those of BUILD. BENCH_OPTIONS: more of its options.
set -uo pipefail

if [ $# -lt 2 ]; then
  sed -n '2,16s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2
  exit 2
fi
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
build="$1" out="$2"
shift 2
all=(conformance tests memcheck racecheck synccheck initcheck speed speed_f32 profile)
steps=("${@:-${all[@]}}")
conformance="${CONFORMANCE:-$build/tests/cuda_emulation/cuda_device_conformance}"
tests="${TESTS:-$build/tests/cuda_emulation/cuda_device_test}"
bench="${BENCH:-$build/bench/cuda/decode_bench}"
read -ra more <<<"${BENCH_OPTIONS:-}"
mkdir -p "$out"

conform() { python3 "$here/conformance/conformance.py" "$conformance" --include "$here/../../include"; }
sanitize() {
  compute-sanitizer --tool "$1" --error-exitcode 99 "$conformance" || return
  compute-sanitizer --tool "$1" --error-exitcode 99 "$tests" '~cuda cache*'
}
profile() {
  ncu --set full --kernel-name regex:attend_halves --launch-count 1 --force-overwrite --export "$out/attend_halves" \
    "$bench" --sizes 16x32768 --only '4 bits' --rounds 1 "${more[@]}" || return
  ncu --import "$out/attend_halves.ncu-rep" --page details
}
step() {
  case "$1" in
    conformance) conform ;;
    tests) "$tests" ;;
    memcheck | racecheck | synccheck | initcheck) sanitize "$1" ;;
    speed) "$bench" "${more[@]}" ;;
    speed_f32) "$bench" --math f32 "${more[@]}" ;;
    profile) profile ;;
    *) echo "no step $1" && return 2 ;;
  esac
}

if [ "${FIRST_RUN_STEP:-}" != "" ]; then  # this script once more, so that a step has a time limit
  step "$FIRST_RUN_STEP"
  exit
fi
command -v nvidia-smi >/dev/null && nvidia-smi -q >"$out/device.log" 2>&1
for name in "${steps[@]}"; do
  FIRST_RUN_STEP="$name" timeout "${STEP_SECONDS:-900}" bash "${BASH_SOURCE[0]}" "$build" "$out" >"$out/$name.log" 2>&1
  code=$?
  case "$code" in
    0) said=ok ;;
    124) said="took too long" ;;
    127) said="a program is not there" ;;
    *) said="FAILED, exit $code" ;;
  esac
  echo "$name: $said"
  [ "$code" -eq 0 ] || tail -5 "$out/$name.log" | sed 's/^/    /'
done | tee "$out/summary.txt"
bad="$(grep -c -v -e ': ok$' -e '^    ' "$out/summary.txt")"
echo "$bad of ${#steps[@]} steps went wrong"
[ "$bad" -eq 0 ]
