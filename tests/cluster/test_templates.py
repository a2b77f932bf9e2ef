"""Files for `ray up`, KubeRay and Slurm: valid, and with exactly what was asked for."""

import json
import re
import shlex
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from cluster.manifests import render
from cluster.wanted import Wanted, parse_memory, parse_workers

TEMPLATES = Path(__file__).parents[2] / "cluster" / "templates"
SCHEMA = json.loads((Path(__file__).parent / "rayjob.schema.json").read_text())
IMAGE = "registry.example:5000/team/sfumato:0.1.0"
AWS = Wanted(image=IMAGE, store="/shared/store")
LOCAL = replace(AWS, provider="local", hosts=("10.0.0.1", "10.0.0.2", "10.0.0.3"))
LARGE: dict[str, Any] = {
    "workers": (1, 8),
    "cpus": 16,
    "gpus": 4,
    "gpus_per_worker": 0.25,
    "memory_mib": 65536,
}
HOSTILE = "a'b\"c$(touch X)`touch X`; touch X & #: {[|>*!%@\\ ~ é"


def loaded(kind: str, wanted: Wanted) -> Any:
    return yaml.safe_load(render(kind, wanted))


# -- ray up ---------------------------------------------------------------------------------------


def launchable(config: dict[str, Any]) -> dict[str, Any]:
    """As `ray up` fills it with defaults and checks it."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared: dict[str, Any] = prepare_config(config)
    validate_config(prepared)
    return prepared


@pytest.mark.parametrize(
    "wanted",
    [
        *(AWS, LOCAL, replace(AWS, **LARGE), replace(LOCAL, workers=(1, 2))),
        replace(AWS, image=None, setup=("pip install x.whl",), store="s3://bucket/store"),
        replace(LOCAL, image=None, setup=("true",), ssh_key="~/.ssh/id"),
    ],
)
def test_ray_takes_what_it_is_to_launch(wanted: Wanted) -> None:
    prepared = launchable(loaded("ray-up", wanted))
    least, most = wanted.workers or (2, 2)
    *_, worker = prepared["available_node_types"].values()
    assert (worker["min_workers"], worker["max_workers"]) == (least, most)
    assert prepared["max_workers"] == most
    assert prepared["setup_commands"][2:] == list(wanted.setup)
    starts = prepared["head_start_ray_commands"] + prepared["worker_start_ray_commands"]
    assert all("RAY_AUTH_MODE=token" in line for line in starts if "ray start" in line)
    assert "--dashboard-host=127.0.0.1" in prepared["head_start_ray_commands"][-1]
    assert "0.0.0.0" not in json.dumps(prepared)


@pytest.mark.parametrize("name", ["ray_up_aws", "ray_up_local"])
def test_templates_for_ray_up_are_valid_as_they_are(name: str) -> None:
    config = yaml.safe_load((TEMPLATES / f"{name}.yaml").read_text())
    launchable(config)
    with pytest.raises(jsonschema.ValidationError):
        launchable({**config, "idle_timeout": 5})


def test_sizes_of_nodes_on_aws() -> None:
    head, worker = loaded("ray-up", replace(AWS, **LARGE))["available_node_types"].values()
    assert head["resources"] == {"CPU": 0}
    assert worker["resources"] == {"CPU": 16, "GPU": 4, "memory": 64 * 2**30}
    assert worker["node_config"]["InstanceType"].startswith("g")


# -- KubeRay --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wanted",
    [
        *(Wanted(image=IMAGE), Wanted(image=IMAGE, **LARGE)),
        Wanted(image=IMAGE, store="s3://bucket/store", secret="mine", name="a" * 40),
        Wanted(image=IMAGE, store="/data/store", claim="my.claim", data_dir="/data"),
    ],
)
def test_kuberay_takes_the_job(wanted: Wanted) -> None:
    job = loaded("kuberay", wanted)
    jsonschema.validate(job, SCHEMA)
    spec = job["spec"]
    assert spec["shutdownAfterJobFinishes"] is True
    assert spec["ttlSecondsAfterFinished"] > 0
    cluster = spec["rayClusterSpec"]
    assert cluster["authOptions"]["mode"] == "token"
    assert cluster["authOptions"].get("secretName") == wanted.secret
    assert cluster["enableInTreeAutoscaling"] == (wanted.workers == (1, 8))
    [group] = cluster["workerGroupSpecs"]
    assert group["minReplicas"] == (wanted.workers or (2, 2))[0]
    assert group["maxReplicas"] == (wanted.workers or (2, 2))[1]
    [worker] = group["template"]["spec"]["containers"]
    limits = {"cpu": str(wanted.cpus), "memory": f"{wanted.memory_mib or 32768}Mi"}
    assert worker["resources"]["limits"] == limits | (
        {"nvidia.com/gpu": "4"} if wanted.gpus else {}
    )
    head = cluster["headGroupSpec"]["template"]["spec"]
    for pod in (head, group["template"]["spec"]):
        mounts = [mount["mountPath"] for mount in pod["containers"][0].get("volumeMounts", [])]
        store = wanted.store or "/store"
        assert mounts == ([] if "://" in store else [store])
        claims = [volume["persistentVolumeClaim"] for volume in pod.get("volumes", [])]
        assert claims == [{"claimName": wanted.claim or "sfumato-store"}] * len(mounts)


def test_the_schema_refuses_what_kuberay_would() -> None:
    job = yaml.safe_load((TEMPLATES / "kuberay.yaml").read_text())
    jsonschema.validate(job, SCHEMA)
    spec = job["spec"]
    for wrong in (
        {**spec, "ttlSecondsAfterFinish": 1},
        {**spec, "ttlSecondsAfterFinished": "600"},
        {**spec, "rayClusterSpec": {**spec["rayClusterSpec"], "authOptions": {"mode": "tokens"}}},
    ):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({**job, "spec": wrong}, SCHEMA)


# -- what a run is told ----------------------------------------------------------------------------


def options_in_slurm(wanted: Wanted) -> tuple[list[str], list[str]]:
    """The words that bash makes of the script's settings: of the run, and of the container."""
    script = render("slurm", wanted)
    begin = script.partition("# -- what follows")[0]
    show = 'printf \'%s\\0\' "${#options[@]}" "${options[@]}" "${container[@]}"'
    shown = subprocess.run(["bash", "-euc", begin + show], capture_output=True)
    assert shown.returncode == 0, shown.stderr
    num, *words = shown.stdout.decode().split("\0")[:-1]
    return words[: int(num)], [word for word in words[int(num) :] if word]


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ({"workers": (1, 4)}, ["--workers", "32"]),
        ({"workers": (4, 4)}, []),
        ({"gpus": 2}, ["--gpus-per-worker", "1"]),
        (
            {"gpus": 2, "gpus_per_worker": 0.4, "workers": (1, 3)},
            ["--gpus-per-worker", "0.4", "--workers", "12"],
        ),
        (
            {"gpus": 4, "gpus_per_worker": 2.0, "workers": (1, 3)},
            ["--gpus-per-worker", "2", "--workers", "6"],
        ),
    ],
)
def test_an_elastic_cluster_is_asked_for_all_it_may_become(
    sizes: dict[str, Any], expected: list[str]
) -> None:
    entry = loaded("kuberay", Wanted(image=IMAGE, **sizes))["spec"]["entrypoint"]
    words = ["sfumato", "run", "--address", "auto", "--store", "/store", *expected]
    assert shlex.split(entry) == [*words, "--", "quickstart"]


