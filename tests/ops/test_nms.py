from pathlib import Path

import numpy as np
import pytest

from centernet.ops.nms import nms, soft_nms, soft_nms_39, soft_nms_merge

CONFORMANCE = Path(__file__).parents[2].parent / "shared" / "conformance"


@pytest.fixture(scope="module")
def reference():
    path = CONFORMANCE / "nms.npz"
    if not path.exists():
        pytest.skip("no conformance data")
    with np.load(path, allow_pickle=False) as file:
        return dict(file)


def overlap_of(a, b):
    width = min(a[2], b[2]) - max(a[0], b[0]) + 1
    height = min(a[3], b[3]) - max(a[1], b[1]) + 1
    if width <= 0 or height <= 0:
        return None
    areas = [(r[2] - r[0] + 1) * (r[3] - r[1] + 1) for r in (a, b)]
    return width * height / (sum(areas) - width * height)


def slow_soft_nms(boxes, sigma, Nt, threshold, method, joints=False, weight_exp=None):
    """Soft-NMS one row at a time; returns the whole array afterwards and the number of kept rows."""
    rows = boxes.astype(np.float64).tolist()
    moved = 39 if joints else 5
    count, i = len(rows), 0
    while i < count:
        best = max(range(i, count), key=lambda k: (rows[k][4], -k))
        rows[i][:moved], rows[best][:moved] = rows[best][:moved], rows[i][:moved]
        total = np.multiply(rows[i][:4], np.repeat(rows[i][5:7], 2)) if weight_exp else None
        weights = np.array(rows[i][5:7]) if weight_exp else None
        k = i + 1
        while k < count:
            overlap = overlap_of(rows[i], rows[k])
            if overlap is not None:
                decay = 1.0
                if method == 2:
                    decay = np.exp(-(overlap**2) / sigma)
                elif overlap > Nt:
                    decay = 1 - overlap if method == 1 else 0.0
                if weight_exp:
                    share = (1 - decay) ** weight_exp
                    total = total + np.multiply(rows[k][:4], np.repeat(rows[k][5:7], 2)) * share
                    weights = weights + np.array(rows[k][5:7]) * share
                rows[k][4] *= decay
                if rows[k][4] < threshold:
                    rows[k][:5] = rows[count - 1][:5]
                    if joints:
                        rows[k][5:], rows[count - 1][5:] = rows[count - 1][5:], rows[k][5:]
                    count -= 1
                    k -= 1
            k += 1
        if weight_exp:
            rows[i][:4] = (total / np.repeat(weights, 2)).tolist()
        i += 1
    return np.array(rows).reshape(boxes.shape), count


