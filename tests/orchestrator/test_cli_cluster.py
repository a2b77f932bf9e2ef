"""`sfumato cluster template` as a command: what it prints, writes and refuses."""

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

OPTIONS = (
    *("experiment", "store", "data-dir", "image", "name", "workers", "cpus", "memory", "gpus"),
    *("gpus-per-worker", "setup", "idle-minutes", "provider", "region", "instance"),
    *("head-instance", "hosts", "ssh-user", "ssh-key", "claim", "secret", "partition"),
    *("account", "time"),
)
NEEDED = {
    "slurm": {},
    "kuberay": {"image": "my/sfumato:1"},
    "ray-up": {"image": "my/sfumato:1", "store": "/shared/store"},
}
HOSTILE = (
    "$(touch X)",
    "'; touch X; '",
    '"; `touch X`; "',
    "a\n#SBATCH --uid=0\ntouch X",
    "}]: !!python/object/apply:os.system ['touch X']",
    "/a/'$(touch X)",
)


def words(options: dict[str, str]) -> list[str]:
    return [word for key, value in options.items() for word in (f"--{key}", value)]


@pytest.mark.parametrize("kind", NEEDED)
def test_each_kind_is_printed_or_written(place: Any, kind: str) -> None:
    said = place.command("cluster", "template", kind, *words(NEEDED[kind]))
    assert said.code == 0, said.text
    assert f"sfumato cluster template {kind}" in said.text
    file = place.folder / "made"
    options = words({**NEEDED[kind], "out": str(file)})
    assert place.command("cluster", "template", kind, *options).flat.startswith("written to ")
    assert file.read_text() == said.text


def test_options_arrive(place: Any) -> None:
    options = {"name": "mine", "workers": "1:4", "memory": "2G", "gpus": "2", "claim": "disk"}
    options |= {"idle-minutes": "5", "gpus-per-worker": "0.5", "cpus": "3", "store": "/disk"}
    options |= {"image": "my/sfumato:2", "experiment": "null", "data-dir": "/disk/data"}
    said = place.command("cluster", "template", "kuberay", *words(options))
    assert said.code == 0, said.text
    job = yaml.safe_load(said.text)
    assert job["metadata"]["name"] == "mine"
    assert job["spec"]["entrypoint"] == (
        "sfumato run --address auto --store /disk --data-dir /disk/data --gpus-per-worker 0.5 "
        "--workers 16 -- null"
    )
    cluster = job["spec"]["rayClusterSpec"]
    assert cluster["autoscalerOptions"]["idleTimeoutSeconds"] == 300
    [container] = cluster["workerGroupSpecs"][0]["template"]["spec"]["containers"]
    size = {"cpu": "3", "memory": "2048Mi", "nvidia.com/gpu": "2"}
    assert container["resources"]["limits"] == size
    options = {**NEEDED["ray-up"], "provider": "local", "hosts": "a,b,c", "ssh-user": "me"}
    said = place.command("cluster", "template", "ray-up", *words(options), "--setup", "x; y")
    config = yaml.safe_load(said.text)
    assert config["provider"] == {"type": "local", "head_ip": "a", "worker_ips": ["b", "c"]}
    assert config["setup_commands"][-1] == "x; y"


@pytest.mark.parametrize(
    ("given", "parts"),
    [
        (["helm"], ["'helm'", "ray-up, kuberay, slurm"]),
        (["kuberay", "--partition", "x"], ["--partition is for slurm", "kuberay"]),
        (["slurm", "--idle-minutes", "5"], ["--idle-minutes is for ray-up and kuberay"]),
        (["slurm", "--workers", "many"], ["--workers 'many'", "MIN:MAX"]),
        (["slurm", "--memory", "32"], ["--memory '32'", "32G"]),
        (["slurm", "--out", "/no/folder/job.sh"], ["/no/folder/job.sh"]),
    ],
)
def test_bad_input_is_told_in_a_line(place: Any, given: list[str], parts: list[str]) -> None:
    said = place.command("cluster", "template", *given)
    place.refused(said, *parts)
    assert len(said.text.splitlines()) == 1


@pytest.mark.parametrize("kind", NEEDED)
def test_hostile_values_are_refused_or_harmless(place: Any, kind: str, tmp_path: Path) -> None:
    num_made = 0
    for option in OPTIONS:
        for value in HOSTILE:
            given = words({**NEEDED[kind], option: value})
            said = place.command("cluster", "template", kind, *given)
            if said.code:
                assert said.code == 2
                continue
            num_made += 1
            assert "\n#SBATCH --uid" not in said.text
            if kind != "slurm":
                yaml.safe_load(said.text)  # the unit tests compare every value
            elif option == "setup":
                continue  # commands, by their meaning
            else:
                run_without_slurm(said.text, tmp_path)
    assert num_made >= (0 if kind == "kuberay" else 8)
    assert not list(tmp_path.rglob("X"))


def run_without_slurm(script: str, folder: Path) -> None:
    """Up to the first step, which fails, and all of what the settings are made into."""
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    tools = folder / "bin"
    if not tools.exists():
        tools.mkdir()
        (tools / "srun").write_text("#!/bin/bash\nexit 1\n")
        (tools / "scontrol").write_text("#!/bin/bash\necho node1\n")
        for tool in tools.iterdir():
            tool.chmod(0o755)
    ran = subprocess.run(
        ["bash", "-c", script],
        cwd=folder,
        env={
            "PATH": f"{tools}:{Path(shutil.which('bash') or '/bin/bash').parent}:/usr/bin:/bin",
            "SLURM_JOB_ID": "7",
            "SLURM_JOB_NODELIST": "node1",
            "SLURM_SUBMIT_DIR": str(folder),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 1, ran.stderr
    assert "cannot tell the address of node1" in ran.stderr
