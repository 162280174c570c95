#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Rank files are plain safetensors: the reference reader opens them. Lists the tensors of one rank.

    python examples/read_rank_file.py models/smollm2/tp3/rank-01
"""
import pathlib
import sys

try:
    from safetensors import safe_open
except ImportError:
    print("SKIPPED: needs the Python package safetensors")
    sys.exit(77)

rank = pathlib.Path(sys.argv[1])
parts = sorted(rank.glob("*.safetensors"))
if not parts:
    sys.exit(f"{rank} holds no .safetensors")
for part in parts:
    with safe_open(part, framework="np") as file:
        for name in file.keys():
            tensor = file.get_slice(name)
            print(f"{part.name}  {name}  {tensor.get_dtype()} {tensor.get_shape()}")
