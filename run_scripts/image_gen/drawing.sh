# shellcheck shell=bash
# What the scripts of drawing share: the image tokenizer, the ranking of samples, the embedded data. Sourced by them.

TOKENIZER=$ROOT/runs/image_tokenizer # of the embedded pictures
TOKENIZER_FLAGS=(--side 64 --updates 4000)
# Chosen on validation captions.
EMBEDDED_GUIDANCE=2
EMBEDDED_PLAIN=(--sampling-topk 20)
EMBEDDED_GUIDED=(--sampling-topk 50 --guidance "$EMBEDDED_GUIDANCE")

drawing_options() {
    option vqgan-model-path "" "weights of the image tokenizer (last.ckpt), to see drawings"
    option vqgan-config-path "" "its model.yaml"
    option clip-model-path "" "weights of CLIP, to rank samples"
    option clip-model ViT-B-16 "open_clip's name of their model (OpenAI's in open_clip's format: ViT-B-16-quickgelu)"
    option rank-by "" "what ranks samples: clip, caption or package.module:function (default: clip, if it has weights)"
    option caption-model-path "" "checkpoint of a captioning model, for --rank-by caption"
}

# The options make sense: DRAWING are fairseq's flags, RANKED is set if samples are ranked.
choose_drawing() {
    local name variable
    DRAWING=() RANKED=''
    if [[ -n $CLIP_MODEL_PATH ]]; then
        PACKAGE_EXTRAS+=(clip)
        DRAWING+=(--clip-model "$CLIP_MODEL")
    fi
    if [[ -n $EMBEDDED ]]; then
        VQGAN_MODEL_PATH=${VQGAN_MODEL_PATH:-$TOKENIZER/last.ckpt}
        VQGAN_CONFIG_PATH=${VQGAN_CONFIG_PATH:-$TOKENIZER/model.yaml}
    fi
    [[ -n $VQGAN_MODEL_PATH || -z $VQGAN_CONFIG_PATH ]] || fail "--vqgan-model-path is missing beside its YAML"
    [[ -n $VQGAN_CONFIG_PATH || -z $VQGAN_MODEL_PATH ]] || fail "--vqgan-config-path is missing beside the weights"
    for name in vqgan-model-path vqgan-config-path clip-model-path caption-model-path; do
        variable=$(variable_of "$name")
        [[ -n ${!variable} ]] || continue
        # Those of embedded runs may still have to be made.
        [[ -n $EMBEDDED && ${!variable} == "$ROOT"/runs/* ]] || require_file "$name"
        DRAWING+=("--$name" "${!variable}")
    done
    case $RANK_BY in
        '' | *:*) ;;
        clip) [[ -n $CLIP_MODEL_PATH ]] || fail "--rank-by clip: --clip-model-path is missing, weights of CLIP" ;;
        caption)
            [[ -n $CAPTION_MODEL_PATH ]] ||
                fail "--rank-by caption: --caption-model-path is missing, a checkpoint of a captioning model"
            ;;
        *) fail "--rank-by $RANK_BY: expected clip, caption or package.module:function" ;;
    esac
    if [[ -n $RANK_BY ]]; then DRAWING+=(--rank-by "$RANK_BY"); fi
    if [[ -n $RANK_BY || -n $CLIP_MODEL_PATH ]]; then
        RANKED=yes
        [[ -n $VQGAN_MODEL_PATH ]] || fail "to rank drawings give --vqgan-model-path and --vqgan-config-path"
    fi
}

# The published models' vocabulary has its image codes at 50265,58457; that of ofa_nano is the user's.
restrict_loss() {
    if [[ -z $CONSTRAINT_RANGE && $ARCH == ofa_nano ]]; then CONSTRAINT_RANGE=none; fi
    CONSTRAINT_RANGE=${CONSTRAINT_RANGE:-50265,58457}
    if [[ $CONSTRAINT_RANGE != none ]]; then RECIPE+=(--constraint-range "$CONSTRAINT_RANGE"); fi
}

# Scenes, tokenizer and codes, each once.
prepare_drawings() {
    local split pictures
    begin_part "scenes to draw"
    one_at_a_time "$DIGITS/lock" prepare digit_drawings --digits "$DIGITS"
    end_part
    begin_part "image tokenizer"
    if [[ $(cpu_precision) == amp ]]; then TOKENIZER_FLAGS+=(--bf16); fi
    # It is too small for several cores to help.
    OMP_NUM_THREADS=1 one_at_a_time "$DIGITS/lock" prepare train_tokenizer "${TOKENIZER_FLAGS[@]}" \
        --data "$DIGITS/drawings_train.tsv" --column 2 --out "$TOKENIZER"
    end_part
    begin_part "image codes"
    for split in train valid; do
        pictures=$DIGITS/drawings_$split.tsv
        one_at_a_time "$DIGITS/lock" prepare image_codes --data "$pictures" --selected-cols 0,1,2,3 --side 64 \
            --vqgan-model-path "$TOKENIZER/last.ckpt" --vqgan-config-path "$TOKENIZER/model.yaml" \
            --out "$DIGITS/image_gen_$split.tsv"
    done
    end_part
    if [[ -z $DRY_RUN ]]; then require_same_tokenizer; fi
}

# To a model that was trained with another tokenizer, codes mean other pictures.
require_same_tokenizer() {
    local digest folder
    digest=$(cat "$TOKENIZER"/{last.ckpt,model.yaml} | cksum)
    for folder in "$SAVE_DIR" "$(dirname "$RESTORE_FILE")"; do
        [[ ! -f $folder/tokenizer || $(<"$folder/tokenizer") == "$digest" ]] ||
            fail "$folder holds a model that was trained with another image tokenizer than $TOKENIZER" \
                "remove both folders, or give another --save-dir"
    done
    mkdir -p "$SAVE_DIR"
    printf '%s\n' "$digest" >"$SAVE_DIR/tokenizer"
}

sampling_options() {
    option samples "$1" "drawings of each caption"
    option sampling-topk "$2" "each code is one of so many most probable ones (-1: any)"
    option temperature 1.0 "of the samples"
    option guidance "" "for models trained with --drop-caption (default: 1, none; sample.sh: 2 for the embedded model)"
}

# draw FOLDER FLAG...: the captions of DATA as FOLDER/drawings (PNG files and pictures.tsv), each process its share.
draw() {
    local RESULTS_PATH=$1 rank list
    generate image_gen --sampling-topk "$SAMPLING_TOPK" --temperature "$TEMPERATURE" "${DRAWING[@]}" \
        --gen-images-path "$1/drawings" --log-format simple --log-interval 10 "${@:2}"
    if [[ -n $DRY_RUN ]] || ! is_leader; then return; fi
    # Of the other processes; what an interrupted run of more of them has left does not count.
    for ((rank = 1; rank < WORLD_SIZE; rank++)); do
        list=$1/drawings/pictures.$rank.tsv
        [[ -e $list ]] || continue # added before
        tail -n +2 "$list" >>"$1/drawings/pictures.tsv"
        rm "$list"
    done
}
