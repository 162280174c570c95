#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The load on all GPUs of a host at once, from memory: bench/many_gpus.sh FIRSTLIGHT SCRATCH N_GPUS MEMORY_GIB [405b|70b]…
# FIRSTLIGHT: the program. SCRATCH: an empty folder, where a tmpfs is mounted (as root; else it is used as it is).
# MEMORY_GIB: what the host may use in all; 40 of them stay free. Each stage takes some minutes on 8 GPUs:
#   405b  Llama-3.1-405B's shapes at one byte a value (410 GB, or as many layers as fit), loaded, not run
#   70b   Llama-3.1-70B's shapes in bf16: loaded, and its first token; InstantTensor beside it, where that is installed
# Bytes come from host memory: set beside a figure that was read from a file system, say so.
set -u
firstlight=$(realpath "$1") scratch=$2 n=$3 memory_gib=$4
shift 4
stages=("$@")
[ ${#stages[@]} -gt 0 ] || stages=(405b 70b)
here=$(cd "$(dirname "$0")" && pwd)
say() { printf '\n== %s\n' "$*"; }
room=$(((memory_gib - 40) << 30))
mkdir -p "$scratch"
if [ "$(id -u)" = 0 ] && ! mountpoint -q "$scratch"; then
  mount -t tmpfs -o "size=$room,huge=within_size" firstlight "$scratch" || mount -t tmpfs -o "size=$room" firstlight "$scratch"
fi
findmnt -no FSTYPE,SIZE -T "$scratch"
nvidia-smi --query-gpu=name,driver_version,pcie.link.gen.current,pcie.link.width.current --format=csv,noheader
lscpu | grep -E 'Model name|^CPU\(s\)|L3|NUMA node\(s\)'

# layers_that_fit LIKE DTYPE LAYERS: as many of the model's layers as leave room; 0: not one does.
layers_that_fit() {
  local whole one
  whole=$("$firstlight" plan --like "$1" --dtype "$2" --tp "$n" --json) || return 1
  one=$("$firstlight" plan --like "$1" --dtype "$2" --tp "$n" --layers 1 --json) || return 1
  python3 - "$whole" "$one" "$room" "$3" <<'PY'
import json, sys
whole, one = (json.loads(text)["bytes"] for text in sys.argv[1:3])
room, layers = int(sys.argv[3]), int(sys.argv[4])
each = (whole - one) / (layers - 1)
print(max(0, min(layers, int((0.99 * room - (one - each)) // each))))
PY
}

# make LIKE DTYPE LAYERS: rank files straight into memory.
make() {  # sets layers
  layers=$(layers_that_fit "$1" "$2" "$3") || return 1
  say "$1, $2, $layers of $3 layers, tp $n"
  [ "$layers" -gt 0 ] || { echo "does not fit into $memory_gib GiB"; return 1; }
  rm -rf "$scratch/ranks"
  "$firstlight" synth --like "$1" --dtype "$2" --layers "$layers" --tp "$n" --memory 16GiB -o "$scratch/ranks" || return 1
  "$firstlight" plan "$scratch/ranks" --tp "$n" --links "${n}x55" | tail -n 3
}

loads() {
  say "floor (pinned memory to all GPUs at once) and whole loads, in turn"
  "$firstlight" bench load "$scratch/ranks" --tp "$n" --device cuda --no-sweep -n 5 2>/dev/null
  say "fresh processes: load with every leaf verified, and the whole process from exec to all ranks loaded"
  for _ in 1 2 3 4 5; do
    local begin end
    begin=$(date +%s.%N)
    "$firstlight" load "$scratch/ranks" --tp "$n" --device cuda --json 2>/dev/null >"$scratch/load.json" || { echo failed; return 1; }
    end=$(date +%s.%N)
    python3 - "$scratch/load.json" "$begin" "$end" <<'PY'
import json, sys
load = json.load(open(sys.argv[1]))["load"]
print(f'{load["bytes"] / 1e9:.1f} GB in {load["seconds"]:.3f} s: {load["gb_per_s"]:.1f} GB/s, verify {load["verify"]}; process {float(sys.argv[3]) - float(sys.argv[2]):.3f} s')
PY
  done
}

for stage in "${stages[@]}"; do
  case $stage in
    405b)
      make llama-3.1-405b fp8 126 && loads
      ;;
    70b)
      make llama-3.1-70b bf16 80 || continue
      loads
      say "exec to first token (64 tokens of prompt)"
      python3 -c "import json,random; random.seed(1); json.dump([random.randrange(100000) for _ in range(64)], open('$scratch/ids.json','w'))"
      for _ in 1 2 3; do
        "$firstlight" run "$scratch/ranks" --tp "$n" --device cuda --ids "$scratch/ids.json" -n 8 --greedy --ignore-eos \
          --max-context 4096 --json 2>"$scratch/run.txt" | python3 -c 'import json,sys; r=json.load(sys.stdin); print("first token", r.get("ttft_s"), "s;", r.get("tokens_per_s"), "tokens/s", r.get("error", ""))' ||
          tail -n 1 "$scratch/run.txt"
      done
      if python3 -c 'import instanttensor' 2>/dev/null; then
        say "InstantTensor, distributed, the same bytes as a whole checkpoint"
        rm -rf "$scratch/ranks"
        "$firstlight" synth --like llama-3.1-70b --layers "$layers" -o "$scratch/hf" &&
          python3 -m torch.distributed.run --nproc-per-node "$n" "$here/instanttensor_peer.py" "$scratch/hf"
        rm -rf "$scratch/hf"
      else
        echo "InstantTensor is not installed: not measured"
      fi
      ;;
    *) echo "no stage $stage; there are 405b and 70b" >&2; exit 2 ;;
  esac
done
rm -rf "$scratch/ranks"
