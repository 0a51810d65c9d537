"""What the three stages cost, as ratios to stock nnU-Net measured in the same run.

    python -m scripts.benchmarks.cost -d 900 -c 3d_fullres -p nnUNetUniMRSegPlans -device cpu -o cost_cpu.json

Patches are random, so the dataset must be planned, not preprocessed. Trainers take turns on one batch, so that whatever
else the machine does hits all of them; tables hold medians. Stock nnU-Net computes in float32 on a CPU; with
`--precision float32` the trainers of this package do so too, with `auto` they use bfloat16 where the CPU has it. The
tables are printed as Markdown and, with `-o`, written with what they were measured on. Nothing else is kept.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .cost_counts import count_plans, reference_plans
from .cost_measures import Contender, Plans, hardware, peak_memory, prediction_seconds, training_seconds

STOCK = "stock nnU-Net"
NONE = "-"
PREDICTION_TARGETS = {"complete": 1.02, "incomplete": 1.35}
"""Times stock nnU-Net's prediction of a patch."""
PAIRS = {"stage2": {"pairs_every": 1}, "stage3": {"pairs_every": 1}}
"""Settings with which every step is the dearest that the stage has."""
PASS_TARGETS = {"stage1": 1.1, "stage2": 1.15, "stage3": 0.9}
"""Times stock nnU-Net's forward-backward pass: stage 2 sees one view, or two of half of the batch; stage 3 has no
weight gradients of the encoder, so its 1 + K views may take 0.9 (1 + K)."""
PUBLISHED = ("UniMRSeg, the published code", "128 x 128 x 128", "91.4", "38.9 %", "1.62", "2.46", "1.52")
"""Row of `count_table`, as its authors' code (arXiv 2509.16170) counts for four modalities."""


@dataclass(frozen=True)
class Table:
    """A table of results.

    Attributes:
        title: what was measured.
        columns: their names, with units.
        rows: cells as they are shown, one each column.
        note: how it was measured.
    """

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]] = field(default_factory=list)
    note: str = ""

    def markdown(self) -> str:
        """Return the table as Markdown; numbers are right-aligned."""
        lines = [self.columns, ("---", *["--:"] * (len(self.columns) - 1)), *self.rows]
        body = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        return f"### {self.title}\n\n{body}\n" + (f"\n{self.note}\n" if self.note else "")


