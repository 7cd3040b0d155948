#!/usr/bin/env bash
# Drawing what captions say: trains a model.
#
#   bash run_scripts/image_gen/train.sh
#       From nothing to drawings: installs the package, makes plain scenes of digits (data/digits/drawings_*.tsv), trains
#       a small image tokenizer for them (runs/image_tokenizer), turns the scenes into its codes, trains ofa_nano to draw
#       them (runs/image_gen_nano), draws the test captions and has a classifier of real digits read the drawings.
#
#   bash run_scripts/image_gen/train.sh --data train.tsv,valid.tsv --restore-file ofa_base.pt --arch ofa_base
#       The published recipe, stage 1 (cross entropy), for every size; train_scst.sh is stage 2.
#
# The columns are an id, the caption and the image codes between spaces; the default is where the released files have
# them (id, codes, caption). python -m ofa_fairseq.prepare image_codes makes codes of pictures.
set -euo pipefail
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=run_scripts/common.sh
source "$HERE/../common.sh"
# shellcheck source=run_scripts/image_gen/drawing.sh
source "$HERE/drawing.sh"

option data "" "TSV files: train.tsv,valid.tsv; several training files take turns; without it: the embedded data"
option restore-file "" "checkpoint to start from, or none"
option arch "" "ofa_tiny, ofa_medium, ofa_base, ofa_large, ofa_huge or ofa_nano (default: ofa_base with --data)"
option constraint-range "" "ids of the image codes, the only tokens of the loss (default: OFA's, 50265,58457; none: all)"
drawing_options
training_options 0,2,1
read_options "$@"

# -- settings ----------------------------------------------------------------------------------------------

EMBEDDED_START=none EMBEDDED_DATA=prepare_drawings EMBEDDED_PROCESSES=2
EMBEDDED_FLAGS=(
    --code-image-size 64 --num-code 64 --drop-caption 0.1 --similar-codes --max-src-length 40 --lr 2e-3
    --eval-args '{"beam":1,"sampling_topk":50}' --report-accuracy
)
EMBEDDED_BATCH=64 EMBEDDED_EPOCHS=3

PUBLISHED_BATCH=4 # on each of 32 GPUs, accumulated 4 times
PUBLISHED_EFFECTIVE_BATCH=512
PUBLISHED=(
    "${SWITCHES[@]}" --keep-last-epochs 15 --keep-best-checkpoints 1 --validate-interval 3 --batch-size-valid 1
    --code-image-size 256 --num-code 1024 --max-src-length 64 --report-accuracy
    --lr 1e-3 --max-update 40000 --total-num-update 40000 --warmup-updates 2000 --warmup-ratio -1
    --encoder-drop-path-rate 0.1 --decoder-drop-path-rate 0.1
    --eval-args '{"beam":24,"min_len":1024,"max_len_b":1024,"sampling_topk":256,"temperature":1.0}'
)
BASE=() LARGE=()
FP16=(--fp16 --fp16-scale-window 256)
LABEL_SMOOTHING=0.0

# -- input -------------------------------------------------------------------------------------------------

choose_recipe image_gen image_gen_stage1
choose_drawing
RECIPE+=("${DRAWING[@]}")
if [[ -n $EMBEDDED ]]; then
    SELECTED_COLS=0,2,3
fi
restrict_loss
# Without a ranking the loss says which model is best.
if [[ -n $RANKED ]]; then RECIPE+=(--best-checkpoint-metric score --maximize-best-checkpoint-metric); fi

# -- work --------------------------------------------------------------------------------------------------

train_and_evaluate image_gen image_gen_train image_gen_valid
