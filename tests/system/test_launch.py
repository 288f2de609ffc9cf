"""The launchers: local.sh with a stand-in for Python, the others by their structure."""

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

LAUNCH = Path(__file__).parents[2] / "launch"
yaml = pytest.importorskip("yaml")


def test_the_container_holds_what_it_names():
    """Each file that is copied is there, and the JobSet starts in its folder."""
    text = (LAUNCH / "Dockerfile").read_text()
    root = LAUNCH.parent
    copied = re.findall(r"^COPY (\S+) ", text, re.MULTILINE)
    assert copied and all((root / name).exists() for name in copied)
    assert {f"{x}.txt" for x in ("cuda", "tpu")} <= {
        path.name for path in (root / "requirements").iterdir()
    }
    (folder,) = re.findall(r"^WORKDIR (\S+)", text, re.MULTILINE)
    jobset = (LAUNCH / "kubernetes-jobset.yaml").read_text()
    assert f"workingDir: {folder}\n" in jobset and "launch/Dockerfile" in jobset
    kept = (root / ".dockerignore").read_text().split()
    assert "*" in kept and {f"!{name.strip('/')}" for name in copied} <= {*kept}
    (user,) = re.findall(r"^USER (\d+)$", text, re.MULTILINE)
    assert f"--uid {user} " in text and f"fsGroup: {user}\n" in jobset


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def stand_in(tmp_path):
    """Return an interpreter that runs the last flag, a shell command, for its `id`."""
    path = tmp_path / "python"
    path.write_text(
        "#!/usr/bin/env bash\n"
        "[[ $1 == -c ]] && { echo 12345; exit; }\n"
        'id=$(grep -o "process_id=[0-9]*" <<< "$*" | cut -d= -f2)\n'
        'eval "${!#}"\n'
    )
    path.chmod(0o755)
    return path


# As in a terminal; where the tests run in the background, Ctrl-C may be ignored.
HEED_SIGINT = (
    "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); "
    "os.execv(sys.argv[1], sys.argv[1:])"
)


def local(stand_in, *words, **variables):
    """Start local.sh without the variables that this machine may have."""
    return subprocess.Popen(
        [sys.executable, "-c", HEED_SIGINT, LAUNCH / "local.sh", *words],
        env={"PATH": "/usr/bin:/bin", "PYTHON": str(stand_in), **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def result(process, timeout=30):
    out, err = process.communicate(timeout=timeout)
    said = [line for line in err.splitlines() if not line.startswith("+ ")]
    commands = [line for line in err.splitlines() if line.startswith("+ ")]
    return process.returncode, sorted(out.splitlines()), said, commands


def test_local_splits_devices_and_passes_flags_on(stand_in):
    show = 'echo "$id $JAX_NUM_CPU_DEVICES $CUDA_VISIBLE_DEVICES"; echo "$*" >&2'
    process = local(stand_in, "2", "evaluate", "--a=b c", show, JAX_NUM_CPU_DEVICES="6")
    status, out, said, commands = result(process)
    assert status == 0 and out == ["0 3 ", "1 3 "]
    for line in said:
        assert line.startswith("-m eir_jax.evaluate --coordinator=127.0.0.1:12345 ")
        assert "--num_processes=2" in line and "--a=b c" in line
    assert len(commands) == 2 and all("'--a=b c'" in line for line in commands)
    none = local(stand_in, "2", show, CUDA_VISIBLE_DEVICES="")
    assert result(none)[1] == ["0 1 ", "1 1 "]
    gpus = local(stand_in, "2", show, CUDA_VISIBLE_DEVICES="0,2,5,7")
    status, out, said, _ = result(gpus)
    assert status == 0 and out == ["0  0,2", "1  5,7"]
    assert all("-m eir_jax.main " in line for line in said)


def test_local_refuses_what_does_not_divide(stand_in):
    for words, part in (([], "''"), (["x"], "'x'"), (["0"], "'0'")):
        status, _, said, _ = result(local(stand_in, *words))
        assert status == 2 and len(said) == 1 and part in said[0]
    status, _, said, _ = result(local(stand_in, "2", CUDA_VISIBLE_DEVICES="0,1,2"))
    assert status == 2 and "3 GPUs do not divide over 2 processes" in said[0]
    status, _, said, _ = result(local(stand_in, "2", JAX_NUM_CPU_DEVICES="six"))
    assert status == 2 and "JAX_NUM_CPU_DEVICES is 'six'" in said[0]


def test_local_runs_in_the_folder_that_it_is_called_from(stand_in, tmp_path):
    """Relative paths mean what they say there; the program is found all the same."""
    show = 'echo "$PWD $PYTHONPATH"'
    with contextlib.chdir(tmp_path):
        status, out, *_ = result(local(stand_in, "1", show))
    assert status == 0 and out == [f"{tmp_path} {LAUNCH.parent}"]


def test_local_ends_the_others_when_one_dies(stand_in):
    began = time.monotonic()
    die = "[[ $id == 1 ]] && kill -KILL $$; exec sleep 60"
    status, _, said, _ = result(local(stand_in, "3", die))
    assert status == 137 and time.monotonic() - began < 25
    assert said[-1].startswith("error: process 1 of 3 was killed by signal 9")


def test_local_lets_them_end_by_their_own_error(stand_in):
    fail = "[[ $id == 1 ]] && exit 2; sleep 0.5; echo 'error: why' >&2; exit 2"
    status, _, said, _ = result(local(stand_in, "2", fail))
    assert status == 2 and said == ["error: why"]


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)]
)
def test_local_passes_signals_on_once(stand_in, number, status):
    wait = (
        f"trap 'echo got; got=1' {number.name[3:]}; echo up; "
        f"while [[ -z $got ]]; do sleep 0.05; done; sleep 0.3; exit {status}"
    )
    process = local(stand_in, "2", wait)
    assert [process.stdout.readline() for _ in range(2)] == ["up\n"] * 2
    process.send_signal(number)
    code, out, _, _ = result(process)
    assert code == status and out == ["got", "got"]


