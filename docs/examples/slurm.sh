#!/bin/bash
# A study on the cards of a cluster. Each element of the array is a worker; any may come and go.
#   sbatch --array=0-7 docs/examples/slurm.sh --data interactions.parquet --n-trials 200
# What follows the file are flags of study.run.
#SBATCH --job-name=paretocut
#SBATCH --array=0-3
#SBATCH --gres=gpu:1
#SBATCH --cpus-per-task=8
#SBATCH --mem=64G
#SBATCH --time=04:00:00
#SBATCH --signal=TERM@60
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=paretocut-%A-%a.log

# The password stands in ~/.pgpass, which nobody else may read: host:port:database:user:password
export OPTUNA_STORAGE="postgresql+psycopg://paretocut@db.example.com/paretocut?sslmode=verify-full"
export MLFLOW_TRACKING_URI="https://mlflow.example.com"
# A folder that all nodes see: trials go on from each other's checkpoints.
export PARETOCUT_OUTPUT_DIR="$HOME/paretocut"

srun python -m study.run --study beauty --gpus all "$@"
code=$?
# Its time was up, with the study unfinished: the same element, again.
if [ "$code" -eq 143 ]; then
  scontrol requeue "${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}"
fi
exit "$code"
