"""A real Slurm of two nodes on this machine: the same curve as two local processes, however the job is interrupted."""

import logging
import os
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tasks.launchers.choice import launcher_of, require_launchable
from tasks.launchers.follow import run_job
from tasks.launchers.job import Job, JobFailedError
from tasks.launchers.slurm import SlurmLauncher, record_file
from tests.conftest import SMALL, fresh_home, small_config
from tests.e2e.services import ROOT, command, started_process, wait_until
from tests.slurm import Cluster, cluster
from vlm_core.config import ComputeConfig
from vlm_core.files import read_json, read_json_lines
from vlm_core.home import medpix_home
from vlm_core.recipe import load_config
from vlm_core.run_directory import CONFIG, LATEST, METRICS, PROGRESS

__all__ = ["cluster"]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

dear = pytest.mark.skipif("MEDPIX_KILLS" not in os.environ, reason="minutes each: make stress runs them")

STEPS = 300  # ten seconds on a fast machine: enough for what interrupts them to come in time
LOCAL = {"launcher": "local", "nproc_per_node": 2}
SLURM = {"launcher": "slurm", "nodes": 2, "cluster": {"memory_per_node": "100M"}}
TRAINING = {
    "step_scheduler.max_steps": STEPS,
    "step_scheduler.num_epochs": 99,
    "step_scheduler.ckpt_every_steps": 8,
    "checkpoint.max_recent_checkpoints": 2,
}
EVALUATION = {"evaluation.limit": 16, "evaluation.max_new_tokens": 4, "evaluation.controls": [], "report.images": False}


def training(directory: Path, conversations: Path, compute: dict[str, Any], **overrides: Any) -> Job:
    """Returns the job of a training, whose config it writes."""
    directory.mkdir(parents=True)
    settings = TRAINING | {"compute": compute, "checkpoint.checkpoint_dir": str(directory)} | overrides
    config = small_config(**settings)
    (directory / CONFIG).write_text(config.to_yaml())
    arguments = ("--config", str(directory / CONFIG), "--conversations", str(conversations))
    return Job("vlm_core.finetune", arguments, config.compute, directory / "finetune.log")


def run(job: Job, on_poll: Callable[[], None] = lambda: None) -> None:
    logger = logging.getLogger("test")
    run_job(job, launcher_of(job.compute, logger), logger=logger, on_poll=on_poll)


def curve(directory: Path) -> list[list[float]]:
    records = read_json_lines(directory / METRICS)[0]
    return [[record[key] for key in ("step", "loss", "grad_norm", "lr")] for record in records]


def steps_done(directory: Path) -> int:
    return len(read_json_lines(directory / METRICS)[0])


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Other numbers of threads round sums differently: a curve over hundreds of steps then drifts away."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        yield


@pytest.fixture(scope="module")
def expected(conversations: Path, tmp_path_factory: pytest.TempPathFactory) -> list[list[float]]:
    """The curve of two local processes, which nothing interrupts."""
    directory = tmp_path_factory.mktemp("local") / "run"
    run(training(directory, conversations, LOCAL))
    return curve(directory)


def require_same_curve(directory: Path, expected: list[list[float]]) -> None:
    found = curve(directory)
    assert len(found) == len(expected) == STEPS
    for one, other in zip(found, expected, strict=True):
        assert one == pytest.approx(other, rel=1e-6)


class Interrupted:
    """What happens to a training once it has done a few steps: `act`, and the job that was queued again starts."""

    def __init__(self, cluster: Cluster, directory: Path, act: Callable[[], None]) -> None:
        self.cluster, self.directory, self.act, self.happened = cluster, directory, act, False

    def __call__(self) -> None:
        if not self.happened and steps_done(self.directory) >= 20:
            self.happened = True
            self.act()
        if self.happened:
            self.cluster.start_requeued_jobs()


