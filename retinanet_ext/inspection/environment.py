"""Whether this machine can run the package: each part OK or FAIL, with the command that mends it.

Every library is imported in a process of its own, because a broken one may end the process that imports it.
"""

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from .library_probes import CUDA, DETECTRON2, ENGINE, OPENCV, TORCH, TORCHVISION, TRITON

OK, FAIL, NOTE = "OK", "FAIL", "note"
_SECONDS = 180  # the first import of torch on a cold disk may take a minute
_PIP = f"{sys.executable} -m pip install"
_GIB = 2**30
_FREE_DISK, _FREE_SHARED_MEMORY, _OPEN_FILES = 5 * _GIB, 1 * _GIB, 1024


@dataclass(frozen=True)
class Check:
    """What was found about one part of the environment.

    Args:
        part: its name.
        state: ``OK``; ``FAIL``: something will not work; ``note``: works, but less well than it could.
        found: the version, or what is wrong.
        mend: a command or an action; empty if there is nothing to do.
    """

    part: str
    state: str
    found: str
    mend: str = ""


def check_environment(output_dir: str = ".") -> list[Check]:
    """Examine Python, engine, libraries, GPU, disk and shared memory; takes some seconds.

    Args:
        output_dir: runs will write here.
    """
    parts: list[Callable[[], list[Check]]] = [
        _python, _requirements, _torch, _torchvision, _cuda, _triton, _detectron2, _engine, _opencv,
        lambda: [_disk(output_dir)], _shared_memory, _open_files,
    ]  # fmt: skip
    with ThreadPoolExecutor(2) as pool:
        return [check for checks in pool.map(lambda part: part(), parts) for check in checks]


def as_text(checks: list[Check]) -> str:
    """One line for each check, and below it how to mend it."""
    width = max(len(check.part) for check in checks)
    lines = []
    for check in checks:
        lines.append(f"{check.state:<5} {check.part:<{width}}  {check.found}")
        if check.mend:
            lines.append(f"{'':<5} {'':<{width}}  -> {check.mend}")
    failed = sum(check.state == FAIL for check in checks)
    return "\n".join([*lines, "", f"{failed} of {len(checks)} checks failed." if failed else "Everything works."])


def as_records(checks: list[Check]) -> list[dict[str, str]]:
    """The checks for a JSON file."""
    return [asdict(check) for check in checks]


@dataclass(frozen=True)
class _Outcome:
    """What a probe printed, or the last line of its error."""

    works: bool
    text: str


def _probe(code: str) -> _Outcome:
    try:
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return _Outcome(False, f"no answer within {_SECONDS} seconds")
    if done.returncode == 0:
        return _Outcome(True, done.stdout.strip())
    lines = done.stderr.strip().splitlines()
    ended = f"ended by signal {-done.returncode}" if done.returncode < 0 else f"exit code {done.returncode}"
    return _Outcome(False, lines[-1] if lines else ended)


def _python() -> list[Check]:
    version = sys.version.split()[0]
    wanted = ">=3.10"
    if _is_installed("retinanet_ext"):
        wanted = importlib.metadata.metadata("retinanet_ext").get("Requires-Python", wanted)
    least = tuple(map(int, re.findall(r"\d+", wanted)[:2]))
    if sys.version_info[:2] >= least:
        return [Check("Python", OK, f"{version}, {sys.executable}")]
    return [Check("Python", FAIL, f"{version}; needed: {wanted}", "make a virtual environment with a newer Python")]


def _requirements() -> list[Check]:
    """The packages that setup.py asks for, by what is installed; they are not imported."""
    from packaging.requirements import Requirement

    if not _is_installed("retinanet_ext"):
        return [Check("required packages", NOTE, "not known: retinanet_ext runs from a folder", f"{_PIP} -e .")]
    checks = []
    for text in importlib.metadata.requires("retinanet_ext") or []:
        wanted = Requirement(text)
        if wanted.marker is not None and not wanted.marker.evaluate({"extra": ""}):
            continue
        try:
            found = importlib.metadata.version(wanted.name)
        except importlib.metadata.PackageNotFoundError:
            checks.append(Check(wanted.name, FAIL, "not installed", f"{_PIP} '{wanted}'"))
            continue
        if not wanted.specifier.contains(found, prereleases=True):
            checks.append(Check(wanted.name, FAIL, f"{found}; needed: {wanted.specifier}", f"{_PIP} '{wanted}'"))
    return checks or [Check("required packages", OK, "all installed, in versions that fit")]


def _torch() -> list[Check]:
    found = _probe(TORCH)
    if found.works:
        return [Check("torch", OK, found.text)]
    return [Check("torch", FAIL, found.text, f"{_PIP} --force-reinstall torch torchvision")]


