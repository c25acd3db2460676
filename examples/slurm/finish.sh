#!/bin/bash
#SBATCH --job-name=rtsmap-finish
#SBATCH --cpus-per-task=4
#SBATCH --mem=32G
#SBATCH --gres=gpu:1
#SBATCH --time=08:00:00
#
# What is left of the run, if anything, then the map.
set -euo pipefail

rtsmap work "$1" || [ $? -eq 3 ]
rtsmap merge "$1" --out "$2" --overwrite
