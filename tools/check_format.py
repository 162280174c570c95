#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Checks that all C++ is formatted as clang-format 14 formats it; --fix formats it.

Another version formats differently, so without version 14 the check is skipped (exit code 77) and says so.
"""
import pathlib
import re
import shutil
import subprocess
import sys

FOLDERS = ["firstlight", "tests", "bench", "examples"]
SUFFIXES = {".h", ".cc", ".cu", ".cuh"}


def find_clang_format():
    found = []
    for name in ["clang-format-14", "clang-format"]:
        path = shutil.which(name)
        if path:
            version = subprocess.run([path, "--version"], capture_output=True, text=True, check=True).stdout.strip()
            if re.search(r"version 14\.", version):
                return path
            found.append(version)
    print(f"SKIPPED: needs clang-format 14, found {'; '.join(found) or 'none'}")
    sys.exit(77)


def main():
    root = pathlib.Path(__file__).resolve().parent.parent
    tool = find_clang_format()
    files = [str(f) for folder in FOLDERS for f in sorted((root / folder).rglob("*")) if f.suffix in SUFFIXES]
    if "--fix" in sys.argv[1:]:
        return subprocess.run([tool, "-i", *files], check=False).returncode
    done = subprocess.run([tool, "--dry-run", *files], capture_output=True, text=True, check=False)
    bad = sorted({line.split(":")[0] for line in done.stderr.splitlines() if "[-Wclang-format-violations]" in line})
    if done.returncode or bad:
        print("\n".join(str(pathlib.Path(f).relative_to(root)) for f in bad) or done.stderr)
        print(f"{len(bad)} of {len(files)} files are not formatted; tools/check_format.py --fix formats them")
        return 1
    print(f"{len(files)} files are formatted")
    return 0


if __name__ == "__main__":
    sys.exit(main())
