#!/bin/bash
# Several machines without a scheduler: run it on each, from the repository's root, with the same flags.
#
#   MACHINES=2 MACHINE=0 MAIN=10.0.0.1 GPUS=8 scripts/launch/nodes.sh --config recipes/configs/favor_videollama3_2b.yaml ...
#   MACHINES=2 MACHINE=1 MAIN=10.0.0.1 GPUS=8 scripts/launch/nodes.sh --config recipes/configs/favor_videollama3_2b.yaml ...
#
# ENGINE=zero2 or ENGINE=zero3 runs DeepSpeed, nothing runs DDP. All machines must see the same --out and data.
set -euo pipefail
: "${MACHINES:?number of machines}" "${MACHINE:?this one, from 0}" "${MAIN:?address of machine 0}" "${GPUS:?GPUs of each}"

engine=(--multi_gpu)
[ -z "${ENGINE:-}" ] || engine=(--use_deepspeed --deepspeed_config_file "recipes/configs/deepspeed_$ENGINE.json" \
    --deepspeed_multinode_launcher standard)
exec accelerate launch "${engine[@]}" --num_machines "$MACHINES" --machine_rank "$MACHINE" --main_process_ip "$MAIN" \
    --main_process_port "${PORT:-29500}" --num_processes $((MACHINES * GPUS)) --mixed_precision no --dynamo_backend no \
    recipes/favor_lora.py --resume auto "$@"
