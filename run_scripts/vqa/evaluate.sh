#!/usr/bin/env bash
# Visual question answering: answers the questions of a TSV file and scores the answers.
#
#   bash run_scripts/vqa/evaluate.sh
#       The model and the test questions of `train.sh` without arguments; scores are also given by kind of question.
#
#   bash run_scripts/vqa/evaluate.sh --model vqa_base_best.pt --data vqa_test.tsv --bpe-dir BPE \
#           --ans2label-file trainval_ans2label.pkl
#       The published evaluation: all answers of the list are scored, with averaged weights. --search beam takes beam
#       search (beam 5), much faster and nearly as good; --search zero-shot free answers of a pretrained checkpoint.
#
# Writes SPLIT_predict.json as VQA's server takes it, SPLIT_predict.scores.tsv with the probability of the answer given,
# and score.txt; `--search all -- --candidates FILE` writes the probability of every allowed answer. The columns are an
# id, the picture, the question, its answers (empty: not scored) and labels of objects.
set -euo pipefail
# shellcheck source=run_scripts/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"

option data "" "TSV file; without it: the embedded test questions"
option search "" "all, beam or zero-shot (default: all; for the embedded questions beam)"
option ema yes "yes or no: the checkpoint's averaged weights"
option ans2label-file "" "the allowed answers (default: the file that the checkpoint names, if it is still there)"
option normalize no "yes or no: compare answers as the official evaluation does: lower case, no articles, no punctuation"
evaluation_options 0,5,2,3,4 "$ROOT/runs/vqa_nano/checkpoint_best.pt"
read_options "$@"

# -- settings ----------------------------------------------------------------------------------------------

ALL=()
BEAM=(--beam-search-vqa-eval --beam 5 --unnormalized --temperature 1.0)
ZERO_SHOT=(--zero-shot --prompt-type none --beam 20 --unnormalized --patch-image-size 480)

# -- input and work ----------------------------------------------------------------------------------------

choose_evaluation vqa
require_choice search all beam zero-shot
require_choice ema yes no
case ${SEARCH:-${EMBEDDED:+beam}} in
    beam) FLAGS=("${BEAM[@]}") ;;
    zero-shot) FLAGS=("${ZERO_SHOT[@]}") EMA=no ;;
    *) FLAGS=("${ALL[@]}") ;;
esac
if [[ -n $EMBEDDED ]]; then EMA=no; fi
if [[ $EMA == yes ]]; then FLAGS+=(--ema-eval); fi
if [[ -n $ANS2LABEL_FILE ]]; then
    require_file ans2label-file
    FLAGS+=(--ans2label-file "$ANS2LABEL_FILE")
fi
require_choice normalize yes no
COLLECT_FLAGS=()
if [[ $NORMALIZE == yes ]]; then
    FLAGS+=(--vqa-normalize)
    COLLECT_FLAGS+=(--vqa-normalize)
fi
evaluate vqa 5 --scoring vqa "${FLAGS[@]}"
if [[ -n $EMBEDDED ]]; then tell_absent "${GENERATED[0]}"; fi
