#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# From a fresh Debian 12 to a model's answer in one command: sets up, builds, fetches SmolLM2-135M, cuts it for one and for
# three ranks, verifies, loads the ranks in parallel, asks a question, and sets the start beside the traditional one.
# Every step looks at what is there and does only the rest, so a second run takes seconds.
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
cd "$root"

say "1/8 set-up"
setup_build
preset=cpu
if command -v nvcc >/dev/null; then
  preset=release
  echo "CUDA is installed here: built with it"
fi

say "2/8 build (preset $preset, in build/$preset)"
mkdir -p build
cmake --preset "$preset" >build/configure.log 2>&1 || { cat build/configure.log; exit 1; }
cmake --build --preset "$preset" --target firstlight
firstlight=build/$preset/firstlight
"$firstlight" --version

say "3/8 fetch SmolLM2-135M-Instruct"
.venv/bin/python tools/fetch_smollm2.py models/smollm2.gguf

say "4/8 shard: cut it once, for 1 and for 3 ranks"
"$firstlight" shard models/smollm2.gguf -o models/smollm2 --tp 1,3

say "5/8 verify: every byte against the manifest"
"$firstlight" verify models/smollm2

say "6/8 load: three ranks in parallel"
"$firstlight" load models/smollm2 --tp 3

say "7/8 run: an answer, and the time line from exec to the first token"
"$firstlight" run models/smollm2 -p "Why is the sky blue?" -n 120

say "8/8 bench start: this start and the traditional one, in turn, in fresh processes"
"$firstlight" bench start models/smollm2 --traditional-model models/smollm2.gguf -n 5

say "done. Next: $firstlight chat models/smollm2"
