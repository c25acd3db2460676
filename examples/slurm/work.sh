#!/bin/bash
#SBATCH --job-name=rtsmap-work
#SBATCH --cpus-per-task=4
#SBATCH --mem=16G
#SBATCH --gres=gpu:1
#SBATCH --time=08:00:00
#SBATCH --requeue
# Two minutes before the end, or when it is preempted, a job finishes the shard in hand.
#SBATCH --signal=B:INT@120
#
# One job of the array: its share of the tiles. It waits for no other; the one that finishes a scene's last
# tile goes on to the second looks.
set -euo pipefail

exec rtsmap work "$1" --shard "$SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT"
