"""The command line: typed functions for the commands, one file per topic."""