def test_sbatch_is_told_the_sizes() -> None:
    wanted = Wanted(
        **{**LARGE, "workers": (3, 3)}, time="1-12:00:00", partition="gpu,big", account="lab_7"
    )
    said = dict(re.findall(r"^#SBATCH --(\S+?)=(\S+)$", render("slurm", wanted), re.M))
    assert said == {
        **{"job-name": "sfumato", "nodes": "4", "ntasks-per-node": "1", "cpus-per-task": "16"},
        **{"mem": "65536M", "gpus-per-node": "4", "time": "1-12:00:00", "partition": "gpu,big"},
        **{"account": "lab_7", "output": "%x-%j.log", "signal": "B:TERM@120"},
    }


# -- hostile values --------------------------------------------------------------------------------

text = st.text(st.characters(codec="utf-8"), min_size=1, max_size=30) | st.text(
    "'\"$()`\\;&|<>#:{}[]*!%@~ \n\t-=?0e1yn", min_size=1, max_size=30
)
# What is refused is refused here too, so that most examples say something.
usable = text.filter(lambda s: s.isprintable() and s.strip() and not s.startswith("-"))


@given(usable, usable, usable)
@example(HOSTILE, HOSTILE, HOSTILE)
@example("1e3", "yes", "0x10")
def test_words_reach_slurms_shell_unchanged(experiment: str, folder: str, image: str) -> None:
    store, data = (word.replace(":", "").replace(",", "") + "/" for word in (folder, experiment))
    wanted = Wanted(experiment=experiment, store=store, data_dir=data, image=image)
    options, container = options_in_slurm(wanted)
    assert options == ["--store", store, "--data-dir", data, "--", experiment]
    assert container[:2] == ["apptainer", "exec"]
    assert container[-1] == image


