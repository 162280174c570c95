#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# What CI runs, on a fresh Debian 12 too: scripts/test.sh [unit|asan|tsan|fuzz|e2e]…   (default: all of them)
#   unit  release build with -Werror, CUDA code included where nvcc is there or can be had; unit tests (those of a GPU
#         are skipped and shown without one) and checks of the tree
#   asan  unit tests under the address and undefined-behaviour sanitizers
#   tsan  unit tests under the thread sanitizer
#   fuzz  each fuzz target, from its seeds, for a few seconds (clang 16)
#   e2e   the program as a user drives it, with SmolLM2
# Stages go on after a failed one; the last lines say which passed.
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
cd "$root"
stages=("$@")
[ ${#stages[@]} -gt 0 ] || stages=(unit asan tsan fuzz e2e)
jobs=$(nproc)
launcher=()
if command -v ccache >/dev/null; then launcher=(-DCMAKE_CXX_COMPILER_LAUNCHER=ccache); fi

# build PRESET TARGET…: configures and builds, quietly unless it fails.
build() {
  local preset=$1 log=build/$1-build.log
  shift
  mkdir -p build
  echo "building preset $preset ($*), log in $log"
  if ! { "${wrap[@]}" cmake --preset "$preset" "${launcher[@]}" &&
         "${wrap[@]}" cmake --build --preset "$preset" -j "$jobs" --target "$@"; } >"$log" 2>&1; then
    tail -n 60 "$log"
    echo "the build of preset $preset failed"
    return 1
  fi
  tail -n 1 "$log"
}

# run_tests PRESET CTEST-ARGUMENT…
run_tests() {
  local preset=$1
  shift
  "${wrap[@]}" ctest --test-dir "build/$preset" -j "$jobs" --output-on-failure --no-tests=error "$@"
}

stage_unit() { build release all && run_tests release -L 'unit|tree'; }

stage_asan() { build asan all && run_tests asan -L unit; }

# The thread sanitizer of g++ 12 needs addresses that are not randomised too widely.
stage_tsan() {
  if setarch "$(uname -m)" -R true 2>/dev/null; then wrap=(setarch "$(uname -m)" -R); fi
  build tsan all && run_tests tsan -L unit
}

stage_fuzz() {
  if ! command -v clang++-16 >/dev/null; then
    echo "SKIPPED: needs clang 16"
    result=SKIPPED
    return 0
  fi
  build fuzz fuzzers && run_tests fuzz -L fuzz
}

# One at a time: these scripts kill, fill and time out, and each uses all cores.
stage_e2e() {
  .venv/bin/python tools/fetch_smollm2.py models/smollm2.gguf && build release all && run_tests release -L e2e -j 1
}

say "set-up"
setup_test
export CI=${CI:-1}  # one GPU architecture is enough for a test of what compiles

summary=""
failed=0
for stage in "${stages[@]}"; do
  case $stage in unit | asan | tsan | fuzz | e2e) ;; *) echo "no stage $stage; there are unit asan tsan fuzz e2e" >&2; exit 2 ;; esac
  say "stage $stage"
  wrap=(env)
  begin=$SECONDS
  result=passed
  "stage_$stage" || { result=FAILED; failed=$((failed + 1)); }
  summary="$summary$(printf '%-5s %s in %d s' "$stage" "$result" $((SECONDS - begin)))"$'\n'
done
say "summary"
printf '%s' "$summary"
echo "stages: $((${#stages[@]} - failed)) passed, $failed failed"
[ "$failed" = 0 ]