def random_rows(rng, count, columns):
    rows = rng.uniform(0, 100, (count, columns)).astype(np.float32)
    rows[:, 2:4] = rows[:, :2] + rng.uniform(5, 60, (count, 2))
    rows[:, 4] = rng.random(count)
    rows[count // 2 : count // 2 + 2, 4] *= 0.001
    if columns == 7:
        rows[:, 5:] = rng.uniform(0.1, 1, (count, 2))
    return rows


def test_greedy_by_hand():
    dets = np.array([[0, 0, 9, 4, 0.6], [0, 0, 9, 9, 0.9], [50, 50, 59, 59, 0.7], [1, 0, 9, 9, 0.8]], dtype=np.float32)
    before = dets.copy()
    assert nms(dets, 0.5) == [1, 2]  # the overlap of row 0 is exactly 0.5
    assert nms(dets, 0.51) == [1, 2, 0]
    assert nms(dets, 0.95) == [1, 3, 2, 0]
    assert nms(dets[:0], 0.5) == []
    np.testing.assert_array_equal(dets, before)


def test_stale_copy():
    """The last row moves into the gap and decays there; its old slot keeps the old score."""
    rows = np.array(
        [[0, 0, 100, 100, 0.9], [2, 2, 100, 100, 0.004], [200, 200, 300, 300, 0.6], [205, 205, 300, 300, 0.5]],
        dtype=np.float32,
    )
    # method 2 leaves 0.0977 of the last: exp(-0.9034² / 0.5)
    assert soft_nms(rows, Nt=0.5, threshold=0.001, method=2) == [0, 1, 2]
    expected = [
        [0, 0, 100, 100, 0.9],
        [200, 200, 300, 300, 0.6],
        [205, 205, 300, 300, 0.0977289],
        [205, 205, 300, 300, 0.5],
    ]
    np.testing.assert_allclose(rows, expected, atol=1e-6)


def test_methods_by_hand():
    rows = np.array([[0, 0, 9, 4, 0.4], [0, 0, 9, 9, 0.8], [50, 50, 51, 51, 0.0001]], dtype=np.float32)
    for method, expected in ((0, None), (1, 0.4 * 0.5), (2, 0.4 * np.exp(-0.25 / 0.5))):
        result = rows.copy()
        keep = soft_nms(result, method=method)
        if expected is None:
            assert keep == [0, 1]
            np.testing.assert_array_equal(result, rows[[1, 2, 2]])
        else:
            assert keep == [0, 1, 2]  # boxes without overlap are kept, regardless of score
            np.testing.assert_allclose(result[:, 4], [0.8, expected, 0.0001], rtol=1e-6)


def test_merge_by_hand():
    """The overlap is 0.5, so method 1 takes (1/2)**6 of the second box's weights."""
    rows = np.array([[0, 0, 9, 9, 0.9, 1, 1], [0, 2, 9, 6, 0.8, 4, 2]], dtype=np.float32)
    assert soft_nms_merge(rows, method=1, weight_exp=6) == [0, 1]
    top = 2 * 4 / 64 / (1 + 4 / 64)
    bottom = (9 + 6 * 2 / 64) / (1 + 2 / 64)
    np.testing.assert_allclose(rows[0], [0, top, 9, bottom, 0.9, 1, 1], rtol=1e-6)
    np.testing.assert_allclose(rows[1], [0, 2, 9, 6, 0.4, 4, 2], rtol=1e-6)


def test_few_rows():
    for function, columns in ((soft_nms, 5), (soft_nms_39, 39), (soft_nms_merge, 7)):
        assert function(np.zeros((0, columns), dtype=np.float32)) == []
        assert function(np.ones((1, columns), dtype=np.float32)) == [0]


def test_wrong_arrays():
    for rows in (
        np.zeros((2, 5)),
        np.zeros((2, 4), dtype=np.float32),
        [[0, 0, 1, 1, 0.5]],
        np.zeros(5, dtype=np.float32),
    ):
        with pytest.raises(ValueError, match="float32"):
            soft_nms(rows)
    with pytest.raises(ValueError, match="39"):
        soft_nms_39(np.zeros((2, 5), dtype=np.float32))


@pytest.mark.parametrize("method", [0, 1, 2])
@pytest.mark.parametrize("function, columns", [(soft_nms, 5), (soft_nms, 7), (soft_nms_39, 39), (soft_nms_merge, 7)])
def test_like_the_plain_loop(function, columns, method):
    rng = np.random.default_rng(method)
    for count in (2, 3, 10, 60):
        for threshold in (0.001, 0.1, 0.3):
            rows = random_rows(rng, count, columns)
            parameters = {"sigma": 0.4, "Nt": 0.3, "threshold": threshold, "method": method}
            extra = {"weight_exp": 2.0} if function is soft_nms_merge else {}
            expected, kept = slow_soft_nms(rows, **parameters, **extra, joints=function is soft_nms_39)
            assert function(rows, **parameters, **extra) == list(range(kept))
            np.testing.assert_allclose(rows, expected, rtol=2e-5, atol=1e-5)


def test_greedy_like_the_plain_loop():
    rng = np.random.default_rng(0)
    for thresh in (0.2, 0.5, 0.8):
        dets = random_rows(rng, 80, 5)
        keep = []
        for k in np.argsort(-dets[:, 4]):
            if all((overlap_of(dets[j].tolist(), dets[k].tolist()) or 0) < thresh for j in keep):
                keep.append(int(k))
        assert nms(dets, thresh) == keep


@pytest.mark.parametrize("k", range(11))
def test_reference_soft(reference, k):
    method, sigma, Nt, threshold = reference[f"soft{k}_params"]
    rows = reference[f"soft{k}_in"].copy()
    keep = soft_nms(rows, sigma, Nt, threshold, int(method))
    assert keep == list(range(reference[f"soft{k}_nkeep"]))
    np.testing.assert_allclose(rows, reference[f"soft{k}_out"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("k", range(4))
def test_reference_39(reference, k):
    method, sigma, Nt, threshold = reference[f"soft39_{k}_params"]
    rows = reference[f"soft39_{k}_in"].copy()
    keep = soft_nms_39(rows, sigma, Nt, threshold, int(method))
    assert keep == list(range(reference[f"soft39_{k}_nkeep"]))
    np.testing.assert_allclose(rows, reference[f"soft39_{k}_out"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("k", range(4))
def test_reference_merge(reference, k):
    method, sigma, Nt, threshold, weight_exp = reference[f"softm_{k}_params"]
    rows = reference[f"softm_{k}_in"].copy()
    keep = soft_nms_merge(rows, sigma, Nt, threshold, int(method), weight_exp)
    assert keep == list(range(reference[f"softm_{k}_nkeep"]))
    # The corners are sums of products in float32, a few of their last places apart.
    np.testing.assert_allclose(rows, reference[f"softm_{k}_out"], rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("k", range(3))
def test_reference_greedy(reference, k):
    assert nms(reference[f"hard{k}_in"], float(reference[f"hard{k}_thresh"])) == reference[f"hard{k}_keep"].tolist()