def test_the_whole_flow_over_two_nodes_though_its_process_is_killed(
    cluster: Cluster, expected: list[list[float]], tmp_path: Path
) -> None:
    """The second process finds the job of the first at work."""
    home, directory = fresh_home(tmp_path / "home"), tmp_path / "home" / "runs" / "demo"
    settings = SMALL | TRAINING | {"compute": SLURM, "checkpoint.checkpoint_dir": str(directory)}
    (tmp_path / "recipe.yaml").write_text(load_config("demo", settings | EVALUATION).to_yaml())
    words = ("pipelines.finetune", "--recipe", str(tmp_path / "recipe.yaml"))
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "MLFLOW_"))}
    environment |= {"MEDPIX_HOME": str(home)}
    killed = started_process(*words, environment=environment, log=tmp_path / "killed.log")
    try:
        wait_until(lambda: steps_done(directory) >= 20 or killed.poll() is not None, "a few steps of training")
        assert killed.poll() is None, (tmp_path / "killed.log").read_text()
        job = read_json(directory / "finetune.slurm.json")["job_id"]
    finally:
        killed.kill()
        killed.wait()
    done = command(*words, environment=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"follows Slurm job {job}, which was submitted earlier" in done.stderr
    require_same_curve(directory, expected)
    for step in ("finetune", "evaluate"):
        assert " on n[1-2], start 1\n" in (directory / f"{step}.log").read_text()
        assert (directory / f"{step}.slurm.sh").is_file()
        assert not (directory / f"{step}.slurm.json").exists()
    assert read_json(directory / "evaluation" / "result.json")["examples"] == 16


def container(image: Path, shared: list[Path]) -> str:
    """Returns the words of Charliecloud's container: an image with nothing but a mark, and this machine's programs."""
    (image / "etc").mkdir(parents=True)
    for name in ("etc/hosts", "etc/resolv.conf", "etc/passwd", "etc/group", "mark"):
        (image / name).touch()
    for name in ("proc", "dev", "sys", "home", "tmp"):
        (image / name).mkdir()
    prefix = Path(sys.prefix).resolve()
    wanted = (Path("/usr"), prefix, Path(sys.base_prefix), *shared)
    bound = {Path("/", path.absolute().parts[1]) for path in wanted}
    for path in (path for path in map(Path, ("/bin", "/lib", "/lib64")) if path.exists()):
        if path.is_symlink():
            (image / path.name).symlink_to(path.readlink())
        else:
            bound.add(path)
    for path in bound:
        (image / path.name).mkdir(exist_ok=True)
    starts = f'test -e /mark && PATH={prefix}/bin:/usr/bin exec "$@"'
    binds = [f"--bind={path}:{path}" for path in sorted(bound)]
    return shlex.join(["ch-run", *binds, str(image), "--", "sh", "-c", starts, "sh"])


@pytest.mark.skipif(shutil.which("ch-run") is None, reason="no ch-run: apt-get install charliecloud")
def test_a_job_in_a_container(
    cluster: Cluster, conversations: Path, expected: list[list[float]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("USER", "root")  # which Charliecloud wants to know
    inside = container(tmp_path / "image", [ROOT, tmp_path, medpix_home()])
    compute = SLURM | {"cluster": {"memory_per_node": "100M", "container": inside}}
    run(training(tmp_path / "run", conversations, compute))
    require_same_curve(tmp_path / "run", expected)


def test_a_job_whose_id_was_lost_is_found_by_its_script(cluster: Cluster, tmp_path: Path) -> None:
    """A flow that was killed between sbatch and its answer: a second job would write into the same directory."""
    job = Job("job_under_test", (), ComputeConfig.model_validate(SLURM), tmp_path / "job.log")
    job.log_file.touch()
    launcher = SlurmLauncher(logging.getLogger("test"))
    first = launcher.submit(job)
    try:
        record_file(job).unlink()
        assert launcher.submit(job).job_id == first.job_id
        assert len(cluster.output_of("squeue", "--noheader").splitlines()) == 1
    finally:
        first.cancel()
    assert launcher.submit(job).job_id > first.job_id
    launcher.submit(job).cancel()


def test_a_cancelled_job_saves_and_is_gone(cluster: Cluster, conversations: Path, tmp_path: Path) -> None:
    class Cancelled(BaseException):
        pass

    def cancel() -> None:
        raise Cancelled

    job = training(tmp_path / "run", conversations, SLURM)
    with pytest.raises(Cancelled):
        run(job, Interrupted(cluster, tmp_path / "run", cancel))
    assert cluster.output_of("squeue", "--noheader") == ""
    assert cluster.processes_of_jobs() == []
    last = steps_done(tmp_path / "run")
    assert 20 <= read_json(tmp_path / "run" / LATEST / PROGRESS)["step"] == last < STEPS
    assert not (tmp_path / "run" / "finetune.slurm.json").exists()


@dear
def test_a_preempted_job_saves_waits_and_goes_on(
    cluster: Cluster, conversations: Path, expected: list[list[float]], tmp_path: Path
) -> None:
    job = training(tmp_path / "run", conversations, SLURM)
    words = ("--partition=urgent", "--nodes=2", "--output=/dev/null", "--wrap=sleep 1")
    run(job, Interrupted(cluster, tmp_path / "run", lambda: cluster.output_of("sbatch", *words)))
    require_same_curve(tmp_path / "run", expected)
    log = job.log_file.read_text()
    for said in ("stopped by SIGTERM after step", "was stopped by the cluster: it is queued again", ", start 2\n"):
        assert said in log


@dear
@pytest.mark.parametrize("node", ["n2", "n1"])
def test_a_node_that_dies(
    cluster: Cluster, conversations: Path, expected: list[list[float]], tmp_path: Path, node: str
) -> None:
    """The first node has the job's script, and keeps the rendezvous."""
    job = training(tmp_path / "run", conversations, SLURM)
    dies = Interrupted(cluster, tmp_path / "run", lambda: cluster.kill_node(node))
    returned: list[bool] = []

    def poll() -> None:
        dies()
        if dies.happened and not returned and "down" in cluster.output_of("sinfo", "--noheader", "--format=%T"):
            cluster.start_node(node)
            returned.append(True)

    run(job, poll)
    assert returned
    require_same_curve(tmp_path / "run", expected)
    assert ", start 2\n" in job.log_file.read_text()


@dear
@pytest.mark.timeout(1800)
def test_a_job_that_runs_out_of_its_time(
    cluster: Cluster, conversations: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasks.launchers.slurm_script.SECONDS_TO_SAVE", 20)
    limited = SLURM | {"cluster": {"time_limit": "2"}}
    steps = 5500  # more than the fastest machine does in two minutes
    many = {"step_scheduler.max_steps": steps, "step_scheduler.num_epochs": steps}
    job = training(tmp_path / "run", conversations, limited, **many)
    run(job, Interrupted(cluster, tmp_path / "run", lambda: None))
    log = job.log_file.read_text()
    for said in ("stopped by SIGTERM after step", "was stopped by the cluster: it is queued again", ", start 2\n"):
        assert said in log
    assert [record[0] for record in curve(tmp_path / "run")] == list(range(1, steps + 1))


@pytest.mark.parametrize(
    ("compute", "said"),
    [
        (
            {"cluster": {"partition": "nope"}},
            r"compute\.cluster\.partition='nope' does not exist; use one of main, short, urgent",
        ),
        ({"nodes": 3}, r"compute\.nodes=3, but the partition has 2: ask for fewer"),
        ({"cluster": {"partition": "short"}}, r"compute\.nodes=2, but the partition has 1"),
    ],
)
def test_what_the_cluster_has_not_is_refused_before_anything_starts(
    cluster: Cluster, compute: dict[str, Any], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        require_launchable(ComputeConfig.model_validate(SLURM | compute))
    require_launchable(ComputeConfig.model_validate(SLURM))


@pytest.mark.parametrize(
    ("compute", "said"),
    [
        ({"cluster": {"memory_per_node": "900G"}}, "Slurm refuses .*Memory specification can not be satisfied"),
        (
            {"nodes": 1, "cluster": {"partition": "short", "time_limit": "10"}},
            "Slurm would never start job .*: PartitionTimeLimit; change",
        ),
    ],
)
def test_a_job_beyond_a_limit_leaves_none_in_the_queue(
    cluster: Cluster, tmp_path: Path, compute: dict[str, Any], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        run(Job("job_under_test", (), ComputeConfig.model_validate(SLURM | compute), tmp_path / "job.log"))
    assert cluster.output_of("squeue", "--noheader") == ""
    assert list(tmp_path.glob("*.json")) == []


def test_a_directory_that_a_node_does_not_see_is_named(cluster: Cluster) -> None:
    compute = ComputeConfig.model_validate(SLURM)
    seen_by_one = rf"error: node n2 cannot write to {cluster.on_n1_alone}/run: set MEDPIX_HOME"
    with pytest.raises(JobFailedError, match=seen_by_one):
        run(Job("job_under_test", (), compute, cluster.on_n1_alone / "run" / "job.log"))
    with pytest.raises(JobFailedError, match=f"wrote no log: {cluster.hidden}/run may be missing on its node"):
        run(Job("job_under_test", (), compute, cluster.hidden / "run" / "job.log"))
