#!/usr/bin/env bash
# Drawing what captions say: draws the captions of a TSV file and scores the drawings.
#
#   bash run_scripts/image_gen/evaluate.sh
#       The model and the test captions of `train.sh` without arguments, three times without and three times with
#       guidance; a classifier of real digits reads the drawings.
#
#   bash run_scripts/image_gen/evaluate.sh --model image_gen_base_best.pt --data coco_test.tsv --bpe-dir BPE \
#           --vqgan-model-path last.ckpt --vqgan-config-path model.yaml --clip-model-path ViT-B-16.pt
#       The published evaluation: 24 samples of each caption out of the 256 most probable codes, ranked by CLIP. With
#       --real and --inception-weights also FID and Inception Score of the best ones.
#
# Writes all_results/ and top1/ (PNG files named after their captions) and pictures.tsv, which lists them with their
# scores, into the folder drawings of the results. The columns are an id and the caption, perhaps followed by codes; the
# default is where the released files have them (id, codes, caption).
set -euo pipefail
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=run_scripts/common.sh
source "$HERE/../common.sh"
# shellcheck source=run_scripts/image_gen/drawing.sh
source "$HERE/drawing.sh"

option data "" "TSV file; without it: the embedded test captions"
drawing_options
option real "" "TSV file of real pictures, for FID (needs --inception-weights)"
option real-column 1 "its picture column, from 0"
option inception-weights "" "weights of Inception for FID and Inception Score"
sampling_options 24 256
evaluation_options 0,2,1 "$ROOT/runs/image_gen_nano/checkpoint_best.pt"
read_options "$@"

# -- settings ----------------------------------------------------------------------------------------------

EMBEDDED_BATCH=160 PUBLISHED_BATCH=1
EMBEDDED_SEEDS=(1 2 3)

# -- input -------------------------------------------------------------------------------------------------

# One digit, pairs of digit and colour that training never shows, two digits.
EMBEDDED_FILES=("$DIGITS"/drawings_{test,unseen,two}.tsv)
choose_evaluation image_gen drawings_test
choose_drawing
require_count samples
if [[ -n $EMBEDDED ]]; then
    [[ ! " ${ARGUMENTS[*]} " =~ \ --(samples|sampling-topk|guidance)[=\ ] ]] ||
        fail "--${BASH_REMATCH[1]} needs --data: the embedded evaluation has settings of its own"
    SELECTED_COLS=0,3
fi
METRICS=()
if [[ -n $REAL ]]; then
    require_file real
    [[ -n $INCEPTION_WEIGHTS ]] || fail "--real needs --inception-weights, for FID"
    ((REAL_COLUMN < $(awk -F '\t' '{ print NF; exit }' "$REAL"))) ||
        fail "--real-column $REAL_COLUMN: $REAL has fewer columns"
    METRICS+=(--real "$REAL" --column "$REAL_COLUMN")
fi
if [[ -n $INCEPTION_WEIGHTS ]]; then
    require_file inception-weights
    METRICS+=(--inception-weights "$INCEPTION_WEIGHTS")
    PACKAGE_EXTRAS+=(metrics)
fi
if [[ -n $CLIP_MODEL_PATH ]]; then METRICS+=(--clip-weights "$CLIP_MODEL_PATH" --clip-model "$CLIP_MODEL"); fi

# -- work --------------------------------------------------------------------------------------------------

# draw_seeds NAME FLAG...: the captions once for each seed; then what a reader finds in the drawings, as NAME.txt.
draw_seeds() {
    local seed lists=()
    for seed in "${EMBEDDED_SEEDS[@]}"; do
        draw "$RESULTS_PATH/$1/$seed" --seed "$seed" --beam 1 "${@:2}"
        lists+=("$RESULTS_PATH/$1/$seed/drawings/pictures.tsv")
    done
    is_leader || return 0
    part "reading" "$RESULTS_PATH/$1/reading_finished" "$GENERATION" read_drawings "$1" "${lists[@]}"
}

read_drawings() {
    prepare read_drawings --digits "$DIGITS" --pictures "${@:2}" | keep_in "$RESULTS_PATH/$1.txt"
}

show_drawings() {
    prepare contact_sheet --pictures "$1" --out "$RESULTS_PATH/drawings.png"
}

score_drawings() {
    prepare picture_metrics --pictures "$RESULTS_PATH/drawings/pictures.tsv" "${METRICS[@]}" |
        keep_in "$RESULTS_PATH/score.txt"
}

use_environment
spread_over_slurm "${ARGUMENTS[@]}"
count_processes
choose_precision
if [[ -n $EMBEDDED ]]; then
    DATA=$RESULTS_PATH/captions.tsv
    # Each process makes it, since nobody can go on without the whole file.
    if [[ -z $DRY_RUN ]]; then
        cat "${EMBEDDED_FILES[@]}" >"$DATA.$HOSTNAME.$$"
        mv "$DATA.$HOSTNAME.$$" "$DATA"
    fi
    draw_seeds plain "${EMBEDDED_PLAIN[@]}"
    draw_seeds guided "${EMBEDDED_GUIDED[@]}"
    SHOWN=$RESULTS_PATH/guided/${EMBEDDED_SEEDS[0]}/drawings/pictures.tsv
else
    draw "$RESULTS_PATH" --seed 42 --beam "$SAMPLES" --guidance "${GUIDANCE:-1}"
    SHOWN=$RESULTS_PATH/drawings/pictures.tsv
fi
is_leader || exit 0
part "grid of drawings" "$RESULTS_PATH/grid_finished" "$GENERATION" show_drawings "$SHOWN"
if ((${#METRICS[@]})); then
    part "scoring" "$RESULTS_PATH/scoring_finished" "$GENERATION ${METRICS[*]}" score_drawings
fi
say "results"
if [[ -n $EMBEDDED ]]; then
    echo "without guidance:"
    show plain.txt
    printf '\nwith guidance %s:\n' "$EMBEDDED_GUIDANCE"
    show guided.txt
else
    show score.txt
fi
where "drawings" "$(dirname "$SHOWN")" "some of them" "$RESULTS_PATH/drawings.png"
