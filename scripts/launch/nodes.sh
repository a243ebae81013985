#!/bin/bash
# Several machines without a scheduler: run it on each, from the repository's root, with the same flags.
#
#   MACHINES=2 MACHINE=0 MAIN=10.0.0.1 GPUS=8 scripts/launch/nodes.sh --config recipes/configs/favor_videollama3_2b.yaml ...
#   MACHINES=2 MACHINE=1 MAIN=10.0.0.1 GPUS=8 scripts/launch/nodes.sh --config recipes/configs/favor_videollama3_2b.yaml ...
#
# ENGINE=zero2 or ENGINE=zero3 runs DeepSpeed, nothing runs DDP. All machines must see the same --out and data. SIGTERM or
# Ctrl-C on one machine saves and ends the run on all; a process that fails ends those of its machine.
set -euo pipefail
: "${MACHINES:?number of machines}" "${MACHINE:?this one, from 0}" "${MAIN:?address of machine 0}" "${GPUS:?GPUs of each}"

export MASTER_ADDR=$MAIN MASTER_PORT=${PORT:-29500} WORLD_SIZE=$((MACHINES * GPUS))
if [ -n "${ENGINE:-}" ]; then
    export ACCELERATE_USE_DEEPSPEED=true ACCELERATE_DEEPSPEED_CONFIG_FILE="recipes/configs/deepspeed_$ENGINE.json"
fi

# The processes are started here: a launcher in between gives them 30 seconds after a signal, which a step may outlast.
processes=()
trap 'kill -TERM "${processes[@]}" 2>/dev/null' TERM INT
for ((local_rank = 0; local_rank < GPUS; local_rank++)); do
    RANK=$((MACHINE * GPUS + local_rank)) LOCAL_RANK=$local_rank python -u recipes/favor_lora.py --resume auto "$@" &
    processes+=($!)
done
while [ -n "$(jobs -pr)" ]; do
    status=0
    wait -n || status=$?
    if ((status > 0 && status <= 128)); then  # above are signals, to this shell as well
        kill -TERM "${processes[@]}" 2>/dev/null || true
        sleep 10
        kill -KILL "${processes[@]}" 2>/dev/null || true
        exit "$status"
    fi
done
