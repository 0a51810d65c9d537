#!/usr/bin/env bash
# The whole job on a CPU: plan, train the three stages, predict unseen patients who lack scans, and evaluate every
# subset of the modalities.
#
#   bash scripts/demo.sh                        on a generated phantom (four modalities), six to eleven minutes
#   bash scripts/demo.sh RAW_DATASET_FOLDER     on a raw nnU-Net dataset, every fifth training patient kept unseen
#
# Uses the active virtual environment where `unimrseg` is installed in it, else makes .venv in the repository (VENV names
# another one), which takes 6 GB, and works in demo_output/ (UNIMRSEG_DEMO_OUTPUT names another folder). Run it again
# after an interruption: it goes on where it stopped.
set -euo pipefail
repository="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
raw_dataset="${1:-}"
active="${VIRTUAL_ENV:-${CONDA_PREFIX:-}}"
[ -x "$active/bin/unimrseg" ] || active="$repository/.venv"
venv="${VENV:-$active}"

fail() { printf 'demo: error: %s\n' "$1" >&2; exit 2; }
say() { printf '\n=== %s (%s s so far)\n' "$1" "$SECONDS"; }
show_and_run() { printf '$ %s\n' "$*"; "$@"; }

[ $# -le 1 ] || fail "one raw dataset folder at most, found $# arguments: $*"
if [ -n "$raw_dataset" ]; then
    [ -f "$raw_dataset/dataset.json" ] || fail "'$raw_dataset' is no raw nnU-Net dataset: it has no dataset.json."
    raw_dataset="$(cd "$raw_dataset" && pwd -P)"
    [[ "$(basename "$raw_dataset")" =~ ^Dataset([0-9]{3})_ ]] ||
        fail "the folder of a raw nnU-Net dataset is called DatasetXXX_Name, found '$(basename "$raw_dataset")'."
fi

if [ ! -x "$venv/bin/unimrseg" ]; then
    python="${PYTHON:-python3}"
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
        fail "Python 3.10 or newer is needed; PYTHON=/path/to/python names one. '$python' is $("$python" --version 2>&1 | head -n 1)."
    say "Installing into $venv (torch and its libraries are several GB)"
    [ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check "$repository"
fi
export PATH="$venv/bin:$PATH"

if [ -n "$raw_dataset" ]; then
    name="$(basename "$raw_dataset")"
    number="$((10#${name:7:3}))"
    settings=(--set stage2.num_epochs=32 stage3.num_epochs=4)
    memory=0.4
else
    name=Dataset900_UniMRSegPhantom
    number=900
    settings=()
    memory=0.2
fi

output="${UNIMRSEG_DEMO_OUTPUT:-$repository/demo_output}/$name"
export nnUNet_raw="$output/nnUNet_raw" nnUNet_preprocessed="$output/nnUNet_preprocessed"
export nnUNet_results="$output/nnUNet_results"
segmentations="$output/segmentations"
evaluation="$output/evaluation"
export nnUNet_n_proc_DA=1 nnUNet_def_n_proc=2
mkdir -p "$nnUNet_raw" "$nnUNet_preprocessed" "$nnUNet_results"
plans=nnUNetUniMRSegPlans
configuration=3d_fullres
eval "$(unimrseg env)"

if [ ! -d "$nnUNet_raw/$name" ]; then
    if [ -n "$raw_dataset" ]; then
        say "Setting every fifth training patient of $name aside as unseen"
        python "$repository/scripts/demo_data.py" split "$raw_dataset" "$nnUNet_raw"
    else
        say "Generating the phantom"
        unimrseg demo -d "$number" -n 20 --unseen 4 --shape 36 45 30
    fi
fi

planned="$output/planned"
if [ ! -f "$planned" ]; then
    say "Planning a narrow network and preprocessing"
    unimrseg plan -d "$number" -c "$configuration" -gpu_memory_target "$memory" --base-features 8 -np 2
    touch "$planned"
fi

unimrseg configure -d "$number" -c "$configuration" -p "$plans" --recipe short ${settings[@]+"${settings[@]}"}

for stage in 1 2 3; do
    trainer="UniMRSegStage${stage}Trainer"
    fold="$nnUNet_results/$name/${trainer}__${plans}__$configuration/fold_0"
    if [ -f "$fold/checkpoint_final.pth" ] && [ -f "$fold/validation/summary.json" ]; then
        say "Stage $stage is trained already"
        continue
    fi
    say "Training stage $stage"
    rm -rf "$segmentations" "$evaluation" # made with the model before this one
    resume=()
    [ -f "$fold/checkpoint_best.pth" ] && resume=(--c)
    nnUNetv2_train "$number" "$configuration" 0 -tr "$trainer" -p "$plans" -device cpu ${resume[@]+"${resume[@]}"}
done

say "Predicting the unseen patients with nnU-Net's own command, each without some of the files"
python "$repository/scripts/demo_data.py" incomplete "$nnUNet_raw/$name" "$output/incomplete_patients"
show_and_run nnUNetv2_predict -i "$output/incomplete_patients" -o "$segmentations" -d "$number" -c "$configuration" \
    -f 0 -tr UniMRSegStage3Trainer -p "$plans" -device cpu --disable_tta -npp 1 -nps 1 --continue_prediction

say "Evaluating every subset of the modalities on the unseen patients, the other files really left out"
show_and_run unimrseg evaluate -i "$nnUNet_raw/$name/imagesTs" -l "$nnUNet_raw/$name/labelsTs" -o "$evaluation" \
    -d "$number" -c "$configuration" -f 0 -p "$plans" -device cpu --disable_tta -npp 1 -nps 1
python "$repository/scripts/demo_figure.py" "$evaluation" "$output/demo.png"

printf '\nDone in %s s.\nTable:  %s\nReport: %s\nFigure: %s\n' \
    "$SECONDS" "$evaluation/table.md" "$evaluation/report.html" "$output/demo.png"
