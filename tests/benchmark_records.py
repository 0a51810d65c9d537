"""Result files of the accuracy benchmark, made up."""

from __future__ import annotations

import itertools
import json

from benchmarks import paired_statistics as statistics

from nnunetv2_unimrseg.modalities import Modalities, all_subsets

DATASET = "Dataset501_SoftTissueSarcoma"
MODALITIES = ("A", "B", "C")
SUBSETS = [Modalities(MODALITIES).describe(subset) for subset in all_subsets(3)]
PATIENTS = {0: ("p0", "p1"), 1: ("p2", "p3")}
RUNS = tuple(itertools.product((0, 1), (0, 1)))


def record(variant, fold=0, seed=0, dice=None, labels=("tumour",), **changed):
    """One result file; `dice(case, subset, label, seed)` from 0 to 1, None where there is no score."""
    dice = dice or (lambda case, subset, label, seed: 0.5)
    rows = [(case, subset, label) for case in PATIENTS[fold] for subset in SUBSETS for label in labels]
    scores = [
        {"case": case, "subset": subset, "label": label, "dice": value, "hd95_mm": 2.0}
        for case, subset, label in rows
        if (value := dice(case, subset, label, seed)) is not None
    ]
    training = {"section": "stage2", "settings": {"initial_lr": 0.03}, "passes": 80, "epochs": 4, "steps": 40}
    return {
        "variant": variant,
        "about": f"{variant}: in words",
        "dataset": DATASET,
        "plans": "P",
        "configuration": "3d_fullres",
        "patch_size": [8, 8, 4],
        "batch_size": 2,
        "features_per_stage": [4, 8],
        "fold": fold,
        "seed": seed,
        "budget": 80,
        "trainings": [{**training, "seconds": 10.0, "epochs_of_these_seconds": 4}],
        "prediction": "bfloat16",
        "device": "1 thread(s) of a CPU",
        "versions": {"torch": "2.9"},
        "modalities": list(MODALITIES),
        "subsets": [{"name": name, "available": name.split("+")} for name in SUBSETS],
        "scores": scores,
        **changed,
    }


def by_patient(values, **by_subset):
    """Dice by patient; plus that of the subset, where named."""
    return lambda case, subset, label, seed: values[int(case[1])] + by_subset.get(subset, 0.0)


def make_runs(variant, dice, runs=RUNS, **changed):
    return [record(variant, fold, seed, dice, **changed) for fold, seed in runs]


def put(folder, records):
    folder.mkdir(parents=True, exist_ok=True)
    for number, one in enumerate(records):
        name = f"{one['variant']}_{one['budget']}_{one['fold']}_{one['seed']}_{number}"
        (folder / f"{name}.json").write_text(json.dumps(one))
    return folder


def read_one(folder, records):
    (benchmark,) = statistics.read_results(put(folder, records))
    return benchmark
