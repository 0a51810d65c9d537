"""Train and evaluate variants of the method, the control and stock nnU-Net at equal compute.

    python -m scripts.benchmarks.accuracy -d 501 -p nnUNetUniMRSegPlans -f 0 1 2 3 4 --seeds 0 1 2 --passes 8000 \\
        --variants stock control three_stages -o BENCHMARK -device cpu --jobs 2

The dataset must be planned and preprocessed, and its raw images must be there: what a variant is tested with is left
out before preprocessing. The budget is counted in forward-backward passes of the planned network over a patch, so
several views of a patch are paid for. Variants are those of `variants.py` (`--list`); trainings that several of them
share are done once. Each run gets one file in BENCHMARK/results; a second call goes on where an interrupted one
stopped. `report.py` turns the files into tables and plots. Run it from the repository's root.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import nullcontext
from dataclasses import asdict
from multiprocessing import get_context, parent_process
from pathlib import Path
from threading import Thread
from typing import Any

from .training import DONE, Run, Task, train
from .variants import BUDGET_SETTINGS, MAIN, VARIANTS

METRICS = ("dice", "hd95_mm")


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-d", metavar="DATASET", help="number or name of a preprocessed dataset")
    parser.add_argument("-c", default="3d_fullres", metavar="CONFIGURATION", help="default: %(default)s")
    parser.add_argument("-p", default="nnUNetUniMRSegPlans", metavar="PLANS", help="default: %(default)s")
    parser.add_argument("-f", nargs="+", type=int, default=[0, 1, 2, 3, 4], metavar="FOLD", help="default: all five")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="default: 0 1 2")
    parser.add_argument("--passes", type=int, help="budget of a run, in passes of a patch (a step of batch 2 is 2)")
    parser.add_argument("--epochs", type=int, default=50, help="epochs that the budget is divided into (default: 50)")
    parser.add_argument("--initial_lr", type=float, help="instead of nnU-Net's 0.01; all stages scale with it")
    parser.add_argument(
        "--variants", nargs="+", default=list(MAIN), metavar="VARIANT",
        help=f"names, or 'all' (default: {' '.join(MAIN)})",
    )  # fmt: skip
    parser.add_argument("-o", type=Path, metavar="BENCHMARK", help="folder for trainings and results")
    parser.add_argument("-device", default="cuda", choices=("cpu", "cuda"), help="default: %(default)s")
    parser.add_argument(
        "--jobs",
        type=int,
        default=1,
        help="runs at a time; they share the cores, or OMP_NUM_THREADS threads (default: 1)",
    )
    parser.add_argument("--list", action="store_true", help="list the variants and do nothing")
    return parser.parse_args()


def make_chain(variant: str, args: argparse.Namespace, dataset: str, fold: int, seed: int) -> tuple[Task, ...]:
    """Return the trainings of a variant; each knows the one before it."""
    chosen = VARIANTS[variant]
    settings: dict[str, Mapping[str, Any]] = {}
    previous = None
    chain = []
    for section, share in chosen.shares.items():
        own = all_settings(section, chosen.settings.get(section, {}))
        if args.initial_lr is not None:
            own = scaled_learning_rates(own, args.initial_lr)
        settings = {**settings, section: own}
        previous = Task(
            dataset=dataset, plans=args.p, configuration=args.c, fold=fold, seed=seed,
            passes=round(share * args.passes), epochs=max(2, round(share * args.epochs)), section=section,
            settings=settings, previous=previous,
        )  # fmt: skip
        chain.append(previous)
    return tuple(chain)


def all_settings(section: str, changed: Mapping[str, Any]) -> dict[str, Any]:
    """Return all settings of a section, the defaults too, so that results tell when a default has changed."""
    from nnunetv2_unimrseg.config import UniMRSegConfig

    every = asdict(getattr(UniMRSegConfig.from_dict({section: changed}), section))
    return {name: value for name, value in every.items() if name not in BUDGET_SETTINGS}


def scaled_learning_rates(settings: dict[str, Any], initial_lr: float) -> dict[str, Any]:
    """Return settings whose learning rates are scaled as nnU-Net's 0.01 to `initial_lr`."""
    from nnunetv2_unimrseg.config import TrainingConfig

    factor = initial_lr / TrainingConfig().initial_lr
    return {**settings, **{name: settings[name] * factor for name in ("initial_lr", "final_lr")}}


def evaluate_run(run: Run, output: Path, device: str, threads: int) -> None:
    """Evaluate the last model of a run on its fold's validation cases and write the run's result file."""
    os.environ.update(nnUNet_n_proc_DA="0")
    import torch

    from nnunetv2_unimrseg.evaluation.evaluate import evaluate
    from nnunetv2_unimrseg.inference.options import InferenceOptions
    from nnunetv2_unimrseg.nnunet.paths import inherited_value, read_plans
    from nnunetv2_unimrseg.utils.files import read_json, write_json
    from nnunetv2_unimrseg.utils.hardware import cpu_has_native_bfloat16
    from nnunetv2_unimrseg.utils.versions import package_versions

    torch.set_num_threads(threads)
    last = run.chain[-1]
    workers = 0 if device == "cpu" else 2
    bfloat16 = device == "cpu" and cpu_has_native_bfloat16()  # seven times faster there; nnU-Net itself has float32
    with torch.autocast("cpu", torch.bfloat16) if bfloat16 else nullcontext():
        options = InferenceOptions(
            device=device, use_mirroring=False, num_threads_preprocessing=workers, num_threads_export=workers,
            show_progress=False,
        )  # fmt: skip
        evaluation = evaluate(last.model_folder(output), (last.fold,), store=False, options=options)
    plans = read_plans(last.dataset, last.plans)
    planned = {
        key: inherited_value(plans, last.configuration, key) for key in ("patch_size", "batch_size", "architecture")
    }
    record = {
        "variant": run.variant,
        "about": VARIANTS[run.variant].about,
        "dataset": last.dataset,
        "plans": last.plans,
        "configuration": last.configuration,
        "patch_size": planned["patch_size"],
        "batch_size": planned["batch_size"],
        "features_per_stage": planned["architecture"]["arch_kwargs"]["features_per_stage"],
        "fold": last.fold,
        "seed": last.seed,
        "budget": run.budget,
        "trainings": [
            {
                "section": task.section,
                "settings": task.settings[task.section],
                **read_json(task.model_folder(output) / f"fold_{task.fold}" / DONE),
            }
            for task in run.chain
        ],
        "prediction": "bfloat16" if bfloat16 else "as nnU-Net",
        "device": torch.cuda.get_device_name() if device == "cuda" else f"{threads} thread(s) of a CPU",
        "versions": package_versions("nnunetv2", "torch"),
        "modalities": list(evaluation.modalities),
        "subsets": evaluation.settings["subsets"],
        "scores": json.loads(evaluation.scores[["case", "subset", "label", *METRICS]].to_json(orient="records")),
    }
    path = run.result(output)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, record)


