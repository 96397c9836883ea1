"""Run folders, atomic files, process groups, devices."""
