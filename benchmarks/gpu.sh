#!/usr/bin/env bash
# Verify and measure this code on an accelerator, in steps of at most ten minutes.
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@" # started with sh
set -uo pipefail

usage() {
    cat <<'TEXT'
bash benchmarks/gpu.sh STEP [OUT]

Runs one step on the accelerator; it is ended after LIMIT seconds (default 580).
Its output is also written to OUT/STEP.txt, its numbers to OUT/STEP.json, its
trainings to OUT/exp. OUT is gpu_results by default.

  list                    print the names of the steps

  environment             card, driver, versions, rates of matrix products
  tests                   the tests that need an accelerator
  sample_1                the sample in one process, loss.py
  sample_4                the sample in four processes on one device, loss.py
  resume                  interrupted and uninterrupted trainings, bit by bit
  test_export             test.py here and on the CPU; export.py: ONNX, TensorRT
                          if it is installed, torch.export, TorchScript
  check_fp32, check_tf32  src/tools/check_device.py in four precisions
  check_bf16, check_fp16
  train_NET               training step; NET is resdcn_18 (384) or dla_34 (512)
  train_compile_NET       the same with torch.compile
  infer_NET               image to boxes; network alone; CUDA graphs
  infer_compile_NET       the same with torch.compile
  memory_NET              peak memory and images/s by batch size
  profile_train_NET       operators, kernels, waits of the host, idle time
  profile_inference_NET   the same of inference
  loader                  the data path alone, by number of workers
  deform_conv_NET         the deformable convolutions alone
  summary                 what was measured, next to published numbers

DEVICE=cpu SMALL=1 runs any step on a CPU with tiny sizes, to test this script.
TEXT
}

fail() {
    echo "gpu.sh: error: $1" >&2
    exit 2
}

nets=(resdcn_18 dla_34)
steps=(environment tests sample_1 sample_4 resume test_export check_fp32 check_tf32 check_bf16 check_fp16)
for step in train train_compile infer infer_compile memory profile_train profile_inference deform_conv; do
    for net in "${nets[@]}"; do steps+=("${step}_$net"); done
done
steps+=(loader summary)

case ${1:-} in
    '' | -h | --help) usage; exit 0 ;;
    list) printf '%s\n' "${steps[@]}"; exit 0 ;;
esac
step=$1
printf '%s\n' "${steps[@]}" | grep -qx -- "$step" || fail "$step: no step of this name; bash benchmarks/gpu.sh list"
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd) || exit 2
out=${2:-${OUT:-gpu_results}}
mkdir -p "$out" || fail "$out: cannot be written"
out=$(cd "$out" && pwd) || exit 2
python=${PYTHON:-$(command -v python || command -v python3)} || fail "python not found"
device=${DEVICE:-auto} small=${SMALL:-}
export PYTHON=$python PYTHONPATH=$root/src OMP_NUM_THREADS=${OMP_NUM_THREADS:-4}
export CUBLAS_WORKSPACE_CONFIG=:4096:8 # for deterministic algorithms
cd "$root" || exit 2

# The step itself. A function of the same name, or a measurement of gpu.py.
measure() {
    "$python" benchmarks/gpu.py "$@" --device "$device" --output "$out" ${small:+--small --repeats 1 --threads 1}
}

tests() {
    "$python" -m pytest -n 0 -m "accelerator and not soak" -q -rs ${small:+tests/models/test_deform_conv.py}
}

# Train the sample in $1 processes, and compare the loss curve with the committed reference, measured on a CPU.
sample() {
    local short=() status
    [ -z "$small" ] || short=(--num_epochs 1 --num_iters 4)
    bash train_full_4p.sh --nproc "$1" --device "$device" --exp_dir "$out/exp" --exp_id "$step" \
        ${short[@]+"${short[@]}"} || return
    "$python" loss.py --run "$out/exp/ctdet/$step"
    status=$?
    [ -z "$small" ] || [ "$status" -ne 1 ] || status=0 # too short to be compared
    return "$status"
}

sample_1() { sample 1; }
sample_4() { sample 4; }

resume() {
    "$python" benchmarks/gpu_runs.py resume --device "$device" --output "$out" ${small:+--archs lite}
}

test_export() {
    local run=$out/exp/ctdet/test_export length=(--num_epochs 8) files=(model.onnx model.pt2 model.ts) more=(--benchmark) common where file
    [ -z "$small" ] || { length=(--num_epochs 1 --num_iters 2) files=(model.onnx) more=(); }
    [ "$device" = cpu ] || ! "$python" -c "import tensorrt" 2>/dev/null || files+=(model.engine)
    common=(--load_model "$run/model_last.pth" --exp_dir "$out/exp" --num_workers 2)
    "$python" src/main.py ctdet --dataset sample --arch resdcn_18 --pretrained none --lr 1e-3 --batch_size 16 \
        "${length[@]}" --val_intervals 0 --num_workers 2 \
        --device "$device" --exp_dir "$out/exp" --exp_id test_export || return
    for where in "$device" cpu; do
        "$python" src/test.py ctdet "${common[@]}" --flip_test --device "$where" --exp_id "test_$where" || return
    done
    "$python" benchmarks/gpu_runs.py same "$out/exp/ctdet/test_$device/results_sample_val.json" \
        "$out/exp/ctdet/test_cpu/results_sample_val.json" || return
    for file in "${files[@]}"; do
        "$python" src/export.py ctdet --load_model "$run/model_last.pth" --output "$out/$file" --with_decode \
            --verify val ${more[@]+"${more[@]}"} || return
    done
}

check() {
    local levels=()
    [ -z "$small" ] || levels=(--short)
    "$python" src/tools/check_device.py ctdet --arch resdcn_18 --device "$device" --exp_dir "$out/exp" \
        --exp_id "$step" ${levels[@]+"${levels[@]}"} "$@"
}

check_fp32() { check; }
check_tf32() { check --precision tf32; }
check_bf16() { check --amp bf16; }
check_fp16() {
    if [ "$device" = cpu ]; then echo "not on a CPU, which computes fp16 slowly"; else check --amp fp16; fi
}

run() {
    local net=resdcn_18
    [[ $step != *_dla_34 ]] || net=dla_34
    case $step in
        environment | loader | summary) measure "$step" ;;
        train_compile_* | infer_compile_*) measure "${step%%_*}" --net "$net" --compile ;;
        *_"$net") measure "${step%_"$net"}" --net "$net" ;;
        *) "$step" ;;
    esac
}

# Once again as a child of timeout, which then ends its processes.
if [ -n "${GPU_STEP_RUNS:-}" ]; then
    run
    exit
fi
started=$SECONDS
GPU_STEP_RUNS=1 timeout -k 10 "${LIMIT:-580}" bash "$root/benchmarks/gpu.sh" "$step" "$out" 2>&1 | tee "$out/$step.txt"
status=${PIPESTATUS[0]}
[ "$status" -ne 124 ] || echo "$step: ended after ${LIMIT:-580} s" | tee -a "$out/$step.txt"
printf '{"step": "%s", "status": %d, "seconds": %d}\n' "$step" "$status" "$((SECONDS - started))" |
    tee "$out/$step.status.json"
exit "$status"
