#!/usr/bin/env bash
# Everything a change must pass: lint, unit tests with their coverage of the library, then the integration tests, which
# run the real nnU-Net commands, and the tests of the benchmark scripts.
# Makes its own virtual environment (.venv) where there is none. Extra arguments go to pytest.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

python_of_venv=.venv/bin/python
if [ ! -x "$python_of_venv" ]; then
    echo "Making .venv"
    "${PYTHON:-python3}" -m venv .venv
fi
echo "Installing the package and what its tests need (the first time this fetches torch, several GB)"
"$python_of_venv" -m pip install --quiet --disable-pip-version-check -e '.[test,docs]'

# the HTML reports are tested in headless Chromium, jobs on a SLURM of this machine; without them those tests are skipped
install_for_tests() { # COMMAND PACKAGE...: the command that says whether the packages are there
    if command -v "$1" > /dev/null || [ "$(id -u)" != 0 ] || ! command -v apt-get > /dev/null; then
        return
    fi
    echo "Installing ${*:2}"
    (apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${@:2}") \
        > /dev/null 2>&1 || echo "${*:2} could not be installed"
}
install_for_tests chromedriver chromium chromium-driver
install_for_tests slurmd slurm-wlm munge
install_for_tests ip iproute2

export MPLBACKEND=agg
# one worker a core, each with one thread; where nnU-Net takes more, they do not spin while they wait
export OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive

bash scripts/lint.sh
run=("$python_of_venv" -m pytest -q -n "${TEST_WORKERS:-auto}" --dist loadfile)
coverage=(--cov --cov-report=term --cov-fail-under=90)
if [ $# -gt 0 ]; then # a part of the tests covers a part of the library
    coverage=()
fi
"${run[@]}" -m "not integration and not benchmarks" "${coverage[@]}" "$@"
"${run[@]}" -m "integration or benchmarks" --durations=15 "$@"