def test_tpu_pod_quotes_the_flags(tmp_path):
    gcloud = tmp_path / "gcloud"
    gcloud.write_text('#!/bin/bash\nprintf "%s\\n" "$@"\n')
    gcloud.chmod(0o755)
    words = ["pod", "zone", "--config=c.py", "--config.knn.k=5,20", "--workdir=/a b"]
    found = subprocess.run(
        [LAUNCH / "tpu_pod.sh", *words],
        env={"PATH": f"{tmp_path}:/usr/bin:/bin"},
        capture_output=True,
        text=True,
    )
    assert found.returncode == 0 and found.stdout.startswith("+ ")
    flags = found.stdout.splitlines()[1:]
    assert flags[:6] == [*["compute", "tpus", "tpu-vm", "ssh", "pod"], "--zone=zone"]
    assert "--worker=all" in flags
    assert flags[-1].endswith(
        r"eir_jax.main --config=c.py --config.knn.k=5\,20 --workdir=/a\ b"
    )
    assert subprocess.run([LAUNCH / "tpu_pod.sh"], capture_output=True).returncode == 2


def test_slurm_script_runs_srun_with_the_flags(tmp_path):
    srun = tmp_path / "srun"
    srun.write_text('#!/bin/bash\nprintf "%s\\n" "$@"\n')
    srun.chmod(0o755)
    found = subprocess.run(
        [LAUNCH / "slurm.sbatch", "--workdir=/a b"],
        env={"PATH": f"{tmp_path}:/usr/bin:/bin", "SLURM_SUBMIT_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert found.returncode == 0 and found.stdout.startswith("+ 'srun'")
    # By 1, or where the cluster has it so, tasks that end by 75 a second after the
    # first are killed, and srun's status is 143 (seen with Slurm 22.05).
    assert "--kill-on-bad-exit=0" in found.stdout.splitlines()
    tail = [".venv/bin/python", "-m", "eir_jax.main", "--workdir=/a b"]
    assert found.stdout.splitlines()[-4:] == tail


@pytest.mark.parametrize("status", [0, 1, 75, 130, 137])
def test_slurm_script_requeues_what_was_stopped_unfinished(tmp_path, status):
    for name, text in (("srun", f"exit {status}"), ("scontrol", 'echo "told: $*"')):
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    environ = {"PATH": f"{tmp_path}:/usr/bin:/bin", "SLURM_SUBMIT_DIR": str(tmp_path)}
    found = subprocess.run(
        [LAUNCH / "slurm.sbatch", "--workdir=w"],
        env=environ | {"SLURM_JOB_ID": "7"},
        capture_output=True,
        text=True,
    )
    assert found.returncode == status
    assert ("told: requeue 7" in found.stdout) == (status == 75)
    assert "#SBATCH --requeue\n" in (LAUNCH / "slurm.sbatch").read_text()


def test_jobset_agrees_with_itself():
    """Names and numbers that Kubernetes does not check: a wrong one hangs the run."""
    jobset = yaml.safe_load((LAUNCH / "kubernetes-jobset.yaml").read_text())
    assert (jobset["apiVersion"], jobset["kind"]) == (
        "jobset.x-k8s.io/v1alpha2",
        "JobSet",
    )
    (replicated,) = jobset["spec"]["replicatedJobs"]
    job = replicated["template"]["spec"]
    assert job["completionMode"] == "Indexed" and replicated["replicas"] == 1
    assert job["completions"] == job["parallelism"]
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    script, _, *flags = container["args"]
    name = jobset["metadata"]["name"]
    host = f"{name}-{replicated['name']}-0-0.{name}"
    port = container["ports"][0]["containerPort"]
    assert f"--coordinator={host}:{port} " in script
    assert f"--num_processes={job['parallelism']} " in script
    assert '--process_id="$JOB_COMPLETION_INDEX"' in script
    assert "\n" not in script and all(flag.startswith("--") for flag in flags)
    # A run that was stopped unfinished is started again, however often.
    (rule,) = jobset["spec"]["failurePolicy"]["rules"]
    assert rule["onJobFailureReasons"] == ["PodFailurePolicy"]
    assert rule["action"] == "RestartJobSetAndIgnoreMaxRestarts"
    stopped, moved = job["podFailurePolicy"]["rules"]
    assert stopped["onExitCodes"]["values"] == [os.EX_TEMPFAIL]
    assert stopped["onExitCodes"]["containerName"] == container["name"]
    assert stopped["action"] == moved["action"] == "FailJob"
    mounted = {mount["name"] for mount in container["volumeMounts"]}
    assert mounted == {volume["name"] for volume in pod["volumes"]}


@pytest.mark.skipif(not shutil.which("shellcheck"), reason="shellcheck is not here")
def test_scripts_pass_shellcheck():
    scripts = [*LAUNCH.glob("*.sh"), LAUNCH / "slurm.sbatch"]
    found = subprocess.run(["shellcheck", *scripts], capture_output=True, text=True)
    assert found.returncode == 0, found.stdout


def test_readme_names_every_launcher():
    text = (LAUNCH / "README.md").read_text()
    for path in LAUNCH.iterdir():
        assert path.name == "README.md" or f"launch/{path.name}" in text
    usage = [p for p in LAUNCH.iterdir() if p.suffix in (".sh", ".sbatch")]
    for path in usage:
        assert re.search(r"printf '\+ %s\\n'", path.read_text()), path.name
