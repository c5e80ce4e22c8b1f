#!/usr/bin/env bash
# Train a CenterNet detector in four processes.
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@" # started with sh
set -u
trap '' USR1 # requests a checkpoint; until there is a training, which receives it, it would end this script

usage() {
    cat <<'TEXT'
bash train_full_4p.sh [--data_path=PATH] [--dataset=NAME] [--nproc=N]
                      [--dry_run] [--check_device] [any option of src/main.py]

  --data_path PATH   directory that contains voc/, or voc/ itself;
                     default: train on the generated sample
  --dataset NAME     pascal (default with a data path), coco, custom, or sample
  --nproc N          number of processes, default 4
  --dry_run          print the command and stop
  --check_device     first check the device in its short form
                     (src/tools/check_device.py); stop if it deviates

PASCAL VOC 07+12 is trained with resdcn_18 at 384, 70 epochs, batch 32, with the
learning rate reduced after epochs 45 and 60; custom data with the same network
and size and --preset fast. Options may be given as --name=value or as
--name value; options of src/main.py override the recipe.
TEXT
}

fail() {
    echo "train_full_4p.sh: error: $1" >&2
    exit 2
}

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd) || exit 2
data_path='' dataset='' processes=4 dry_run='' check='' extra=()
while [ $# -gt 0 ]; do
    name=${1%%=*}
    case $name in
        --data_path | --dataset | --nproc)
            if [ "$name" != "$1" ]; then
                value=${1#*=}
            elif [ $# -gt 1 ]; then
                value=$2
                shift
            else
                fail "$name needs a value"
            fi
            [ -n "$value" ] || fail "$name needs a value"
            case $name in
                --data_path) data_path=$value ;;
                --dataset) dataset=$value ;;
                --nproc) processes=$value ;;
            esac
            ;;
        --dry_run) dry_run=yes ;;
        --check_device) check=yes ;;
        -h | --help)
            usage
            exit 0
            ;;
        *) extra+=("$1") ;;
    esac
    shift
done

[[ $processes =~ ^[1-9][0-9]*$ ]] || fail "--nproc $processes: not a valid number of processes"
if [ -n "$data_path" ]; then
    data_path=${data_path/#\~/$HOME}
    [ -d "$data_path" ] || fail "--data_path $data_path: no such folder"
    dataset=${dataset:-pascal}
elif [ -z "$dataset" ]; then
    echo "no --data_path: training on the generated sample"
    dataset=sample
fi

case $dataset in
    sample)
        # A small network and a recipe that learns from scratch in a thousand iterations.
        recipe=(--exp_id sample --preset fast --arch lite --num_epochs 60 --val_intervals 15)
        ;;
    custom)
        # Learns more from few images than the recipe of VOC.
        recipe=(--exp_id custom_resdcn18_384 --preset fast --arch resdcn_18 --input_res 384 --num_epochs 70)
        ;;
    *)
        recipe=(--exp_id "${dataset}_resdcn18_384" --arch resdcn_18 --input_res 384 --batch_size 32)
        recipe+=(--num_epochs 70 --lr_step 45,60)
        ;;
esac

python=${PYTHON:-$(command -v python || command -v python3)} || fail "python not found"
cores=$("$python" - <<'TEXT'
import importlib.util, os, sys
missing = [name for name in ("torch", "torchvision", "numpy", "cv2", "pycocotools", "progress", "matplotlib")
           if importlib.util.find_spec(name) is None]
if missing:
    sys.exit(f"train_full_4p.sh: error: {sys.executable} has no {', '.join(missing)}; pip install -r requirements.txt")
print(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count())
TEXT
) || exit 2
cores_per_process=$((cores / processes > 0 ? cores / processes : 1))
options=(ctdet --dataset "$dataset" ${data_path:+--data_path "$data_path"} "${recipe[@]}")
# Without a core to spare, loader workers only cost (a tenth of the CPU time on two cores).
workers=$((cores < processes ? 0 : cores_per_process < 4 ? cores_per_process : 4))
options+=(--num_workers "$workers" ${extra[@]+"${extra[@]}"})
launch=("$python" "$here/src/centernet/engine/launch.py" --standalone "--nproc_per_node=$processes" "$here/src/main.py")

if [ -n "$dry_run" ]; then
    printf '%q ' "${launch[@]}" "${options[@]}"
    echo
    exit 0
fi
# The backward pass of convolutions in float32 on accelerators that support this variable, as the reference curves need.
export TORCH_SDAA_CONV2D_BACKWARD_USE_FP32=${TORCH_SDAA_CONV2D_BACKWARD_USE_FP32:-1}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$cores_per_process}

# One process checks options, data and weights first, so that an error is reported once.
"$python" "$here/src/main.py" "${options[@]}" --prepare_only || exit
if [ -n "$check" ]; then
    "$python" "$here/src/tools/check_device.py" "${options[@]}" --short || exit
fi
exec "${launch[@]}" "${options[@]}"