def logged(function: Callable[..., None], log: Path, given: tuple[object, ...]) -> None:
    """Call `function(*given)` with everything it prints in the file `log`; end when the benchmark ends."""
    Thread(target=end_with_parent, daemon=True).start()
    with log.open("a") as stream:
        for number in (1, 2):
            os.dup2(stream.fileno(), number)
        function(*given)
        sys.stdout.flush()


def end_with_parent() -> None:
    """Wait until the parent process ends, and end this one."""
    parent_process().join()
    os._exit(1)


def in_process(function: Callable[..., None], log: Path, given: tuple[object, ...]) -> None:
    """Call `function(*given)` in a process of its own, so that what it sets stays its own."""
    log.parent.mkdir(parents=True, exist_ok=True)
    process = get_context("spawn").Process(target=logged, args=(function, log, given))
    process.start()
    process.join()
    if process.exitcode:
        raise RuntimeError(f"it ended with exit code {process.exitcode}; see {log}")


Job = tuple[str, str | None, Callable[..., None], tuple[object, ...]]
"""Name, name of the job that comes before, and what to call with what."""


def pending_jobs(runs: list[Run], output: Path, device: str, threads: int) -> Iterator[Job]:
    """Yield what is still to be done, each training once."""
    seen = set()
    for run in runs:
        if run.result(output).is_file():
            continue
        before = None
        for task in run.chain:
            if task.name not in seen and not task.is_done(output):
                yield task.name, before, train, (task, output, device, threads)
            seen.add(task.name)
            before = task.name
        yield run.result(output).stem, before, evaluate_run, (run, output, device, threads)


def work(jobs: list[Job], output: Path, processes: int) -> list[str]:
    """Do the jobs, each when the one before it is done; return the names of those that failed or had to be left."""
    from tqdm import tqdm

    waiting = list(jobs)
    unfinished = {name for name, *_ in jobs}
    failed: list[str] = []
    running: dict[Future, str] = {}
    with ThreadPoolExecutor(processes) as pool, tqdm(total=len(jobs), desc="trainings and evaluations") as progress:
        while waiting or running:
            ready = [job for job in waiting if job[1] not in unfinished][: processes - len(running)]
            for name, _, function, given in ready:
                running[pool.submit(in_process, function, output / "logs" / f"{name}.txt", given)] = name
            waiting = [job for job in waiting if job not in ready]
            if not running:
                return failed + [name for name, *_ in waiting]
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                name = running.pop(future)
                progress.update()
                error = future.exception()
                if error is None:
                    unfinished.discard(name)
                else:
                    failed.append(name)
                    tqdm.write(f"{name} failed: {error}")
    return failed


def main() -> None:
    """Run the benchmark."""
    args = arguments()
    if args.list:
        for name, variant in VARIANTS.items():
            shares = ", ".join(f"{section} {share:.0%}" for section, share in variant.shares.items())
            changed = {section: dict(values) for section, values in variant.settings.items() if values}
            print(f"{name}: {variant.about}\n    {shares}{f'; {changed}' if changed else ''}")
        return
    names = list(VARIANTS) if args.variants == ["all"] else args.variants
    problems = [f"there is no variant '{name}' (see --list)" for name in names if name not in VARIANTS]
    problems += [f"{flag} is missing" for flag in ("-d", "-o", "--passes") if not getattr(args, flag.strip("-"))]
    if problems:
        sys.exit("accuracy.py: error: " + "; ".join(problems))
    from nnunetv2_unimrseg.cli.model_arguments import number_from_environment
    from nnunetv2_unimrseg.errors import UserError

    from .input import find_planned_dataset, refuse_other_settings, uneven_budgets

    try:
        dataset = find_planned_dataset(args)
        runs = [
            Run(variant, args.passes, make_chain(variant, args, dataset, fold, seed))
            for seed in args.seeds
            for fold in args.f
            for variant in names
        ]
        refuse_other_settings(runs, args.o)
    except UserError as error:
        sys.exit(f"accuracy.py: error: {error}")
    for remark in uneven_budgets(runs):
        print(remark)
    threads = max(1, number_from_environment("OMP_NUM_THREADS", os.cpu_count() or 1) // args.jobs)
    failed = work(list(pending_jobs(runs, args.o, args.device, threads)), args.o, args.jobs)
    if failed:
        sys.exit(f"{len(failed)} of the trainings and evaluations failed or were left: {', '.join(failed)}")
    print(f"{len(runs)} results in {args.o / 'results'}")


if __name__ == "__main__":
    main()
