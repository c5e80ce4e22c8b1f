#!/usr/bin/env bash
# COCO detection, DLA-34, longer. Published AP on val2017: 37.4, with flip test 39.2, with flip and scales 41.7
# (8 devices). To continue from ctdet_coco_dla_1x instead: --load_model exp/ctdet/coco_dla_1x/model_90.pth --resume
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@" # started with sh
source "$(dirname "${BASH_SOURCE[0]}")/run.sh"

recipe=(ctdet --exp_id coco_dla_2x --arch dla_34)
devices 8 --master_batch_size 9
train "${recipe[@]}" --batch_size 128 --lr 5e-4 --num_epochs 230 --lr_step 180,210
evaluate "${recipe[@]}" --keep_res
evaluate "${recipe[@]}" --keep_res --flip_test
evaluate "${recipe[@]}" --keep_res --flip_test --test_scales 0.5,0.75,1,1.25,1.5
