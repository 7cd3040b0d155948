#!/usr/bin/env bash
# Visual question answering: trains a model.
#
#   bash run_scripts/vqa/train.sh
#       Questions about the embedded scenes: starts from the captioning model (runs/caption_nano, trained first if it is
#       not there), answers the test questions and scores them by kind.
#
#   bash run_scripts/vqa/train.sh --data train.tsv,valid.tsv --restore-file ofa_base.pt --arch ofa_base \
#           --ans2label-file trainval_ans2label.pkl
#       The published recipe. The original has scripts for ofa_base (15 epochs) and ofa_large (40,000 updates); ofa_tiny
#       and ofa_medium are trained as base here, ofa_huge as large.
#
# The columns are an id, the picture (base64, or a path), the question, its answer and the labels of objects in the
# picture, which may be missing with --add-object no. An answer is text, or several with confidences:
# 0.6|!+cat&&1.0|!+dog. The default columns are where the released files have them.
set -euo pipefail
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=run_scripts/common.sh
source "$HERE/../common.sh"

option data "" "TSV files: train.tsv,valid.tsv; several training files take turns; without it: the embedded data"
option restore-file "" "checkpoint to start from, or none"
option arch "" "ofa_tiny, ofa_medium, ofa_base, ofa_large, ofa_huge or ofa_nano (default: ofa_base with --data)"
option ans2label-file "" "the allowed answers, pickle, JSON or one a line (default: answers are free)"
option add-object yes "yes or no: the question goes with the labels of objects"
training_options 0,5,2,3,4
read_options "$@"

# -- settings ----------------------------------------------------------------------------------------------

# Six rows of each picture. Two epochs of lookups, until the model finds digits by what a text says of them; then four
# questions and two descriptions of each picture. No prompts: the encoder learns to look up, where phrases need it.
EMBEDDED_FLAGS=(
    --optimizer muon --rows-per-picture 6 --prompt-type none --val-inference-type beamsearch
    --eval-args '{"beam":1}' --batch-size-valid 200 --max-update 1400
)
EMBEDDED_DATA=prepare_digit_tasks
EMBEDDED_BATCH=96 EMBEDDED_EPOCHS=0 # no limit but that of updates

PUBLISHED_BATCH=4 # on each of 32 GPUs, accumulated 4 times
PUBLISHED_EFFECTIVE_BATCH=512
PUBLISHED=(
    "${SWITCHES[@]}" "${FREEZE_EMBEDDINGS[@]}" --keep-last-epochs 15 --keep-best-checkpoints 1
    --patch-image-size 480 --max-object-length 30 --max-tgt-length 30 --lr 5e-5 --prompt-type prev_output
    --val-inference-type allcand --valid-batch-size 20
    --uses-ema --store-ema --ema-fp32 --ema-decay 0.9999 --ema-start-update 0
)
BASE=(--encoder-drop-path-rate 0.1 --decoder-drop-path-rate 0.1 --max-epoch 15 --warmup-ratio 0.04)
LARGE=(
    --encoder-drop-path-rate 0.2 --decoder-drop-path-rate 0.2
    --max-update 40000 --total-num-update 40000 --warmup-updates 1000 --warmup-ratio -1
)

# -- input -------------------------------------------------------------------------------------------------

choose_recipe vqa
RECIPE+=(--best-checkpoint-metric vqa_score --maximize-best-checkpoint-metric)
if [[ -z $EMBEDDED ]]; then
    require_choice add-object yes no
    [[ $ADD_OBJECT == no || $SELECTED_COLS == *,*,*,*,* ]] ||
        fail "--selected-cols $SELECTED_COLS: no fifth column with object labels; name it, or give --add-object no"
    if [[ $ADD_OBJECT == yes ]]; then RECIPE+=(--add-object); fi
    if [[ -n $ANS2LABEL_FILE ]]; then
        require_file ans2label-file
        RECIPE+=(--ans2label-file "$ANS2LABEL_FILE")
    fi
else
    RECIPE+=(--ans2label-file "$DIGITS/ans2label.json")
fi

# -- work --------------------------------------------------------------------------------------------------

train_and_evaluate vqa vqa_first_train vqa_first_train vqa_train vqa_valid
