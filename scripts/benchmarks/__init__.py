"""The benchmarks: accuracy, cost, and the page docs/benchmarks.md that their results are shown on.

Each command runs from the repository's root, for example `python -m scripts.benchmarks.accuracy --list`. Result files
are in `results/`.
"""
