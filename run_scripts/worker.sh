#!/usr/bin/env bash
# One process of several: runs a fairseq command, told its place by RANK, LOCAL_RANK and WORLD_SIZE (from torchrun, or
# from common.sh inside SLURM).
#
# fairseq itself reads these variables, but counts GPUs to find its device and so divides by 0 where there are none.
set -euo pipefail

if [[ $1 == *fairseq-generate ]]; then
    # fairseq-generate knows shares of the data, but takes the first GPU and writes one file.
    if [[ ${CUDA_VISIBLE_DEVICES-unset} == unset ]]; then
        export CUDA_VISIBLE_DEVICES=$LOCAL_RANK
    elif [[ -n $CUDA_VISIBLE_DEVICES ]]; then
        IFS=, read -ra devices <<<"$CUDA_VISIBLE_DEVICES"
        export CUDA_VISIBLE_DEVICES=${devices[LOCAL_RANK % ${#devices[@]}]}
    fi
    # --results-path is the last argument.
    exec "${@:1:$#-1}" "${!#}/$RANK" --distributed-world-size "$WORLD_SIZE" --distributed-rank "$RANK"
fi
exec "$@" --distributed-init-method env:// --distributed-no-spawn --distributed-world-size "$WORLD_SIZE" \
    --distributed-rank "$RANK" --device-id "$LOCAL_RANK"
