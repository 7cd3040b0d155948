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

# ofa_nano, trained from scratch on small pictures: all that was tuned for the embedded data.
# Two epochs of single words come first, then two of captions: see prepare/digits/command.py.
NANO_BATCH=64
NANO=(
    --patch-image-size 64 --max-tgt-length 40 --code-dict-size 512 --num-bins 128
    --label-smoothing 0.0 --dropout 0.0 --adam-betas '(0.9,0.98)' --lr 1e-3 --warmup-ratio 0.06 --max-epoch 4
    --log-interval 20 --num-workers 0
    --eval-args '{"beam":1,"max_len_b":50}' --no-epoch-checkpoints --keep-best-checkpoints 1
)

PUBLISHED_BATCH=8 # on each of 4 GPUs, accumulated 4 times
PUBLISHED_EFFECTIVE_BATCH=128
PUBLISHED=(
    "${SWITCHES[@]}" "${FREEZE_EMBEDDINGS[@]}" "${SAVE_OFTEN[@]}"
    --patch-image-size 480 --max-tgt-length 20
    --lr 1e-5 --encoder-drop-path-rate 0.1 --decoder-drop-path-rate 0.1 --drop-worst-ratio 0.2
    --eval-args '{"beam":5,"max_len_b":16,"no_repeat_ngram_size":3}'
)

# -- input -------------------------------------------------------------------------------------------------

EMBEDDED=''
if [[ -z $DATA ]]; then
    EMBEDDED=yes ARCH=${ARCH:-ofa_nano} SAVE_DIR=${SAVE_DIR:-$ROOT/runs/caption_nano} SELECTED_COLS=0,4,2
    [[ $ARCH == ofa_nano && -z $RESTORE_FILE ]] ||
        fail "--data is missing; --arch and --restore-file need it (see --help)"
fi
ARCH=${ARCH:-ofa_base}
SAVE_DIR=$(absolute "${SAVE_DIR:-$ROOT/runs/caption_stage1_${ARCH#ofa_}}")
case $ARCH in
    ofa_nano)
        RECIPE+=("${NANO[@]}")
        BATCH_SIZE=${BATCH_SIZE:-$NANO_BATCH} EFFECTIVE_BATCH=${EFFECTIVE_BATCH:-$NANO_BATCH}
        RESTORE_FILE=${RESTORE_FILE:-none} PRECISION=${PRECISION:-fp32}
        ;;
    ofa_tiny | ofa_medium | ofa_base) RECIPE+=("${PUBLISHED[@]}" --max-epoch 5 --drop-worst-after 6000) ;;
    ofa_large | ofa_huge) RECIPE+=("${PUBLISHED[@]}" --max-epoch 2 --drop-worst-after 2500) ;;
    *) fail "--arch $ARCH: expected ofa_tiny, ofa_medium, ofa_base, ofa_large, ofa_huge or ofa_nano" ;;
esac
BATCH_SIZE=${BATCH_SIZE:-$PUBLISHED_BATCH} EFFECTIVE_BATCH=${EFFECTIVE_BATCH:-$PUBLISHED_EFFECTIVE_BATCH}
require_training_options
if [[ -z $EMBEDDED ]]; then
    require_tsvs data 2
    require_bpe_dir
    [[ $RESTORE_FILE == none ]] || require_file restore-file
fi
RECIPE+=(--eval-cider --best-checkpoint-metric cider --maximize-best-checkpoint-metric)
if [[ -n $CACHED_TOKENS ]]; then
    require_file cached-tokens
    RECIPE+=(--eval-cider-cached-tokens "$CACHED_TOKENS")
fi

# -- work --------------------------------------------------------------------------------------------------

TIMES=$SAVE_DIR/times.tsv
use_environment
spread_over_slurm "$@"
count_processes
choose_precision
if [[ -n $EMBEDDED ]]; then
    prepare_digits
    WORDS=$DIGITS/train_words.tsv CAPTIONS=$DIGITS/train.tsv BPE_DIR=$DIGITS
    DATA=$WORDS,$WORDS,$CAPTIONS,$CAPTIONS,$DIGITS/valid.tsv
fi
plan_batches
finetune caption --criterion adjust_label_smoothed_cross_entropy "${RECIPE[@]}"

is_leader || exit 0

if [[ -n $EMBEDDED ]]; then
    alone bash "$HERE/evaluate.sh" --model "$SAVE_DIR/checkpoint_best.pt"
    where "data" "$DIGITS"
fi
where "model" "$SAVE_DIR/checkpoint_best.pt" "log" "$SAVE_DIR/train.log" "curves (TensorBoard)" "$SAVE_DIR/tensorboard"
show_times
