"""Put the results of the benchmarks into docs/benchmarks.md and its plots. Run it from the repository's root.

    python -m scripts.benchmarks.report [--add BENCHMARK/results] [--check]

Reads scripts/benchmarks/results/accuracy/*.json (one run each, as `accuracy.py` wrote it or compact) and
scripts/benchmarks/results/cost/*.json (of `cost.py`). Text between `<!-- benchmark:NAME -->` and `<!-- /benchmark -->`
is made anew; NAME is line, settings, main, subsets, ablations, plots or cost. The README may have `line` too. `--add`
first copies result files of a benchmark, compact. `--check` writes nothing and fails where a text does not equal the
results or a plot is not there.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from nnunetv2_unimrseg.errors import UserError
from nnunetv2_unimrseg.reports.plots import DPI

from .paired_statistics import Benchmark, compact, read_results
from .plots import dice_by_number
from .tables import NO_RESULTS, TABLES, cost_tables, markdown, setting, trio

REPOSITORY = Path(__file__).parents[2]
PAGE, README = "docs/benchmarks.md", "README.md"
ACCURACY, COST = "scripts/benchmarks/results/accuracy", "scripts/benchmarks/results/cost"
PLOTS = "docs/benchmarks"

ANY_NAME = r"\S+"
NAMES_ON = {PAGE: ANY_NAME, README: "line"}
"""Which blocks of a page are made, as a regular expression."""


def list_plots(benchmarks: Sequence[Benchmark]) -> dict[str, tuple[str, Callable[[], Any]]]:
    """Return the plots: file name, and what it shows with the function that draws it."""
    return {
        f"{benchmark.dataset}_{benchmark.plans}_passes{benchmark.budget}_by_number.png": (
            f"{setting(benchmark)}: Dice by number of available modalities, with 95 % bootstrap intervals",
            partial(dice_by_number, benchmark, variants),
        )
        for benchmark in benchmarks
        if (variants := trio(benchmark))
    }


def plot_links(benchmarks: Sequence[Benchmark]) -> str:
    """Return a table of the plots: the setting, and the link to its plot."""
    rows = [
        (title.partition(":")[0], f"![{title}]({Path(PLOTS).name}/{name})")
        for name, (title, _) in list_plots(benchmarks).items()
    ]
    return markdown(["setting", "Dice by number of available modalities"], rows, words=2) if rows else NO_RESULTS


def block(name: str, benchmarks: Sequence[Benchmark], repository: Path) -> str:
    """Return the text between the markers of this name.

    Raises:
        UserError: when there is no such block.
    """
    if name == "cost":
        return cost_tables(repository / COST)
    made = {**TABLES, "plots": plot_links}
    if name not in made:
        raise UserError(f"There is no block 'benchmark:{name}'; there are {', '.join(made)} and cost.")
    return made[name](benchmarks)


def pages(repository: Path, benchmarks: Sequence[Benchmark]) -> dict[Path, tuple[str, str, list[str]]]:
    """Return each page as it is, as it should be, and the blocks in which the two differ.

    Raises:
        UserError: when markers do not match, or the page of the benchmarks has no main table.
    """
    result = {}
    for page, names in ((repository / name, names) for name, names in NAMES_ON.items()):
        before, shown, differing = page.read_text(), [], []
        start, end = rf"<!-- benchmark:({names}) -->\n", "<!-- /benchmark -->"

        def renewed(match: re.Match[str], shown: list[str] = shown, differing: list[str] = differing) -> str:
            shown.append(match[2])
            text = block(match[2], benchmarks, repository)
            if text != match[3]:
                differing.append(match[2])
            return match[1] + text + match[4]

        after = re.sub(rf"({start})(.*?)({end})", renewed, before, flags=re.DOTALL)
        ends = before.count(end) if names == ANY_NAME else len(shown)
        if not len(shown) == len(re.findall(start, before)) == ends:
            raise UserError(f"{page}: each '<!-- benchmark:NAME -->' needs a '{end}', and the reverse.")
        if names == ANY_NAME and benchmarks and "main" not in shown:
            raise UserError(
                f"The results are shown nowhere: {page} has no '<!-- benchmark:main -->'. Put this line and the line "
                f"'{end}' where the table is wanted; other tables likewise, see --help."
            )
        result[page] = (before, after, differing)
    return result


def problems(repository: Path) -> list[str]:
    """Return what does not equal the result files: blocks by page and name, and plots that are not there."""
    benchmarks = read_results(repository / ACCURACY)
    plots = [repository / PLOTS / name for name in list_plots(benchmarks)]
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
    (repository / PLOTS).mkdir(exist_ok=True)
    for name, (_, draw) in list_plots(benchmarks).items():
        draw().savefig(repository / PLOTS / name, dpi=DPI, facecolor="white")


def add(results: Path, repository: Path) -> int:
    """Copy result files into the repository, compact; return how many.

    Raises:
        UserError: when the folder has none.
    """
    records = {file.name: json.loads(file.read_text()) for file in sorted(results.glob("*.json"))}
    if not records:
        raise UserError(f"{results} holds no result files (*.json).")
    folder = repository / ACCURACY
    folder.mkdir(parents=True, exist_ok=True)
    for name, record in records.items():
        (folder / name).write_text(compact(record))
    return len(records)


def main() -> None:
    """Write or check."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--add", type=Path, metavar="FOLDER", help="copy these result files first (BENCHMARK/results)")
    parser.add_argument("--check", action="store_true", help="write nothing; fail where the page differs")
    parser.add_argument("--repository", type=Path, default=REPOSITORY, help="another copy of README.md and docs/")
    args = parser.parse_args()
    if args.add and args.check:
        parser.error("--add writes, --check does not: give one of them")
    try:
        if args.check:
            if found := problems(args.repository):
                sys.exit("These differ from the results; run scripts.benchmarks.report:\n" + "\n".join(found))
            print(f"{PAGE} shows what the result files hold")
            return
        if args.add:
            print(f"{add(args.add, args.repository)} result files copied")
        write(args.repository)
    except UserError as error:
        sys.exit(f"report.py: error: {error}")


if __name__ == "__main__":
    main()
