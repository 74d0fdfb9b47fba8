#!/bin/bash
# Runs every step of the project at a small size: videos, clip shards, autoencoder, latent shards, DiT, sampled videos.
#
#   ./demo.sh             on a procedural corpus that it makes
#   ./demo.sh DIR         on your own videos
#
# `make demo` sets up .venv and calls this. Every step carries on where it was stopped, so run it again after an
# interruption. Data go to demo/NAME, runs to runs/NAME.

set -euo pipefail
cd "$(dirname "$0")"
[[ -d .venv ]] && PATH="$PWD/.venv/bin:$PATH"

name=corpus videos=demo/corpus/videos
if [[ -n "${1:-}" ]]; then
    videos=$(realpath "$1")
    name=$(basename "$videos" | tr -c '[:alnum:]\n' _)
fi
data=demo/$name runs=runs/demo_$name

export OMP_WAIT_POLICY=passive  # threads that spin while they wait crawl as soon as something else runs here

step() {
    echo
    echo "[$((SECONDS / 60)):$(printf %02d $((SECONDS % 60)))]$(printf ' %q' "$@")"
    "$@"
}

if [[ -z "${1:-}" ]]; then
    step python data_tools/demo/corpus.py --output "$videos" --videos 48 --seconds 4 --seed 0
fi
step python data_tools/shard.py clips --source folder --input "$videos" --output "$data/clips" \
    --config configs/data/demo.yaml
step mmldm train kl_vae --config configs/kl_vae/demo.yaml --processes 2 \
    shards="$data/clips" run="$runs/kl_vae"
step mmldm train autoencoder --config configs/autoencoder/demo.yaml --processes 2 \
    shards="$data/clips" kl_vae="$runs/kl_vae" run="$runs/autoencoder"
step python data_tools/shard.py latents --input "$data/clips" --output "$data/latents" --autoencoder "$runs/autoencoder"
step mmldm train dit --config configs/dit/demo.yaml --processes 2 shards="$data/latents" run="$runs/dit"

usable() {  # passes on those of the files on standard input that no line of the clips' drop log names
    local file
    while IFS= read -r file; do
        grep -qF "\"path\": \"${file#"$videos"/}\"" "$data/clips/dropped.jsonl" || printf '%s\n' "$file"
    done
}

shopt -s nullglob
inputs=$videos  # what a2v and v2a start from: one video of each class, if the videos are in folders by class
for class in "$videos"/*/; do
    video=$(find -L "$class" -type f -iregex '.*\.\(mp4\|mov\|mkv\|webm\|avi\)' | sort | usable | sed -n 1p)
    [[ -n $video ]] || continue
    inputs=$data/inputs
    mkdir -p "$inputs/$(basename "$class")"
    ln -sfn "$(realpath "$video")" "$inputs/$(basename "$class")/$(basename "$video")"
done
for task in svg a2v v2a; do
    input=()
    [[ $task == svg ]] || input=(--input "$inputs")
    step mmldm sample --checkpoint "$runs/dit" --task $task --num-samples 8 --output "$runs/samples" \
        --config configs/sample/demo.yaml "${input[@]}"
done

cat <<END

[$((SECONDS / 60)):$(printf %02d $((SECONDS % 60)))] done
  samples      $runs/samples/*.mp4
  gallery      $runs/samples/index.html
  checkpoints  $runs/{kl_vae,autoencoder,dit}/checkpoints
  TensorBoard  .venv/bin/tensorboard --logdir runs
END
