#!/bin/bash
# Slurm, any number of nodes; submit from the repository's root with the environment active:
#
#   OUT=runs/favor sbatch scripts/launch/slurm.sh --config recipes/configs/favor_videollama3_2b.yaml --data FAVOR/prepared/kept.json --model ID
#
# ENGINE=zero2 or ENGINE=zero3 runs DeepSpeed, nothing runs DDP. Flags go to recipes/favor_lora.py. Five minutes before the
# time limit every process is told; the run saves, ends with status 0, and is queued again until it is finished.
#SBATCH --job-name=favor_lora
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=08:00:00
#SBATCH --signal=USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail
: "${OUT:?name the folder of the run: OUT=runs/favor sbatch scripts/launch/slurm.sh ...}"

MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export MASTER_ADDR MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000))
if [ -n "${ENGINE:-}" ]; then
    export ACCELERATE_USE_DEEPSPEED=true ACCELERATE_DEEPSPEED_CONFIG_FILE="recipes/configs/deepspeed_$ENGINE.json"
fi

# One process a GPU, started by srun itself: a launcher in between would end at the signal and take the run with it.
# shellcheck disable=SC2016  # the variables are each task's own
srun --kill-on-bad-exit=1 bash -c '
    export RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID WORLD_SIZE=$SLURM_NTASKS
    exec python -u recipes/favor_lora.py --out "$0" --resume auto "$@"' "$OUT" "$@"

[ -e "$OUT/finished" ] || scontrol requeue "$SLURM_JOB_ID"
