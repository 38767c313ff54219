"""Names and limits of a SLURM cluster, from `slurm/site.yaml`, for the profile `slurm`."""

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Field, PrivateAttr, field_validator, model_validator

from satm.config.base import Options

Resource = int | str
"""A number, or an expression of Snakemake in which `attempt` counts from 1."""


class Site(Options):
    """Settings of one cluster; SLURM's defaults apply to missing ones."""

    gpu_partition: str | None = None
    """Partition of jobs with a GPU."""
    cpu_partition: str | None = None
    """Partition of other jobs."""
    account: str | None = None
    """Account to charge."""
    qos: str | None = None
    """Quality of service of all jobs."""
    constraint: str | None = None
    """Features of the nodes for jobs with a GPU, such as `a100|h100`."""
    gpu_model: str | None = None
    """Type of the GPUs in SLURM: the part between the colons of `gpu:a100:4` in `sinfo -o %G`."""
    status_command: Literal["auto", "sacct", "squeue"] = "auto"
    """Command that reports how jobs ended. `sacct` asks the accounting database and forgets nothing; on a cluster
    without one it never sees a job end. `squeue` asks the controller, which forgets jobs after some minutes. `auto`:
    `sacct` if there is a database."""
    memory: int | None = Field(None, ge=1)
    """Largest memory request of a job in megabytes, that of the largest node; left out: as reported by SLURM."""
    jobs: int = Field(100, ge=1)
    """Jobs in the queue at once."""
    arrays: tuple[str, ...] = ()
    """Rules whose jobs are submitted as arrays, or `all`; the length of the queue is then not limited."""
    per_job: dict[str, Annotated[int, Field(ge=2)]] = {}
    """Jobs of a rule that share one SLURM job, one after another on its GPU; if one fails, all count as failed."""
    resources: dict[str, dict[str, Resource]] = {}
    """Resources by rule that replace those of the workflow."""

    _given: dict[str, dict[str, Resource]] = PrivateAttr(default_factory=dict)

    @field_validator("gpu_partition", "cpu_partition", "account", "qos", "constraint", "gpu_model", mode="before")
    @classmethod
    def _name(cls, value: object) -> object:
        """Accept names of digits, which YAML reads as integers."""
        return str(value) if isinstance(value, int) and not isinstance(value, bool) else value

    @model_validator(mode="after")
    def _fits(self) -> "Site":
        if self.arrays and "jobs" in self.model_fields_set:
            reason = "the plugin would never submit jobs beyond the limit"
            raise ValueError(f"jobs and arrays exclude each other: {reason}; leave one out")
        if both := [rule for rule in self.arrays if rule in self.per_job]:
            raise ValueError(f"{both[0]} is in arrays and in per_job; leave it out of one of them")
        return self

    def rules(self) -> Iterator[str]:
        """Yield the rules that the settings name."""
        yield from (rule for rule in self.arrays if rule != "all")
        yield from self.per_job
        yield from self.resources

    @property
    def queued(self) -> int | str:
        """Jobs in the queue at once, for Snakemake."""
        return "unlimited" if self.arrays else self.jobs

    @property
    def everywhere(self) -> dict[str, Resource]:
        """Resources of every job, without unset ones, which Snakemake would evaluate for each job."""
        return _texts(slurm_partition=self.cpu_partition, slurm_account=self.account, qos=self.qos)

    @property
    def given(self) -> dict[str, dict[str, Resource]]:
        """Resources that `gpu` and `other` have returned, by rule."""
        return self._given

    def gpu(self, rule: str) -> dict[str, Resource]:
        """Return the resources of a rule whose jobs need a GPU each."""
        own = _texts(slurm_partition=self.gpu_partition, constraint=self.constraint, gpu_model=self.gpu_model)
        self._given[rule] = {"gpu": 1, **own, **self.other(rule)}
        return self._given[rule]

    def other(self, rule: str) -> dict[str, Resource]:
        """Return the resources that replace those of a rule."""
        resources = dict(self.resources.get(rule, {}))
        if isinstance(memory := resources.get("mem_mb"), int):
            resources["mem_mb"] = f"{memory} * attempt"  # retries get more memory, as in the rules
        self._given[rule] = resources
        return resources

    @property
    def limits(self) -> dict[str, int]:
        """Limits on the resources of one job; `gpu: 1` also makes jobs that share a GPU take turns."""
        limits = {"gpu": 1} if self.per_job else {}
        return limits if self.memory is None else {**limits, "mem_mb": self.memory}

    @property
    def groups(self) -> dict[str, Any]:
        """Groups of the rules whose jobs share one, a group per rule."""
        return {rule: rule for rule in self.per_job}


def _texts(**names: str | None) -> dict[str, Resource]:
    """Return names quoted, so that Snakemake does not take a partition `all` for Python's function."""
    return {key: repr(name) for key, name in names.items() if name is not None}
