"""What a SLURM cluster calls its things: `slurm/site.yaml`, for the profile `slurm`."""

from collections.abc import Iterator
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from satm.config.base import Options

Resource = int | str
"""A number, or an expression in which `attempt` counts from 1, as Snakemake takes them."""


class Site(Options):
    """The names of one cluster. What is not given is left to SLURM."""

    gpu_partition: str | None = None
    """Partition of the jobs with a GPU."""
    cpu_partition: str | None = None
    """Partition of the others."""
    account: str | None = None
    """Account that pays."""
    qos: str | None = None
    """Quality of service of all jobs."""
    constraint: str | None = None
    """Features of the nodes for jobs with a GPU, such as `a100|h100`."""
    gpu_model: str | None = None
    """Type of the GPUs, as SLURM names it: what stands between the colons of `gpu:a100:4` in `sinfo -o %G`."""
    status_command: Literal["auto", "sacct", "squeue"] = "auto"
    """What says how jobs ended. `sacct` asks the accounting database and forgets nothing; on a cluster without one it
    never sees a job end. `squeue` asks the controller, which forgets a job some minutes later. `auto`: `sacct` where
    there is a database."""
    memory: int | None = Field(None, ge=1)
    """Megabytes that no job asks for more of, however often it was tried: the most that a node has. Left out: SLURM is
    asked."""
    jobs: int = Field(100, ge=1)
    """Jobs in the queue at once."""
    arrays: tuple[str, ...] = ()
    """Rules whose jobs are submitted as arrays, or `all`. Whatever can run is in the queue then, without a limit."""
    per_job: dict[str, int] = {}
    """How many jobs of a rule share one SLURM job, one after another on its GPU. When one fails all of them have."""
    resources: dict[str, dict[str, Resource]] = {}
    """Resources by rule, in place of those that the workflow asks for."""

    @field_validator("gpu_partition", "cpu_partition", "account", "qos", "constraint", "gpu_model", mode="before")
    @classmethod
    def _name(cls, value: object) -> object:
        """Take a name of digits as YAML reads it."""
        return str(value) if isinstance(value, int) and not isinstance(value, bool) else value

    @field_validator("per_job")
    @classmethod
    def _several(cls, value: dict[str, int]) -> dict[str, int]:
        for rule, count in value.items():
            if count < 2:
                raise ValueError(f"{rule}: {count} jobs in one are not several; write 2 or more, or leave it out")
        return value

    @model_validator(mode="after")
    def _fits(self) -> "Site":
        if self.arrays and "jobs" in self.model_fields_set:
            raise ValueError(
                "jobs cannot be limited beside arrays, for the plugin would never submit those that wait for a place; "
                "leave one of the two out"
            )
        for rule in self.arrays:
            if rule in self.per_job:
                raise ValueError(f"{rule} is in arrays and in per_job; leave it out of one of them")
        return self

    def rules(self) -> Iterator[str]:
        """Yield the rules that are named."""
        yield from (rule for rule in self.arrays if rule != "all")
        yield from self.per_job
        yield from self.resources

    # What the profile is made of

    @property
    def queued(self) -> int | str:
        """Jobs in the queue at once, for Snakemake."""
        return "unlimited" if self.arrays else self.jobs

    @property
    def everywhere(self) -> dict[str, Resource]:
        """Resources of every job. What is not named is not there: Snakemake would look at it for each job."""
        return _texts(slurm_partition=self.cpu_partition, slurm_account=self.account, qos=self.qos)

    def gpu(self, rule: str) -> dict[str, Resource]:
        """Return the resources of a rule whose jobs get a GPU each."""
        own = _texts(slurm_partition=self.gpu_partition, constraint=self.constraint, gpu_model=self.gpu_model)
        return {"gpu": 1, **own, **self.other(rule)}

    def other(self, rule: str) -> dict[str, Resource]:
        """Return the resources that are to replace those of a rule."""
        found = dict(self.resources.get(rule, {}))
        if isinstance(memory := found.get("mem_mb"), int):
            found["mem_mb"] = f"{memory} * attempt"  # more after a job that had too little, as the rules have it
        return found

    @property
    def limits(self) -> dict[str, int]:
        """What a job gets at most, for Snakemake, which also lets those that share one take turns on its GPU."""
        limits = {"gpu": 1} if self.per_job else {}
        return limits if self.memory is None else {**limits, "mem_mb": self.memory}

    @property
    def groups(self) -> dict[str, Any]:
        """The rules whose jobs share one, each in a group of its own."""
        return {rule: rule for rule in self.per_job}


def _texts(**names: str | None) -> dict[str, Resource]:
    """Return names as Snakemake takes a text for certain: a partition `all` is not Python's function."""
    return {key: repr(name) for key, name in names.items() if name is not None}
