#!/usr/bin/env bash
# Image captioning, stage 2: trains a captioning model for CIDEr-D itself (self-critical sequence training).
#
#   bash run_scripts/caption/train_scst.sh
#       On the embedded data: starts from the model of stage 1 (runs/caption_nano, trained first if it is not there),
#       captions the test scenes and scores them.
#
#   bash run_scripts/caption/train_scst.sh --data train.tsv,valid.tsv --restore-file stage1_best.pt --arch ofa_base
#       The published recipe. The original has scripts for ofa_base and ofa_large (which ends at a learning rate of 2e-7);
#       ofa_tiny and ofa_medium are trained as base here, ofa_huge as large.
#
# The columns are an id, the picture (base64, or a path) and all captions of the picture, joined by "&&"; the default is
# where the released files have them. If training diverges: a larger --effective-batch, a smaller learning rate, or a
# frozen BatchNorm (-- --freeze-resnet).
set -euo pipefail
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=run_scripts/common.sh
source "$HERE/../common.sh"

option data "" "TSV files: train.tsv,valid.tsv; several training files take turns; without it: the embedded data"
option restore-file "" "checkpoint of stage 1 to start from, or none"
option arch "" "ofa_tiny, ofa_medium, ofa_base, ofa_large, ofa_huge or ofa_nano (default: ofa_base with --data)"
option cached-tokens "" "document frequencies for CIDEr-D in validation (default: of the validation references)"
option scst-cached-tokens "" "those for the reward, ends of captions counted (default: counted over the training file)"
training_options 1,4,2
read_options "$@"

# -- settings ----------------------------------------------------------------------------------------------

CRITERION=scst_reward_criterion
EMBEDDED_START=caption
# Samples are drawn: beam search finds five captions that hardly differ. Digit captions are longer than people's.
EMBEDDED_FLAGS=(
    --max-tgt-length 40 --lr 2e-4 --log-interval 20 --eval-args '{"beam":1,"max_len_b":50}'
    --scst-args '{"beam":5,"sampling":true,"max_len_b":30}' --max-update 200
)
EMBEDDED_BATCH=64 EMBEDDED_EPOCHS=0 # no limit but that of updates

PUBLISHED_BATCH=2 # on each of 8 GPUs, accumulated 4 times
PUBLISHED_EFFECTIVE_BATCH=64
PUBLISHED=(
    "${SWITCHES[@]}" "${FREEZE_EMBEDDINGS[@]}" "${SAVE_OFTEN[@]}"
    --patch-image-size 480 --max-tgt-length 20 --max-epoch 3 --lr 1e-5
    --dropout 0.0 --encoder-drop-path-rate 0.0 --decoder-drop-path-rate 0.0
    --eval-args '{"beam":5,"max_len_b":16,"no_repeat_ngram_size":3}'
    --scst-args '{"beam":5,"max_len_b":16,"no_repeat_ngram_size":3}'
)
BASE=()
FP16=(--memory-efficient-fp16 --fp16-scale-window 512)
LARGE=(--end-learning-rate 2e-7)

# -- input -------------------------------------------------------------------------------------------------

if [[ -z $DATA ]]; then SAVE_DIR=${SAVE_DIR:-$ROOT/runs/caption_scst_nano}; fi
choose_recipe caption caption_stage2
RECIPE+=(--scst --eval-cider --best-checkpoint-metric cider --maximize-best-checkpoint-metric)
if [[ -n $CACHED_TOKENS ]]; then
    require_file cached-tokens
    RECIPE+=(--eval-cider-cached-tokens "$CACHED_TOKENS")
fi
if [[ -n $SCST_CACHED_TOKENS ]]; then
    require_file scst-cached-tokens
    RECIPE+=(--scst-cider-cached-tokens "$SCST_CACHED_TOKENS")
fi

# -- work --------------------------------------------------------------------------------------------------

train_and_evaluate caption train_references valid
