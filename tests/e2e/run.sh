# SPDX-License-Identifier: Apache-2.0
# sh run.sh PYTHON SCRIPT …: runs an end-to-end script with PYTHON, or if that is "" with .venv's Python, or python3.
# Chosen when the test runs, so that a .venv made after configuring is used.
python=$1
shift
root=$(cd "$(dirname "$0")/../.." && pwd)
[ -n "$python" ] || python=$root/.venv/bin/python
[ -x "$python" ] || python=python3
exec "$python" "$@"