def _torchvision() -> list[Check]:
    found = _probe(TORCHVISION)
    if found.works:
        return [Check("torchvision's ops", OK, found.text)]
    # The usual cause: versions, or builds for CPU and CUDA, that do not belong together.
    return [Check("torchvision's ops", FAIL, found.text, f"{_PIP} --upgrade --force-reinstall torch torchvision")]


def _cuda() -> list[Check]:
    found = _probe(CUDA)
    driver = _driver()
    if found.works and found.text.startswith("GPU"):
        return [Check("CUDA", OK, found.text)]
    if driver is None:
        return [Check("CUDA", NOTE, "no NVIDIA driver on this machine; everything runs on the CPU")]
    return [
        Check(
            "CUDA", FAIL, f"the driver answers ({driver}), but torch cannot use it: {found.text}",
            f"install a torch whose CUDA the driver supports (nvidia-smi shows its version): "
            f"{_PIP} --force-reinstall torch torchvision --index-url https://download.pytorch.org/whl/cu126",
        )
    ]  # fmt: skip


def _driver() -> str | None:
    if shutil.which("nvidia-smi") is None:
        return None
    query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip().splitlines()[0] if done.returncode == 0 and done.stdout.strip() else None


def _triton() -> list[Check]:
    found = _probe(TRITON)
    if found.works:
        return [Check("Triton", OK, found.text)]
    if _driver() is None:
        return [Check("Triton", NOTE, "not needed without a GPU")]
    return [Check("Triton", NOTE, f"{found.text}; the focal loss runs without it, slower on GPUs", f"{_PIP} triton")]


def _detectron2() -> list[Check]:
    found = _probe(DETECTRON2)
    if found.works and found.text == "missing":
        return [Check("Detectron2", NOTE, "not installed; the embedded engine `lite` takes its place")]
    if found.works:
        return [Check("Detectron2", OK, found.text)]
    if "pkg_resources" in found.text:
        mend = f"{_PIP} 'setuptools<81'"
    else:
        mend = (
            f"build it again for this torch: {_PIP} --no-build-isolation --force-reinstall --no-deps "
            "'git+https://github.com/facebookresearch/detectron2.git'; or use RETINANET_EXT_ENGINE=lite"
        )
    return [Check("Detectron2", FAIL, f"installed, but does not work: {found.text}", mend)]


def _engine() -> list[Check]:
    found = _probe(ENGINE)
    if found.works:
        return [Check("engine", OK, found.text)]
    return [Check("engine", FAIL, found.text, "set RETINANET_EXT_ENGINE=lite, which needs no Detectron2")]


def _opencv() -> list[Check]:
    names = ("opencv-python", "opencv-python-headless", "opencv-contrib-python", "opencv-contrib-python-headless")
    installed = [name for name in names if _is_installed(name)]
    found = _probe(OPENCV)
    again = f"{sys.executable} -m pip uninstall -y {' '.join(installed)} && {_PIP} 'opencv-python-headless<5'"
    if not found.works:
        return [Check("OpenCV", FAIL, found.text, again if installed else f"{_PIP} 'opencv-python-headless<5'")]
    if len(installed) > 1:
        found_text = f"{' and '.join(installed)} overwrite each other's files"
        return [Check("OpenCV", FAIL, found_text, again)]
    return [Check("OpenCV", OK, found.text)]


def _is_installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _disk(output_dir: str) -> Check:
    folder = Path(output_dir).absolute()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    found = f"{free / _GIB:.1f} GiB free in {folder}"
    if not os.access(folder, os.W_OK):
        return Check("disk", FAIL, f"{folder} cannot be written to", "set OUTPUT_DIR to a folder that you may write to")
    if free < _FREE_DISK:
        mend = "free some space, or set OUTPUT_DIR to a larger disk: each checkpoint of a ResNet-50 takes 0.3 GiB"
        return Check("disk", FAIL, found, mend)
    return Check("disk", OK, found)


def _shared_memory() -> list[Check]:
    folder = Path("/dev/shm")
    if not folder.is_dir():
        return [Check("shared memory", NOTE, "this system has no /dev/shm")]
    free = shutil.disk_usage(folder).free
    found = f"{free / _GIB:.1f} GiB free in {folder}"
    if free < _FREE_SHARED_MEMORY:
        mend = "the workers of a data loader need it: docker run --shm-size=8g ..., or set DATALOADER.NUM_WORKERS 0"
        return [Check("shared memory", FAIL, found, mend)]
    return [Check("shared memory", OK, found)]


def _open_files() -> list[Check]:
    try:
        import resource
    except ImportError:  # not on Windows
        return []
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit != resource.RLIM_INFINITY and limit < _OPEN_FILES:
        mend = "ulimit -n 4096, before the run: each worker of a data loader opens many files"
        return [Check("open files", FAIL, f"at most {limit}", mend)]
    return [Check("open files", OK, f"at most {limit}")]
