#!/bin/sh
# Runs a command on the first card of this host that no other worker has: the containers of a
# service are all given the same cards. A lock ends with its process, however that ends.
set -eu
mkdir -p "$PARETOCUT_OUTPUT_DIR/.cards"
for card in $(nvidia-smi --query-gpu=uuid --format=csv,noheader); do
  exec 9>"$PARETOCUT_OUTPUT_DIR/.cards/$card"
  if flock --nonblock 9; then
    export CUDA_VISIBLE_DEVICES="$card"
    exec "$@"
  fi
done
echo "one-card: each card of this host has a worker; scale to as many as there are" >&2
exit 1