@given(usable, usable, usable)
@example(HOSTILE, HOSTILE.replace(":", ""), HOSTILE)
@example("1e3", "yes", "null")
def test_values_in_yaml_are_exactly_those_given(experiment: str, folder: str, line: str) -> None:
    store = "/" + folder.replace(":", "").replace(",", "")
    wanted = replace(AWS, experiment=experiment, store=store, setup=(line,), ssh_key=line)
    text = render("ray-up", wanted)
    config = yaml.safe_load(text)
    assert config["setup_commands"][-1] == config["auth"]["ssh_private_key"] == line
    # Ray joins these with spaces and gives them to a shell.
    *_, mount = config["docker"]["run_options"]
    assert shlex.split(mount) == ["-v", f"{store}:{store}"]
    above = text.partition("cluster_name:")[0].splitlines()
    assert all(line.startswith("#") for line in above)
    [told] = shlex.split(above[-1].removeprefix("# COMMAND is "))
    words = ["RAY_AUTH_MODE=token", "sfumato", "run", "--address", "auto", "--store"]
    assert shlex.split(told) == [*words, store, "--", experiment]


@given(text)
def test_kuberays_command_holds_nothing_a_shell_would_see(value: str) -> None:
    wanted = Wanted(image=IMAGE, experiment=value, store=f"s3://bucket/{value}")
    if re.fullmatch("[A-Za-z0-9._/:@%+,=][A-Za-z0-9._/:@%+,=-]*", value) is None:
        with pytest.raises(ValueError, match=r"--(experiment|store) '|\""):
            render("kuberay", wanted)
        return
    job = loaded("kuberay", wanted)
    expected = f"sfumato run --address auto --store s3://bucket/{value} -- {value}"
    assert job["spec"]["entrypoint"] == expected


@pytest.mark.parametrize(
    ("kind", "wanted", "said"),
    [
        ("slurm", Wanted(workers=(1, 3)), "keeps its size"),
        ("slurm", Wanted(store="s3://KEY:hidden@bucket/x"), "AWS_SECRET_ACCESS_KEY"),
        ("kuberay", Wanted(image=IMAGE, store="s3://"), "or an URI"),
        ("slurm", Wanted(time="soon"), "--time 'soon'"),
        ("slurm", Wanted(partition="a b"), "--partition 'a b'"),
        ("slurm", Wanted(experiment="--debug"), "--experiment '--debug' begins with '-'"),
        ("slurm", Wanted(store="a\n#SBATCH --uid=0"), r"'a\n#SBATCH --uid=0'"),
        ("slurm", Wanted(setup=("",)), "--setup ''"),
        ("slurm", Wanted(image="a.sif", store="/a:/b"), "cannot be mounted"),
        ("slurm", Wanted(cpus=0), "--cpus 0"),
        ("slurm", Wanted(gpus=-1), "--gpus -1"),
        ("slurm", Wanted(gpus=1, gpus_per_worker=1.5), "--gpus-per-worker 1.5"),
        ("slurm", Wanted(gpus=1, gpus_per_worker=float("nan")), "--gpus-per-worker nan"),
        ("slurm", Wanted(gpus_per_worker=0.5), "more than --gpus 0"),
        ("slurm", Wanted(name="My_Job"), "--name 'My_Job'"),
        ("kuberay", Wanted(), "--image"),
        ("kuberay", Wanted(image=IMAGE, store="store"), "--store 'store'"),
        ("kuberay", Wanted(image=IMAGE, workers=(0, 4)), "--workers 0:4"),
        ("kuberay", Wanted(image=IMAGE, setup=("x",)), "--setup"),
        ("kuberay", Wanted(image=IMAGE, store="s3://a/b", claim="c"), "--claim 'c'"),
        ("kuberay", Wanted(image="a; touch X"), "--image 'a; touch X'"),
        ("ray-up", Wanted(store="/s"), "nodes need Sfumato"),
        ("ray-up", Wanted(image=IMAGE), "--store is missing"),
        ("ray-up", replace(AWS, provider="gcp"), "--provider 'gcp'"),
        ("ray-up", replace(AWS, hosts=("a",)), "--provider local"),
        ("ray-up", replace(LOCAL, hosts=("a", "a")), "--hosts 'a,a'"),
        ("ray-up", replace(LOCAL, workers=(1, 3)), "more than the 2 hosts"),
        ("ray-up", replace(AWS, image="x $(touch X)"), "--image 'x $(touch X)'"),
        ("helm", Wanted(), "ray-up, kuberay, slurm"),
    ],
)
def test_what_cannot_be_is_refused_in_a_line(kind: str, wanted: Wanted, said: str) -> None:
    with pytest.raises(ValueError) as refused:
        render(kind, wanted)
    assert said in str(refused.value)
    assert str(refused.value).isprintable()


def test_sizes_as_text() -> None:
    assert parse_workers("3") == (3, 3)
    assert parse_workers("0:12") == (0, 12)
    assert parse_memory("512M") == 512
    assert parse_memory("2Gi") == parse_memory("2GB") == 2048
    for wrong in ("", "4:1", "-1", "1:2:3", "x", "1\n", "٣"):
        with pytest.raises(ValueError, match="--workers"):
            parse_workers(wrong)
    for wrong in ("", "32", "0G", "1.5G", "32 G", "32G\n"):
        with pytest.raises(ValueError, match="--memory"):
            parse_memory(wrong)
