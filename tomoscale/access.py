"""Who may reach the workers of a run: this machine only, or whoever holds a certificate of the job."""

from __future__ import annotations

import ipaddress
import stat
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tomoscale.errors import TomoscaleError

FILES = {"tls_ca_file": "ca.pem", "tls_client_cert": "cert.pem", "tls_client_key": "key.pem"}
"""What a folder of certificates holds: those of the authority, the own one, and its key."""


@dataclass(frozen=True)
class Access:
    """
    How processes of a run reach each other.

    Parameters
    ----------
    certificates : Path, optional
        Folder with `ca.pem`, `cert.pem` and `key.pem`, readable by nobody else; by default those that the
        configuration of Dask names (`distributed.comm.tls`).
    insecure : bool
        Allow a scheduler on another machine without encryption: whoever reaches it runs code as you.
    dashboard : bool
        Whether local workers have Dask's dashboard, on the loopback interface.
    """

    certificates: Path | None = None
    insecure: bool = False
    dashboard: bool = True

    def security(self, address: str) -> Any:
        """
        Return what Dask needs to reach a scheduler.

        Parameters
        ----------
        address : str
            `tls://host:port`, or `tcp://` on this machine.

        Returns
        -------
        distributed.Security or None
            None where nothing is encrypted.

        Raises
        ------
        TomoscaleError
            It is neither encrypted nor on this machine, or there are no certificates.
        """
        protocol = address.partition("://")[0]
        if protocol == "tls":
            return self._with_certificates(address)
        if protocol == "tcp" and is_loopback(address):
            return None
        if protocol == "tcp" and self.insecure:
            warnings.warn(f"scheduler {address}: not encrypted: whoever reaches it can run code as you")
            return None
        hint = ", or --insecure if nobody else is in that network" if protocol == "tcp" else ""
        raise TomoscaleError(
            f"scheduler {address}: not encrypted; use tls:// for other hosts than this one{hint}"
        )

    def _with_certificates(self, address: str) -> Any:
        from distributed import Security

        if self.certificates is None:
            security = Security(require_encryption=True)
            if not (security.tls_ca_file and security.tls_client_cert):
                raise TomoscaleError(
                    f"scheduler {address}: give --certificates FOLDER with {', '.join(FILES.values())}"
                )
            return security
        paths = {name: self.certificates / file for name, file in FILES.items()}
        for path in paths.values():
            if not path.is_file():
                raise TomoscaleError(
                    f"{path}: does not exist; expected {', '.join(FILES.values())} in that folder"
                )
        key = paths["tls_client_key"]
        if any(stat.S_IMODE(p.stat().st_mode) & 0o077 == 0 for p in (key, key.parent)):
            return Security(**{n: str(p) for n, p in paths.items()}, require_encryption=True)
        raise TomoscaleError(f"{key}: others may read it, and so run code as you; chmod 700 {key.parent}")


def is_loopback(address: str) -> bool:
    """
    Tell whether an address is on this machine.

    >>> [is_loopback(a) for a in ("tcp://127.0.0.1:1", "tcp://[::1]:1", "tcp://localhost", "tcp://127.0.0.1.org:1")]
    [True, True, True, False]
    """
    host = address.partition("://")[2]
    host = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
