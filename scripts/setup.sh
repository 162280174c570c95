#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Makes a fresh Debian 12 ready to build Firstlight (Ubuntu 24.04: best effort, untested). Sourced by quickstart.sh and
# test.sh, or run by itself: scripts/setup.sh [build|test]. It looks first and installs only what is missing, so running it
# again takes a moment and needs no network.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

build_packages="ca-certificates g++ cmake ninja-build nlohmann-json3-dev libcli11-dev libxxhash-dev libssl-dev
                libgtest-dev libgmock-dev libbenchmark-dev python3 python3-venv"
# The servers of a parallel file system, for e2e_parallel_fs.py.
fs_packages="glusterfs-server glusterfs-client iproute2 fuse3"
test_packages="clang-format-14 clang-16 libclang-rt-16-dev git $fs_packages"

say() { printf '\n== %s\n' "$*"; }

# Prints those of the named packages that are not installed.
missing_packages() {
  local package
  for package in "$@"; do
    dpkg-query -W -f='${Status}\n' "$package" 2>/dev/null | grep -q '^install ok installed$' || echo "$package"
  done
}

as_root() {
  if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi
}

# install_packages NAME…: by apt, only if something is missing.
install_packages() {
  if ! command -v dpkg-query >/dev/null; then
    say "no apt here: please install what these Debian packages hold: $*"
    return 0
  fi
  local missing
  missing=$(missing_packages "$@" | tr '\n' ' ')
  if [ -z "$missing" ]; then
    echo "packages: all $# are installed"
    return 0
  fi
  if [ "$(id -u)" != 0 ] && ! command -v sudo >/dev/null; then
    echo "packages missing, and neither root nor sudo here. As root: apt-get install $missing" >&2
    return 1
  fi
  say "installing by apt: $missing"
  as_root apt-get update -qq
  local available="" package
  for package in $missing; do
    if apt-cache show "$package" >/dev/null 2>&1; then
      available="$available $package"
    else
      echo "this distribution has no package $package; what needs it is skipped"
    fi
  done
  # shellcheck disable=SC2086
  as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $available >/dev/null
}

# A virtual environment that works: made, or made anew if its Python is gone.
ensure_venv() {
  if ! "$root/.venv/bin/python" -c 'import pip' 2>/dev/null; then
    say "making a Python environment in .venv"
    python3 -m venv --clear "$root/.venv"
  fi
}

# True if .venv has exactly what tools/requirements.txt names.
python_packages_are_there() {
  "$root/.venv/bin/python" - "$root/tools/requirements.txt" <<'PY'
import importlib.metadata, sys
for line in open(sys.argv[1]):
    name, _, version = line.split("#")[0].strip().partition("==")
    try:
        if name and importlib.metadata.version(name) != version:
            sys.exit(1)
    except importlib.metadata.PackageNotFoundError:
        sys.exit(1)
PY
}

# The CUDA compiler from PyPI where none is installed: GPU code is compiled by the tests even on a machine without a GPU.
# The packages unpack to .venv/lib/python*/site-packages/nvidia/cu13, laid out as nvcc.profile wants it but for lib64.
cuda_packages="nvidia-cuda-nvcc==13.0.88 nvidia-nvvm==13.0.88 nvidia-cuda-crt==13.0.88 nvidia-cuda-runtime==13.0.96
               nvidia-cuda-cccl==13.0.85"
ensure_nvcc() {
  if command -v nvcc >/dev/null; then
    echo "nvcc: $(command -v nvcc)"
    return 0
  fi
  if [ "$(uname -m)" != x86_64 ] && [ "$(uname -m)" != aarch64 ]; then return 0; fi
  local toolkit
  toolkit=$(echo "$root"/.venv/lib/python3*/site-packages/nvidia/cu13)
  if [ ! -x "$toolkit/bin/nvcc" ] || [ ! -e "$toolkit/.firstlight-complete" ]; then
    say "installing the CUDA compiler by pip into .venv: $(echo $cuda_packages)"
    # shellcheck disable=SC2086
    if ! "$root/.venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps $cuda_packages; then
      echo "no CUDA compiler to be had: the CPU back end alone is built and tested"
      return 0
    fi
    toolkit=$(echo "$root"/.venv/lib/python3*/site-packages/nvidia/cu13)
    ln -sfn lib "$toolkit/lib64"
    mkdir -p "$toolkit/lib/stubs"
    ln -sf libcudart.so.13 "$toolkit/lib/libcudart.so"
    touch "$toolkit/.firstlight-complete"
  fi
  export PATH=$toolkit/bin:$PATH
  echo "nvcc: $toolkit/bin/nvcc"
}

setup_build() {
  # shellcheck disable=SC2086
  install_packages $build_packages
  ensure_venv
}

setup_test() {
  # shellcheck disable=SC2086
  install_packages $build_packages $test_packages
  ensure_venv
  if python_packages_are_there; then
    echo "Python packages: all in .venv"
  else
    say "installing Python packages for the tests into .venv"
    "$root/.venv/bin/python" -m pip install --quiet --disable-pip-version-check -r "$root/tools/requirements.txt"
  fi
  ensure_nvcc
}

if [ "${BASH_SOURCE[0]}" = "$0" ]; then
  case ${1:-build} in
    build) setup_build ;;
    test) setup_test ;;
    *) echo "usage: scripts/setup.sh [build|test]" >&2; exit 2 ;;
  esac
fi
