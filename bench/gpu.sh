#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Every GPU figure of docs/performance.md in one run: bench/gpu.sh BINARIES SCRATCH [READ_GB_PER_S]
# BINARIES: a folder (or build tree) with firstlight, model_bench, cuda_fixed_costs and cuda_ops_bench. SCRATCH: 35 GB free.
set -u
bin=$1 scratch=$2
mkdir -p "$scratch"
tool() { if [ -x "$bin/$1" ]; then echo "$bin/$1"; else echo "$bin/bench/$1"; fi; }
firstlight=$(tool firstlight)
say() { printf '\n== %s\n' "$*"; }
nvidia-smi --query-gpu=name,driver_version --format=csv,noheader

say "fixed costs"
"$(tool cuda_fixed_costs)" | tee "$scratch/fixed.txt"
read_rate=${3:-$(awk '/^HBM read/ {print int($4)}' "$scratch/fixed.txt")}

say "a synthetic Llama-3.1-8B (16 GB), cut for one rank"
[ -e "$scratch/hf/config.json" ] || "$firstlight" synth --like llama-3.1-8b -o "$scratch/hf"
"$firstlight" shard "$scratch/hf" -o "$scratch/ranks" --tp 1 --memory 8GiB
python3 -c "import json,random; random.seed(1); json.dump([random.randrange(100000) for _ in range(64)], open('$scratch/ids.json','w'))"

say "load, page cache warm, every leaf hashed on the GPU"
"$firstlight" load "$scratch/ranks" --device cuda:0 >/dev/null 2>&1
for _ in 1 2 3 4 5; do "$firstlight" load "$scratch/ranks" --device cuda:0 2>/dev/null | tail -n 1; done

say "start to first token, and 128 greedy tokens"
"$firstlight" run "$scratch/ranks" --ids "$scratch/ids.json" -n 128 --greedy --ignore-eos --max-context 4096 2>&1 >/dev/null
say "beside the traditional start"
"$firstlight" bench start "$scratch/ranks" --ids "$scratch/ids.json" -n 5 2>/dev/null | tail -n 3

say "forward pass; plain read $read_rate GB/s"
"$(tool model_bench)" "$scratch/ranks" --device cuda:0 --read-gb-per-s "$read_rate"
"$(tool model_bench)" "$scratch/ranks" --device cuda:0 --read-gb-per-s "$read_rate" --context 32768 --batch 1

say "what goes wrong is said"
"$firstlight" run "$scratch/ranks" --ids "$scratch/ids.json" -n 1 --kv-memory 400GiB --max-context 8192 2>&1 | tail -n 1
part=$(ls "$scratch"/ranks/tp1/rank-00/*.safetensors | tail -n 1)
printf '\xff' | dd of="$part" bs=1 seek=700000000 conv=notrunc 2>/dev/null
"$firstlight" load "$scratch/ranks" --device cuda:0 2>&1 | tail -n 1

say "ops"
"$(tool cuda_ops_bench)"
