"""Diagnosis of a machine: every check of ``emberd doctor``.

The checks start no server and write only to an unnamed temporary file in EMBERD_HOME. Each runs
concurrently with a time limit: a check that hangs or crashes becomes a finding, and the others go
on.

===============  ==========================================================
``report``       the list of checks, running them, and the verdict
``findings``     what a check returns; calls with a time limit
``wanted``       the requested server, settings and environment variables
``host``         software, memory, limits and disks
``gpu``          GPUs, their memory, and the compilers for kernels
``model``        model folders, the hub and its cache
``engines``      which engine would serve the model; engine environments
``servers``      running servers, the state folder, proxies and ports
===============  ==========================================================
"""

from __future__ import annotations

from emberd.doctor.findings import Finding, Level
from emberd.doctor.report import Report, Verdict, examine

__all__ = ["Finding", "Level", "Report", "Verdict", "examine"]
