"""Files that describe jobs of a batch system (Slurm, PBS, LSF ...), which start workers."""

from __future__ import annotations

import difflib
import importlib
import shlex
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tomoscale.errors import TomoscaleError

CLUSTERS = {
    "htcondor": "HTCondorCluster",
    "local": "LocalCluster",
    "lsf": "LSFCluster",
    "moab": "MoabCluster",
    "oar": "OARCluster",
    "pbs": "PBSCluster",
    "sge": "SGECluster",
    "slurm": "SLURMCluster",
}
"""Batch systems and what submits their jobs; `local` runs them on this machine, to try a file."""
OURS = ("jobs", "patience")
MOST_BYTES = 2**16
"""Of a file that describes jobs."""
MOST_JOBS = 100_000
"""And cores, and processes: more than any machine has, and few enough to be counted with."""
LISTENING = ("contact_address", "host", "interface", "port")
"""What may be said of the scheduler; who may reach it is not said here."""
PATIENCE = "24 h"


@dataclass(frozen=True)
class Jobs:
    """
    Jobs of a batch system that start workers.

    Parameters
    ----------
    path : str
        The file that describes them.
    system : str
        `slurm`, `pbs` ...
    options : dict
        Of one job, as dask-jobqueue takes them: `cores`, `processes`, `memory`, `queue`, `walltime` ...
    n_jobs : int
        How many.
    patience_s : float
        Seconds that a run waits while no worker is there.
    memory : int
        Bytes of one worker.
    """

    path: str
    system: str
    options: dict[str, Any]
    n_jobs: int
    patience_s: float
    memory: int

    @property
    def workers(self) -> int:
        """Worker processes of all jobs."""
        return self.n_jobs * self.options["processes"]

    @property
    def threads(self) -> int:
        """Threads of each."""
        return self.options["cores"] // self.options["processes"]

    @property
    def cluster_class(self) -> Any:
        """What submits them, of dask-jobqueue."""
        return _cluster_class(self.system)

    @property
    def are_here(self) -> bool:
        """Whether workers reach this process without leaving the machine."""
        elsewhere = {"contact_address", "host"} & {*self.options.get("scheduler_options", {})}
        return not elsewhere and {self.options.get("interface"), _interface(self.options)} == {"lo"}

    @property
    def where(self) -> str:
        """For people: what it is."""
        plural = ["s" * (n > 1) for n in (self.n_jobs, self.workers, self.threads)]
        return (
            f"{self.n_jobs} job{plural[0]} of {self.system} with {self.workers} worker{plural[1]} of "
            f"{self.threads} thread{plural[2]}"
        )


# ---------------------------------------------------------------- the file


