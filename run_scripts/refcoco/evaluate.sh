#!/usr/bin/env bash
# Visual grounding: boxes what the phrases of a TSV file name and scores the boxes (Acc@0.5).
#
#   bash run_scripts/refcoco/evaluate.sh
#       The model and the test phrases of `train.sh` without arguments; scores are also given by kind of phrase, and how
#       well the probability of a box tells phrases that name nothing in the picture.
#
#   bash run_scripts/refcoco/evaluate.sh --model refcoco_base_best.pt --data refcoco_testA.tsv --bpe-dir BPE
#       The published evaluation: beam 5, exactly four bins.
#
# Writes SPLIT_predict.json, a list of {"uniq_id", "box"} in pixels, SPLIT_predict.scores.tsv with the probability of each
# box, score.txt, and with --draw yes a picture for each row. The columns are an id, the picture, the phrase and its box
# (empty: not scored).
set -euo pipefail
# shellcheck source=run_scripts/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"

option data "" "TSV file; without it: the embedded test phrases"
option draw no "yes or no: a picture for each row with its box (red) and the reference (green)"
evaluation_options 0,4,2,3 "$ROOT/runs/refcoco_nano/checkpoint_best.pt"
read_options "$@"

# -- settings ----------------------------------------------------------------------------------------------

# Boxes are of one length, so that scores of whole boxes order them as the published scores by token do.
PUBLISHED=(--beam 5 --min-len 4 --max-len-a 0 --max-len-b 4 --no-repeat-ngram-size 3 --unnormalized)

# -- input and work ----------------------------------------------------------------------------------------

choose_evaluation refcoco
require_choice draw yes no
COLLECT_FLAGS=(--data "$DATA" --selected-cols "$SELECTED_COLS" --model "$MODEL")
if [[ $DRAW == yes ]]; then COLLECT_FLAGS+=(--draw "$RESULTS_PATH/boxes"); fi

evaluate refcoco 4 --scoring box_accuracy "${PUBLISHED[@]}"
if [[ -n $EMBEDDED ]]; then
    absent=$RESULTS_PATH/absent
    part "generation for absent digits" "$absent/generation_finished" "$GENERATION" \
        run fairseq-generate "$DIGITS/refcoco_absent_test.tsv" --user-dir "$ROOT/ofa_fairseq" --task refcoco \
        --path "$MODEL" --selected-cols "$SELECTED_COLS" --bpe-dir "$BPE_DIR" "${PUBLISHED[@]}" \
        --batch-size "$BATCH_SIZE" --results-path "$absent"
    tell_absent "$absent/generate-test.txt"
fi
