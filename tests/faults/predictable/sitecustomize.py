"""Makes the names of a supervisor's files predictable, so that strace can be told their paths."""

import sys

if "emberd.verified_manager" in sys.orig_argv:
    from faults.names import make_predictable

    make_predictable("d")
