"""Findings of check_device.py."""

# How level "probe" calls what ATen calls otherwise.
ATEN = {
    "matrix product mm": "mm",
    "matrix product bmm": "bmm",
    "matrix product addmm": "addmm",
    "matrix product baddbmm": "baddbmm",
    "batch normalization": "batch_norm",
    "copy to the host": "copy to host",
}


def operator_of(finding: dict) -> str:
    """Return the ATen name of the operator of a finding."""
    name = ATEN.get(finding["operator"], finding["operator"])
    if "convolution" in name and "deformable" not in name:
        return "convolution_backward" if "backward" in finding["direction"] else "convolution"
    return "Adam" if name.startswith("Adam") else name


def is_named(fault, finding: dict) -> bool:
    """Return whether a finding names the operator and the pass of a fault."""
    passes = fault.passes
    right_pass = not passes or finding["direction"] in passes or finding["direction"] in ("memory order", "rows")
    return operator_of(finding) in fault.operators and right_pass
