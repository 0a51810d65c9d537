"""Put the results of the benchmarks into docs/benchmarks.md, the README and plots.

    python scripts/benchmark_report.py [--add BENCHMARK/results] [--check]

Reads docs/benchmarks/accuracy/*.json (one run each, as `benchmark_accuracy.py` wrote it or compact) and
docs/benchmarks/cost/*.json (of `benchmark_cost.py`). Text between `<!-- benchmark:NAME -->` and `<!-- /benchmark -->`
is made anew; NAME is `cost`, or one of headline, main, subsets, parts, ablations, settings and plots followed by a
colon and the dataset. `--add` first copies result files of a benchmark, compact. `--check` writes nothing and fails
where a text does not equal the results or a plot is not there.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Collection, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmark_plots import dice_by_number, forest
from benchmark_statistics import Benchmark, compact, read_results
from benchmark_tables import (
    NO_RESULTS,
    ablated,
    ablation_table,
    cost_tables,
    headline,
    main_tables,
    parts_table,
    settings_tables,
    short,
    stages,
    subset_table,
    trio,
)

from nnunetv2_unimrseg.errors import UserError
from nnunetv2_unimrseg.reports.plots import DPI

REPOSITORY = Path(__file__).parents[1]
PAGES = ("README.md", "docs/benchmarks.md")
ACCURACY, COST, PLOTS = "docs/benchmarks/accuracy", "docs/benchmarks/cost", "docs/benchmarks"

BLOCK = re.compile(r"(<!-- benchmark:(\S+) -->\n)(.*?)(<!-- /benchmark -->)", re.DOTALL)


def plots_of(benchmark: Benchmark) -> dict[str, tuple[str, Callable[[], Any]]]:
    """Return the plots of a benchmark: file name, and what it shows with the function that draws it."""
    name = f"{benchmark.dataset}_{benchmark.plans}_passes{benchmark.budget}"
    plots: dict[str, tuple[str, Callable[[], Any]]] = {}
    if variants := trio(benchmark):
        title = "Dice by number of available modalities, with 95 % bootstrap intervals over patients"
        plots[f"{name}_by_number.png"] = (title, lambda: dice_by_number(benchmark, variants))
    for baseline, others in ablated(benchmark).items():
        title = f"Differences to {short(benchmark, baseline)}, with 95 % bootstrap intervals over patients"
        file = f"{name}_ablations.png" if baseline == stages(benchmark) else f"{name}_ablations_of_{baseline}.png"
        plots[file] = (title, partial(forest, benchmark, others, baseline))
    return plots


def plot_links(benchmark: Benchmark) -> str:
    """Return the plots of a benchmark, for docs/benchmarks.md."""
    folder = Path(PLOTS).name
    return "\n".join(f"![{title}]({folder}/{name})\n" for name, (title, _) in plots_of(benchmark).items())


TABLES: dict[str, Callable[[Benchmark], str]] = {
    "main": main_tables,
    "subsets": subset_table,
    "ablations": ablation_table,
    "settings": settings_tables,
    "plots": plot_links,
}
TABLES_OF_ALL_SETTINGS: dict[str, Callable[[Sequence[Benchmark]], str]] = {"headline": headline, "parts": parts_table}


def block(name: str, benchmarks: Sequence[Benchmark], repository: Path) -> str:
    """Return the text between the markers of this name; of several plans and budgets together or one after the other.

    Raises:
        UserError: when there is no such block.
    """
    kind, _, dataset = name.partition(":")
    own = [benchmark for benchmark in benchmarks if benchmark.dataset == dataset]
    if name == "cost":
        return cost_tables(repository / COST)
    if kind in TABLES_OF_ALL_SETTINGS:
        return TABLES_OF_ALL_SETTINGS[kind](own)
    if kind not in TABLES:
        known = ", ".join((*TABLES_OF_ALL_SETTINGS, *TABLES))
        raise UserError(f"There is no block 'benchmark:{name}'; there are cost, {known}.")
    return "\n".join(filter(None, (TABLES[kind](benchmark) for benchmark in own))) or NO_RESULTS


def pages(repository: Path, benchmarks: Sequence[Benchmark]) -> dict[Path, tuple[str, str, list[str]]]:
    """Return each page as it is, as it should be, and the blocks in which the two differ.

    Raises:
        UserError: when markers do not match, or a dataset's results are shown nowhere.
    """
    result, shown = {}, set()
    for page in (repository / name for name in PAGES):
        before, differing = page.read_text(), []

        def renewed(match: re.Match[str], differing: list[str] = differing) -> str:
            shown.add(match[2])
            text = block(match[2], benchmarks, repository)
            if text != match[3]:
                differing.append(match[2])
            return match[1] + text + match[4]

        if len({len(BLOCK.findall(before)), before.count("<!-- benchmark:"), before.count("<!-- /benchmark -->")}) > 1:
            raise UserError(f"{page}: each '<!-- benchmark:NAME -->' needs a '<!-- /benchmark -->', and the reverse.")
        result[page] = (before, BLOCK.sub(renewed, before), differing)
    for benchmark in benchmarks:
        _check_shown(benchmark.dataset, shown)
    return result


def _check_shown(dataset: str, blocks: Collection[str]) -> None:
    if f"main:{dataset}" not in blocks:
        raise UserError(
            f"The results of {dataset} are shown nowhere: no page has '<!-- benchmark:main:{dataset} -->'. Put this "
            f"line and the line '<!-- /benchmark -->' where the table is wanted in {' or '.join(PAGES)}; other tables "
            "likewise, see --help."
        )


def problems(repository: Path) -> list[str]:
    """Return what does not equal the result files: blocks by page and name, and plots that are not there."""
    benchmarks = read_results(repository / ACCURACY)
    plots = [repository / PLOTS / name for benchmark in benchmarks for name in plots_of(benchmark)]
    return [
        *(f"{page}: {name}" for page, (_, _, names) in pages(repository, benchmarks).items() for name in names),
        *(f"{plot} is not there" for plot in plots if not plot.is_file()),
    ]


def write(repository: Path) -> None:
    """Write the pages' blocks and all plots."""
    benchmarks = read_results(repository / ACCURACY)
    for page, (before, after, _) in pages(repository, benchmarks).items():
        if after != before:
            page.write_text(after)
    for benchmark in benchmarks:
        for name, (_, draw) in plots_of(benchmark).items():
            draw().savefig(repository / PLOTS / name, dpi=DPI, facecolor="white")


