# Shared by the scripts in this directory. Each sources this file with its own arguments and then calls
#     devices N [--master_batch_size M]   set the published number of processes, and the first one's share of a batch
#     train TASK OPTIONS...               train
#     evaluate TASK OPTIONS...            test the checkpoint in the run directory
# All commands run in the repository's root, independent of the current directory.
set -u

usage() {
    cat <<TEXT
bash experiments/$script [--data_path=PATH] [--nproc=N] [--dry_run] [any option of src/main.py and src/test.py]

  --data_path PATH   directory that contains coco/, voc/ or kitti/; default: data/
  --nproc N          number of processes, one per device; default: as published
  --dry_run          print the commands and stop

Other options are passed to all commands and override the recipe, except --load_model, which is passed only to the
training; their paths are relative to the repository.
TEXT
}

fail() {
    echo "$script: error: $1" >&2
    exit 2
}

script=$(basename "$0")
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd) || exit 2
data_path='' processes='' dry_run='' extra=() start=()
while [ $# -gt 0 ]; do
    name=${1%%=*}
    case $name in
        --data_path | --nproc | --load_model)
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
                --nproc) processes=$value ;;
                --load_model) start=(--load_model "$value") ;;
            esac
            ;;
        --dry_run) dry_run=yes ;;
        -h | --help)
            usage
            exit 0
            ;;
        *) extra+=("$1") ;;
    esac
    shift
done
[[ -z $processes || $processes =~ ^[1-9][0-9]*$ ]] || fail "--nproc $processes: not a valid number of processes"
if [ -n "$data_path" ]; then
    data_path=${data_path/#\~/$HOME}
    [ -d "$data_path" ] || fail "--data_path $data_path: no such folder"
    data_path=$(cd "$data_path" && pwd) || exit 2
fi
python=${PYTHON:-$(command -v python || command -v python3)} || fail "python not found"
cd "$root" || exit 2

shares=()
devices() {
    # The smaller share of the first device applies to the published number of devices; otherwise shares are equal.
    if [ -z "$processes" ] || [ "$processes" = "$1" ]; then
        processes=$1
        shares=("${@:2}")
    fi
    cores=$("$python" - "$script" <<'TEXT'
import importlib.util, os, sys
missing = [name for name in ("torch", "torchvision", "numpy", "cv2", "pycocotools", "progress", "matplotlib")
           if importlib.util.find_spec(name) is None]
if missing:
    sys.exit(f"{sys.argv[1]}: error: {sys.executable} has no {', '.join(missing)}; pip install -r requirements.txt")
print(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count())
TEXT
    ) || exit 2
    cores_per_process=$((cores / processes > 0 ? cores / processes : 1))
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$cores_per_process}
    # The backward pass of convolutions in float32 on accelerators that support this variable.
    export TORCH_SDAA_CONV2D_BACKWARD_USE_FP32=${TORCH_SDAA_CONV2D_BACKWARD_USE_FP32:-1}
}

run() {
    if [ -n "$dry_run" ]; then
        printf '%q ' "$@"
        echo
    else
        "$@" || exit
    fi
}

launch() {
    run "$python" src/centernet/engine/launch.py --standalone "--nproc_per_node=$processes" "$@"
}

train() {
    local options=("$@" ${shares[@]+"${shares[@]}"} ${data_path:+--data_path "$data_path"})
    options+=(--num_workers $((cores_per_process < 4 ? cores_per_process : 4)) ${start[@]+"${start[@]}"} ${extra[@]+"${extra[@]}"})
    # One process checks options, data and weights first, so that an error is reported once.
    run "$python" src/main.py "${options[@]}" --prepare_only
    launch src/main.py "${options[@]}"
}

evaluate() {
    launch src/test.py "$@" --resume ${data_path:+--data_path "$data_path"} ${extra[@]+"${extra[@]}"}
}