def arguments(command: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-d", required=True, metavar="DATASET", help="number or name of a planned dataset")
    parser.add_argument("-c", default="3d_fullres", metavar="CONFIGURATION")
    parser.add_argument("-p", default="nnUNetPlans", metavar="PLANS")
    parser.add_argument("-device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--rounds", type=int, default=10, help="measured steps of each trainer (default: 10)")
    parser.add_argument("--precision", default="float32", choices=("float32", "auto", "bfloat16"), help="on a CPU")
    parser.add_argument("--modalities", nargs="+", type=int, default=[2, 4, 8], help="numbers to compare")
    parser.add_argument("--measure", nargs="+", default=list(MEASURES), choices=list(MEASURES), help="default: all")
    parser.add_argument("-o", type=Path, metavar="FILE", help="JSON file for the tables")
    return parser.parse_args(command)


def contenders(precision: str) -> dict[str, Contender]:
    """Return every trainer; stages 2 and 3 with all views in every step (their other steps see one)."""
    own = {"cpu_precision": precision}
    return {
        STOCK: Contender(),
        "modality dropout (control)": Contender("modality_dropout", own),
        "stage 1": Contender("stage1", own),
        "stage 2, a step with pairs": Contender("stage2", own | PAIRS["stage2"]),
        "stage 3, a step with pairs": Contender("stage3", own | PAIRS["stage3"]),
    }


def students(plans: Plans, precision: str) -> dict[str, Contender]:
    """Return stage 3 with 1, 2, 3 and all incomplete subsets a step, as far as there are so many."""
    own = {"cpu_precision": precision} | PAIRS["stage3"]
    every = 2**plans.num_modalities - 2
    numbers = [number for number in (1, 2, 3) if number < every]
    some = {str(number): Contender("stage3", {**own, "subsets_per_step": number}) for number in numbers}
    return {**some, f"all ({every})": Contender("stage3", {**own, "subsets_per_step": "all"})}


def against(target: float | None, value: float, digits: int = 2) -> tuple[str, str]:
    """Return the cells of a target and of whether `value` keeps it; None is no target."""
    return (NONE, NONE) if target is None else (f"{target:.{digits}f}", "yes" if value <= target else "no")


def step_cells(seconds: float, of_stock: float, passes: float, batch_size: int, section: str | None) -> tuple[str, ...]:
    """Return the cells of a training step: passes, seconds, ratio to stock's, target, kept, ratio for each pass.

    Args:
        seconds, of_stock: of a step of this trainer and of stock nnU-Net.
        passes: forward-backward passes over a patch in a step.
        batch_size: of stock nnU-Net, which is its passes.
        section: of the configuration, which names the target.
    """
    ratio = seconds / of_stock
    target = PASS_TARGETS[section] * passes / batch_size if section in PASS_TARGETS else None
    per_pass = ratio * batch_size / passes
    return f"{passes:g}", f"{seconds:.3f}", f"{ratio:.2f}", *against(target, ratio), f"{per_pass:.2f}"


STEP_COLUMNS = ("passes", "seconds", "/ stock", "target", "kept", "/ stock, per pass")


def step_table(plans: Plans, args: argparse.Namespace) -> Table:
    """Time a training step of every trainer."""
    measured = contenders(args.precision)
    seconds = training_seconds(plans, measured, args.rounds, args.device)
    batch_size = plans.entries["batch_size"]
    rows = [
        (name, *step_cells(seconds[name], seconds[STOCK], contender.passes(plans), batch_size, contender.section))
        for name, contender in measured.items()
    ]
    note = (
        "A pass is the network's forward and backward pass over one patch. Targets: stage 1 1.1, stage 2 1.15, stage 3 "
        "(1 + subsets per step) x 0.9. Stage 2's steps without pairs are the control's."
    )
    return Table("Training step", ("trainer", *STEP_COLUMNS), rows, note)


def memory_table(plans: Plans, args: argparse.Namespace) -> Table:
    """Measure the peak memory of a training step of every trainer, each in a process of its own."""
    title = "Peak memory of a training step"
    measured = contenders(args.precision)
    memory = {name: peak_memory(plans, contender, args.device) for name, contender in measured.items()}
    stock, _ = memory[STOCK]
    target = planned_memory(plans)
    on_cpu = args.device == "cpu"
    rows = [
        (
            name, f"{peak / 1e6:.0f}", f"{peak / stock:.2f}", NONE if on_cpu else f"{reserved / 1e6:.0f}",
            *against(target and 1000 * target, reserved / 1e6, digits=0),
        )
        for name, (peak, reserved) in memory.items()
    ]  # fmt: skip
    measured_as = (
        "Weights, optimiser, and the growth of the process's resident memory in a step"
        if on_cpu
        else "Peak is torch.cuda.max_memory_allocated. Reserved is max_memory_reserved"
    )
    note = f"{measured_as}, which is held against the target of the plans (-gpu_memory_target)."
    return Table(title, ("trainer", "peak, MB", "/ stock", "reserved, MB", "target, MB", "kept"), rows, note)


def planned_memory(plans: Plans) -> float | None:
    """Return the memory that the plans were made for, GB; None where this package's planner did not make them."""
    from nnunetv2_unimrseg.planners.planner import PLANNING_KEY

    return plans.plans.get(PLANNING_KEY, {}).get("gpu_memory_target_in_gb")


def prediction_table(plans: Plans, args: argparse.Namespace) -> Table:
    """Time the prediction of a patch, complete and without its first modality."""
    seconds = prediction_seconds(plans, args.rounds, args.device)
    stock = seconds.pop("stock")
    rows = [(STOCK, f"{stock:.3f}", "1.00", NONE, NONE)]
    rows += [
        (f"stage 3, {what}", f"{value:.3f}", f"{value / stock:.2f}", *against(PREDICTION_TARGETS[what], value / stock))
        for what, value in seconds.items()
    ]
    note = "One patch, no mirroring; float32 on a CPU and float16 on CUDA, as nnU-Net predicts."
    return Table("Prediction of a patch", ("what", "seconds", "/ stock", "target", "kept"), rows, note)


def count_table(plans: Plans, args: argparse.Namespace) -> Table:
    """Count parameters and multiply-adds for these plans and for nnU-Net's of BraTS, beside the published code's."""
    del args
    plain = reference_plans(plans, "PlainConvUNet", {"n_conv_per_stage": [2] * 6, "n_conv_per_stage_decoder": [2] * 5})
    residual = reference_plans(
        plans, "ResidualEncoderUNet", {"n_blocks_per_stage": [1, 3, 4, 6, 6, 6], "n_conv_per_stage_decoder": [1] * 5}
    )
    rows = [PUBLISHED]
    for name, these in (("plain U-Net", plain), ("residual encoder", residual), ("these plans", plans)):
        patch = " x ".join(map(str, these.entries["patch_size"]))
        for owner, counts in zip((STOCK, "stage 3"), count_plans(these), strict=True):
            rows.append(
                (
                    f"{owner}, {name}", patch, f"{counts.parameters / 1e6:.3g}",
                    f"{counts.adapter_parameters / counts.parameters:.1%}".replace("%", " %"),
                    f"{counts.complete / 1e12:.3g}", f"{counts.incomplete / 1e12:.3g}",
                    f"{counts.incomplete / counts.complete:.2f}",
                )
            )  # fmt: skip
    columns = (
        "network", "patch", "parameters, M", "of which adapters", "multiply-adds complete, T", "incomplete, T",
        "incomplete / complete",
    )  # fmt: skip
    note = (
        "Convolutions and matrix products. Plain U-Net and residual encoder: nnU-Net's for four modalities and that "
        "patch, 32 to 320 features."
    )
    return Table("Parameters and multiply-adds", columns, rows, note)


def modalities_table(plans: Plans, args: argparse.Namespace) -> Table:
    """Measure everything for several numbers of modalities, with the settings of the plans."""
    own = {"cpu_precision": args.precision}
    stages = {
        "stage1": Contender("stage1", own),
        "stage2": Contender("stage2", own | PAIRS["stage2"]),
        "stage3": Contender("stage3", own | PAIRS["stage3"]),
    }
    rows = []
    for number in args.modalities:
        these = plans.with_modalities(number)
        seconds = training_seconds(these, {STOCK: Contender(), **stages}, args.rounds, args.device)
        of_stock = peak_memory(these, Contender(), args.device)[0]
        predicted = prediction_seconds(these, args.rounds, args.device)
        _, counts = count_plans(these)
        batch_size = these.entries["batch_size"]
        row = [str(number)]
        for name, stage in stages.items():
            per_pass = seconds[name] / seconds[STOCK] * batch_size / stage.passes(these)
            row += [f"{per_pass:.2f}", f"{peak_memory(these, stage, args.device)[0] / of_stock:.2f}"]
        row += [f"{predicted[what] / predicted['stock']:.2f}" for what in ("complete", "incomplete")]
        row += [f"{counts.incomplete / counts.complete:.2f}", f"{counts.adapter_parameters / 1e6:.3g}"]
        rows.append(tuple(row))
    of_stages = tuple(f"{stage}, {what}" for stage in ("stage 1", "stage 2", "stage 3") for what in ("time", "memory"))
    of_prediction = ("prediction, complete", "incomplete", "multiply-adds, incomplete / complete", "adapters, M")
    note = (
        "Time of a pass, memory of a step and time of a prediction are ratios to stock nnU-Net's with as many "
        "modalities; stage 2 with pairs in every step. Adapters in millions of parameters."
    )
    return Table("Growth with the number of modalities", ("modalities", *of_stages, *of_prediction), rows, note)


def subsets_table(plans: Plans, args: argparse.Namespace) -> Table:
    """Measure stage 3 with several numbers of subsets per step."""
    measured = students(plans, args.precision)
    seconds = training_seconds(plans, {STOCK: Contender(), **measured}, args.rounds, args.device)
    stock_memory = peak_memory(plans, Contender(), args.device)[0]
    batch_size = plans.entries["batch_size"]
    rows = []
    for name, contender in measured.items():
        cells = step_cells(seconds[name], seconds[STOCK], contender.passes(plans), batch_size, contender.section)
        rows.append((name, *cells, f"{peak_memory(plans, contender, args.device)[0] / stock_memory:.2f}"))
    columns = ("subsets per step", *STEP_COLUMNS, "peak memory / stock")
    return Table("Growth with the subsets per step of stage 3", columns, rows)


MEASURES: dict[str, Callable[[Plans, argparse.Namespace], Table]] = {
    "steps": step_table,
    "memory": memory_table,
    "prediction": prediction_table,
    "counts": count_table,
    "modalities": modalities_table,
    "subsets": subsets_table,
}


def make_record(args: argparse.Namespace, plans: Plans, dataset: str, tables: list[Table]) -> Mapping[str, Any]:
    """Return what the JSON file holds."""
    import torch

    from nnunetv2_unimrseg.utils.versions import package_versions

    entries = plans.entries
    return {
        "command": shlex.join(["python", "-m", "scripts.benchmarks.cost", *sys.argv[1:]]),
        "device": args.device,
        "hardware": hardware(args.device),
        "versions": package_versions("nnunetv2", "torch"),
        "dataset": dataset,
        "plans": args.p,
        "configuration": args.c,
        "patch_size": entries["patch_size"],
        "batch_size": entries["batch_size"],
        "precision": "float16 autocast" if args.device == "cuda" else args.precision,
        "threads": torch.get_num_threads(),
        "rounds": args.rounds,
        "tables": [asdict(table) for table in tables],
    }


def planned(args: argparse.Namespace) -> tuple[str, Plans]:
    """Return the name of the dataset and its plans.

    Raises:
        UserError: when the dataset, the plans or the configuration are not there.
    """
    from nnunetv2_unimrseg.nnunet.paths import find_dataset, nnunet_folder, read_configuration
    from nnunetv2_unimrseg.utils.files import read_json

    dataset = find_dataset(args.d, "nnUNet_preprocessed")
    plans, _ = read_configuration(dataset, args.p, args.c)
    return dataset, Plans(plans, args.c, read_json(nnunet_folder("nnUNet_preprocessed") / dataset / "dataset.json"))


def main() -> None:
    """Measure and print; what is measured is written at once."""
    args = arguments()
    from nnunetv2_unimrseg.errors import UserError

    try:
        dataset, plans = planned(args)
    except UserError as error:
        sys.exit(f"cost.py: error: {error}")
    tables = []
    for name in args.measure:
        tables.append(MEASURES[name](plans, args))
        print(tables[-1].markdown(), flush=True)
        record = make_record(args, plans, dataset, tables)
        if args.o is not None:
            args.o.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    shown = ("dataset", "configuration", "plans", "patch_size", "batch_size", "hardware", "precision", "versions")
    print("; ".join(f"{name} {record[name]}" for name in shown))


if __name__ == "__main__":
    main()
