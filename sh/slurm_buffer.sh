#!/bin/sh
#SBATCH --job-name=lors-experts
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@120
#SBATCH --open-mode=append
# Experts on every GPU of the job, one each at a time: sbatch [--nodes 2 ...] sh/slurm_buffer.sh [sh/buffer_coco.sh] [more flags]
# Submit it as often as you like, also while others run: jobs on one --buffer_path divide the experts among them. A job that
# reaches its time limit queues itself again and goes on at the last epoch.
. "${SLURM_SUBMIT_DIR:-.}/sh/_slurm.sh"
go_on sh/buffer_flickr.sh "$@"
