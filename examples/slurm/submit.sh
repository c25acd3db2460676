#!/bin/bash
# Map many scenes with a SLURM job array: no scheduler of our own, the run directory is all that jobs share.
#
#   bash examples/slurm/submit.sh SCENES DEMS RUN MAP.gpkg [JOBS]
#   bash examples/slurm/submit.sh scenes.csv 'arcticdem/*_dem.tif' /shared/run /shared/map.gpkg 64
#
# The node that this runs on may have no GPU. Say then what those of the jobs have:
#
#   DEVICE=cuda PRECISION=bf16 bash examples/slurm/submit.sh ...
#
# All paths must be the same on all nodes. DEMS may be '' where the table names them, or where there are none.
# Look on with `rtsmap runs show RUN`. Submit again with the same arguments to go on with what is not done.
set -euo pipefail

scenes=$1 dems=$2 run=$3 map=$4 jobs=${5:-16}
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

# 3: some scenes cannot be mapped, which the merge tells again
rtsmap plan "$scenes" ${dems:+--dem "$dems"} --out "$run" \
  --device "${DEVICE:-auto}" --precision "${PRECISION:-auto}" || [ $? -eq 3 ]

work=$(sbatch --parsable --array="1-$jobs" "$here/work.sh" "$run")
# afterany: what jobs left undone that were killed, this one does
sbatch --parsable --dependency="afterany:${work%%;*}" "$here/finish.sh" "$run" "$map"
