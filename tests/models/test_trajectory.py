"""Training steps of three networks against the reference, in float64: network, loss, gradients and optimizer."""

import math

import numpy as np
import pytest
import torch
from tests.helpers.conformance import (
    CONFORMANCE,
    DETECTION_HEADS,
    formula_input,
    load_formula_weights,
    needs_conformance,
    sweep,
)

from centernet.models import create_model
from centernet.ops.image import draw_umich_gaussian, gaussian_radius
from centernet.opts import opts
from centernet.tasks.ctdet import CtdetLoss

INPUT_SHAPE = (2, 3, 96, 128)
HEIGHT, WIDTH = 24, 32

# The reference's first five batches: the parameters of the formula input, and of both images the objects as
# (class, cell, width, height, offset x, offset y).
INPUT_PARAMS = [
    (
        0.07504645648784157,
        0.0741243102804152,
        1.6571796011249804,
        1.280466466525731,
        0.17082268380006116,
        0.23497801737546084,
        0.4399658011867085,
        679111611,
    ),
    (
        0.16055554407079933,
        0.08428513252593743,
        1.2450669737841586,
        1.8407814602911128,
        0.2048115121240263,
        0.12845206944658039,
        0.8162402005165705,
        1711481551,
    ),
    (
        0.17725349991611888,
        0.055944221313203674,
        1.2484251716618173,
        1.1926228196653512,
        0.1247969669257635,
        0.2859680341161347,
        0.9006550837334271,
        572358897,
    ),
    (
        0.14263019358564094,
        0.032833984424041986,
        1.015907387308158,
        2.2123108256618282,
        0.20914216494167712,
        0.1477591774767647,
        1.0738520421364608,
        107916133,
    ),
    (
        0.11757294380226022,
        0.1689325330988188,
        1.3564600492053063,
        2.033886630212995,
        0.26918952090319576,
        0.2793852888781293,
        0.6617759345616887,
        1075233818,
    ),
]
OBJECTS = [
    [
        [(7, 528, 9.617175, 7.507863, 0.9501133, 0.5854187), (10, 436, 14.649502, 13.238649, 0.9498749, 0.67597675)],
        [(3, 501, 10.744415, 10.520569, 0.48050117, 0.8889103)],
    ],
    [
        [
            (9, 490, 13.848227, 9.492126, 0.5895529, 0.6247616),
            (0, 398, 16.32312, 13.29806, 0.7783699, 0.7217121),
            (14, 395, 7.684457, 12.77012, 0.099226, 0.7672863),
            (12, 304, 3.3850021, 14.887808, 0.41565323, 0.7177801),
        ],
        [
            (15, 181, 6.2022877, 8.370574, 0.17499924, 0.81631136),
            (9, 276, 16.751444, 5.533351, 0.047138214, 0.95054436),
            (3, 532, 5.7808876, 6.5171175, 0.27648163, 0.6767788),
        ],
    ],
    [
        [
            (4, 686, 9.243416, 3.219963, 0.72860146, 0.39001846),
            (4, 518, 12.34996, 13.491916, 0.8983383, 0.25404167),
            (10, 366, 7.839261, 13.747366, 0.1925106, 0.13303089),
            (0, 404, 6.272352, 9.427173, 0.62784576, 0.6646595),
            (4, 363, 11.21664, 2.912796, 0.36878395, 0.07645321),
        ],
        [
            (9, 595, 14.914007, 9.87682, 0.37397766, 0.061590195),
            (0, 426, 14.045744, 3.6523962, 0.20833683, 0.78577423),
            (18, 277, 11.761526, 7.425211, 0.59594727, 0.3257761),
            (2, 290, 4.204679, 12.333881, 0.86259294, 0.015983582),
        ],
    ],
    [
        [
            (19, 373, 9.995443, 8.831728, 0.92425156, 0.014479637),
            (6, 305, 5.891695, 13.550423, 0.23636627, 0.4538765),
            (16, 204, 10.6309805, 9.164811, 0.6761532, 0.8571744),
        ],
        [(5, 554, 3.8065233, 8.493246, 0.6479206, 0.46509552), (0, 406, 16.508125, 10.474466, 0.74593735, 0.89620304)],
    ],
    [
        [(13, 211, 6.0994034, 9.494408, 0.8356457, 0.8863859)],
        [
            (6, 517, 8.170864, 12.950376, 0.78898144, 0.21288681),
            (13, 314, 3.4500637, 8.615572, 0.035842896, 0.42878914),
            (12, 237, 4.672596, 7.501627, 0.2178669, 0.71662045),
        ],
    ],
]

