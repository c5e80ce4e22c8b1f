"""Run the scripts of this repository on the simulated accelerator.

PyTorch knows one device of this kind per process, so the tests' own processes never load it. ``Simulation`` keeps one
process that has, with everything imported, and forks it for each run, which costs little. ``environment`` is for
runs that need processes of their own, such as those of torchrun.
"""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BACKEND = Path(__file__).with_name("backend")


def environment(**more: str) -> dict[str, str]:
    """The environment of a process whose ``import torch`` loads the simulated accelerator."""
    paths = os.pathsep.join(map(str, (BACKEND, ROOT, ROOT / "src")))
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHON": sys.executable, "PYTHONPATH": paths, **more}


def missing() -> str | None:
    """Why the simulated accelerator cannot be built here; None if it can."""
    if os.name != "posix":
        return "the simulated accelerator is built on Linux and macOS only"
    if not any(shutil.which(name) for name in (os.environ.get("CXX", "c++"), "g++", "clang++")):
        return "the simulated accelerator needs a C++ compiler"
    if not (shutil.which("ninja") or (Path(sys.executable).parent / "ninja").is_file()):
        return "the simulated accelerator needs ninja (pip install -r requirements-dev.txt)"
    return None


@dataclass
class Finished:
    """Exit status of a run and its output."""

    status: int
    output: str
    errors: str


class Simulation:
    """A process that has loaded the simulated accelerator and forks itself for each run."""

    def __init__(self) -> None:
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
        command = [sys.executable, "-c", "from tests.accelerator.simulation import serve; serve()"]
        self.process = subprocess.Popen(
            command, cwd=ROOT, env=environment(PATH=path), text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        if self.process.stdout.readline() != "ready\n":
            raise RuntimeError("the simulated accelerator could not be built or loaded")

    def run(self, script: str, *arguments: object, faults: str = "", processes: int = 1, **variables: str) -> Finished:
        """Run ``src/<script>.py`` (or a function ``module:name``) with arguments, faults and environment variables.

        With several ``processes`` it runs in each of them, as under torchrun; a run fails if one of them fails.
        """
        request = {"script": script, "arguments": list(map(str, arguments)), "faults": faults}
        request["places"] = [{**variables, **place} for place in places(processes)]
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return Finished(**json.loads(self.process.stdout.readline()))

    def output(self, script: str, *arguments: object, **more: str) -> str:
        """The output of a run that must succeed."""
        done = self.run(script, *arguments, **more)
        assert done.status == 0, done.errors[-3000:] + done.output[-1000:]
        return done.output

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def places(processes: int) -> list[dict[str, str]]:
    """Return the environment variables by which each process finds the others; none for a process alone."""
    if processes == 1:
        return [{}]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    common.update(dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE"), str(processes)))
    return [{**common, **dict.fromkeys(("RANK", "LOCAL_RANK"), str(rank))} for rank in range(processes)]


def serve() -> None:
    """Answer requests from stdin until it is closed."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the compiler prints is no answer
    import torch
    from tests.helpers.training import load_script

    for name in ("main", "test", "demo"):
        load_script(name)
    assert torch.accelerator.current_accelerator() == torch.device("sim")
    torch.set_num_threads(1)
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
            request, children = json.loads(line), []
            for variables in request["places"]:
                children.append(os.fork())
                if children[-1] == 0:
                    _run(request, variables, output.fileno(), errors.fileno())
            statuses = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
            status = next(filter(None, statuses), 0)
            texts = []
            for file in (output, errors):
                file.seek(0)
                texts.append(file.read())
        print(json.dumps({"status": status, "output": texts[0], "errors": texts[1]}), file=answers, flush=True)


def _run(request: dict, variables: dict[str, str], output: int, errors: int) -> None:
    """Do what a request asks for and end this process, which is a copy of the serving one."""
    status = 1
    try:
        os.dup2(output, 1)
        os.dup2(errors, 2)
        os.environ.update(variables, SIM_FAULTS=request["faults"])
        from simulated_accelerator import faults

        if os.environ.get("SIM_ROUNDING") == "1":
            faults.switch_on("other_order", variants=True)
        for fault in filter(None, request["faults"].split(",")):
            faults.switch_on(fault)
        status = _call(request["script"], request["arguments"])
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError):
                stream.flush()
        os._exit(status or 0)


def _call(script: str, arguments: list[str]) -> int:
    if ":" in script:
        import importlib

        module, name = script.split(":")
        return getattr(importlib.import_module(module), name)(*arguments) or 0
    import runpy

    sys.argv = [f"{script}.py", *arguments]
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        os.environ.pop(name, None)
    runpy.run_path(str(ROOT / f"src/{script}.py"), run_name="__main__")
    return 0
