#!/usr/bin/env bash
# Stands for python3.11, fairseq-train and fairseq-generate in tests of the scripts: writes down how it was called, and
# leaves files where the scripts expect them. Fails where the call contains STUB_FAILS.
set -euo pipefail

call="$(basename "$0") $*"
call=${call/#python* -m pip/pip}
call=${call/#python* -m ofa_fairseq.prepare/prepare}
call=${call/#python* -P -m ofa_fairseq.prepare/prepare}
case $call in
    *" -m venv "*)
        mkdir -p "${!#}/bin"
        for name in python fairseq-train fairseq-generate; do cp "$0" "${!#}/bin/$name"; done
        exit
        ;;
    *" -c "* | *" --version") exit ;;
esac
echo "$call" >>"$STUB_LOG"
echo "stub: $call"
[[ -z ${STUB_FAILS:-} || $call != *"$STUB_FAILS"* ]]

option() { # NAME ARGUMENT...: the value of an option
    local name=$1
    while [[ $2 != "$name" ]]; do shift; done
    echo "$3"
}
case $call in
    "prepare digits"*) touch "$(option --out "$@")/test.tsv" && echo 0 >"$(option --out "$@")/test.tsv"; touch "$(option --out "$@")/dict.txt" "$(option --out "$@")/sentencepiece.model" ;;
    "prepare digit_drawings"*) for name in test unseen two; do echo "$name" >"$(option --digits "$@")/drawings_$name.tsv"; done ;;
    "prepare train_tokenizer"*) mkdir -p "$(option --out "$@")" && touch "$(option --out "$@")"/{last.ckpt,model.yaml} ;;
    "prepare image_codes"*) touch "$(option --out "$@")" ;;
    "prepare read_drawings"*) echo "reading of the stub: ${*: -3}" ;;
    "prepare picture_metrics"*) echo "metrics of the stub" ;;
    "prepare collect_predictions"*) touch "$(option --out "$@")"; echo "CIDEr of the stub" ;;
    "prepare read_captions"*) echo "reading of the stub" ;;
    "prepare contact_sheet"*) touch "$(option --out "$@")" ;;
    fairseq-train*) touch "$(option --save-dir "$@")"/checkpoint_{last,best}.pt ;;
    fairseq-generate*)
        folder=$(option --results-path "$@")
        mkdir -p "$folder" # as the real one does
        echo "Generate test with beam=5: CIDEr" >"$folder/generate-test.txt"
        if [[ $call == *--gen-images-path* ]]; then
            mkdir -p "$(option --gen-images-path "$@")"
            rank=0
            if [[ $call == *--distributed-rank* ]]; then rank=$(option --distributed-rank "$@"); fi
            list=pictures.$rank.tsv
            printf 'header\nrow of %s\n' "$rank" >"$(option --gen-images-path "$@")/${list/.0/}"
        fi
        ;;
esac
