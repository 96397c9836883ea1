"""The command line: argv to typed functions, one file a theme."""
