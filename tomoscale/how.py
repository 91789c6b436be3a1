"""How to run an operation: the options that all commands share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from tomoscale.access import Access
from tomoscale.errors import TomoscaleError
from tomoscale.values import memory_bytes


@Parameter(name="*")
@dataclass(frozen=True)
class How:
    """How to run it, the same for every operation."""

    output: Annotated[Path | None, Parameter(name=["--output", "-o"])] = None
    "Result; by default IN-COMMAND.zarr beside the input."
    workers: int | None = None
    "Worker processes; as many as cores by default."
    threads: int | None = None
    "Threads of each worker; one by default."
    memory: str | None = None
    "Memory of one worker, 8GB say; an equal share of the machine by default."
    scheduler: str = "local"
    "`local` processes, `threads` of this process, or the address of a Dask scheduler."
    certificates: Path | None = None
    "Folder with ca.pem, cert.pem and key.pem for a scheduler at tls://."
    insecure: bool = False
    "Use a scheduler on another machine without encryption: whoever reaches it can run code as you."
    dashboard: Annotated[bool, Parameter(negative="--no-dashboard")] = True
    "Dask's dashboard of local workers, seen from this machine only."
    roi: str | None = None
    "Work on a part of the input only: k0:k1,r0:r1,c0:c1."
    on_error: Literal["stop", "continue"] = "stop"
    "`stop` at the first failed block, or `continue` with the others."
    overwrite: bool = False
    "Replace an existing result, or an unfinished one of other parameters."
    dry_run: bool = False
    "Print the plan and stop."
    quiet: bool = False
    "Print the path of the result only."

    @property
    def memory_bytes(self) -> int | None:
        """Memory of one worker in bytes."""
        return memory_bytes(self.memory) if self.memory else None

    @property
    def access(self) -> Access:
        """Who may reach the workers."""
        return Access(self.certificates, self.insecure, self.dashboard)

    def check(self) -> None:
        """Refuse what no run can have."""
        for name in ("workers", "threads"):
            number = getattr(self, name)
            if number is not None and number < 1:
                raise TomoscaleError(f"--{name} {number}; expected at least 1")