def read(path: str) -> Jobs:
    """
    Read a file that describes jobs.

    Parameters
    ----------
    path : str
        A YAML file: a section `jobqueue` with one batch system and the options of one job, as in the configuration of
        Dask; and a section `tomoscale` with the number of `jobs`, and the `patience` (`24 h`) with which a run waits
        while none of them runs.

    Returns
    -------
    Jobs
        What is to be started; nothing is yet.

    Raises
    ------
    TomoscaleError
        No such file, unknown options, impossible values, or what submits the jobs is not installed.
    """
    content = _loaded(path)
    _check_keys(path, "a section", content, ("jobqueue", "tomoscale"))
    queues, ours = (_mapping(path, name, content.get(name)) for name in ("jobqueue", "tomoscale"))
    if len(queues) != 1:
        raise TomoscaleError(
            f"{path}: jobqueue: {len(queues)} batch systems; expected one of {', '.join(CLUSTERS)}"
        )
    ((system, given),) = queues.items()
    _check_keys(path, "a batch system", queues, CLUSTERS)
    _check_keys(path, "an option of tomoscale", ours, OURS)
    options = _options(path, system, _mapping(path, system, given))
    memory = _parsed(path, "memory", options["memory"], "parse_bytes")
    patience_s = _parsed(path, "patience", ours.get("patience", PATIENCE), "parse_timedelta")
    n_jobs = _count(path, "jobs", ours.get("jobs"))
    return Jobs(path, system, options, n_jobs, patience_s, int(memory) // options["processes"])


def _loaded(path: str) -> Any:
    import yaml

    try:
        with open(path, "rb") as file:
            text = file.read(MOST_BYTES + 1)
        if len(text) > MOST_BYTES:
            raise TomoscaleError(f"{path}: more than {MOST_BYTES} bytes; expected a file that describes jobs")
        return _mapping(path, "the file", _loader(path)(text).get_single_data())
    except OSError as error:
        raise TomoscaleError(
            f"scheduler {path}: {error.strerror}; expected a file that describes jobs"
        ) from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        if isinstance(error, TomoscaleError):
            raise
        raise TomoscaleError(f"{path}: is no YAML file: {' '.join(str(error).split())}") from None


def _loader(path: str) -> Any:
    """Return a safe loader that refuses a key given twice; the usual one takes the last of them."""
    import yaml

    class Loader(yaml.SafeLoader):
        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            seen: set[str] = set()
            for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
                if key.value in seen:
                    line = key.start_mark.line + 1
                    raise TomoscaleError(f"{path}: {key.value} in line {line} is given a second time")
                seen.add(key.value)
            return super().construct_mapping(node, deep)

    return Loader


def _mapping(path: str, name: str, value: Any) -> dict[Any, Any]:
    if not isinstance(value, dict):
        what = "is empty" if value is None else f"is a {type(value).__name__}"
        raise TomoscaleError(
            f"{path}: {name} {what}; expected `jobqueue: {{slurm: {{cores: 8, ...}}}}, tomoscale: {{jobs: 4}}`"
        )
    return value


def _check_keys(path: str, what: str, given: Mapping[Any, Any], known: Any) -> None:
    """Refuse what nobody would look at."""
    for key in given:
        if key not in known:
            close = difflib.get_close_matches(str(key), known, 1)
            hint = f"; did you mean {close[0]}?" if close else f"; expected {', '.join(sorted(known))}"
            raise TomoscaleError(f"{path}: {str(key)[:80]} is not {what}{hint}")


def _options(path: str, system: str, given: Mapping[Any, Any]) -> dict[str, Any]:
    """Return the options of one job, checked as far as they concern us."""
    import yaml

    module = _module(system)
    defaults = Path(module.__file__ or "").with_name("jobqueue.yaml").read_text(encoding="utf-8")
    known = yaml.safe_load(defaults)["jobqueue"][system]
    _check_keys(path, f"an option of {system}", given, known)
    for name, value in given.items():
        if isinstance(known[name], list | dict) and not isinstance(value, type(known[name])):
            raise TomoscaleError(f"{path}: {name} {_shown(value)}; expected a {type(known[name]).__name__}")
        if any(isinstance(v, list | dict) for v in _values(value)):
            raise TomoscaleError(f"{path}: {name} {_shown(value)}; expected no lists in it")
    if type(given.get("walltime")) is int:  # 12:00:00 is a number to YAML: 43200, which are minutes to Slurm
        raise TomoscaleError(f'{path}: walltime {given["walltime"]}; expected a time in quotes, "12:00:00"')
    options = {str(name).replace("-", "_"): value for name, value in given.items() if value is not None}
    if "name" in options:
        options["job_name"] = options.pop("name")  # `name` is that of the whole cluster to dask-jobqueue
    options["cores"] = _count(path, "cores", options.get("cores"))
    options["processes"] = _count(path, "processes", options.get("processes", options["cores"]))
    if options["cores"] % options["processes"]:
        raise TomoscaleError(
            f"{path}: {options['cores']} cores for {options['processes']} processes; expected as many for each"
        )
    if "memory" not in options:
        raise TomoscaleError(f"{path}: memory of one job is missing; give memory: 64GB, say")
    submit = _cluster_class(system).job_cls.submit_command
    if submit and shutil.which(shlex.split(submit)[0]) is None:
        raise TomoscaleError(
            f"{path}: {shlex.split(submit)[0]} is not there; start this where jobs of {system} can be submitted"
        )
    _check_keys(path, "an option of a scheduler", options.get("scheduler_options", {}), LISTENING)
    _check_interface(path, _interface(options))
    return options


def _values(value: Any) -> list[Any]:
    """Return what a list or a mapping holds."""
    return list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []


def _shown(value: Any) -> str:
    """Name a value: lists of the same lists may be longer than any memory, and numbers than Python prints."""
    if isinstance(value, list | dict) or (isinstance(value, int) and abs(value) > 10**18):
        return f"of type {type(value).__name__}"
    return repr(str(value)[:80])


def _module(system: str) -> Any:
    try:
        return importlib.import_module(f"dask_jobqueue.{system}")
    except ModuleNotFoundError as error:
        raise TomoscaleError(
            f"jobs of {system} need {error.name}, which is not installed; pip install 'tomoscale[jobqueue]'"
        ) from None


def _cluster_class(system: str) -> Any:
    return getattr(_module(system), CLUSTERS[system])


def _interface(options: Mapping[str, Any]) -> Any:
    """Return the network on which the scheduler listens."""
    return options.get("scheduler_options", {}).get("interface", options.get("interface"))


def _check_interface(path: str, name: Any) -> None:
    import psutil

    known = psutil.net_if_addrs()
    if not isinstance(name, str) or name not in known:
        what = "is missing" if name is None else _shown(name)
        raise TomoscaleError(
            f"{path}: interface {what}; expected the network by which workers reach this machine: {', '.join(known)}"
        )


def _count(path: str, name: str, value: Any) -> int:
    if type(value) is not int or not 1 <= value <= MOST_JOBS:
        what = "is missing" if value is None else _shown(value)
        raise TomoscaleError(f"{path}: {name} {what}; expected a number from 1 to {MOST_JOBS}")
    return value


def _parsed(path: str, name: str, value: Any, parser: str) -> float:
    import dask.utils

    try:
        number = float(getattr(dask.utils, parser)(value))
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError):
        number = 0.0
    if not 0 < number < 1e18:
        raise TomoscaleError(
            f"{path}: {name} {_shown(value)}; expected an amount such as 64GB, or a time such as 2 h"
        )
    return number
