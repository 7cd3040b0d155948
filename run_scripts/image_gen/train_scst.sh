#!/usr/bin/env bash
# Drawing what captions say, stage 2: trains a drawing model for what ranks its drawings (self-critical sequence
# training), CLIP's similarity of drawing and caption in the published recipe.
#
#   bash run_scripts/image_gen/train_scst.sh --data train.tsv,valid.tsv --restore-file stage1_best.pt --arch ofa_base \
#           --vqgan-model-path last.ckpt --vqgan-config-path model.yaml --clip-model-path ViT-B-16.pt
#       The published recipe, stage 2, for every size.
#
#   bash run_scripts/image_gen/train_scst.sh
#       On the embedded data: starts from the model of stage 1 (runs/image_gen_nano, trained first if it is not there).
#       How probable the embedded captioning model (runs/caption_nano, likewise) finds the caption is the reward.
#
# The columns are as in train.sh; codes are not learnt from, but a column of them may be there.
set -euo pipefail
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=run_scripts/common.sh
source "$HERE/../common.sh"
# shellcheck source=run_scripts/image_gen/drawing.sh
source "$HERE/drawing.sh"

option data "" "TSV files: train.tsv,valid.tsv; several training files take turns; without it: the embedded data"
option restore-file "" "checkpoint of stage 1 to start from, or none"
option arch "" "ofa_tiny, ofa_medium, ofa_base, ofa_large, ofa_huge or ofa_nano (default: ofa_base with --data)"
option constraint-range "" "ids of the image codes, the only tokens of the loss (default: OFA's, 50265,58457; none: all)"
drawing_options
training_options 0,2,1
read_options "$@"

# -- settings ----------------------------------------------------------------------------------------------

CRITERION=clip_scst_reward_criterion
EMBEDDED_START=image_gen EMBEDDED_DATA=prepare_caption_judge
EMBEDDED_FLAGS=(
    --code-image-size 64 --num-code 64 --max-src-length 40 --batch-size-valid 100
    --eval-args '{"beam":1}' --scst-args '{"beam":5}' --lr 1e-4 --max-update 200 --log-interval 10
)
EMBEDDED_BATCH=16 EMBEDDED_EPOCHS=0 # no limit but that of updates

PUBLISHED_BATCH=1 # on each of 32 GPUs
PUBLISHED_EFFECTIVE_BATCH=32
PUBLISHED=(
    "${SWITCHES[@]}" --keep-last-epochs 15 --keep-best-checkpoints 1 --batch-size-valid 1
    --save-interval-updates 200 --validate-interval-updates 200 --keep-interval-updates 1
    --code-image-size 256 --num-code 1024 --max-src-length 64 --freeze-resnet
    --lr 1e-6 --max-update 5000 --total-num-update 5000 --warmup-updates 0 --warmup-ratio -1
    --dropout 0.0 --encoder-drop-path-rate 0.0 --decoder-drop-path-rate 0.0
    --eval-args '{"beam":24,"min_len":1024,"max_len_b":1024,"sampling_topk":256,"temperature":1.0}'
    --scst-args '{"beam":5,"min_len":1024,"max_len_b":1024,"sampling_topk":256,"temperature":1.0}'
)
BASE=() LARGE=()
FP16=(--fp16 --fp16-scale-window 256)

# -- input -------------------------------------------------------------------------------------------------

if [[ -z $DATA ]]; then
    SAVE_DIR=${SAVE_DIR:-$ROOT/runs/image_gen_scst_nano}
    RANK_BY=${RANK_BY:-caption}
fi
choose_recipe image_gen image_gen_stage2
if [[ -n $EMBEDDED && $RANK_BY == caption && -z $CAPTION_MODEL_PATH ]]; then
    CAPTION_MODEL_PATH=$ROOT/runs/caption_nano/checkpoint_best.pt
fi
choose_drawing
[[ -n $RANKED ]] || fail "--clip-model-path is missing (or another ranking, --rank-by), which is the reward"
RECIPE+=(--scst "${DRAWING[@]}" --best-checkpoint-metric score --maximize-best-checkpoint-metric)
if [[ -n $EMBEDDED ]]; then SELECTED_COLS=0,2,3; fi
restrict_loss

# -- work --------------------------------------------------------------------------------------------------

prepare_caption_judge() {
    prepare_drawings
    [[ $RANK_BY != caption || -f $CAPTION_MODEL_PATH ]] || alone bash "$ROOT/run_scripts/caption/train.sh"
}

train_and_evaluate image_gen image_gen_train image_gen_valid
