#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Checks who includes whom against the fenced block in ARCHITECTURE.md that starts with "base:".

Rules: a file of layer X includes only headers of X and of the layers that the block lists for X; a layer lists only
layers above it in the block (so nothing can go round in a circle); the firstlight_layer() lines of CMakeLists.txt say the
same; CUDA headers are included only by .cu and .cuh files and by files with "cuda" in their name.
"""
import argparse
import pathlib
import re
import sys

SUFFIXES = {".h", ".cc", ".cu", ".cuh", ".inc", ".inl", ".ipp", ".hpp", ".cpp", ".c"}
INCLUDE = re.compile(r'^\s*#\s*include\s*(["<])([^">]+)[">]')
DIRECTIVE = re.compile(r"^\s*(?:/\*.*?\*/\s*)*#\s*(?:include|import)\b")  # in whatever spelling
CUDA_HEADER = re.compile(r"^(cuda|cublas|nccl|cufile|cooperative_groups|mma\.h|cub/|cute/|cutlass/)|\.cuh$")


def read_table(root):
    """{layer: [layers below]} in the order of the block."""
    text = (root / "ARCHITECTURE.md").read_text(encoding="utf-8")
    block = re.search(r"^```[^\n]*\n(base:.*?)^```", text, re.S | re.M)
    if not block:
        sys.exit('ARCHITECTURE.md: found no fenced block that starts with "base:", expected the layer table')
    table = {}
    for line in block.group(1).splitlines():
        name, colon, below = line.partition(":")
        if not colon:
            sys.exit(f'ARCHITECTURE.md: layer table has the line "{line}", expected "layer: layers below"')
        table[name.strip()] = below.split()
    return table


def table_problems(table):
    seen = set()
    for name, below in table.items():
        for other in below:
            if other not in seen:
                yield f"ARCHITECTURE.md: layer {name} lists {other}, which does not stand above it in the table"
        seen.add(name)


def allowed_headers_problem(file, layer, quote, target, table, is_test):
    """Why this include is wrong, or None."""
    if ".." in target.split("/") or "//" in target or "/./" in target:
        return f"includes {target}, expected a path without detours"
    if CUDA_HEADER.search(target) and file.suffix not in {".cu", ".cuh"} and "cuda" not in file.name:
        return f"includes the CUDA header {target}; only .cu, .cuh and *cuda* files may"
    if quote == "<":
        return f"includes <{target}>, expected quotes" if target.startswith("firstlight/") else None
    if target.startswith("tests/"):
        return None if is_test else f"includes the test helper {target}; only *_test.cc may"
    if not target.startswith("firstlight/"):
        return f'includes "{target}", expected a path from the root: "firstlight/{layer}/…"'
    other = target.split("/")[1]
    if other == layer or other in table[layer] or "/" not in target[len("firstlight/"):]:
        return None
    return f"includes {target}: layer {layer} may include {' '.join([layer] + table[layer])}, not {other}"


def include_problems(root, table):
    for file in sorted((root / "firstlight").rglob("*")):
        if file.suffix not in SUFFIXES:
            continue
        parts = file.relative_to(root).parts
        if len(parts) == 2:  # firstlight/firstlight.h: the public header takes from every layer
            continue
        layer = parts[1]
        if layer not in table:
            yield f"{'/'.join(parts)}: folder {layer} is not in the layer table"
            continue
        is_test = file.name.endswith("_test.cc") or file.name.startswith("test_")
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
            match = INCLUDE.match(line)
            if not match and DIRECTIVE.match(line):
                yield f"{'/'.join(parts)}:{number}: an include in another spelling than #include \"…\" or <…>"
            problem = match and allowed_headers_problem(file, layer, *match.groups(), table, is_test)
            if problem:
                yield f"{'/'.join(parts)}:{number}: {problem}"


def cmake_problems(root, table):
    path = root / "CMakeLists.txt"
    if not path.exists():
        return
    lines = re.findall(r"^\s*firstlight_layer\(([^)]*)\)", path.read_text(encoding="utf-8"), re.M)
    built = {words.split()[0]: words.split()[1:] for words in lines}
    for name in table:
        has_sources = any(f.suffix in SUFFIXES for f in (root / "firstlight" / name).glob("*"))
        if has_sources and name not in built:
            yield f"CMakeLists.txt: no firstlight_layer({name} …), but firstlight/{name}/ has sources"
    for name, below in built.items():
        if name not in table:
            yield f"CMakeLists.txt: firstlight_layer({name}) is not in the layer table"
            continue
        expected = [other for other in table[name] if other in built]
        if below != expected:
            yield f"CMakeLists.txt: firstlight_layer({name} {' '.join(below)}), the table says {' '.join(expected)}"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("root", nargs="?", type=pathlib.Path, default=pathlib.Path(__file__).resolve().parent.parent)
    root = parser.parse_args().root
    table = read_table(root)
    problems = [*table_problems(table), *include_problems(root, table), *cmake_problems(root, table)]
    print("\n".join(problems) if problems else f"{len(table)} layers: every include is as the table says")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
