#!/usr/bin/env bash
# COCO detection, hourglass. Published AP on val2017: 40.3, with flip test 42.2, with flip and scales 45.1 (5 devices).
# It starts from the weights of ExtremeNet, models/ExtremeNet_500000.pth, which
# src/tools/convert_hourglass_weight.py makes from ExtremeNet_500000.pkl.
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@" # started with sh
source "$(dirname "${BASH_SOURCE[0]}")/run.sh"

recipe=(ctdet --exp_id coco_hg --arch hourglass)
devices 5 --master_batch_size 4
train "${recipe[@]}" --batch_size 24 --lr 2.5e-4 --num_epochs 50 --lr_step 40 --load_model models/ExtremeNet_500000.pth
evaluate "${recipe[@]}" --keep_res
evaluate "${recipe[@]}" --keep_res --flip_test
evaluate "${recipe[@]}" --keep_res --flip_test --test_scales 0.5,0.75,1,1.25,1.5
