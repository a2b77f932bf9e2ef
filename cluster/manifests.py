"""Files that start a cluster elsewhere, with a person's own image, sizes and store.

The files under templates/ can be read and used as they are. A YAML one is read as data, values are
set in it, and it is written anew; the shell one keeps all of its program and gets its settings as
quoted words before that. So no value is ever pasted into a text that something parses.
"""

import math
import shlex
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from cluster.wanted import (
    IMAGE,
    OBJECT,
    PLAIN,
    TIME,
    WORD,
    Wanted,
    bindable,
    check,
    elastic,
    match,
    mounted,
    run_options,
)

__all__ = ["KINDS", "render"]

KINDS = ("ray-up", "kuberay", "slurm")

_CREDENTIALS = (
    "# Every node needs what the store's server asks for: AWS_ACCESS_KEY_ID and\n"
    "# AWS_SECRET_ACCESS_KEY in its environment, or a role of the machine.\n"
)
_TEMPLATES = Path(__file__).parent / "templates"
_SHELL_BEGINS = "# -- what follows is the same for everyone"


def render(kind: str, wanted: Wanted) -> str:
    """The file of one of the `KINDS`.

    Raises:
        ValueError: for an unknown kind, or naming the option, its value and what would be right.
    """
    if kind not in KINDS:
        raise ValueError(f"no template is named {kind!r} (known: {', '.join(KINDS)})")
    check(wanted)
    return {"ray-up": _ray_up, "kuberay": _kuberay, "slurm": _slurm}[kind](wanted)


def _ray_up(wanted: Wanted) -> str:
    if wanted.provider not in ("aws", "local"):
        raise ValueError(
            f"--provider {wanted.provider!r}: give aws, or local for your own machines"
        )
    if not wanted.image and not wanted.setup:
        raise ValueError(
            "nodes need Sfumato: give --image with an image it is installed in, or --setup "
            "with the command that installs it"
        )
    store = mounted(wanted.store, "a folder that every node mounts")
    title, tree = _read(f"ray_up_{wanted.provider}.yaml")
    if wanted.provider == "aws":
        least, most = elastic(wanted.workers or (2, 2))
        _aws(tree, wanted, least, most)
    else:
        least, most = _own_machines(tree, wanted)
    tree["cluster_name"], tree["max_workers"] = _Quoted(wanted.name), most
    tree["idle_timeout_minutes"] = wanted.idle_minutes
    match("--ssh-user", wanted.ssh_user, WORD)
    tree["auth"]["ssh_user"] = _Quoted(wanted.ssh_user)
    if wanted.ssh_key is not None:
        tree["auth"]["ssh_private_key"] = _Quoted(wanted.ssh_key)
    if wanted.image is None:
        del tree["docker"]
    else:
        match("--image", wanted.image, IMAGE)
        tree["docker"]["image"] = _Quoted(wanted.image)
        for folder in (store, wanted.data_dir):
            if folder and "://" not in folder:
                # Ray pastes these into a command.
                mount = shlex.quote(f"{bindable(folder)}:{folder}")
                tree["docker"]["run_options"].append(_Quoted(f"-v {mount}"))
    tree["setup_commands"] += [_Quoted(command) for command in wanted.setup]
    command = ["sfumato", "run", "--address", "auto", *run_options(wanted, store, least, most)]
    if "://" in store:
        title += _CREDENTIALS
    title += f"# COMMAND is {shlex.quote('RAY_AUTH_MODE=token ' + shlex.join(command))}\n"
    return title + _dump(tree)


def _aws(tree: Any, wanted: Wanted, least: int, most: int) -> None:
    instance = wanted.instance or ("g5.2xlarge" if wanted.gpus else "m5.2xlarge")
    match("--region", wanted.region, WORD)
    match("--instance", instance, WORD)
    match("--head-instance", wanted.head_instance, WORD)
    if wanted.hosts:
        raise ValueError("--hosts are machines of your own: add --provider local")
    tree["provider"]["region"] = _Quoted(wanted.region)
    head, worker = tree["available_node_types"].values()
    head["node_config"]["InstanceType"] = _Quoted(wanted.head_instance)
    worker["node_config"]["InstanceType"] = _Quoted(instance)
    worker["min_workers"], worker["max_workers"] = least, most
    worker["resources"] = {"CPU": wanted.cpus}
    if wanted.gpus:
        worker["resources"]["GPU"] = wanted.gpus
    if wanted.memory_mib:
        worker["resources"]["memory"] = wanted.memory_mib * 1024**2


def _own_machines(tree: Any, wanted: Wanted) -> tuple[int, int]:
    if len(wanted.hosts) < 2 or len(set(wanted.hosts)) < len(wanted.hosts):
        raise ValueError(
            f"--hosts {','.join(wanted.hosts)!r}: give the head's address and those of the others, "
            "each once, as in --hosts 10.0.0.1,10.0.0.2"
        )
    for host in wanted.hosts:
        match("--hosts", host, WORD)
    num = len(wanted.hosts) - 1
    least, most = elastic(wanted.workers or (num, num))
    if most > num:
        raise ValueError(f"--workers {least}:{most} is more than the {num} hosts beside the head")
    head, *others = (_Quoted(host) for host in wanted.hosts)
    tree["provider"].update(head_ip=head, worker_ips=others)
    tree["min_workers"] = least
    return least, most


