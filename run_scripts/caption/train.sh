#!/usr/bin/env bash
# Image captioning: trains a model.
#
#   bash run_scripts/caption/train.sh
#       From nothing to captions of unseen pictures: installs the package, draws the embedded data (scenes of
#       handwritten digits, data/digits), trains ofa_nano (runs/caption_nano), captions the test scenes and scores them.
#
#   bash run_scripts/caption/train.sh --data train.tsv,valid.tsv --restore-file ofa_base.pt --arch ofa_base
#       The published recipe, stage 1 (cross entropy). The original has scripts for ofa_base (5 epochs, the worst tokens
#       dropped after 6000 updates) and ofa_large (2 epochs, 2500); ofa_tiny and ofa_medium are trained as base here,
#       ofa_huge as large.
#
# The columns are an id, the picture (base64, or a path) and a caption; in the validation file all captions of a
# picture, joined by "&&". The default is where the released files have them.
set -euo pipefail
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=run_scripts/common.sh
source "$HERE/../common.sh"

option data "" "TSV files: train.tsv,valid.tsv; several training files take turns; without it: the embedded data"
option restore-file "" "checkpoint to start from, or none"
option arch "" "ofa_tiny, ofa_medium, ofa_base, ofa_large, ofa_huge or ofa_nano (default: ofa_base with --data)"
option cached-tokens "" "document frequencies for CIDEr-D (default: of the validation references)"
training_options 0,4,2
read_options "$@"

# -- settings ----------------------------------------------------------------------------------------------

# Two epochs of single words come first, then two of captions: see prepare/digits/command.py.
EMBEDDED_START=none
EMBEDDED_FLAGS=(--optimizer muon --max-tgt-length 40 --log-interval 20 --eval-args '{"beam":1,"max_len_b":50}')
EMBEDDED_BATCH=64 EMBEDDED_EPOCHS=4

PUBLISHED_BATCH=8 # on each of 4 GPUs, accumulated 4 times
PUBLISHED_EFFECTIVE_BATCH=128
PUBLISHED=(
    "${SWITCHES[@]}" "${FREEZE_EMBEDDINGS[@]}" "${SAVE_OFTEN[@]}"
    --patch-image-size 480 --max-tgt-length 20
    --lr 1e-5 --encoder-drop-path-rate 0.1 --decoder-drop-path-rate 0.1 --drop-worst-ratio 0.2
    --eval-args '{"beam":5,"max_len_b":16,"no_repeat_ngram_size":3}'
)

BASE=(--max-epoch 5 --drop-worst-after 6000)
LARGE=(--max-epoch 2 --drop-worst-after 2500)

# -- input -------------------------------------------------------------------------------------------------

choose_recipe caption caption_stage1
RECIPE+=(--eval-cider --best-checkpoint-metric cider --maximize-best-checkpoint-metric)
if [[ -n $CACHED_TOKENS ]]; then
    require_file cached-tokens
    RECIPE+=(--eval-cider-cached-tokens "$CACHED_TOKENS")
fi

# -- work --------------------------------------------------------------------------------------------------

train_and_evaluate caption train_words train_words train train valid
