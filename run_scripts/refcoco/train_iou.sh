#!/usr/bin/env bash
# Visual grounding, stage 2: trains a model for the overlap (IoU) of its boxes (self-critical sequence training).
#
#   bash run_scripts/refcoco/train_iou.sh
#       On the embedded data: starts from the model of stage 1 (runs/refcoco_nano, trained first if it is not there), boxes
#       what the test phrases name and scores the boxes by kind of phrase.
#
#   bash run_scripts/refcoco/train_iou.sh --data train.tsv,valid.tsv --restore-file stage1_best.pt --arch ofa_base
#       The settings of stage 2 of captioning on those of train.sh. Nobody has published this: compare with stage 1.
#
# The columns are an id, the picture (base64, or a path), the phrase and its box x0,y0,x1,y1 in pixels. The default is
# where the released files have them.
set -euo pipefail
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=run_scripts/common.sh
source "$HERE/../common.sh"

option data "" "TSV files: train.tsv,valid.tsv; several training files take turns; without it: the embedded data"
option restore-file "" "checkpoint of stage 1 to start from, or none"
option arch "" "ofa_tiny, ofa_medium, ofa_base, ofa_large, ofa_huge or ofa_nano (default: ofa_base with --data)"
training_options 0,4,2,3
read_options "$@"

# -- settings ----------------------------------------------------------------------------------------------

CRITERION=scst_reward_criterion
EMBEDDED_START=refcoco
EMBEDDED_FLAGS=(
    --rows-per-picture 6 --max-image-size 64 --batch-size-valid 200 --eval-args '{"beam":1}'
    --lr 2e-4 --max-update 300
)
EMBEDDED_DATA=prepare_digit_tasks
EMBEDDED_BATCH=96 EMBEDDED_EPOCHS=0 # no limit but that of updates

PUBLISHED_BATCH=2
PUBLISHED_EFFECTIVE_BATCH=64
PUBLISHED=(
    "${SWITCHES[@]}" "${SAVE_OFTEN[@]}"
    --patch-image-size 512 --max-image-size 512 --max-tgt-length 20 --max-epoch 3 --lr 1e-5
    --dropout 0.0 --encoder-drop-path-rate 0.0 --decoder-drop-path-rate 0.0
    --eval-args '{"beam":5,"min_len":4,"max_len_a":0,"max_len_b":4}'
)
BASE=()
LARGE=()

# -- input -------------------------------------------------------------------------------------------------

if [[ -z $DATA ]]; then SAVE_DIR=${SAVE_DIR:-$ROOT/runs/refcoco_iou_nano}; fi
choose_recipe refcoco refcoco_iou
# Boxes are drawn from the model, which makes the gradient unbiased.
RECIPE+=(
    --scst --scst-reward box_iou --scst-args '{"beam":5,"sampling":true,"min_len":4,"max_len_b":4}'
    --eval-acc --best-checkpoint-metric score --maximize-best-checkpoint-metric
)

# -- work --------------------------------------------------------------------------------------------------

train_and_evaluate refcoco refcoco_train refcoco_valid
