"""Periods that make the manager's tests quick."""

from emberd.manager import Timing

QUICK = Timing(poll_s=0.02, tick_s=0.1, cool_down_s=30.0, lost_s=0.5, kill_s=5.0, suspicion_s=0.3)
