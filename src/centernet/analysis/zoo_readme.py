"""The block of results that model zoos of accelerator vendors expect in the README of a ported model."""

from typing import Any

from .compare import MAX_ABSOLUTE_ERROR, MAX_RELATIVE_ERROR, Comparison
from .read import Curve

TEXTS: dict[str, dict[str, Any]] = {
    "en": {
        "title": "Training results",
        "plot": "Loss curves of the run and of the reference:",
        "figures": "Comparison of the smoothed losses (`python loss.py`):",
        "rule": "Pass: mean relative error <= {relative:g} or mean absolute error <= {absolute:g}, both unsigned, over "
        "moving averages of {window} iterations; {iterations} iterations compared.",
        "columns": ("", "device", "processes", "iterations", "final loss"),
        "rows": ("run", "reference"),
        "unknown": "not known",
    },
    "zh": {
        "title": "训练结果",
        "plot": "本次训练与参考的 loss 曲线：",
        "figures": "平滑后 loss 的比较（`python loss.py`）：",
        "rule": "通过标准：平均相对误差 <= {relative:g} 或平均绝对误差 <= {absolute:g}（均取绝对值），"
        "按 {window} 次迭代的滑动平均计算；共比较 {iterations} 次迭代。",
        "columns": ("", "设备", "进程数", "迭代数", "最终 loss"),
        "rows": ("本次训练", "参考"),
        "unknown": "未知",
    },
}


def results_block(run: Curve, reference: Curve, comparison: Comparison, plot: str, language: str) -> str:
    """Return the results of a comparison as Markdown.

    Args:
        plot: path of the drawn curves, or ``none``.
        language: ``en`` or ``zh``.
    """
    texts = TEXTS[language]
    lines = [f"## {texts['title']}", ""]
    if plot != "none":
        lines += [texts["plot"], "", f"![loss]({plot.replace(' ', '%20')})", ""]
    lines += [
        texts["figures"],
        "",
        "```",
        f"MeanRelativeError: {comparison.mean_relative_error}",
        f"MeanAbsoluteError: {comparison.mean_absolute_error}",
        f"Rule,mean_relative_error {comparison.mean_relative_error}",
        comparison.verdict,
        "```",
        "",
        texts["rule"].format(
            relative=MAX_RELATIVE_ERROR,
            absolute=MAX_ABSOLUTE_ERROR,
            window=comparison.window,
            iterations=comparison.iterations,
        ),
        "",
        _row(texts["columns"]),
        _row(["---"] * len(texts["columns"])),
    ]
    for name, curve in zip(texts["rows"], (run, reference), strict=True):
        about = [curve.info.get(key, texts["unknown"]) for key in ("device", "processes")]
        final = curve.loss[-comparison.window :].mean()
        lines.append(_row([name, *about, len(curve.loss), f"{final:.4f}"]))
    return "\n".join(lines)


def _row(cells) -> str:
    return "| " + " | ".join(str(cell).replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"
