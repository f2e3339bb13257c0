"""Helpers of the tests against real engines."""
