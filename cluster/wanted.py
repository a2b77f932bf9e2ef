"""What a person wants of a cluster elsewhere, and which values can be had."""

import math
import re
from dataclasses import dataclass

__all__ = [
    "IMAGE",
    "NAME",
    "OBJECT",
    "PLAIN",
    "TIME",
    "WORD",
    "Wanted",
    "bindable",
    "check",
    "elastic",
    "match",
    "mounted",
    "parse_memory",
    "parse_workers",
    "run_options",
]

_UNITS = {"M": 1, "G": 1024, "T": 1024 * 1024}

NAME = (r"[a-z]([a-z0-9-]{0,38}[a-z0-9])?", "small letters, digits and '-', at most 40")
WORD = (r"[A-Za-z0-9][A-Za-z0-9._,-]*", "letters, digits and '._,-'")
IMAGE = (r"[A-Za-z0-9][A-Za-z0-9._/:@-]*", "an image as in registry.example/team/sfumato:0.1.0")
OBJECT = (r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?", "small letters, digits, '.' and '-'")
TIME = (r"\d+(:\d+){0,2}|\d+-\d+(:\d+){0,2}", "minutes, H:MM:SS or D-HH:MM:SS")
# KubeRay hands the command to a shell, that to another; some versions take it apart before.
PLAIN = (r"[A-Za-z0-9._/:@%+,=-]+", "letters, digits and '._/:@%+,=-' (KubeRay's shells see it)")


@dataclass(frozen=True)
class Wanted:
    """What a person wants of a cluster. What is None has a default that depends on the kind.

    Attributes:
        workers: fewest and most worker nodes, beside the head.
        cpus, gpus: of a worker node.
        memory_mib: of a worker node, in MiB.
        gpus_per_worker: share of a GPU a worker of ours owns; default 1 where there are GPUs.
        setup: shell commands, run on each node (Slurm: in the job, whose environment nodes get).
        hosts: of provider local: the head's address, then the others'.
        claim: persistent volume claim that is mounted at `store`.
        secret: Kubernetes secret with the key auth_token; default: KubeRay makes one.
        env_secret: Kubernetes secret whose keys are in the environment of every pod.
    """

    experiment: str = "quickstart"
    store: str | None = None
    name: str = "sfumato"
    image: str | None = None
    workers: tuple[int, int] | None = None
    cpus: int = 8
    memory_mib: int | None = None
    gpus: int = 0
    gpus_per_worker: float | None = None
    data_dir: str | None = None
    setup: tuple[str, ...] = ()
    idle_minutes: int = 10
    provider: str = "aws"
    region: str = "us-west-2"
    instance: str | None = None
    head_instance: str = "m5.xlarge"
    hosts: tuple[str, ...] = ()
    ssh_user: str = "ubuntu"
    ssh_key: str | None = None
    claim: str | None = None
    secret: str | None = None
    env_secret: str | None = None
    partition: str | None = None
    account: str | None = None
    time: str | None = None


def parse_workers(text: str) -> tuple[int, int]:
    """Fewest and most worker nodes, of "N" or "MIN:MAX".

    Raises:
        ValueError: if it is neither, or MIN is above MAX.
    """
    found = re.fullmatch(r"(\d{1,6})(?::(\d{1,6}))?", text, re.ASCII)
    if found is None or int(found[2] or found[1]) < int(found[1]):
        raise ValueError(
            f"--workers {text!r}: give a number of nodes as in 4, or MIN:MAX as in 1:8"
        )
    return int(found[1]), int(found[2] or found[1])


def parse_memory(text: str) -> int:
    """MiB, of "32G", "32Gi", "512M" and the like; units are powers of 1024.

    Raises:
        ValueError: if it is none of these, or nothing.
    """
    found = re.fullmatch(r"([1-9]\d{0,8})([MGT])i?B?", text, re.ASCII)
    if found is None:
        raise ValueError(f"--memory {text!r}: give a number with a unit, as in 32G or 512M")
    return int(found[1]) * _UNITS[found[2]]


def run_options(wanted: Wanted, store: str, least: int, most: int) -> list[str]:
    """What `sfumato run` is given besides the address."""
    options = ["--store", store]
    if wanted.data_dir is not None:
        options += ["--data-dir", wanted.data_dir]
    share = wanted.gpus_per_worker or (1.0 if wanted.gpus else 0.0)
    if share:
        options += ["--gpus-per-worker", f"{share:g}"]
    if most > least:
        # Workers that wait for a place are what makes a cluster grow.
        per_node = wanted.cpus
        if share:
            per_gpu = math.floor(1 / share + 1e-9) if share <= 1 else 1 / share
            per_node = int(wanted.gpus * per_gpu + 1e-9)
        options += ["--workers", str(most * per_node)]
    return [*options, "--", wanted.experiment]


def check(wanted: Wanted) -> None:
    """What holds for every kind.

    Raises:
        ValueError: naming the option, its value and what would be right.
    """
    match("--name", wanted.name, NAME)
    for option, value in (
        *(("--experiment", wanted.experiment), ("--store", wanted.store)),
        *(("--data-dir", wanted.data_dir), ("--image", wanted.image)),
        *(("--ssh-key", wanted.ssh_key), *(("--setup", line) for line in wanted.setup)),
    ):
        if value is None:
            continue
        if not value.isprintable() or not value.strip():
            raise ValueError(f"{option} {value!r} is empty or holds what cannot be printed")
        if value.startswith("-"):
            raise ValueError(f"{option} {value!r} begins with '-' and would be taken for an option")
    user, at, _ = (wanted.store or "").partition("://")[2].partition("/")[0].rpartition("@")
    if at and (":" in user or (wanted.store or "").startswith("s3:")):
        raise ValueError(
            "--store holds a secret, which the file would show. Write it without, and set "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in the nodes' environment"
        )
    for option, number, low in (
        *(("--cpus", wanted.cpus, 1), ("--gpus", wanted.gpus, 0)),
        ("--idle-minutes", wanted.idle_minutes, 1),
    ):
        if number < low:
            raise ValueError(f"{option} {number}: it must be at least {low}")
    share = wanted.gpus_per_worker
    if share is not None and not (0 < share <= 1 or (share > 1 and share % 1 == 0)):
        raise ValueError(f"--gpus-per-worker {share:g}: it must be above 0 and at most 1, or whole")
    if share is not None and share > wanted.gpus:
        raise ValueError(f"--gpus-per-worker {share:g} is more than --gpus {wanted.gpus} of a node")


def match(option: str, value: str | None, form: tuple[str, str]) -> str | None:
    """The value, if it has the form."""
    if value is not None and re.fullmatch(form[0], value, re.ASCII) is None:
        raise ValueError(f"{option} {value!r}: give {form[1]}")
    return value


def elastic(workers: tuple[int, int]) -> tuple[int, int]:
    """Fewest and most workers, of a cluster that can grow."""
    if workers[0] < 1:
        raise ValueError(
            f"--workers {workers[0]}:{workers[1]}: at least one must be there from the start, as a "
            "run gives up when none joins within a minute"
        )
    return workers


def mounted(store: str | None, what: str) -> str:
    """A store that every node sees: an absolute path or an URI."""
    if store is None or not (store.startswith("/") or re.match(r"[a-z][a-z0-9]*://.", store)):
        given = f"--store {store!r}" if store else "--store is missing"
        raise ValueError(f"{given}: give the absolute path of {what}, or an URI")
    return store


def bindable(folder: str) -> str:
    """A folder whose name container engines do not take apart."""
    if ":" in folder or "," in folder:
        raise ValueError(f"{folder!r} cannot be mounted in a container: its name has ':' or ','")
    return folder
