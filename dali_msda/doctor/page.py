"""What works on this machine, on one page.

    python -m dali_msda.doctor [--json] [--quick]

Examines Python, processors, memory, disk, the driver, DALI, PyTorch and the CUDA libraries, then compares
every method on the CPU and on the first GPU, if any, with the NumPy reference, and times it. Each problem
comes with a remedy. Having no GPU is not a problem; the page then lists what was not checked.

Exit status: 0 no problems, 1 problems found, 2 wrong options.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from ..processors import usable_processors
from . import gpu, machine
from .report import NOTE, OK, PROBLEM, Finding, Sections, as_json, lines, summary

# Loading libraries for a GPU takes a while the first time; a driver that hangs never returns.
_GPU_TIMEOUT = 300

_UNCHECKED = {
    "GPU graph": "every method on a GPU; the same graph ran on the CPU above",
    "GPU decoding": "nvJPEG, the hardware decoder, their memory and speed",
    "driver": "its version, and PyTorch taking DALI's tensors on the GPU",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the page (or JSON) and return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m dali_msda.doctor", description="What works on this machine, on one page."
    )
    parser.add_argument("--json", action="store_true", help="print the same facts as a JSON object")
    parser.add_argument("--quick", action="store_true", help="check, but do not time")
    options = parser.parse_args(arguments)
    sections: Sections = {}
    for title, found in examine(timed=not options.quick):
        sections[title] = found
        if not options.json:
            print("\n".join([title, *(line for finding in found for line in lines(finding)), ""]), flush=True)
    findings = [finding for found in sections.values() for finding in found]
    print(json.dumps(as_json(sections), indent=2) if options.json else summary(findings))
    return int(any(finding.status == PROBLEM for finding in findings))


def examine(*, timed: bool = True) -> Iterator[tuple[str, list[Finding]]]:
    """The sections of the page, each as soon as it is known."""
    driver = gpu.find_driver()
    gpus = len(driver.devices)
    yield "Machine", machine.findings(gpus)
    installed = gpu.findings(driver)
    yield "GPU and libraries", installed
    if any(finding.name == "DALI" and finding.status == PROBLEM for finding in installed):
        text, todo = "not run: DALI cannot be imported", "install DALI, as above, and run this again"
        yield "Self-check", [Finding(PROBLEM, "self-check", text, todo)]
        return
    threads = min(usable_processors(), 16)
    title = "Self-check: against the NumPy reference, given draws, both conventions"
    if timed:
        title += f"; images/s with {threads} thread{'s' * (threads > 1)}"
    yield title, self_check(bool(gpus), threads, timed=timed)
    if not gpus:
        yield (
            "Not checked, because there is no GPU: run this on a machine with one",
            [Finding(NOTE, name, text, data={"checked": False}) for name, text in _UNCHECKED.items()],
        )


def self_check(gpu: bool, threads: int, *, timed: bool) -> list[Finding]:
    """Check methods and decoders, on the CPU and the GPU."""
    try:
        from . import selfcheck
    except Exception as error:  # of any type: DALI's operators are imported here
        todo = "to see the error, run python -c 'import dali_msda.operators'"
        return [Finding(PROBLEM, "self-check", f"cannot run: {error}", todo)]
    results = list(selfcheck.check_methods(selfcheck.FORMS[:2], threads, timed=timed))
    decoders = list(selfcheck.check_decoders(False, threads)) if timed else []
    found = [_report_methods(form, [r for r in results if r["form"] == form]) for form in selfcheck.FORMS[:2]]
    found += [_report_decoding("CPU decoding", decoders)] if timed else []
    return found + (_gpu_check(threads, timed=timed) if gpu else [])


def _report_methods(form: str, results: list[dict[str, Any]]) -> Finding:
    """All methods in one form, with both conventions."""
    data = {"methods": {result["method"]: result for result in results}}
    wrong: dict[str, list[str]] = {}
    for result in results:
        if result["error"]:
            wrong.setdefault(result["error"], []).append(result["method"])
    if wrong:
        text = "\n".join(f"{', '.join(methods)}: {error}" for error, methods in wrong.items())
        return Finding(PROBLEM, form, text, _REMEDIES[form], data)
    errors = [error for result in results for error in result["errors"].values()]
    image, mask, targets = (max(error[name] for error in errors) for name in ("image", "mask", "targets"))
    halves = sorted({error["halves"] for error in errors} - {""})
    text = (
        f"agrees with the reference; largest error: pixel {image:.4f} (0.5 is rounding, halves go"
        f" {' and '.join(halves) or 'nowhere'}), mask {mask:.0e}, target {targets:.0e}"
    )
    rates = {r["method"]: r["images_per_second"] for r in results if r["images_per_second"]}
    if rates:
        text += "\nimages/s: " + ", ".join(f"{name} {rate:.0f}" for name, rate in rates.items())
    return Finding(OK, form, text, data=data)


_REMEDIES = {
    "CPU kernel": (
        "do not train with it: delete the folder of compiled code (--json: Numba, cache) and run this again;"
        " if it fails again, use backend='graph', which needs no compiled code, and file an issue with the"
        " --json output"
    ),
    "CPU graph": (
        "do not train with it: try DALI 2.4, the tested version, and file an issue with the --json output"
    ),
    "GPU graph": (
        "do not train with it: first fix the driver and library problems above; device='cpu' works without"
        " the GPU; file an issue with the --json output"
    ),
}


def _report_decoding(name: str, results: list[dict[str, Any]]) -> Finding:
    data = {"decoders": results}
    wrong = [result["error"] for result in results if result["error"]]
    if wrong:
        todo = "check nvImageCodec and nvJPEG above; another DALI release may decode differently"
        return Finding(PROBLEM, name, "; ".join(dict.fromkeys(wrong)), todo, data)
    rates = ", ".join(
        f"{result['images_per_second']:.0f}"
        + ("" if result["hw_decoder_load"] is None else f" (hw_decoder_load={result['hw_decoder_load']:g})")
        for result in results
    )
    return Finding(OK, name, f"whole JPEGs of 512 x 384 pixels and 103 kB, images/s: {rates}", data=data)


def _gpu_check(threads: int, *, timed: bool) -> list[Finding]:
    """The same on the first GPU, in its own process, because a faulty driver may kill it."""
    command = [sys.executable, "-m", "dali_msda.doctor.selfcheck", "gpu", str(threads)]
    if not timed:
        command.append("quick")
    try:
        run = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=_GPU_TIMEOUT,
            check=False,
        )
        results = json.loads(run.stdout.splitlines()[-1]) if run.returncode == 0 else None
    except (OSError, subprocess.TimeoutExpired, ValueError, IndexError) as error:
        return [Finding(PROBLEM, "GPU graph", f"could not be checked: {error}", _REMEDIES["GPU graph"])]
    if results is None:
        messages = [line for line in run.stderr.splitlines() if line.strip()]
        last = messages[-1] if messages else "no message"
        text = f"the check exited with status {run.returncode}: {last}"
        return [Finding(PROBLEM, "GPU graph", text, _REMEDIES["GPU graph"])]
    found = [
        _report_methods("GPU graph", results["methods"]),
        _report_hardware_decoder(results["hardware_decoder"]),
    ]
    return found + ([_report_decoding("GPU decoding", results["decoders"])] if timed else [])


def _report_hardware_decoder(decoder: dict[str, Any]) -> Finding:
    name, engines = "hardware decoder", decoder["engines"]
    if engines is None:
        todo = "decoding works without it; in a container: NVIDIA_DRIVER_CAPABILITIES=compute,utility,video"
        return Finding(NOTE, name, f"unknown: {decoder['error']}", todo, decoder)
    if not engines:
        return Finding(OK, name, "this GPU has none: its cores and the CPU decode JPEGs", data=decoder)
    text = f"{engines} engine{'s' * (engines > 1)} for JPEG: hw_decoder_load decides how many images they get"
    return Finding(OK, name, text, data=decoder)
