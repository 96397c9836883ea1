"""Run folders, atomic files, process groups, threads and devices."""