def _kuberay(wanted: Wanted) -> str:
    if wanted.image is None:
        raise ValueError("pods need an image with Sfumato and Ray in it: give --image")
    match("--image", wanted.image, IMAGE)
    if wanted.setup:
        raise ValueError("--setup: pods are made of their image; put it in there")
    least, most = elastic(wanted.workers or (2, 2))
    store = mounted(wanted.store or "/store", "a folder where the volume is mounted")
    if "://" in store and wanted.claim:
        raise ValueError(
            f"--claim {wanted.claim!r} is mounted at --store, and {store} is no folder"
        )
    options = run_options(wanted, store, least, most)
    for option, value in (("--store", store), ("--data-dir", wanted.data_dir or "-")):
        match(option, value, PLAIN)
    match("--experiment", wanted.experiment, PLAIN)
    title, tree = _read("kuberay.yaml")
    tree["metadata"]["name"] = _Quoted(wanted.name)
    spec = tree["spec"]
    command = ["sfumato", "run", "--address", "auto", *options]
    spec["entrypoint"] = _Quoted(shlex.join(command))
    ray = spec["rayClusterSpec"]
    ray["rayVersion"] = _Quoted(metadata.version("ray"))  # the image's, as it is ours
    if wanted.secret is not None:
        match("--secret", wanted.secret, OBJECT)
        ray["authOptions"]["secretName"] = _Quoted(wanted.secret)
    ray["enableInTreeAutoscaling"] = most > least
    ray["autoscalerOptions"]["idleTimeoutSeconds"] = 60 * wanted.idle_minutes
    [group] = ray["workerGroupSpecs"]
    group.update(replicas=least, minReplicas=least, maxReplicas=most)
    size = {"cpu": str(wanted.cpus), "memory": f"{wanted.memory_mib or 4096 * wanted.cpus}Mi"}
    if wanted.gpus:
        size["nvidia.com/gpu"] = str(wanted.gpus)
    group["template"]["spec"]["containers"][0]["resources"] = {
        "requests": dict(size),
        "limits": dict(size),
    }
    claim = wanted.claim or "sfumato-store"
    match("--claim", claim, OBJECT)
    for pod in (ray["headGroupSpec"]["template"]["spec"], group["template"]["spec"]):
        [container] = pod["containers"]
        container["image"] = _Quoted(wanted.image)
        if wanted.env_secret is not None:
            match("--env-secret", wanted.env_secret, OBJECT)
            container["envFrom"] = [{"secretRef": {"name": _Quoted(wanted.env_secret)}}]
        if "://" in store:
            del pod["volumes"], container["volumeMounts"]
        else:
            container["volumeMounts"][0]["mountPath"] = _Quoted(store)
            pod["volumes"][0]["persistentVolumeClaim"]["claimName"] = _Quoted(claim)
    if "://" not in store and wanted.claim is None:
        title += f"# The store is on the persistent volume claim {claim}; --claim names another.\n"
    elif "://" in store and wanted.env_secret is None:
        title += _CREDENTIALS + "#   --env-secret NAME takes it from a secret of Kubernetes.\n"
    return title + _dump(tree)


def _slurm(wanted: Wanted) -> str:
    least, most = wanted.workers or (2, 2)
    if least != most:
        raise ValueError(f"--workers {least}:{most}: a Slurm job keeps its size; give one number")
    store = wanted.store or "sfumato-store"
    sbatch = {
        "job-name": wanted.name,
        "nodes": least + 1,  # the head's node works too
        "ntasks-per-node": 1,
        "cpus-per-task": wanted.cpus,
        "mem": f"{wanted.memory_mib}M" if wanted.memory_mib else None,
        "gpus-per-node": wanted.gpus or None,
        "time": match("--time", wanted.time, TIME),
        "partition": match("--partition", wanted.partition, WORD),
        "account": match("--account", wanted.account, WORD),
        "output": "%x-%j.log",
        "signal": "B:TERM@120",
    }
    container: list[str] = []
    if wanted.image is not None:
        container = ["apptainer", "exec", *(["--nv"] if wanted.gpus else [])]
        for folder in (store, wanted.data_dir):
            if folder and folder.startswith("/"):
                container += ["--bind", bindable(folder)]
        container.append(wanted.image)
    text = (_TEMPLATES / "slurm.sh").read_text()
    settings, begins, program = text.partition(_SHELL_BEGINS)
    title = [line for line in settings.splitlines() if line.startswith("# ")]
    given = [f"#SBATCH --{key}={value}" for key, value in sbatch.items() if value is not None]
    lines = [
        *("#!/bin/bash", *given, *title, "", *wanted.setup),
        f"options=({shlex.join(run_options(wanted, store, least, most))})",
        f"cpus={wanted.cpus}",
        f"gpus={wanted.gpus}",
        f"memory_mib={wanted.memory_mib or 0}",
        f"container=({shlex.join(container)})",
    ]
    return "\n".join(lines) + f"\n{begins}{program}"


class _Quoted(str):
    """A person's text, quoted in YAML always: parsers differ on what looks like a number."""


class _Dumper(yaml.SafeDumper):
    pass


_Dumper.add_representer(
    _Quoted, lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"')
)


def _read(name: str) -> tuple[str, Any]:
    """The comment a template begins with, and its content."""
    text = (_TEMPLATES / name).read_text()
    title = "".join(line for line in text.splitlines(True) if line.startswith("#"))
    return title, yaml.safe_load(text)


def _dump(tree: Any) -> str:
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=math.inf)
