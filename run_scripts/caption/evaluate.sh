#!/usr/bin/env bash
# Image captioning: captions the pictures of a TSV file and scores the captions.
#
#   bash run_scripts/caption/evaluate.sh
#       The model and the test scenes of `train.sh` without arguments; captions are also read, digit by digit.
#
#   bash run_scripts/caption/evaluate.sh --model caption_base_best.pt --data caption_test.tsv --bpe-dir BPE
#       The published evaluation: beam 5 (ofa_huge: 10, with temperature and length penalty 0.98), at most 16 tokens, no
#       trigram twice.
#
# Writes SPLIT_predict.json, a list of {"image_id", "caption"} without punctuation, and score.txt (CIDEr-D, BLEU-4 and
# ROUGE-L over all pictures). The columns are an id, the picture and its captions, joined by "&&"; the default is where
# the released files have them.
set -euo pipefail
# shellcheck source=run_scripts/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"

option data "" "TSV file; without it: the embedded test scenes"
option arch "" "only ofa_huge makes a difference: its published search"
option cached-tokens "" "document frequencies for CIDEr-D (default: of the references)"
evaluation_options 1,4,2 "$ROOT/runs/caption_nano/checkpoint_best.pt"
read_options "$@"

# -- settings ----------------------------------------------------------------------------------------------

PUBLISHED=(--beam 5 --max-len-b 16 --no-repeat-ngram-size 3)
HUGE=(--beam 10 --max-len-b 16 --no-repeat-ngram-size 3 --temperature 0.98 --lenpen 0.98)
# Digit captions are longer, and say "to the left of" as often as they need to.
EMBEDDED_SEARCH=(--beam 5 --max-len-b 50)
EMBEDDED_BATCH=50 PUBLISHED_BATCH=16

# -- input -------------------------------------------------------------------------------------------------

choose_evaluation caption test
case ${EMBEDDED:+embedded}$ARCH in
    embedded*) SEARCH=("${EMBEDDED_SEARCH[@]}") ;;
    ofa_huge) SEARCH=("${HUGE[@]}") ;;
    *) SEARCH=("${PUBLISHED[@]}") ;;
esac
COLLECT_FLAGS=()
if [[ -n $CACHED_TOKENS ]]; then
    require_file cached-tokens
    SEARCH+=(--cider-document-frequencies "$CACHED_TOKENS")
    COLLECT_FLAGS+=(--document-frequencies "$CACHED_TOKENS")
fi

# -- work --------------------------------------------------------------------------------------------------

score_captions() {
    score_predictions caption
    [[ -n $EMBEDDED ]] || return 0
    prepare read_captions --scenes "$DIGITS/scenes_test.jsonl" --predictions "$PREDICTIONS" |
        keep_in "$RESULTS_PATH/reading.txt"
    prepare contact_sheet --data "$DATA" --predictions "$PREDICTIONS" --out "$RESULTS_PATH/captions.png"
}

predict caption --scoring cider "${SEARCH[@]}"
scoring score_captions
show_results ${EMBEDDED:+reading.txt}
where "captions" "$PREDICTIONS" "captions with scores" "${GENERATED[0]}" \
    ${EMBEDDED:+"pictures with captions" "$RESULTS_PATH/captions.png"}