def add(results: Path, repository: Path) -> int:
    """Copy result files into the repository, compact; return how many.

    Raises:
        UserError: when the folder has none, or no page shows their dataset; nothing is copied then.
    """
    records = {file.name: json.loads(file.read_text()) for file in sorted(results.glob("*.json"))}
    if not records:
        raise UserError(f"{results} holds no result files (*.json).")
    blocks = {name for page in PAGES for _, name, *_ in BLOCK.findall((repository / page).read_text())}
    for record in records.values():
        _check_shown(record["dataset"], blocks)
    folder = repository / ACCURACY
    folder.mkdir(parents=True, exist_ok=True)
    for name, record in records.items():
        (folder / name).write_text(compact(record))
    return len(records)


def main() -> None:
    """Write or check."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--add", type=Path, metavar="FOLDER", help="copy these result files first (BENCHMARK/results)")
    parser.add_argument("--check", action="store_true", help="write nothing; fail where a page differs")
    parser.add_argument("--repository", type=Path, default=REPOSITORY, help="another copy of README.md and docs/")
    args = parser.parse_args()
    if args.add and args.check:
        parser.error("--add writes, --check does not: give one of them")
    try:
        if args.check:
            if found := problems(args.repository):
                sys.exit("These differ from the results; run benchmark_report.py:\n" + "\n".join(found))
            print(f"{' and '.join(PAGES)} show what the result files hold")
            return
        if args.add:
            print(f"{add(args.add, args.repository)} result files copied")
        write(args.repository)
    except UserError as error:
        sys.exit(f"benchmark_report.py: error: {error}")


if __name__ == "__main__":
    main()
