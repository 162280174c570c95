#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes the seeds of prefix_head_fuzz: heads of prefix files as docs/prefix.md has them, without the zeros at their end.

The fuzz target puts the hash in.
"""
import pathlib
import struct


def head(kind, tp, tokens, layers=2, heads=2, head_dim=64):
    page_bits = {"f32": (32, 32), "bf16": (16, 16), "tq4": (4, 4), "k3v2": (3, 2)}[kind]
    codes = page_bits[0] < 16
    rank_heads = max(1, heads // tp)

    def section(n, token_bytes):
        return -(-n * layers * rank_heads * 64 * token_bytes // 4096) * 4096

    n_pages = tokens // 64
    n_exact = min(n_pages, 4) if codes else 0
    hashes = tp * (n_pages + n_exact)
    head_bytes = -(-(256 + 4 * tokens + 8 * hashes) // 4096) * 4096
    token_bytes = head_dim * sum(page_bits) // 8 + (4 if codes else 0)
    size = head_bytes + tp * (section(n_pages, token_bytes) + section(n_exact, 4 * head_dim))
    rounds = 3 if head_dim == 64 else 2
    codec = struct.pack("<4sIIBBcBQQ", b"FLTQ", 1, head_dim, *page_bits, b"I", rounds, 1, 0) if codes else b""
    fixed = struct.pack("<8sIIQQQ8sIIIIIxxxx32s64s64s", b"FLPREFIX", 1, 0, head_bytes, size, tokens, kind.encode(), tp,
                        layers, heads, head_dim, 64, codec, b"xxh3:00112233", b"cpu: plain").ljust(256, b"\0")
    return fixed + struct.pack(f"<{tokens}I", *range(tokens)) + struct.pack(f"<{hashes}Q", *range(1, hashes + 1))


def main():
    out = pathlib.Path(__file__).resolve().parent.parent / "tests/fuzz/corpus/prefix_head"
    out.mkdir(parents=True, exist_ok=True)
    for name, seed in {"bf16": head("bf16", 1, 64), "f32_tp4": head("f32", 4, 128, heads=1),
                       "tq4_tp2": head("tq4", 2, 384), "k3v2": head("k3v2", 1, 1024, head_dim=128)}.items():
        (out / name).write_bytes(seed)


if __name__ == "__main__":
    main()
