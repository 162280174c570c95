#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Looks at a rank checkpoint with other people's readers: safetensors opens every part, the ranks gathered again are the
source bit for bit (as converted), xxhash (if installed) agrees with the manifest, transformers opens tp1/rank-00.

    check_rank_checkpoint.py OUT [SOURCE]      SOURCE: the Hugging Face directory that OUT was made from
"""
import json
import struct
import sys
from pathlib import Path

import torch
from safetensors import safe_open

try:
    import xxhash
except ImportError:
    xxhash = None

PROBLEMS = []


def check(ok, what):
    if not ok:
        PROBLEMS.append(what)
        print("WRONG:", what)


def open_rank(directory):
    index = json.loads((directory / "model.safetensors.index.json").read_text())
    files = sorted(set(index["weight_map"].values()))
    check(sorted(p.name for p in directory.glob("*.safetensors")) == files, f"{directory}: parts and index disagree")
    tensors, total = {}, 0
    for name in files:
        with open(directory / name, "rb") as f:
            length, = struct.unpack("<Q", f.read(8))
        check(length + 8 == 2 << 20, f"{directory / name}: data does not start at 2 MiB")
        with safe_open(directory / name, framework="pt") as f:
            check(f.metadata() == {"format": "pt"}, f"{directory / name}: metadata {f.metadata()}")
            for key in f.keys():
                check(index["weight_map"].get(key) == name, f"{directory}: '{key}' is not where the index says")
                tensors[key] = f.get_tensor(key)
                total += tensors[key].numel() * tensors[key].element_size()
    check(set(tensors) == set(index["weight_map"]), f"{directory}: the index names other tensors")
    check(total == index["metadata"]["total_size"], f"{directory}: total_size")
    return tensors


def gather(name, pieces, config):
    tp, n_kv = len(pieces), config.get("num_key_value_heads", config["num_attention_heads"])
    if name.endswith(("o_proj.weight", "down_proj.weight")):
        return torch.cat(pieces, dim=1)
    if any(w in name for w in ("q_proj", "gate_proj", "up_proj")):
        return torch.cat(pieces, dim=0)
    if any(w in name for w in ("k_proj", "v_proj")):
        copies = max(1, tp // n_kv)
        for rank in range(tp):
            check(same(pieces[rank], pieces[rank - rank % copies]), f"{name}: rank {rank} is not a copy")
        return torch.cat(pieces[::copies], dim=0)
    if "embed_tokens" in name or "lm_head" in name:
        whole = torch.cat(pieces, dim=0)
        check(not whole[config["vocab_size"]:].view(torch.uint8).any(), f"{name}: padding is not zero")
        return whole[: config["vocab_size"]]
    for rank in range(1, tp):
        check(same(pieces[rank], pieces[0]), f"{name}: rank {rank} differs")
    return pieces[0]


def same(a, b):
    return a.shape == b.shape and a.dtype == b.dtype and torch.equal(
        a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8))


def read_source(path):
    tensors = {}
    for part in sorted(Path(path).glob("*.safetensors")):
        with safe_open(part, framework="pt") as f:
            for key in f.keys():
                tensors[key] = f.get_tensor(key)
    return tensors


def check_manifest(out, manifest):
    for name, entry in manifest["files"].items():
        check((out / name).stat().st_size == entry["size"], f"{name}: size")
        if xxhash:
            digest = xxhash.xxh3_128()
            with open(out / name, "rb") as f:
                while piece := f.read(1 << 24):
                    digest.update(piece)
            check(digest.hexdigest() == entry["xxh3_128"], f"{name}: XXH3-128")
    if not xxhash:
        print("skipped: hashes (the Python package xxhash is not installed)")
        return
    manifest_hash = xxhash.xxh3_128((out / "manifest.json").read_bytes()).hexdigest()
    check((out / "READY").read_text() == manifest_hash + "\n", "READY is not the manifest's hash")
    for tp in manifest["tps"]:
        for rank in tp["ranks"]:
            leaves = b""
            for part in rank["parts"]:
                with open(out / part["file"], "rb") as f:
                    head = f.read(2 << 20)
                    check(xxhash.xxh3_128(head[: part["header_bytes"]]).hexdigest() == part["header_xxh3"],
                          f"{part['file']}: header_xxh3")
                    while leaf := f.read(1 << 20):
                        leaves += struct.pack("<Q", xxhash.xxh3_64(leaf).intdigest())
            check((out / rank["directory"] / "leaves.xxh3").read_bytes() == leaves, f"{rank['directory']}: leaves")


def check_transformers(directory, tensors):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(directory)
    state = model.state_dict()
    for name, tensor in tensors.items():
        check(name in state and same(state[name].cpu(), tensor), f"transformers has another '{name}'")
    stored = {t.dtype for t in tensors.values()}
    if len(stored) == 1:
        check(model.dtype in stored, f"transformers opened it as {model.dtype}, stored is {stored}")
    print(f"transformers opened {directory.name}: {type(model).__name__}, {model.dtype}, {model.num_parameters()} parameters")


def main():
    out, source = Path(sys.argv[1]), read_source(sys.argv[2]) if len(sys.argv) > 2 else None
    manifest = json.loads((out / "manifest.json").read_text())
    config = json.loads((out / "config.json").read_text())
    names = [t["name"] for t in manifest["tensors"]]
    check_manifest(out, manifest)
    gathered = None
    for tp in manifest["tps"]:
        ranks = [open_rank(out / rank["directory"]) for rank in tp["ranks"]]
        for rank in ranks:
            check(set(rank) == set(names), f"tp {tp['tp']}: other tensors than the manifest's")
        whole = {name: gather(name, [rank[name] for rank in ranks], config) for name in names}
        if source is not None:
            for name in names:
                check(same(whole[name], source[name].to(whole[name].dtype)), f"tp {tp['tp']}: '{name}' is not the source's")
        if gathered is not None:
            for name in names:
                check(same(whole[name], gathered[name]), f"tp {tp['tp']}: '{name}' differs from the other tps'")
        gathered = whole
        print(f"tp {tp['tp']}: {len(ranks)} ranks, {len(names)} tensors gathered" + (" = source" if source else ""))
    if (out / "tp1/rank-00").is_dir():
        check_transformers(out / "tp1/rank-00", gathered)
    print(f"{len(PROBLEMS)} problems")
    return 1 if PROBLEMS else 0


if __name__ == "__main__":
    sys.exit(main())
