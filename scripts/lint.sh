#!/usr/bin/env bash
# Style, types, and the order of the folders: a folder imports only from those above it (.importlinter).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bin="${BIN:-.venv/bin}"
"$bin/ruff" check .
"$bin/ruff" format --check .
"$bin/mypy"
# trainers/ and planners/ are packages below nnunetv2_unimrseg only once they are installed
built="$(mktemp -d)"
trap 'rm -rf "$built"' EXIT
"$bin/python" setup.py -q build_py --build-lib "$built" 2> /dev/null
root="$PWD"
bin="$(cd "$bin" && pwd)"
(cd "$built" && PYTHONPATH="$built" "$bin/lint-imports" --no-logo "$root/.importlinter")
