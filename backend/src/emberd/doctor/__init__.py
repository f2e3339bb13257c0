"""What is wrong with a machine, and what to type: every check of ``emberd doctor``.

Nothing is started, and nothing is written but a nameless file in the home. Each check runs by
itself and for a bounded time: what hangs or crashes is a finding, not the end of the examination.

=================  ========================================================
``examination``    the checks in their order, run at once; where to begin reading
``findings``       what a check returns
``verdict``        whether a server can be had, and what to type next
``wanted``         what the user asks for, as far as it can be read
``bounded``        running what may hang
``redaction``      no secret leaves
the others         one subject each
=================  ========================================================
"""

from __future__ import annotations

from emberd.doctor.findings import Finding, Level
from emberd.doctor.report import Report, Verdict, examine

__all__ = ["Finding", "Level", "Report", "Verdict", "examine"]
