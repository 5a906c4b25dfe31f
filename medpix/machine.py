"""Checks of this machine, without the network."""

import platform
import resource
import shutil
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

import psutil
from filelock import Timeout
from packaging.requirements import Requirement

from medpix.finding import Finding
from vlm_core.cache import locked
from vlm_core.files import free_bytes
from vlm_core.home import medpix_home, require_writable

DISTRIBUTION = "medpix-finetune"
OLDEST_PYTHON = (3, 11)
ENOUGH_DISK = 40e9  # bytes: a 4B model (9 GB), its vision cache, checkpoints
LITTLE_DISK = 5e9
OPEN_FILES = 1024  # supervisord needs as many
SMALLEST_GPU = 7.5e9  # bytes: a card that is sold as 8 GB
EXTRAS = {"medical": "pydicom", "quantization": "bitsandbytes", "stores": "psycopg2", "kubernetes": "kubernetes",
          "wandb": "wandb", "liger": "liger_kernel", "gpu": "pynvml"}  # fmt: skip


def check_python() -> Finding:
    """Checks that this Python is new enough, and has 64 bits."""
    found = f"{platform.python_version()} at {sys.executable}"
    if sys.version_info < OLDEST_PYTHON or sys.maxsize < 2**32:
        return Finding("problem", "Python", found, "install a 64-bit Python 3.11 or newer, and this package there")
    return Finding("ok", "Python", found)


def check_packages() -> Finding:
    """Checks that the installed packages have the versions that this one requires."""
    try:
        own, needed = version(DISTRIBUTION), requires(DISTRIBUTION) or []
    except PackageNotFoundError:
        return Finding("warning", "packages", f"{DISTRIBUTION} is not installed", "pip install --editable . in it")
    wrong = list(wrong_packages(needed))
    if wrong:
        remedy = f"pip install --upgrade {' '.join(repr(requirement) for requirement, _ in wrong)}"
        return Finding("problem", "packages", "; ".join(f"{need}, found {found}" for need, found in wrong), remedy)
    return Finding("ok", "packages", f"{DISTRIBUTION} {own}, its requirements, and the extras {installed_extras()}")


def wrong_packages(needed: list[str]) -> Iterator[tuple[str, str]]:
    """Yields (requirement, installed version) for each requirement without a condition that is not met."""
    for text in needed:
        requirement = Requirement(text)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            found = version(requirement.name)
        except PackageNotFoundError:
            found = "none"
        if found == "none" or not requirement.specifier.contains(found, prereleases=True):
            yield f"{requirement.name}{requirement.specifier}", found


def installed_extras() -> str:
    """Returns the names of the extras whose main package can be imported."""
    from importlib.util import find_spec

    return ", ".join(extra for extra, module in EXTRAS.items() if find_spec(module)) or "(none)"


def check_limits() -> Finding:
    """Checks cores, memory, shared memory and the limit of open files."""
    memory, shared = psutil.virtual_memory(), Path("/dev/shm")
    found = f"{len(psutil.Process().cpu_affinity() or [0])} cores, {memory.total / 1e9:.0f} GB of memory, " \
            f"{memory.available / 1e9:.0f} GB of them free"  # fmt: skip
    files, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files < OPEN_FILES and files != resource.RLIM_INFINITY:
        remedy = f"ulimit -n {OPEN_FILES}" if hard >= OPEN_FILES else "raise nofile in /etc/security/limits.conf"
        return Finding(
            "warning", "machine", f"{found}; only {files} open files, `medpix up` needs {OPEN_FILES}", remedy
        )
    if shared.is_dir() and shutil.disk_usage(shared).total < 1e9:
        small = f"{found}; /dev/shm has {shutil.disk_usage(shared).total / 1e6:.0f} MB"
        return Finding("warning", "machine", small, "set dataloader.num_workers=0; in a container: --shm-size=8g")
    return Finding("ok", "machine", found)


def check_disk() -> Finding:
    """Checks that the home can be written and locked, and how much room is left on its disk."""
    home = medpix_home()
    try:
        require_writable(home)
        existing = next(place for place in (home, *home.parents) if place.is_dir())
        lock = existing / ".medpix-doctor"
        with locked(lock, timeout=5):
            pass
        lock.unlink(missing_ok=True)
    except (ValueError, OSError, Timeout) as error:
        return Finding("problem", "disk", str(error), "set MEDPIX_HOME to a directory on another disk")
    free = free_bytes(existing)
    found, other = f"{free / 1e9:.0f} GB free for {home}", "set MEDPIX_HOME to a directory on a larger disk"
    if free < LITTLE_DISK:
        return Finding("problem", "disk", found, f"{other}, or delete caches: medpix caches prune --unused-days 7")
    if free < ENOUGH_DISK:
        return Finding("warning", "disk", found, f"a 4B model wants {ENOUGH_DISK / 1e9:.0f} GB: {other}")
    return Finding("ok", "disk", found)


def check_gpu() -> Finding:
    """Checks that torch can use a GPU, and how much memory it has."""
    driver = driver_version()
    import torch  # lazy: takes seconds

    if not torch.cuda.is_available():
        return _no_gpu(driver, torch.__version__, torch.version.cuda)
    cards = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    smallest = min(cards, key=lambda card: card.total_memory)
    sizes = ", ".join(f"{card.name} with {card.total_memory / 1e9:.0f} GB" for card in cards)
    found = f"{sizes}; driver {driver or 'unknown'}, torch {torch.__version__}"
    if smallest.total_memory < SMALLEST_GPU:
        remedy = "no recipe of a 4B model fits below 8 GB: train on a larger card, or a smaller model"
        return Finding("warning", "GPU", found, remedy)
    if smallest.major < 8:
        return Finding("warning", "GPU", f"{found}; it computes bfloat16 slowly", "take an Ampere card (2020) or newer")
    return Finding("ok", "GPU", found)


def _no_gpu(driver: str | None, torch_version: str, cuda: str | None) -> Finding:
    if driver is None and not Path("/dev/nvidiactl").exists():
        return Finding("warning", "GPU", f"none; torch {torch_version}", "the demo and tiny models train on the CPU; "
                       "`medpix plan --recipe gemma3_4b_lora` shows what others need")  # fmt: skip
    found = f"driver {driver or 'unknown'} is installed, but torch {torch_version} (CUDA {cuda or 'none'}) sees no card"
    if cuda is None:
        return Finding("problem", "GPU", found, "this torch is for CPUs: install one with CUDA, see pytorch.org")
    return Finding("problem", "GPU", found, "check CUDA_VISIBLE_DEVICES and nvidia-smi; the driver may be too old for "
                   f"CUDA {cuda}, and a container needs --gpus all")  # fmt: skip


def driver_version() -> str | None:
    """Returns the version of NVIDIA's kernel driver, None without one."""
    file = Path("/proc/driver/nvidia/version")
    words = file.read_text(encoding="utf-8", errors="replace").split() if file.is_file() else []
    return next((word for word in words if word[0].isdigit() and "." in word), None)
