"""Read logs of training programs of about 50 MB: processor time.

    python benchmarks/log_files.py [--lines 500000]

The forms are those that ``loss.py`` reads: this project's own table, and the console output of other programs.
"""

import tempfile
import time
from pathlib import Path

import common
import numpy as np

from centernet.analysis.read import read_loss

OWN = "epoch,iteration,loss,hm_loss,wh_loss,off_loss,lr,images/s\n"
FORMS = {
    "train_log.csv": "1,{n},2.500000,1.500000,5.000000,0.500000,1.250000e-04,123.4",
    "free text": "loss: 2.5 lr 0.0001 and some more words of a vendor's own form, which are not read, on and on: {n}",
    "Epoch, Iteration, rank": "Epoch 1, iteration {n}/500000, rank : 0  train.loss : 2.5  train.ips : 12.3 imgs/s",
    "DLLogger JSON": 'DLLL {{"type": "LOG", "step": [0, {n}], "data": {{"rank": "0", "train.loss": 2.5}}}}',
    "the reference's bar": "ctdet/x| train: [1][{i}/500000]|Tot: 0:00:01 |ETA: 0:00:01 |loss 2.5000 |hm_loss 1.5000 ",
}


def main() -> None:
    """Print the table."""
    parser = common.make_parser(__doc__)
    parser.add_argument("--lines", type=int, default=500_000)
    args = parser.parse_args()
    common.start(args)
    print(f"{'':26}{'MB':>8}{'seconds':>10}{'MB/s':>8}")
    with tempfile.TemporaryDirectory() as folder:
        for name, form in FORMS.items():
            path = Path(folder) / "train.log"
            path.write_text("\n".join([*([OWN.strip()] if name == "train_log.csv" else []), *_lines(form, args.lines)]))
            times = []
            for _ in range(args.repeats):
                started = time.process_time()
                curve = read_loss(path)
                times.append(time.process_time() - started)
                common.check("mean loss", float(np.mean(curve.loss)), 2.5, 1e-9)
            size, seconds = path.stat().st_size / 1e6, float(np.median(times))
            print(f"{name:26}{size:8.0f}{seconds:10.1f}{size / seconds:8.1f}", flush=True)


def _lines(form: str, count: int) -> list[str]:
    return [form.format(i=i, n=i + 1) for i in range(count)]


if __name__ == "__main__":
    main()
