#!/usr/bin/env bash
# Visual grounding (RefCOCO, RefCOCO+, RefCOCOg): trains a model.
#
#   bash run_scripts/refcoco/train.sh
#       Phrases for digits of the embedded scenes: starts from the model of questions (runs/vqa_nano, trained first if it
#       is not there), boxes what the test phrases name and scores the boxes by kind of phrase.
#
#   bash run_scripts/refcoco/train.sh --data train.tsv,valid.tsv --restore-file ofa_base.pt --arch ofa_base
#       The published recipe, 10 epochs (RefCOCOg with ofa_base: add -- --max-epoch 12). The original has scripts for
#       ofa_base and ofa_large; ofa_tiny and ofa_medium are trained as base here, ofa_huge as large.
#
# The columns are an id, the picture (base64, or a path), the phrase and its box x0,y0,x1,y1 in pixels. The default is
# where the released files have them.
set -euo pipefail
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=run_scripts/common.sh
source "$HERE/../common.sh"

option data "" "TSV files: train.tsv,valid.tsv; several training files take turns; without it: the embedded data"
option restore-file "" "checkpoint to start from, or none"
option arch "" "ofa_tiny, ofa_medium, ofa_base, ofa_large, ofa_huge or ofa_nano (default: ofa_base with --data)"
training_options 0,4,2,3
read_options "$@"

# -- settings ----------------------------------------------------------------------------------------------

# From the model of questions, which finds what a text names.
EMBEDDED_START=vqa
EMBEDDED_FLAGS=(
    --optimizer muon --rows-per-picture 6 --max-image-size 64 --batch-size-valid 200 --eval-args '{"beam":1}'
    --max-update 1000
)
EMBEDDED_DATA=prepare_digit_tasks
EMBEDDED_BATCH=96 EMBEDDED_EPOCHS=0 # no limit but that of updates

PUBLISHED_BATCH=4 # on each of 4 GPUs, accumulated 8 times
PUBLISHED_EFFECTIVE_BATCH=128
PUBLISHED=(
    "${SWITCHES[@]}" "${SAVE_OFTEN[@]}"
    --patch-image-size 512 --max-image-size 512 --max-tgt-length 20 --max-epoch 10
    --eval-args '{"beam":5,"min_len":4,"max_len_a":0,"max_len_b":4}'
)
BASE=(--lr 5e-5 --encoder-drop-path-rate 0.1 --decoder-drop-path-rate 0.1)
LARGE=(--lr 3e-5 --encoder-drop-path-rate 0.2 --decoder-drop-path-rate 0.2)

# -- input -------------------------------------------------------------------------------------------------

choose_recipe refcoco
RECIPE+=(--eval-acc --best-checkpoint-metric score --maximize-best-checkpoint-metric)

# -- work --------------------------------------------------------------------------------------------------

train_and_evaluate refcoco refcoco_train refcoco_valid
