#!/usr/bin/env bash
# Visual entailment (SNLI-VE): trains a model.
#
#   bash run_scripts/snli_ve/train.sh
#       Premises and hypotheses about the embedded scenes: starts from the model of questions (runs/vqa_nano, trained
#       first if it is not there), judges the test hypotheses and scores the answers by kind of premise.
#
#   bash run_scripts/snli_ve/train.sh --data train.tsv,valid.tsv --restore-file ofa_base.pt --arch ofa_base
#       The published recipe. The original has scripts for ofa_base (5 epochs) and ofa_large (6); ofa_tiny and ofa_medium
#       are trained as base here, ofa_huge as large.
#
# The columns are an id, the picture (base64, or a path), the hypothesis, a caption of the picture (the text part of the
# premise) and the label: entailment, neutral or contradiction. The default is where the released files have them.
set -euo pipefail
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=run_scripts/common.sh
source "$HERE/../common.sh"

option data "" "TSV files: train.tsv,valid.tsv; several training files take turns; without it: the embedded data"
option restore-file "" "checkpoint to start from, or none"
option arch "" "ofa_tiny, ofa_medium, ofa_base, ofa_large, ofa_huge or ofa_nano (default: ofa_base with --data)"
training_options 0,2,3,4,5
read_options "$@"

# -- settings ----------------------------------------------------------------------------------------------

# From the model of questions: one that has only captioned finds no digit that a text names.
EMBEDDED_START=vqa
EMBEDDED_FLAGS=(--optimizer muon --rows-per-picture 6 --prompt-type none --batch-size-valid 200 --max-update 1200)
EMBEDDED_DATA=prepare_digit_tasks
EMBEDDED_BATCH=96 EMBEDDED_EPOCHS=0 # no limit but that of updates

PUBLISHED_BATCH=4 # on each of 8 GPUs, accumulated 8 times
PUBLISHED_EFFECTIVE_BATCH=256
LABEL_SMOOTHING=0.0
PUBLISHED=(
    "${SWITCHES[@]}" --keep-best-checkpoints 1 --save-interval-updates 500 --validate-interval-updates 500
    --keep-interval-updates 1
    --patch-image-size 480 --max-tgt-length 20 --prompt-type prev_output
)
BASE=(--lr 5e-5 --max-epoch 5 --encoder-drop-path-rate 0.1 --decoder-drop-path-rate 0.1)
LARGE=(--lr 2e-5 --max-epoch 6 --encoder-drop-path-rate 0.2 --decoder-drop-path-rate 0.2)

# -- input -------------------------------------------------------------------------------------------------

choose_recipe snli_ve
RECIPE+=(--add-caption --best-checkpoint-metric snli_score --maximize-best-checkpoint-metric)

# -- work --------------------------------------------------------------------------------------------------

# First an epoch of claims, which the picture alone decides. Files take turns, and training ends in the third epoch.
train_and_evaluate snli_ve snli_ve_first_train snli_ve_train snli_ve_train snli_ve_valid
