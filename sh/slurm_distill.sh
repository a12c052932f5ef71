#!/bin/sh
#SBATCH --job-name=lors-distill
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@120
#SBATCH --open-mode=append
# One distillation on all GPUs of the job: sbatch sh/slurm_distill.sh [sh/distill_coco_lors_100.sh] [more flags]
# A job that reaches its time limit saves its state, queues itself again and goes on at its outer step.
. "${SLURM_SUBMIT_DIR:-.}/sh/_slurm.sh"
go_on sh/distill_flickr_lors_100.sh "$@"
