"""Operating-system mechanisms, each in one place: processes, listeners, locks, files, forks."""
