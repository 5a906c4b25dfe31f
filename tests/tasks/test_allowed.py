"""Which commands, modules, options, images and secrets a config may name on a cluster: what the operator allows."""

import pytest

from tasks.launchers.allowed import ALLOWED, require_allowed
from tasks.launchers.choice import require_launchable
from vlm_core.config import ComputeConfig

PODS = {"image": "lab/medpix:1", "volume_claim": "medpix"}
REQUESTS = {
    "cluster.container=sh -c id": {"launcher": "slurm", "cluster": {"container": "sh -c id"}},
    "cluster.modules=evil/1": {"launcher": "slurm", "cluster": {"modules": ["evil/1"]}},
    "cluster.extra_arguments=--prolog=/tmp/x": {
        "launcher": "slurm",
        "cluster": {"extra_arguments": ["--prolog=/tmp/x"]},
    },
    "kubernetes.image=lab/medpix:1": {"launcher": "kubernetes", "kubernetes": PODS},
    "kubernetes.volume_claim=medpix": {"launcher": "kubernetes", "kubernetes": PODS},
    "kubernetes.namespace=kube-system": {"launcher": "kubernetes", "kubernetes": PODS | {"namespace": "kube-system"}},
    "kubernetes.secret=root": {"launcher": "kubernetes", "kubernetes": PODS | {"secret": "root"}},
}


@pytest.mark.parametrize("entry", REQUESTS)
def test_nothing_is_allowed_until_the_operator_says_so(entry: str, monkeypatch: pytest.MonkeyPatch) -> None:
    compute = ComputeConfig.model_validate(REQUESTS[entry])
    others = ";".join(other for other in REQUESTS if other != entry)
    for allowed in ("", others, f"x{entry}", f"{entry}x", entry.upper()):
        monkeypatch.setenv(ALLOWED, allowed)
        with pytest.raises(ValueError, match=r"is not allowed on this machine.* adds `.*` to MEDPIX_CLUSTER_ALLOWS"):
            require_launchable(compute)
    for allowed in (f"{others}; {entry} ", "*"):
        monkeypatch.setenv(ALLOWED, allowed)
        require_allowed(compute)


@pytest.mark.parametrize("allowed", ["cluster.modules=cuda/*", " cluster.modules=cuda/12.4 ;x=y"])
def test_a_star_stands_for_any_text(allowed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ALLOWED, allowed)
    require_allowed(ComputeConfig.model_validate({"launcher": "slurm", "cluster": {"modules": ["cuda/12.4"]}}))
    with pytest.raises(ValueError, match="cluster.modules='cudax/1' is not allowed"):
        require_allowed(ComputeConfig.model_validate({"launcher": "slurm", "cluster": {"modules": ["cudax/1"]}}))


def test_what_has_no_effect_or_is_the_default_needs_no_consent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ALLOWED)
    require_allowed(ComputeConfig.model_validate({"cluster": {"container": "sh"}}))
    require_allowed(ComputeConfig(launcher="slurm"))
