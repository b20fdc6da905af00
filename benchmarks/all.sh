#!/usr/bin/env bash
# Measures everything that needs a card, on all cards of this machine; results are those of each
# benchmark's own command.
#
# usage: benchmarks/all.sh FOLDER [JOB ...]
#
# FOLDER gets a CSV and a log for every job, and times.txt. Jobs whose times count run one after the
# other on the first card, which they have to themselves if there are several; the others are dealt
# out to the rest. A job that fails does not stop the others. PYTHON names the interpreter.
set -u
out=$(mkdir -p "$1" && cd "$1" && pwd)
shift
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
cards=$(nvidia-smi --list-gpus | wc -l)
begin=$SECONDS

timed=(training table released)
others=(memory budget cells configs tests)
declare -A command=(
  [training]="benchmarks.training --systems ours published --users 46000 --time-limit 12"
  [table]="benchmarks.table --epochs 4"
  [released]="benchmarks.released_losses --time-limit 500"
  [memory]="benchmarks.memory"
  [budget]="benchmarks.budget"
  [cells]="benchmarks.published_cells"
  [configs]="benchmarks.losses --compare configs --processes 9"
  [tests]="pytest -m gpu -q -p no:cacheprovider -p no:benchmark"
)

say() { echo "$((SECONDS - begin)) s: $*" | tee -a "$out/times.txt"; }

run() {  # CARD JOB
  local arguments=(${command[$2]})
  [[ $2 == tests ]] || arguments+=(--output "$out/$2.csv")
  say "$2 begins on card $1"
  CUDA_VISIBLE_DEVICES=$1 "$python" -m "${arguments[@]}" >"$out/$2.log" 2>&1
  say "$2 ended: $?"
}

asked=" ${*:-${timed[*]} ${others[*]}} "
is_asked() { [[ $asked == *" $1 "* ]]; }

(for job in "${timed[@]}"; do is_asked "$job" && run 0 "$job"; done) &
((cards > 1)) || wait
lanes=$((cards > 1 ? cards - 1 : 1))
for ((lane = 0; lane < lanes; lane++)); do
  (
    for ((place = lane; place < ${#others[@]}; place += lanes)); do
      is_asked "${others[place]}" && run $((cards - 1 - lane)) "${others[place]}"
    done
  ) &
done
wait
say "all ended"
