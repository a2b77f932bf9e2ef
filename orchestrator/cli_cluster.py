"""Commands about clusters elsewhere: cluster template."""

from pathlib import Path
from typing import Annotated, Any

import typer

from orchestrator._console import Debug, Errors, add, refuse, say

__all__ = ["cluster_app"]

cluster_app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="What starts a cluster elsewhere, and an experiment on it.",
)

_FOR = {  # the options that only some kinds have
    **dict.fromkeys(("partition", "account", "time"), ("slurm",)),
    **dict.fromkeys(("claim", "secret", "env_secret"), ("kuberay",)),
    **dict.fromkeys(("provider", "region", "instance", "head_instance"), ("ray-up",)),
    **dict.fromkeys(("hosts", "ssh_user", "ssh_key"), ("ray-up",)),
    "idle_minutes": ("ray-up", "kuberay"),
    "setup": ("ray-up", "slurm"),
}


def _text(flag: str, metavar: str, text: str) -> Any:
    return typer.Option(flag, metavar=metavar, help=text)


def template(
    kind: Annotated[str, typer.Argument(metavar="KIND", help="ray-up, kuberay or slurm")],
    experiment: Annotated[
        str, _text("--experiment", "NAME", "Packaged, or a file's path as the cluster sees it.")
    ] = "quickstart",
    store: Annotated[
        str | None, _text("--store", "DIR|URI", "Folder that every node mounts, or s3://….")
    ] = None,
    data_dir: Annotated[
        str | None, _text("--data-dir", "DIR", "Folder with datasets that every node mounts.")
    ] = None,
    image: Annotated[
        str | None, _text("--image", "IMAGE", "Container image with Sfumato in it.")
    ] = None,
    name: Annotated[str, _text("--name", "NAME", "Of the cluster and the job.")] = "sfumato",
    workers: Annotated[
        str | None, _text("--workers", "N", "Nodes beside the head, or MIN:MAX; default 2.")
    ] = None,
    cpus: Annotated[int, _text("--cpus", "N", "CPUs of a worker node.")] = 8,
    memory: Annotated[
        str | None, _text("--memory", "SIZE", "Memory of a worker node, as in 32G.")
    ] = None,
    gpus: Annotated[int, _text("--gpus", "N", "GPUs of a worker node.")] = 0,
    gpus_per_worker: Annotated[
        float | None, _text("--gpus-per-worker", "X", "Share of a GPU a worker owns; default 1.")
    ] = None,
    setup: Annotated[
        list[str] | None,
        _text("--setup", "COMMAND", "Shell command that makes a node ready; may be repeated."),
    ] = None,
    idle_minutes: Annotated[
        int | None, _text("--idle-minutes", "N", "After which a node is let go; default 10.")
    ] = None,
    provider: Annotated[
        str | None, _text("--provider", "NAME", "ray-up: aws (default) or local.")
    ] = None,
    region: Annotated[
        str | None, _text("--region", "NAME", "ray-up: of AWS; default us-west-2.")
    ] = None,
    instance: Annotated[
        str | None, _text("--instance", "TYPE", "ray-up: of a worker, with --cpus and --gpus.")
    ] = None,
    head_instance: Annotated[
        str | None, _text("--head-instance", "TYPE", "ray-up: of the head; default m5.xlarge.")
    ] = None,
    hosts: Annotated[
        str | None, _text("--hosts", "HOST,…", "ray-up: your machines, the head's first.")
    ] = None,
    ssh_user: Annotated[
        str | None, _text("--ssh-user", "NAME", "ray-up: who logs in; default ubuntu.")
    ] = None,
    ssh_key: Annotated[str | None, _text("--ssh-key", "FILE", "ray-up: private key.")] = None,
    claim: Annotated[
        str | None,
        _text("--claim", "NAME", "kuberay: volume claim mounted at --store."),
    ] = None,
    secret: Annotated[
        str | None, _text("--secret", "NAME", "kuberay: secret with the key auth_token.")
    ] = None,
    env_secret: Annotated[
        str | None,
        _text("--env-secret", "NAME", "kuberay: secret with credentials, as AWS_ACCESS_KEY_ID."),
    ] = None,
    partition: Annotated[
        str | None, _text("--partition", "NAME", "slurm: where the job runs.")
    ] = None,
    account: Annotated[str | None, _text("--account", "NAME", "slurm: whom it is charged.")] = None,
    time: Annotated[str | None, _text("--time", "LIMIT", "slurm: as in 4:00:00.")] = None,
    out: Annotated[
        Path | None, _text("--out", "FILE", "Where it goes; default: the terminal.")
    ] = None,
    debug: Debug = False,
) -> None:
    """Print a file that starts a Ray cluster, with your image, sizes and store in it.

    `ray-up` is a cluster on AWS or on machines of your own, `kuberay` a RayJob for Kubernetes,
    `slurm` a script for sbatch. The comment at its top says what to do with it. All of them ask
    for a token, and open no port beyond the cluster's own network.

    [bold]Examples[/bold]

      sfumato cluster template slurm --workers 3 --time 4:00:00 --out job.sh

      sfumato cluster template kuberay --image my/sfumato:1 --workers 1:8

      sfumato cluster template ray-up --image my/sfumato:1 --store /shared
    """
    with Errors(debug):
        from cluster.manifests import KINDS, render
        from cluster.wanted import Wanted, parse_memory, parse_workers

        if kind not in KINDS:
            refuse(f"no template is named {kind!r} (known: {', '.join(KINDS)})")
        some: dict[str, Any] = {
            "partition": partition,
            "account": account,
            "time": time,
            "claim": claim,
            "secret": secret,
            "env_secret": env_secret,
            "provider": provider,
            "region": region,
            "instance": instance,
            "head_instance": head_instance,
            "hosts": None if hosts is None else tuple(hosts.split(",")),
            "ssh_user": ssh_user,
            "ssh_key": ssh_key,
            "idle_minutes": idle_minutes,
            "setup": tuple(setup) if setup else None,
        }
        given = {key: value for key, value in some.items() if value is not None}
        for key in given:
            if kind not in _FOR[key]:
                option = f"--{key.replace('_', '-')}"
                refuse(f"{option} is for {' and '.join(_FOR[key])}; {kind} has no use for it")
        wanted = Wanted(
            experiment=experiment,
            store=store,
            data_dir=data_dir,
            image=image,
            name=name,
            workers=None if workers is None else parse_workers(workers),
            cpus=cpus,
            memory_mib=None if memory is None else parse_memory(memory),
            gpus=gpus,
            gpus_per_worker=gpus_per_worker,
            **given,
        )
        text = render(kind, wanted)
        if out is None:
            typer.echo(text, nl=False)
        else:
            try:
                out.write_text(text, encoding="utf-8")
            except OSError as error:
                refuse(f"--out {out}: {error.strerror}; name a file in a folder that is there")
            say(f"written to {out}; the comment at its top says what to do with it")


add(cluster_app, template, "template")