# Its loss, hm_loss, wh_loss and off_loss in the first five steps.
LOSSES = {
    "res_18": [
        [16.7867428101, 14.9267839313, 11.2099508783, 0.738963791016],
        [8.37724705403, 6.79266761199, 10.0808690383, 0.576492538207],
        [6.72962092524, 5.48161756996, 9.19628272464, 0.328375082824],
        [8.93897380204, 7.69958792981, 9.55802093274, 0.283583778955],
        [9.69116866236, 8.69735100673, 7.32529334324, 0.261288321305],
    ],
    "resdcn_18": [
        [18.3271859434, 16.3676678732, 11.3621106119, 0.823307009044],
        [9.3545647641, 7.7729167787, 10.2435351278, 0.557294472621],
        [7.80804852258, 6.49552796935, 9.57375297879, 0.355145255353],
        [11.5415606773, 10.0212365363, 9.85501332097, 0.534822808945],
        [12.9946593978, 11.7940260419, 7.80144065709, 0.420489290167],
    ],
    "dla_34": [
        [20.210441445, 18.3310459726, 10.8727014925, 0.792125323191],
        [10.043239676, 8.38100702884, 9.78122944776, 0.684109702409],
        [7.95457748079, 6.64217472775, 9.02751569713, 0.409651183331],
        [11.168919816, 9.69114270944, 9.41531425402, 0.536245681127],
        [12.3021643382, 11.0924344152, 7.1488922515, 0.494840697883],
    ],
}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def golden_targets(index: int) -> dict[str, np.ndarray]:
    """hm, reg_mask, ind, wh and reg of one of the batches above."""
    hm = np.zeros((2, DETECTION_HEADS["hm"], HEIGHT, WIDTH), dtype=np.float32)
    reg_mask, ind = np.zeros((2, 50), dtype=np.uint8), np.zeros((2, 50), dtype=np.int64)
    wh, reg = np.zeros((2, 50, 2), dtype=np.float32), np.zeros((2, 50, 2), dtype=np.float32)
    for n, objects in enumerate(OBJECTS[index]):
        for k, (cls, cell, w, h, dx, dy) in enumerate(objects):
            radius = max(0, int(gaussian_radius((math.ceil(h), math.ceil(w)))))
            draw_umich_gaussian(hm[n, cls], (cell % WIDTH, cell // WIDTH), radius)
            reg_mask[n, k], ind[n, k], wh[n, k], reg[n, k] = 1, cell, (w, h), (dx, dy)
    return {"hm": hm, "reg_mask": reg_mask, "ind": ind, "wh": wh, "reg": reg}


def stored_targets(file, index: int) -> dict[str, np.ndarray]:
    return {name: file[f"batch{index}_{name}"] for name in ("hm", "reg_mask", "ind", "wh", "reg")}


def train(arch: str, params, targets: list[dict[str, np.ndarray]], steps: int) -> tuple[np.ndarray, dict[str, float]]:
    """Losses (steps, 4) before each update, and the gradients' norms by parameter in the first step (NaN: none)."""
    opt = opts().parse(["ctdet", "--dataset", "pascal", "--arch", arch, "--gpus", "-1"])
    model = load_formula_weights(create_model(arch, opt.heads, opt.head_conv).double()).train()
    loss_of = CtdetLoss(opt)
    optimizer = torch.optim.Adam(model.parameters(), lr=1.25e-4)
    losses, norms = [], {}
    for step in range(steps):
        index = step % len(targets)
        x = formula_input(INPUT_SHAPE, params[index]).double()
        batch = {name: torch.from_numpy(value) for name, value in targets[index].items()}
        batch |= {name: batch[name].double() for name in ("hm", "wh", "reg")}
        loss, parts = loss_of(model(x), batch)
        optimizer.zero_grad()
        loss.backward()
        if step == 0:
            grads = {name: parameter.grad for name, parameter in model.named_parameters()}
            norms = {name: math.nan if grad is None else float(grad.norm()) for name, grad in grads.items()}
        optimizer.step()
        losses.append([float(parts[name].detach()) for name in ("loss", "hm_loss", "wh_loss", "off_loss")])
    return np.array(losses), norms


@pytest.mark.parametrize("arch", LOSSES)
def test_first_steps(arch):
    losses, _ = train(arch, INPUT_PARAMS, [golden_targets(index) for index in range(5)], steps=5)
    np.testing.assert_allclose(losses, LOSSES[arch], rtol=1e-6)


@needs_conformance
def test_golden_batches_equal_the_references():
    file = np.load(CONFORMANCE / "trajectory.npz")
    np.testing.assert_array_equal(file["input_params"][:5], INPUT_PARAMS)
    for index in range(5):
        for name, value in golden_targets(index).items():
            np.testing.assert_array_equal(value, file[f"batch{index}_{name}"], err_msg=f"{index} {name}")


@needs_conformance
@pytest.mark.parametrize("arch", sweep(list(LOSSES), slow=("res_18", "resdcn_18", "dla_34")))
def test_thirty_steps(arch):
    file = np.load(CONFORMANCE / "trajectory.npz")
    targets = [stored_targets(file, index) for index in range(6)]
    losses, norms = train(arch, file["input_params"], targets, steps=30)
    np.testing.assert_allclose(losses, file[f"{arch}/f64_pure"], rtol=1e-6)
    # Biases in front of a BatchNorm have no gradient but rounding errors.
    own = [norms[name] for name in file[f"{arch}/param_names"]]
    np.testing.assert_allclose(own, file[f"{arch}/grad1_norm_f64"], rtol=1e-6, atol=1e-9, equal_nan=True)
